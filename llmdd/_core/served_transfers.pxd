"""Transfers that peers on other hosts ask for: their owner carries them out, by the steps that a peer on its host takes."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.bulk_transfers cimport Begun
from llmdd._core.layout cimport Slot
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.pair_set cimport PairSet
from llmdd._core.segments cimport Mapping
from llmdd._core.streams cimport Stream
from llmdd._core.transfer cimport Landing, Transfer, TransferResult


cdef class ServedTransfers:
    cdef Mapping arena
    cdef Mapping host_pool
    cdef Mapping device_pool
    cdef uint64_t never            # nothing breaks them off from here
    cdef uint64_t count
    cdef uint64_t taken            # so many of them have been asked for until now
    cdef Transfer *transfers
    cdef Slot *askers              # the caches of who asks, as far as it has told
    cdef Begun *begun
    cdef Landing *landings         # of the one transfer to addresses
    cdef uint64_t found
    cdef TransferResult *codes
    cdef uint64_t *stream_items    # which item of the stream each is; NOT_SEEN: none
    cdef Stream stream
    cdef PairSet pinned            # slots, and what of them is transferred: what is named twice
    cdef PairSet sources
    cdef bint has_refused
    cdef bint remote_mode
    cdef list kept                 # lists of blocks
    cdef readonly bint pushes
    cdef bint together
    cdef readonly bint is_open
    cdef int64_t deadline
    cdef int enter(self, uint64_t position, object wanted) except -1
    cdef int require_addressable(self, uint64_t position) except -1
    cdef int keep_blocks(self, uint64_t position, object wanted) except -1
    cdef int begin_keyed(self, uint64_t begin, uint64_t end) except -1
    cdef int begin_at_addresses(self) except -1
    cdef int lay_out(self, uint64_t begin, uint64_t end) except -1
    cdef int lay_out_item(self, uint64_t position) except -1
    cdef Slot *found_slot(self, uint64_t position) noexcept
    cdef int copy(self, uint64_t begin, object buffer, bint into_tensors) except -1
    cdef TransferResult result_of(self, uint64_t position, bint succeeded) noexcept
    cdef uint64_t unpin(self) noexcept


cdef ServedTransfers serve(
    NodeMemory memory, bint remote_mode, list items, bint together, int64_t patience_ns, uint64_t count
)
