"""The manager in plain Python through a day of requests."""

from __future__ import annotations

import platform

from ..contender import require
from ..dictionary_manager import NO_ID, Descriptor, DictionaryCache, DictionaryManager, Key, identity_of
from ..replay import CachesReplay
from ..trace import PAGE_BYTES, PREFIXES

CLUSTER_ID = 1


def versions() -> dict[str, str]:
    return {"python": platform.python_version()}


class LookingUp(DictionaryManager):
    """With a call that asks what a key is bound to."""

    def lookup(self, key: Key) -> DictionaryCache | None:
        if type(key) is not Key:
            raise TypeError(f"key is a {type(key)}, no Key")
        identity = identity_of(key)
        if identity is None:
            return None
        with self._lock:
            return self._index.get(identity)


class Day(CachesReplay):
    """Its pool is a ``bytearray``, whose pages are touched from the beginning, so they count as resident memory."""

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        manager = self.manager = LookingUp(CLUSTER_ID, self.pool_pages * PAGE_BYTES, PAGE_BYTES)
        self.allocate, self.deallocate = manager.allocate_cache, manager.deallocate_cache
        self.remove, self.look_up = manager.remove_cache_key, manager.lookup
        self.key, self.cluster_id = Key, CLUSTER_ID
        self.prefix_keys = [Key(CLUSTER_ID, NO_ID, 0, prefix) for prefix in range(PREFIXES)]
        self.descs = [None, *(Descriptor(1, (1, pages * PAGE_BYTES), 1) for pages in range(1, self.longest + 1))]

    def bytes_in_use(self) -> int:
        pool = self.manager.pool
        return (pool.pages - pool.free_pages) * PAGE_BYTES

    def verify(self) -> None:
        require(self.manager.live_caches == 0, f"{self.manager.live_caches} caches are left over")
        self.manager.check()
