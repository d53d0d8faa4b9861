# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The core under stress: threads that stand for processes do everything at once to one arena.

*Owners* are threads of the process that owns it, and share its lock: they allocate, fill, remove keys, deallocate, reap,
and dismiss peers. *Peers* transfer through the arena as linked processes do, without a lock, each with its own pin bit.
*Viewers* are threads of the owner's process that take no lock: they look keys up, and pin what they view.

The number of a cache says what it looks like and what its bytes are, so a peer that is told nothing can check what it has
pulled. Whether a cache is filled yet it learns in one of two ways. Half of the peers *are told*: by an acquiring load, as
if a message had come, and they see the pools where the owner does; a sanitizer then sees every byte of a transfer that is
not ordered before the next tenant's. The other half *guess*: by a relaxed load, so that nothing but the protocol orders
what they read of the arena, and they see the pools through a mapping of their own. One of these is evicted now and then:
it may copy what is no cache's any more, and must know afterwards.

The keys of some caches have leases. No thread waits for the end of one: the owners' clock is set ahead, mostly to after the
first end and before the one that a renewal puts it off to, seldom to after both.
"""

import os

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport getpid

from llmdd._core.arena cimport Capacities, PoolSize, copy_header, init_arena, plan_arena
from llmdd._core.atomic cimport (
    atomic_fetch_add_word,
    atomic_fetch_set,
    atomic_fetch_subtract,
    atomic_load_acquire,
    atomic_load_relaxed,
    atomic_load_word,
    atomic_store_release,
    atomic_store_relaxed,
    atomic_store_word,
    monotonic_nanoseconds,
)
from llmdd._core.bulk_keys cimport Keys, find_keys
from llmdd._core.copying cimport CopyTeam, Piece
from llmdd._core.key_index cimport index_is_unchanged, index_probe, index_version, key_tag
from llmdd._core.layout cimport (
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_PREFIX,
    KEY_REQUEST,
    POOL_COUNT,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    PinWords,
    header_of,
    pin_words,
    reference_slot_at,
    slot_at,
)
from llmdd._core.leases cimport lease_clock_ms
from llmdd._core.lifecycle cimport (
    ACCEPTED,
    KEY_ALREADY_BOUND,
    Allocation,
    Refusal,
    admit_peer_bit,
    allocate,
    bound_cache_id,
    check_arena,
    dismiss_peer,
    drop_id,
    evict_peer,
    expire_leases,
    generation_of,
    pin_local,
    reap,
    remove_key,
    tensor_place,
    unpin_local,
    withdraw,
)
from llmdd._core.renewals cimport renew
from llmdd._core.segments cimport Mapping, create_segment, map_private, map_segment
from llmdd._core.transfer cimport (
    ADDRESS_UNKNOWN,
    BY_ADDRESS,
    BY_KEY,
    LINK_LOST,
    REMOTE_MISSING,
    SLOT_TO_SLOT,
    TRANSFERRED,
    Transfer,
    TransferResult,
    carry_out,
)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "futex.h" nogil:
    bint futex_take(uint32_t *word, int64_t timeout_nanoseconds)
    void futex_release(uint32_t *word)

cdef extern from "sanitizing.h" nogil:
    void forbid(const void *begin, size_t size)
    void allow(const void *begin, size_t size)

cdef enum:
    OWNERS = 2
    PEERS = 4
    VIEWERS = 1
    EVICTABLE = 0                  # the number of a peer that guesses
    THREADS = OWNERS + PEERS + VIEWERS
    HOST = 0
    DEVICE = 1
    PAGE_SHIFT = 10
    DEVICE_BYTES = 256 << PAGE_SHIFT
    HOST_BYTES = 32 << PAGE_SHIFT
    MOST_TENSORS = 3
    MOST_ROWS = 40
    LARGEST_ROW = 192
    WINDOW = 48                    # peers look for the newest caches
    LIVE_AT_ONCE = 48              # of one owner
    GIVEN_UP_AT_ONCE = 64
    ALONE = 100                    # so many things an owner does before it waits for the others to arrive
    OWN_BUFFERS = 3                # memory of an owner's own, to be registered
    OWN_BYTES = MOST_TENSORS * MOST_ROWS * LARGEST_ROW
    LEASE_MS = 1000000             # ends while no storm lasts so long
    NAMED_AT_ONCE = 64

cdef int64_t MINUTE = 60 * 1000000000

# Peers of the first pin word, of the next, and of one further on.
cdef unsigned int[PEERS] PEER_BITS = [0, 63, 64, 200]


# ---------------------------------------------------------------- what may be done wrong on purpose

cdef enum Fault:
    NO_FAULT = 0
    PLAIN_REFERENCE = 1            # a peer reads a reference word as if nobody else wrote it
    READ_ON = 2                    # a peer reads on when its transfer has ended
    FILL_TOO_FAR = 3               # an owner writes one word behind its tensors
    SHIFT_TOO_FAR = 4              # by as many bits as there are

FAULTS = {
    "none": NO_FAULT,
    "plain reference": PLAIN_REFERENCE,
    "read on": READ_ON,
    "fill too far": FILL_TOO_FAR,
    "shift too far": SHIFT_TOO_FAR,
}


# ---------------------------------------------------------------- what is counted

cdef enum:
    ALLOCATED = 0
    ALLOCATED_IN_PIECES = 1
    REGISTERED = 2
    FOUND_NO_ROOM = 3
    DEALLOCATED = 4
    KEY_REMOVED = 5
    DISMISSED = 6
    PULLED_BY_KEY = 7
    PULLED_A_TENSOR = 8
    PULLED_BY_ID = 9
    PULLED_A_REUSED_KEY = 10
    PUSHED_BY_ID = 11
    PUSHED_TO_AN_ADDRESS = 12
    PUSHED_ANYWHERE = 13
    MISSED = 14
    VIEWED = 15
    CAME_TOO_LATE_TO_VIEW = 16
    LOOKED_UP = 17
    INDEX_CHANGED_MEANWHILE = 18
    EVICTED = 19
    LOST_ITS_LINK = 20
    LOOKED_UP_TOGETHER = 21
    RENEWED = 22
    RENEWED_BY_ITS_OWNER = 23
    EXPIRED = 24
    EXPIRED_THOUGH_RENEWED = 25
    DEEDS = 26

DEED_NAMES = (
    "allocated",
    "allocated in pieces",
    "registered",
    "found no room",
    "deallocated",
    "key removed",
    "dismissed",
    "pulled by key",
    "pulled a tensor",
    "pulled by id",
    "pulled a reused key",
    "pushed by id",
    "pushed to an address",
    "pushed anywhere",
    "missed",
    "viewed",
    "came too late to view",
    "looked up",
    "index changed meanwhile",
    "evicted",
    "lost its link",
    "looked up together",
    "renewed",
    "renewed by its owner",
    "expired",
    "expired though renewed once",
)


# ---------------------------------------------------------------- caches, by their numbers

cdef enum Use:
    ORDINARY = 0
    KEYS_USED_AGAIN = 1            # in the HOST pool: pulled before it is filled, so its bytes are not looked at
    OWN_MEMORY = 2
    TO_BE_PUSHED_TO = 3            # batch slot p is peer p's

cdef struct Shape:
    Use use
    uint64_t num_tensors
    uint64_t rows
    uint64_t row_bytes
    uint64_t key_count
    bint leased


cdef inline uint64_t mixed(uint64_t value) noexcept nogil:
    """The step of splitmix64."""
    value += 0x9E3779B97F4A7C15ULL
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL
    return value ^ (value >> 31)


cdef Shape shape_of(uint64_t number) noexcept nogil:
    cdef uint64_t random = mixed(number)
    cdef Shape shape
    shape.use = ORDINARY
    shape.num_tensors = 1 + random % MOST_TENSORS
    shape.rows = MOST_ROWS if random >> 8 & 7 == 0 else 1 + (random >> 11) % 6
    shape.row_bytes = 8 * (1 + (random >> 16) % (LARGEST_ROW // 8))
    shape.key_count = shape.rows
    shape.leased = number % 4 == 1
    if number % 8 == 5:
        shape.use = KEYS_USED_AGAIN
        shape.leased = False
        shape.rows = shape.key_count = 2
        shape.num_tensors = 2
        shape.row_bytes = 64
    elif number % 8 == 6:
        shape.use = OWN_MEMORY
    elif number % 8 == 7:
        shape.use = TO_BE_PUSHED_TO
        shape.num_tensors = 2
        shape.rows = PEERS
        shape.key_count = 0
    return shape


cdef KeyRecord key_of(uint64_t number, uint64_t row) noexcept nogil:
    """The key of one batch slot: mostly of a request, some of a prefix, some of nobody."""
    cdef KeyRecord key
    key.model_id = number % 3
    key.id = number << 8 | row
    key.kind = KEY_REQUEST
    key.leased = shape_of(number).leased
    if shape_of(number).use == KEYS_USED_AGAIN:
        key.id = row
        key.model_id = 7
    elif row % 5 == 3:
        key.kind = KEY_PREFIX
    elif row % 7 == 5:
        key.kind = KEY_NONE
    return key


cdef inline uint64_t content(uint64_t number, uint64_t tensor, uint64_t row) noexcept nogil:
    """Every word of a row."""
    return mixed(number << 16 | tensor << 8 | row)


cdef void fill_row(char *begin, uint64_t words, uint64_t value) noexcept nogil:
    cdef uint64_t i
    for i in range(words):
        (<uint64_t *>begin)[i] = value


cdef bint row_is(const char *begin, uint64_t words, uint64_t value) noexcept nogil:
    cdef uint64_t i
    for i in range(words):
        if (<const uint64_t *>begin)[i] != value:
            return False
    return True


# ---------------------------------------------------------------- what the threads share

cdef struct CacheNote:
    # What is known of a cache by its number. Written by who allocates it, before `filled`.
    uint64_t filled
    uint64_t handle                # slot << 32 | generation
    uint64_t[MOST_TENSORS] places  # pool offsets or, of registered memory, addresses
    uint64_t[PEERS] pushed         # peer p has pushed its row
    uint64_t kept                  # by who pushes to its addresses, and must not meet a successor there
    uint64_t closed                # nobody keeps it any more
    uint64_t renewed               # a bit for each row of which somebody has renewed the lease

cdef struct Round:
    char *arena
    char *near_pools[POOL_COUNT]
    char *far_pools[PEERS]         # of the DEVICE pool, as those see it that guess, and must never touch what was freed
    uint32_t lock
    uint64_t most_caches           # numbers go up to this one
    CacheNote *notes
    uint64_t newest                # the highest number given
    uint64_t[PEERS] leaving        # peer p asks to be dismissed
    uint64_t arrived               # peers and viewers that are at work
    uint64_t owners_done
    uint64_t never                 # no link is lost
    # Under the lock: caches that hold memory of the DEVICE pool, as far as was looked.
    uint64_t *placed
    uint64_t placed_count
    Fault fault

cdef struct OwnBuffer:
    char *memory
    uint64_t number                # of the cache that is registered over it; 0: none
    bint withdrawn

cdef struct Worker:
    Round *round
    uint64_t number
    uint64_t random
    uint64_t operations
    uint64_t[DEEDS] deeds
    uint64_t mistakes
    const char *mistake            # the last
    # an owner's
    uint64_t[LIVE_AT_ONCE] live
    uint64_t live_count
    uint64_t[GIVEN_UP_AT_ONCE] given_up     # deallocated; their keys may hold them still
    uint64_t given_up_count
    OwnBuffer[OWN_BUFFERS] buffers
    # a peer's
    bint told
    char *pools[POOL_COUNT]
    ArenaHeader known
    char *local_arena
    char *local_pool
    uint64_t local_slot
    Piece piece
    CopyTeam team
    const char *remembered         # a place that it has no pin on any more (READ_ON)


cdef inline uint64_t chance(Worker *worker, uint64_t below) noexcept nogil:
    worker.random += 1
    return mixed(worker.random) % below


cdef void require(Worker *worker, bint condition, const char *otherwise) noexcept nogil:
    if not condition:
        worker.mistake = otherwise
        worker.mistakes += 1


cdef inline void take_lock(Round *round) noexcept nogil:
    while not futex_take(&round.lock, MINUTE):
        pass


cdef inline uint64_t slot_of(uint64_t handle) noexcept nogil:
    return handle >> 32


# ---------------------------------------------------------------- an owner


cdef void forbid_what_was_freed(Round *round) noexcept nogil:
    """Under the lock. Memory of caches that have gone is nobody's until it is allocated again."""
    cdef uint64_t i = 0
    cdef uint64_t number
    cdef CacheNote *note
    while i < round.placed_count:
        number = round.placed[i]
        note = round.notes + number
        if generation_of(slot_at(round.arena, slot_of(note.handle))) == <uint32_t>note.handle:
            i += 1
            continue
        mark_memory(round, number, False)
        round.placed_count -= 1
        round.placed[i] = round.placed[round.placed_count]


