# cython: language_level=3, boundscheck=False, wraparound=False
"""The calls for many keys or caches at once (see ``bulk_calls.pxd``).

Each does, item by item, what the single call does (spec/bulk.py). What is given is read once, into plain structures; then
everything is done without the GIL, and the answer is an array.
"""

from cpython.object cimport PyObject
from cython cimport final
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from typing import NamedTuple

import numpy as np

from llmdd._core.atomic cimport atomic_load_word, monotonic_nanoseconds
from llmdd._core.bulk_keys cimport (
    HELD,
    NOT_HELD,
    OTHERS_DROP_IT,
    CacheReference,
    Keys,
    drop_ids,
    find_caches,
    find_keys,
    first_not_held,
    first_unbound,
    remove_keys,
)
from llmdd._core.bulk_transfers cimport Begun, carry_out_all
from llmdd._core.cache cimport Cache, drop
from llmdd._core.cache_keys cimport CacheKey, CacheKeyByIdAndIndex
from llmdd._core.copying cimport Piece
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.distant_peer cimport DistantPeer
from llmdd._core.integer_arrays cimport Integers, checked_integers, data_of, sequence_or_none
from llmdd._core.layout cimport KEY_CACHE_ID, KEY_REQUEST, KeyRecord, Slot
from llmdd._core.lifecycle cimport reap
from llmdd._core.local_copies cimport PinnedCache, pinned
from llmdd._core.pair_set cimport NOT_SEEN, PairSet, pair_set_add, pair_set_drop, pair_set_make
from llmdd._core.peer cimport Peer, PeerArena, refusal_of, status_of
from llmdd._core.segments cimport Mapping
from llmdd._core.status import LLMException, LLMStatusCode, MissingArgument, failure, invalid
from llmdd._core.store cimport CacheStore, blocks_refusal, check_one_id, local_refusal
from llmdd._core.transfer cimport (
    LINK_TAKEN_DOWN,
    LINK_WAS_BUSY,
    LOCALLY_REFUSED,
    NOT_BEGUN,
    SLOT_TO_BLOCKS,
    SLOT_TO_SLOT,
    TRANSFERRED,
    Transfer,
    TransferResult,
)
from llmdd._core.transfers_together cimport TransfersTogether
from llmdd._core.validation cimport checked_int64, checked_uint64, require_present, require_type, wrong_type

cdef enum:
    REAP_LIMIT = 4096
    TENSORS_PER_LAYER = 2          # without layer ranges it makes no difference

cdef uint64_t LARGEST_UINT32 = 0xFFFFFFFF
cdef object _BOOL = bool


class KeyPlaces(NamedTuple):
    """Where keys are bound, in their order.

    Attributes
    ----------
    cache_ids : numpy.ndarray
        int64, one for each key; 0, which no cache has, for a key that is not bound.
    batch_indices : numpy.ndarray
        uint32, the batch slot of each key; 0 for a key that is not bound.
    """

    cache_ids: np.ndarray
    batch_indices: np.ndarray


# ---------------------------------------------------------------- what is given


@final
cdef class GivenKeys:
    """The keys of a call."""

    def __dealloc__(self):
        free(self.records)


@final
cdef class GivenCaches:
    """The caches of a call."""

    def __dealloc__(self):
        free(self.references)


@final
cdef class Pulls:
    """The pulls of a call."""

    def __cinit__(self, uint64_t count):
        cdef uint64_t i
        self.count = count
        self.transfers = <Transfer *>calloc(count + 1, sizeof(Transfer))
        self.results = <TransferResult *>malloc((count + 1) * sizeof(TransferResult))
        self.cluster_ids = <uint64_t *>malloc((count + 1) * sizeof(uint64_t))
        self.refusals = {}
        self.kept = []
        if self.transfers == NULL or self.results == NULL or self.cluster_ids == NULL:
            raise MemoryError(f"{count * sizeof(Transfer)} bytes for {count} pulls")
        for i in range(count):
            self.results[i] = NOT_BEGUN

    def __dealloc__(self):
        free(self.transfers)
        free(self.results)
        free(self.cluster_ids)
        free(self.pieces)

    cdef Cache cache_of(self, uint64_t position):
        """The cache of ours that an item goes to."""
        return self.cache if self.caches is None else <Cache>self.caches[position]

    cdef uint64_t batch_index_of(self, uint64_t position) noexcept:
        """The slot of it; of a blocks cache 0, the whole of it."""
        if self.batch_indices is not None:
            return self.batch_indices.values[position]
        return 0 if self.into_blocks or self.caches is not None else position

    cdef object named(self, uint64_t position):
        """What an item is from, for a message."""
        return self.keys[position] if self.keys is not None else f"request {self.request_ids.values[position]}"


