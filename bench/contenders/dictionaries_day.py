"""The manager in plain Python through a day of requests."""

from __future__ import annotations

from operator import itemgetter

from ..contender import require
from ..dictionary_manager import NO_ID, Descriptor, DictionaryManager, Key
from ..replay import CachesReplay
from ..trace import PAGE_BYTES, PREFIXES

CLUSTER_ID = 1


class Day(CachesReplay):
    """Its pool is a ``bytearray``, whose pages are touched from the beginning, so they count as resident memory."""

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        manager = self.manager = DictionaryManager(CLUSTER_ID, self.pool_pages * PAGE_BYTES, PAGE_BYTES)
        self.allocate, self.deallocate = manager.allocate_cache, manager.deallocate_cache
        self.remove, self.look_up = manager.remove_cache_key, manager.lookup
        self.cache_id = itemgetter(0)
        self.key, self.cluster_id = Key, CLUSTER_ID
        self.prefix_keys = [Key(CLUSTER_ID, NO_ID, 0, prefix) for prefix in range(PREFIXES)]
        self.descs = [None, *(Descriptor(1, (1, pages * PAGE_BYTES), 1) for pages in range(1, self.longest + 1))]

    def bytes_in_use(self) -> int:
        pool = self.manager.pool
        return (pool.pages - pool.free_pages) * PAGE_BYTES

    def verify(self) -> None:
        require(self.manager.live_keys == 0, f"{self.manager.live_keys} keys are left over")
        require(self.manager.live_caches == 0, f"{self.manager.live_caches} caches are left over")
        self.manager.check()
