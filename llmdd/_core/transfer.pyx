# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One transfer through a peer's mapped arena (see ``transfer.pxd``)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport getpid

from llmdd._core.atomic cimport (
    atomic_fence_acquire,
    atomic_fetch_add_word,
    atomic_fetch_clear,
    atomic_fetch_set,
    atomic_load_number,
    atomic_load_word,
    monotonic_nanoseconds,
)
from llmdd._core.copying cimport copy_tensors as copy_mapped_tensors
from llmdd._core.copying cimport (
    COPIED,
    COPY_BAD_ADDRESS,
    COPY_BROKEN_OFF,
    COPY_FORBIDDEN,
    COPY_OUT_OF_TIME,
    COPY_OUTSIDE,
    FOREIGN,
    MAPPED,
    OWN,
    Bounds,
    CopyResult,
    Place,
    Tensors,
    copy_pieces,
    plan_blocks,
    plan_slot,
    plan_slot_to_blocks,
)
from llmdd._core.key_index cimport index_is_unchanged, index_probe, index_version, key_tag
from llmdd._core.layout cimport (
    KEY_CACHE_ID,
    KEY_NONE,
    POOL_COUNT,
    ArenaHeader,
    IndexEntry,
    KeyRecord,
    PinWords,
    Slot,
    batch_size_of,
    copy_record,
    header_of,
    key_words,
    pin_words,
    tensor_words,
)
from llmdd._core.lifecycle cimport tensor_place, unpin_local
from llmdd._core.pair_set cimport NOT_SEEN, pair_set_find
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

cdef uint64_t LARGEST_TENSOR = 0x7FFFFFFFFFFFFFFF


cdef inline Slot *remote_slot(Transfer *transfer, uint64_t slot) noexcept nogil:
    return <Slot *>(transfer.arena + transfer.known.slots_offset) + slot


