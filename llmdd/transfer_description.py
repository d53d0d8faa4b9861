"""What a program says of a transfer, and of memory of its own (api §1.8, §1.9)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import BlocksCacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import Memtype, Placement
from llmdd._core.status import MissingArgument, invalid
from llmdd._core.validation import check_elements, check_type, check_uint32, check_uint64


class TransferConfig:
    """Layers of a cache for raw addresses of a linked cluster (api §1.9); for ``transfer_cache_async``.

    All four are properties that can be set, with the checks made here.

    Parameters
    ----------
    dst_cluster_id : int
        uint64, the cluster whose memory is written.
    dst_addrs : list or tuple of int
        Two addresses for each layer, uint64, of the destination slots themselves: for layer ``src_layer_range[k]``
        ``dst_addrs[2 * k]`` and ``dst_addrs[2 * k + 1]``.
    src_layer_range : range, optional
        Layers of our cache, step 1; all of them if it is left out.
    src_batch_index : int, default 0
        uint32, the slot of our cache that is sent; 0 for a blocks cache.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, a number out of its range.
    LLMException
        ``LLM_PARAM_INVALID``: a range that is empty, begins below 0 or has another step.

    Examples
    --------
    >>> config = TransferConfig(2, [0x7F0000000000, 0x7F0000001000], src_layer_range=range(3, 4))
    >>> config.src_batch_index = 1
    """

    #: Raw addresses name no layers of the destination.
    dst_layer_range: range | None = None

    def __init__(
        self,
        dst_cluster_id: int,
        dst_addrs: list[int] | tuple[int, ...],
        src_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.dst_cluster_id = dst_cluster_id
        self.dst_addrs = dst_addrs
        self.src_layer_range = src_layer_range
        self.src_batch_index = src_batch_index

    @property
    def dst_cluster_id(self) -> int:
        return self._dst_cluster_id

    @dst_cluster_id.setter
    def dst_cluster_id(self, dst_cluster_id: int) -> None:
        self._dst_cluster_id = check_uint64("dst_cluster_id", dst_cluster_id)

    @property
    def dst_addrs(self) -> list[int] | tuple[int, ...]:
        """As given: not a copy."""
        return self._dst_addrs

    @dst_addrs.setter
    def dst_addrs(self, dst_addrs: list[int] | tuple[int, ...]) -> None:
        check_addresses("dst_addrs", dst_addrs)
        self._dst_addrs = dst_addrs

    @property
    def src_layer_range(self) -> range | None:
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, src_layer_range: range | None) -> None:
        self._src_layer_range = None if src_layer_range is None else _layers("src_layer_range", src_layer_range)

    @property
    def src_batch_index(self) -> int:
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, src_batch_index: int) -> None:
        self._src_batch_index = check_uint32("src_batch_index", src_batch_index)

    def __repr__(self) -> str:
        return (
            f"TransferConfig(dst_cluster_id={self.dst_cluster_id}, dst_addrs={self.dst_addrs}, "
            f"src_layer_range={self.src_layer_range}, src_batch_index={self.src_batch_index})"
        )


class TransferWithCacheKeyConfig:
    """Layers of a cache for a linked cluster's cache, by its key (api §1.9); for ``transfer_cache_async``.

    All four are properties that can be set, with the checks made here; only whether the two ranges are equally long is
    looked at again when the transfer begins, so that they can be changed one after the other.

    Parameters
    ----------
    cache_key : BlocksCacheKey or CacheKeyByIdAndIndex
        The destination.
    src_layer_range, dst_layer_range : range
        Layers of our cache and of the destination, equally many, step 1. Neither can be left out.
    src_batch_index : int, default 0
        uint32, the slot of our cache that is sent; 0 with a :class:`BlocksCacheKey`.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, a number out of its range.
    LLMException
        ``LLM_PARAM_INVALID``: a range that is empty, begins below 0 or has another step, ranges of different lengths, a
        batch slot for a blocks cache.

    Examples
    --------
    >>> config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, cache_id=1), range(0, 2), range(4, 6))
    >>> config.dst_cluster_id
    2
    """

    def __init__(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self._src_batch_index = 0
        self.cache_key = cache_key
        self.src_layer_range = src_layer_range  # type: ignore[assignment]  # None, the default, is refused
        self.dst_layer_range = dst_layer_range  # type: ignore[assignment]
        self.check_lengths()
        self.src_batch_index = src_batch_index

    @property
    def cache_key(self) -> BlocksCacheKey | CacheKeyByIdAndIndex:
        return self._cache_key

    @cache_key.setter
    def cache_key(self, cache_key: BlocksCacheKey | CacheKeyByIdAndIndex) -> None:
        check_type("cache_key", cache_key, BlocksCacheKey, CacheKeyByIdAndIndex)
        _check_slot(cache_key, self._src_batch_index)
        self._cache_key = cache_key

    @property
    def dst_cluster_id(self) -> int:
        """The cluster that the key names (api D43)."""
        return self._cache_key.cluster_id

    @property
    def src_layer_range(self) -> range:
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, src_layer_range: range) -> None:
        self._src_layer_range = _layers("src_layer_range", src_layer_range)

    @property
    def dst_layer_range(self) -> range:
        return self._dst_layer_range

    @dst_layer_range.setter
    def dst_layer_range(self, dst_layer_range: range) -> None:
        self._dst_layer_range = _layers("dst_layer_range", dst_layer_range)

    @property
    def src_batch_index(self) -> int:
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, src_batch_index: int) -> None:
        check_uint32("src_batch_index", src_batch_index)
        _check_slot(self._cache_key, src_batch_index)
        self._src_batch_index = src_batch_index

    def check_lengths(self) -> None:
        """``LLM_PARAM_INVALID`` unless both ranges have equally many layers."""
        source, destination = self._src_layer_range, self._dst_layer_range
        if source.stop - source.start != destination.stop - destination.start:
            raise invalid(
                f"src_layer_range size should be equal to dst_layer_range size, got {source} and {destination}"
            )

    def __repr__(self) -> str:
        return (
            f"TransferWithCacheKeyConfig(cache_key={self.cache_key}, src_layer_range={self.src_layer_range}, "
            f"dst_layer_range={self.dst_layer_range}, src_batch_index={self.src_batch_index})"
        )


class LayerSynchronizer(ABC):
    """Tells ``transfer_cache_async`` when a layer has been computed; subclass it.

    Examples
    --------
    >>> class Computed(LayerSynchronizer):
    ...     def synchronize_layer(self, layer_index, timeout_in_millis):
    ...         return True
    """

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Wait until a layer may be sent.

        Called by the transfer's own thread, once for each layer that is wanted, in ascending order. While it waits
        nothing of the later layers moves; what was sent before is with its receivers.

        Parameters
        ----------
        layer_index : int
            The layer of the source cache: tensors ``2 * layer_index`` and ``2 * layer_index + 1``.
        timeout_in_millis : int or None
            Always None.

        Returns
        -------
        bool
            False if the layer will not come: whoever wants it gets ``LLM_PARAM_INVALID``. An exception has the same
            effect with ``LLM_FAILED``, and is logged.
        """


