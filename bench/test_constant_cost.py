"""What does not grow: the life of a cache beside an empty call, and dropping one beside many that live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from comparison import Comparer, Target
from nodes import node

from llmdd import Cache, CacheDesc, CacheKey, CacheManager, DataType, LLMRole

CLUSTER_ID = 1
PAGE_SHIFT = 10
MANY = 100_000
ROUNDS = 41
CYCLES_PER_ROUND = 2_000
DROPS_PER_ROUND = 500

DESC = CacheDesc(1, (1, 1 << PAGE_SHIFT), DataType.DT_INT8)
FIRST_LIVE_REQ_ID = 1_000_000


def empty() -> None:
    """A call that does nothing."""


@contextmanager
def manager_with(live: int, remote: bool = False) -> Iterator[CacheManager]:
    """A manager with `live` caches, each with a key."""
    memory_size = (live + DROPS_PER_ROUND + 16) << PAGE_SHIFT
    with node(LLMRole.PROMPT, CLUSTER_ID, memory_size, PAGE_SHIFT, remote) as datadist:
        manager = datadist.cache_manager
        for number in range(live):
            manager.allocate_cache(DESC, [CacheKey(CLUSTER_ID, FIRST_LIVE_REQ_ID + number)])
        yield manager
        assert manager.live_caches == manager.live_keys == live
        manager.check()


@pytest.mark.parametrize(
    ("live", "remote", "limit"),
    [
        pytest.param(0, False, Target(max_ratio=12, max_ns=1_000), id="0_live"),
        pytest.param(MANY, False, Target(max_ratio=24, max_ns=2_000), id="100_000_live"),
        pytest.param(MANY, True, Target(max_ratio=24, max_ns=2_000), id="100_000_live_remote_mode"),
    ],
)
def test_cycle_beside_an_empty_call(compare: Comparer, live: int, remote: bool, limit: Target) -> None:
    with manager_with(live, remote) as manager:
        allocate, remove, deallocate = manager.allocate_cache, manager.remove_cache_key, manager.deallocate_cache
        key = CacheKey(CLUSTER_ID, 1)
        keys = [key]

        def cycles() -> None:
            for _ in range(CYCLES_PER_ROUND):
                cache = allocate(DESC, keys)
                remove(key)
                deallocate(cache)

        def calls() -> None:
            for _ in range(CYCLES_PER_ROUND):
                empty()

        compare(
            f"allocate + remove + deallocate, {live:,} live{', remote mode' if remote else ''}",
            cycles,
            calls,
            baseline_name="empty call",
            verify=lambda: None if manager.lookup(key) is None else pytest.fail("a cycle left its key"),
            operations=CYCLES_PER_ROUND,
            rounds=ROUNDS,
            target=limit,
        )


@pytest.mark.parametrize("registered", [False, True], ids=["deallocate", "unregister"])
def test_drop_beside_many(compare: Comparer, registered: bool) -> None:
    """Each cache that is dropped has its key bound still, which unregistering drops too."""
    memory = np.zeros(1 << PAGE_SHIFT, np.int8)
    keys = [CacheKey(CLUSTER_ID, req_id) for req_id in range(DROPS_PER_ROUND)]
    with manager_with(0) as alone, manager_with(MANY) as among_many:
        caches: dict[CacheManager, list[Cache]] = {}

        def prepare() -> None:
            for manager in (alone, among_many):
                if registered:
                    caches[manager] = [manager.register_cache(DESC, [memory.ctypes.data], [key]) for key in keys]
                else:
                    caches[manager] = [manager.allocate_cache(DESC, [key]) for key in keys]

        def dropper(manager: CacheManager) -> Callable[[], None]:
            def unregister() -> None:
                for cache in caches[manager]:
                    manager.unregister_cache(cache.cache_id)

            def deallocate() -> None:
                for cache, key in zip(caches[manager], keys, strict=True):
                    manager.remove_cache_key(key)
                    manager.deallocate_cache(cache)

            return unregister if registered else deallocate

        compare(
            f"{'unregister' if registered else 'remove + deallocate'} beside {MANY:,} live",
            dropper(among_many),
            dropper(alone),
            baseline_name="beside none",
            prepare=prepare,
            verify=lambda: None,  # manager_with looks whether nothing is left
            operations=DROPS_PER_ROUND,
            rounds=ROUNDS,
            target=Target(max_ratio=1.5, remark="the processor's caches"),
        )
