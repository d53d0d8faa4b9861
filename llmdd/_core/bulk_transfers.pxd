"""Several transfers of one call: one after the other, or all or none.

All or none is four steps, each for every transfer: find, pin and check; copy; drop the keys; unpin. What is refused in
the first has changed nothing. What fails in the second has dropped no key.
"""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.layout cimport IndexEntry, Slot
from llmdd._core.pair_set cimport PairSet
from llmdd._core.transfer cimport Transfer, TransferResult

cdef struct Begun:
    # What a transfer has pinned.
    IndexEntry entry
    Slot remote
    uint64_t holder                # position of the transfer that has set the pin bit, which one slot has once
    bint dropped_key               # of the holder: by any transfer from the slot

cdef uint64_t carry_out_each(Transfer *transfers, TransferResult *results, uint64_t begin, uint64_t end) noexcept nogil
cdef TransferResult carry_out_all(Transfer *transfers, Begun *begun, uint64_t count, PairSet *pinned, PairSet *sources,
                                  bint only_check, uint64_t *refused) noexcept nogil
cdef TransferResult begin_all(Transfer *transfers, Begun *begun, uint64_t count, PairSet *pinned, PairSet *sources,
                              uint64_t *refused) noexcept nogil
cdef TransferResult copy_all(Transfer *transfers, Begun *begun, uint64_t count, uint64_t *refused) noexcept nogil
cdef TransferResult begin_transfer(Transfer *transfers, Begun *begun, uint64_t position, PairSet *pinned,
                                   PairSet *sources) noexcept nogil
cdef void drop_keys(Transfer *transfers, Begun *begun, uint64_t count) noexcept nogil
cdef void unpin_all(Transfer *transfers, Begun *begun, uint64_t count) noexcept nogil
