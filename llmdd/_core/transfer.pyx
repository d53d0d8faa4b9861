# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One transfer through a peer's mapped arena (see ``transfer.pxd``)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from llmdd._core.atomic cimport (
    atomic_fetch_clear,
    atomic_fetch_set,
    atomic_load_word,
    monotonic_nanoseconds,
)
from llmdd._core.key_index cimport index_is_unchanged, index_probe, index_version, key_tag
from llmdd._core.layout cimport (
    CACHE_LINE,
    KEY_CACHE_ID,
    KEY_NONE,
    POOL_COUNT,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    ReferenceSlot,
    Slot,
    key_words,
    tensor_words,
)
from llmdd._core.lifecycle cimport tensor_offset
from llmdd._core.references cimport any_key_bound, key_is_bound, mark_released, transfer_key
from llmdd._core.tables cimport (
    CACHE_EVENT_PIN,
    CACHE_FACT_ID,
    CACHE_FACT_KEYS,
    CACHE_FACT_TENANT,
    CACHE_STATE_OF,
    OUTCOME_TAKEN,
    cache_outcome,
)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    CHUNK = 4 << 20                # bytes copied between two looks at the clock


cdef bint copy_until(char *target, const char *source, uint64_t size, int64_t deadline, const uint64_t *broken) noexcept nogil:
    """Copy, looking at the clock between chunks; False if it ran out or the link broke, and not a byte later."""
    cdef uint64_t part
    while size > CHUNK:
        memcpy(target, source, CHUNK)
        target += CHUNK
        source += CHUNK
        size -= CHUNK
        if atomic_load_word(broken) or monotonic_nanoseconds() > deadline:
            return False
    memcpy(target, source, size)
    return True


cdef inline Slot *remote_slot(Transfer *transfer, uint64_t slot) noexcept nogil:
    return <Slot *>(transfer.arena + transfer.known.slots_offset) + slot


cdef inline ReferenceSlot *remote_references(Transfer *transfer, uint64_t slot) noexcept nogil:
    return <ReferenceSlot *>(transfer.arena + transfer.known.reference_slots_offset) + slot


cdef inline bint lies_within(uint64_t offset, uint64_t size, uint64_t begin, uint64_t end) noexcept nogil:
    return begin <= offset <= end and size <= end - offset


cdef bint is_sound(Transfer *transfer, const Slot *slot) noexcept nogil:
    """Whether everything the peer's slot points to lies where such things lie. The peer may be hostile."""
    cdef const ArenaHeader *known = transfer.known
    cdef uint64_t words = key_words(slot.key_count) + <uint64_t>slot.key_count * tensor_words(slot.num_tensors)
    cdef uint64_t references_end = known.control_bytes + known.references_bytes
    cdef uint64_t pool_bytes
    if slot.placement >= POOL_COUNT or transfer.pools[slot.placement] == NULL:
        return False
    if slot.num_tensors == 0 or slot.batch_size == 0 or slot.slot_bytes == 0 or slot.tensor_stride == 0:
        return False
    pool_bytes = known.pools[slot.placement].bytes
    if slot.slot_bytes > pool_bytes // slot.batch_size or slot.num_tensors > pool_bytes // slot.tensor_stride:
        return False
    if slot.slot_bytes * slot.batch_size > slot.tensor_stride:
        return False
    if slot.contiguous:
        if not lies_within(slot.place, slot.num_tensors * slot.tensor_stride, 0, pool_bytes):
            return False
    elif not lies_within(slot.place, <uint64_t>slot.num_tensors * 8, known.slots_offset, known.control_bytes):
        return False
    if not lies_within(slot.words, words * 8, known.reference_slots_offset, references_end) or slot.words % 8:
        return False
    return lies_within(
        slot.keys, <uint64_t>slot.key_count * sizeof(KeyRecord), known.slots_offset, known.control_bytes
    ) and slot.keys % 8 == 0


