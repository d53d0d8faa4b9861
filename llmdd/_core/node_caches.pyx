# cython: language_level=3
"""The caches of one node (see ``node_caches.pxd``)."""

import logging
import time

from cpython.object cimport PyObject
from cython cimport critical_section, final
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from typing import NamedTuple

from llmdd._core.allocation_queue cimport AllocationQueue
from llmdd._core.atomic cimport (
    atomic_load_relaxed,
    atomic_store_relaxed,
    monotonic_nanoseconds,
)
from llmdd._core.cache cimport Cache, drop, new_cache
from llmdd._core.cache_desc cimport CacheDesc, checked_tensor_bytes
from llmdd._core.cache_keys cimport BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, key_by_id_and_index
from llmdd._core.copying cimport is_mapped
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.enumerations import Placement
from llmdd._core.failed_transfers import FailedTransfers
from llmdd._core.key_index cimport index_find, index_is_unchanged, index_probe, index_version, key_tag
from llmdd._core.layout cimport (
    KEY_BLOCKS,
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_PREFIX,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    Slot,
    header_of,
    release_event_of,
    slot_at,
)
from llmdd._core.leases cimport lease_clock_ms
from llmdd._core.lifecycle cimport (
    ACCEPTED,
    KEY_ALREADY_BOUND,
    NO_POOL_MEMORY,
    Allocation,
    Refusal,
    allocate,
    bound_cache_id,
    check_arena,
    drop_id,
    expire_leases,
    generation_of,
    reap,
    remove_key,
    settle,
    withdraw,
)
from llmdd._core.node_memory cimport NodeMemory, is_closed
from llmdd._core.segments cimport Mapping
from llmdd._core.references cimport anything_released
from llmdd._core.release_event cimport announce_release
from llmdd._core.status import LLMStatusCode, failure, invalid
from llmdd._core.validation cimport (
    checked_int64,
    checked_lease_ms,
    checked_uint64,
    require_present,
    require_type,
    wrong_type,
)

cdef enum:
    KEYS_ON_STACK = 64
    REAP_LIMIT = 4096
    SWEPT_AT_ONCE = 4096           # slots, before others get at the caches
    NAMED_IN_LOG = 8

cdef object _DEVICE = Placement.DEVICE
cdef object _BOOL = bool
cdef object _LIST = list

# Between two looks whether a transfer in progress has ended: as peers end theirs without a word to us.
cdef double _LOOK_AGAIN_S = 0.0005


_logger = logging.getLogger("llmdd")


class PoolUsage(NamedTuple):
    """How full a pool is, in bytes; whole pages only."""

    total_bytes: int
    free_bytes: int
    page_bytes: int


class KeyCounts(NamedTuple):
    """How many key references have been dropped, by how they went. Superseded ones and placeholders held nothing.

    Attributes
    ----------
    transferred : int
        By a pull or a push of the slot's last tensor.
    removed : int
        By ``remove_cache_key`` or ``remove_cache_keys``.
    expired : int
        Because their lease was over.
    withdrawn : int
        With their cache: ``deallocate_blocks_cache``, ``unregister_cache``.
    """

    transferred: int
    removed: int
    expired: int
    withdrawn: int


