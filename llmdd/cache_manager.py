"""What a program does with its caches (api §1.11)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeAlias

from llmdd._core.cache import Cache
from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import Memtype, Placement
from llmdd._core.lease_calls import LeaseCalls
from llmdd._core.status import LLMStatusCode, MissingArgument, failure, invalid
from llmdd._core.store import require_one_id
from llmdd._core.validation import check_elements, check_type, check_uint64
from llmdd.layerwise import TENSORS_PER_LAYER, Blocks, CacheTask, Destination, ToAddresses, ToCache, start
from llmdd.lease_keeper import LeaseKeeper
from llmdd.transfer_description import (
    LayerSynchronizer,
    MemInfo,
    TransferConfig,
    TransferWithCacheKeyConfig,
    check_addresses,
)

Config: TypeAlias = TransferConfig | TransferWithCacheKeyConfig
KeptKeys: TypeAlias = Sequence[CacheKey | CacheKeyByIdAndIndex]

# Two threads that keep the first leases of an instance at once.
_beginning_to_keep = threading.Lock()


class CacheManager(LeaseCalls):
    """The caches of one initialised instance; :attr:`LLMDataDist.cache_manager` gives it.

    Every method may be called from any thread. A call that is refused changes nothing.

    Besides the calls of LLM-DataDist there are :meth:`lookup`, :meth:`lookup_many`, :meth:`remove_cache_keys`,
    :meth:`deallocate_many`, :meth:`pull_many`, :meth:`renew_leases`, :meth:`keep_leases`, :meth:`let_leases_lapse`,
    :meth:`expire_leases`, :meth:`pool_usage`, :attr:`live_caches`, :attr:`live_keys`, :meth:`paused` and :meth:`check`.
    """

    __slots__ = ()

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: list[Config] | tuple[Config, ...],
        src_block_indices: list[int] | tuple[int, ...] | None = None,
        dst_block_indices: list[int] | tuple[int, ...] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Send a cache layer by layer to linked clusters, each layer as soon as it has been computed (api §3.7).

        Returns at once. A thread walks the layers, two tensors each, in ascending order; for a layer that any config
        wants it calls ``layer_synchronizer.synchronize_layer`` once, then sends the layer for every config that wants
        it, in the list's order. A config whose layer fails has ended; the others go on. Nothing releases a key. The
        cache may be deallocated meanwhile: its memory is kept until the task has ended.

        Parameters
        ----------
        src_cache : Cache
            DEVICE memory; an even number of tensors.
        layer_synchronizer : LayerSynchronizer
        transfer_configs : list or tuple
            In remote mode of :class:`TransferWithCacheKeyConfig`, else of :class:`TransferConfig`. Neither the list nor
            the configs are modified, nor looked at again after the call.
        src_block_indices, dst_block_indices : list or tuple of int, optional
            uint64. Both, equally long: block ``src_block_indices[i]`` goes to block ``dst_block_indices[i]``. The
            second alone: our slot's bytes from ``i * dst_block_memory_size`` on go to block ``dst_block_indices[i]``.
            Neither: a slot goes to a slot, or every block of a blocks cache to the same block.
        dst_block_memory_size : int, optional
            uint64, the bytes of a destination block; needed with destination blocks alone.

        Returns
        -------
        CacheTask
            To wait for the end, and for what became of each config.

        Raises
        ------
        TypeError, ValueError
            An argument of a wrong type, a number out of its range.
        LLMException
            ``LLM_PARAM_INVALID``: an argument that contradicts the contract. ``LLM_ENGINE_FINALIZED``. Everything that
            goes wrong later is told by the task.

        Examples
        --------
        >>> class Computed(LayerSynchronizer):
        ...     def synchronize_layer(self, layer_index, timeout_in_millis):
        ...         return True  # or wait for the event that the layer's computation sets
        >>> cache = prompt.allocate_cache(CacheDesc(2, (1, 64), DataType.DT_FLOAT16))
        >>> to_cache_1 = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, cache_id=1), range(0, 1), range(0, 1))
        >>> task = prompt.transfer_cache_async(cache, Computed(), [to_cache_1])
        >>> str(task.synchronize(timeout_in_millis=5000))
        'LLMStatusCode.LLM_SUCCESS'
        """
        self._require_open("transfer_cache_async")
        check_type("src_cache", src_cache, Cache)
        if src_cache.cache_desc.placement is Placement.HOST:
            raise invalid("src cache not support placement HOST")
        blocks = _blocks(src_block_indices, dst_block_indices, dst_block_memory_size)
        check_type("layer_synchronizer", layer_synchronizer, LayerSynchronizer)
        configs = self._configs(transfer_configs)
        if blocks.bytes and not blocks.destination:
            raise invalid("dst_block_memory_size should be set with dst_block_indices only")
        num_tensors = src_cache.cache_desc.num_tensors
        if num_tensors % TENSORS_PER_LAYER:
            raise invalid(f"num_tensors of src_cache is {num_tensors}, which is not even")
        destinations = [_destination(src_cache, config) for config in configs]
        return start(self, src_cache, layer_synchronizer, destinations, blocks)

    def keep_leases(self, cache_keys: KeptKeys, lease: int | None = None) -> None:
        """Renew the leases of keys from now on, three times in each lease, until they have been pulled.

        For who expects keys, from the moment he knows of them: keys of linked clusters, or of this one. One that is not
        bound yet is looked for until it is; one that was found, and later is not bound, is kept no longer. So a decode
        worker that lives keeps what it will pull, and one that has died keeps nothing.

        Parameters
        ----------
        cache_keys : sequence of CacheKey or CacheKeyByIdAndIndex
            Those that are kept already are kept with the new lease.
        lease : int, optional
            Milliseconds, from 1 to 2**31 - 1; of each renewal. By default ``cache_key_lease`` of this instance.

        Raises
        ------
        TypeError, ValueError, AttributeError
            Something that is no sequence of keys, a lease out of its range, None.
        LLMException
            ``LLM_PARAM_INVALID``: a key that names nothing, or two things; no `lease`, where there is no
            ``cache_key_lease``. Nothing is kept then. Whether keys are bound, and their clusters linked, is no matter.

        Examples
        --------
        >>> expected = [CacheKey(1, req_id=7), CacheKey(1, req_id=9)]
        >>> decoder.keep_leases(expected, lease=10_000)
        >>> decoder.let_leases_lapse(expected)  # their requests were aborted
        """
        self._require_open("keep_leases")
        keys = _kept_keys(cache_keys)
        lease_ms = self._checked_lease(lease)
        with _beginning_to_keep:
            if self.lease_keeper is None:
                self.lease_keeper = LeaseKeeper(self)
            keeper = self.lease_keeper
        assert isinstance(keeper, LeaseKeeper)
        keeper.keep(keys, lease_ms)

    def let_leases_lapse(self, cache_keys: KeptKeys) -> None:
        """Renew the leases of keys no more: of requests that were aborted, for example. Of others it changes nothing.

        Parameters
        ----------
        cache_keys : sequence of CacheKey or CacheKeyByIdAndIndex

        Raises
        ------
        TypeError, AttributeError, LLMException
            As for :meth:`keep_leases`.
        """
        self._require_open("let_leases_lapse")
        keys = _kept_keys(cache_keys)
        if isinstance(self.lease_keeper, LeaseKeeper):
            self.lease_keeper.let_lapse(keys)

    @property
    def kept_leases(self) -> list[CacheKey | CacheKeyByIdAndIndex]:
        """The keys whose leases are kept by :meth:`keep_leases` now, in no particular order."""
        return self.lease_keeper.kept if isinstance(self.lease_keeper, LeaseKeeper) else []

    def close(self) -> None:
        """Give the memory up; every later call is refused with ``LLM_ENGINE_FINALIZED``."""
        super().close()
        if isinstance(self.lease_keeper, LeaseKeeper):
            self.lease_keeper.close()

    def abandon(self) -> None:
        """Give the memory up in a forked child, which has no thread that keeps leases."""
        super().abandon()
        self.lease_keeper = None

    def remap_registered_memory(self, mem_infos: MemInfo | list[MemInfo]) -> None:
        """Say that a device has its memory back after an error (api §2.5). Without effect: no memory is lost here.

        Parameters
        ----------
        mem_infos : MemInfo or list of MemInfo
            DEVICE memory, neither at address 0 nor empty.

        Raises
        ------
        TypeError
            Anything else.
        LLMException
            ``LLM_PARAM_INVALID``: HOST memory, a zero address or size, an empty list. ``LLM_NOT_YET_LINK``: no link
            stands.
        """
        self._require_open("remap_registered_memory")
        check_type("mem_infos", mem_infos, MemInfo, list)
        infos = list(mem_infos) if isinstance(mem_infos, list) else [mem_infos]
        check_elements("mem_infos", infos, MemInfo)
        for info in infos:
            if info.mem_type is not Memtype.MEM_TYPE_DEVICE:
                raise invalid(f"mem_type is {info.mem_type}, only support Memtype.MEM_TYPE_DEVICE")
            if info.addr == 0:
                raise invalid(f"addr can not be zero, got {info}")
            if info.size <= 0:
                raise invalid(f"size should be bigger than zero, got {info}")
        if not infos:
            raise invalid("mem_infos can not be empty")
        if not self.peers:
            raise failure("remap_registered_memory", LLMStatusCode.LLM_NOT_YET_LINK, "no cluster is linked")

    @staticmethod
    def check_cache_key(cache_key: CacheKey) -> None:
        """Refuse a key that does not have exactly one of request id and prefix id (api §1.11).

        Raises
        ------
        TypeError, AttributeError
            No CacheKey, or None.
        LLMException
            ``LLM_PARAM_INVALID``.

        Examples
        --------
        >>> CacheManager.check_cache_key(CacheKey(1, req_id=7))
        """
        require_one_id(cache_key)

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise failure(call, LLMStatusCode.LLM_ENGINE_FINALIZED, "llm datadist is not initialized any more")

    def _configs(self, transfer_configs: Sequence[Config]) -> tuple[Config, ...]:
        """The configs, if they are of the kind that this mode takes (api §3.9)."""
        check_type("transfer_configs", transfer_configs, list, tuple)
        configs = tuple(transfer_configs)
        wanted = TransferWithCacheKeyConfig if self.remote_accessible else TransferConfig
        mode = f"While enable_remote_cache_accessible is {self.remote_accessible}, "
        for config in configs:
            if not isinstance(config, wanted):
                raise TypeError(
                    f"{mode}transfer_configs inner type only support [{wanted.__name__}], but got {type(config)}"
                )
        return configs