cdef void mark_memory(Round *round, uint64_t number, bint allowed) noexcept nogil:
    """Whether the tensors of a cache may be touched; what is behind them in their pages never is."""
    cdef Shape shape = shape_of(number)
    cdef uint64_t tensor, place
    for tensor in range(shape.num_tensors):
        place = round.notes[number].places[tensor]
        if allowed:
            allow_in_all(round, place, shape.rows * shape.row_bytes)
        else:
            forbid_in_all(round, place, shape.rows * shape.row_bytes)


cdef void forbid_in_all(Round *round, uint64_t place, uint64_t size) noexcept nogil:
    cdef uint64_t peer
    forbid(round.near_pools[DEVICE] + place, size)
    for peer in range(PEERS):
        if round.far_pools[peer] != NULL:
            forbid(round.far_pools[peer] + place, size)


cdef void allow_in_all(Round *round, uint64_t place, uint64_t size) noexcept nogil:
    cdef uint64_t peer
    allow(round.near_pools[DEVICE] + place, size)
    for peer in range(PEERS):
        if round.far_pools[peer] != NULL:
            allow(round.far_pools[peer] + place, size)


cdef OwnBuffer *free_buffer(Worker *owner) noexcept nogil:
    """Under the lock. Memory of our own that no transfer uses any more; NULL if there is none."""
    cdef uint64_t i, handle
    cdef OwnBuffer *buffer
    for i in range(OWN_BUFFERS):
        buffer = &owner.buffers[i]
        if buffer.withdrawn:
            handle = owner.round.notes[buffer.number].handle
            if generation_of(slot_at(owner.round.arena, slot_of(handle))) != <uint32_t>handle:
                buffer.number = 0
                buffer.withdrawn = False
        if buffer.number == 0:
            return buffer
    return NULL