cdef GivenKeys given_keys(object cache_keys, object model_id):
    """Keys, or request ids of one model (spec/bulk.py: read_keys)."""
    cdef GivenKeys given = GivenKeys.__new__(GivenKeys)
    cdef tuple items = sequence_or_none("cache_keys", cache_keys, "CacheKey or int")
    cdef CacheKey key
    cdef uint64_t i
    if items is None or (items and type(items[0]) is not CacheKey):
        given.request_ids = checked_integers("cache_keys", cache_keys if items is None else items, "uint64", UINT64_MAX,
                                             "CacheKey or int")
        given.keys.request_ids = given.request_ids.values
        given.keys.count = given.request_ids.count
        given.keys.model_id = checked_uint64("model_id", model_id)
        return given
    for item in items:
        if type(item) is not CacheKey:
            raise TypeError(f"cache_keys inner type only support [CacheKey], but got {type(item)}")
    if checked_uint64("model_id", model_id) and items:
        raise invalid(f"model_id is {model_id}, it is for request ids; a CacheKey has its own")
    given.objects = items
    given.keys.count = len(items)
    given.records = <KeyRecord *>malloc((given.keys.count + 1) * sizeof(KeyRecord))
    if given.records == NULL:
        raise MemoryError(f"{given.keys.count * sizeof(KeyRecord)} bytes for {given.keys.count} keys")
    given.keys.records = given.records
    for i in range(given.keys.count):
        key = <CacheKey>items[i]
        given.records[i].id = key.identity()
        given.records[i].model_id = key.model_id
        given.records[i].kind = key.kind()
    return given


cdef object named_key(GivenKeys given, uint64_t position):
    """An item, for a message."""
    if given.objects is not None:
        return given.objects[position]
    return f"request {given.keys.request_ids[position]} of model {given.keys.model_id}"


cdef GivenCaches given_caches(object caches, object memory):
    """Handles, or ids; a handle that another instance gave stands for nothing here."""
    cdef GivenCaches given = GivenCaches.__new__(GivenCaches)
    cdef tuple items = sequence_or_none("caches", caches, "Cache or int")
    cdef Cache cache
    cdef uint64_t i
    if items is None or (items and type(items[0]) is not Cache):
        given.cache_ids = checked_integers("caches", caches if items is None else items, "uint64", UINT64_MAX,
                                           "Cache or int")
        given.count = given.cache_ids.count
    else:
        for item in items:
            if type(item) is not Cache:
                raise TypeError(f"caches inner type only support [Cache], but got {type(item)}")
        given.handles = items
        given.count = len(items)
    given.references = <CacheReference *>malloc((given.count + 1) * sizeof(CacheReference))
    if given.references == NULL:
        raise MemoryError(f"{given.count * sizeof(CacheReference)} bytes for {given.count} caches")
    if given.handles is not None:
        for i in range(given.count):
            cache = <Cache>given.handles[i]
            given.references[i].slot = cache.slot
            given.references[i].generation = cache.generation
            given.references[i].standing = HELD if cache.memory is memory else NOT_HELD
            if cache.is_blocks_cache:
                given.references[i].standing = OTHERS_DROP_IT
    return given


