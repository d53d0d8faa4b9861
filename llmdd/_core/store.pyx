# cython: language_level=3
"""The transfers of one node (see ``store.pxd``)."""

from cpython.object cimport PyObject
from cython cimport critical_section, final
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from llmdd._core.block_lists cimport BlockLists, checked_blocks, largest, new_block_lists
from llmdd._core.cache cimport Cache
from llmdd._core.cache_keys cimport BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.copying cimport Piece
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.layout cimport (
    KEY_BLOCKS,
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_PREFIX,
    Slot,
    batch_size_of,
)
from llmdd._core.local_copies cimport LocalCopies, PinnedCache, pinned
from llmdd._core.node_caches import PoolUsage
from llmdd._core.peer cimport Peer
from llmdd._core.status import LLMStatusCode, failure, invalid
from llmdd._core.transfer cimport (
    ALL_BLOCKS,
    BLOCKS_TO_BLOCKS,
    BY_ADDRESS,
    SLOT_TO_BLOCKS,
    SLOT_TO_SLOT,
    Transfer,
)
from llmdd._core.validation cimport (
    checked_int64,
    checked_uint32,
    require_present,
    require_type,
    wrong_type,
)

cdef enum:
    SMALL_COPY = 64 << 10          # below this, giving the GIL up costs more than it gives others
    DEFAULT_TENSORS_PER_LAYER = 2
    TENSORS_OF_A_LAYER = 2         # in an asynchronous transfer (api §3.7)

cdef uint64_t MOST_LAYERS = 0xFFFFFFFF

cdef object _RANGE = range


@final
cdef class SourcePin:
    """Keeps a cache of ours from the begin of an asynchronous transfer to its end, also when it is deallocated."""

    def release(self):
        """Let it go. Again is nothing."""
        cdef PinnedCache pinned
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        pinned, self.pinned = self.pinned, None
        leave_critical_section(&section)


