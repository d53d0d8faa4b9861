from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from llmdd._core.cache import Cache
from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex
from llmdd._core.store import CacheStore

Integers: TypeAlias = npt.NDArray[np.integer[Any]] | Sequence[int]

class KeyPlaces(NamedTuple):
    cache_ids: npt.NDArray[np.int64]
    batch_indices: npt.NDArray[np.uint32]

class BulkCalls(CacheStore):
    def lookup_many(self, cache_keys: Sequence[CacheKey] | Integers, *, model_id: int = 0) -> KeyPlaces: ...
    def remove_cache_keys(
        self, cache_keys: Sequence[CacheKey] | Integers, *, model_id: int = 0, all_or_nothing: bool = False
    ) -> npt.NDArray[np.bool_]: ...
    def deallocate_many(
        self, caches: Sequence[Cache] | Integers, *, all_or_nothing: bool = False
    ) -> npt.NDArray[np.bool_]: ...
    def pull_many(
        self,
        cache_keys: Sequence[CacheKey | CacheKeyByIdAndIndex] | Integers,
        cache: Cache | list[Cache] | tuple[Cache, ...],
        batch_indices: Integers | None = None,
        *,
        block_tables: Sequence[Integers] | npt.NDArray[np.integer[Any]] | None = None,
        cluster_id: int | None = None,
        model_id: int = 0,
        size: int = -1,
        all_or_nothing: bool = False,
    ) -> npt.NDArray[np.int64]: ...