cdef void unregister_one(Worker *owner) noexcept nogil:
    cdef OwnBuffer *buffer = &owner.buffers[chance(owner, OWN_BUFFERS)]
    cdef uint64_t handle
    if buffer.number == 0 or buffer.withdrawn:
        return
    handle = owner.round.notes[buffer.number].handle
    take_lock(owner.round)
    withdraw(owner.round.arena, slot_of(handle), <uint32_t>handle)
    futex_release(&owner.round.lock)
    buffer.withdrawn = True


cdef void take_note(Worker *owner, const Allocation *request) noexcept nogil:
    """Under the lock. Where the cache that has just been allocated is."""
    cdef Round *round = owner.round
    cdef CacheNote *note = round.notes + request.cache_id
    cdef uint64_t tensor
    for tensor in range(request.num_tensors):
        atomic_store_relaxed(
            &note.places[tensor], tensor_place(round.arena, slot_at(round.arena, request.slot), tensor)
        )
    atomic_store_relaxed(&note.handle, request.slot << 32 | request.generation)
    atomic_store_relaxed(&round.newest, <uint64_t>request.cache_id)
    forbid_what_was_freed(round)
    if request.placement == DEVICE and request.addresses == NULL:
        mark_memory(round, <uint64_t>request.cache_id, True)
        round.placed[round.placed_count] = <uint64_t>request.cache_id
        round.placed_count += 1


cdef void fill(Worker *owner, uint64_t number) noexcept nogil:
    """Write every byte of a new cache, as its user would, and let the others know."""
    cdef Shape shape = shape_of(number)
    cdef CacheNote *note = owner.round.notes + number
    cdef uint64_t tensor, row
    cdef uint64_t words = shape.row_bytes // 8
    cdef char *begin
    for tensor in range(shape.num_tensors):
        begin = <char *>note.places[tensor]
        if shape.use != OWN_MEMORY:
            begin = owner.round.near_pools[HOST if shape.use == KEYS_USED_AGAIN else DEVICE] + note.places[tensor]
        for row in range(shape.rows):
            fill_row(begin + row * shape.row_bytes, words, content(number, tensor, row))
        if owner.round.fault == FILL_TOO_FAR and shape.use == ORDINARY:
            fill_row(begin + shape.rows * shape.row_bytes, 1, 0)
    atomic_store_release(&note.filled, 1)


cdef bint allocate_next(Worker *owner) noexcept nogil:
    """Allocate the cache that is next by its number; False if there was no room."""
    cdef Round *round = owner.round
    cdef Allocation request
    cdef KeyRecord[MOST_ROWS] keys
    cdef uint64_t[MOST_TENSORS] addresses
    cdef OwnBuffer *buffer = NULL
    cdef uint64_t number, i
    cdef Shape shape
    cdef Refusal refusal
    take_lock(round)
    number = <uint64_t>header_of(round.arena).next_cache_id
    shape = shape_of(number)
    if shape.use == OWN_MEMORY:
        buffer = free_buffer(owner)
    if number > round.most_caches or (shape.use == OWN_MEMORY and buffer == NULL):
        futex_release(&round.lock)
        unregister_one(owner)
        return False
    for i in range(shape.key_count):
        keys[i] = key_of(number, i)
    memset(&request, 0, sizeof(request))
    request.placement = HOST if shape.use == KEYS_USED_AGAIN else DEVICE
    request.num_tensors = shape.num_tensors
    request.tensor_bytes = shape.rows * shape.row_bytes
    request.row_count = shape.rows
    request.accessible = True
    request.keys = keys
    request.key_count = shape.key_count
    request.lease_ms = LEASE_MS if shape.leased else 0
    if buffer != NULL:
        for i in range(shape.num_tensors):
            addresses[i] = <uint64_t>buffer.memory + i * request.tensor_bytes
        request.addresses = addresses
    refusal = allocate(round.arena, &request)
    if refusal == KEY_ALREADY_BOUND:
        remove_key(
            round.arena, keys[request.refused_key].kind, keys[request.refused_key].id, keys[request.refused_key].model_id
        )
    elif refusal == ACCEPTED:
        owner.deeds[ALLOCATED] += 1
        owner.deeds[ALLOCATED_IN_PIECES] += not slot_at(round.arena, request.slot).contiguous and buffer == NULL
        owner.deeds[REGISTERED] += buffer != NULL
        take_note(owner, &request)
    futex_release(&round.lock)
    if refusal != ACCEPTED:
        owner.deeds[FOUND_NO_ROOM] += refusal != KEY_ALREADY_BOUND
        return refusal == KEY_ALREADY_BOUND
    require(owner, <uint64_t>request.cache_id == number, b"a cache has not the number that was next")
    fill(owner, number)
    if buffer != NULL:
        buffer.number = number
    else:
        owner.live[owner.live_count] = number
        owner.live_count += 1
    return True


