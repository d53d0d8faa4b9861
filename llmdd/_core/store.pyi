from contextlib import AbstractContextManager
from typing import NamedTuple

from llmdd._core.cache import Cache
from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import Placement
from llmdd._core.peer import PeerArena

class PoolUsage(NamedTuple):
    total_bytes: int
    free_bytes: int
    page_bytes: int

class CacheStore:
    peers: dict[int, PeerArena]
    communicators: int
    def __init__(
        self,
        *,
        cluster_id: int,
        device_pool: tuple[int, int] | None = None,
        host_pool: tuple[int, int] | None = None,
        remote_accessible: bool = False,
        timeout_ms: int = 1000,
        slot_capacity: int = ...,
        key_capacity: int = ...,
        shared: bool = True,
    ) -> None: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def remote_accessible(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def live_caches(self) -> int: ...
    @property
    def live_keys(self) -> int: ...
    def allocate_cache(
        self, cache_desc: CacheDesc, cache_keys: tuple[CacheKey, ...] | list[CacheKey] = ()
    ) -> Cache: ...
    def deallocate_cache(self, cache: Cache) -> None: ...
    def remove_cache_key(self, cache_key: CacheKey) -> None: ...
    def lookup(self, cache_key: CacheKey) -> CacheKeyByIdAndIndex | None: ...
    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
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
    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None: ...
    def export(self) -> tuple[dict[str, int], list[int]]: ...
    def read_registered(
        self, peer_bit: int, slot: int, generation: int, tensor: int, offset: int, size: int
    ) -> bytes: ...
    def write_registered(
        self, peer_bit: int, slot: int, generation: int, tensor: int, offset: int, data: bytes
    ) -> None: ...
    def admit_peer(self) -> int: ...
    def dismiss_peer(self, peer_bit: int) -> None: ...
    @property
    def has_released(self) -> bool: ...
    def reap(self) -> int: ...
    def pool_usage(self, placement: Placement = ...) -> PoolUsage: ...
    def check(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...