cdef class BulkCalls(CacheStore):
    # ------------------------------------------------------------ keys and caches of our own

    def lookup_many(self, cache_keys, *, model_id=0):
        """Where many keys are bound: :meth:`lookup` for each of them, without a Python object for any.

        Parameters
        ----------
        cache_keys : sequence of CacheKey, or integer array or sequence of int, shape (n,)
            Keys; or request ids of one model, uint64, of any integer type.
        model_id : int, default 0
            The model of request ids, uint64. A `CacheKey` has its own.

        Returns
        -------
        KeyPlaces
            ``cache_ids``, int64, and ``batch_indices``, uint32, both of shape (n,). A cache id of 0 says that the key is not
            bound. Each key is where it was at some moment during the call.

        Raises
        ------
        TypeError, ValueError, AttributeError
            Something that is no such array or sequence, a number out of its range, None.
        LLMException
            ``LLM_PARAM_INVALID``: a `model_id` for keys that have their own.

        Examples
        --------
        >>> cache = manager.allocate_cache(CacheDesc(1, (2, 16), DataType.DT_FLOAT), [CacheKey(1, 70), CacheKey(1, 71)])
        >>> places = manager.lookup_many(np.array([71, 70, 72]))
        >>> places.batch_indices
        array([1, 0, 0], dtype=uint32)
        >>> (places.cache_ids == cache.cache_id).tolist()
        [True, True, False]
        """
        cdef GivenKeys given
        cdef Mapping arena
        cdef CriticalSection section
        cdef int64_t *cache_ids
        cdef uint32_t *batch_indices
        cdef uint64_t found = 0
        self.memory.require_open("lookup_many")
        given = given_keys(cache_keys, model_id)
        places = KeyPlaces(np.empty(given.keys.count, np.int64), np.empty(given.keys.count, np.uint32))
        cache_ids = <int64_t *>data_of(places.cache_ids)
        batch_indices = <uint32_t *>data_of(places.batch_indices)
        # What was given may have run code that let another thread finalize. From here on the mapping is kept.
        enter_critical_section(&section, <PyObject *>self.memory)
        arena = self.memory.arena
        leave_critical_section(&section)
        if arena is None:
            self.memory.require_open("lookup_many")
        with nogil:
            found = find_keys(arena.base, &given.keys, 0, cache_ids, batch_indices)
        while found < given.keys.count:
            # The index was changed meanwhile. Wait until it is not, as a lookup does, and go on.
            self.memory.enter("lookup_many")
            self.memory.leave()
            with nogil:
                found = find_keys(arena.base, &given.keys, found, cache_ids, batch_indices)
        return places

    def remove_cache_keys(self, cache_keys, *, model_id=0, all_or_nothing=False):
        """Drop the references of many keys (seed §3b): :meth:`remove_cache_key` for each, in one go.

        Parameters
        ----------
        cache_keys : sequence of CacheKey, or integer array or sequence of int, shape (n,)
            Keys; or request ids of one model, uint64, of any integer type.
        model_id : int, default 0
            The model of request ids, uint64. A `CacheKey` has its own.
        all_or_nothing : bool, default False
            Refuse the call, and drop nothing, unless every key is bound and none is given twice.

        Returns
        -------
        numpy.ndarray
            bool, shape (n,): whether the key was bound, and its reference was dropped by this call. A placeholder, a key
            that is not bound, and one that an earlier item has dropped are False. So is, also with `all_or_nothing`, one
            that a peer's pull released at the same moment.

        Raises
        ------
        TypeError, ValueError, AttributeError
            Something that is no such array or sequence, a number out of its range, None.
        LLMException
            ``LLM_PARAM_INVALID``: a `model_id` for keys that have their own. ``LLM_KV_CACHE_NOT_EXIST``: with
            `all_or_nothing`, the first key that is not bound, or given again. ``LLM_TIMEOUT``: other calls held the caches
            for longer than ``sync_kv_timeout``. Nothing has changed then.

        Examples
        --------
        >>> cache = manager.allocate_cache(CacheDesc(1, (2, 16), DataType.DT_FLOAT), [CacheKey(1, 80), CacheKey(1, 81)])
        >>> manager.remove_cache_keys(np.array([80, 81, 82]))
        array([ True,  True, False])
        """
        cdef GivenKeys given
        cdef unsigned char *removed
        cdef PairSet named
        cdef uint64_t refused
        self.memory.require_open("remove_cache_keys")
        given = given_keys(cache_keys, model_id)
        require_type("all_or_nothing", all_or_nothing, _BOOL)
        cdef bint only_all = all_or_nothing
        answer = np.zeros(given.keys.count, np.bool_)
        removed = <unsigned char *>data_of(answer)
        refused = given.keys.count
        if not pair_set_make(&named, given.keys.count if only_all else 0):
            raise MemoryError(f"no memory to compare {given.keys.count} keys")
        try:
            self.memory.enter("remove_cache_keys")
            try:
                with nogil:
                    if only_all:
                        refused = first_unbound(self.memory.base, &given.keys, &named)
                    if refused == given.keys.count:
                        remove_keys(self.memory.base, &given.keys, removed)
                        reap(self.memory.base, REAP_LIMIT)
            finally:
                self.memory.leave()
        finally:
            pair_set_drop(&named)
        if refused < given.keys.count:
            raise failure(
                "remove_cache_keys",
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                f"item {refused}, {named_key(given, refused)}, is not bound, or was named before",
            )
        return answer

    def deallocate_many(self, caches, *, all_or_nothing=False):
        """Drop the id references of many caches (seed §2): :meth:`deallocate_cache` for each, in one go.

        Parameters
        ----------
        caches : sequence of Cache, or integer array or sequence of int, shape (n,)
            Caches; or their ids, of any integer type.
        all_or_nothing : bool, default False
            Refuse the call, and drop nothing, unless every item is an allocated cache whose id is held, and none is given
            twice.

        Returns
        -------
        numpy.ndarray
            bool, shape (n,): whether the id reference was held, and was dropped by this call. False: a cache that was
            deallocated before, an id that is unknown, a blocks cache (`deallocate_blocks_cache` takes those), a registered
            one (`unregister_cache`).

        Raises
        ------
        TypeError, ValueError, AttributeError
            Something that is no such array or sequence, a negative number, None.
        LLMException
            With `all_or_nothing`, for the first item that would be False: ``LLM_PARAM_INVALID`` if it is a blocks cache or a
            registered one, else ``LLM_KV_CACHE_NOT_EXIST``. ``LLM_TIMEOUT``: other calls held the caches for longer than
            ``sync_kv_timeout``. Nothing has changed then.

        Examples
        --------
        >>> caches = [manager.allocate_cache(CacheDesc(1, (1, 16), DataType.DT_FLOAT)) for _ in range(3)]
        >>> manager.deallocate_many(caches)
        array([ True,  True,  True])
        >>> manager.deallocate_many([cache.cache_id for cache in caches])
        array([False, False, False])
        """
        cdef GivenCaches given
        cdef unsigned char *dropped
        cdef PairSet named
        cdef uint64_t refused
        self.memory.require_open("deallocate_many")
        given = given_caches(caches, self.memory)
        require_type("all_or_nothing", all_or_nothing, _BOOL)
        cdef bint only_all = all_or_nothing
        cdef bint by_id = given.handles is None
        answer = np.zeros(given.count, np.bool_)
        dropped = <unsigned char *>data_of(answer)
        refused = given.count
        if not pair_set_make(&named, given.count if only_all else 0):
            raise MemoryError(f"no memory to compare {given.count} caches")
        try:
            self.memory.enter("deallocate_many")
            try:
                with nogil:
                    if by_id:
                        find_caches(self.memory.base, given.cache_ids.values, given.references, given.count)
                    if only_all:
                        refused = first_not_held(self.memory.base, given.references, given.count, &named)
                    if refused == given.count:
                        drop_ids(self.memory.base, given.references, given.count, dropped)
                        reap(self.memory.base, REAP_LIMIT)
            finally:
                self.memory.leave()
        finally:
            pair_set_drop(&named)
        if refused < given.count:
            raise not_deallocated(given, refused)
        if not by_id:
            for cache in given.handles:
                if not (<Cache>cache).is_blocks_cache:
                    drop(<Cache>cache)
        return answer

    # ------------------------------------------------------------ pulls

    def pull_many(
        self,
        cache_keys,
        cache,
        batch_indices=None,
        *,
        block_tables=None,
        cluster_id=None,
        model_id=0,
        size=-1,
        all_or_nothing=False,
    ):
        """Pull many batch slots of linked clusters' caches: :meth:`pull_cache` or :meth:`pull_blocks` for each, in one go.

        Each item copies what its key names, all tensors of it, into a batch slot or into blocks of ours, and releases the
        key. Items that follow each other and name one cluster share one turn of its link.

        Parameters
        ----------
        cache_keys : sequence of CacheKey or CacheKeyByIdAndIndex, or integer array or sequence of int, shape (n,)
            The remote slots, by keys as `pull_cache` takes them, or `pull_blocks` where blocks are given; or by request ids
            of one cluster and model, uint64.
        cache : Cache, or sequence of n Caches
            Where all of them go, or where each goes.
        batch_indices : integer array or sequence of int, shape (n,), optional
            The batch slot of each, uint32. By default 0 to n - 1 of one cache, or 0 of each of n caches.
        block_tables : sequence of n integer arrays or sequences, or integer array of shape (n, m), optional
            For blocks caches, instead of `batch_indices`: the blocks that each slot is cut into, uint64, as `dst_blocks` of
            `pull_blocks`.
        cluster_id : int, optional
            The cluster of request ids, uint64; needed with them, and with nothing else.
        model_id : int, default 0
            The model of request ids, uint64.
        size : int, default -1
            Bytes of each tensor to copy from each slot; -1 for all of our slot. Not for blocks.
        all_or_nothing : bool, default False
            Look at every item before the first byte is copied, and refuse the call unless each can be pulled; release the
            keys when everything has arrived.

        Returns
        -------
        numpy.ndarray
            int64, shape (n,): for each item the value of an `LLMStatusCode`, 0 for ``LLM_SUCCESS``, as :meth:`pull_cache`
            would have raised it. The whole call has one deadline, ``sync_kv_timeout`` after its begin: what has not begun
            by then is ``LLM_TIMEOUT``, or ``LLM_LINK_BUSY`` if others used its link all the time.

        Raises
        ------
        TypeError, ValueError, AttributeError
            An argument of a wrong type, a number out of its range, None. Nothing was pulled.
        LLMException
            ``LLM_PARAM_INVALID``: arguments that contradict each other, or one slot or block as the target of two. With
            `all_or_nothing` also what the first item that cannot be pulled is refused with: nothing has changed then. After
            a failure in the middle (``LLM_TIMEOUT``, ``LLM_NOT_YET_LINK``) no key was released, but targets may have been
            written to. Only where several clusters are on other hosts, and one is lost while the last word is said to it,
            keys of those that had heard theirs have been released.

        Examples
        --------
        >>> running = decoder.allocate_cache(CacheDesc(2, (8, 64), DataType.DT_FLOAT16))
        >>> decoder.pull_many(np.array([7, 9]), running, batch_indices=[5, 2], cluster_id=1)
        array([0, 0])
        >>> code, = decoder.pull_many([CacheKey(1, req_id=7)], running)
        >>> str(LLMStatusCode(code))
        'LLMStatusCode.LLM_KV_CACHE_NOT_EXIST'
        """
        cdef int64_t deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        cdef Pulls pulls
        cdef int64_t wanted
        self.memory.require_open("pull_many")
        pulls = given_pulls(cache_keys, cluster_id, model_id, block_tables is not None, self.remote_accessible)
        take_caches(pulls, cache)
        take_places(pulls, batch_indices, block_tables)
        wanted = checked_int64("size", size)
        require_type("all_or_nothing", all_or_nothing, _BOOL)
        refuse_other_kinds(pulls)
        if wanted != -1 and (wanted <= 0 or pulls.into_blocks):
            raise invalid(f"size is {size}, it should be = -1 or > 0, and = -1 with block_tables")
        refuse_same_target_twice(pulls)
        # What was given may have run code that let another thread finalize.
        self.memory.require_open("pull_many")
        self.plan(pulls, wanted)
        if all_or_nothing:
            self.carry_out_together(pulls, deadline)
        else:
            self.carry_out_in_order(pulls, deadline)
        if self.lease_keeper is not None:
            self.tell_lease_keeper(pulls)
        return status_codes(pulls)

    cdef int tell_lease_keeper(self, Pulls pulls) except -1:
        """Which keys have been found where they were expected."""
        cdef uint64_t i
        for i in range(pulls.count):
            if pulls.results[i] != TRANSFERRED:
                continue
            if pulls.keys is not None:
                self.lease_keeper.pulled(pulls.keys[i])
            else:
                self.lease_keeper.pulled(CacheKey(pulls.cluster_id, pulls.request_ids.values[i], pulls.model_id))
        return 0

    cdef int plan(self, Pulls pulls, int64_t size) except -1:
        """Pin our caches and make every item a transfer, or note why it is none."""
        cdef dict pins = {}
        cdef Transfer *transfer
        cdef Cache cache = None
        cdef PinnedCache local = None
        cdef object refusal
        cdef uint64_t i
        pulls.kept.append(pins)
        for i in range(pulls.count):
            transfer = pulls.transfers + i
            if cache is not pulls.cache_of(i):
                cache = pulls.cache_of(i)
                if cache not in pins:
                    pins[cache] = pinned(self.memory, cache)
                    if pins[cache] is None:
                        self.memory.require_open("pull_many")
                local = <PinnedCache>pins[cache]
            refusal = self.name_source(pulls, i)
            if refusal is None:
                refusal = self.plan_pull(pulls, i, local, size)
            if refusal is not None:
                pulls.results[i] = LOCALLY_REFUSED
                pulls.refusals[i] = refusal
        return 0

    cdef object name_source(self, Pulls pulls, uint64_t position):
        """Enter which remote slot an item is from; the exception if its key names none."""
        cdef Transfer *transfer = pulls.transfers + position
        if pulls.keys is not None:
            pulls.cluster_ids[position] = self.name_remote(transfer, pulls.keys[position])
            return one_id_refusal(pulls.keys[position])
        transfer.id = pulls.request_ids.values[position]
        transfer.kind = KEY_REQUEST
        transfer.model_id = pulls.model_id
        pulls.cluster_ids[position] = pulls.cluster_id
        if transfer.id == UINT64_MAX:
            return invalid("cache_keys has a placeholder, which names nothing")
        return None

    cdef object plan_pull(self, Pulls pulls, uint64_t position, PinnedCache local, int64_t size):
        """Enter our side of one item. The exception that the checks of api §3.6 end with on our side, in their order."""
        cdef Transfer *transfer = pulls.transfers + position
        cdef Slot *slot
        cdef uint64_t cluster_id = pulls.cluster_ids[position]
        cdef uint64_t batch_index = pulls.batch_index_of(position)
        if pulls.into_blocks and transfer.block_count == 0:
            return invalid(f"block_tables[{position}] can not be empty")
        if cluster_id == self.cluster_id:
            return invalid(f"{pulls.named(position)} names our own cluster {cluster_id}; pulls are from linked clusters")
        if local is None:
            return failure(
                "pull_many",
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                f"cache {pulls.cache_of(position).cache_id} does not exist",
            )
        slot = local.slot
        transfer.form = SLOT_TO_BLOCKS if pulls.into_blocks else SLOT_TO_SLOT
        transfer.all_local = transfer.all_remote = True
        transfer.remote_mode = self.remote_accessible
        transfer.bytes = slot.row_bytes if size < 0 else <uint64_t>size
        transfer.pieces = pulls.pieces
        transfer.team = &self.memory.team
        refusal = local_refusal(transfer, slot, batch_index, TENSORS_PER_LAYER)
        if refusal is None and self.linked(cluster_id) is None:
            return failure("pull_many", LLMStatusCode.LLM_NOT_YET_LINK, f"cluster {cluster_id} is not linked")
        if refusal is None:
            refusal = blocks_refusal(transfer, slot)
        if refusal is None and transfer.kind == KEY_CACHE_ID and <int64_t>transfer.id < 1:
            return failure(
                "pull_many",
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                f"{pulls.named(position)} names no cache, ids begin at 1",
            )
        transfer.local_arena = local.arena.base
        transfer.local_slot = slot
        transfer.local_pool = local.pool.base if local.pool is not None else NULL
        transfer.local_batch_index = batch_index
        return refusal

    # ------------------------------------------------------------ one after the other

    cdef int carry_out_in_order(self, Pulls pulls, int64_t deadline) except -1:
        """Each item, in order; one turn of a link for those that follow each other and are of its cluster."""
        cdef uint64_t begin = 0
        cdef uint64_t end
        while begin < pulls.count:
            if pulls.results[begin] != NOT_BEGUN:
                begin += 1
                continue
            end = begin + 1
            while end < pulls.count and (
                pulls.results[end] != NOT_BEGUN or pulls.cluster_ids[end] == pulls.cluster_ids[begin]
            ):
                end += 1
            self.carry_out_run(pulls, begin, end, deadline)
            begin = end
        return 0

    cdef int carry_out_run(self, Pulls pulls, uint64_t begin, uint64_t end, int64_t deadline) except -1:
        """Items of one cluster."""
        cdef Peer peer = self.linked(pulls.cluster_ids[begin])
        cdef Peer following
        cdef uint64_t i
        while peer is None or peer.carry_out_run(pulls.transfers + begin, pulls.results + begin, end - begin, deadline):
            # Perhaps something else links the two, of which the links have told us before they took this down (D59).
            following = self.linked(pulls.cluster_ids[begin])
            if following is None or following is peer:
                for i in range(begin, end):
                    if pulls.results[i] == NOT_BEGUN:
                        pulls.results[i] = LINK_TAKEN_DOWN
                return 0
            peer = following
        return 0

    # ------------------------------------------------------------ all or none

    cdef int carry_out_together(self, Pulls pulls, int64_t deadline) except -1:
        """All items or none: raises what the first is refused with. Every link that is needed is held meanwhile."""
        cdef uint64_t accepted = 0
        cdef dict first_of = {}
        while accepted < pulls.count and pulls.results[accepted] == NOT_BEGUN:
            first_of.setdefault(pulls.cluster_ids[accepted], accepted)
            accepted += 1
        # In the order of cluster ids, as everybody takes them: nobody waits for whoever waits for him.
        self.with_links(pulls, accepted, sorted(first_of), first_of, deadline)
        if accepted < pulls.count:
            raise refused_item(accepted, pulls.refusals[accepted])
        return 0

    cdef int with_links(self, Pulls pulls, uint64_t accepted, list cluster_ids, dict first_of, int64_t deadline) except -1:
        """Take the turn of every link, one after the other, and carry the accepted items out."""
        cdef Peer peer
        cdef list held = []
        cdef dict peers = {}
        cdef uint64_t taken = 0
        try:
            while taken < <uint64_t>len(cluster_ids):
                cluster_id = cluster_ids[taken]
                peer = self.linked(cluster_id)
                if peer is None or peer is peers.get(cluster_id):
                    raise refused_item(first_of[cluster_id], refusal_of("pull_many", LINK_TAKEN_DOWN))
                peers[cluster_id] = peer
                if not peer.take_turn(deadline):
                    raise refused_item(first_of[cluster_id], refusal_of("pull_many", LINK_WAS_BUSY))
                held.append(peer)
                # One that was taken down may have been followed by another.
                taken += not atomic_load_word(&peer.closing)
            if any([type(peer) is DistantPeer for peer in peers.values()]):
                self.carry_out_across(pulls, accepted, peers, deadline)
            else:
                self.carry_out_held(pulls, accepted, peers, deadline)
        finally:
            for each in held:
                (<Peer>each).lock.release()
        return 0

    cdef int carry_out_held(self, Pulls pulls, uint64_t accepted, dict peers, int64_t deadline) except -1:
        cdef Begun *begun = <Begun *>malloc((accepted + 1) * sizeof(Begun))
        cdef PairSet pins, sources
        cdef TransferResult result
        cdef uint64_t refused = 0
        cdef bint only_check = accepted < pulls.count
        cdef bint enough = pair_set_make(&pins, accepted)
        enough = pair_set_make(&sources, accepted) and enough and begun != NULL
        try:
            if not enough:
                raise MemoryError(f"{accepted * sizeof(Begun)} bytes for {accepted} pulls")
            for i in range(accepted):
                (<PeerArena>peers[pulls.cluster_ids[i]]).face(pulls.transfers + <uint64_t>i)
                pulls.transfers[<uint64_t>i].deadline = deadline
            with nogil:
                result = carry_out_all(pulls.transfers, begun, accepted, &pins, &sources, only_check, &refused)
        finally:
            pair_set_drop(&pins)
            pair_set_drop(&sources)
            free(begun)
        for peer in peers.values():
            (<PeerArena>peer).raise_what_asking_raised()
        if result != TRANSFERRED:
            raise refused_item(refused, refusal_of("pull_many", result))
        if not only_check:
            for i in range(accepted):
                pulls.results[<uint64_t>i] = TRANSFERRED
        return 0

    cdef int carry_out_across(self, Pulls pulls, uint64_t accepted, dict peers, int64_t deadline) except -1:
        """The same where some of the peers are on other hosts: the same steps, each for those of this host and of others."""
        cdef TransfersTogether together = TransfersTogether(accepted)
        cdef uint64_t refused
        cdef bint only_check = accepted < pulls.count
        for i in range(accepted):
            peer = peers[pulls.cluster_ids[i]]
            pulls.transfers[<uint64_t>i].deadline = deadline
            if type(peer) is DistantPeer:
                together.exchange_with(peer, deadline).add(pulls.transfers + <uint64_t>i, pulls.results + <uint64_t>i)
            else:
                (<PeerArena>peer).face(pulls.transfers + <uint64_t>i)
                together.add(pulls.transfers + <uint64_t>i, pulls.results + <uint64_t>i)
        try:
            together.begin()
            refused = first_refused(pulls, accepted)
            if refused == accepted and not only_check:
                together.carry()
                refused = first_refused(pulls, accepted)
            if refused == accepted and not only_check:
                together.finish()
                refused = first_refused(pulls, accepted)
        finally:
            together.abandon()
        for peer in peers.values():
            if type(peer) is PeerArena:
                (<PeerArena>peer).raise_what_asking_raised()
        if refused < accepted:
            raise refused_item(refused, refusal_of("pull_many", pulls.results[refused]))
        return 0


