"""llmdd's CacheManager through a day of requests."""

from __future__ import annotations

from contextlib import ExitStack

from llmdd import CacheDesc, CacheKey, DataType, LLMRole

from ..contender import require
from ..nodes import node
from ..replay import CachesReplay
from ..trace import PAGE_BYTES, PREFIXES

CLUSTER_ID = 1
PAGE_SHIFT = PAGE_BYTES.bit_length() - 1
NO_ID = 2**64 - 1


class Day(CachesReplay):
    """An instance that listens, as a prefill node's does, with nobody linked to it."""

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        self.stack = ExitStack()
        datadist = self.stack.enter_context(node(LLMRole.PROMPT, CLUSTER_ID, self.pool_pages * PAGE_BYTES, PAGE_SHIFT))
        manager = self.manager = datadist.cache_manager
        self.allocate, self.deallocate = manager.allocate_cache, manager.deallocate_cache
        self.remove, self.look_up = manager.remove_cache_key, manager.lookup
        self.key, self.cluster_id = CacheKey, CLUSTER_ID
        self.prefix_keys = [CacheKey(CLUSTER_ID, NO_ID, 0, prefix) for prefix in range(PREFIXES)]
        sizes = range(1, self.longest + 1)
        self.descs = [None, *(CacheDesc(1, (1, pages * PAGE_BYTES), DataType.DT_INT8) for pages in sizes)]

    def bytes_in_use(self) -> int:
        usage = self.manager.pool_usage()
        return usage.total_bytes - usage.free_bytes

    def verify(self) -> None:
        require(self.manager.live_keys == 0, f"{self.manager.live_keys} keys are left over")
        require(self.manager.live_caches == 0, f"{self.manager.live_caches} caches are left over")
        self.manager.check()

    def close(self) -> None:
        self.stack.close()
