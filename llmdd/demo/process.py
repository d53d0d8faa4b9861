"""What every process of a run does first and last."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from .channel import Channel, OtherEndGone
from .messages import failure


class GivenUp(Exception):
    """A process cannot do its part; the message is the whole reason, and needs no traceback."""


def run_process(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Run ``target`` with its channel to the orchestrator and ``arguments``, and tell the orchestrator if it fails.

    A process whose orchestrator has gone ends without a word. So do its errors: when an orchestrator dies, all of its
    processes end, and one that still runs may find that its peer does not.
    """
    channel = Channel(connection)
    try:
        target(channel, *arguments)
    except OtherEndGone:
        sys.exit(1)
    except Exception as error:
        reason = str(error) if isinstance(error, GivenUp) else traceback.format_exc()
        with suppress(OtherEndGone):
            channel.send(failure(reason))
        sys.exit(1)
