from collections.abc import Sequence

from llmdd._core.cache import Cache
from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.local_copies import LocalCopies
from llmdd._core.node_caches import PoolUsage as PoolUsage

def require_one_id(cache_key: CacheKey) -> None: ...

class SourcePin:
    def release(self) -> None: ...

class CacheStore(LocalCopies):
    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        **kwargs: range | int | None,
    ) -> None: ...
    def pull_blocks(
        self,
        src_cache_key: CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: tuple[int, ...] | list[int] | None = (),
        dst_blocks: tuple[int, ...] | list[int] = (),
        **kwargs: range | int | None,
    ) -> None: ...
    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> None: ...
    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: tuple[int, ...] | list[int] = (),
        dst_blocks: tuple[int, ...] | list[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None: ...
    def pin_source(self, cache: Cache) -> SourcePin: ...
    def send_to_cache(
        self,
        source: Cache | SourcePin,
        key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_first: int,
        dst_first: int,
        src_batch_index: int = 0,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        block_memory_size: int = 0,
    ) -> None: ...
    def send_to_addresses(
        self,
        source: Cache | SourcePin,
        cluster_id: int,
        src_first: int,
        addresses: Sequence[int],
        src_batch_index: int = 0,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        block_memory_size: int = 0,
    ) -> None: ...