cdef uint64_t first_refused(Pulls pulls, uint64_t count):
    """The first item that was refused, or has failed; `count` if none has."""
    cdef uint64_t i
    for i in range(count):
        if pulls.results[i] != NOT_BEGUN and pulls.results[i] != TRANSFERRED:
            return i
    return count


# ---------------------------------------------------------------- what pull_many is given


cdef Pulls given_pulls(object cache_keys, object cluster_id, object model_id, bint into_blocks, bint remote_mode):
    """The remote slots, by keys of those types that name one in this mode (api §3.9), or by request ids."""
    cdef bint by_key = into_blocks or not remote_mode
    cdef tuple types = (CacheKey, CacheKeyByIdAndIndex) if by_key else (CacheKeyByIdAndIndex,)
    cdef str wanted = ", ".join([each.__name__ for each in types])
    cdef tuple keys = sequence_or_none("cache_keys", cache_keys, wanted)
    cdef Integers request_ids = None
    cdef Pulls pulls
    if keys is None or (keys and type(keys[0]) not in types):
        if not by_key:
            raise TypeError(
                f"cache_keys inner type only support [{wanted}] while enable_remote_cache_accessible is True, but got "
                f"{type(cache_keys if keys is None else keys[0])}"
            )
        request_ids = checked_integers(
            "cache_keys", cache_keys if keys is None else keys, "uint64", UINT64_MAX, f"{wanted}, int"
        )
        keys = None
    else:
        for key in keys:
            if type(key) not in types:
                raise TypeError(f"cache_keys inner type only support [{wanted}], but got {type(key)}")
    pulls = Pulls(len(keys) if request_ids is None else request_ids.count)
    pulls.keys = keys
    pulls.request_ids = request_ids
    pulls.into_blocks = into_blocks
    pulls.model_id = checked_uint64("model_id", model_id)
    if request_ids is not None and cluster_id is None:
        raise MissingArgument("cluster_id is needed with request ids: it says whose they are")
    if cluster_id is not None:
        pulls.cluster_id = checked_uint64("cluster_id", cluster_id)
    if keys and (pulls.model_id or cluster_id is not None):
        raise invalid("cluster_id and model_id are for request ids; a key has its own")
    return pulls