cdef TransferResult confirm(Transfer *transfer, const IndexEntry *entry, const Slot *slot) noexcept nogil:
    """Whether the pinned slot really is what the index said, and the spec lets a transfer begin."""
    cdef uint64_t *words
    cdef KeyRecord *key
    cdef unsigned int facts = CACHE_FACT_TENANT
    if not is_sound(transfer, slot):
        return PEER_UNSOUND
    words = <uint64_t *>(transfer.arena + slot.words)
    if transfer.kind == KEY_CACHE_ID:
        if <uint64_t>slot.cache_id != transfer.id:
            return REMOTE_MISSING
        if any_key_bound(words, entry.generation, slot.key_count):
            facts |= CACHE_FACT_KEYS
    else:
        if entry.batch_index >= slot.key_count:
            return REMOTE_MISSING
        key = <KeyRecord *>(transfer.arena + slot.keys) + entry.batch_index
        if key.id != transfer.id or key.model_id != transfer.model_id or key.kind != transfer.kind:
            return REMOTE_MISSING
        if not key_is_bound(words, entry.generation, entry.batch_index):
            return REMOTE_MISSING
        facts |= CACHE_FACT_KEYS
    if slot.held:
        facts |= CACHE_FACT_ID
    if cache_outcome(CACHE_STATE_OF[facts], CACHE_EVENT_PIN, 0).kind != OUTCOME_TAKEN:
        return REMOTE_MISSING
    return TRANSFERRED


cdef TransferResult pin(Transfer *transfer, const IndexEntry *entry, Slot *copy) noexcept nogil:
    """Pin the slot the entry names and copy its record. Not TRANSFERRED: it is not pinned."""
    cdef Slot *slot
    cdef TransferResult result
    if entry.slot >= transfer.known.slot_capacity:
        return REMOTE_MISSING
    slot = remote_slot(transfer, entry.slot)
    # Pairs with the owner's close: our bit is set before we read the gate, the gate closed before it reads the bits.
    atomic_fetch_set(&remote_references(transfer, entry.slot).pins, <uint64_t>1 << transfer.peer_bit)
    if atomic_load_word(&slot.gate) == (<uint64_t>entry.generation << 1 | 1):
        # From here on the tenant cannot change, unless the owner breaks the rules.
        copy[0] = slot[0]
        result = confirm(transfer, entry, copy)
        if result == TRANSFERRED:
            return TRANSFERRED
    else:
        result = REMOTE_MISSING
    unpin(transfer, entry.slot, False)
    return result


cdef void unpin(Transfer *transfer, uint64_t slot, bint dropped_key) noexcept nogil:
    """Clear our pin; tell the owner if it may be waiting for that, or must forget a key."""
    atomic_fetch_clear(&remote_references(transfer, slot).pins, <uint64_t>1 << transfer.peer_bit)
    if dropped_key or not atomic_load_word(&remote_slot(transfer, slot).gate) & 1:
        mark_released(transfer.arena, transfer.known, slot)


cdef TransferResult find_and_pin(Transfer *transfer, IndexEntry *entry, Slot *copy) noexcept nogil:
    """Look the key up and pin what it names, again as long as the owner changes the index meanwhile."""
    cdef uint32_t tag = key_tag(transfer.known, transfer.kind, transfer.id, transfer.model_id)
    cdef uint64_t version
    cdef TransferResult result
    while not atomic_load_word(transfer.broken):
        version = index_version(transfer.arena)
        result = REMOTE_MISSING
        if index_probe(transfer.arena, transfer.known, tag, transfer.id, transfer.model_id, entry):
            result = pin(transfer, entry, copy)
        if result != REMOTE_MISSING or index_is_unchanged(transfer.arena, version):
            return result
        if transfer.impatient:
            return INDEX_IN_MOTION
        if monotonic_nanoseconds() > transfer.deadline:
            return OUT_OF_TIME
        sched_yield()
    return LINK_LOST


