"""Calls that wait for memory: woken by whatever gives it back, served in their order, ended by their deadline."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import instance_process
import numpy as np
import pytest
from commanded_process import CommandedProcess

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheManager,
    DataType,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
)

PAGE = 4096
PAGES = 4
PATIENCE_MS = 60_000
SHORT_MS = 600
NO_MEMORY = LLMStatusCode.LLM_OUT_OF_MEMORY
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
INVALID = LLMStatusCode.LLM_PARAM_INVALID
FINALIZED = LLMStatusCode.LLM_ENGINE_FINALIZED


def pages(count: int, placement: Placement = Placement.DEVICE) -> CacheDesc:
    """A cache of so many pages, that fits wherever so many are free."""
    return CacheDesc(count, (1, PAGE), DataType.DT_UINT8, placement)


def key(number: int) -> CacheKey:
    return CacheKey(1, number)


class Waiters:
    """Threads that allocate, each begun when all before it wait."""

    def __init__(self, manager: CacheManager, eventually: Callable) -> None:
        self.manager = manager
        self.eventually = eventually
        self.pool = ThreadPoolExecutor(32)

    def begin(self, count: int, *numbers: int, placement: Placement = Placement.DEVICE) -> Future[Cache]:
        before = self.manager.waiting_allocations
        keys = [key(number) for number in numbers]
        waiting = self.pool.submit(self.manager.allocate_cache, pages(count, placement), keys)
        self.eventually(lambda: self.manager.waiting_allocations == before + 1, "the call waits")
        return waiting


@pytest.fixture
def make_waiting(make_datadist: Any) -> Callable[..., LLMDataDist]:
    """An instance whose calls wait, with a pool of four pages."""

    def make(cluster_id: int = 1, **settings: Any) -> LLMDataDist:
        settings = {"device_bytes": PAGES * PAGE, "timeout_ms": PATIENCE_MS, "wait_for_memory": True, **settings}
        datadist: LLMDataDist = make_datadist(cluster_id, **settings)
        return datadist

    return make


@pytest.fixture
def manager(make_waiting: Callable[..., LLMDataDist]) -> CacheManager:
    return make_waiting().cache_manager


@pytest.fixture
def hasty(make_waiting: Callable[..., LLMDataDist]) -> CacheManager:
    """One whose calls do not wait for long."""
    return make_waiting(timeout_ms=SHORT_MS).cache_manager


@pytest.fixture
def waiters(eventually: Callable) -> Iterator[Callable[[CacheManager], Waiters]]:
    made: list[Waiters] = []

    def make(manager: CacheManager) -> Waiters:
        made.append(Waiters(manager, eventually))
        return made[-1]

    yield make
    for each in made:
        if not each.manager.closed:
            each.manager.stop_waiting()
        each.pool.shutdown()


def refusal(waiting: Future[Cache]) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        waiting.result(PATIENCE_MS / 1000)
    return refused.value.status_code


def served(waiting: Future[Cache]) -> int:
    """The id of the cache: the order in which calls were served."""
    return waiting.result(PATIENCE_MS / 1000).cache_id


def code_of(call: Callable[[], object]) -> LLMStatusCode:
    try:
        call()
    except LLMException as refused:
        return refused.status_code
    return LLMStatusCode.LLM_SUCCESS


# -------------------------------------------------------------------------------------------------- the option


def test_nothing_waits_unless_it_is_asked_for(make_waiting: Any) -> None:
    config = LLMConfig()
    assert config.wait_for_memory is False
    assert "llmdd.WaitForMemory" not in config.generate_options()
    manager = make_waiting(wait_for_memory=False).cache_manager
    manager.allocate_cache(pages(PAGES))
    assert code_of(lambda: manager.allocate_cache(pages(1))) is NO_MEMORY


@pytest.mark.parametrize("value", ["", "2", "true", " 1"])
def test_an_option_that_is_neither_yes_nor_no_is_refused(value: str) -> None:
    datadist = LLMDataDist(LLMRole.MIX, 1)
    with pytest.raises(LLMException, match=r"llmdd\.WaitForMemory"):
        datadist.init({"llm.EnableCacheManager": "1", "llmdd.WaitForMemory": value})


# -------------------------------------------------------------------------------------------------- what wakes


def drop_a_view(manager: CacheManager) -> Callable[[], object]:
    cache = manager.allocate_cache(pages(PAGES))
    views = [cache.tensors]
    manager.deallocate_cache(cache)
    return views.clear


def deallocate(manager: CacheManager) -> Callable[[], object]:
    cache = manager.allocate_cache(pages(PAGES))
    return lambda: manager.deallocate_cache(cache)


def deallocate_blocks(manager: CacheManager) -> Callable[[], object]:
    cache = manager.allocate_blocks_cache(CacheDesc(1, (PAGES, PAGE), DataType.DT_UINT8), BlocksCacheKey(1, 5))
    return lambda: manager.deallocate_blocks_cache(cache)


def deallocate_all(manager: CacheManager) -> Callable[[], object]:
    caches = [manager.allocate_cache(pages(1)) for _ in range(PAGES)]
    return lambda: manager.deallocate_many(caches)


def remove_the_key(manager: CacheManager) -> Callable[[], object]:
    manager.deallocate_cache(manager.allocate_cache(pages(PAGES), [key(1)]))
    return lambda: manager.remove_cache_key(key(1))


def remove_all_keys(manager: CacheManager) -> Callable[[], object]:
    for number in range(PAGES):
        manager.deallocate_cache(manager.allocate_cache(pages(1), [key(number)]))
    return lambda: manager.remove_cache_keys(np.arange(PAGES))


@pytest.mark.parametrize(
    "held", [deallocate, deallocate_blocks, deallocate_all, remove_the_key, remove_all_keys, drop_a_view]
)
def test_whatever_gives_memory_back_wakes(
    manager: CacheManager, waiters: Any, held: Callable[[CacheManager], Callable[[], object]]
) -> None:
    release = held(manager)
    waiting = waiters(manager).begin(PAGES, 9)
    release()
    cache = waiting.result(PATIENCE_MS / 1000)
    assert manager.lookup(key(9)).cache_id == cache.cache_id  # type: ignore[union-attr]
    assert manager.waiting_allocations == 0
    manager.check()


@pytest.mark.parametrize("many", [False, True])
def test_a_pull_of_the_last_key_wakes(make_waiting: Any, link: Any, waiters: Any, many: bool) -> None:
    owner, puller = make_waiting(1), make_waiting(2)
    link(puller, owner)
    manager = owner.cache_manager
    for number in range(2):
        manager.deallocate_cache(manager.allocate_cache(pages(2), [key(number)]))
    waiting = waiters(manager).begin(PAGES)
    ours = [puller.cache_manager.allocate_cache(pages(2)) for _ in range(2)]
    if many:
        assert not puller.cache_manager.pull_many(np.arange(2), ours, cluster_id=1).any()
    else:
        for number in range(2):
            puller.cache_manager.pull_cache(key(number), ours[number])
    served(waiting)


def test_a_pull_by_another_process_wakes(make_waiting: Any, waiters: Any) -> None:
    owner = make_waiting(1)
    manager = owner.cache_manager
    manager.deallocate_cache(manager.allocate_cache(instance_process.DESC, [key(1)]))
    manager.allocate_cache(pages(2))
    options = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": '{"memory_size": 1048576, "page_shift": 12}'}
    puller = CommandedProcess(Path(instance_process.__file__), {"cluster_id": 2, "options": options})
    try:
        assert puller.call("link_cluster", 1, *owner.listen_address) == "LLM_SUCCESS"
        waiting = waiters(manager).begin(2)
        assert puller.call("pull", 1, 1) == 0
        served(waiting)
    finally:
        puller.end()


def test_who_waits_holds_up_nobody(manager: CacheManager, waiters: Any) -> None:
    caches = [manager.allocate_cache(pages(1), [key(number)]) for number in range(PAGES)]
    waiting = waiters(manager).begin(PAGES)
    array = np.zeros(PAGE, np.uint8)
    registered = manager.register_cache(CacheDesc(1, (1, PAGE), DataType.DT_UINT8), [array.ctypes.data], [key(50)])
    manager.unregister_cache(registered.cache_id)
    manager.copy_cache(caches[0], caches[1])
    with manager.paused():
        assert manager.live_caches == PAGES
    for number, cache in enumerate(caches):
        assert not waiting.done()
        manager.remove_cache_key(key(number))
        manager.deallocate_cache(cache)
    served(waiting)


# -------------------------------------------------------------------------------------------------- the order


def test_a_small_one_does_not_overtake_a_large_one(manager: CacheManager, waiters: Any) -> None:
    caches = [manager.allocate_cache(pages(1)) for _ in range(PAGES)]
    begin = waiters(manager).begin
    large, small, last = begin(3), begin(1), begin(2)
    for left, cache in enumerate(caches[:3]):
        assert manager.waiting_allocations == 3, f"{left} pages are free"
        manager.deallocate_cache(cache)
    large_id = served(large)
    manager.deallocate_cache(caches[3])
    assert served(small) == large_id + 1
    manager.deallocate_cache(large.result())
    assert served(last) == large_id + 2


def test_who_comes_while_others_wait_waits_behind_them(manager: CacheManager, waiters: Any) -> None:
    caches = [manager.allocate_cache(pages(2)), manager.allocate_cache(pages(1))]
    begin = waiters(manager).begin
    large, small = begin(PAGES), begin(1)  # there is a page
    for cache in caches:
        manager.deallocate_cache(cache)
    large_id = served(large)
    manager.deallocate_cache(large.result())
    assert served(small) == large_id + 1


def test_pools_do_not_wait_for_each_other(make_waiting: Any, waiters: Any) -> None:
    manager = make_waiting(host_bytes=PAGES * PAGE).cache_manager
    begin = waiters(manager).begin
    held = {placement: manager.allocate_cache(pages(PAGES, placement)) for placement in Placement}
    waiting = {placement: begin(1, placement=placement) for placement in (Placement.DEVICE, Placement.HOST)}
    manager.deallocate_cache(held[Placement.HOST])
    served(waiting[Placement.HOST])
    manager.allocate_cache(pages(1, Placement.HOST))
    assert not waiting[Placement.DEVICE].done()
    manager.deallocate_cache(held[Placement.DEVICE])
    served(waiting[Placement.DEVICE])


def test_twenty_who_come_one_after_the_other_are_served_so(manager: CacheManager, waiters: Any) -> None:
    held = manager.allocate_cache(pages(PAGES))
    begin = waiters(manager).begin
    waiting = [begin(1 + number % 3) for number in range(20)]
    manager.deallocate_cache(held)
    ids = []
    for call in waiting:
        ids.append(served(call))
        manager.deallocate_cache(call.result())
    assert ids == list(range(ids[0], ids[0] + 20))
    manager.check()


def test_twenty_threads_share_a_pool_for_three(make_waiting: Any) -> None:
    manager = make_waiting(device_bytes=3 * PAGE).cache_manager
    everybody = threading.Barrier(20)

    def take_turns(number: int) -> None:
        everybody.wait()
        for _ in range(30):
            cache = manager.allocate_cache(pages(1 + number % 3), [key(number)])
            cache.tensors[0][:] = number
            assert (cache.tensors[0] == number).all()
            manager.remove_cache_key(key(number))
            manager.deallocate_cache(cache)

    with ThreadPoolExecutor(20) as threads:
        for done in [threads.submit(take_turns, number) for number in range(20)]:
            done.result()
    assert (manager.live_caches, manager.live_keys, manager.waiting_allocations) == (0, 0, 0)
    manager.check()


# -------------------------------------------------------------------------------------------------- what does not wait


def test_what_no_release_can_mend_is_refused_at_once(manager: CacheManager, waiters: Any) -> None:
    held = manager.allocate_cache(pages(PAGES), [key(1)])
    waiting = waiters(manager).begin(1)
    assert code_of(lambda: manager.allocate_cache(pages(PAGES + 1))) is NO_MEMORY
    assert code_of(lambda: manager.allocate_cache(pages(1), [key(1)])) is INVALID
    assert code_of(lambda: manager.allocate_cache(pages(1), [key(2), key(3)])) is INVALID
    assert code_of(lambda: manager.allocate_cache(pages(1, Placement.HOST))) is INVALID
    with pytest.raises(TypeError):
        manager.allocate_cache(pages(1), [7])  # type: ignore[list-item]
    assert manager.waiting_allocations == 1
    manager.remove_cache_key(key(1))
    manager.deallocate_cache(held)
    served(waiting)


def test_who_holds_the_store_still_does_not_wait(manager: CacheManager) -> None:
    manager.allocate_cache(pages(PAGES))
    with manager.paused():
        assert code_of(lambda: manager.allocate_cache(pages(1))) is NO_MEMORY


def test_a_key_that_was_bound_meanwhile_is_refused_at_its_turn(manager: CacheManager, waiters: Any) -> None:
    held = manager.allocate_cache(pages(PAGES))
    begin = waiters(manager).begin
    first, second, third = begin(1, 7), begin(1, 7), begin(1, 8)
    manager.deallocate_cache(held)
    served(first)
    assert refusal(second) is INVALID
    served(third)


# -------------------------------------------------------------------------------------------------- the deadline


def test_a_call_that_waits_in_vain_has_changed_nothing(hasty: CacheManager) -> None:
    cache = hasty.allocate_cache(pages(PAGES), [key(1)])
    before = (hasty.pool_usage(), hasty.live_caches, hasty.live_keys)
    for _ in range(2):
        assert code_of(lambda: hasty.allocate_cache(pages(1), [key(2)])) is TIMEOUT
        assert (hasty.pool_usage(), hasty.live_caches, hasty.live_keys) == before
        assert hasty.lookup(key(2)) is None
    assert hasty.waiting_allocations == 0
    hasty.check()
    hasty.deallocate_cache(cache)
    hasty.remove_cache_key(key(1))
    assert hasty.allocate_cache(pages(PAGES)).cache_id == cache.cache_id + 1, "no id was used up"


def test_whoever_comes_next_moves_up(hasty: CacheManager, waiters: Any) -> None:
    hasty.allocate_cache(pages(2))
    begin = waiters(hasty).begin
    large = begin(PAGES)
    time.sleep(SHORT_MS / 2000)  # so that its time is over first
    small = begin(1)
    assert refusal(large) is TIMEOUT
    served(small)


def test_07_a_deadline_counts_from_the_start_of_the_call(hasty: CacheManager, waiters: Any) -> None:
    """The time behind others counts: who comes to the front gets no second time of his own."""
    hasty.allocate_cache(pages(PAGES))
    ended: list[str] = []
    begin = waiters(hasty).begin
    for name in ("first", "second"):
        begin(1).add_done_callback(lambda _, name=name: ended.append(name))
    time.sleep(SHORT_MS / 2000)
    third = begin(1)
    third.add_done_callback(lambda _: ended.append("third"))
    assert refusal(third) is TIMEOUT
    assert sorted(ended[:2]) == ["first", "second"], ended


def test_who_waits_times_out_also_while_the_store_is_held_still(hasty: CacheManager, waiters: Any) -> None:
    hasty.allocate_cache(pages(PAGES))
    begin = waiters(hasty).begin
    waiting = [begin(1), begin(1)]
    with hasty.paused():
        assert [refusal(call) for call in waiting] == [TIMEOUT, TIMEOUT]
        assert hasty.waiting_allocations == 0


# -------------------------------------------------------------------------------------------------- the end


def test_finalize_ends_those_who_wait(make_waiting: Any, waiters: Any) -> None:
    datadist = make_waiting()
    manager = datadist.cache_manager
    manager.allocate_cache(pages(PAGES))
    begin = waiters(manager).begin
    waiting = [begin(number) for number in (2, 1, 1)]
    datadist.finalize()
    assert [refusal(call) for call in waiting] == [FINALIZED] * 3
    assert code_of(lambda: manager.allocate_cache(pages(1))) is FINALIZED
    config = LLMConfig()
    config.enable_cache_manager = True
    config.mem_pool_cfg = f'{{"memory_size": {PAGES * PAGE}, "page_shift": 12}}'
    datadist.init(config.generate_options())
    datadist.cache_manager.allocate_cache(pages(PAGES))


def test_a_switch_of_roles_does_not_concern_them(make_waiting: Any, waiters: Any) -> None:
    datadist = make_waiting()
    manager = datadist.cache_manager
    held = manager.allocate_cache(pages(PAGES))
    waiting = waiters(manager).begin(1)
    datadist.switch_role(LLMRole.DECODER)
    manager.deallocate_cache(held)
    served(waiting)


def test_a_forked_child_has_nobody_who_waits(make_waiting: Any, waiters: Any) -> None:
    datadist = make_waiting()
    manager = datadist.cache_manager
    held = manager.allocate_cache(pages(PAGES))
    waiting = waiters(manager).begin(1)
    child = os.fork()
    if child == 0:
        try:
            datadist.finalize()
            manager.stop_waiting()
            os._exit(manager.waiting_allocations)
        finally:
            os._exit(99)
    assert os.waitpid(child, 0)[1] == 0
    manager.deallocate_cache(held)
    served(waiting)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where whoever started us ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("before", [0, 1])
def test_an_interrupt_ends_the_wait(
    manager: CacheManager, waiters: Any, eventually: Callable, interruptible: None, before: int
) -> None:
    held = manager.allocate_cache(pages(PAGES))
    others = [waiters(manager).begin(1) for _ in range(before)]

    def interrupt() -> None:
        eventually(lambda: manager.waiting_allocations == before + 1, "the main thread waits")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            manager.allocate_cache(pages(2), [key(1)])
    finally:
        thread.join()
    assert manager.waiting_allocations == before
    assert manager.lookup(key(1)) is None
    manager.deallocate_cache(held)
    for other in others:
        served(other)
    manager.allocate_cache(pages(PAGES - before))
    manager.check()
