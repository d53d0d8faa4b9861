# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Renewing leases of keys (see ``renewals.pxd``).

A renewal begins as a transfer does, by finding the key and pinning its cache, so that the words stay what they are
while one of them is changed. It takes no bytes and no turn of the owner's, and is told of by no mark.
"""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.layout cimport KEY_CACHE_ID, IndexEntry, KeyRecord, Slot
from llmdd._core.leases cimport end_of_lease, lease_clock_ms, lease_words, put_off
from llmdd._core.references cimport key_is_bound, keyed_state
from llmdd._core.tables cimport (
    BATCH_SLOT_EFFECT_RENEW_LEASE,
    BATCH_SLOT_EVENT_RENEW,
    BATCH_SLOT_STATE_UNKEYED,
    OUTCOME_REFUSED,
    batch_slot_outcome,
    spec_outcome,
)
from llmdd._core.transfer cimport (
    NOT_BEGUN,
    OUT_OF_TIME,
    PEER_UNSOUND,
    REMOTE_MISSING,
    TRANSFERRED,
    Transfer,
    TransferResult,
    find_and_pin,
    outcome,
    unpin,
)


cdef TransferResult renew_pinned(
    Transfer *named, const IndexEntry *entry, const Slot *slot, uint64_t lease_ms
) noexcept nogil:
    """Renew the lease of the key in a pinned slot, at the batch index that was named or that the key stands for."""
    cdef uint64_t *words = <uint64_t *>(named.arena + slot.words)
    cdef uint64_t batch_index = named.batch_index if named.kind == KEY_CACHE_ID else entry.batch_index
    cdef unsigned int state = BATCH_SLOT_STATE_UNKEYED
    cdef const KeyRecord *key = NULL
    cdef uint64_t *word
    cdef spec_outcome step
    if batch_index < slot.key_count and key_is_bound(words, entry.generation, batch_index):
        key = <KeyRecord *>(named.arena + slot.keys) + batch_index
        state = keyed_state(key.kind)
    step = batch_slot_outcome(state, BATCH_SLOT_EVENT_RENEW, 0)
    if step.kind == OUTCOME_REFUSED:
        return REMOTE_MISSING
    if not step.effects & BATCH_SLOT_EFFECT_RENEW_LEASE or not key.leased:
        return TRANSFERRED
    word = lease_words(words, slot.key_count, slot.num_tensors) + batch_index
    # The other words were found to lie within the arena; a hostile peer may say of a cache without leases that it has some.
    if <char *>(word + 1) - named.arena > <int64_t>(named.known.control_bytes + named.known.references_bytes):
        return PEER_UNSOUND
    return TRANSFERRED if put_off(word, entry.generation, end_of_lease(lease_clock_ms(), lease_ms)) else REMOTE_MISSING


cdef TransferResult renew(Transfer *named, uint64_t lease_ms) noexcept nogil:
    """Renew the lease of one key. TRANSFERRED: it was bound, and its lease, if it has any, ends then or later."""
    cdef IndexEntry entry
    cdef Slot slot
    cdef TransferResult result = find_and_pin(named, &entry, &slot)
    if result != TRANSFERRED:
        return result
    result = outcome(named, &entry, renew_pinned(named, &entry, &slot, lease_ms))
    unpin(named, entry.slot, False)
    return result


cdef void renew_each(Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms) noexcept nogil:
    """Renew the leases of those that are NOT_BEGUN."""
    cdef uint64_t i
    for i in range(count):
        if results[i] != NOT_BEGUN:
            continue
        results[i] = OUT_OF_TIME if monotonic_nanoseconds() > named[i].deadline else renew(named + i, lease_ms)