cdef void check_what_was_pushed(Worker *owner, uint64_t number) noexcept nogil:
    cdef Shape shape = shape_of(number)
    cdef CacheNote *note = owner.round.notes + number
    cdef uint64_t peer, tensor
    for peer in range(PEERS):
        if atomic_load_acquire(&note.pushed[peer]):
            for tensor in range(shape.num_tensors):
                require(
                    owner,
                    row_is(
                        owner.round.near_pools[DEVICE] + note.places[tensor] + peer * shape.row_bytes,
                        shape.row_bytes // 8,
                        ~content(number, tensor, peer),
                    ),
                    b"what was pushed did not arrive",
                )


cdef void remove_all_keys(Worker *owner, uint64_t number) noexcept nogil:
    cdef uint64_t row
    cdef KeyRecord key
    for row in range(shape_of(number).key_count):
        key = key_of(number, row)
        if key.kind == KEY_NONE:
            continue
        take_lock(owner.round)
        owner.deeds[KEY_REMOVED] += remove_key(owner.round.arena, key.kind, key.id, key.model_id)
        futex_release(&owner.round.lock)


cdef void forget_a_given_up_one(Worker *owner) noexcept nogil:
    """Remove whatever keys are left of a cache that was deallocated."""
    cdef uint64_t i
    if owner.given_up_count == 0:
        return
    i = chance(owner, owner.given_up_count)
    remove_all_keys(owner, owner.given_up[i])
    owner.given_up_count -= 1
    owner.given_up[i] = owner.given_up[owner.given_up_count]


cdef void deallocate_one(Worker *owner) noexcept nogil:
    cdef uint64_t i, number, handle
    if owner.live_count == 0:
        return
    if owner.given_up_count == GIVEN_UP_AT_ONCE:
        forget_a_given_up_one(owner)
    i = chance(owner, owner.live_count)
    number = owner.live[i]
    atomic_store_word(&owner.round.notes[number].closed, 1)
    if atomic_load_word(&owner.round.notes[number].kept):
        return
    owner.live_count -= 1
    owner.live[i] = owner.live[owner.live_count]
    owner.given_up[owner.given_up_count] = number
    owner.given_up_count += 1
    if shape_of(number).use == TO_BE_PUSHED_TO:
        check_what_was_pushed(owner, number)
    handle = owner.round.notes[number].handle
    take_lock(owner.round)
    drop_id(owner.round.arena, slot_of(handle), <uint32_t>handle)
    futex_release(&owner.round.lock)
    owner.deeds[DEALLOCATED] += 1


cdef void dismiss_who_asks(Worker *owner) noexcept nogil:
    cdef uint64_t peer
    for peer in range(PEERS):
        if not atomic_load_acquire(&owner.round.leaving[peer]):
            continue
        take_lock(owner.round)
        if atomic_load_acquire(&owner.round.leaving[peer]):
            dismiss_peer(owner.round.arena, PEER_BITS[peer])
            owner.deeds[DISMISSED] += 1
            atomic_store_release(&owner.round.leaving[peer], 0)
        futex_release(&owner.round.lock)


cdef void evict_one(Worker *owner) noexcept nogil:
    """While it transfers, and goes on until it notices."""
    take_lock(owner.round)
    evict_peer(owner.round.arena, PEER_BITS[EVICTABLE])
    futex_release(&owner.round.lock)
    owner.deeds[EVICTED] += 1


cdef void expire_some(Worker *owner) noexcept nogil:
    """Drop the keys whose leases are over, as seen at a time when the renewed ones are not, or at one when all are."""
    cdef KeyRecord[NAMED_AT_ONCE] named
    cdef bint all_ended = chance(owner, 4) == 0
    cdef int64_t now_ms = lease_clock_ms() + LEASE_MS * (4 if all_ended else 2)
    cdef uint64_t expired, i
    cdef bint renewed
    take_lock(owner.round)
    expired = expire_leases(
        owner.round.arena, 0, header_of(owner.round.arena).slots_used, now_ms, named, NAMED_AT_ONCE
    )
    futex_release(&owner.round.lock)
    owner.deeds[EXPIRED] += expired
    for i in range(min(expired, NAMED_AT_ONCE)):
        # Who renewed before is believed, and who comes after has been refused: so it does not matter when this is read.
        renewed = atomic_load_acquire(&owner.round.notes[named[i].id >> 8].renewed) >> (named[i].id & 0xFF) & 1
        owner.deeds[EXPIRED_THOUGH_RENEWED] += renewed
        require(owner, all_ended or not renewed, b"a key was taken before the end of its renewed lease")


cdef void *run_owner(void *argument) noexcept nogil:
    cdef Worker *owner = <Worker *>argument
    cdef uint64_t count, choice
    for count in range(owner.operations):
        choice = chance(owner, 16)
        if choice < 7:
            if owner.live_count == LIVE_AT_ONCE or not allocate_next(owner):
                deallocate_one(owner)
                forget_a_given_up_one(owner)
        elif choice < 10:
            deallocate_one(owner)
        elif choice < 12:
            forget_a_given_up_one(owner)
        elif choice < 13:
            unregister_one(owner)
            evict_one(owner)
            expire_some(owner)
        elif choice < 14 and owner.live_count:
            remove_all_keys(owner, owner.live[chance(owner, owner.live_count)])
        else:
            take_lock(owner.round)
            reap(owner.round.arena, 16)
            futex_release(&owner.round.lock)
        dismiss_who_asks(owner)
        if chance(owner, 32) == 0:
            sched_yield()
        while count == ALONE and atomic_load_acquire(&owner.round.arrived) < PEERS + VIEWERS:
            sched_yield()
    atomic_fetch_add_word(&owner.round.owners_done, 1)
    return NULL