cdef class CacheStore(LocalCopies):
    # ------------------------------------------------------------ pulls

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
            src_layer_range, dst_layer_range, tensor_num_per_layer = taken_keywords("pull_cache", kwargs)
        require_present("cache", cache, Cache)
        cdef uint64_t slot_index = checked_uint32("batch_index", batch_index)
        cdef int64_t bytes_wanted = checked_int64("size", size)
        if (<Cache>cache).is_blocks_cache:
            raise invalid("cache can not be blocks cache")
        if bytes_wanted != -1 and bytes_wanted <= 0:
            raise invalid(f"size is {size}, it should be = -1 or > 0")
        cdef uint64_t per_layer = checked_per_layer(tensor_num_per_layer)
        if type(cache_key) is CacheKey:
            check_one_id(<CacheKey>cache_key)
        memset(&transfer, 0, sizeof(transfer))
        transfer.form = SLOT_TO_SLOT
        take_pull_ranges(&transfer, src_layer_range, dst_layer_range, per_layer)
        cdef uint64_t cluster_id = self.name_remote(&transfer, cache_key)
        self.transfer_tensors(
            "pull_cache", &transfer, cluster_id, cache_key, <Cache>cache, slot_index, bytes_wanted, per_layer, None
        )

    def pull_blocks(self, src_cache_key, dst_cache, src_blocks=(), dst_blocks=(), **kwargs):
        """Copy blocks of a linked cluster's blocks cache, or a batch slot cut into blocks, into blocks of ours (api §3.5).

        By `BlocksCacheKey`: remote block ``src_blocks[i]`` to our block ``dst_blocks[i]``; no key is released. By another
        key: the *i*-th block's worth of the remote batch slot to our block ``dst_blocks[i]``, the last one as far as the slot
        reaches; the slot's key is released as by :meth:`pull_cache`.

        Parameters
        ----------
        src_cache_key : BlocksCacheKey, CacheKey or CacheKeyByIdAndIndex
        dst_cache : Cache
            Ours, a blocks cache.
        src_blocks : tuple or list of int, optional
            uint64; as many as `dst_blocks` with a `BlocksCacheKey`, none otherwise.
        dst_blocks : tuple or list of int
            uint64, at least one. Of equal ones the last takes effect.
        **kwargs
            ``src_layer_range``, ``dst_layer_range`` and ``tensor_num_per_layer``, as for :meth:`pull_cache`.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None.
        LLMException
            As for :meth:`pull_cache`; ``LLM_PARAM_INVALID`` also if the blocks of the two sides differ in bytes.

        Examples
        --------
        >>> cache = decoder.allocate_blocks_cache(CacheDesc(2, (8, 16), DataType.DT_FLOAT16))
        >>> decoder.pull_blocks(CacheKey(1, req_id=9), cache, dst_blocks=[5, 2, 7, 0])
        """
        cdef Transfer transfer
        cdef BlockLists lists
        self.memory.require_open("pull_blocks")
        if src_cache_key is None:
            require_present("src_cache_key", src_cache_key, BlocksCacheKey)
        if type(src_cache_key) not in (BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex):
            raise wrong_type("src_cache_key", src_cache_key, "CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey")
        src_layer_range, dst_layer_range, tensor_num_per_layer = taken_keywords("pull_blocks", kwargs)
        require_present("dst_cache", dst_cache, Cache)
        sources = checked_blocks("src_blocks", () if src_blocks is None else src_blocks)
        targets = checked_blocks("dst_blocks", dst_blocks)
        if not (<Cache>dst_cache).is_blocks_cache:
            raise invalid("dst_cache should be blocks cache")
        if not targets:
            raise invalid("dst_blocks can not be empty")
        cdef uint64_t per_layer = checked_per_layer(tensor_num_per_layer)
        cdef bint from_blocks = type(src_cache_key) is BlocksCacheKey
        if from_blocks and not sources:
            raise invalid("src_blocks can not be empty with a BlocksCacheKey")
        if not from_blocks and sources:
            raise invalid(f"src_blocks should be empty with a {type(src_cache_key).__name__}")
        if type(src_cache_key) is CacheKey:
            check_one_id(<CacheKey>src_cache_key)
        memset(&transfer, 0, sizeof(transfer))
        transfer.form = BLOCKS_TO_BLOCKS if from_blocks else SLOT_TO_BLOCKS
        take_pull_ranges(&transfer, src_layer_range, dst_layer_range, per_layer)
        lists = new_block_lists(targets, sources)
        if from_blocks and len(sources) != len(targets):
            lists.count = 0        # refused after the link was looked at (api §3.6)
        cdef uint64_t cluster_id = self.name_remote(&transfer, src_cache_key)
        self.transfer_tensors(
            "pull_blocks", &transfer, cluster_id, src_cache_key, <Cache>dst_cache, 0, -1, per_layer, lists
        )

    # ------------------------------------------------------------ pushes

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
        cdef uint64_t per_layer = checked_per_layer(tensor_num_per_layer)
        memset(&transfer, 0, sizeof(transfer))
        transfer.form = SLOT_TO_SLOT
        take_push_ranges(&transfer, src_layer_range, dst_layer_range, per_layer)
        if checked_int64("size", size) != -1:
            raise invalid(f"size is {size}, it should be = -1.")
        cdef uint64_t cluster_id = self.name_remote(&transfer, dst_cache_key)
        self.transfer_tensors(
            "push_cache", &transfer, cluster_id, dst_cache_key, <Cache>src_cache, slot_index, -1, per_layer, None
        )

    def push_blocks(
        self,
        dst_cache_key,
        src_cache,
        src_blocks=(),
        dst_blocks=(),
        src_layer_range=None,
        dst_layer_range=None,
        tensor_num_per_layer=DEFAULT_TENSORS_PER_LAYER,
    ):
        """Copy blocks of ours into blocks of a linked cluster's blocks cache (api §3.7). No key is released.

        Only in remote mode, at both ends.

        Parameters
        ----------
        dst_cache_key : BlocksCacheKey
            The remote blocks cache.
        src_cache : Cache
            Ours, a blocks cache with blocks of as many bytes.
        src_blocks, dst_blocks : tuple or list of int
            Block to block, uint64, equally many, at least one.
        src_layer_range, dst_layer_range : range, optional
            Layers of our and of the remote cache, of equal length, step 1.
        tensor_num_per_layer : int, default 2
            Tensors that make a layer.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None.
        LLMException
            As for :meth:`push_cache`.

        Examples
        --------
        >>> cache = prompt.allocate_blocks_cache(CacheDesc(2, (8, 64), DataType.DT_FLOAT16))
        >>> prompt.push_blocks(BlocksCacheKey(2, model_id=1), cache, [0, 1, 2], [4, 5, 7])
        """
        cdef Transfer transfer
        cdef BlockLists lists
        self.memory.require_open("push_blocks")
        if not self.remote_accessible:
            raise invalid("push_blocks is only supported while enable_remote_cache_accessible is True")
        require_present("dst_cache_key", dst_cache_key, BlocksCacheKey)
        require_present("src_cache", src_cache, Cache)
        sources = checked_blocks("src_blocks", src_blocks)
        targets = checked_blocks("dst_blocks", dst_blocks)
        if not (<Cache>src_cache).is_blocks_cache:
            raise invalid("src_cache: cache should be blocks cache")
        if not targets:
            raise invalid("dst_blocks can not be empty")
        if not sources:
            raise invalid("src_blocks can not be empty")
        if len(sources) != len(targets):
            raise invalid(f"src_blocks and dst_blocks should be equally many, got {len(sources)} and {len(targets)}")
        cdef uint64_t per_layer = checked_per_layer(tensor_num_per_layer)
        memset(&transfer, 0, sizeof(transfer))
        transfer.form = BLOCKS_TO_BLOCKS
        take_push_ranges(&transfer, src_layer_range, dst_layer_range, per_layer)
        lists = new_block_lists(sources, targets)
        cdef uint64_t cluster_id = self.name_remote(&transfer, dst_cache_key)
        self.transfer_tensors(
            "push_blocks", &transfer, cluster_id, dst_cache_key, <Cache>src_cache, 0, -1, per_layer, lists
        )

    # ------------------------------------------------------------ one layer of an asynchronous transfer

    def pin_source(self, cache):
        """Keep a cache of ours for an asynchronous transfer; LLMException (``LLM_KV_CACHE_NOT_EXIST``) if it has gone."""
        cdef SourcePin pin = SourcePin.__new__(SourcePin)
        pin.cache = <Cache?>cache
        pin.pinned = self.existing("transfer_cache_async", pin.cache)
        return pin

    def send_to_cache(
        self, source, key, src_first, dst_first, src_batch_index=0, src_blocks=(), dst_blocks=(), block_memory_size=0
    ):
        """Send one layer, two tensors, into the cache that a key names in its cluster (api §3.7). Drops no key.

        Parameters
        ----------
        source : Cache or SourcePin
            Ours. A pinned one may have been deallocated meanwhile.
        key : BlocksCacheKey or CacheKeyByIdAndIndex
        src_first, dst_first : int
            The first of the two tensors in our and in the remote cache.
        src_batch_index : int
        src_blocks, dst_blocks : sequence of int
            Empty: none are given.
        block_memory_size : int
            Bytes of a remote block; 0: not given.

        Raises
        ------
        LLMException
            With the code of the failure.
        """
        cdef Transfer transfer
        cdef BlockLists lists = new_block_lists(tuple(src_blocks), tuple(dst_blocks))
        memset(&transfer, 0, sizeof(transfer))
        transfer.remote_first = dst_first
        transfer.remote_end = transfer.remote_first + TENSORS_OF_A_LAYER
        cdef uint64_t cluster_id = self.name_remote(&transfer, key)
        self.send(&transfer, cluster_id, key, source, src_first, src_batch_index, lists, block_memory_size)

    def send_to_addresses(
        self, source, cluster_id, src_first, addresses, src_batch_index=0, src_blocks=(), dst_blocks=(), block_memory_size=0
    ):
        """Send one layer to where two addresses of a linked cluster point (api §3.7, D46); else as :meth:`send_to_cache`."""
        cdef Transfer transfer
        cdef BlockLists lists = new_block_lists(tuple(src_blocks), tuple(dst_blocks))
        memset(&transfer, 0, sizeof(transfer))
        transfer.addressing = BY_ADDRESS
        transfer.addresses[0], transfer.addresses[1] = addresses
        self.send(&transfer, cluster_id, None, source, src_first, src_batch_index, lists, block_memory_size)

    cdef int send(
        self,
        Transfer *transfer,
        uint64_t cluster_id,
        object key,
        object source,
        uint64_t src_first,
        uint64_t batch_index,
        BlockLists lists,
        uint64_t block_memory_size,
    ) except -1:
        cdef Cache cache
        cdef PinnedCache pinned_source = None
        if type(source) is SourcePin:
            cache = (<SourcePin>source).cache
            with critical_section(source):
                pinned_source = (<SourcePin>source).pinned
        else:
            cache = <Cache?>source
        transfer.keeps_keys = True
        transfer.local_first = src_first
        transfer.local_end = src_first + TENSORS_OF_A_LAYER
        transfer.block_bytes = block_memory_size
        if cache.is_blocks_cache:
            transfer.form = BLOCKS_TO_BLOCKS if lists.count else ALL_BLOCKS
        else:
            transfer.form = SLOT_TO_BLOCKS if lists.count else SLOT_TO_SLOT
        transfer.push = True
        return self.transfer_tensors(
            "transfer_cache_async",
            transfer,
            cluster_id,
            key,
            cache,
            batch_index,
            -1,
            DEFAULT_TENSORS_PER_LAYER,
            lists,
            pinned_source,
        )

    # ------------------------------------------------------------ any transfer

    cdef object linked(self, uint64_t cluster_id):
        """A linked cluster, as transfers see it, or None."""
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self)
        try:
            return self.peers.get(cluster_id)
        finally:
            leave_critical_section(&section)

    cdef uint64_t name_remote(self, Transfer *transfer, object key) except *:
        """Enter which cache of the peer's a key names; the peer's cluster id."""
        if type(key) is CacheKey:
            transfer.kind = (<CacheKey>key).kind()
            transfer.id = (<CacheKey>key).identity()
            transfer.model_id = (<CacheKey>key).model_id
            return (<CacheKey>key).cluster_id
        if type(key) is BlocksCacheKey:
            transfer.kind = KEY_BLOCKS
            transfer.model_id = (<BlocksCacheKey>key).model_id
            return (<BlocksCacheKey>key).cluster_id
        transfer.kind = KEY_CACHE_ID
        transfer.id = <uint64_t>(<CacheKeyByIdAndIndex>key).cache_id
        transfer.batch_index = (<CacheKeyByIdAndIndex>key).batch_index
        return (<CacheKeyByIdAndIndex>key).cluster_id

    cdef int transfer_tensors(
        self,
        str tag,
        Transfer *transfer,
        uint64_t cluster_id,
        object key,
        Cache cache,
        uint64_t batch_index,
        int64_t size,
        uint64_t per_layer,
        BlockLists lists,
        PinnedCache local=None,
    ) except -1:
        """The checks of api §3.6 or §3.7 in order, and the transfer, between a cache of ours and one of a peer's.

        `local` is ours where it was pinned before.
        """
        cdef Piece piece
        cdef Slot *slot
        cdef Peer peer, following
        cdef bint small
        cdef uint64_t bytes_of_tensor
        cdef object refusal
        # Checking arguments may have run code that let another thread finalize.
        self.memory.require_open(tag)
        if cluster_id == self.cluster_id and not transfer.push:  # a push finds no link to it (api §3.7)
            raise invalid(f"{key} names our own cluster {cluster_id}; transfers go to linked clusters")
        if local is None:
            local = self.existing(tag, cache)
        slot = local.slot
        transfer.remote_mode = self.remote_accessible
        transfer.bytes = slot.row_bytes if size < 0 else <uint64_t>size
        transfer.pieces = &piece
        transfer.team = &self.memory.team
        if lists is not None:
            transfer.local_blocks = lists.ours
            transfer.remote_blocks = lists.theirs
            transfer.block_count = lists.count
            transfer.pieces = lists.pieces
        refusal = local_refusal(transfer, slot, batch_index, per_layer)
        if transfer.push and refusal is None:
            refusal = blocks_refusal(transfer, slot)
        if refusal is not None and not transfer.push:
            raise refusal
        transfer.locally_refused = refusal is not None
        peer = self.linked(cluster_id)
        if peer is None:
            raise failure(tag, LLMStatusCode.LLM_NOT_YET_LINK, f"cluster {cluster_id} is not linked")
        if not transfer.push:
            refusal = blocks_refusal(transfer, slot)
            if refusal is not None:
                raise refusal
        if transfer.addressing == BY_ADDRESS:
            if refusal is not None:
                raise refusal
        elif transfer.kind == KEY_CACHE_ID and <int64_t>transfer.id < 1:
            raise failure(tag, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"{key} names no cache, ids begin at 1")
        transfer.local_arena = local.arena.base
        transfer.local_slot = slot
        transfer.local_pool = local.pool.base if local.pool is not None else NULL
        transfer.local_batch_index = batch_index
        bytes_of_tensor = transfer.bytes
        if transfer.form != SLOT_TO_SLOT:
            bytes_of_tensor = slot.row_bytes * (transfer.block_count or slot.row_count)
        small = bytes_of_tensor * slot.num_tensors <= SMALL_COPY
        while peer.carry_out(transfer, tag, self.memory.timeout_ns, small):
            # Perhaps something else links the two, of which the links have told us before they took this down (D59).
            following = self.linked(cluster_id)
            if following is None or following is peer:
                raise failure(tag, LLMStatusCode.LLM_NOT_YET_LINK, "the link has been taken down")
            peer = following
        if refusal is not None:
            raise refusal
        if self.lease_keeper is not None and not transfer.push:
            self.lease_keeper.pulled(key)
        return 0


