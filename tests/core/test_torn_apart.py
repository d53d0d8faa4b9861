"""What threads could tear apart where no GIL keeps it together: memory that is closed, links, descriptors, addresses.

Each test does in one thread what replaces or drops an object that the calls of other threads use at that moment.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore

THREADS = 4
#: Without the GIL it takes many to come upon what lasts some nanoseconds.
ROUNDS = 60 if getattr(sys, "_is_gil_enabled", lambda: True)() else 1000
SUCCESS = LLMStatusCode.LLM_SUCCESS
FINALIZED = LLMStatusCode.LLM_ENGINE_FINALIZED
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
DESC = CacheDesc(2, (1, 64), DataType.DT_UINT8)
KEY = CacheKey(1, req_id=7)
PATTERN = 171


@pytest.fixture(autouse=True)
def threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def outcome(call: Callable[[], object]) -> LLMStatusCode:
    try:
        call()
    except LLMException as refused:
        return refused.status_code
    return SUCCESS


def beside(
    work: Callable[[int, threading.Event], Any], change: Callable[[], None], threads: int = THREADS
) -> list[Any]:
    """Make a change while ``threads`` threads work; what they return once they are told that it is made."""
    begin, changed = threading.Barrier(threads + 1), threading.Event()

    def run(number: int) -> Any:
        begin.wait()
        return work(number, changed)

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(run, number) for number in range(threads)]
        begin.wait()
        try:
            change()
        finally:
            changed.set()
        return [future.result() for future in working]


def attached(owner: CacheStore) -> tuple[int, PeerArena]:
    """A pin bit of the owner's, and its memory as a peer maps it."""
    description, fds = owner.export()
    peer_bit = owner.admit_peer()
    return peer_bit, PeerArena(description, fds, peer_bit, os.getpid())


# ---------------------------------------------------------------------------------------------------------- the memory


def write_tensors(store: CacheStore, cache: Cache) -> None:
    for tensor in cache.tensors:
        tensor[:] = PATTERN


#: The calls that use the memory without the lock that closing takes.
WITHOUT_THE_LOCK: dict[str, Callable[[CacheStore, Cache], object]] = {
    "lookup": lambda store, cache: store.lookup(KEY),
    "tensors": write_tensors,
    "copy_cache": lambda store, cache: store.copy_cache(cache, cache),
    "pin_source": lambda store, cache: store.pin_source(cache),
    "allocate_cache": lambda store, cache: store.deallocate_cache(store.allocate_cache(DESC)),
    "admit_peer": lambda store, cache: store.dismiss_peer(store.admit_peer()),
    "export": lambda store, cache: store.export(),
}


@pytest.fixture
def make_small_store(make_store: Any) -> Callable[[], tuple[CacheStore, Cache]]:
    """A store that is soon made, and its cache, which is bound to KEY."""

    def make() -> tuple[CacheStore, Cache]:
        store = make_store(1, device_pool=(1 << 16, 12), slot_capacity=64, key_capacity=1024)
        return store, store.allocate_cache(DESC, [KEY])

    return make


@pytest.mark.parametrize("name", WITHOUT_THE_LOCK)
def test_memory_is_closed_under_a_call_that_uses_it(make_small_store: Any, name: str) -> None:
    """It is carried out, or refused with one word."""
    for _ in range(ROUNDS):
        store, cache = make_small_store()

        def work(number: int, closed: threading.Event, store: CacheStore = store, cache: Cache = cache) -> object:
            while (code := outcome(lambda: WITHOUT_THE_LOCK[name](store, cache))) is SUCCESS:
                pass
            return code

        assert set(beside(work, store.close)) == {FINALIZED}


def test_what_is_asked_of_any_store_is_asked_while_it_is_closed(make_small_store: Any) -> None:
    for _ in range(ROUNDS):
        store, cache = make_small_store()

        def work(number: int, closed: threading.Event, store: CacheStore = store, cache: Cache = cache) -> None:
            while not closed.is_set():
                assert store.has_released in (True, False)
                assert str(cache.cache_id) in repr(cache)
                assert outcome(store.reap) in (SUCCESS, FINALIZED)
                assert outcome(lambda: cache.tensor_addrs) in (SUCCESS, FINALIZED)

        beside(work, store.close)
        assert (store.closed, store.has_released, cache.tensor_addrs) == (True, False, [])


def test_what_shows_memory_shows_it_when_it_was_closed(make_small_store: Any) -> None:
    for _ in range(ROUNDS):
        store, cache = make_small_store()
        cache.tensors[0][:] = PATTERN

        def work(number: int, closed: threading.Event, cache: Cache = cache) -> list[Any]:
            views: list[Any] = []
            while outcome(lambda: views.append(cache.tensors[0])) is SUCCESS:
                del views[:-4]
            return views

        for views in beside(work, store.close):
            assert all((view == PATTERN).all() for view in views)


def test_memory_closed_by_many_threads_is_closed_once(make_store: Any) -> None:
    """Descriptors that are closed twice would close those that somebody else has opened meanwhile."""
    for _ in range(100):
        store = make_store(1, device_pool=(1 << 16, 12), slot_capacity=64, key_capacity=1024)
        opened = [os.memfd_create("somebody else's") for _ in range(4)]
        begin = threading.Barrier(THREADS)

        def close(begin: threading.Barrier = begin, store: CacheStore = store) -> None:
            begin.wait()
            store.close()

        with ThreadPoolExecutor(THREADS) as pool:
            for closing in [pool.submit(close) for _ in range(THREADS)]:
                closing.result()
        for fd in opened:
            os.close(fd)


