# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Several transfers of one call (see ``bulk_transfers.pxd``)."""

from libc.stdint cimport uint64_t

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.layout cimport KEY_REQUEST
from llmdd._core.pair_set cimport NOT_SEEN, PairSet, pair_set_add, pair_set_find
from llmdd._core.transfer cimport (
    LINK_LOST,
    NOT_BEGUN,
    OUT_OF_TIME,
    REMOTE_MISSING,
    TRANSFERRED,
    Transfer,
    TransferResult,
    carry_out,
    copy_tensors,
    drop_key,
    find_and_pin,
    fits_slot,
    outcome,
    unpin,
)

cdef enum:
    SLOT_BITS = 32                 # a slot's number has as many, so has a batch index


cdef uint64_t carry_out_each(Transfer *transfers, TransferResult *results, uint64_t begin, uint64_t end) noexcept nogil:
    """Carry out those that are NOT_BEGUN, in order, and stop behind one that lost its link; where it stopped."""
    cdef uint64_t i
    for i in range(begin, end):
        if results[i] != NOT_BEGUN:
            continue
        if monotonic_nanoseconds() > transfers[i].deadline:
            results[i] = OUT_OF_TIME
            continue
        results[i] = carry_out(transfers + i)
        if results[i] == LINK_LOST:
            return i + 1
    return end


cdef TransferResult begin_transfer(
    Transfer *transfers, Begun *begun, uint64_t position, PairSet *pinned, PairSet *sources
) noexcept nogil:
    """Find, pin and check one. Not TRANSFERRED: it holds no pin."""
    cdef Transfer *transfer = transfers + position
    cdef Begun *this = begun + position
    cdef uint64_t holder, source
    cdef TransferResult result
    transfer.pinned = pinned
    this.dropped_key = False
    result = find_and_pin(transfer, &this.entry, &this.remote)
    if result != TRANSFERRED:
        return result
    holder = pair_set_find(pinned, <uint64_t>transfer.arena, this.entry.slot)
    this.holder = position if holder == NOT_SEEN else holder
    result = fits_slot(transfer, &this.entry, &this.remote)
    if result == TRANSFERRED:
        source = <uint64_t>this.entry.slot << SLOT_BITS | transfer.batch_index
        if pair_set_add(sources, <uint64_t>transfer.arena, source, position) != NOT_SEEN:
            # An earlier one releases the key by which this one names the slot.
            if transfer.kind == KEY_REQUEST and not this.remote.registered:
                result = REMOTE_MISSING
    if result == TRANSFERRED:
        pair_set_add(pinned, <uint64_t>transfer.arena, this.entry.slot, position)
        return TRANSFERRED
    result = outcome(transfer, &this.entry, result)
    if this.holder == position:
        unpin(transfer, this.entry.slot, False)
    return result


cdef void unpin_all(Transfer *transfers, Begun *begun, uint64_t count) noexcept nogil:
    """Clear every pin bit, each once."""
    cdef uint64_t i
    for i in range(count):
        if begun[i].holder == i:
            unpin(transfers + i, begun[i].entry.slot, begun[i].dropped_key)


cdef TransferResult copy_all(Transfer *transfers, Begun *begun, uint64_t count, uint64_t *refused) noexcept nogil:
    """Copy for each; then look whether every pin was ours, and the time was ours, to the end."""
    cdef uint64_t i
    cdef TransferResult result
    for i in range(count):
        refused[0] = i
        if monotonic_nanoseconds() > transfers[i].deadline:
            return OUT_OF_TIME
        result = copy_tensors(transfers + i, &begun[i].entry, &begun[i].remote)
        if result != TRANSFERRED:
            return outcome(transfers + i, &begun[i].entry, result)
    for i in range(count):
        refused[0] = i
        result = outcome(transfers + i, &begun[i].entry, TRANSFERRED)
        if result != TRANSFERRED:
            return result
    return TRANSFERRED


cdef TransferResult begin_all(
    Transfer *transfers, Begun *begun, uint64_t count, PairSet *pinned, PairSet *sources, uint64_t *refused
) noexcept nogil:
    """Find, pin and check every one. Not TRANSFERRED: the result of the first that was `refused`, and nothing is pinned."""
    cdef uint64_t i
    cdef TransferResult result
    for i in range(count):
        result = begin_transfer(transfers, begun, i, pinned, sources)
        if result != TRANSFERRED:
            refused[0] = i
            unpin_all(transfers, begun, i)
            return result
    return TRANSFERRED


cdef void drop_keys(Transfer *transfers, Begun *begun, uint64_t count) noexcept nogil:
    cdef uint64_t i
    for i in range(count):
        if drop_key(transfers + i, &begun[i].entry, &begun[i].remote):
            begun[begun[i].holder].dropped_key = True


cdef TransferResult carry_out_all(
    Transfer *transfers, Begun *begun, uint64_t count, PairSet *pinned, PairSet *sources, bint only_check, uint64_t *refused
) noexcept nogil:
    """All of them or none; `only_check` stops before the first byte. Else the result of the first that was `refused`, or
    that failed."""
    cdef TransferResult result = begin_all(transfers, begun, count, pinned, sources, refused)
    if result != TRANSFERRED:
        return result
    if not only_check:
        result = copy_all(transfers, begun, count, refused)
    if result == TRANSFERRED and not only_check:
        drop_keys(transfers, begun, count)
    unpin_all(transfers, begun, count)
    return result
