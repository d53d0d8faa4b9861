"""What the owner does to its arena: allocate, drop references, settle. Every decision is looked up in the spec's tables.

All of it runs under the store's lock, except `pin_local` and `unpin_local`, which any thread may call.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_acquire
from llmdd._core.layout cimport WORD_BITS, ArenaHeader, IndexEntry, KeyRecord, Slot, header_of, slot_at
from llmdd._core.references cimport key_is_bound

cdef enum Refusal:
    ACCEPTED = 0
    KEY_ALREADY_BOUND = 1
    NO_POOL_MEMORY = 2
    NO_ARENA_ROOM = 3              # slots, keys, records or reference words of the arena are used up

cdef struct Allocation:
    # What allocate is asked for, and what it answers.
    uint64_t placement
    uint64_t num_tensors
    uint64_t tensor_bytes
    uint64_t row_count
    bint blocks                    # the rows are blocks
    const uint64_t *addresses      # of the caller's own memory, one for each tensor; NULL: take it from the pool
    bint accessible                # to peers in remote mode
    bint only_check                # answer a key that is bound already, and make nothing
    const KeyRecord *keys          # their `leased` is the call's
    uint64_t key_count
    uint32_t lease_end             # of every key, where they are leased
    uint64_t slot
    uint32_t generation
    int64_t cache_id
    uint64_t refused_key           # position of the key that is already bound

cdef Refusal allocate(char *arena, Allocation *request) noexcept nogil
cdef void drop_id(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil
cdef void withdraw(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil
cdef uint64_t expire_leases(char *arena, uint64_t begin, uint64_t end, int64_t now_ms, int64_t *soonest_ms,
                            KeyRecord *named, uint64_t most_named) noexcept nogil
cdef bint remove_key(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil
cdef IndexEntry *find_bound_key(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil
cdef void settle(char *arena, uint64_t slot_number) noexcept nogil
cdef uint64_t reap(char *arena, uint64_t limit) noexcept nogil
cdef uint64_t evict_peer(char *arena, unsigned int peer_bit) noexcept nogil
cdef void admit_peer_bit(char *arena, unsigned int peer_bit) noexcept nogil
cdef void dismiss_peer(char *arena, unsigned int peer_bit) noexcept nogil
cdef unsigned int pin_local(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil
cdef void unpin_local(char *arena, uint64_t slot_number) noexcept nogil
cdef uint64_t tensor_place(char *arena, const Slot *slot, uint64_t tensor) noexcept nogil
cdef inline uint32_t generation_of(Slot *slot) noexcept nogil:
    return <uint32_t>(slot.gate >> 1)
cdef inline int64_t bound_cache_id(char *arena, const IndexEntry *entry) noexcept nogil:
    """The id of the cache whose key an entry stands for; 0 if that key has been dropped.

    Needs no lock. The entry may be torn, and the slot another's by now: the answer is to be believed only if the index is
    unchanged afterwards, but nothing beyond the arena is read for it.
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef Slot *slot = slot_at(arena, entry.slot)
    # Both pair with the releases in occupy and take_words: another tenant's are written after the index has changed.
    cdef int64_t cache_id = <int64_t>atomic_load_acquire(<uint64_t *>&slot.cache_id)
    cdef uint64_t words = atomic_load_acquire(&slot.words)
    if words + entry.batch_index // WORD_BITS * 8 >= header.control_bytes + header.references_bytes:
        return 0
    return cache_id if key_is_bound(<uint64_t *>(arena + words), entry.generation, entry.batch_index) else 0
cdef int check_arena(char *arena) except -1