# ----------------------------------------------------------------------------------------------------------- the links


def test_links_come_and_go_under_transfers(make_store: Any) -> None:
    """What was pulled is whole; what was not, was refused because no link stood."""
    owner, puller = make_store(1), make_store(2)
    desc = CacheDesc(2, (1, 64 << 10), DataType.DT_UINT8)  # as large as is copied without the GIL where there is one
    source = owner.allocate_cache(desc)
    for tensor in source.tensors:
        tensor[:] = PATTERN
    del tensor
    key = CacheKeyByIdAndIndex(1, source.cache_id)
    pulled = threading.Semaphore(0)

    def come_and_go() -> None:
        for _ in range(150):
            peer_bit, arena = attached(owner)
            puller.peers = {1: arena}
            assert pulled.acquire(timeout=60)
            puller.peers = {}
            assert arena.detach(60_000)
            owner.dismiss_peer(peer_bit)

    def work(number: int, changed: threading.Event) -> Counter[LLMStatusCode]:
        seen: Counter[LLMStatusCode] = Counter()
        ours = puller.allocate_cache(desc)
        while not changed.is_set():
            for tensor in ours.tensors:
                tensor[:] = 0
            code = outcome(lambda: puller.pull_cache(key, ours))
            seen[code] += 1
            if code is SUCCESS:
                pulled.release()
                assert all((tensor == PATTERN).all() for tensor in ours.tensors)
        puller.deallocate_cache(ours)
        return seen

    assert {code for seen in beside(work, come_and_go) for code in seen} <= {SUCCESS, NOT_LINKED}
    puller.check()
    owner.check()
    assert (owner.admitted_peers, puller.live_caches) == (0, 0)


def test_a_source_is_let_go_while_it_is_sent(make_store: Any) -> None:
    """An asynchronous transfer whose source was deallocated, and let go, finds it gone, and nothing else."""
    target, sender = (
        make_store(1, device_pool=(1 << 16, 12), remote_accessible=True),
        make_store(2, device_pool=(1 << 16, 12), remote_accessible=True),
    )
    _, arena = attached(target)
    sender.peers = {1: arena}
    theirs = target.allocate_cache(DESC)
    key = CacheKeyByIdAndIndex(1, theirs.cache_id)
    for _ in range(100):
        ours = sender.allocate_cache(DESC)
        pin = sender.pin_source(ours)
        sender.deallocate_cache(ours)

        def work(number: int, released: threading.Event, pin: Any = pin) -> set[LLMStatusCode]:
            seen = set()
            while not released.is_set():
                seen.add(outcome(lambda: sender.send_to_cache(pin, key, 0, 0)))
            seen.add(outcome(lambda: sender.send_to_cache(pin, key, 0, 0)))
            return seen

        for seen in beside(work, pin.release):
            assert seen <= {SUCCESS, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST}
            assert LLMStatusCode.LLM_KV_CACHE_NOT_EXIST in seen
        sender.reap()
        assert sender.live_caches == 0
    sender.peers = {}
    assert arena.detach(60_000)


# ------------------------------------------------------------------------------------------------ what calls are given


def test_a_descriptor_changes_while_caches_are_made_of_it(make_store: Any) -> None:
    """A cache is as large as its shape says, whichever of the two shapes it has got."""
    store = make_store(1, device_pool=(1 << 20, 12))
    desc = CacheDesc(1, (2, 64), DataType.DT_UINT8)
    sizes = {128, 256}

    def change() -> None:
        for number in range(3000):
            desc.update_dim(0, 4 if number % 2 else 2)

    def work(number: int, changed: threading.Event) -> None:
        while not changed.is_set():
            cache = store.allocate_cache(desc)
            (tensor,) = cache.tensors
            tensor[:] = number
            assert tensor.nbytes in sizes
            store.deallocate_cache(cache)
            assert desc.size in sizes and desc.batch_size in (2, 4) and len(desc.shape) == 2
            assert pickle.loads(pickle.dumps(desc)).size in sizes
            assert repr(desc).startswith("CacheDesc(num_tensors=1, shape=")

    beside(work, change)
    assert (desc.size, store.live_caches) == (256, 0)


def test_addresses_are_forgotten_while_they_are_used(make_store: Any) -> None:
    store = make_store(1, device_pool=(1 << 16, 12))
    array = np.full((2, 64), PATTERN, np.uint8)
    shape = CacheDesc(1, (2, 64), DataType.DT_UINT8, Placement.HOST)
    blocks = store.allocate_blocks_cache(CacheDesc(1, (2, 64), DataType.DT_UINT8))
    for _ in range(200):
        on_host = Cache.create_cpu_cache(shape, [array.ctypes.data])

        def work(number: int, forgotten: threading.Event, on_host: Cache = on_host) -> set[LLMStatusCode]:
            seen = set()
            while not forgotten.is_set():
                seen.add(outcome(lambda: store.swap_blocks(on_host, blocks, {0: 1})))
                assert on_host.tensor_addrs in ([array.ctypes.data], [])
                assert "cache_id = -1" in repr(on_host)
            return seen

        for seen in beside(work, lambda on_host=on_host: store.deallocate_blocks_cache(on_host)):
            assert seen <= {SUCCESS, LLMStatusCode.LLM_PARAM_INVALID}
        assert on_host.tensor_addrs == []
