"""Caches that come and go."""

from __future__ import annotations

from llmdd import CacheDesc, CacheKey, DataType

from ..exercise import Exercise, require
from ..instances import ONE_PAGE, OWNER, PAGE_BYTES, bind, make_manager, require_live


class Cycle(Exercise):
    """Allocate a cache of one tensor with one key, remove the key, deallocate, while `live` others live."""

    def __init__(self, live: int) -> None:
        self._live = live
        # The same pool whatever lives in it: a larger one takes longer to search.
        self._manager = make_manager(OWNER, 1 << 14)
        bind(self._manager, 1_000_000, live)
        self._keys: list[CacheKey] = []
        self._last_id = 0

    def prepare(self, turns: int) -> None:
        self._keys = [CacheKey(OWNER, req_id) for req_id in range(turns)]
        self._last_id = self._manager.allocate_cache(ONE_PAGE).cache_id
        self._manager.deallocate_many([self._last_id])

    def run(self, turns: int) -> None:
        manager = self._manager
        allocate_cache, remove_cache_key = manager.allocate_cache, manager.remove_cache_key
        deallocate_cache = manager.deallocate_cache
        for key in self._keys:
            cache = allocate_cache(ONE_PAGE, [key])
            remove_cache_key(key)
            deallocate_cache(cache)

    def inspect(self, turns: int) -> None:
        next_cache = self._manager.allocate_cache(ONE_PAGE)
        # Ids are given once, in order: they tell how many caches there have been.
        require(next_cache.cache_id == self._last_id + turns + 1, f"{turns} turns allocated another number of caches")
        self._manager.deallocate_cache(next_cache)
        require_live(self._manager, self._live, self._live)

    def close(self) -> None:
        self._manager.close()


class BatchCycle(Exercise):
    """The same with a batch of 64 keys and 80 tensors."""

    KEYS, TENSORS = 64, 80

    def __init__(self) -> None:
        self._desc = CacheDesc(self.TENSORS, (self.KEYS, 64), DataType.DT_UINT8)
        self._manager = make_manager(OWNER, self.TENSORS * self.KEYS * 64 // PAGE_BYTES + 16)
        self._batches: list[list[CacheKey]] = []
        self._last_id = 0

    def prepare(self, turns: int) -> None:
        self._batches = [
            [CacheKey(OWNER, req_id) for req_id in range(turn * self.KEYS, (turn + 1) * self.KEYS)]
            for turn in range(turns)
        ]
        self._last_id = self._manager.allocate_cache(ONE_PAGE).cache_id
        self._manager.deallocate_many([self._last_id])

    def run(self, turns: int) -> None:
        manager, desc = self._manager, self._desc
        allocate_cache, remove_cache_key = manager.allocate_cache, manager.remove_cache_key
        deallocate_cache = manager.deallocate_cache
        for keys in self._batches:
            cache = allocate_cache(desc, keys)
            for key in keys:
                remove_cache_key(key)
            deallocate_cache(cache)

    def inspect(self, turns: int) -> None:
        next_cache = self._manager.allocate_cache(self._desc, self._batches[0])
        require(next_cache.cache_id == self._last_id + turns + 1, f"{turns} turns allocated another number of caches")
        require(self._manager.live_keys == self.KEYS, "a batch bound another number of keys")
        for key in self._batches[0]:
            self._manager.remove_cache_key(key)
        self._manager.deallocate_cache(next_cache)
        require_live(self._manager, 0, 0)

    def close(self) -> None:
        self._manager.close()
