"""Bulk calls from several threads, beside single calls: every reference is dropped once, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llmdd import CacheDesc, CacheKey, CacheKeyByIdAndIndex, CacheManager, DataType, LLMException, LLMStatusCode

THREADS = 4
OK = LLMStatusCode.LLM_SUCCESS
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
WIDE = CacheDesc(2, (64, 8), DataType.DT_UINT8)
NARROW = CacheDesc(1, (4, 8), DataType.DT_UINT8)


@pytest.fixture(autouse=True)
def threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def all_at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each returns; they begin together."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def assert_entirely_free(manager: CacheManager) -> None:
    manager.check()
    usage = manager.pool_usage()
    assert (usage.free_bytes, manager.live_caches, manager.live_keys) == (usage.total_bytes, 0, 0)


def test_each_key_is_removed_once(manager: CacheManager) -> None:
    ids = np.arange(64)
    for round_number in range(100):
        manager.deallocate_cache(manager.allocate_cache(WIDE, [CacheKey(1, int(number)) for number in ids]))
        orders = [np.roll(ids, 7 * thread + round_number) for thread in range(THREADS)]
        removed = all_at_once(*[lambda order=order: manager.remove_cache_keys(order) for order in orders])
        times = Counter(np.concatenate([order[done] for order, done in zip(orders, removed, strict=True)]).tolist())
        assert times == dict.fromkeys(range(64), 1)
        assert_entirely_free(manager)


def test_each_cache_is_deallocated_once(manager: CacheManager) -> None:
    for _ in range(100):
        caches = [manager.allocate_cache(NARROW) for _ in range(32)]
        ids = np.array([cache.cache_id for cache in caches])
        dropped = all_at_once(
            lambda caches=caches: manager.deallocate_many(caches),
            lambda ids=ids: manager.deallocate_many(ids),
            lambda caches=caches: [manager.deallocate_many([cache])[0] for cache in caches],
        )
        assert np.sum(dropped, axis=0).tolist() == [1] * 32
        assert_entirely_free(manager)


def test_lookups_see_whole_changes(manager: CacheManager) -> None:
    """Keys that are bound together, and looked up in one group, are found in one cache or not at all."""
    ended = threading.Event()
    ids = np.arange(32)

    def change() -> int:
        rounds = 0
        while not ended.is_set():
            caches = [
                manager.allocate_cache(NARROW, [CacheKey(1, first + slot) for slot in range(4)])
                for first in range(0, 32, 4)
            ]
            manager.deallocate_many(caches)
            manager.remove_cache_keys(ids, all_or_nothing=True)
            rounds += 1
        return rounds

    def look() -> int:
        found = 0
        try:
            for _ in range(2000):
                cache_ids, batch_indices = manager.lookup_many(ids)
                assert (batch_indices[cache_ids != 0] == (ids % 4)[cache_ids != 0]).all()
                for together in cache_ids.reshape(8, 4):
                    bound = together[together != 0]
                    assert (bound == bound[:1]).all()
                found += np.count_nonzero(cache_ids)
        finally:
            ended.set()
        return found

    rounds, found = all_at_once(change, look)
    assert rounds > 0
    assert found > 0
    assert_entirely_free(manager)


def test_two_who_need_the_same_links(trio: Any) -> None:
    """All or nothing from two clusters, named in opposite orders: nobody waits for whoever waits for him."""
    rounds = 200

    def pull(thread: int) -> Callable[[], None]:
        target = trio.puller.allocate_cache(CacheDesc(2, (4, 8), DataType.DT_UINT8))

        def work() -> None:
            for number in range(rounds):
                base = 2 * (THREADS * number + thread) % 200
                owners = [trio.one, trio.two] if thread % 2 else [trio.two, trio.one]
                for owner in owners:
                    owner.publish(base, base + 1)
                keys = [owner.key(base + slot) for owner in owners for slot in (0, 1)]
                assert not trio.puller.pull_many(keys, target, all_or_nothing=thread < 3).any()
                assert target.tensors[1][:, 5].tolist() == [base, base + 1] * 2
            trio.puller.deallocate_cache(target)

        return work

    all_at_once(*[pull(thread) for thread in range(THREADS)])
    for manager in (trio.one.manager, trio.two.manager, trio.puller):
        assert_entirely_free(manager)


def test_keys_that_are_pulled_and_removed_at_once(trio: Any) -> None:
    """Each key goes once, to a pull or by removal; what is pulled is what was filled in."""
    ids = np.arange(64)
    for round_number in range(60):
        trio.one.publish(*range(64), desc=WIDE)
        targets = [trio.puller.allocate_cache(WIDE) for _ in range(2)]
        for target in targets:
            for index in range(2):
                target.tensors[index][:] = 255
        order = np.roll(ids, round_number)

        def pull(target: Any, order: np.ndarray = order) -> np.ndarray:
            answer: np.ndarray = trio.puller.pull_many(order, target, order, cluster_id=1)
            return answer

        pulled, again, removed = all_at_once(
            lambda target=targets[0]: pull(target),
            lambda target=targets[1]: pull(target),
            lambda order=order: trio.one.manager.remove_cache_keys(order[::-1])[::-1],
        )
        for answer, target in ((pulled, targets[0]), (again, targets[1])):
            assert set(answer.tolist()) <= {OK, NOT_EXIST}
            done = order[answer == OK]
            assert (target.tensors[1][done, 7] == done).all()
            assert (np.delete(target.tensors[0], done, axis=0) == 255).all()
        # Links are used one after the other, so a key has one pull at most; it may be removed while that copies.
        assert not ((pulled == OK) & (again == OK)).any()
        assert ((pulled == OK) | (again == OK) | removed).all()
        trio.puller.deallocate_many(targets)
        assert_entirely_free(trio.one.manager)
    assert_entirely_free(trio.puller)


def test_targets_that_are_deallocated_meanwhile(trio: Any) -> None:
    for number in range(150):
        trio.one.publish(1, 2, 3, 4)
        target = trio.puller.allocate_cache(CacheDesc(2, (4, 8), DataType.DT_UINT8))
        pulled, _, _ = all_at_once(
            lambda target=target: trio.puller.pull_many([1, 2, 3, 4], target, cluster_id=1),
            lambda target=target: trio.puller.deallocate_many([target]),
            lambda number=number: trio.puller.allocate_cache(NARROW, [CacheKey(3, 1000 + number)]),
        )
        assert pulled.tolist() in ([OK] * 4, [NOT_EXIST] * 4)
        trio.one.manager.remove_cache_keys([1, 2, 3, 4])
        assert_entirely_free(trio.one.manager)
        trio.puller.deallocate_many(trio.puller.lookup_many([1000 + number]).cache_ids)
        trio.puller.remove_cache_keys([1000 + number])
        assert_entirely_free(trio.puller)


@pytest.mark.parametrize("which", ["owner", "puller"])
def test_the_end_of_an_instance(make_trio: Any, which: str) -> None:
    """Whoever is in a call when its instance ends is answered."""
    ends = {LLMStatusCode.LLM_NOT_YET_LINK}
    if which == "puller":
        ends.add(LLMStatusCode.LLM_ENGINE_FINALIZED)
    for _ in range(5):
        trio = make_trio(timeout_ms=60_000)
        trio.one.manager.allocate_cache(WIDE, [trio.one.key(number) for number in range(64)])
        cache_id = trio.one.manager.lookup(trio.one.key(0)).cache_id
        target = trio.puller.allocate_cache(WIDE)
        busy = threading.Event()

        def work(trio: Any = trio, target: Any = target, cache_id: int = cache_id, busy: Any = busy) -> LLMStatusCode:
            keys = [CacheKeyByIdAndIndex(1, cache_id, index) for index in range(64)]
            while True:
                try:
                    trio.puller.lookup_many(np.arange(100))
                    codes = set(trio.puller.pull_many(keys, target).tolist())
                    trio.puller.remove_cache_keys(np.arange(100))
                    trio.puller.deallocate_many(np.arange(100, 200))
                except LLMException as refused:
                    return refused.status_code
                if codes != {OK}:
                    return LLMStatusCode((codes - {OK}).pop())
                busy.set()

        with ThreadPoolExecutor(THREADS) as pool:
            workers = [pool.submit(work) for _ in range(THREADS)]
            assert busy.wait(60)
            (trio.one.datadist if which == "owner" else trio.puller_datadist).finalize()
            assert {worker.result() for worker in workers} <= ends
