"""Transfers between two hosts that know each other by keys: what crosses their link is encrypted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from link_keys import Key, join

from .conftest import HostProcess, opened_network
from .test_transfers import (  # noqa: F401
    pulling,
    pushing,
    remote,
    test_a_cache_sent_layer_by_layer,
    test_a_pull_by_key,
    test_a_push,
    two_sided,
)


@pytest.fixture(scope="module")
def places(nixl: None) -> Iterator[tuple[HostProcess, HostProcess]]:
    """Two processes on two hosts."""
    network = opened_network(2)
    keys = [Key.make("near"), Key.make("far")]
    processes = [
        HostProcess(host, security={"LLMDD_LINK_KEY": key.text, "LLMDD_LINK_ALLOWED_KEYS": join(keys)})
        for host, key in zip(network.hosts, keys, strict=True)
    ]
    yield processes[0], processes[1]
    for process in processes:
        process.end()
    network.close()
