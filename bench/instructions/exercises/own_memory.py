"""What stays within one process: memory of the caller's own, and copies between caches."""

from __future__ import annotations

import numpy as np

from llmdd import CacheDesc, CacheKey, DataType

from ..exercise import Exercise, require
from ..instances import ONE_PAGE, OWNER, PAGE_BYTES, make_manager, require_live


class RegisterCache(Exercise):
    """Register a cache of one tensor with one key, remove the key, unregister."""

    def __init__(self) -> None:
        self._manager = make_manager(OWNER, 1)
        self._memory = np.full(PAGE_BYTES, 7, np.uint8)
        self._keys: list[CacheKey] = []
        self._last_id = 0

    def _register(self) -> int:
        return self._manager.register_cache(ONE_PAGE, [self._memory.ctypes.data]).cache_id

    def prepare(self, turns: int) -> None:
        self._keys = [CacheKey(OWNER, req_id) for req_id in range(turns)]
        self._last_id = self._register()
        self._manager.unregister_cache(self._last_id)

    def run(self, turns: int) -> None:
        manager, addresses = self._manager, [self._memory.ctypes.data]
        register_cache, remove_cache_key = manager.register_cache, manager.remove_cache_key
        unregister_cache = manager.unregister_cache
        for key in self._keys:
            cache = register_cache(ONE_PAGE, addresses, [key])
            remove_cache_key(key)
            unregister_cache(cache.cache_id)

    def inspect(self, turns: int) -> None:
        next_id = self._register()
        require(next_id == self._last_id + turns + 1, f"{turns} turns registered another number of caches")
        self._manager.unregister_cache(next_id)
        require((self._memory == 7).all(), "somebody wrote to registered memory")
        require_live(self._manager, 0, 0)

    def close(self) -> None:
        self._manager.close()


class CopyCache(Exercise):
    """``copy_cache`` of 4 KiB from one cache to another."""

    SLOTS = 256

    def __init__(self) -> None:
        self._manager = make_manager(OWNER, 2 * self.SLOTS)
        desc = CacheDesc(1, (self.SLOTS, PAGE_BYTES), DataType.DT_UINT8)
        self._source, self._target = self._manager.allocate_cache(desc), self._manager.allocate_cache(desc)
        self._source.tensors[0][:] = np.arange(self.SLOTS, dtype=np.uint8)[:, None]

    def prepare(self, turns: int) -> None:
        self._target.tensors[0][:] = self._source.tensors[0] + 1

    def run(self, turns: int) -> None:
        copy_cache, source, target = self._manager.copy_cache, self._source, self._target
        for batch_index in range(turns):
            copy_cache(target, source, batch_index, batch_index)

    def inspect(self, turns: int) -> None:
        require((self._target.tensors[0][:turns] == self._source.tensors[0][:turns]).all(), "other bytes were copied")
        require((self._target.tensors[0][turns:] != self._source.tensors[0][turns:]).all(), "more slots were copied")
        self._manager.check()

    def close(self) -> None:
        self._manager.close()
