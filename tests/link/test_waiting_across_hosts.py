"""Memory that is waited for, given back by a puller on another host."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from conversing_nodes import PATIENCE_S, ConversingNode, Line

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey
from llmdd._core.enumerations import DataType


@pytest.mark.parametrize("row_bytes", [2000, 200_000])
def test_a_pull_from_another_host_wakes(
    make_conversing: Callable[..., ConversingNode], eventually: Callable, row_bytes: int
) -> None:
    owner = make_conversing(2, wait_for_memory=True, timeout_ms=60_000)
    line = Line(make_conversing(1), owner)
    owner.store.deallocate_cache(owner.cache(row_bytes, 7, seed=1))
    whole = CacheDesc(1, (1, owner.store.pool_usage().total_bytes), DataType.DT_UINT8)
    ours = line.asker.cache(row_bytes)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(owner.store.allocate_cache, whole)
        eventually(lambda: owner.store.waiting_allocations == 1, "the call waits")
        line.asker.store.pull_cache(CacheKey(2, 7), ours)
        owner.store.deallocate_cache(waiting.result(PATIENCE_S))