cdef int take_caches(Pulls pulls, object cache) except -1:
    """The cache that all items go to, or one for each."""
    if type(cache) is Cache:
        pulls.cache = cache
        return 0
    if cache is None:
        require_present("cache", cache, Cache)
    if not isinstance(cache, (list, tuple)):
        raise wrong_type("cache", cache, "Cache, list, tuple")
    pulls.caches = tuple(cache)
    for each in pulls.caches:
        if type(each) is not Cache:
            raise TypeError(f"cache inner type only support [Cache], but got {type(each)}")
    if <uint64_t>len(pulls.caches) != pulls.count:
        raise invalid(f"{len(pulls.caches)} caches were given for {pulls.count} cache_keys")
    return 0


cdef int take_places(Pulls pulls, object batch_indices, object block_tables) except -1:
    """The batch slots or the blocks that the items go to."""
    if batch_indices is not None and block_tables is not None:
        raise invalid("batch_indices are for batch slots and block_tables for blocks, but both were given")
    if block_tables is not None:
        take_block_tables(pulls, block_tables)
    elif batch_indices is not None:
        pulls.batch_indices = checked_integers("batch_indices", batch_indices, "uint32", LARGEST_UINT32)
        if pulls.batch_indices.count != pulls.count:
            raise invalid(f"{pulls.batch_indices.count} batch_indices were given for {pulls.count} cache_keys")
    return make_room_for_pieces(pulls)