# ---------------------------------------------------------------- checks of arguments


cdef tuple taken_keywords(str method, dict keywords):
    """The layer ranges and tensor_num_per_layer of a pull; an unknown keyword is a TypeError (api D32)."""
    src_layer_range = keywords.pop("src_layer_range", None)
    dst_layer_range = keywords.pop("dst_layer_range", None)
    tensor_num_per_layer = keywords.pop("tensor_num_per_layer", DEFAULT_TENSORS_PER_LAYER)
    if keywords:
        raise TypeError(f"{method}() got an unexpected keyword argument '{next(iter(keywords))}'")
    return src_layer_range, dst_layer_range, tensor_num_per_layer


cdef uint64_t checked_per_layer(object tensor_num_per_layer) except 0:
    cdef uint64_t per_layer = checked_uint32("tensor_num_per_layer", tensor_num_per_layer)
    if per_layer == 0:
        raise invalid("tensor_num_per_layer is 0, it should be > 0")
    return per_layer


cdef int take_pull_ranges(Transfer *transfer, object src_layer_range, object dst_layer_range, uint64_t per_layer) except -1:
    transfer.all_remote = not take_pull_range(
        "src_layer_range", src_layer_range, per_layer, &transfer.remote_first, &transfer.remote_end
    )
    transfer.all_local = not take_pull_range(
        "dst_layer_range", dst_layer_range, per_layer, &transfer.local_first, &transfer.local_end
    )
    return 0


