"""What callers pass to the reference model and get back: plain data, named as in the contract (api §1.6-1.8).

Enumerations are the names of their members, ids are plain integers. The constructors check nothing: what a call is
given is checked by the call.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

#: The id that names nothing (api, notation).
INV = 2**64 - 1

#: Bytes of one element (api §1.2).
ELEMENT_BYTES = {
    "DT_FLOAT": 4,
    "DT_FLOAT16": 2,
    "DT_INT8": 1,
    "DT_INT32": 4,
    "DT_UINT8": 1,
    "DT_INT16": 2,
    "DT_UINT16": 2,
    "DT_UINT32": 4,
    "DT_INT64": 8,
    "DT_UINT64": 8,
    "DT_DOUBLE": 8,
    "DT_BOOL": 1,
    "DT_STRING": 16,
    "DT_BF16": 2,
}

#: What a key is on its owner: ``(kind, id, model_id)``. The cluster id is no part of it (api §3.1). A blocks key has no
#: id of its own: ``("blocks", 0, model_id)``.
KeyIdentity = tuple[str, int, int]

#: Where a cluster can be met.
Address = tuple[str, int]


@dataclass(frozen=True)
class CacheDesc:
    """The description of a cache (api §1.6)."""

    num_tensors: int
    shape: tuple[int, ...]
    data_type: str
    placement: str = "DEVICE"
    batch_dim_index: int = 0

    @property
    def batch_size(self) -> int:
        """The number of batch slots (api §3.1, D23)."""
        return self.shape[self.batch_dim_index]

    @property
    def size(self) -> int:
        """Bytes of one tensor."""
        size = ELEMENT_BYTES[self.data_type]
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True)
class CacheKey:
    """A request key, a prefix key, or a placeholder (api §1.7, §3.1)."""

    cluster_id: int
    req_id: int
    model_id: int = 0
    prefix_id: int = INV

    @property
    def identity(self) -> KeyIdentity | None:
        """The key's identity on its owner; None for a placeholder. If both ids are given the prefix counts."""
        if self.prefix_id != INV:
            return ("prefix", self.prefix_id, self.model_id)
        if self.req_id != INV:
            return ("request", self.req_id, self.model_id)
        return None


@dataclass(frozen=True)
class CacheKeyByIdAndIndex:
    """A batch slot, by the id of its cache (api §1.7)."""

    cluster_id: int
    cache_id: int
    batch_index: int = 0


@dataclass(frozen=True)
class BlocksCacheKey:
    """The key of a model's blocks cache (api §1.7)."""

    cluster_id: int
    model_id: int = 0

    @property
    def identity(self) -> KeyIdentity:
        """The key's identity on its owner."""
        return ("blocks", 0, self.model_id)


@dataclass(frozen=True)
class Cache:
    """The handle that ``allocate_cache`` and its like give their caller (api §1.8).

    ``engine`` tells apart the engines that may have given the same id: what another engine gave is unknown to this one.
    ``addrs`` are those of a ``create_cpu_cache`` object, until it is deallocated. Elsewhere the engine knows them.
    ``has_own_memory`` says that the memory is the program's own, for good.
    """

    cache_id: int
    cache_desc: CacheDesc
    engine: Hashable
    is_blocks_cache: bool = False
    has_own_memory: bool = False
    addrs: list[int] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class View:
    """A view of a cache's memory, which pins it until it is dropped."""

    cache_id: int
    number: int
    engine: Hashable


@dataclass(frozen=True)
class ClusterInfo:
    """``LLMClusterInfo`` (api §1.5)."""

    remote_cluster_id: object = None
    local_ip_info_list: tuple[Address, ...] = ()
    remote_ip_info_list: tuple[Address, ...] = ()


@dataclass(frozen=True)
class MemInfo:
    """Memory for ``remap_registered_memory`` (api §1.8)."""

    mem_type: str
    addr: int
    size: int


@dataclass(frozen=True)
class TransferConfig:
    """Where ``transfer_cache_async`` sends layers in two-sided mode: to addresses, two for each layer (api §1.9)."""

    dst_cluster_id: int
    dst_addrs: tuple[int, ...] | list[int]
    src_layer_range: range | None = None
    src_batch_index: int = 0


@dataclass(frozen=True)
class TransferWithCacheKeyConfig:
    """Where ``transfer_cache_async`` sends layers in remote mode: to layers of a cache (api §1.9)."""

    cache_key: BlocksCacheKey | CacheKeyByIdAndIndex
    src_layer_range: range
    dst_layer_range: range
    src_batch_index: int = 0


#: What a transfer may name a batch slot, or a blocks cache, by.
SlotKey = CacheKey | CacheKeyByIdAndIndex | BlocksCacheKey
