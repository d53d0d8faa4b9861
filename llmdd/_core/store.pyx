# cython: language_level=3
"""The caches of one node (see ``store.pxd``)."""

from cython cimport final
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from typing import NamedTuple

from llmdd._core.atomic cimport atomic_fetch_clear, atomic_fetch_set, atomic_load_word, monotonic_nanoseconds
from llmdd._core.cache cimport Cache, new_cache
from llmdd._core.cache_desc cimport CacheDesc, checked_tensor_bytes
from llmdd._core.cache_keys cimport CacheKey, CacheKeyByIdAndIndex, key_by_id_and_index
from llmdd._core.enumerations import Placement
from llmdd._core.key_index cimport index_is_unchanged, index_probe, index_version, key_tag
from llmdd._core.layout cimport (
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_PREFIX,
    KEY_REQUEST,
    PEER_LIMIT,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    Slot,
    header_of,
    slot_at,
    words_of,
)
from llmdd._core.lifecycle cimport (
    ACCEPTED,
    KEY_ALREADY_BOUND,
    NO_POOL_MEMORY,
    Allocation,
    Refusal,
    allocate,
    check_arena,
    dismiss_peer,
    drop_id,
    pin_local,
    reap,
    remove_key,
    tensor_offset,
    unpin_local,
)
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.peer cimport PeerArena
from llmdd._core.references cimport anything_released, key_is_bound
from llmdd._core.segments cimport Mapping
from llmdd._core.status import LLMStatusCode, failure, invalid
from llmdd._core.transfer cimport Transfer, copy_until
from llmdd._core.validation cimport (
    checked_int64,
    checked_uint32,
    checked_uint64,
    require_present,
    require_type,
    wrong_type,
)

cdef enum:
    KEYS_ON_STACK = 64
    SMALL_COPY = 64 << 10          # below this, giving the GIL up costs more than it gives others
    REAP_LIMIT = 4096
    DEFAULT_TENSORS_PER_LAYER = 2

cdef uint64_t MOST_LAYERS = 0xFFFFFFFF

cdef uint64_t NOT_BROKEN = 0
cdef object _HOST = Placement.HOST
cdef object _DEVICE = Placement.DEVICE
cdef object _RANGE = range


class PoolUsage(NamedTuple):
    """How full a pool is, in bytes; whole pages only."""

    total_bytes: int
    free_bytes: int
    page_bytes: int