# ---------------------------------------------------------------- a peer


cdef bint is_filled(Worker *worker, uint64_t number) noexcept nogil:
    if worker.told:
        return atomic_load_acquire(&worker.round.notes[number].filled) != 0
    return atomic_load_relaxed(&worker.round.notes[number].filled) != 0


cdef uint64_t some_number(Worker *worker) noexcept nogil:
    """The number of a cache that is filled, and may have gone since; 0 if that was not to be had."""
    cdef uint64_t newest = atomic_load_relaxed(&worker.round.newest)
    cdef uint64_t number
    if newest == 0:
        return 0
    number = newest - chance(worker, min(newest, WINDOW))
    return number if is_filled(worker, number) else 0


cdef void prepare(Worker *peer, Transfer *transfer, uint64_t first, uint64_t end, uint64_t size) noexcept nogil:
    """What every transfer of tensors [first, end) has in common: `size` bytes of each, from or to the start of ours."""
    memset(transfer, 0, sizeof(Transfer))
    transfer.arena = peer.round.arena
    transfer.known = &peer.known
    transfer.pools = peer.pools
    transfer.peer_bit = PEER_BITS[peer.number]
    transfer.pid = getpid()
    transfer.pidfd = -1
    transfer.broken = &peer.round.never
    transfer.local_arena = peer.local_arena
    transfer.local_slot = slot_at(peer.local_arena, peer.local_slot)
    transfer.local_pool = peer.local_pool
    transfer.local_first = 0
    transfer.local_end = end - first
    transfer.remote_first = first
    transfer.remote_end = end
    transfer.form = SLOT_TO_SLOT
    transfer.bytes = size
    transfer.pieces = &peer.piece
    transfer.team = &peer.team
    transfer.deadline = monotonic_nanoseconds() + MINUTE


cdef char *our_tensor(Worker *peer, uint64_t tensor) noexcept nogil:
    return peer.local_pool + tensor_place(peer.local_arena, slot_at(peer.local_arena, peer.local_slot), tensor)


cdef bint transferred(Worker *peer, Transfer *transfer, int deed) noexcept nogil:
    """Carry out; whether it was done. Not to find the cache any more is all that may go wrong, unless we are evicted."""
    return went_well(peer, transfer, carry_out(transfer), deed)


cdef bint went_well(Worker *peer, Transfer *transfer, TransferResult result, int deed) noexcept nogil:
    if result == TRANSFERRED:
        peer.deeds[deed] += 1
        return True
    if result == LINK_LOST and peer.number == EVICTABLE:
        peer.deeds[LOST_ITS_LINK] += 1
        return False
    require(
        peer,
        result == REMOTE_MISSING or (result == ADDRESS_UNKNOWN and transfer.addressing == BY_ADDRESS),
        b"a transfer was refused for another reason than that its cache has gone",
    )
    peer.deeds[MISSED] += 1
    return False


cdef void read_reference_plainly(Worker *peer, uint64_t number) noexcept nogil:
    cdef uint64_t slot = slot_of(atomic_load_relaxed(&peer.round.notes[number].handle))
    require(peer, reference_slot_at(peer.round.arena, slot).words[0] != 0, b"a reference word is 0")


cdef void read_on_without_a_pin(Worker *peer, uint64_t number) noexcept nogil:
    """The first word of a cache that we transferred from, some transfers later."""
    if peer.deeds[PULLED_BY_KEY] % 64 == 0:
        peer.remembered = peer.pools[DEVICE] + atomic_load_relaxed(&peer.round.notes[number].places[0])
    if peer.remembered != NULL:
        require(peer, not row_is(peer.remembered, 1, 0), b"a word without a pin")