cdef class NodeCaches:
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
    cache_key_lease : int
        The lease of keys that `allocate_cache` is given none for, in milliseconds; 0: none.
    wait_for_memory : bool
        Whether calls that take memory of a pool wait for it, up to ``sync_kv_timeout``.
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
        cache_key_lease=0,
        wait_for_memory=False,
    ):
        self.cluster_id = cluster_id
        self.cache_key_lease = cache_key_lease
        self.remote_accessible = remote_accessible
        self.waits_for_memory = wait_for_memory
        self.host_queue = AllocationQueue(0)
        self.device_queue = AllocationQueue(1)
        self.peers = {}
        self.failed_transfers = FailedTransfers()
        self.memory = NodeMemory(
            cluster_id=cluster_id,
            pools=(host_pool, device_pool),
            remote_accessible=remote_accessible,
            timeout_ms=timeout_ms,
            slot_capacity=slot_capacity,
            key_capacity=key_capacity,
            shared=shared,
        )

    # ------------------------------------------------------------ caches

    def allocate_cache(self, cache_desc, cache_keys=(), *, lease=None):
        """Allocate a cache and bind its batch slots to keys (seed §1, §4).

        The memory goes back when the cache was deallocated *and* every key was pulled, pushed into or removed, or its lease
        was over.

        With ``LLMConfig.wait_for_memory`` on, a cache for which its pool has no room waits until enough has gone back,
        for ``sync_kv_timeout`` from the begin of the call. Those that wait for one pool are served in their order: until
        the first has its memory, nobody who comes later gets any, however little he wants. Nothing else waits with them,
        and what no release could mend is refused at once. A thread inside :meth:`paused` does not wait.

        Parameters
        ----------
        cache_desc : CacheDesc
        cache_keys : tuple or list of CacheKey
            Key *i* names batch slot *i*. Placeholders (``req_id`` and ``prefix_id`` both ``2**64 - 1``) leave their slot
            unkeyed, so do slots at the end for which no key is given. Of equal keys the last takes effect (seed §9-§11).
        lease : int, optional
            How long the keys are bound, in milliseconds, unless :meth:`renew_leases` puts the end off: from 1 to 2**31 - 1;
            0 for ever. By default ``cache_key_lease`` of this instance, which is 0 unless it was set. A key whose lease is
            over is dropped as by :meth:`remove_cache_key`, within some hundredths of a second.

        Returns
        -------
        Cache
            Its contents are unspecified.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a lease out of its range, or None as the descriptor.
        LLMException
            ``LLM_PARAM_INVALID``: no pool for that placement, a shape that cannot be allocated, more keys than batch
            slots, a key that is bound already, or is when the call's turn comes. ``LLM_OUT_OF_MEMORY``: no run of free
            pages is long enough, or slots, keys or their records are used up; with ``wait_for_memory``, even when nothing
            else is there. ``LLM_TIMEOUT``: with ``wait_for_memory``, there was no room for ``sync_kv_timeout``; or other
            calls held the caches for that long. ``LLM_ENGINE_FINALIZED``: the instance was finalized meanwhile. Nothing
            has changed then.

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
        cdef Allocation request
        request.deadline = self.memory_deadline()
        request.blocks = False
        request.accessible = True
        request.addresses = NULL
        keys = checked_keys(cache_keys)
        cdef uint64_t lease_ms = self.cache_key_lease if lease is None else checked_lease_ms(lease)
        return self.make("allocate_cache", cache_desc, &request, keys, None, lease_ms)

    def allocate_blocks_cache(self, cache_desc, blocks_cache_key=None):
        """Allocate a cache of blocks, for paged attention (api §3.1, §3.3).

        Every tensor has ``shape[0]`` blocks. The key of a model's blocks is not dropped by transfers, and is no reason to
        keep the memory: both go with :meth:`deallocate_blocks_cache`.

        Parameters
        ----------
        cache_desc : CacheDesc
            ``shape[0]`` is the number of blocks.
        blocks_cache_key : BlocksCacheKey, optional
            What peers find the cache by: the key's ``model_id``.

        Returns
        -------
        Cache
            Its contents are unspecified.

        Raises
        ------
        TypeError, AttributeError
            An argument of a wrong type, or None as the descriptor.
        LLMException
            As for :meth:`allocate_cache`.

        Examples
        --------
        >>> cache = manager.allocate_blocks_cache(CacheDesc(2, (8, 64), DataType.DT_FLOAT16), BlocksCacheKey(1, model_id=3))
        >>> cache.is_blocks_cache
        True
        >>> manager.deallocate_blocks_cache(cache)
        """
        self.memory.require_open("allocate_blocks_cache")
        require_present("cache_desc", cache_desc, CacheDesc)
        cdef Allocation request
        request.deadline = self.memory_deadline()
        request.blocks = True
        request.accessible = True
        request.addresses = NULL
        return self.make("allocate_blocks_cache", cache_desc, &request, checked_blocks_key(blocks_cache_key), None)

    def register_cache(self, cache_desc, addrs, cache_keys=(), remote_accessible=None):
        """Make a cache of memory that is the caller's own, and bind its batch slots to keys (api §2.5, §3.3, §3.11).

        Nothing is copied: transfers go from and to that memory. It must stay as it is until :meth:`unregister_cache`. Where
        it does not, transfers are refused with ``LLM_PARAM_INVALID``; nothing is touched that is not mapped.

        Parameters
        ----------
        cache_desc : CacheDesc
            Needs no memory pool.
        addrs : list of int
            Where each tensor begins, uint64: ``array.ctypes.data`` of a NumPy array, ``tensor.data_ptr()`` of a torch tensor.
        cache_keys : tuple or list of CacheKey
            As for :meth:`allocate_cache`. Transfers leave them bound; :meth:`remove_cache_key` and unregistering do not.
        remote_accessible : bool, optional
            Whether peers in remote mode, and asynchronous transfers to its addresses, may use it. None: True for DEVICE,
            False for HOST, and False while a communicator of ``LLMDataDist.link`` lives.

        Returns
        -------
        Cache

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, an address out of range, None.
        LLMException
            ``LLM_PARAM_INVALID``: not as many addresses as tensors, an address where no memory is mapped, a shape that cannot
            be, more keys than batch slots, a key that is bound already, True while a communicator lives.

        Examples
        --------
        >>> array = np.zeros((2, 64), np.float32)
        >>> cache = manager.register_cache(CacheDesc(1, (2, 64), DataType.DT_FLOAT), [array.ctypes.data], [CacheKey(1, 5)])
        >>> manager.unregister_cache(cache.cache_id)         # now the array may go
        """
        cdef Allocation request
        self.memory.require_open("register_cache")
        require_present("cache_desc", cache_desc, CacheDesc)
        addresses = checked_address_types(addrs)
        keys = checked_keys(cache_keys)
        request.deadline = 0
        request.blocks = False
        request.accessible = self.may_be_accessible(cache_desc, remote_accessible)
        return self.make("register_cache", cache_desc, &request, keys, addresses)

    def register_blocks_cache(self, cache_desc, addrs, blocks_cache_key=None, remote_accessible=None):
        """Make a blocks cache of memory that is the caller's own (api §2.5, §3.11).

        Parameters
        ----------
        cache_desc : CacheDesc
            ``shape[0]`` is the number of blocks. Needs no memory pool.
        addrs : list of int
            Where each tensor begins, uint64.
        blocks_cache_key : BlocksCacheKey, optional
            What peers find the cache by.
        remote_accessible : bool, optional
            As for :meth:`register_cache`.

        Returns
        -------
        Cache

        Raises
        ------
        TypeError, ValueError, AttributeError, LLMException
            As for :meth:`register_cache`.

        Examples
        --------
        >>> array = np.zeros((8, 64), np.float32)
        >>> desc = CacheDesc(1, (8, 64), DataType.DT_FLOAT)
        >>> cache = manager.register_blocks_cache(desc, [array.ctypes.data], BlocksCacheKey(1, model_id=4))
        >>> manager.unregister_cache(cache.cache_id)
        """
        cdef Allocation request
        self.memory.require_open("register_blocks_cache")
        require_present("cache_desc", cache_desc, CacheDesc)
        addresses = checked_address_types(addrs)
        keys = checked_blocks_key(blocks_cache_key)
        request.deadline = 0
        request.blocks = True
        request.accessible = self.may_be_accessible(cache_desc, remote_accessible)
        return self.make("register_blocks_cache", cache_desc, &request, keys, addresses)

    cdef bint may_be_accessible(self, CacheDesc desc, object remote_accessible) except -1:
        """Whether peers in remote mode may use a cache that is being registered (api §3.9, D51)."""
        cdef int communicators
        with critical_section(self):
            communicators = self.communicators
        if remote_accessible is None:
            return desc.device and communicators == 0
        require_type("remote_accessible", remote_accessible, _BOOL)
        if remote_accessible and communicators:
            raise invalid("can not register remote accessible cache after link; unlink the communicator first")
        return remote_accessible

    cdef Cache make(
        self, str tag, CacheDesc desc, Allocation *request, tuple keys, list addresses, uint64_t lease_ms=0
    ):
        """Check what is left to check, in the order of api §2.5, and make the cache."""
        cdef uint64_t *own = NULL
        cdef uint64_t i
        cdef tuple shape
        cdef CriticalSection section
        request.placement = 1 if desc.device else 0
        request.num_tensors = desc.num_tensors
        request.lease_ms = lease_ms
        request.addresses = NULL
        if addresses is None:
            if desc.num_tensors == 0:
                raise invalid("num_tensors should be bigger than zero")
            self.memory.require_open(tag)
            if not self.memory.configured[request.placement]:
                raise invalid(f"you should config memory pool firstly: there is no pool for {desc.placement}")
        else:
            check_addresses(addresses, desc.num_tensors)
        # Another thread may change the descriptor: what is taken from it here belongs together.
        enter_critical_section(&section, <PyObject *>desc)
        try:
            self.describe(desc, request)
            shape = tuple(desc.shape)
        finally:
            leave_critical_section(&section)
        if addresses is None:
            self.enter_arena(tag, desc, request, keys)
            return new_cache(self.memory, desc, shape, request)
        own = <uint64_t *>malloc(len(addresses) * sizeof(uint64_t))
        if own == NULL:
            raise MemoryError(f"{len(addresses) * sizeof(uint64_t)} bytes for {len(addresses)} addresses")
        try:
            for i in range(<uint64_t>len(addresses)):
                own[i] = addresses[i]
            request.addresses = own
            self.enter_arena(tag, desc, request, keys)
            return new_cache(self.memory, desc, shape, request)
        finally:
            free(own)

    cdef int describe(self, CacheDesc desc, Allocation *request) except -1:
        """The sizes of the cache, if there can be one of that shape. In a critical section of the descriptor."""
        request.tensor_bytes = checked_tensor_bytes(desc)
        if request.blocks:
            request.row_count = desc.shape[0]
            return 0
        request.row_count = desc.batch_slots()
        if not desc.slots_are_contiguous():
            raise invalid(
                f"batch_dim_index is {desc.batch_dim_index}: every dimension before it must be 1, shape is {desc.shape}"
            )
        return 0

    cdef int64_t memory_deadline(self) noexcept:
        """How long a call that begins now waits for memory; 0: not at all."""
        return monotonic_nanoseconds() + self.memory.timeout_ns if self.waits_for_memory else 0

    cdef int enter_arena(self, str tag, CacheDesc desc, Allocation *request, tuple keys) except -1:
        """Bind the keys and take the memory, all or nothing."""
        cdef KeyRecord[KEYS_ON_STACK] few
        cdef KeyRecord *records = few
        cdef AllocationQueue queue
        cdef Refusal refusal
        cdef bint mapped = True
        cdef uint64_t count = len(keys)
        cdef uint64_t i
        if self.has_due_leases():
            self.expire_leases()       # what they hold may be what there is too little of
        if not request.blocks and count > request.row_count:
            raise invalid(f"{count} cache_keys were given for a batch size of {request.row_count}")
        if count > KEYS_ON_STACK:
            records = <KeyRecord *>malloc(count * sizeof(KeyRecord))
            if records == NULL:
                raise MemoryError(f"{count * sizeof(KeyRecord)} bytes for {count} cache keys")
        try:
            for i in range(count):
                write_key(keys[i], records + i)
                records[i].leased = request.lease_ms != 0
            request.keys = records
            request.key_count = count
            if request.addresses != NULL:
                with nogil:
                    for i in range(request.num_tensors):
                        mapped = mapped and is_mapped(request.addresses[i], request.tensor_bytes)
            if request.deadline:
                queue = self.device_queue if request.placement else self.host_queue
                refusal = queue.allocate(self.memory, tag, request)
            else:
                self.memory.enter(tag)
                try:
                    reap(self.memory.base, REAP_LIMIT)
                    request.only_check = not mapped
                    refusal = allocate(self.memory.base, request)
                finally:
                    self.memory.leave()
        finally:
            if records != few:
                free(records)
        if refusal == KEY_ALREADY_BOUND:
            raise invalid(f"{keys[request.refused_key]} is already bound to another cache")
        if not mapped:
            raise invalid(
                f"addrs name memory that is not mapped: each must be followed by {request.tensor_bytes} bytes of memory"
            )
        if refusal == NO_POOL_MEMORY:
            raise failure(
                tag,
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                f"the {desc.placement.name} pool has no room for {desc.num_tensors} tensors of "
                f"{request.tensor_bytes} bytes",
            )
        if refusal != ACCEPTED:
            raise failure(tag, LLMStatusCode.LLM_OUT_OF_MEMORY, "the capacity for caches and keys is used up")
        return 0

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
        if ours.is_blocks_cache:
            raise invalid("cache can not be blocks cache; deallocate_blocks_cache takes those")
        if ours.memory is self.memory and not ours.registered:
            self.memory.enter("deallocate_cache")
            try:
                drop_id(self.memory.base, ours.slot, ours.generation)
                reap(self.memory.base, REAP_LIMIT)
            finally:
                self.memory.leave()
        drop(ours)

    def deallocate_blocks_cache(self, cache):
        """Give a blocks cache up, and its key with it (api §3.3). Transfers in progress end first.

        Deallocating again does nothing. A registered cache stays registered, and of ``create_cpu_cache`` only the
        addresses are forgotten.

        Raises
        ------
        TypeError, AttributeError
            No Cache, or None.
        LLMException
            ``LLM_PARAM_INVALID``: a cache that is no blocks cache.

        Examples
        --------
        >>> cache = manager.allocate_blocks_cache(CacheDesc(1, (8, 16), DataType.DT_FLOAT))
        >>> manager.deallocate_blocks_cache(cache)
        >>> cache.tensor_addrs
        []
        """
        cdef Cache ours
        self.memory.require_open("deallocate_blocks_cache")
        require_present("cache", cache, Cache)
        ours = cache
        if not ours.is_blocks_cache:
            raise invalid("cache should be blocks cache; deallocate_cache takes the others")
        if ours.memory is None:
            ours.forget_addresses()
            return
        if ours.memory is self.memory and not ours.registered:
            self.memory.enter("deallocate_blocks_cache")
            try:
                withdraw(self.memory.base, ours.slot, ours.generation)
                reap(self.memory.base, REAP_LIMIT)
            finally:
                self.memory.leave()
        drop(ours)

    def unregister_cache(self, cache_id):
        """Drop a registered cache: its id, its keys and every access to it at once (api §3.11).

        Returns when the transfers that use the memory have ended, so that it can be freed. An unknown id is no error.

        Parameters
        ----------
        cache_id : int
            int64.

        Raises
        ------
        TypeError, ValueError
            No int, or no int64.
        LLMException
            ``LLM_PARAM_INVALID``: the id of an allocated cache. ``LLM_TIMEOUT``: a transfer has not ended within
            ``sync_kv_timeout``. The cache is unregistered all the same, but its memory is still in use: calling again
            waits on.

        Examples
        --------
        >>> manager.unregister_cache(404)
        """
        cdef IndexEntry *entry
        cdef Slot *slot = NULL
        cdef uint64_t slot_number = 0
        cdef uint64_t generation = 0
        self.memory.require_open("unregister_cache")
        cdef int64_t wanted = checked_int64("cache_id", cache_id)
        self.memory.enter("unregister_cache")
        try:
            reap(self.memory.base, REAP_LIMIT)
            entry = index_find(self.memory.base, KEY_CACHE_ID, <uint64_t>wanted, 0)
            if entry == NULL:
                return
            slot_number, generation = entry.slot, entry.generation
            slot = slot_at(self.memory.base, slot_number)
            if not slot.registered:
                raise invalid(f"cache {cache_id} was allocated, not registered; deallocate it")
            withdraw(self.memory.base, slot_number, <uint32_t>generation)
            if generation_of(slot) != generation:
                return
        finally:
            self.memory.leave()
        self.await_release(slot_number, generation)

    cdef int await_release(self, uint64_t slot_number, uint64_t generation) except -1:
        """Until a tenant that is closed has gone."""
        cdef int64_t deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        while True:
            self.memory.enter("unregister_cache")
            try:
                settle(self.memory.base, slot_number)
                if generation_of(slot_at(self.memory.base, slot_number)) != generation:
                    return 0
            finally:
                self.memory.leave()
            if monotonic_nanoseconds() > deadline:
                raise failure(
                    "unregister_cache",
                    LLMStatusCode.LLM_TIMEOUT,
                    "the cache is unregistered, but a transfer still uses its memory: keep it, and call again",
                )
            time.sleep(_LOOK_AGAIN_S)

    # ------------------------------------------------------------ keys

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
            raise wrong_type("cache_key", cache_key, "CacheKey")  # one that only says it is one
        key = <CacheKey>cache_key
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
        cdef bint unchanged = False
        cdef CriticalSection section
        if type(cache_key) is not CacheKey:
            self.memory.require_open("lookup")
            require_present("cache_key", cache_key, CacheKey)
            raise wrong_type("cache_key", cache_key, "CacheKey")  # one that only says it is one
        key = <CacheKey>cache_key
        if key.kind() == KEY_NONE:
            self.memory.require_open("lookup")
            return None
        while True:
            # As a peer does it, without the lock; as long as the index is unchanged the entry's cache is there.
            enter_critical_section(&section, <PyObject *>self.memory)
            arena = self.memory.base
            if arena != NULL:
                tag = key_tag(header_of(arena), key.kind(), key.identity(), key.model_id)
                version = index_version(arena)
                if index_probe(arena, header_of(arena), tag, key.identity(), key.model_id, &entry):
                    cache_id = bound_cache_id(arena, &entry)
                unchanged = index_is_unchanged(arena, version)
            leave_critical_section(&section)
            if unchanged:
                break
            cache_id = 0
            self.memory.enter("lookup")
            self.memory.leave()
        return key_by_id_and_index(self.cluster_id, cache_id, entry.batch_index) if cache_id else None

    # ------------------------------------------------------------ what goes without a call

    @property
    def has_released(self):
        """Whether :meth:`reap` has anything to do. Never waits."""
        with critical_section(self.memory):
            return self.memory.base != NULL and anything_released(self.memory.base)

    def reap(self):
        """Settle the caches whose last reference a peer, or a dropped view, has released; how many were looked at."""
        if is_closed(self.memory):
            return 0
        self.memory.enter("reap")
        try:
            return reap(self.memory.base, REAP_LIMIT)
        finally:
            self.memory.leave()

    @property
    def leases_are_due(self):
        """Whether :meth:`expire_leases` may have anything to do. Never waits."""
        return self.has_due_leases()

    def expire_leases(self):
        """Drop the keys whose leases are over, wherever they are, as :meth:`remove_cache_key` does.

        The node does so by itself, whatever else happens or does not; this is for who does not want to wait until then.

        Returns
        -------
        int
            How many keys were dropped.

        Examples
        --------
        >>> manager.expire_leases()
        0
        """
        cdef KeyRecord[NAMED_IN_LOG] named
        cdef int64_t now_ms = lease_clock_ms()
        cdef uint64_t expired
        self.memory.require_open("expire_leases")
        if not self.has_due_leases():
            return 0
        expired = self.sweep(now_ms, named, NAMED_IN_LOG)
        if expired:
            _logger.warning(
                "cluster %d: the leases of %d cache keys are over and their references dropped: %s%s",
                self.cluster_id,
                expired,
                ", ".join([key_text(&named[i]) for i in range(min(expired, <uint64_t>NAMED_IN_LOG))]),
                ", ..." if expired > NAMED_IN_LOG else "",
            )
        return expired

    cdef bint has_due_leases(self) noexcept:
        cdef bint due
        cdef CriticalSection section
        enter_critical_section(&section, <PyObject *>self.memory)
        due = self.memory.base != NULL and are_due(self.memory.base)
        leave_critical_section(&section)
        return due

    cdef uint64_t sweep(self, int64_t now_ms, KeyRecord *named, uint64_t most_named) except? -1:
        """Expire leases in all slots, some at a time, so that others get at the caches in between."""
        cdef uint64_t begin = 0
        cdef uint64_t expired = 0
        cdef uint64_t known
        cdef bint more = True
        while more:
            self.memory.enter("expire_leases")
            try:
                if begin == 0:
                    # What lives on is entered again, and what begins meanwhile enters itself.
                    atomic_store_relaxed(&header_of(self.memory.base).leases_due_ms, 0)
                known = min(expired, most_named)
                with nogil:
                    expired += expire_leases(
                        self.memory.base, begin, begin + SWEPT_AT_ONCE, now_ms, named + known, most_named - known
                    )
                begin += SWEPT_AT_ONCE
                more = begin < header_of(self.memory.base).slots_used
            finally:
                self.memory.leave()
        return expired

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

    @property
    def key_counts(self):
        """How many keys have gone since the instance was initialised, by how they went (:class:`KeyCounts`).

        What peers have pulled is counted when the node notices it: at this look, at the latest.
        """
        cdef ArenaHeader *header
        self.memory.enter("key_counts")
        try:
            reap(self.memory.base, REAP_LIMIT)
            header = header_of(self.memory.base)
            return KeyCounts(
                header.keys_dropped - header.keys_withdrawn,
                header.keys_removed,
                header.keys_expired,
                header.keys_withdrawn,
            )
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

    @property
    def waiting_allocations(self):
        """How many calls wait for memory of a pool, with :attr:`LLMConfig.wait_for_memory` on. Never waits itself."""
        return self.host_queue.length + self.device_queue.length

    def stop_waiting(self):
        """Refuse the calls that wait for memory, and those that would, with ``LLM_ENGINE_FINALIZED``. Never waits itself."""
        cdef Mapping arena
        cdef CriticalSection section
        self.host_queue.close()
        self.device_queue.close()
        enter_critical_section(&section, <PyObject *>self.memory)
        arena = self.memory.arena
        leave_critical_section(&section)
        if arena is not None:
            announce_release(release_event_of(arena.base, header_of(arena.base)))

    def close(self):
        """Give the memory up; every later call is refused with ``LLM_ENGINE_FINALIZED``."""
        self.stop_waiting()
        self.memory.close()

    def abandon(self):
        """Give the memory up in a forked child."""
        # Those who wait are threads of the parent's, and stand on stacks that are not theirs here.
        self.host_queue = AllocationQueue(0)
        self.device_queue = AllocationQueue(1)
        self.memory.abandon()

    @property
    def closed(self):
        return is_closed(self.memory)


@final
cdef class Pause:
    """Holds a store's lock between enter and exit."""

    cdef NodeCaches store

    def __cinit__(self, NodeCaches store):
        self.store = store

    def __enter__(self):
        self.store.memory.enter("paused")

    def __exit__(self, *exception):
        self.store.memory.leave()


