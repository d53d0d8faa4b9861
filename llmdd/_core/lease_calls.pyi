from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmdd._core.bulk_calls import BulkCalls, Integers
from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex

class LeaseCalls(BulkCalls):
    def renew_leases(
        self,
        cache_keys: Sequence[CacheKey | CacheKeyByIdAndIndex] | Integers,
        lease: int | None = None,
        *,
        cluster_id: int | None = None,
        model_id: int = 0,
    ) -> npt.NDArray[np.int64]: ...
    def _checked_lease(self, lease: int | None) -> int: ...
    def renew_for_peer(self, items: Sequence[tuple[int, int, int, int]], lease_ms: int) -> list[bool]: ...
