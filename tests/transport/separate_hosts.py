"""Nodes of one process that take each other for nodes of other hosts, so that an engine is between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from unittest import mock

from llmdd.link import attendance, conversation, stretches
from llmdd.transport import local
from llmdd.transport.engine import TransferEngine
from llmdd.transport.engines import ENGINES

_numbers = itertools.count()


class Favoured(Enum):
    """The way that bytes travel wherever they can: by their number, or always the same."""

    BY_SIZE = (attendance.MAX_CARRIED, stretches.GATHERED_BELOW)
    GATHERED = (0, 1 << 62)
    DIRECT = (0, 0)


@contextmanager
def separate_hosts(open_engine: Callable[[str, int], TransferEngine], favoured: Favoured) -> Iterator[None]:
    """Every node that is initialised in here has a host of its own, and engines as ``open_engine`` opens them."""
    most_carried, gathered_below = favoured.value
    with (
        mock.patch.object(local, "host_identity", lambda: f"host {next(_numbers)}"),
        mock.patch.dict(ENGINES, {"nixl": open_engine}),
        mock.patch.object(attendance, "MAX_CARRIED", most_carried),
        mock.patch.object(conversation, "MAX_CARRIED", most_carried),
        mock.patch.object(stretches, "GATHERED_BELOW", gathered_below),
    ):
        yield
