from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from llmdd._core.cache import Cache
from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import Placement
from llmdd._core.failed_transfers import FailedTransfers
from llmdd._core.peer import Peer

class PoolUsage(NamedTuple):
    total_bytes: int
    free_bytes: int
    page_bytes: int

class KeyCounts(NamedTuple):
    transferred: int
    removed: int
    expired: int
    withdrawn: int

class LeaseKeeping(Protocol):
    def pulled(self, key: object, /) -> None: ...

class NodeCaches:
    lease_keeper: LeaseKeeping | None
    peers: Mapping[int, Peer]
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
        cache_key_lease: int = 0,
        wait_for_memory: bool = False,
    ) -> None: ...
    @property
    def cluster_id(self) -> int: ...
    @property
    def remote_accessible(self) -> bool: ...
    @property
    def failed_transfers(self) -> FailedTransfers: ...
    @property
    def closed(self) -> bool: ...
    @property
    def waiting_allocations(self) -> int: ...
    @property
    def live_caches(self) -> int: ...
    @property
    def live_keys(self) -> int: ...
    @property
    def key_counts(self) -> KeyCounts: ...
    def allocate_cache(
        self,
        cache_desc: CacheDesc,
        cache_keys: tuple[CacheKey, ...] | list[CacheKey] = (),
        *,
        lease: int | None = None,
    ) -> Cache: ...
    @property
    def cache_key_lease(self) -> int: ...
    @property
    def leases_are_due(self) -> bool: ...
    def expire_leases(self) -> int: ...
    def allocate_blocks_cache(self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None) -> Cache: ...
    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        cache_keys: tuple[CacheKey, ...] | list[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache: ...
    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache: ...
    def deallocate_cache(self, cache: Cache) -> None: ...
    def deallocate_blocks_cache(self, cache: Cache) -> None: ...
    def unregister_cache(self, cache_id: int) -> None: ...
    def remove_cache_key(self, cache_key: CacheKey) -> None: ...
    def lookup(self, cache_key: CacheKey) -> CacheKeyByIdAndIndex | None: ...
    @property
    def has_released(self) -> bool: ...
    def reap(self) -> int: ...
    def pool_usage(self, placement: Placement = ...) -> PoolUsage: ...
    def check(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...
    def stop_waiting(self) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...