cdef tuple checked_keys(object cache_keys):
    """cache_keys, as they are now: a list may change meanwhile, a subclass may lie about its length."""
    if not isinstance(cache_keys, (tuple, list)):
        raise wrong_type("cache_keys", cache_keys, "tuple, list")
    cdef tuple keys = tuple(cache_keys)
    for key in keys:
        if type(key) is not CacheKey:
            raise TypeError(f"cache_keys inner type only support [CacheKey], but got {type(key)}")
    return keys


cdef tuple checked_blocks_key(object blocks_cache_key):
    if blocks_cache_key is None:
        return ()
    require_type("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
    return (blocks_cache_key,)


cdef list checked_address_types(object addrs):
    require_present("addrs", addrs, _LIST)
    cdef list addresses = list(addrs)
    for address in addresses:
        if not isinstance(address, int):
            raise TypeError(f"addrs inner type only support [int], but got {type(address)}")
    return addresses


cdef int check_addresses(list addresses, uint64_t num_tensors) except -1:
    if not addresses:
        raise invalid("addrs can not be empty")
    if <uint64_t>len(addresses) != num_tensors:
        raise invalid(f"addrs length should be equal to num_tensors, {len(addresses)} were given for {num_tensors}")
    for address in addresses:
        if address == 0:
            raise invalid("addr can not be zero")
    for address in addresses:
        checked_uint64("addrs", address)
    return 0


cdef bint are_due(char *arena) noexcept nogil:
    """Whether some lease may be over."""
    # A look at a number that changes under the lock: of one that has just changed the next look will tell.
    cdef int64_t due_ms = <int64_t>atomic_load_relaxed(&header_of(arena).leases_due_ms)
    return due_ms != 0 and lease_clock_ms() >= due_ms


cdef str key_text(const KeyRecord *key):
    """A key, for the log."""
    kind = "prefix" if key.kind == KEY_PREFIX else "request"
    return f"{kind} {key.id}" + (f" of model {key.model_id}" if key.model_id else "")


cdef int write_key(object key, KeyRecord *record) except -1:
    if type(key) is BlocksCacheKey:
        record.kind = KEY_BLOCKS
        record.id = 0
        record.model_id = (<BlocksCacheKey>key).model_id
        return 0
    record.kind = (<CacheKey>key).kind()
    record.id = (<CacheKey>key).identity()
    record.model_id = (<CacheKey>key).model_id
    return 0
