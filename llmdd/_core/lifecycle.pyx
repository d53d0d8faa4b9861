# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the owner does to its arena (see ``lifecycle.pxd``)."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from llmdd._core.atomic cimport (
    atomic_fence_release,
    atomic_fetch_add_word,
    atomic_fetch_clear,
    atomic_fetch_subtract,
    atomic_load_flag,
    atomic_load_relaxed,
    atomic_load_word,
    atomic_raise,
    atomic_store_flag,
    atomic_store_number,
    atomic_store_relaxed,
    atomic_store_release,
    atomic_store_word,
    lowest_bit,
)
from llmdd._core.key_index cimport (
    index_check,
    index_erase,
    index_find,
    index_insert,
    index_move,
    index_prefetch,
    index_reserve,
    key_tag,
)
from llmdd._core.layout cimport (
    CACHE_LINE,
    FREE_REGISTRATION,
    INLINE_WORDS,
    KEY_BLOCKS,
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_PREFIX,
    POOL_COUNT,
    WORD_BITS,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    PinWords,
    Pool,
    Slot,
    header_of,
    indexed_of,
    is_leased,
    key_words,
    keys_of,
    pin_words,
    record_bytes,
    record_of,
    reference_slot_at,
    release_event_of,
    registrations_of,
    slot_at,
    tensor_words,
    words_of,
)
from llmdd._core.leases cimport end_of_lease, lease_clock_ms, lease_words, take_if_over
from llmdd._core.page_pool cimport NO_RUN, page_tree_check, return_run, run_is_taken, take_run
from llmdd._core.references cimport (
    NO_SLOT,
    any_key_bound,
    anything_released,
    drop_key_bit,
    drop_tensors,
    key_is_bound,
    keyed_state,
    mark_released,
    take_released,
)
from llmdd._core.release_event cimport announce_release
from llmdd._core.tables cimport (
    BATCH_SLOT_EFFECT_DROP_KEY,
    BATCH_SLOT_EFFECT_INDEX_KEY,
    BATCH_SLOT_EFFECT_UNINDEX_KEY,
    BATCH_SLOT_EVENT_BIND_BLOCKS,
    BATCH_SLOT_EVENT_BIND_PLACEHOLDER,
    BATCH_SLOT_EVENT_BIND_PREFIX,
    BATCH_SLOT_EVENT_BIND_REQUEST,
    BATCH_SLOT_EVENT_EXPIRE,
    BATCH_SLOT_EVENT_REMOVE,
    BATCH_SLOT_EVENT_SUPERSEDE,
    BATCH_SLOT_EVENT_WITHDRAW,
    BATCH_SLOT_GUARD_LEASE_OVER,
    BATCH_SLOT_STATE_REQUEST_KEYED,
    BATCH_SLOT_STATE_UNKEYED,
    CACHE_EFFECT_ADVANCE_GENERATION,
    CACHE_EFFECT_CLOSE_SLOT,
    CACHE_EFFECT_OPEN_SLOT,
    CACHE_EFFECT_RETURN_MEMORY,
    CACHE_EFFECT_TAKE_MEMORY,
    CACHE_EVENT_ALLOCATE,
    CACHE_EVENT_DROP_ID,
    CACHE_EVENT_DROP_KEY,
    CACHE_EVENT_PIN,
    CACHE_EVENT_SETTLE,
    CACHE_FACT_ID,
    CACHE_FACT_KEYS,
    CACHE_FACT_TENANT,
    CACHE_GUARD_KEYS_REMAIN,
    CACHE_GUARD_PINNED,
    CACHE_STATE_FREE,
    CACHE_STATE_OF,
    OUTCOME_REFUSED,
    batch_slot_outcome,
    cache_outcome,
    spec_outcome,
)

cdef uint64_t LAST_GENERATION = 0xFFFFFFFF


# ---------------------------------------------------------------- the state of a slot, as a function of its words


cdef bint keys_remain(char *arena, Slot *slot) noexcept nogil:
    """Whether some key of the tenant is bound, as far as the owner has noticed: what peers dropped since counts as bound
    until notice_dropped_keys. So no key is ever overlooked between two looks."""
    cdef uint32_t *indexed = indexed_of(arena, slot)
    cdef uint64_t i
    for i in range(key_words(slot.key_count)):
        if indexed[i]:
            return True
    return False


cdef unsigned int cache_state(char *arena, Slot *slot, unsigned int assumed) noexcept nogil:
    """The state by the tenant's facts. `assumed` ones count as true: they were until just now."""
    cdef unsigned int facts = assumed
    if slot.tenant:
        facts |= CACHE_FACT_TENANT
    if slot.held:
        facts |= CACHE_FACT_ID
    if slot.tenant and keys_remain(arena, slot):
        facts |= CACHE_FACT_KEYS
    return CACHE_STATE_OF[facts]


cdef inline bint pinned_by_peers(char *arena, uint64_t slot_number) noexcept nogil:
    """Whether some peer holds a slot by a transfer: whoever writes, and whoever reads and has not been evicted.

    Who is here to free the slot has closed its gate before: whose pin it does not see will see the gate (apply).
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef PinWords *words
    cdef uint64_t number
    # Pairs with admit_peer_bit: whoever pinned before the gate was closed was admitted before that.
    for number in range(atomic_load_word(&header.peer_words)):
        words = pin_words(arena, header, slot_number, number)
        # Pair with the peer's setting of its pin, which comes before its look at the gate, and with its clearing, which
        # comes after all that it does to the cache.
        if atomic_load_word(&words.readers) & ~header.evicted[number] or atomic_load_word(&words.writers):
            return True
    return False


cdef bint read_by_evicted(char *arena, uint64_t slot_number) noexcept nogil:
    """Whether an evicted peer may be reading what is written of a slot's tenant, or changing its reference words."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t number
    for number in range(atomic_load_word(&header.peer_words)):
        # Pairs as in pinned_by_peers: of whom we do not see now, nobody comes to read.
        if header.evicted[number] and atomic_load_word(
            &pin_words(arena, header, slot_number, number).readers
        ) & header.evicted[number]:
            return True
    return False