def _kept_keys(cache_keys: KeptKeys) -> list[CacheKey | CacheKeyByIdAndIndex]:
    if cache_keys is None:
        raise MissingArgument("cache_keys only support [list, tuple], but got None")
    check_elements("cache_keys", cache_keys, CacheKey, CacheKeyByIdAndIndex)
    keys = list(cache_keys)
    for key in keys:
        if isinstance(key, CacheKey):
            require_one_id(key)
    return keys


def _blocks(
    src_block_indices: Sequence[int] | None, dst_block_indices: Sequence[int] | None, dst_block_memory_size: int | None
) -> Blocks:
    destination = _indices("dst_block_indices", dst_block_indices)
    source = _indices("src_block_indices", src_block_indices)
    size = 0 if dst_block_memory_size is None else check_uint64("dst_block_memory_size", dst_block_memory_size)
    if source and not destination:
        raise invalid("transfer from blocks to cache is not supported")
    if source and len(source) != len(destination):
        raise invalid(
            f"num_block_indices mismatches: {len(source)} src_block_indices, {len(destination)} dst_block_indices"
        )
    if destination and not source and not size:
        raise invalid("dst_block_memory_size must be set when a cache is sent to blocks")
    return Blocks(source, destination, size)


def _indices(name: str, indices: Sequence[int] | None) -> tuple[int, ...]:
    if indices is None:
        return ()
    check_elements(name, indices, int)
    return tuple(check_uint64(name, index) for index in indices)


