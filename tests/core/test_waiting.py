"""What peers do to the word by which those who wait for memory are woken: it never costs more than a look."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from arena_layout import StillPeer

from llmdd import Cache, CacheDesc, DataType
from llmdd._core.store import CacheStore

PATIENCE_S = 30.0
DESC = CacheDesc(4, (1, 4096), DataType.DT_UINT8)  # all of the pool


@pytest.fixture
def store(make_store: Callable[..., CacheStore]) -> CacheStore:
    return make_store(device_pool=(4 << 12, 12), timeout_ms=60_000, wait_for_memory=True)


@pytest.fixture
def peer(store: CacheStore) -> Iterator[StillPeer]:
    peer = StillPeer(store, store.admit_peer())
    yield peer
    peer.close()


@pytest.fixture
def begin(store: CacheStore, eventually: Callable) -> Iterator[Callable[[], Callable[[], Cache]]]:
    """Begins a call that waits; what it gives is asked for later."""
    with ThreadPoolExecutor(1) as threads:

        def begin() -> Callable[[], Cache]:
            waiting = threads.submit(store.allocate_cache, DESC)
            eventually(lambda: store.waiting_allocations == 1, "the call waits")
            return lambda: waiting.result(PATIENCE_S)

        yield begin
        store.stop_waiting()


def test_a_peer_that_marks_and_dies_before_it_wakes(store: CacheStore, peer: StillPeer, begin: Callable) -> None:
    cache = store.allocate_cache(DESC)
    peer.pin(0)
    store.deallocate_cache(cache)
    served = begin()
    peer.unpin(0)  # and marks the slot, and nothing more
    served()
    store.check()


@pytest.mark.parametrize("value", [0, 1, 2, 1 << 32, 2**64 - 1])
def test_a_peer_that_writes_what_it_likes(store: CacheStore, peer: StillPeer, begin: Callable, value: int) -> None:
    event = peer.header.released_offsets[3] + 8 - peer.header.control_bytes
    cache = store.allocate_cache(DESC)
    served = begin()
    struct.pack_into("<Q", peer.references, event, value)
    store.deallocate_cache(cache)
    served()
    store.check()