cdef int take_block_tables(Pulls pulls, object block_tables) except -1:
    cdef tuple tables = sequence_or_none("block_tables", block_tables, "integer array or sequence of int")
    cdef Integers blocks
    cdef uint64_t i, width
    if tables is None:
        array = np.asanyarray(block_tables)
        if array.ndim != 2:
            raise ValueError(f"block_tables should have two dimensions, but its shape is {array.shape}")
        refuse_other_count(pulls, "block_tables", array.shape[0])
        width = array.shape[1]
        blocks = checked_integers("block_tables", array.reshape(-1), "uint64", UINT64_MAX)
        pulls.kept.append(blocks)
        for i in range(pulls.count):
            pulls.transfers[i].local_blocks = blocks.values + i * width
            pulls.transfers[i].block_count = width
        return 0
    tables = tuple([
        checked_integers(f"block_tables[{position}]", table, "uint64", UINT64_MAX)
        for position, table in enumerate(tables)
    ])
    refuse_other_count(pulls, "block_tables", len(tables))
    pulls.kept.append(tables)
    for i in range(pulls.count):
        blocks = <Integers>tables[i]
        pulls.transfers[i].local_blocks = blocks.values
        pulls.transfers[i].block_count = blocks.count
    return 0


cdef int refuse_other_count(Pulls pulls, str name, uint64_t count) except -1:
    if count != pulls.count:
        raise invalid(f"{count} {name} were given for {pulls.count} cache_keys")
    return 0


