"""Many references that go at once, the last ones of their caches: the memory goes with them."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from ..exercise import Exercise, require
from ..instances import OWNER, bind, make_manager, require_live

Ids = npt.NDArray[np.int64]


class Release(Exercise):
    """Caches with a single reference each, which the turns drop, batch by batch, until none is left."""

    operations = 256
    most_turns = 16

    def __init__(self) -> None:
        self._manager = make_manager(OWNER, self.most_turns * self.operations)
        self._batches: list[Ids] = []
        self._dropped: list[npt.NDArray[np.bool_]] = []

    def prepare(self, turns: int) -> None:
        count = turns * self.operations
        request_ids: Ids = np.arange(count)
        cache_ids = np.array(bind(self._manager, 0, count))
        chosen = self._leave_one_reference(request_ids, cache_ids)
        self._batches = np.split(np.random.default_rng(0).permutation(chosen), turns)
        self._dropped = []

    @abstractmethod
    def _leave_one_reference(self, request_ids: Ids, cache_ids: Ids) -> Ids:
        """Drop the other reference of each cache; what the turns are to name."""

    def inspect(self, turns: int) -> None:
        require(len(self._dropped) == turns, f"{len(self._dropped)} turns instead of {turns}")
        require(all(dropped.all() for dropped in self._dropped), "a reference was not there to be dropped")
        require_live(self._manager, 0, 0)

    def close(self) -> None:
        self._manager.close()


class RemoveCacheKeys(Release):
    """``remove_cache_keys`` of 256 request ids, an array of them."""

    def _leave_one_reference(self, request_ids: Ids, cache_ids: Ids) -> Ids:
        require(self._manager.deallocate_many(cache_ids).all(), "a cache was not there to be deallocated")
        return request_ids

    def run(self, turns: int) -> None:
        remove_cache_keys, dropped = self._manager.remove_cache_keys, self._dropped
        for request_ids in self._batches:
            dropped.append(remove_cache_keys(request_ids))


class DeallocateMany(Release):
    """``deallocate_many`` of 256 cache ids, an array of them."""

    def _leave_one_reference(self, request_ids: Ids, cache_ids: Ids) -> Ids:
        require(self._manager.remove_cache_keys(request_ids).all(), "a key was not there to be removed")
        return cache_ids

    def run(self, turns: int) -> None:
        deallocate_many, dropped = self._manager.deallocate_many, self._dropped
        for cache_ids in self._batches:
            dropped.append(deallocate_many(cache_ids))
