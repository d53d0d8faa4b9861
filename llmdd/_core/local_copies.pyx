# cython: language_level=3
"""Copies within one node (see ``local_copies.pxd``)."""

from cpython.object cimport PyObject
from cython cimport final, freelist, no_gc_clear
from libc.stdint cimport int64_t, uint64_t

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.block_lists cimport BlockLists, new_block_lists
from llmdd._core.cache cimport Cache, is_dropped
from llmdd._core.cache_desc cimport CacheDesc
from llmdd._core.copying cimport (
    COPIED,
    COPY_BAD_ADDRESS,
    COPY_OUT_OF_TIME,
    OWN,
    Bounds,
    CopyResult,
    Piece,
    Place,
    copy_pieces,
    pieces_are_mapped,
)
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.layout cimport Slot, slot_at
from llmdd._core.lifecycle cimport pin_local, tensor_place, unpin_local
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.status import LLMStatusCode, failure, invalid
from llmdd._core.transfer cimport place_here
from llmdd._core.validation cimport (
    checked_int64,
    checked_uint32,
    checked_uint64,
    require_present,
    wrong_type,
)

cdef uint64_t NOT_BROKEN = 0
cdef object _DICT = dict


@final
@freelist(32)
@no_gc_clear
cdef class PinnedCache:
    """A cache that stays while this object lives."""

    def __dealloc__(self):
        # Whatever thread this runs in: unpinning takes no lock.
        if self.arena is not None:
            unpin_local(self.arena.base, self.slot_number)

    cdef Place tensor(self, uint64_t number):
        """Where a tensor begins."""
        cdef Place place
        if self.arena is not None:
            return place_here(self.arena.base, self.slot, self.pool.base if self.pool is not None else NULL, number)
        place.reach = OWN
        place.base = <char *><uint64_t>self.addresses[number]
        place.pid = 0
        place.pidfd = -1
        return place


cdef PinnedCache pinned(NodeMemory memory, Cache cache):
    """A cache of `memory`, pinned; None if it has gone, or is none of that memory."""
    cdef PinnedCache found
    cdef CriticalSection section
    if cache.memory is not memory:
        return None
    found = PinnedCache.__new__(PinnedCache)
    found.slot_number = cache.slot
    # Nobody closes the memory between the look whether it is there and our own references to what is pinned.
    enter_critical_section(&section, <PyObject *>memory)
    if memory.base != NULL and pin_local(memory.base, cache.slot, cache.generation) == 0:
        found.arena = memory.arena
        found.slot = slot_at(memory.base, cache.slot)
        found.pool = memory.pool_mapping(found.slot.placement)
    leave_critical_section(&section)
    if found.arena is None:
        return None
    found.num_tensors = found.slot.num_tensors
    found.row_count = found.slot.row_count
    found.row_bytes = found.slot.row_bytes
    return found


cdef PinnedCache pinned_by_address(Cache cache, str name):
    """A blocks cache of any instance of this process, or of create_cpu_cache (api §3.8: by address)."""
    cdef PinnedCache found
    cdef CacheDesc desc = cache.cache_desc
    if cache.memory is not None:
        found = None if is_dropped(cache) else pinned(cache.memory, cache)
        if found is None:
            raise invalid(f"{name} has no memory any more, cache {cache.cache_id} was deallocated")
        return found
    found = PinnedCache.__new__(PinnedCache)
    found.addresses = tuple(cache.own_addresses())
    if not found.addresses:
        raise invalid(f"{name} has no memory any more, it was deallocated")
    for address in found.addresses:
        if not 0 < address <= 0xFFFFFFFFFFFFFFFF:
            raise invalid(f"{name} has the address {address}, where no memory is")
    found.num_tensors = desc.num_tensors
    found.row_count = max(0, cache.shape[0])
    found.row_bytes = block_bytes(desc, cache.shape)
    return found


cdef uint64_t block_bytes(CacheDesc desc, tuple shape) except? 0:
    """Bytes of one block of a create_cpu_cache, whose shape nobody has checked."""
    size = desc.element_bytes
    for dimension in shape:
        if dimension <= 0:
            raise invalid(f"shape is {shape}, every dimension must be greater than 0")
        size *= dimension
    if size > 0x7FFFFFFFFFFFFFFF:
        raise invalid(f"shape is {shape}, the size of a tensor must fit in int64")
    return size // shape[0]