def _destination(cache: Cache, config: Config) -> Destination:
    """What the config says now, checked against the source."""
    slots = 1 if cache.is_blocks_cache else cache.cache_desc.batch_size
    src_batch_index = config.src_batch_index
    if src_batch_index >= slots:
        raise invalid(
            f"src_batch_index is {src_batch_index}, it should be 0 for a blocks cache"
            if cache.is_blocks_cache
            else f"src_batch_index is {src_batch_index}, it should be in [0, {slots})"
        )
    count = cache.cache_desc.num_tensors // TENSORS_PER_LAYER
    layers = config.src_layer_range
    if layers is None:
        layers = range(count)
    if not 0 <= layers.start < layers.stop <= count:
        raise invalid(f"src_layer_range {layers} is out of range, the cache has {count} layers")
    if isinstance(config, TransferWithCacheKeyConfig):
        config.check_lengths()
        return ToCache(config.cache_key, layers, config.dst_layer_range.start, src_batch_index)
    addresses = tuple(config.dst_addrs)
    check_addresses("dst_addrs", addresses)  # the list may have changed since it was given
    if len(addresses) != TENSORS_PER_LAYER * len(layers):
        raise invalid(
            f"the number of dst_addrs is {len(addresses)}, it should be {TENSORS_PER_LAYER * len(layers)}: "
            f"{TENSORS_PER_LAYER} for each layer of {layers}"
        )
    return ToAddresses(config.dst_cluster_id, addresses, layers, src_batch_index)