cdef int make_room_for_pieces(Pulls pulls) except -1:
    """One item is carried out after the other, so room for the longest is enough."""
    cdef uint64_t longest = 1
    cdef uint64_t i
    for i in range(pulls.count):
        longest = max(longest, pulls.transfers[i].block_count)
    pulls.pieces = <Piece *>malloc(longest * sizeof(Piece))
    if pulls.pieces == NULL:
        raise MemoryError(f"{longest * sizeof(Piece)} bytes for pieces of {longest} blocks")
    return 0


cdef int refuse_other_kinds(Pulls pulls) except -1:
    for cache in pulls.caches if pulls.caches is not None else (pulls.cache,):
        if (<Cache>cache).is_blocks_cache != pulls.into_blocks:
            raise invalid(
                "cache should be blocks cache where block_tables are given"
                if pulls.into_blocks
                else "cache can not be blocks cache, unless block_tables are given"
            )
    return 0


cdef int refuse_same_target_twice(Pulls pulls) except -1:
    """Which of two pulls should a slot or a block hold? LLMException, of the first that is named again."""
    cdef PairSet named
    cdef dict numbers = {}
    cdef uint64_t i, j, row
    cdef uint64_t cache = 0
    cdef uint64_t total = 0
    cdef uint64_t before = NOT_SEEN
    if pulls.caches is None and pulls.batch_indices is None and not pulls.into_blocks:
        return 0                   # a slot of its own for each
    for i in range(pulls.count):
        total += pulls.transfers[i].block_count if pulls.into_blocks else 1
    if not pair_set_make(&named, total):
        raise MemoryError(f"no memory to compare {total} targets")
    try:
        for i in range(pulls.count):
            if pulls.caches is not None:
                cache = numbers.setdefault(pulls.caches[i], i)
            for j in range(pulls.transfers[i].block_count if pulls.into_blocks else 1):
                row = pulls.transfers[i].local_blocks[j] if pulls.into_blocks else pulls.batch_index_of(i)
                before = pair_set_add(&named, cache, row, i)
                if before != NOT_SEEN:
                    raise invalid(
                        f"{'block' if pulls.into_blocks else 'batch slot'} {row} of cache {pulls.cache_of(i).cache_id} is "
                        f"the target of items {before} and {i}"
                    )
    finally:
        pair_set_drop(&named)
    return 0


