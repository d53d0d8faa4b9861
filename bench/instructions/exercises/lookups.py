"""Where keys are bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmdd import CacheKey, CacheKeyByIdAndIndex

from ..exercise import Exercise, require
from ..instances import OWNER, bind, make_manager


class Lookup(Exercise):
    """``lookup`` of keys of which all are bound, or none, while `live` keys are."""

    def __init__(self, live: int, bound: bool) -> None:
        self._manager = make_manager(OWNER, live)
        self._ids = bind(self._manager, 0, live)
        self._live = live
        self._bound = bound
        self._keys: list[CacheKey] = []
        self._found: CacheKeyByIdAndIndex | None = None

    def prepare(self, turns: int) -> None:
        # Spread over all that are live.
        step = self._live // turns
        first = 0 if self._bound else self._live
        self._keys = [CacheKey(OWNER, first + turn * step) for turn in range(turns)]

    def run(self, turns: int) -> None:
        lookup = self._manager.lookup
        found = None
        for key in self._keys:
            found = lookup(key)
        self._found = found

    def inspect(self, turns: int) -> None:
        found = [self._manager.lookup(key) for key in self._keys]
        if not self._bound:
            require(self._found is None and not any(found), "a key is bound that never was")
            return
        step = self._live // turns
        expected = [self._ids[turn * step] for turn in range(turns)]
        require([one and one.cache_id for one in found] == expected, "a key was not found where it is bound")
        require(
            self._found is not None and self._found.cache_id == expected[-1], "the last lookup found something else"
        )

    def close(self) -> None:
        self._manager.close()


class LookupMany(Exercise):
    """``lookup_many`` of 1,024 request ids, an array of them, while `live` keys are bound."""

    operations = 1024

    def __init__(self, live: int) -> None:
        self._manager = make_manager(OWNER, live)
        ids = np.array(bind(self._manager, 0, live))
        self._request_ids: npt.NDArray[np.int64] = np.random.default_rng(0).permutation(live)[: self.operations]
        self._expected = ids[self._request_ids]
        self._cache_ids: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def run(self, turns: int) -> None:
        lookup_many, request_ids = self._manager.lookup_many, self._request_ids
        for _ in range(turns):
            places = lookup_many(request_ids)
        self._cache_ids = places.cache_ids

    def inspect(self, turns: int) -> None:
        require(np.array_equal(self._cache_ids, self._expected), "a key was not found where it is bound")

    def close(self) -> None:
        self._manager.close()