cdef TransferResult fits(Transfer *transfer, const Slot *remote) noexcept nogil:
    """The checks of api §3.6 (7, 8) that need the peer's cache; sets the ranges that were left open."""
    cdef uint64_t local_count
    if transfer.locally_refused:
        return LOCALLY_REFUSED
    if transfer.batch_index >= remote.batch_size:
        return REMOTE_SLOT_RANGE if transfer.push else REMOTE_MISSING
    if transfer.all_local:
        transfer.local_first = 0
        transfer.local_end = transfer.local_slot.num_tensors
    if transfer.all_remote:
        transfer.remote_first = 0
        transfer.remote_end = remote.num_tensors
    if transfer.remote_end - transfer.remote_first != transfer.local_end - transfer.local_first:
        return TENSOR_COUNTS_DIFFER
    if transfer.remote_end > remote.num_tensors:
        return REMOTE_TENSOR_RANGE
    if transfer.bytes > remote.slot_bytes:
        return REMOTE_SLOT_TOO_SMALL
    return TRANSFERRED


cdef TransferResult copy_tensors(Transfer *transfer, const Slot *remote) noexcept nogil:
    cdef char *remote_pool = transfer.pools[remote.placement]
    cdef uint64_t pool_bytes = transfer.known.pools[remote.placement].bytes
    cdef uint64_t count = transfer.local_end - transfer.local_first
    cdef uint64_t i, offset
    cdef char *ours
    cdef char *theirs
    cdef bint done
    for i in range(count):
        if remote.contiguous:
            offset = remote.place + (transfer.remote_first + i) * remote.tensor_stride
        else:
            offset = (<uint64_t *>(transfer.arena + remote.place))[transfer.remote_first + i]
            if not lies_within(offset, remote.tensor_stride, 0, pool_bytes):
                return PEER_UNSOUND
        theirs = remote_pool + offset + transfer.batch_index * remote.slot_bytes
        ours = transfer.local_pool + tensor_offset(
            transfer.local_arena, transfer.local_slot, transfer.local_first + i
        ) + transfer.local_batch_index * transfer.local_slot.slot_bytes
        if transfer.push:
            done = copy_until(theirs, ours, transfer.bytes, transfer.deadline, transfer.broken)
        else:
            done = copy_until(ours, theirs, transfer.bytes, transfer.deadline, transfer.broken)
        if not done or (i % 64 == 63 and monotonic_nanoseconds() > transfer.deadline):
            return LINK_LOST if atomic_load_word(transfer.broken) else OUT_OF_TIME
    return TRANSFERRED


cdef TransferResult carry_out(Transfer *transfer) noexcept nogil:
    """Find, pin, check, copy, drop the key, unpin."""
    cdef IndexEntry entry
    cdef Slot remote
    cdef TransferResult result
    cdef bint dropped_key = False
    cdef uint64_t kind = KEY_NONE
    result = find_and_pin(transfer, &entry, &remote)
    if result != TRANSFERRED:
        return result
    if transfer.kind != KEY_CACHE_ID:
        transfer.batch_index = entry.batch_index
    result = fits(transfer, &remote)
    if result == TRANSFERRED:
        result = copy_tensors(transfer, &remote)
    if result == TRANSFERRED and monotonic_nanoseconds() > transfer.deadline:
        result = OUT_OF_TIME
    if result == TRANSFERRED and atomic_load_word(&remote_slot(transfer, entry.slot).gate) >> 1 != entry.generation:
        # The owner took our pin away while we stood still: what we copied may be somebody else's.
        result = REMOTE_MISSING
    if result == TRANSFERRED:
        if transfer.batch_index < remote.key_count:
            kind = (<KeyRecord *>(transfer.arena + remote.keys) + transfer.batch_index).kind
        dropped_key = transfer_key(
            <uint64_t *>(transfer.arena + remote.words),
            entry.generation,
            remote.key_count,
            remote.num_tensors,
            kind,
            transfer.batch_index,
            transfer.remote_first,
            transfer.remote_end,
        )
    unpin(transfer, entry.slot, dropped_key)
    return result