cdef class CacheStore:
    """The caches of one node, and their memory.

    Parameters
    ----------
    cluster_id : int
        uint64.
    device_pool, host_pool : (memory_size, page_shift), optional
        Sizes of the pools; a cache is refused where its pool is missing (seed §12).
    remote_accessible : bool
        Whether linked peers may push (api §3.9).
    timeout_ms : int
        ``sync_kv_timeout`` (seed §8).
    slot_capacity : int
        How many caches can live at once. Unused capacity costs nothing.
    key_capacity : int
        How many caches and keys together can live at once.
    shared : bool
        False keeps the memory private: nobody can link to the node.
    """

    def __cinit__(
        self,
        *,
        cluster_id,
        device_pool=None,
        host_pool=None,
        remote_accessible=False,
        timeout_ms=1000,
        slot_capacity=1 << 20,
        key_capacity=1 << 22,
        shared=True,
    ):
        self.cluster_id = cluster_id
        self.remote_accessible = remote_accessible
        self.peers = {}
        self.memory = NodeMemory(
            cluster_id=cluster_id,
            pools=(host_pool, device_pool),
            remote_accessible=remote_accessible,
            timeout_ms=timeout_ms,
            slot_capacity=slot_capacity,
            key_capacity=key_capacity,
            shared=shared,
        )

    # ------------------------------------------------------------ caches and keys

    def allocate_cache(self, cache_desc, cache_keys=()):
        """Allocate a cache and bind its batch slots to keys (seed §1, §4).

        The memory goes back when the cache was deallocated *and* every key was pulled, pushed into or removed.

        Parameters
        ----------
        cache_desc : CacheDesc
        cache_keys : tuple or list of CacheKey
            Key *i* names batch slot *i*. Placeholders (``req_id`` and ``prefix_id`` both ``2**64 - 1``) leave their slot
            unkeyed, so do slots at the end for which no key is given. Of equal keys the last takes effect (seed §9-§11).

        Returns
        -------
        Cache
            Its contents are unspecified.

        Raises
        ------
        TypeError, AttributeError
            An argument of a wrong type, or None as the descriptor.
        LLMException
            ``LLM_PARAM_INVALID``: no pool for that placement, a shape that cannot be allocated, more keys than batch
            slots, a key that is bound already. ``LLM_OUT_OF_MEMORY``: no run of free pages is long enough.
            ``LLM_TIMEOUT``: other calls held the caches for longer than ``sync_kv_timeout``. Nothing has changed then.

        Examples
        --------
        >>> desc = CacheDesc(2, (2, 64), DataType.DT_FLOAT16)
        >>> cache = manager.allocate_cache(desc, [CacheKey(1, req_id=1), CacheKey(1, req_id=2)])
        >>> manager.deallocate_cache(cache)                  # two keys still hold the memory
        >>> manager.lookup(CacheKey(1, req_id=2)).batch_index
        1
        >>> manager.remove_cache_key(CacheKey(1, req_id=1))
        >>> manager.remove_cache_key(CacheKey(1, req_id=2))  # now it is free
        """
        self.memory.require_open("allocate_cache")
        require_present("cache_desc", cache_desc, CacheDesc)
        if not isinstance(cache_keys, (tuple, list)):
            raise wrong_type("cache_keys", cache_keys, "tuple, list")
        cache_keys = tuple(cache_keys)  # a list may change meanwhile, a subclass may lie about its length
        for key in cache_keys:
            if type(key) is not CacheKey:
                raise TypeError(f"cache_keys inner type only support [CacheKey], but got {type(key)}")
        return self.allocate(cache_desc, cache_keys)

    cdef Cache allocate(self, CacheDesc desc, tuple cache_keys):
        cdef Allocation request
        cdef KeyRecord[KEYS_ON_STACK] few
        cdef KeyRecord *records = few
        cdef CacheKey key
        cdef Refusal refusal
        cdef uint64_t count = len(cache_keys)
        cdef uint64_t i = 0
        request.placement = 1 if desc.device else 0
        request.num_tensors = desc.num_tensors
        if desc.num_tensors == 0:
            raise invalid("num_tensors should be bigger than zero")
        self.memory.require_open("allocate_cache")
        if not header_of(self.memory.base).pools[request.placement].configured:
            raise invalid(f"you should config memory pool firstly: there is no pool for {desc.placement}")
        request.tensor_bytes = checked_tensor_bytes(desc)
        request.batch_size = desc.batch_slots()
        if not desc.slots_are_contiguous():
            raise invalid(
                f"batch_dim_index is {desc.batch_dim_index}: every dimension before it must be 1, shape is {desc.shape}"
            )
        if count > request.batch_size:
            raise invalid(f"{count} cache_keys were given for a batch size of {request.batch_size}")
        if count > KEYS_ON_STACK:
            records = <KeyRecord *>malloc(count * sizeof(KeyRecord))
            if records == NULL:
                raise MemoryError(f"{count * sizeof(KeyRecord)} bytes for {count} cache keys")
        try:
            for key in cache_keys:
                records[i].kind = key.kind()
                records[i].id = key.identity()
                records[i].model_id = key.model_id
                i += 1
            request.keys = records
            request.key_count = count
            self.memory.enter("allocate_cache")
            try:
                reap(self.memory.base, REAP_LIMIT)
                refusal = allocate(self.memory.base, &request)
            finally:
                self.memory.leave()
        finally:
            if records != few:
                free(records)
        if refusal == KEY_ALREADY_BOUND:
            raise invalid(f"{cache_keys[request.refused_key]} is already bound to another cache")
        if refusal == NO_POOL_MEMORY:
            raise failure(
                "allocate_cache",
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                f"the {desc.placement.name} pool has no room for {desc.num_tensors} tensors of "
                f"{request.tensor_bytes} bytes",
            )
        if refusal != ACCEPTED:
            raise failure(
                "allocate_cache", LLMStatusCode.LLM_OUT_OF_MEMORY, "the capacity for caches and keys is used up"
            )
        return new_cache(self.memory, desc, request.cache_id, request.slot, request.generation)

    def deallocate_cache(self, cache):
        """Drop a cache's id reference (seed §2). Keys that are still bound keep its memory.

        Deallocating again does nothing.

        Raises
        ------
        TypeError, AttributeError
            No Cache, or None.
        LLMException
            ``LLM_PARAM_INVALID``: a blocks cache.

        Examples
        --------
        >>> cache = manager.allocate_cache(CacheDesc(1, (1, 16), DataType.DT_FLOAT))
        >>> manager.deallocate_cache(cache)
        >>> cache.tensor_addrs
        []
        """
        cdef Cache ours
        self.memory.require_open("deallocate_cache")
        require_present("cache", cache, Cache)
        ours = cache
        if ours.memory is None:
            ours.addresses = []
            return
        if ours.is_blocks_cache:
            raise invalid("cache can not be blocks cache")
        if ours.memory is self.memory:
            self.memory.enter("deallocate_cache")
            try:
                drop_id(self.memory.base, ours.slot, ours.generation)
                reap(self.memory.base, REAP_LIMIT)
            finally:
                self.memory.leave()
        ours.dropped = True

    def remove_cache_key(self, cache_key):
        """Drop a key's reference (seed §3b). A key that is not bound, or a placeholder, is no error.

        Raises
        ------
        TypeError, AttributeError
            No CacheKey, or None.

        Examples
        --------
        >>> manager.remove_cache_key(CacheKey(1, req_id=404))
        """
        cdef CacheKey key
        self.memory.require_open("remove_cache_key")
        if type(cache_key) is not CacheKey:
            require_present("cache_key", cache_key, CacheKey)
        key = cache_key
        if key.kind() == KEY_NONE:
            return
        self.memory.enter("remove_cache_key")
        try:
            remove_key(self.memory.base, key.kind(), key.identity(), key.model_id)
            reap(self.memory.base, REAP_LIMIT)
        finally:
            self.memory.leave()

    def lookup(self, cache_key):
        """Where a key is bound: the cache's id and the batch slot, or None.

        Parameters
        ----------
        cache_key : CacheKey

        Returns
        -------
        CacheKeyByIdAndIndex or None

        Examples
        --------
        >>> cache = manager.allocate_cache(CacheDesc(1, (1, 16), DataType.DT_FLOAT), [CacheKey(1, req_id=5)])
        >>> manager.lookup(CacheKey(1, req_id=5)).cache_id == cache.cache_id
        True
        >>> manager.lookup(CacheKey(1, req_id=6)) is None
        True
        """
        cdef CacheKey key
        cdef char *arena
        cdef IndexEntry entry
        cdef uint32_t tag
        cdef uint64_t version
        cdef int64_t cache_id = 0
        self.memory.require_open("lookup")
        if type(cache_key) is not CacheKey:
            require_present("cache_key", cache_key, CacheKey)
        key = cache_key
        if key.kind() == KEY_NONE:
            return None
        arena = self.memory.base
        tag = key_tag(header_of(arena), key.kind(), key.identity(), key.model_id)
        while True:
            # As a peer does it, without the lock; as long as the index is unchanged the entry's cache is there.
            version = index_version(arena)
            if index_probe(arena, header_of(arena), tag, key.identity(), key.model_id, &entry):
                cache_id = bound_cache_id(arena, &entry)
            if index_is_unchanged(arena, version):
                break
            cache_id = 0
            self.memory.enter("lookup")
            self.memory.leave()
        return key_by_id_and_index(self.cluster_id, cache_id, entry.batch_index) if cache_id else None

    # ------------------------------------------------------------ transfers

    def pull_cache(
        self,
        cache_key,
        cache,
        batch_index=0,
        size=-1,
        **kwargs,
    ):
        """Copy a batch slot of a linked cluster's cache into one of ours, and release its key (seed §3a, api §3.6).

        Parameters
        ----------
        cache_key : CacheKey or CacheKeyByIdAndIndex
            Names the remote slot; its cluster must be linked. In remote mode only `CacheKeyByIdAndIndex`.
        cache : Cache
            Ours, allocated or still addressable by id.
        batch_index : int, default 0
            Our batch slot, uint32.
        size : int, default -1
            Bytes of each tensor to copy, from the slot's first byte; -1 for all of our slot.
        **kwargs
            ``src_layer_range`` and ``dst_layer_range``, range, optional: layers of the remote and of our cache, step 1. The
            key is released when every tensor of the remote cache has been pulled for it. ``tensor_num_per_layer``, int,
            default 2: tensors that make a layer; must divide our number of tensors when a range is given.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None.
        LLMException
            ``LLM_PARAM_INVALID``, ``LLM_NOT_YET_LINK``, ``LLM_KV_CACHE_NOT_EXIST``, ``LLM_LINK_BUSY`` (time ran out while
            another transfer used the link) or ``LLM_TIMEOUT`` (after the transfer began). The key is kept then.

        Examples
        --------
        >>> cache = decoder.allocate_cache(CacheDesc(2, (4, 64), DataType.DT_FLOAT16))
        >>> decoder.pull_cache(CacheKey(1, req_id=7), cache, batch_index=3)
        """
        cdef Transfer transfer
        self.memory.require_open("pull_cache")
        if cache_key is None:
            require_present("cache_key", cache_key, CacheKey)
        if type(cache_key) is not CacheKeyByIdAndIndex and (self.remote_accessible or type(cache_key) is not CacheKey):
            raise wrong_type(
                "cache_key",
                cache_key,
                "CacheKeyByIdAndIndex" if self.remote_accessible else "CacheKey, CacheKeyByIdAndIndex",
            )
        src_layer_range = dst_layer_range = None
        tensor_num_per_layer = DEFAULT_TENSORS_PER_LAYER
        if kwargs:
            src_layer_range = kwargs.pop("src_layer_range", None)
            dst_layer_range = kwargs.pop("dst_layer_range", None)
            tensor_num_per_layer = kwargs.pop("tensor_num_per_layer", DEFAULT_TENSORS_PER_LAYER)
        if kwargs:
            raise TypeError(f"pull_cache() got an unexpected keyword argument '{next(iter(kwargs))}'")
        require_present("cache", cache, Cache)
        cdef uint64_t slot_index = checked_uint32("batch_index", batch_index)
        cdef int64_t bytes_wanted = checked_int64("size", size)
        if (<Cache>cache).is_blocks_cache:
            raise invalid("cache can not be blocks cache")
        if bytes_wanted != -1 and bytes_wanted <= 0:
            raise invalid(f"size is {size}, it should be = -1 or > 0")
        cdef uint64_t per_layer = checked_uint32("tensor_num_per_layer", tensor_num_per_layer)
        if per_layer == 0:
            raise invalid("tensor_num_per_layer is 0, it should be > 0")
        if type(cache_key) is CacheKey:
            require_one_id(<CacheKey>cache_key)
        memset(&transfer, 0, sizeof(transfer))
        transfer.all_remote = not take_pull_range(
            "src_layer_range", src_layer_range, per_layer, &transfer.remote_first, &transfer.remote_end
        )
        transfer.all_local = not take_pull_range(
            "dst_layer_range", dst_layer_range, per_layer, &transfer.local_first, &transfer.local_end
        )
        self.transfer_tensors("pull_cache", &transfer, cache_key, <Cache>cache, slot_index, bytes_wanted, per_layer)

    def push_cache(
        self,
        dst_cache_key,
        src_cache,
        src_batch_index=0,
        src_layer_range=None,
        dst_layer_range=None,
        size=-1,
        tensor_num_per_layer=DEFAULT_TENSORS_PER_LAYER,
    ):
        """Copy a batch slot of ours into a linked cluster's cache, and release the key of that slot (seed §3a, api §3.7).

        Only in remote mode, at both ends.

        Parameters
        ----------
        dst_cache_key : CacheKeyByIdAndIndex
            The remote slot.
        src_cache : Cache
            Ours.
        src_batch_index : int, default 0
            Our batch slot, uint32.
        src_layer_range, dst_layer_range : range, optional
            Layers of our and of the remote cache, of equal length, step 1.
        size : int, default -1
            Only -1: all of our slot.
        tensor_num_per_layer : int, default 2
            Tensors that make a layer.

        Raises
        ------
        TypeError, ValueError
            An argument of a wrong type, a number out of its range.
        LLMException
            As for :meth:`pull_cache`. After a failure the remote slot may hold a part of the data; its key is kept.

        Examples
        --------
        >>> cache = prompt.allocate_cache(CacheDesc(2, (1, 64), DataType.DT_FLOAT16))
        >>> prompt.push_cache(CacheKeyByIdAndIndex(2, cache_id=1, batch_index=3), cache)
        """
        cdef Transfer transfer
        self.memory.require_open("push_cache")
        if not self.remote_accessible:
            raise invalid("push_cache is only supported while enable_remote_cache_accessible is True")
        require_type("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        require_type("src_cache", src_cache, Cache)
        cdef uint64_t slot_index = checked_uint32("src_batch_index", src_batch_index)
        if (<Cache>src_cache).is_blocks_cache:
            raise invalid("src_cache can not be blocks cache")
        cdef uint64_t per_layer = checked_uint32("tensor_num_per_layer", tensor_num_per_layer)
        if per_layer == 0:
            raise invalid("tensor_num_per_layer is 0, it should be > 0")
        memset(&transfer, 0, sizeof(transfer))
        transfer.push = True
        transfer.all_local = not take_push_range(
            "src_layer_range", src_layer_range, per_layer, &transfer.local_first, &transfer.local_end
        )
        transfer.all_remote = not take_push_range(
            "dst_layer_range", dst_layer_range, per_layer, &transfer.remote_first, &transfer.remote_end
        )
        if src_layer_range is not None and dst_layer_range is not None:
            if src_layer_range.stop - src_layer_range.start != dst_layer_range.stop - dst_layer_range.start:
                raise invalid(
                    f"src_layer_range size should be equal to dst_layer_range size, got {src_layer_range} and "
                    f"{dst_layer_range}"
                )
        if checked_int64("size", size) != -1:
            raise invalid(f"size is {size}, it should be = -1.")
        self.transfer_tensors("push_cache", &transfer, dst_cache_key, <Cache>src_cache, slot_index, -1, per_layer)

    cdef int transfer_tensors(
        self,
        str tag,
        Transfer *transfer,
        object key,
        Cache cache,
        uint64_t batch_index,
        int64_t size,
        uint64_t per_layer,
    ) except -1:
        """The checks of api §3.6 in order, and the transfer, for a batch slot of ours and one of a peer's."""
        cdef NodeMemory memory = self.memory
        cdef Mapping arena
        cdef Mapping pool
        cdef Slot *slot
        cdef uint64_t slot_number
        cdef uint32_t generation
        cdef PeerArena peer
        cdef uint64_t cluster_id
        cdef object refusal
        # Checking arguments may have run code that let another thread finalize; from here to the pin nothing does.
        memory.require_open(tag)
        arena = memory.arena
        if type(key) is CacheKey:
            cluster_id = (<CacheKey>key).cluster_id
            transfer.kind = (<CacheKey>key).kind()
            transfer.id = (<CacheKey>key).identity()
            transfer.model_id = (<CacheKey>key).model_id
        else:
            cluster_id = (<CacheKeyByIdAndIndex>key).cluster_id
            transfer.kind = KEY_CACHE_ID
            transfer.id = <uint64_t>(<CacheKeyByIdAndIndex>key).cache_id
            transfer.batch_index = (<CacheKeyByIdAndIndex>key).batch_index
        if cluster_id == self.cluster_id and not transfer.push:  # a push finds no link to it (api §3.7)
            raise invalid(f"{key} names our own cluster {cluster_id}; transfers go to linked clusters")
        if cache.memory is not memory or pin_local(memory.base, cache.slot, cache.generation) != 0:
            raise failure(tag, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"cache {cache.cache_id} does not exist any more")
        slot_number = cache.slot
        try:
            slot = slot_at(arena.base, slot_number)
            pool = memory.pool_mapping(slot.placement)
            transfer.bytes = slot.slot_bytes if size < 0 else <uint64_t>size
            refusal = local_refusal(transfer, slot, batch_index, per_layer)
            if refusal is not None and not transfer.push:
                raise refusal
            transfer.locally_refused = refusal is not None
            peer = self.peers.get(cluster_id)
            if peer is None:
                raise failure(tag, LLMStatusCode.LLM_NOT_YET_LINK, f"cluster {cluster_id} is not linked")
            if transfer.kind == KEY_CACHE_ID and <int64_t>transfer.id < 1:
                raise failure(tag, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"{key} names no cache, ids begin at 1")
            transfer.local_arena = arena.base
            transfer.local_slot = slot
            transfer.local_pool = pool.base
            transfer.local_batch_index = batch_index
            peer.carry_out(
                transfer, tag, memory.timeout_ns, transfer.bytes * slot.num_tensors <= SMALL_COPY
            )
            if refusal is not None:
                raise refusal
        finally:
            unpin_local(arena.base, slot_number)
        return 0

    def copy_cache(self, dst, src, dst_batch_index=0, src_batch_index=0, offset=0, size=-1, req_id=None):
        """Copy a batch slot to another one of our own (api §3.8).

        Parameters
        ----------
        dst, src : Cache
            With equal numbers of tensors.
        dst_batch_index, src_batch_index : int, default 0
            uint32.
        offset : int, default 0
            Where to begin in both slots, in bytes, uint64.
        size : int, default -1
            Bytes of each tensor; -1 for the rest of the source slot.
        req_id : int, optional
            Only for logs, uint64.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None.
        LLMException
            ``LLM_PARAM_INVALID``, or ``LLM_KV_CACHE_NOT_EXIST`` for a cache that has gone.

        Examples
        --------
        >>> cache = manager.allocate_cache(CacheDesc(1, (2, 16), DataType.DT_FLOAT))
        >>> cache.tensors[0][0] = 1.0
        >>> manager.copy_cache(cache, cache, dst_batch_index=1)
        >>> float(cache.tensors[0][1, 15])
        1.0
        """
        self.memory.require_open("copy_cache")
        require_present("dst", dst, Cache)
        require_present("src", src, Cache)
        cdef uint64_t dst_index = checked_uint32("dst_batch_index", dst_batch_index)
        cdef uint64_t src_index = checked_uint32("src_batch_index", src_batch_index)
        cdef uint64_t begin = checked_uint64("offset", offset)
        cdef int64_t wanted = checked_int64("size", size)
        if (<Cache>dst).is_blocks_cache or (<Cache>src).is_blocks_cache:
            raise invalid("dst and src can not be blocks cache")
        if wanted != -1 and wanted <= 0:
            raise invalid(f"size is {size}, it should be = -1 or > 0")
        if req_id is not None:
            checked_uint64("req_id", req_id)
        self.copy_slot(<Cache>dst, <Cache>src, dst_index, src_index, begin, wanted)

    cdef int copy_slot(
        self, Cache dst, Cache src, uint64_t dst_index, uint64_t src_index, uint64_t offset, int64_t size
    ) except -1:
        cdef NodeMemory memory = self.memory
        cdef Mapping arena
        memory.require_open("copy_cache")
        arena = memory.arena
        if src.memory is not memory or pin_local(arena.base, src.slot, src.generation) != 0:
            raise failure("copy_cache", LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"cache {src.cache_id} does not exist")
        try:
            if dst.memory is not memory or pin_local(arena.base, dst.slot, dst.generation) != 0:
                raise failure(
                    "copy_cache", LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"cache {dst.cache_id} does not exist"
                )
            try:
                self.copy_pinned(arena, dst, src, dst_index, src_index, offset, size)
            finally:
                unpin_local(arena.base, dst.slot)
        finally:
            unpin_local(arena.base, src.slot)
        return 0

    cdef int copy_pinned(
        self,
        Mapping arena,
        Cache dst,
        Cache src,
        uint64_t dst_index,
        uint64_t src_index,
        uint64_t offset,
        int64_t size,
    ) except -1:
        cdef Slot *target = slot_at(arena.base, dst.slot)
        cdef Slot *source = slot_at(arena.base, src.slot)
        cdef Mapping target_pool = self.memory.pool_mapping(target.placement)
        cdef Mapping source_pool = self.memory.pool_mapping(source.placement)
        cdef uint64_t wanted, tensor
        cdef int64_t deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        cdef bint done = True
        if source.num_tensors != target.num_tensors:
            raise invalid(f"dst has {target.num_tensors} tensors and src {source.num_tensors}, they must be equal")
        if src_index >= source.batch_size or dst_index >= target.batch_size:
            raise invalid(
                f"batch indices {src_index} and {dst_index} must be in [0, {source.batch_size}) for src and "
                f"[0, {target.batch_size}) for dst"
            )
        if offset > 0 and (offset >= source.slot_bytes or offset >= target.slot_bytes):
            raise invalid(f"offset is {offset}, the batch slots have {source.slot_bytes} and {target.slot_bytes} bytes")
        wanted = source.slot_bytes - offset if size < 0 else <uint64_t>size
        if wanted > source.slot_bytes - offset or offset > target.slot_bytes or wanted > target.slot_bytes - offset:
            raise invalid(
                f"{wanted} bytes from offset {offset} do not fit batch slots of {source.slot_bytes} and "
                f"{target.slot_bytes} bytes"
            )
        if target == source and src_index == dst_index:
            return 0
        with nogil:
            for tensor in range(source.num_tensors):
                done = copy_until(
                    target_pool.base
                    + tensor_offset(arena.base, target, tensor)
                    + dst_index * target.slot_bytes
                    + offset,
                    source_pool.base
                    + tensor_offset(arena.base, source, tensor)
                    + src_index * source.slot_bytes
                    + offset,
                    wanted,
                    deadline,
                    &NOT_BROKEN,
                )
                if not done:
                    break
        if not done:
            raise failure("copy_cache", LLMStatusCode.LLM_TIMEOUT, "the copy did not end within sync_kv_timeout")
        return 0

    # ------------------------------------------------------------ what the links use

    def export(self):
        """What a peer needs to attach: sizes for a message, and the segments' descriptors, which stay ours."""
        cdef ArenaHeader *header
        self.memory.require_open("export")
        if not self.memory.fds:
            raise ValueError("the store's memory is private, no peer can attach to it")
        header = header_of(self.memory.base)
        return (
            {"control_bytes": header.control_bytes, "references_bytes": header.references_bytes},
            list(self.memory.fds),
        )

    def admit_peer(self):
        """A pin bit for one more peer on this host; LLMException (``LLM_FAILED``) when all 64 are taken. Never waits."""
        cdef uint64_t bit
        self.memory.require_open("link_clusters")
        for bit in range(PEER_LIMIT):
            if not atomic_fetch_set(&self.admitted, <uint64_t>1 << bit) >> bit & 1:
                return bit
        raise failure(
            "link_clusters", LLMStatusCode.LLM_FAILED, f"{PEER_LIMIT} clusters of this host are linked, that is the limit"
        )

    def dismiss_peer(self, peer_bit):
        """A peer's process has gone, or has promised to transfer no more: clear its pins, settle what it left half done."""
        cdef unsigned int bit = peer_bit
        if self.memory.closed:
            return
        self.memory.enter("unlink_clusters")
        try:
            if not atomic_load_word(&self.admitted) >> bit & 1:
                raise ValueError(f"peer bit {peer_bit} was given to nobody")
            with nogil:
                dismiss_peer(self.memory.base, bit)
            atomic_fetch_clear(&self.admitted, <uint64_t>1 << bit)
        finally:
            self.memory.leave()

    @property
    def has_released(self):
        """Whether :meth:`reap` has anything to do. Never waits."""
        return not self.memory.closed and anything_released(self.memory.base)

    def reap(self):
        """Settle the caches whose last reference a peer, or a dropped view, has released; how many were looked at."""
        if self.memory.closed:
            return 0
        self.memory.enter("reap")
        try:
            return reap(self.memory.base, REAP_LIMIT)
        finally:
            self.memory.leave()

    # ------------------------------------------------------------ inspection and end

    def pool_usage(self, placement=_DEVICE):
        """How full a pool is.

        Parameters
        ----------
        placement : Placement, default Placement.DEVICE

        Returns
        -------
        PoolUsage
            All zero where no pool is configured.

        Examples
        --------
        >>> manager.pool_usage().page_bytes
        65536
        """
        cdef ArenaHeader *header
        self.memory.require_open("pool_usage")
        require_type("placement", placement, Placement)
        cdef int which = placement
        self.memory.enter("pool_usage")
        try:
            reap(self.memory.base, REAP_LIMIT)
            header = header_of(self.memory.base)
            if not header.pools[which].configured:
                return PoolUsage(0, 0, 0)
            return PoolUsage(
                header.pools[which].bytes,
                header.pools[which].tree.free_pages << header.pools[which].page_shift,
                1 << header.pools[which].page_shift,
            )
        finally:
            self.memory.leave()

    @property
    def live_caches(self):
        """How many caches hold memory."""
        self.memory.enter("live_caches")
        try:
            reap(self.memory.base, REAP_LIMIT)
            return header_of(self.memory.base).live_caches
        finally:
            self.memory.leave()

    @property
    def live_keys(self):
        """How many keys are bound."""
        self.memory.enter("live_keys")
        try:
            reap(self.memory.base, REAP_LIMIT)
            return header_of(self.memory.base).live_keys
        finally:
            self.memory.leave()

    def check(self):
        """Verify every invariant of the node's caches, keys and pools; AssertionError names what does not hold."""
        self.memory.enter("check")
        try:
            check_arena(self.memory.base)
        finally:
            self.memory.leave()

    def paused(self):
        """A context in which no other thread's call changes a cache; those calls wait, up to ``sync_kv_timeout``.

        Examples
        --------
        >>> with manager.paused():
        ...     usage, caches = manager.pool_usage(), manager.live_caches
        """
        return Pause(self)

    def close(self):
        """Give the memory up; every later call is refused with ``LLM_ENGINE_FINALIZED``."""
        self.memory.close()

    def abandon(self):
        """Give the memory up in a forked child."""
        self.memory.abandon()

    @property
    def closed(self):
        return self.memory.closed


@final
cdef class Pause:
    """Holds a store's lock between enter and exit."""

    cdef CacheStore store

    def __cinit__(self, CacheStore store):
        self.store = store

    def __enter__(self):
        self.store.memory.enter("paused")

    def __exit__(self, *exception):
        self.store.memory.leave()


cdef inline int64_t bound_cache_id(char *arena, const IndexEntry *entry) noexcept nogil:
    """The id of the cache whose key an entry stands for; 0 if that key has been dropped."""
    cdef Slot *slot = slot_at(arena, entry.slot)
    return slot.cache_id if key_is_bound(words_of(arena, slot), entry.generation, entry.batch_index) else 0


cdef int require_one_id(CacheKey key) except -1:
    """The rule for keys that are pulled: exactly one of request and prefix id (api §2.5)."""
    if key.kind() == KEY_NONE:
        raise invalid(f"one of req id and prefix id should contain valid value, got {key}")
    if key.kind() == KEY_PREFIX and key.req_id != <uint64_t>-1:
        raise invalid(f"only one of req id and prefix id should contain valid value, got {key}")
    return 0


cdef bint take_pull_range(str name, object layers, uint64_t per_layer, uint64_t *first, uint64_t *end) except -1:
    """The tensors of a layer range of a pull; False if none is given."""
    if layers is None:
        return False
    require_type(name, layers, _RANGE)
    if layers.step != 1:
        raise invalid(f"{name} is {layers}, its step must be 1")
    if layers.start < 0:
        raise invalid(f"{name} is invalid, the start value {layers.start} is negative")
    first[0] = checked_uint32(f"{name}.start", layers.start) * per_layer
    end[0] = checked_uint32(f"{name}.stop", layers.stop) * per_layer
    if first[0] >= end[0]:
        raise invalid(f"{name} is {layers}, which selects no layer")
    return True


cdef bint take_push_range(str name, object layers, uint64_t per_layer, uint64_t *first, uint64_t *end) except -1:
    """The tensors of a layer range of a push; False if none is given."""
    if layers is None:
        return False
    require_type(name, layers, _RANGE)
    if layers.step != 1:
        raise invalid(f"check {name}.step == 1 failed, {name} is {layers}")
    if not 0 <= layers.start < layers.stop:
        raise invalid(f"check 0 <= {name}.start < {name}.stop failed, {name} is {layers}")
    # Beyond every cache already; the exact number does not matter any more.
    first[0] = min(layers.start, MOST_LAYERS) * per_layer
    end[0] = min(layers.stop, MOST_LAYERS + 1) * per_layer
    return True


cdef object local_refusal(Transfer *transfer, const Slot *slot, uint64_t batch_index, uint64_t per_layer):
    """Why our own side does not allow the transfer (api §3.5, §3.6), as an exception; None if it does."""
    cdef uint64_t num_tensors = slot.num_tensors
    if batch_index >= slot.batch_size:
        return invalid(f"batch_index is {batch_index}, it must be in [0, {slot.batch_size})")
    if transfer.bytes > slot.slot_bytes:
        return invalid(f"size is {transfer.bytes}, a batch slot of the cache has {slot.slot_bytes} bytes")
    if per_layer != DEFAULT_TENSORS_PER_LAYER and per_layer > num_tensors:
        return invalid(f"tensor_num_per_layer is {per_layer}, the cache has {num_tensors} tensors")
    if transfer.all_local and transfer.all_remote:
        return None
    if num_tensors % per_layer:
        return invalid(f"tensor_num_per_layer is {per_layer}, it must divide the cache's {num_tensors} tensors")
    if not transfer.all_local and transfer.local_end > num_tensors:
        return invalid(f"the layer range selects tensors up to {transfer.local_end}, the cache has {num_tensors}")
    if transfer.all_remote:
        return None
    if transfer.remote_end - transfer.remote_first != (
        num_tensors if transfer.all_local else transfer.local_end - transfer.local_first
    ):
        return invalid("src_layer_range and dst_layer_range should select equally many layers")
    return None