cdef unsigned int guards_of(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    cdef unsigned int guards = 0
    if slot.tenant and keys_remain(arena, slot):
        guards |= CACHE_GUARD_KEYS_REMAIN
    # Pairs with pin_local, which counts itself before it looks at the gate, and with unpin_local.
    if atomic_load_word(&slot.local_pins) or pinned_by_peers(arena, slot_number):
        guards |= CACHE_GUARD_PINNED
    return guards


cdef unsigned int batch_slot_state(char *arena, Slot *slot, uint64_t batch_index) noexcept nogil:
    if batch_index >= slot.key_count or not key_is_bound(words_of(arena, slot), generation_of(slot), batch_index):
        return BATCH_SLOT_STATE_UNKEYED
    return keyed_state(keys_of(arena, slot)[batch_index].kind)


# ---------------------------------------------------------------- effects


cdef void apply(char *arena, uint64_t slot_number, Slot *slot, spec_outcome outcome) noexcept nogil:
    """Carry out the effects of a transition of a cache, but for those of allocate."""
    if outcome.effects & CACHE_EFFECT_CLOSE_SLOT:
        # Pairs with a peer's pin, and with pin_local: they set it, then read the gate; we close the gate, then read the
        # pins. Both are sequentially consistent: one of the two sees the other.
        atomic_store_word(&slot.gate, slot.gate & ~<uint64_t>1)
    if outcome.effects & CACHE_EFFECT_ADVANCE_GENERATION:
        advance_generation(slot)
    if outcome.effects & CACHE_EFFECT_RETURN_MEMORY:
        return_memory(arena, slot_number, slot)


cdef void return_pages(char *arena, Slot *slot) noexcept nogil:
    """Give the pages back to the pool; of a registered cache, strike it off the registrations."""
    cdef ArenaHeader *header = header_of(arena)
    cdef Pool *pool = &header.pools[slot.placement]
    cdef uint64_t pages = slot.tensor_stride >> pool.page_shift
    cdef uint64_t tensor
    if slot.registered:
        # Pairs with find_landing, which takes it for a hint.
        atomic_store_number(
            registrations_of(arena) + slot.registration, <uint32_t>(FREE_REGISTRATION | header.free_registration)
        )
        header.free_registration = slot.registration + 1
        return
    if slot.contiguous:
        return_run(arena, &pool.tree, slot.place >> pool.page_shift, pages * slot.num_tensors)
        return
    for tensor in range(slot.num_tensors):
        return_run(arena, &pool.tree, tensor_place(arena, slot, tensor) >> pool.page_shift, pages)


cdef void return_records(char *arena, Slot *slot) noexcept nogil:
    cdef ArenaHeader *header = header_of(arena)
    if slot.record_units:
        return_run(arena, &header.record_tree, (record_of(slot) - header.records_offset) // CACHE_LINE, slot.record_units)
        slot.record_units = 0
    if slot.word_units:
        return_run(arena, &header.word_tree, (slot.words - header.words_offset) // CACHE_LINE, slot.word_units)
        slot.word_units = 0


cdef void return_memory(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """The tenant has gone, and its pages with it. The slot, its record and its reference words stay as they are while an
    evicted peer may touch them (protocol 13)."""
    cdef IndexEntry *entry = index_find(arena, KEY_CACHE_ID, <uint64_t>slot.cache_id, 0)
    if entry != NULL and entry.slot == slot_number:
        index_erase(arena, entry)
    return_pages(arena, slot)
    slot.tenant = False
    header_of(arena).live_caches -= 1
    header_of(arena).leased_caches -= is_leased(arena, slot)
    slot.quarantined = read_by_evicted(arena, slot_number)
    if not slot.quarantined:
        vacate(arena, slot_number, slot)
    announce_release(release_event_of(arena, header_of(arena)))


cdef void end_quarantine(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """Let the slot have another tenant, unless an evicted peer reads there still: it tells us when it has done."""
    if read_by_evicted(arena, slot_number):
        return
    slot.quarantined = False
    vacate(arena, slot_number, slot)
    announce_release(release_event_of(arena, header_of(arena)))


cdef void vacate(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """Nothing of the last tenant is looked at any more. A slot whose generations are spent is not used again."""
    return_records(arena, slot)
    if slot.gate:
        give_slot_back(header_of(arena), arena, slot_number)


cdef void advance_generation(Slot *slot) noexcept nogil:
    """Make everything that names this tenant stale, before its pages can be another's."""
    cdef uint64_t generation = <uint64_t>generation_of(slot) + 1
    # Pairs with a peer's look at the gate after its pin, and with the one after its copy.
    atomic_store_word(&slot.gate, generation << 1 if generation <= LAST_GENERATION else 0)
    # Whoever copied a byte that was written after this sees the generation, if it looks behind a fence of its own
    # (transfer.pyx: outcome). The store alone would not keep what is written later behind itself.
    atomic_fence_release()


cdef void unindex(char *arena, uint64_t slot_number, Slot *slot, uint64_t batch_index) noexcept nogil:
    """Remove the index entry of one batch slot's key, if it still stands for that slot."""
    cdef KeyRecord *key = keys_of(arena, slot) + batch_index
    cdef IndexEntry *entry = index_find(arena, key.kind, key.id, key.model_id)
    note_unindexed(arena, slot, batch_index)
    if entry != NULL and entry.slot == slot_number and entry.batch_index == batch_index:
        index_erase(arena, entry)


cdef inline void note_unindexed(char *arena, Slot *slot, uint64_t batch_index) noexcept nogil:
    indexed_of(arena, slot)[batch_index // WORD_BITS] &= ~(<uint32_t>1 << (batch_index % WORD_BITS))
    header_of(arena).live_keys -= 1


# ---------------------------------------------------------------- settling


cdef void notice_dropped_keys(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """Do for every key that a peer has dropped what the spec's drop_key says, and remove its index entry."""
    cdef uint64_t *words = words_of(arena, slot)
    cdef uint32_t *indexed = indexed_of(arena, slot)
    cdef uint64_t value, i
    cdef uint32_t dropped
    cdef bint any_dropped = False
    for i in range(key_words(slot.key_count)):
        # Pairs with drop_bit. What is dropped after this is marked after this: mark_released, take_released.
        value = atomic_load_word(words + i)
        dropped = indexed[i] & ~<uint32_t>value
        any_dropped = any_dropped or dropped != 0
        while dropped:
            header_of(arena).keys_dropped += 1
            unindex(arena, slot_number, slot, i * WORD_BITS + lowest_bit(dropped))
            dropped &= dropped - 1
    if any_dropped:
        apply_drop_key(arena, slot_number, slot)


cdef inline void apply_drop_key(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """What becomes of a cache some key of which is not in the index any more."""
    cdef unsigned int state = cache_state(arena, slot, CACHE_FACT_KEYS)
    apply(arena, slot_number, slot, cache_outcome(state, CACHE_EVENT_DROP_KEY, guards_of(arena, slot_number, slot)))


cdef void settle(char *arena, uint64_t slot_number) noexcept nogil:
    """Look whether the tenant's memory can go back, and let it; without a tenant, whether the slot can have one."""
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef unsigned int state
    if slot.quarantined:
        end_quarantine(arena, slot_number, slot)
        return
    if slot.tenant:
        notice_dropped_keys(arena, slot_number, slot)
    state = cache_state(arena, slot, 0)
    apply(arena, slot_number, slot, cache_outcome(state, CACHE_EVENT_SETTLE, guards_of(arena, slot_number, slot)))


cdef uint64_t reap(char *arena, uint64_t limit) noexcept nogil:
    """Settle up to `limit` slots that somebody marked; how many there were."""
    cdef uint64_t slot_number, count
    if not anything_released(arena):
        return 0
    for count in range(limit):
        slot_number = take_released(arena)
        if slot_number == NO_SLOT:
            return count
        if slot_number < header_of(arena).slots_used:
            settle(arena, slot_number)
    return limit


cdef void finish_transfers(char *arena, Slot *slot) noexcept nogil:
    """Drop every key whose tensors have all been transferred: who did the last one has died, or stands still, before
    dropping the key."""
    cdef uint64_t batch_index
    cdef uint64_t *words = words_of(arena, slot)
    for batch_index in range(slot.key_count):
        if batch_slot_state(arena, slot, batch_index) == BATCH_SLOT_STATE_REQUEST_KEYED:
            if not drop_tensors(
                words, generation_of(slot), slot.key_count, slot.num_tensors, batch_index, 0, 0
            ):
                drop_key_bit(words, generation_of(slot), batch_index)


cdef void admit_peer_bit(char *arena, unsigned int peer_bit) noexcept nogil:
    """Before a peer is given a bit: whoever settles a slot looks at every word that can have one. Takes no lock."""
    # Pairs with pinned_by_peers.
    atomic_raise(&header_of(arena).peer_words, peer_bit // 64 + 1)


cdef uint64_t evict_peer(char *arena, unsigned int peer_bit) noexcept nogil:
    """From now on a peer pins nothing by reading, though it lives (protocol 11); how many caches it pinned so.

    What it alone has held goes back. Its bits stay where they are: they show what it may still touch (protocol 13).
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t bit = <uint64_t>1 << peer_bit % 64
    cdef uint64_t slot_number
    cdef uint64_t pinned = 0
    header.evicted[peer_bit // 64] |= bit
    for slot_number in range(header.slots_used):
        # Pairs with the peer's pin. One that it sets after this holds nothing, so nobody need look again.
        if not atomic_load_word(&pin_words(arena, header, slot_number, peer_bit // 64).readers) & bit:
            continue
        if slot_at(arena, slot_number).tenant:
            pinned += 1
            finish_transfers(arena, slot_at(arena, slot_number))
            settle(arena, slot_number)
    return pinned


cdef uint64_t dismiss_peer(char *arena, unsigned int peer_bit) noexcept nogil:
    """Clear every pin of a peer that will transfer no more, and settle what it leaves. Its bit can then be another's.

    How many caches it has held until now.
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t slot_number
    cdef uint64_t bit = <uint64_t>1 << peer_bit % 64
    cdef uint64_t reading, writing
    cdef uint64_t held = 0
    cdef bint evicted = header.evicted[peer_bit // 64] & bit != 0
    cdef PinWords *words
    cdef Slot *slot
    header.evicted[peer_bit // 64] &= ~bit
    for slot_number in range(header.slots_used):
        words = pin_words(arena, header, slot_number, peer_bit // 64)
        # Other peers set and clear their bits of the same words meanwhile. The peer's own operations came before the
        # kernel, or the peer, told us of its end.
        reading = atomic_fetch_clear(&words.readers, bit) & bit
        writing = atomic_fetch_clear(&words.writers, bit) & bit
        slot = slot_at(arena, slot_number)
        if writing or (reading and not evicted):
            held += 1
        if slot.tenant:
            finish_transfers(arena, slot)
        if slot.tenant or slot.quarantined:
            settle(arena, slot_number)
    return held


# ---------------------------------------------------------------- allocation


cdef bint take_slot(ArenaHeader *header, char *arena, uint64_t *slot_number) noexcept nogil:
    if header.free_slot_count:
        slot_number[0] = (<uint32_t *>(arena + header.free_slots_offset))[header.free_slot_count - 1]
        header.free_slot_count -= 1
        return True
    if header.slots_used == header.slot_capacity:
        return False
    slot_number[0] = header.slots_used
    header.slots_used += 1
    return True


cdef void give_slot_back(ArenaHeader *header, char *arena, uint64_t slot_number) noexcept nogil:
    (<uint32_t *>(arena + header.free_slots_offset))[header.free_slot_count] = <uint32_t>slot_number
    header.free_slot_count += 1


cdef bint take_pages(char *arena, Slot *slot) noexcept nogil:
    """One run of pages for all tensors if there is one, else one run for each; False, and none taken, if that fails."""
    cdef Pool *pool = &header_of(arena).pools[slot.placement]
    cdef uint64_t pages = slot.tensor_stride >> pool.page_shift
    cdef uint64_t tensor, first
    if pages > pool.tree.free_pages // slot.num_tensors:
        return False
    first = take_run(arena, &pool.tree, pages * slot.num_tensors)
    if first != NO_RUN:
        slot.contiguous = True
        slot.place = first << pool.page_shift
        return True
    slot.contiguous = False
    if not take_records(arena, slot):
        return False
    for tensor in range(slot.num_tensors):
        first = take_run(arena, &pool.tree, pages)
        if first == NO_RUN:
            while tensor > 0:
                tensor -= 1
                return_run(arena, &pool.tree, tensor_place(arena, slot, tensor) >> pool.page_shift, pages)
            return False
        (<uint64_t *>(arena + slot.place))[tensor] = first << pool.page_shift
    return True


cdef void note_tenant(char *arena, uint64_t slot_number, Slot *slot) noexcept nogil:
    """Enter the slot for each of its pages, so that a peer finds it by an address. Never erased: a hint, to be confirmed."""
    cdef Pool *pool = &header_of(arena).pools[slot.placement]
    cdef uint32_t *tenants = <uint32_t *>(arena + pool.tenants)
    cdef uint64_t pages = slot.tensor_stride >> pool.page_shift
    cdef uint64_t runs = 1 if slot.contiguous else slot.num_tensors
    cdef uint64_t run, first, page
    if slot.contiguous:
        pages *= slot.num_tensors
    for run in range(runs):
        first = tensor_place(arena, slot, run) >> pool.page_shift
        for page in range(first, first + pages):
            # Pairs with nothing: find_landing takes it for a hint.
            atomic_store_number(tenants + page, <uint32_t>slot_number + 1)


cdef bint take_own_memory(char *arena, uint64_t slot_number, Slot *slot, const uint64_t *addresses) noexcept nogil:
    """The caller's memory as it is, entered among the registrations at a position that is nobody's.

    Positions never move: a peer that looks through them meanwhile misses nobody who stays.
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef uint32_t *registrations = registrations_of(arena)
    cdef uint64_t position = header.registrations
    slot.contiguous = False
    slot.registered = True
    if not take_records(arena, slot):
        return False
    memcpy(arena + slot.place, addresses, <uint64_t>slot.num_tensors * 8)
    if header.free_registration:
        position = header.free_registration - 1
        header.free_registration = registrations[position] & ~<uint32_t>FREE_REGISTRATION
    slot.registration = <uint32_t>position
    # Pairs with find_landing, which takes it for a hint.
    atomic_store_number(registrations + position, <uint32_t>slot_number + 1)
    if position == header.registrations:
        # Pairs with find_landing too: a peer that reads the new number finds the new entry.
        atomic_store_release(&header.registrations, position + 1)
    return True


cdef bint take_records(char *arena, Slot *slot) noexcept nogil:
    """Room for key records, notes of indexed keys and tensor places, where the slot itself has too little."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t size = record_bytes(slot.key_count, slot.num_tensors, slot.contiguous)
    cdef uint64_t first
    if slot.record_units:
        return True
    slot.keys = <uint64_t>(<char *>&slot.first_key - arena)
    if size == 0:
        return True
    if size > header.record_capacity * CACHE_LINE:
        return False
    first = take_run(arena, &header.record_tree, (size + CACHE_LINE - 1) // CACHE_LINE)
    if first == NO_RUN:
        return False
    slot.record_units = <uint32_t>((size + CACHE_LINE - 1) // CACHE_LINE)
    first = header.records_offset + first * CACHE_LINE
    if slot.key_count > 1:
        slot.keys = first
    if not slot.contiguous:
        slot.place = first + size - <uint64_t>slot.num_tensors * 8
    return True


cdef bint take_words(char *arena, uint64_t slot_number, Slot *slot, bint leased) noexcept nogil:
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t count = key_words(slot.key_count) + slot.key_count * (tensor_words(slot.num_tensors) + leased)
    cdef uint64_t first, units
    if count <= INLINE_WORDS:
        # Pairs with bound_cache_id, here and below.
        atomic_store_release(&slot.words, <uint64_t>(<char *>&reference_slot_at(arena, slot_number).words[0] - arena))
        return True
    units = (count * 8 + CACHE_LINE - 1) // CACHE_LINE
    if units > header.word_capacity:
        return False
    first = take_run(arena, &header.word_tree, units)
    if first == NO_RUN:
        return False
    slot.word_units = <uint32_t>units
    atomic_store_release(&slot.words, header.words_offset + first * CACHE_LINE)
    return True


cdef void write_words(char *arena, Slot *slot) noexcept nogil:
    """All bits of the new generation: no key yet, and every tensor still to be transferred for every key."""
    cdef uint64_t *words = words_of(arena, slot)
    cdef uint64_t base = <uint64_t>generation_of(slot) << WORD_BITS
    cdef uint64_t count = tensor_words(slot.num_tensors)
    cdef uint64_t rest = slot.num_tensors % WORD_BITS
    cdef uint64_t every = 0xFFFFFFFF
    cdef uint64_t last = (<uint64_t>1 << rest) - 1 if rest else every
    cdef uint64_t key, i
    # Nobody else writes the words now: no tenant of before is pinned, and none is open. The gate publishes them (allocate).
    # But who looks a key of the tenant before up, without a pin, may still be reading (bound_cache_id).
    for i in range(key_words(slot.key_count)):
        atomic_store_release(words + i, base)
    words += key_words(slot.key_count)
    for key in range(slot.key_count):
        for i in range(count):
            atomic_store_release(words + i, base | (last if i == count - 1 else every))
        words += count


cdef void write_lease_words(char *arena, Slot *slot, uint64_t lease_ms) noexcept nogil:
    cdef uint64_t *words = lease_words(words_of(arena, slot), slot.key_count, slot.num_tensors)
    cdef int64_t now_ms = lease_clock_ms()
    cdef uint32_t end = end_of_lease(now_ms, lease_ms)
    cdef uint64_t i
    # The gate publishes them (allocate). They are reached through a pin alone, and there is none.
    for i in range(slot.key_count):
        atomic_store_release(words + i, <uint64_t>generation_of(slot) << WORD_BITS | end)
    note_due(arena, now_ms + <int64_t>lease_ms)


cdef void note_due(char *arena, int64_t due_ms) noexcept nogil:
    """A lease may be over then, and not before."""
    cdef uint64_t *first = &header_of(arena).leases_due_ms
    if first[0] == 0 or <int64_t>first[0] > due_ms:
        # Pairs with nothing: whoever looks without the lock looks again.
        atomic_store_relaxed(first, <uint64_t>due_ms)


cdef bint bind_key(char *arena, uint64_t slot_number, Slot *slot, uint64_t batch_index, const KeyRecord *key) noexcept nogil:
    """Bind one key as the spec says; where the same call gave it before, that slot is superseded."""
    cdef unsigned int event = BATCH_SLOT_EVENT_BIND_REQUEST
    cdef IndexEntry *entry
    cdef spec_outcome outcome
    cdef uint64_t *words = words_of(arena, slot)
    keys_of(arena, slot)[batch_index] = key[0]
    if key.kind == KEY_NONE:
        event = BATCH_SLOT_EVENT_BIND_PLACEHOLDER
    elif key.kind == KEY_PREFIX:
        event = BATCH_SLOT_EVENT_BIND_PREFIX
    elif key.kind == KEY_BLOCKS:
        event = BATCH_SLOT_EVENT_BIND_BLOCKS
    outcome = batch_slot_outcome(BATCH_SLOT_STATE_UNKEYED, event, 0)
    if not outcome.effects & BATCH_SLOT_EFFECT_INDEX_KEY:
        return True
    entry = index_find(arena, key.kind, key.id, key.model_id)
    if entry != NULL:
        outcome = batch_slot_outcome(
            batch_slot_state(arena, slot, entry.batch_index), BATCH_SLOT_EVENT_SUPERSEDE, 0
        )
        if outcome.effects & BATCH_SLOT_EFFECT_UNINDEX_KEY:
            drop_key_bit(words, generation_of(slot), entry.batch_index)
            indexed_of(arena, slot)[entry.batch_index // WORD_BITS] &= ~(
                <uint32_t>1 << (entry.batch_index % WORD_BITS)
            )
            header_of(arena).live_keys -= 1
        index_move(arena, entry, <uint32_t>batch_index)
    elif not index_insert(
        arena, key.kind, key.id, key.model_id, <uint32_t>slot_number, <uint32_t>batch_index, generation_of(slot)
    ):
        return False
    # The bit is set here and only here, before the slot is open to anybody: nobody else changes the word meanwhile.
    # Pairs with bound_cache_id, which may have found the entry already; the gate publishes the bit to everybody else.
    words += batch_index // WORD_BITS
    atomic_store_release(words, atomic_load_relaxed(words) | <uint64_t>1 << (batch_index % WORD_BITS))
    indexed_of(arena, slot)[batch_index // WORD_BITS] |= <uint32_t>1 << (batch_index % WORD_BITS)
    header_of(arena).live_keys += 1
    return True


cdef void unbind_all(char *arena, uint64_t slot_number, Slot *slot, uint64_t count) noexcept nogil:
    """Undo bind_key for the first `count` batch slots."""
    cdef uint64_t batch_index
    for batch_index in range(count):
        if indexed_of(arena, slot)[batch_index // WORD_BITS] >> (batch_index % WORD_BITS) & 1:
            unindex(arena, slot_number, slot, batch_index)


cdef bint index_all(char *arena, uint64_t slot_number, Slot *slot, const KeyRecord *keys) noexcept nogil:
    """Make the new tenant findable by its id and its keys; False, and nothing indexed, if the index is full."""
    cdef uint64_t batch_index
    if not index_reserve(arena, <uint64_t>slot.key_count + 1):
        return False
    for batch_index in range(slot.key_count):
        if not bind_key(arena, slot_number, slot, batch_index, keys + batch_index):
            unbind_all(arena, slot_number, slot, batch_index)
            return False
    if not index_insert(
        arena, KEY_CACHE_ID, <uint64_t>slot.cache_id, 0, <uint32_t>slot_number, 0, generation_of(slot)
    ):
        unbind_all(arena, slot_number, slot, slot.key_count)
        return False
    return True


cdef Refusal occupy(char *arena, uint64_t slot_number, Allocation *request) noexcept nogil:
    """Give the slot its tenant, step by step; on refusal every step is taken back."""
    cdef ArenaHeader *header = header_of(arena)
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef Pool *pool = &header.pools[request.placement]
    cdef uint64_t page = <uint64_t>1 << pool.page_shift
    cdef bint leased = request.key_count != 0 and request.keys[0].leased != 0
    slot.num_tensors = <uint32_t>request.num_tensors
    slot.key_count = <uint32_t>request.key_count
    slot.row_count = request.row_count
    slot.row_bytes = request.tensor_bytes // request.row_count
    slot.tensor_stride = request.tensor_bytes
    slot.placement = <unsigned char>request.placement
    slot.blocks = request.blocks
    slot.accessible = request.accessible
    # Pairs with bound_cache_id.
    atomic_store_release(<uint64_t *>&slot.cache_id, <uint64_t>header.next_cache_id)
    slot.record_units = slot.word_units = 0
    slot.contiguous = True
    slot.registered = False
    if request.addresses != NULL:
        if not take_own_memory(arena, slot_number, slot, request.addresses):
            return NO_ARENA_ROOM
    else:
        slot.tensor_stride = (request.tensor_bytes + page - 1) // page * page
        if not take_pages(arena, slot):
            return_records(arena, slot)
            return NO_POOL_MEMORY
        note_tenant(arena, slot_number, slot)
    if not take_records(arena, slot) or not take_words(arena, slot_number, slot, leased):
        return_pages(arena, slot)
        return_records(arena, slot)
        return NO_ARENA_ROOM
    memset(indexed_of(arena, slot), 0, key_words(slot.key_count) * 4)
    write_words(arena, slot)
    if leased:
        write_lease_words(arena, slot, request.lease_ms)
    if not index_all(arena, slot_number, slot, request.keys):
        return_pages(arena, slot)
        return_records(arena, slot)
        return NO_ARENA_ROOM
    return ACCEPTED


cdef Refusal allocate(char *arena, Allocation *request) noexcept nogil:
    """A new cache in a free slot (seed §1, §7, §9-§12; api §3.1-3.3)."""
    cdef ArenaHeader *header = header_of(arena)
    cdef const KeyRecord *key
    cdef Slot *slot
    cdef Refusal refusal
    cdef spec_outcome outcome
    cdef uint64_t i
    while request.key_count and request.keys[request.key_count - 1].kind == KEY_NONE:
        request.key_count -= 1
    for i in range(request.key_count):
        key = request.keys + i
        if key.kind != KEY_NONE and find_bound_key(arena, key.kind, key.id, key.model_id) != NULL:
            request.refused_key = i
            return KEY_ALREADY_BOUND
    if request.only_check:
        return ACCEPTED
    if not take_slot(header, arena, &request.slot):
        return NO_ARENA_ROOM
    slot = slot_at(arena, request.slot)
    refusal = occupy(arena, request.slot, request)
    if refusal != ACCEPTED:
        give_slot_back(header, arena, request.slot)
        return refusal
    outcome = cache_outcome(
        CACHE_STATE_FREE, CACHE_EVENT_ALLOCATE, CACHE_GUARD_KEYS_REMAIN if keys_remain(arena, slot) else 0
    )
    request.generation = generation_of(slot)
    request.cache_id = slot.cache_id
    header.next_cache_id += 1
    header.live_caches += 1
    header.leased_caches += is_leased(arena, slot)
    # Where the next id will go is nowhere near: let it come into the cache while others work.
    index_prefetch(arena, header, key_tag(header, KEY_CACHE_ID, <uint64_t>header.next_cache_id, 0))
    slot.tenant = (outcome.effects & CACHE_EFFECT_TAKE_MEMORY) != 0
    atomic_store_flag(&slot.held, True)
    if outcome.effects & CACHE_EFFECT_OPEN_SLOT:
        # Pairs with the look at the gate in a peer's pin and in pin_local, which comes before any other look at the
        # tenant: everything that may be read was written before.
        atomic_store_word(&slot.gate, slot.gate | 1)
    return ACCEPTED


# ---------------------------------------------------------------- references


cdef void drop_id(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil:
    """deallocate_cache (seed §2); nothing if this tenant has gone or its id was dropped before."""
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef unsigned int state
    if slot.tenant == 0 or generation_of(slot) != generation:
        return
    notice_dropped_keys(arena, slot_number, slot)
    state = cache_state(arena, slot, 0)
    # Pairs with copy_record and pinned_state, to which it does not matter when they see it.
    atomic_store_flag(&slot.held, False)
    apply(
        arena, slot_number, slot, cache_outcome(state, CACHE_EVENT_DROP_ID, guards_of(arena, slot_number, slot))
    )
    settle(arena, slot_number)


cdef void withdraw(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil:
    """deallocate_blocks_cache, unregister_cache (api §3.3, §3.11): the keys go, then the id."""
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef uint64_t batch_index
    cdef spec_outcome outcome
    if slot.tenant == 0 or generation_of(slot) != generation:
        return
    for batch_index in range(slot.key_count):
        outcome = batch_slot_outcome(
            batch_slot_state(arena, slot, batch_index), BATCH_SLOT_EVENT_WITHDRAW, 0
        )
        if outcome.effects & BATCH_SLOT_EFFECT_DROP_KEY:
            header_of(arena).keys_withdrawn += drop_key_bit(words_of(arena, slot), generation, batch_index)
    drop_id(arena, slot_number, generation)


cdef uint64_t expire_leases(
    char *arena, uint64_t begin, uint64_t end, int64_t now_ms, KeyRecord *named, uint64_t most_named
) noexcept nogil:
    """Drop the keys whose leases are over, of the caches in slots [begin, end), every one of them; how many those were.

    The others are entered in what is known of when the first is due. The first keys that go are named, up to so many.
    """
    cdef uint64_t expired = 0
    cdef uint64_t slot_number
    cdef Slot *slot
    for slot_number in range(begin, min(end, header_of(arena).slots_used)):
        slot = slot_at(arena, slot_number)
        if slot.tenant and is_leased(arena, slot):
            expired += expire_leases_of(
                arena, slot_number, now_ms, named + min(expired, most_named), most_named - min(expired, most_named)
            )
    return expired


cdef uint64_t expire_leases_of(
    char *arena, uint64_t slot_number, int64_t now_ms, KeyRecord *named, uint64_t most_named
) noexcept nogil:
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef uint64_t *words = lease_words(words_of(arena, slot), slot.key_count, slot.num_tensors)
    cdef uint32_t generation = generation_of(slot)
    cdef uint64_t expired = 0
    cdef uint64_t batch_index
    cdef int32_t left_ms = 0
    cdef spec_outcome outcome
    for batch_index in range(slot.key_count):
        if not key_is_bound(words_of(arena, slot), generation, batch_index):
            continue
        if not take_if_over(words + batch_index, generation, now_ms, &left_ms):
            note_due(arena, now_ms + left_ms)
            continue
        outcome = batch_slot_outcome(
            batch_slot_state(arena, slot, batch_index), BATCH_SLOT_EVENT_EXPIRE, BATCH_SLOT_GUARD_LEASE_OVER
        )
        # A transfer that ends now may be quicker: then the key has been transferred.
        if outcome.effects & BATCH_SLOT_EFFECT_DROP_KEY and drop_key_bit(words_of(arena, slot), generation, batch_index):
            if expired < most_named:
                named[expired] = keys_of(arena, slot)[batch_index]
            expired += 1
            unindex(arena, slot_number, slot, batch_index)
    if expired:
        header_of(arena).keys_expired += expired
        apply_drop_key(arena, slot_number, slot)
        settle(arena, slot_number)
    return expired


cdef IndexEntry *find_bound_key(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil:
    """The entry of a key that is bound now. One that a peer has dropped meanwhile is cleared away."""
    cdef IndexEntry *entry = index_find(arena, kind, id, model_id)
    cdef Slot *slot
    if entry == NULL:
        return NULL
    slot = slot_at(arena, entry.slot)
    if key_is_bound(words_of(arena, slot), entry.generation, entry.batch_index):
        return entry
    settle(arena, entry.slot)
    return NULL


cdef bint remove_key(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil:
    """remove_cache_key (seed §3b); False if the key is not bound, or a peer dropped it at the same moment."""
    cdef IndexEntry *entry = find_bound_key(arena, kind, id, model_id)
    cdef uint64_t slot_number, batch_index
    cdef Slot *slot
    cdef spec_outcome outcome
    cdef bint dropped = False
    if entry == NULL:
        return False
    slot_number = entry.slot
    batch_index = entry.batch_index
    slot = slot_at(arena, slot_number)
    outcome = batch_slot_outcome(batch_slot_state(arena, slot, batch_index), BATCH_SLOT_EVENT_REMOVE, 0)
    if outcome.effects & BATCH_SLOT_EFFECT_DROP_KEY:
        dropped = drop_key_bit(words_of(arena, slot), generation_of(slot), batch_index)
    if dropped:
        header_of(arena).keys_removed += 1
        # What settle would find, without a search. Keys that peers have dropped meanwhile are marked, and come with reap.
        note_unindexed(arena, slot, batch_index)
        index_erase(arena, entry)
        apply_drop_key(arena, slot_number, slot)
        if keys_remain(arena, slot):
            return True
    settle(arena, slot_number)
    return dropped


cdef unsigned int pinned_state(char *arena, Slot *slot, uint32_t generation) noexcept nogil:
    """The state of a tenant that our pin keeps from changing, as a peer would find it: by the key bits themselves, not by
    what the owner has noticed of them."""
    cdef unsigned int facts = CACHE_FACT_TENANT
    # Pairs with drop_id: dropped now or a moment later, we have our pin.
    if atomic_load_flag(&slot.held):
        facts |= CACHE_FACT_ID
    if any_key_bound(words_of(arena, slot), generation, slot.key_count):
        facts |= CACHE_FACT_KEYS
    return CACHE_STATE_OF[facts]


cdef unsigned int pin_local(char *arena, uint64_t slot_number, uint32_t generation) noexcept nogil:
    """Pin a cache of our own. 0, or the spec's error; the pin is not held then."""
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef uint64_t gate
    cdef unsigned int state = CACHE_STATE_FREE
    # Pair with apply: the pin is set before the gate is read, the gate closed before the pins are. With allocate too:
    # who sees the gate open sees the tenant whole.
    atomic_fetch_add_word(&slot.local_pins, 1)
    gate = atomic_load_word(&slot.gate)
    if gate == (<uint64_t>generation << 1 | 1):
        state = pinned_state(arena, slot, generation)
    if cache_outcome(state, CACHE_EVENT_PIN, 0).kind != OUTCOME_REFUSED:
        return ACCEPTED
    unpin_local(arena, slot_number)
    return cache_outcome(state, CACHE_EVENT_PIN, 0).error


cdef void unpin_local(char *arena, uint64_t slot_number) noexcept nogil:
    """End a pin of our own. Takes no lock, so that a view may be dropped wherever Python drops it."""
    cdef Slot *slot = slot_at(arena, slot_number)
    # Pair with guards_of and apply: the pin goes after all that was done under it, and before the gate is read; the owner
    # closes the gate before it reads the pins. So it sees ours gone, or we see that it may be waiting.
    atomic_fetch_subtract(&slot.local_pins, 1)
    if not atomic_load_word(&slot.gate) & 1:
        mark_released(arena, header_of(arena), slot_number)


cdef uint64_t tensor_place(char *arena, const Slot *slot, uint64_t tensor) noexcept nogil:
    """Where tensor number `tensor` begins: an offset in its pool or, of a registered cache, an address of the owner's."""
    if slot.contiguous:
        return slot.place + tensor * slot.tensor_stride
    return (<uint64_t *>(arena + slot.place))[tensor]


# ---------------------------------------------------------------- invariants


cdef int check_slot(char *arena, uint64_t slot_number) except -1:
    cdef Slot *slot = slot_at(arena, slot_number)
    cdef Pool *pool = &header_of(arena).pools[slot.placement]
    cdef uint64_t pages = slot.tensor_stride >> pool.page_shift
    cdef IndexEntry *entry = index_find(arena, KEY_CACHE_ID, <uint64_t>slot.cache_id, 0)
    cdef KeyRecord *key
    cdef uint64_t tensor, batch_index
    cdef uint64_t keys = 0
    assert entry != NULL and entry.slot == slot_number, f"slot {slot_number}: cache {slot.cache_id} is not indexed"
    assert entry.generation == generation_of(slot), f"slot {slot_number}: its index entry is of another generation"
    if slot.registered:
        assert registrations_of(arena)[slot.registration] == slot_number + 1, (
            f"slot {slot_number}: cache {slot.cache_id} is not among the registrations"
        )
    for tensor in range(0 if slot.registered else slot.num_tensors):
        assert run_is_taken(arena, &pool.tree, tensor_place(arena, slot, tensor) >> pool.page_shift, pages), (
            f"slot {slot_number}: the pages of tensor {tensor} are free"
        )
    for batch_index in range(slot.key_count):
        if not indexed_of(arena, slot)[batch_index // WORD_BITS] >> (batch_index % WORD_BITS) & 1:
            continue
        keys += 1
        key = keys_of(arena, slot) + batch_index
        entry = index_find(arena, key.kind, key.id, key.model_id)
        assert key.kind != KEY_NONE, f"slot {slot_number}: a placeholder holds batch slot {batch_index}"
        assert entry != NULL and entry.slot == slot_number and entry.batch_index == batch_index, (
            f"slot {slot_number}: the key of batch slot {batch_index} is not indexed"
        )
    return keys


cdef int check_arena(char *arena) except -1:
    """Every invariant of the lifecycle. The caller holds the lock, and peers are quiet or do no harm."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t[POOL_COUNT] pages
    cdef uint64_t slot_number
    cdef Slot *slot
    cdef uint64_t caches = 0
    cdef uint64_t keys = 0
    cdef uint64_t registered = 0
    cdef uint64_t quarantined = 0
    cdef uint64_t spent = 0        # closed at generation 0: after the last one, or, of those that are free, before the first
    cdef uint64_t i
    for i in range(POOL_COUNT):
        pages[i] = 0
    reap(arena, header.slots_used + 1)
    index_check(arena)
    for slot_number in range(header.slots_used):
        slot = slot_at(arena, slot_number)
        if not slot.tenant:
            assert not slot.gate & 1, f"slot {slot_number} is open without a tenant"
            quarantined += slot.quarantined
            spent += not slot.quarantined and not slot.gate
            continue
        assert not slot.quarantined, f"slot {slot_number} has a tenant in quarantine"
        caches += 1
        keys += check_slot(arena, slot_number)
        if slot.registered:
            registered += 1
            continue
        pages[slot.placement] += (slot.tensor_stride >> header.pools[slot.placement].page_shift) * slot.num_tensors
    for i in range(header.free_slot_count):
        slot_number = (<uint32_t *>(arena + header.free_slots_offset))[i]
        slot = slot_at(arena, slot_number)
        assert slot_number < header.slots_used, f"slot {slot_number} is free and was never used"
        assert not slot.tenant and not slot.quarantined, f"slot {slot_number} is free, and in use"
        spent -= not slot.gate
    assert caches + quarantined + header.free_slot_count + spent == header.slots_used, (
        f"of {header.slots_used} slots {caches} have a tenant, {quarantined} are in quarantine, {header.free_slot_count} "
        f"are free and {spent} spent"
    )
    for slot_number in range(header.registrations):
        registered -= registrations_of(arena)[slot_number] < FREE_REGISTRATION
    assert registered == 0, "the registrations are not those of the registered caches"
    assert caches == header.live_caches, f"{caches} caches live, {header.live_caches} counted"
    assert keys == header.live_keys, f"{keys} keys are indexed, {header.live_keys} counted"
    assert caches + keys == header.index_count, f"{header.index_count} index entries for {caches} caches and {keys} keys"
    page_tree_check(arena, &header.record_tree)
    page_tree_check(arena, &header.word_tree)
    for i in range(POOL_COUNT):
        if header.pools[i].configured:
            page_tree_check(arena, &header.pools[i].tree)
            assert pages[i] == header.pools[i].tree.pages - header.pools[i].tree.free_pages, (
                f"caches hold {pages[i]} pages of pool {i}, the pool says otherwise"
            )
    return 0