cdef int take_push_ranges(Transfer *transfer, object src_layer_range, object dst_layer_range, uint64_t per_layer) except -1:
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
    return 0


def require_one_id(cache_key):
    """As pulls do it with a key that they are given."""
    require_present("cache_key", cache_key, CacheKey)
    check_one_id(cache_key)


cdef int check_one_id(CacheKey key) except -1:
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
        raise invalid(f"check {name} range.start < range.stop failed, {name} is {layers}")
    # Beyond every cache already; the exact number does not matter any more.
    first[0] = min(layers.start, MOST_LAYERS) * per_layer
    end[0] = min(layers.stop, MOST_LAYERS + 1) * per_layer
    return True


# ---------------------------------------------------------------- our own side


cdef object local_refusal(Transfer *transfer, const Slot *slot, uint64_t batch_index, uint64_t per_layer):
    """Why our own cache does not allow the transfer (api §3.5, §3.6), as an exception; None if it does."""
    cdef uint64_t num_tensors = slot.num_tensors
    if batch_index >= batch_size_of(slot):
        return invalid(f"batch_index is {batch_index}, it must be in [0, {batch_size_of(slot)})")
    if transfer.form == SLOT_TO_SLOT and transfer.bytes > slot.row_bytes:
        return invalid(f"size is {transfer.bytes}, a batch slot of the cache has {slot.row_bytes} bytes")
    if per_layer != DEFAULT_TENSORS_PER_LAYER and per_layer > num_tensors:
        return invalid(f"tensor_num_per_layer is {per_layer}, the cache has {num_tensors} tensors")
    if transfer.all_local and transfer.all_remote:
        return None
    if transfer.addressing != BY_ADDRESS and num_tensors % per_layer:
        return invalid(f"tensor_num_per_layer is {per_layer}, it must divide the cache's {num_tensors} tensors")
    if not transfer.all_local and transfer.local_end > num_tensors:
        return invalid(f"the layer range selects tensors up to {transfer.local_end}, the cache has {num_tensors}")
    if transfer.all_remote or transfer.addressing == BY_ADDRESS:
        return None
    if transfer.remote_end - transfer.remote_first != (
        num_tensors if transfer.all_local else transfer.local_end - transfer.local_first
    ):
        return invalid("src_layer_range and dst_layer_range should select equally many layers")
    return None


