"""Caches of clusters without sockets and threads: who else runs meanwhile would be counted too."""

from __future__ import annotations

import os

from llmdd import CacheDesc, CacheKey, CacheManager, DataType
from llmdd._core.peer import PeerArena

from .exercise import require

PAGE_SHIFT = 12
PAGE_BYTES = 1 << PAGE_SHIFT

OWNER, PULLER = 1, 2

ONE_PAGE = CacheDesc(1, (1, PAGE_BYTES), DataType.DT_UINT8)


def make_manager(cluster_id: int, pages: int) -> CacheManager:
    """The caches of a cluster whose pool has so many pages."""
    return CacheManager(cluster_id=cluster_id, device_pool=(pages << PAGE_SHIFT, PAGE_SHIFT), timeout_ms=60_000)


def attach(puller: CacheManager, owner: CacheManager) -> None:
    """Let one transfer from the other, as a link would."""
    arena = PeerArena(*owner.export(), owner.admit_peer(), os.getpid())
    puller.peers = {**puller.peers, owner.cluster_id: arena}


def bind(manager: CacheManager, first_request: int, count: int) -> list[int]:
    """Allocate so many caches of one page with a key each; their ids."""
    keys = range(first_request, first_request + count)
    return [manager.allocate_cache(ONE_PAGE, [CacheKey(OWNER, req_id)]).cache_id for req_id in keys]


def require_live(manager: CacheManager, caches: int, keys: int) -> None:
    """That so many are live, that a pool without any is entirely free, and all invariants."""
    live = (manager.live_caches, manager.live_keys)
    require(live == (caches, keys), f"{live} caches and keys are live, not {(caches, keys)}")
    usage = manager.pool_usage()
    require(caches or usage.free_bytes == usage.total_bytes, f"memory is left: {usage}")
    manager.check()