cdef inline uint64_t *pin_word(Transfer *transfer, uint64_t slot) noexcept nogil:
    """Where our pin stands: a writer's apart from a reader's, who may be evicted (protocol 11)."""
    cdef PinWords *words = pin_words(transfer.arena, transfer.known, slot, transfer.peer_bit // 64)
    return &words.writers if transfer.push else &words.readers


cdef inline bint lies_within(uint64_t offset, uint64_t size, uint64_t begin, uint64_t end) noexcept nogil:
    return begin <= offset <= end and size <= end - offset


cdef bint is_sound(Transfer *transfer, const Slot *slot) noexcept nogil:
    """Whether everything the peer's slot points to lies where such things lie. The peer may be hostile."""
    cdef const ArenaHeader *known = transfer.known
    cdef uint64_t words = key_words(slot.key_count) + <uint64_t>slot.key_count * tensor_words(slot.num_tensors)
    cdef uint64_t references_end = known.control_bytes + known.references_bytes
    cdef uint64_t pool_bytes
    if slot.num_tensors == 0 or slot.row_count == 0 or slot.row_bytes == 0 or slot.placement >= POOL_COUNT:
        return False
    if slot.row_bytes > LARGEST_TENSOR // slot.row_count or slot.row_bytes * slot.row_count > slot.tensor_stride:
        return False
    if not slot.registered:
        if transfer.pools[slot.placement] == NULL:
            return False
        pool_bytes = known.pools[slot.placement].bytes
        if slot.num_tensors > pool_bytes // slot.tensor_stride:
            return False
        if slot.contiguous and not lies_within(slot.place, slot.num_tensors * slot.tensor_stride, 0, pool_bytes):
            return False
    if not slot.contiguous or slot.registered:
        if not lies_within(slot.place, <uint64_t>slot.num_tensors * 8, known.slots_offset, known.control_bytes):
            return False
        if slot.place % 8:
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
    if transfer.addressing == BY_ADDRESS or transfer.kind == KEY_CACHE_ID:
        if transfer.addressing == BY_KEY and <uint64_t>slot.cache_id != transfer.id:
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
    if is_pinned_already(transfer, entry.slot):
        return confirm_pinned(transfer, entry, copy)
    # Pair with the owner's apply, pinned_by_peers and read_by_evicted: our bit is set before we read the gate, the gate
    # closed before it reads the bits. With its allocate too: who sees the gate open sees the tenant whole.
    if transfer.served:
        atomic_fetch_add_word(&slot.local_pins, 1)
    else:
        atomic_fetch_set(pin_word(transfer, entry.slot), <uint64_t>1 << transfer.peer_bit % 64)
    if atomic_load_word(&slot.gate) == (<uint64_t>entry.generation << 1 | 1):
        # From here on the tenant cannot change, unless the owner breaks the rules; if we are evicted, nothing of it but
        # the contents of its tensors.
        copy_record(copy, slot)
        result = confirm(transfer, entry, copy)
        if result == TRANSFERRED:
            return TRANSFERRED
    else:
        result = REMOTE_MISSING
    unpin(transfer, entry.slot, False)
    return result


cdef bint is_pinned_already(Transfer *transfer, uint64_t slot) noexcept nogil:
    """Whether the call that this transfer is one of has our pin on the slot: there is one bit for all of them."""
    return transfer.pinned != NULL and pair_set_find(transfer.pinned, <uint64_t>transfer.arena, slot) != NOT_SEEN


cdef TransferResult confirm_pinned(Transfer *transfer, const IndexEntry *entry, Slot *copy) noexcept nogil:
    """As pin, of a slot that is pinned, and stays so whatever is found."""
    cdef Slot *slot = remote_slot(transfer, entry.slot)
    if atomic_load_word(&slot.gate) != (<uint64_t>entry.generation << 1 | 1):
        return REMOTE_MISSING
    copy_record(copy, slot)
    return confirm(transfer, entry, copy)


cdef void unpin(Transfer *transfer, uint64_t slot, bint dropped_key) noexcept nogil:
    """Clear our pin; tell the owner if it may be waiting for that, or must forget a key."""
    if transfer.served:
        unpin_local(transfer.arena, slot)
        if dropped_key:
            mark_released(transfer.arena, transfer.known, slot)
        return
    # Pair with the owner's apply and pinned_by_peers: the pin goes after all that we do to the cache, and before the gate
    # is read; the owner closes the gate before it reads the pins. So it sees ours gone, or we see that it may be waiting.
    atomic_fetch_clear(pin_word(transfer, slot), <uint64_t>1 << transfer.peer_bit % 64)
    if dropped_key or not atomic_load_word(&remote_slot(transfer, slot).gate) & 1:
        mark_released(transfer.arena, transfer.known, slot)


cdef TransferResult find_and_pin(Transfer *transfer, IndexEntry *entry, Slot *copy) noexcept nogil:
    """Look the key up and pin what it names, again as long as the owner changes the index meanwhile."""
    cdef uint32_t tag = key_tag(transfer.known, transfer.kind, transfer.id, transfer.model_id)
    cdef uint64_t version
    cdef TransferResult result
    # Pairs with PeerArena.break_off: the word is a flag, and brings nothing with it.
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


# ---------------------------------------------------------------- by an address of the peer's


cdef int64_t tensor_over(Transfer *transfer, const Slot *slot, uint64_t address, uint64_t size) noexcept nogil:
    """The tensor of a pinned slot within which `size` bytes from `address` on lie; -1 if there is none."""
    cdef uint64_t pool_bytes = transfer.known.pools[slot.placement].bytes
    cdef uint64_t tensor, begin
    for tensor in range(slot.num_tensors):
        begin = tensor_place(transfer.arena, slot, tensor)
        if not slot.registered:
            if not lies_within(begin, slot.tensor_stride, 0, pool_bytes):
                return -1
            begin += transfer.known.pools[slot.placement].address
        if address >= begin and lies_within(address - begin, size, 0, slot.row_bytes * slot.row_count):
            return <int64_t>tensor
    return -1


cdef TransferResult land_in(Transfer *transfer, uint32_t noted, uint64_t size, Landing *landings, uint64_t number) noexcept nogil:
    """Pin the slot that is noted (plus 1), if one of its tensors reaches over the landing's address and may be written
    so. A slot that an earlier landing has pinned is pinned already, and stays so."""
    cdef Landing *landing = landings + number
    cdef int64_t tensor
    cdef TransferResult result
    cdef bint shared = False
    cdef uint64_t other
    if noted == 0 or noted > transfer.known.slot_capacity:
        return ADDRESS_UNKNOWN
    for other in range(number):
        if landings[other].entry.slot == noted - 1:
            landing.entry = landings[other].entry
            landing.remote = landings[other].remote
            shared = True
    if not shared:
        landing.entry.slot = noted - 1
        # A hint, whatever it pairs with: pin looks again.
        landing.entry.generation = <uint32_t>(atomic_load_word(&remote_slot(transfer, noted - 1).gate) >> 1)
        landing.entry.batch_index = 0
        result = pin(transfer, &landing.entry, &landing.remote)
        if result != TRANSFERRED:
            return ADDRESS_UNKNOWN if result == REMOTE_MISSING else result
    tensor = tensor_over(transfer, &landing.remote, landing.address, size)
    result = fits_at_address(transfer, &landing.remote) if tensor >= 0 else ADDRESS_UNKNOWN
    if result == TRANSFERRED:
        landing.tensor = <uint64_t>tensor
    elif not shared:
        unpin(transfer, landing.entry.slot, False)
    return result


cdef TransferResult find_landing(Transfer *transfer, uint64_t size, Landing *landings, uint64_t number) noexcept nogil:
    """Pin the cache whose tensor reaches over `size` bytes from an address of the peer's: by the page, or by looking
    through the registered caches, of which several may share memory (api D49)."""
    cdef const ArenaHeader *known = transfer.known
    cdef uint64_t position, count, offset
    cdef uint32_t noted
    cdef TransferResult result
    cdef TransferResult refusal = ADDRESS_UNKNOWN
    cdef int pool
    landings[number].address = transfer.addresses[number]
    for pool in range(POOL_COUNT):
        offset = transfer.addresses[number] - known.pools[pool].address
        if transfer.pools[pool] != NULL and offset < known.pools[pool].bytes:
            noted = atomic_load_number(
                <uint32_t *>(transfer.arena + known.pools[pool].tenants) + (offset >> known.pools[pool].page_shift)
            )
            return land_in(transfer, noted, size, landings, number)
    # Pairs with take_own_memory, which writes an entry before it counts it. Whose it is remains a hint: pin looks again.
    count = min(atomic_load_word(&header_of(transfer.arena).registrations), known.slot_capacity)
    for position in range(count):
        noted = atomic_load_number(<uint32_t *>(transfer.arena + known.registrations_offset) + position)
        result = land_in(transfer, noted, size, landings, number)
        if result == TRANSFERRED:
            return TRANSFERRED
        if result != ADDRESS_UNKNOWN:
            refusal = result
    return refusal


cdef uint64_t bytes_at_address(Transfer *transfer) noexcept nogil:
    """How far a tensor of ours reaches from the address it goes to; 0: further than any tensor."""
    cdef uint64_t i
    cdef uint64_t highest = 0
    if transfer.form == SLOT_TO_SLOT:
        return transfer.bytes
    if transfer.form == ALL_BLOCKS:
        return transfer.local_slot.row_bytes * transfer.local_slot.row_count
    for i in range(transfer.block_count):
        highest = max(highest, transfer.remote_blocks[i])
    return (highest + 1) * transfer.block_bytes if highest < LARGEST_TENSOR // transfer.block_bytes else 0


# ---------------------------------------------------------------- whether both sides fit


cdef TransferResult fits(Transfer *transfer, const Slot *remote) noexcept nogil:
    """The checks of api §3.6 (7-9) and §3.7 that need the peer's cache; sets the ranges that were left open."""
    cdef TransferResult result
    if transfer.locally_refused:
        return LOCALLY_REFUSED
    if transfer.batch_index >= batch_size_of(remote):
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
    result = rows_fit(transfer, remote)
    if result != TRANSFERRED:
        return result
    if transfer.remote_mode and not (remote.accessible and transfer.local_slot.accessible):
        return NOT_ACCESSIBLE
    return TRANSFERRED


cdef TransferResult fits_at_address(Transfer *transfer, const Slot *remote) noexcept nogil:
    if not remote.accessible:
        return ADDRESS_UNKNOWN
    if transfer.form == SLOT_TO_SLOT:
        return KINDS_DIFFER if remote.blocks else TRANSFERRED
    if transfer.form == BLOCKS_TO_BLOCKS and not remote.blocks:
        return KINDS_DIFFER        # blocks never go to a batch slot (api §3.5)
    return rows_fit(transfer, remote) if transfer.form == ALL_BLOCKS else TRANSFERRED


cdef TransferResult rows_fit(Transfer *transfer, const Slot *remote) noexcept nogil:
    """Whether the kinds of the caches, and the sizes and numbers of their rows, allow the form (api §3.5)."""
    cdef Slot *local = transfer.local_slot
    cdef bint source_has_blocks = transfer.form == BLOCKS_TO_BLOCKS or transfer.form == ALL_BLOCKS
    cdef bint target_has_blocks = transfer.form != SLOT_TO_SLOT
    cdef uint64_t i, slot_bytes, block_bytes
    if remote.blocks != (target_has_blocks if transfer.push else source_has_blocks):
        return KINDS_DIFFER
    if transfer.form == SLOT_TO_SLOT:
        return REMOTE_SLOT_TOO_SMALL if transfer.bytes > remote.row_bytes else TRANSFERRED
    if target_has_blocks and transfer.push and transfer.block_bytes and transfer.block_bytes != remote.row_bytes:
        return BLOCK_BYTES_DIFFER
    if source_has_blocks and remote.row_bytes != local.row_bytes:
        return BLOCK_BYTES_DIFFER
    if transfer.form == ALL_BLOCKS:
        return TRANSFERRED if remote.row_count == local.row_count else BLOCK_COUNTS_DIFFER
    if transfer.form == SLOT_TO_BLOCKS:
        slot_bytes = local.row_bytes if transfer.push else remote.row_bytes
        block_bytes = remote.row_bytes if transfer.push else local.row_bytes
        if transfer.block_count - 1 > (slot_bytes - 1) // block_bytes:
            return TOO_MANY_BLOCKS
    if transfer.remote_blocks != NULL:
        for i in range(transfer.block_count):
            if transfer.remote_blocks[i] >= remote.row_count:
                return REMOTE_BLOCK_RANGE
    return TRANSFERRED


# ---------------------------------------------------------------- the copy


cdef uint64_t plan(Transfer *transfer, const Slot *remote) noexcept nogil:
    """The pieces of every tensor; at an address the target begins there, not with its tensor."""
    cdef Slot *local = transfer.local_slot
    cdef const Slot *source = local if transfer.push else remote
    cdef const Slot *target = <const Slot *>remote if transfer.push else local
    cdef const uint64_t *source_blocks = transfer.local_blocks if transfer.push else transfer.remote_blocks
    cdef const uint64_t *target_blocks = transfer.remote_blocks if transfer.push else transfer.local_blocks
    cdef uint64_t source_row = transfer.local_batch_index if transfer.push else transfer.batch_index
    cdef uint64_t target_row = transfer.batch_index if transfer.push else transfer.local_batch_index
    cdef uint64_t block_bytes = transfer.block_bytes if transfer.addressing == BY_ADDRESS else target.row_bytes
    if transfer.form == SLOT_TO_SLOT:
        return plan_slot(
            transfer.pieces,
            source_row * source.row_bytes,
            0 if transfer.addressing == BY_ADDRESS else target_row * target.row_bytes,
            transfer.bytes,
        )
    if transfer.form == SLOT_TO_BLOCKS:
        return plan_slot_to_blocks(
            transfer.pieces, source_row * source.row_bytes, source.row_bytes, target_blocks, transfer.block_count, block_bytes
        )
    if transfer.form == ALL_BLOCKS:
        return plan_slot(transfer.pieces, 0, 0, source.row_bytes * source.row_count)
    return plan_blocks(transfer.pieces, source_blocks, target_blocks, transfer.block_count, block_bytes)


cdef Place place_here(char *arena, const Slot *slot, char *pool, uint64_t tensor) noexcept nogil:
    """Where a tensor of our own node begins."""
    cdef Place place
    cdef uint64_t begin = tensor_place(arena, slot, tensor)
    place.pid = 0
    place.pidfd = -1
    if slot.registered:
        place.reach = OWN
        place.base = <char *>begin
    else:
        place.reach = MAPPED
        place.base = pool + begin
    return place


cdef bint remote_place(Transfer *transfer, const Slot *remote, uint64_t tensor, Place *place) noexcept nogil:
    """Where a tensor of the peer's begins; False if it is nowhere in the peer's pool."""
    cdef uint64_t begin = tensor_place(transfer.arena, remote, tensor)
    place.pid = transfer.pid
    place.pidfd = transfer.pidfd
    if remote.registered:
        place.reach = OWN if transfer.pid == getpid() else FOREIGN
        place.base = <char *>begin
        return True
    place.reach = MAPPED
    place.base = transfer.pools[remote.placement] + begin
    return lies_within(begin, remote.tensor_stride, 0, transfer.known.pools[remote.placement].bytes)


cdef bint landing_place(Transfer *transfer, const Landing *landing, Place *place) noexcept nogil:
    """Where the address of a landing is."""
    cdef uint64_t pool_address
    if not remote_place(transfer, &landing.remote, landing.tensor, place):
        return False
    if landing.remote.registered:
        place.base = <char *>landing.address
    else:
        pool_address = transfer.known.pools[landing.remote.placement].address
        place.base = transfer.pools[landing.remote.placement] + (landing.address - pool_address)
    return True


cdef CopyResult copy_tensor(
    Transfer *transfer, const IndexEntry *entry, const Slot *remote, uint64_t tensor, const Place *ours,
    const Place *theirs, uint64_t pieces, const Bounds *bounds
) noexcept nogil:
    """Move the pieces of one tensor; where the kernel forbids it, ask the peer to."""
    cdef CopyResult result
    if transfer.push:
        result = copy_pieces(theirs, ours, transfer.pieces, pieces, bounds)
    else:
        result = copy_pieces(ours, theirs, transfer.pieces, pieces, bounds)
    if result == COPY_FORBIDDEN and theirs.reach == FOREIGN and transfer.ask != NULL:
        return transfer.ask(
            transfer.peer,
            entry.slot,
            entry.generation,
            tensor,
            <uint64_t>theirs.base - tensor_place(transfer.arena, remote, tensor),
            transfer.push,
            ours,
            transfer.pieces,
            pieces,
            transfer.deadline,
        )
    return result


cdef TransferResult copy_tensors(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil:
    cdef uint64_t pieces = plan(transfer, remote)
    cdef uint64_t count = transfer.local_end - transfer.local_first
    cdef uint64_t i
    cdef Bounds bounds = bounds_of(transfer)
    cdef Place ours, theirs
    cdef CopyResult result
    if not remote.registered and not transfer.local_slot.registered:
        return result_of_copy(copy_between_pools(transfer, remote, count, pieces, &bounds))
    for i in range(count):
        ours = our_place(transfer, transfer.local_first + i)
        if not remote_place(transfer, remote, transfer.remote_first + i, &theirs):
            return PEER_UNSOUND
        result = copy_tensor(transfer, entry, remote, transfer.remote_first + i, &ours, &theirs, pieces, &bounds)
        if result == COPIED and i % 64 == 63 and monotonic_nanoseconds() > transfer.deadline:
            result = COPY_OUT_OF_TIME
        if result != COPIED:
            return result_of_copy(result)
    return TRANSFERRED


cdef inline Tensors tensors_of(char *arena, const Slot *slot, char *pool, uint64_t pool_bytes) noexcept nogil:
    cdef Tensors tensors
    tensors.pool = pool
    tensors.pool_bytes = pool_bytes
    tensors.tensor_bytes = slot.tensor_stride
    tensors.first = slot.place
    tensors.places = NULL if slot.contiguous else <const uint64_t *>(arena + slot.place)
    return tensors


cdef CopyResult copy_between_pools(
    Transfer *transfer, const Slot *remote, uint64_t count, uint64_t pieces, const Bounds *bounds
) noexcept nogil:
    """Move the pieces of `count` tensors, all at once."""
    cdef Tensors theirs = tensors_of(
        transfer.arena, remote, transfer.pools[remote.placement], transfer.known.pools[remote.placement].bytes
    )
    cdef Tensors ours = tensors_of(
        transfer.local_arena,
        transfer.local_slot,
        transfer.local_pool,
        header_of(transfer.local_arena).pools[transfer.local_slot.placement].bytes,
    )
    if transfer.push:
        return copy_mapped_tensors(
            &theirs, transfer.remote_first, &ours, transfer.local_first, count, transfer.pieces, pieces, bounds, transfer.team
        )
    return copy_mapped_tensors(
        &ours, transfer.local_first, &theirs, transfer.remote_first, count, transfer.pieces, pieces, bounds, transfer.team
    )


cdef TransferResult copy_to_landings(Transfer *transfer, const Landing *landings) noexcept nogil:
    cdef uint64_t pieces = plan(transfer, &landings[0].remote)
    cdef uint64_t i
    cdef Bounds bounds = bounds_of(transfer)
    cdef Place ours, theirs
    cdef const Landing *landing
    cdef CopyResult result
    for i in range(TENSORS_AT_ONCE):
        landing = landings + i
        ours = our_place(transfer, transfer.local_first + i)
        if not landing_place(transfer, landing, &theirs):
            return PEER_UNSOUND
        result = copy_tensor(
            transfer, &landing.entry, &landing.remote, landing.tensor, &ours, &theirs, pieces, &bounds
        )
        if result != COPIED:
            return result_of_copy(result)
    return TRANSFERRED


cdef inline Bounds bounds_of(Transfer *transfer) noexcept nogil:
    cdef Bounds bounds
    bounds.deadline = transfer.deadline
    bounds.broken = transfer.broken
    return bounds


cdef inline Place our_place(Transfer *transfer, uint64_t tensor) noexcept nogil:
    return place_here(transfer.local_arena, transfer.local_slot, transfer.local_pool, tensor)


cdef TransferResult result_of_copy(CopyResult result) noexcept nogil:
    if result == COPIED:
        return TRANSFERRED
    if result == COPY_OUTSIDE:
        return PEER_UNSOUND
    if result == COPY_OUT_OF_TIME:
        return OUT_OF_TIME
    if result == COPY_BROKEN_OFF:
        return LINK_LOST
    return NOT_MAPPED if result == COPY_BAD_ADDRESS else PEER_CLOSED_ITS_MEMORY


cdef TransferResult outcome(Transfer *transfer, const IndexEntry *entry, TransferResult result) noexcept nogil:
    """What becomes of a copy that has ended, well or not: it was in time, and our pin counted until now."""
    # The fence keeps the copy's plain reads before the look at the gate, which would not wait for them by itself. Pairs
    # with the owner's advance_generation: who has read a byte of a later tenant sees a later generation.
    atomic_fence_acquire()
    if atomic_load_word(&remote_slot(transfer, entry.slot).gate) >> 1 != entry.generation:
        # The link went down while we stood still, and the owner waited for us no longer (protocol 11): what we copied
        # may be somebody else's, and so may be what the copy failed for.
        return LINK_LOST
    if result == TRANSFERRED and monotonic_nanoseconds() > transfer.deadline:
        return OUT_OF_TIME
    return result


cdef TransferResult fits_slot(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil:
    """Whether the pinned slot, at the batch index that the key stands for, allows the transfer."""
    if transfer.kind != KEY_CACHE_ID:
        transfer.batch_index = entry.batch_index
    return fits(transfer, remote)


cdef bint drop_key(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil:
    """What has been transferred is so for the slot's key; whether that drops it."""
    cdef uint64_t kind = KEY_NONE
    if transfer.keeps_keys:
        return False
    if transfer.batch_index < remote.key_count:
        kind = (<KeyRecord *>(transfer.arena + remote.keys) + transfer.batch_index).kind
    return transfer_key(
        <uint64_t *>(transfer.arena + remote.words),
        entry.generation,
        remote.key_count,
        remote.num_tensors,
        kind,
        remote.registered,
        transfer.batch_index,
        transfer.remote_first,
        transfer.remote_end,
    )


cdef TransferResult carry_out_by_key(Transfer *transfer) noexcept nogil:
    """Find, pin, check, copy, drop the key, unpin."""
    cdef IndexEntry entry
    cdef Slot remote
    cdef TransferResult result
    cdef bint dropped_key = False
    result = find_and_pin(transfer, &entry, &remote)
    if result != TRANSFERRED:
        return result
    result = fits_slot(transfer, &entry, &remote)
    if result == TRANSFERRED:
        result = copy_tensors(transfer, &entry, &remote)
    result = outcome(transfer, &entry, result)
    if result == TRANSFERRED:
        dropped_key = drop_key(transfer, &entry, &remote)
    unpin(transfer, entry.slot, dropped_key)
    return result


cdef TransferResult carry_out_by_address(Transfer *transfer) noexcept nogil:
    """Find and pin what lies at every address, copy to all of them, unpin. No key is dropped."""
    cdef Landing[TENSORS_AT_ONCE] landings
    cdef uint64_t size = bytes_at_address(transfer)
    cdef uint64_t found = 0
    cdef uint64_t i
    cdef TransferResult result = TRANSFERRED if size else ADDRESS_UNKNOWN
    while result == TRANSFERRED and found < TENSORS_AT_ONCE:
        result = find_landing(transfer, size, landings, found)
        found += result == TRANSFERRED
    if result == TRANSFERRED:
        result = copy_to_landings(transfer, landings)
    for i in range(found):
        result = outcome(transfer, &landings[i].entry, result)
    for i in range(found):
        # Where both tensors are in one cache this is done twice, which is once.
        unpin(transfer, landings[i].entry.slot, False)
    return result


cdef TransferResult carry_out(Transfer *transfer) noexcept nogil:
    """The whole transfer."""
    return carry_out_by_address(transfer) if transfer.addressing == BY_ADDRESS else carry_out_by_key(transfer)