cdef object blocks_refusal(Transfer *transfer, const Slot *slot):
    """Why the block lists do not fit our own cache (api §3.5, §3.6), as an exception; None if they do."""
    cdef bint lists_ours = transfer.form == BLOCKS_TO_BLOCKS or (transfer.form == SLOT_TO_BLOCKS and not transfer.push)
    cdef bint lists_theirs = transfer.form == BLOCKS_TO_BLOCKS or (transfer.form == SLOT_TO_BLOCKS and transfer.push)
    if transfer.form == SLOT_TO_SLOT or transfer.form == ALL_BLOCKS:
        return None
    if (
        transfer.block_count == 0
        or lists_ours != (transfer.local_blocks != NULL)
        or lists_theirs != (transfer.remote_blocks != NULL)
    ):
        return invalid("blocks should be listed for each blocks cache and for no other, equally many")
    if transfer.form == BLOCKS_TO_BLOCKS and transfer.block_bytes and transfer.block_bytes != slot.row_bytes:
        return invalid(f"dst_block_memory_size is {transfer.block_bytes}, a block of the cache has {slot.row_bytes} bytes")
    if lists_ours and largest(transfer.local_blocks, transfer.block_count) >= slot.row_count:
        return invalid(
            f"block {largest(transfer.local_blocks, transfer.block_count)} of our cache must be in [0, {slot.row_count})"
        )
    if transfer.addressing == BY_ADDRESS:
        if transfer.form == BLOCKS_TO_BLOCKS:
            transfer.block_bytes = slot.row_bytes
        if transfer.block_bytes == 0:
            return invalid("dst_block_memory_size must be set")
        if transfer.form == SLOT_TO_BLOCKS and transfer.block_count - 1 > (slot.row_bytes - 1) // transfer.block_bytes:
            return invalid(f"{transfer.block_count} blocks are listed, the batch slot fills fewer")
    return None