# ---------------------------------------------------------------- what is answered


cdef object one_id_refusal(object key):
    """The exception for a key that names nothing, or two things."""
    if type(key) is not CacheKey:
        return None
    try:
        check_one_id(<CacheKey>key)
    except LLMException as refused:
        return refused
    return None


cdef object refused_item(uint64_t position, object refusal):
    """The refusal of a whole call, by one item of it."""
    return LLMException(f"item {position}: {refusal}", status_code=refusal.status_code)


cdef object not_deallocated(GivenCaches given, uint64_t position):
    item = given.handles[position] if given.handles is not None else f"cache {given.cache_ids.values[position]}"
    if given.references[position].standing == OTHERS_DROP_IT:
        return invalid(f"item {position}, {item}, is a blocks cache or registered: deallocate_blocks_cache or "
                       "unregister_cache takes it")
    return failure(
        "deallocate_many",
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
        f"item {position}, {item}, does not exist, was deallocated, or was named before",
    )


cdef object status_codes(Pulls pulls):
    """How each item ended."""
    cdef uint64_t i
    answer = np.zeros(pulls.count, np.int64)
    cdef int64_t *codes = <int64_t *>data_of(answer)
    for i in range(pulls.count):
        if pulls.results[i] == LOCALLY_REFUSED:
            codes[i] = pulls.refusals[i].status_code
        elif pulls.results[i] != TRANSFERRED:
            codes[i] = status_of(pulls.results[i])
    return answer