class MemInfo:
    """A stretch of memory, as ``remap_registered_memory`` takes it (api §1.8).

    Parameters
    ----------
    mem_type : Memtype
    addr, size : int

    Raises
    ------
    TypeError
        An argument of a wrong type.

    Examples
    --------
    >>> print(MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 64))
    MemInfo(mem_type=Memtype.MEM_TYPE_DEVICE, addr=4096, size=64)
    """

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        self._mem_type = check_type("mem_type", mem_type, Memtype)
        self._addr = check_type("addr", addr, int)
        self._size = check_type("size", size, int)

    @property
    def mem_type(self) -> Memtype:
        return self._mem_type

    @property
    def addr(self) -> int:
        return self._addr

    @property
    def size(self) -> int:
        return self._size

    def __str__(self) -> str:
        return f"MemInfo(mem_type={self.mem_type}, addr={self.addr}, size={self.size})"

    __repr__ = __str__


class KvCache:
    """A cache of the older API, on several devices (api §1.8). Importable; no call here makes or takes one.

    Examples
    --------
    >>> desc = CacheDesc(1, (1, 64), DataType.DT_INT8, Placement.HOST)
    >>> KvCache.create_cpu_cache(desc, [4096]).per_device_tensor_addrs
    [[4096]]
    """

    _cache_desc: CacheDesc
    _per_device_tensor_addrs: list[list[int]]

    def __init__(self) -> None:
        raise TypeError("a KvCache is made by KvCache.create_cpu_cache")

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: list[int] | list[list[int]]) -> KvCache:
        """Memory of the caller's own.

        Parameters
        ----------
        cache_desc : CacheDesc
            Its placement must be HOST.
        addrs : list of int, or list of list of int
            The address of each tensor; of several devices a list for each.

        Raises
        ------
        TypeError, AttributeError
            An argument of a wrong type, None.
        LLMException
            ``LLM_PARAM_INVALID``: another placement, another number of addresses than of tensors.
        """
        if cache_desc is None:
            raise MissingArgument("cache_desc only support [CacheDesc], but got None")
        check_type("cache_desc", cache_desc, CacheDesc)
        if addrs is None:
            raise MissingArgument("addrs only support [list], but got None")
        check_type("addrs", addrs, list)
        nested = bool(addrs) and all(isinstance(device, list) for device in addrs)
        devices: list[Any] = addrs if nested else [addrs]
        for device in devices:
            check_elements("addrs", device, int)
        if cache_desc.placement is not Placement.HOST:
            raise invalid(f"cache_desc placement must be HOST, it is {cache_desc.placement}")
        for device in devices:
            if len(device) != cache_desc.num_tensors:
                raise invalid(f"num_tensors {cache_desc.num_tensors} is not equal addrs num {len(device)}")
        cache = cls.__new__(cls)
        cache._cache_desc = cache_desc
        cache._per_device_tensor_addrs = [list(device) for device in devices]
        return cache

    @property
    def cache_id(self) -> int:
        """Always -1: it is not numbered."""
        return -1

    @property
    def cache_desc(self) -> CacheDesc:
        return self._cache_desc

    @property
    def per_device_tensor_addrs(self) -> list[list[int]]:
        return self._per_device_tensor_addrs


def check_addresses(name: str, addresses: Sequence[int]) -> None:
    """TypeError unless a list or tuple of int, ValueError unless each is a uint64."""
    for address in check_elements(name, addresses, int):
        check_uint64(name, address)


def _layers(name: str, layers: range) -> range:
    """A range of layers in the stricter of its forms (api §2.2)."""
    check_type(name, layers, range)
    if layers.step != 1:
        raise invalid(f"check {name}.step == 1 failed, {name} is {layers}")
    if not 0 <= layers.start < layers.stop:
        raise invalid(f"check {name} range.start < range.stop failed, {name} is {layers}")
    return layers


def _check_slot(cache_key: BlocksCacheKey | CacheKeyByIdAndIndex, src_batch_index: int) -> None:
    if src_batch_index != 0 and isinstance(cache_key, BlocksCacheKey):
        raise invalid(f"src_batch_index should be 0 with a BlocksCacheKey, it is {src_batch_index}")