cdef class LocalCopies(ExportedCaches):
    """The copies that need no link."""

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
        cdef PinnedCache source = self.existing("copy_cache", src)
        cdef PinnedCache target = self.existing("copy_cache", dst)
        self.copy_slot(target, source, dst_index, src_index, begin, wanted)

    def copy_blocks(self, cache, copy_block_info):
        """Copy blocks within a blocks cache (api §3.8).

        Parameters
        ----------
        cache : Cache
            A blocks cache.
        copy_block_info : dict of int to list of int
            For each block to be copied the blocks that become like it, uint64. Applied in the dict's order; a block that
            is a target and a later source is as it was left by then.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a negative index, None.
        LLMException
            ``LLM_PARAM_INVALID``: no blocks cache, or an index beyond its blocks; nothing was copied then.
            ``LLM_KV_CACHE_NOT_EXIST``: the cache has gone. ``LLM_TIMEOUT``.

        Examples
        --------
        >>> cache = manager.allocate_blocks_cache(CacheDesc(1, (4, 16), DataType.DT_FLOAT))
        >>> cache.tensors[0][0] = 2.0
        >>> manager.copy_blocks(cache, {0: [1, 3]})
        >>> float(cache.tensors[0][3, 15])
        2.0
        """
        cdef BlockLists lists
        cdef PinnedCache blocks
        cdef uint64_t i
        cdef uint64_t made = 0
        self.memory.require_open("copy_blocks")
        require_present("cache", cache, Cache)
        require_present("copy_block_info", copy_block_info, _DICT)
        sources, targets = [], []
        for source, copies in list(copy_block_info.items()):
            if not isinstance(source, int):
                raise TypeError(f"copy_block_info dict key only support [int], but got {type(source)}")
            if not isinstance(copies, list):
                raise TypeError(f"copy_block_info dict value only support [list], but got {type(copies)}")
            checked_uint64("copy_block_info", source)
            for target in list(copies):
                if not isinstance(target, int):
                    raise TypeError(f"copy_block_info dict value inner type only support [int], but got {type(target)}")
                checked_uint64("copy_block_info", target)
                sources.append(source)
                targets.append(target)
        if not (<Cache>cache).is_blocks_cache:
            raise invalid("cache should be blocks cache")
        blocks = self.existing("copy_blocks", cache)
        for index in [*copy_block_info, *targets]:
            if index >= blocks.row_count:
                raise invalid(f"block {index} must be in [0, {blocks.row_count})")
        lists = new_block_lists(tuple(sources), tuple(targets))
        # Not merged into runs: a run may overlap itself.
        for i in range(lists.count):
            if lists.ours[i] != lists.theirs[i]:
                lists.pieces[made].source = lists.ours[i] * blocks.row_bytes
                lists.pieces[made].target = lists.theirs[i] * blocks.row_bytes
                lists.pieces[made].size = blocks.row_bytes
                made += 1
        self.copy_all_tensors("copy_blocks", blocks, blocks, lists.pieces, made)

    def swap_blocks(self, src_cache, dst_cache, src_to_dst):
        """Copy blocks from a HOST cache to a DEVICE cache, or the reverse (api §3.8). One way, despite the name.

        Parameters
        ----------
        src_cache, dst_cache : Cache
            Blocks caches with equal block bytes and numbers of tensors; one of them usually of ``Cache.create_cpu_cache``.
        src_to_dst : dict of int to int
            Block to block.

        Raises
        ------
        TypeError, AttributeError
            An argument of a wrong type, None.
        LLMException
            ``LLM_PARAM_INVALID``: caches that do not fit each other, an index beyond them, memory that is gone.
            ``LLM_TIMEOUT``.

        Examples
        --------
        >>> desc = CacheDesc(1, (4, 16), DataType.DT_FLOAT)
        >>> cache = manager.allocate_blocks_cache(desc)
        >>> cache.tensors[0][3] = 2.0
        >>> array = np.zeros((4, 16), np.float32)
        >>> on_host = Cache.create_cpu_cache(CacheDesc(1, (4, 16), DataType.DT_FLOAT, Placement.HOST), [array.ctypes.data])
        >>> manager.swap_blocks(cache, on_host, {3: 0})
        >>> float(array[0, 15])
        2.0
        """
        cdef BlockLists lists
        cdef PinnedCache source, target
        cdef uint64_t i
        cdef uint64_t made = 0
        self.memory.require_open("swap_blocks")
        require_present("src_cache", src_cache, Cache)
        require_present("dst_cache", dst_cache, Cache)
        if not (<Cache>src_cache).is_blocks_cache or not (<Cache>dst_cache).is_blocks_cache:
            raise invalid("src_cache and dst_cache should be blocks cache")
        require_present("src_to_dst", src_to_dst, _DICT)
        pairs = list(src_to_dst.items())
        for from_block, to_block in pairs:
            if not isinstance(from_block, int):
                raise TypeError(f"src_to_dst dict key only support [int], but got {type(from_block)}")
            if not isinstance(to_block, int):
                raise TypeError(f"src_to_dst dict value only support [int], but got {type(to_block)}")
        source = pinned_by_address(src_cache, "src_cache")
        target = pinned_by_address(dst_cache, "dst_cache")
        if source.row_bytes != target.row_bytes:
            raise invalid(f"block bytes must be equal, src_cache has {source.row_bytes} and dst_cache {target.row_bytes}")
        if source.num_tensors != target.num_tensors:
            raise invalid(f"num_tensors must be equal, src_cache has {source.num_tensors} and dst_cache {target.num_tensors}")
        for from_block, to_block in pairs:
            if not 0 <= from_block < source.row_count:
                raise invalid(f"block {from_block} of src_cache must be in [0, {source.row_count})")
            if not 0 <= to_block < target.row_count:
                raise invalid(f"block {to_block} of dst_cache must be in [0, {target.row_count})")
        if (<Cache>src_cache).cache_desc.placement is (<Cache>dst_cache).cache_desc.placement:
            raise invalid(
                f"swap from {(<Cache>src_cache).cache_desc.placement} to {(<Cache>dst_cache).cache_desc.placement} is not "
                "support, one side must be HOST and the other DEVICE"
            )
        lists = new_block_lists(tuple([pair[0] for pair in pairs]), tuple([pair[1] for pair in pairs]))
        # Not merged into runs: the two may share memory.
        for i in range(lists.count):
            lists.pieces[made].source = lists.ours[i] * source.row_bytes
            lists.pieces[made].target = lists.theirs[i] * target.row_bytes
            lists.pieces[made].size = source.row_bytes
            made += 1
        self.copy_all_tensors("swap_blocks", target, source, lists.pieces, made)

    cdef PinnedCache existing(self, str tag, Cache cache):
        """One of our caches, pinned."""
        cdef PinnedCache found
        self.memory.require_open(tag)
        found = pinned(self.memory, cache)
        if found is None:
            self.memory.require_open(tag)
            raise failure(tag, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, f"cache {cache.cache_id} does not exist")
        return found

    cdef int copy_slot(
        self,
        PinnedCache target,
        PinnedCache source,
        uint64_t dst_index,
        uint64_t src_index,
        uint64_t offset,
        int64_t size,
    ) except -1:
        cdef uint64_t wanted
        cdef Piece piece
        if source.num_tensors != target.num_tensors:
            raise invalid(f"dst has {target.num_tensors} tensors and src {source.num_tensors}, they must be equal")
        if src_index >= source.row_count or dst_index >= target.row_count:
            raise invalid(
                f"batch indices {src_index} and {dst_index} must be in [0, {source.row_count}) for src and "
                f"[0, {target.row_count}) for dst"
            )
        if offset > 0 and (offset >= source.row_bytes or offset >= target.row_bytes):
            raise invalid(f"offset is {offset}, the batch slots have {source.row_bytes} and {target.row_bytes} bytes")
        wanted = source.row_bytes - offset if size < 0 else <uint64_t>size
        if wanted > source.row_bytes - offset or offset > target.row_bytes or wanted > target.row_bytes - offset:
            raise invalid(
                f"{wanted} bytes from offset {offset} do not fit batch slots of {source.row_bytes} and "
                f"{target.row_bytes} bytes"
            )
        if target.slot == source.slot and src_index == dst_index:
            return 0
        piece.source = src_index * source.row_bytes + offset
        piece.target = dst_index * target.row_bytes + offset
        piece.size = wanted
        return self.copy_all_tensors("copy_cache", target, source, &piece, 1)

    cdef int copy_all_tensors(
        self, str tag, PinnedCache target, PinnedCache source, const Piece *pieces, uint64_t count
    ) except -1:
        cdef Bounds bounds
        cdef Place to, origin
        cdef uint64_t number
        cdef CopyResult result
        if count == 0:
            return 0
        bounds.deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        bounds.broken = &NOT_BROKEN
        for number in range(source.num_tensors):
            to, origin = target.tensor(number), source.tensor(number)
            if not pieces_are_mapped(&to, pieces, count, True) or not pieces_are_mapped(&origin, pieces, count, False):
                raise failure(tag, LLMStatusCode.LLM_PARAM_INVALID, "memory of the caller's own is not mapped any more")
        for number in range(source.num_tensors):
            to, origin = target.tensor(number), source.tensor(number)
            with nogil:
                result = copy_pieces(&to, &origin, pieces, count, &bounds)
            if result == COPY_OUT_OF_TIME:
                raise failure(tag, LLMStatusCode.LLM_TIMEOUT, "the copy did not end within sync_kv_timeout")
            if result == COPY_BAD_ADDRESS:
                raise failure(tag, LLMStatusCode.LLM_PARAM_INVALID, "memory of the caller's own is not mapped any more")
            if result != COPIED:
                raise failure(tag, LLMStatusCode.LLM_FAILED, "the kernel forbids to copy memory of the caller's own")
        return 0