cdef void pull(Worker *peer, uint64_t number) noexcept nogil:
    """A row of a cache: by its key, whole or only some tensors, or by the cache's id. Every byte is looked at."""
    cdef Shape shape = shape_of(number)
    cdef uint64_t row = chance(peer, shape.rows)
    cdef KeyRecord key = key_of(number, row)
    cdef uint64_t first = 0
    cdef uint64_t end = shape.num_tensors
    cdef uint64_t words = 1 + chance(peer, shape.row_bytes // 8)
    cdef int deed = PULLED_BY_KEY
    cdef uint64_t tensor
    cdef Transfer transfer
    if chance(peer, 2):
        first = chance(peer, shape.num_tensors)
        end = first + 1
        deed = PULLED_A_TENSOR
    prepare(peer, &transfer, first, end, words * 8)
    transfer.addressing = BY_KEY
    transfer.kind, transfer.id, transfer.model_id = key.kind, key.id, key.model_id
    if key.kind == KEY_NONE or chance(peer, 4) == 0:
        transfer.kind, transfer.id, transfer.model_id = KEY_CACHE_ID, number, 0
        transfer.batch_index = row
        transfer.keeps_keys = chance(peer, 2)
        deed = PULLED_BY_ID
    if not transferred(peer, &transfer, deed):
        return
    for tensor in range(first, end):
        require(
            peer, row_is(our_tensor(peer, tensor - first), words, content(number, tensor, row)), b"pulled bytes are wrong"
        )
    if peer.round.fault == PLAIN_REFERENCE:
        read_reference_plainly(peer, number)
    elif peer.round.fault == READ_ON and peer.told and shape.use == ORDINARY:
        read_on_without_a_pin(peer, number)


cdef void renew_one(Worker *worker, uint64_t number, Transfer *named, int deed) noexcept nogil:
    """Put the end of a lease off, of a key by its name or by where it is bound."""
    cdef uint64_t row = chance(worker, shape_of(number).rows)
    cdef KeyRecord key = key_of(number, row)
    named.addressing = BY_KEY
    named.kind, named.id, named.model_id = key.kind, key.id, key.model_id
    if key.kind == KEY_NONE or chance(worker, 4) == 0:
        named.kind, named.id, named.model_id = KEY_CACHE_ID, number, 0
        named.batch_index = row
    if went_well(worker, named, renew(named, 3 * LEASE_MS), deed) and worker.told:
        atomic_fetch_set(&worker.round.notes[number].renewed, <uint64_t>1 << row)


cdef void renew_as_peer(Worker *peer, uint64_t number) noexcept nogil:
    cdef Transfer named
    prepare(peer, &named, 0, 1, 0)
    renew_one(peer, number, &named, RENEWED)


cdef void pull_a_reused_key(Worker *peer) noexcept nogil:
    cdef Transfer transfer
    prepare(peer, &transfer, 0, 2, 64)
    transfer.addressing = BY_KEY
    transfer.kind, transfer.id, transfer.model_id = KEY_REQUEST, chance(peer, 2), 7
    transferred(peer, &transfer, PULLED_A_REUSED_KEY)


cdef void push(Worker *peer, uint64_t number) noexcept nogil:
    """Our row of a cache, once: by its id, or by its addresses as long as its owner keeps it."""
    cdef Shape shape = shape_of(number)
    cdef CacheNote *note = peer.round.notes + number
    cdef bint to_address = chance(peer, 2)
    cdef Transfer transfer
    cdef uint64_t tensor
    if atomic_load_relaxed(&note.pushed[peer.number]):
        return
    prepare(peer, &transfer, 0, shape.num_tensors, shape.row_bytes)
    transfer.push = True
    transfer.addressing = BY_ADDRESS if to_address else BY_KEY
    transfer.kind, transfer.id, transfer.batch_index = KEY_CACHE_ID, number, peer.number
    for tensor in range(shape.num_tensors):
        fill_row(our_tensor(peer, tensor), shape.row_bytes // 8, ~content(number, tensor, peer.number))
        transfer.addresses[tensor] = atomic_load_relaxed(&note.places[tensor]) + peer.number * shape.row_bytes
        transfer.addresses[tensor] += peer.known.pools[DEVICE].address
    atomic_fetch_add_word(&note.kept, to_address)
    if not (to_address and atomic_load_word(&note.closed)):
        if transferred(peer, &transfer, PUSHED_TO_AN_ADDRESS if to_address else PUSHED_BY_ID) and peer.told:
            atomic_store_release(&note.pushed[peer.number], 1)
    atomic_fetch_subtract(&note.kept, to_address)


cdef void push_anywhere(Worker *peer) noexcept nogil:
    """To whatever lives at two addresses of the HOST pool."""
    cdef Transfer transfer
    cdef uint64_t i
    prepare(peer, &transfer, 0, 2, 64)
    transfer.push = True
    transfer.addressing = BY_ADDRESS
    for i in range(2):
        transfer.addresses[i] = peer.known.pools[HOST].address + 64 * chance(peer, 2)
        transfer.addresses[i] += chance(peer, HOST_BYTES >> PAGE_SHIFT) << PAGE_SHIFT
    transferred(peer, &transfer, PUSHED_ANYWHERE)


cdef void die_and_come_back(Worker *peer, uint64_t number) noexcept nogil:
    """Leave a pin behind, as a process that is killed does, and go on as a new one when the owner has cleared it."""
    cdef uint64_t slot = slot_of(atomic_load_relaxed(&peer.round.notes[number].handle))
    cdef unsigned int bit = PEER_BITS[peer.number]
    cdef PinWords *words = pin_words(peer.round.arena, &peer.known, slot, bit // 64)
    atomic_fetch_set(&words.readers if chance(peer, 2) else &words.writers, <uint64_t>1 << bit % 64)
    atomic_store_release(&peer.round.leaving[peer.number], 1)
    while atomic_load_acquire(&peer.round.leaving[peer.number]) and not over(peer.round):
        sched_yield()


cdef inline bint over(Round *round) noexcept nogil:
    return atomic_load_acquire(&round.owners_done) == OWNERS


cdef void shift_too_far(Worker *peer) noexcept nogil:
    cdef int by = 32 + <int>chance(peer, 1)
    require(peer, (1 << by) != 5, b"a shift")


cdef void *run_peer(void *argument) noexcept nogil:
    cdef Worker *peer = <Worker *>argument
    cdef uint64_t number
    # While the owner is at work already.
    copy_header(&peer.known, header_of(peer.round.arena))
    admit_peer_bit(peer.round.arena, PEER_BITS[peer.number])
    atomic_fetch_add_word(&peer.round.arrived, 1)
    if peer.round.fault == SHIFT_TOO_FAR:
        shift_too_far(peer)
    while not over(peer.round):
        number = some_number(peer)
        if number == 0:
            sched_yield()
        elif chance(peer, 256) == 0:
            die_and_come_back(peer, number)
        elif chance(peer, 8) == 0:
            pull_a_reused_key(peer)
        elif chance(peer, 8) == 0:
            push_anywhere(peer)
        elif shape_of(number).leased and chance(peer, 2):
            renew_as_peer(peer, number)
        elif shape_of(number).use == TO_BE_PUSHED_TO:
            push(peer, number)
        elif shape_of(number).use != KEYS_USED_AGAIN:
            pull(peer, number)
    return NULL


# ---------------------------------------------------------------- a viewer


cdef void view(Worker *viewer, uint64_t number) noexcept nogil:
    """Pin a cache of our own, look at it, unpin it."""
    cdef Round *round = viewer.round
    cdef Shape shape = shape_of(number)
    cdef CacheNote *note = round.notes + number
    cdef uint64_t handle = atomic_load_relaxed(&note.handle)
    cdef uint64_t tensor = chance(viewer, shape.num_tensors)
    cdef uint64_t row = chance(viewer, shape.rows)
    cdef char *begin = round.near_pools[DEVICE]
    if pin_local(round.arena, slot_of(handle), <uint32_t>handle) != ACCEPTED:
        viewer.deeds[CAME_TOO_LATE_TO_VIEW] += 1
        return
    if shape.use == OWN_MEMORY:
        begin = NULL
    begin += tensor_place(round.arena, slot_at(round.arena, slot_of(handle)), tensor)
    require(
        viewer,
        row_is(begin + row * shape.row_bytes, shape.row_bytes // 8, content(number, tensor, row)),
        b"viewed bytes are wrong",
    )
    unpin_local(round.arena, slot_of(handle))
    viewer.deeds[VIEWED] += 1


cdef void renew_as_owner(Worker *viewer, uint64_t number) noexcept nogil:
    """For itself, or for a peer on another host: without the lock."""
    cdef Transfer named
    memset(&named, 0, sizeof(Transfer))
    named.arena = viewer.round.arena
    named.known = header_of(viewer.round.arena)
    named.pools = viewer.round.near_pools
    named.broken = &viewer.round.never
    named.served = True
    named.deadline = monotonic_nanoseconds() + MINUTE
    renew_one(viewer, number, &named, RENEWED_BY_ITS_OWNER)


cdef void look_up(Worker *viewer, uint64_t number) noexcept nogil:
    """Where a key is bound, as `NodeCaches.lookup` finds it: without the lock."""
    cdef char *arena = viewer.round.arena
    cdef KeyRecord key = key_of(number, chance(viewer, shape_of(number).rows))
    cdef uint32_t tag = key_tag(header_of(arena), key.kind, key.id, key.model_id)
    cdef IndexEntry entry
    cdef int64_t cache_id = 0
    cdef uint64_t version = index_version(arena)
    if key.kind == KEY_NONE:
        return
    if index_probe(arena, header_of(arena), tag, key.id, key.model_id, &entry):
        cache_id = bound_cache_id(arena, &entry)
    if not index_is_unchanged(arena, version):
        viewer.deeds[INDEX_CHANGED_MEANWHILE] += 1
        return
    require(viewer, cache_id == 0 or <uint64_t>cache_id == number, b"a key was found in another cache")
    viewer.deeds[LOOKED_UP] += cache_id != 0


cdef void look_many_up(Worker *viewer, uint64_t number) noexcept nogil:
    """All keys of a cache at once; they are found in that cache or nowhere."""
    cdef KeyRecord[MOST_ROWS] records
    cdef int64_t[MOST_ROWS] cache_ids
    cdef uint32_t[MOST_ROWS] batch_indices
    cdef Keys keys
    cdef uint64_t found, row
    keys.records = records
    keys.request_ids = NULL
    keys.count = shape_of(number).key_count
    for row in range(keys.count):
        records[row] = key_of(number, row)
    found = find_keys(viewer.round.arena, &keys, 0, cache_ids, batch_indices)
    for row in range(found):
        viewer.deeds[LOOKED_UP_TOGETHER] += cache_ids[row] != 0
        require(
            viewer,
            cache_ids[row] == 0 or (<uint64_t>cache_ids[row] == number and batch_indices[row] == row),
            b"one of many keys was found elsewhere",
        )


cdef void *run_viewer(void *argument) noexcept nogil:
    cdef Worker *viewer = <Worker *>argument
    cdef uint64_t number
    cdef Use use
    atomic_fetch_add_word(&viewer.round.arrived, 1)
    while not over(viewer.round):
        number = some_number(viewer)
        use = shape_of(number).use
        if number == 0 or use == KEYS_USED_AGAIN:
            sched_yield()
        elif shape_of(number).leased and chance(viewer, 2):
            renew_as_owner(viewer, number)
        elif use == TO_BE_PUSHED_TO or chance(viewer, 2):
            look_up(viewer, number)
            look_many_up(viewer, number)
        else:
            view(viewer, number)
    return NULL


# ---------------------------------------------------------------- a round


cdef Mapping new_arena(Mapping device, Mapping host, uint64_t slots, uint64_t keys):
    cdef Capacities capacities
    cdef PoolSize[POOL_COUNT] sizes
    cdef ArenaHeader plan
    cdef Mapping arena
    capacities.slots = slots
    capacities.keys = keys
    capacities.records = capacities.words = 4 * slots
    sizes[HOST].memory_size = host.size if host is not None else 0
    sizes[DEVICE].memory_size = device.size
    sizes[HOST].page_shift = sizes[DEVICE].page_shift = PAGE_SHIFT
    plan_arena(&plan, &capacities, sizes)
    plan.hash_seed[0], plan.hash_seed[1] = mixed(1), mixed(2)
    plan.pools[HOST].address = <uint64_t>host.base if host is not None else 0
    plan.pools[DEVICE].address = <uint64_t>device.base
    arena = map_private(plan.control_bytes + plan.references_bytes)
    init_arena(arena.base, &plan)
    return arena


cdef list mappings_of_a_pool(uint64_t size):
    """Shared memory, mapped for the owner and for each peer."""
    fd = create_segment("stress", size)
    try:
        return [map_segment(fd, size, True) for _ in range(1 + PEERS)]
    finally:
        os.close(fd)


cdef Mapping new_local_cache(Worker *peer, Mapping pool, uint64_t tensor_bytes):
    """An arena of the peer's own, with one cache from and to which it transfers."""
    cdef Mapping arena = new_arena(pool, None, 64, 1024)
    cdef Allocation request
    memset(&request, 0, sizeof(request))
    request.placement = DEVICE
    request.num_tensors = MOST_TENSORS
    request.row_count = 1
    request.tensor_bytes = tensor_bytes
    request.accessible = True
    if allocate(arena.base, &request) != ACCEPTED:
        raise AssertionError("a peer has no room for its own cache")
    peer.local_arena = arena.base
    peer.local_pool = pool.base
    peer.local_slot = request.slot
    return arena


cdef class Storm:
    """One round: an arena, the threads, and what is left at the end."""

    cdef Round round
    cdef Worker *workers
    cdef list kept

    def __cinit__(self, uint64_t seed, uint64_t operations, int fault):
        cdef uint64_t i
        cdef list device = mappings_of_a_pool(DEVICE_BYTES)
        cdef list host = mappings_of_a_pool(HOST_BYTES)
        cdef Mapping arena = new_arena(device[0], host[0], 256, 8192)
        self.kept = [device, host, arena]
        self.round.arena = arena.base
        self.round.near_pools[HOST] = (<Mapping>host[0]).base
        self.round.near_pools[DEVICE] = (<Mapping>device[0]).base
        self.round.most_caches = OWNERS * operations
        self.round.fault = <Fault>fault
        self.round.notes = <CacheNote *>zeroed(self.round.most_caches + 1, sizeof(CacheNote))
        self.round.placed = <uint64_t *>zeroed(self.round.most_caches + 1, sizeof(uint64_t))
        self.workers = <Worker *>zeroed(THREADS, sizeof(Worker))
        for i in range(THREADS):
            self.workers[i].round = &self.round
            self.workers[i].random = mixed(seed << 8 | i)
            self.workers[i].operations = operations
            self.workers[i].told = True
        for i in range(OWNERS):
            self.give_buffers(self.workers + i)
        for i in range(PEERS):
            self.make_peer(self.workers + OWNERS + i, i, device[1 + i], host[1 + i])
        for i in range(VIEWERS):
            self.workers[OWNERS + PEERS + i].number = PEERS + i
        forbid_in_all(&self.round, 0, DEVICE_BYTES)

    cdef int make_peer(self, Worker *peer, uint64_t number, Mapping device, Mapping host) except -1:
        cdef Mapping own_pool = map_private(1 << 16)
        peer.number = number
        peer.told = number % 2
        peer.pools[HOST] = host.base
        peer.pools[DEVICE] = self.round.near_pools[DEVICE]
        if not peer.told:
            peer.pools[DEVICE] = device.base
        if not peer.told and number != EVICTABLE:
            self.round.far_pools[number] = device.base
        self.kept += [own_pool, new_local_cache(peer, own_pool, LARGEST_ROW)]
        return 0

    cdef int give_buffers(self, Worker *owner) except -1:
        cdef uint64_t i
        for i in range(OWN_BUFFERS):
            owner.buffers[i].memory = <char *>zeroed(OWN_BYTES, 1)
        return 0

    def __dealloc__(self):
        cdef uint64_t i, j
        if self.workers == NULL:
            return
        allow_in_all(&self.round, 0, DEVICE_BYTES)
        for i in range(THREADS):
            for j in range(OWN_BUFFERS):
                free(self.workers[i].buffers[j].memory)
        free(self.workers)
        free(self.round.notes)
        free(self.round.placed)

    def run(self):
        """Let every thread run to its end; what each thing that can happen happened how often."""
        cdef pthread_t[THREADS] threads
        cdef int failures = 0
        cdef uint64_t i, deed
        with nogil:
            for i in range(THREADS):
                if i < OWNERS:
                    failures += pthread_create(&threads[i], NULL, run_owner, self.workers + i) != 0
                elif i < OWNERS + PEERS:
                    failures += pthread_create(&threads[i], NULL, run_peer, self.workers + i) != 0
                else:
                    failures += pthread_create(&threads[i], NULL, run_viewer, self.workers + i) != 0
            if failures == 0:
                for i in range(THREADS):
                    pthread_join(threads[i], NULL)
        if failures:
            raise OSError(f"{failures} threads could not be started")
        return {
            name: sum([self.workers[i].deeds[deed] for i in range(THREADS)]) for deed, name in enumerate(DEED_NAMES)
        }

    def check(self):
        """Give everything up: every byte was right, every invariant holds, and nothing is left."""
        cdef char *arena = self.round.arena
        cdef ArenaHeader *header = header_of(arena)
        cdef uint64_t number, row, handle, peer
        cdef KeyRecord key
        cdef uint64_t i
        for i in range(THREADS):
            if self.workers[i].mistakes:
                raise AssertionError(f"{self.workers[i].mistakes} times: {self.workers[i].mistake.decode()}")
        check_arena(arena)
        for peer in range(PEERS):
            dismiss_peer(arena, PEER_BITS[peer])
        for number in range(1, header.next_cache_id):
            handle = self.round.notes[number].handle
            for row in range(shape_of(number).key_count):
                key = key_of(number, row)
                if key.kind != KEY_NONE:
                    remove_key(arena, key.kind, key.id, key.model_id)
            drop_id(arena, slot_of(handle), <uint32_t>handle)
        check_arena(arena)
        assert (header.live_caches, header.live_keys, header.index_count) == (0, 0, 0)
        assert header.leased_caches == 0
        assert header.pools[HOST].tree.free_pages == header.pools[HOST].tree.pages
        assert header.pools[DEVICE].tree.free_pages == header.pools[DEVICE].tree.pages
        assert header.record_tree.free_pages == header.record_capacity
        assert header.word_tree.free_pages == header.word_capacity


cdef void *zeroed(uint64_t count, uint64_t size) except NULL:
    cdef void *memory = calloc(count, size)
    if memory == NULL:
        raise MemoryError(f"{count * size} bytes for the stress")
    return memory


def copy_much(uint64_t tensor_bytes, uint64_t times):
    """Pull tensors so large that several threads copy them; the least and the most threads there were is up to the core."""
    cdef Mapping pool = map_private(MOST_TENSORS * tensor_bytes)
    cdef Mapping own_pool = map_private(MOST_TENSORS * tensor_bytes)
    cdef Mapping arena, own_arena
    cdef Round round
    cdef Worker owner, peer
    cdef Transfer transfer
    cdef TransferResult result
    cdef uint64_t i, tensor
    memset(&round, 0, sizeof(round))
    memset(&owner, 0, sizeof(owner))
    memset(&peer, 0, sizeof(peer))
    arena = new_local_cache(&owner, pool, tensor_bytes)
    own_arena = new_local_cache(&peer, own_pool, tensor_bytes)
    round.arena = arena.base
    peer.round = &round
    peer.pools[DEVICE] = pool.base
    copy_header(&peer.known, header_of(arena.base))
    admit_peer_bit(arena.base, PEER_BITS[0])
    for i in range(times):
        for tensor in range(MOST_TENSORS):
            fill_row(our_tensor(&owner, tensor), tensor_bytes // 8, content(i, tensor, 0))
        prepare(&peer, &transfer, 0, MOST_TENSORS, tensor_bytes)
        transfer.kind, transfer.id = KEY_CACHE_ID, 1
        with nogil:
            result = carry_out(&transfer)
        assert result == TRANSFERRED, f"a large copy was refused: {result}"
        for tensor in range(MOST_TENSORS):
            assert row_is(our_tensor(&peer, tensor), tensor_bytes // 8, content(i, tensor, 0)), "copied bytes are wrong"
