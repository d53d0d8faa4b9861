"""What a request between hosts transfers, as one stream of bytes: its items one after the other, tensor by tensor.

Both ends cut the stream in the same way, each from its own cache, so a stretch of it can be named by where it begins.
"""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.copying cimport Bounds, CopyResult, Place
from llmdd._core.descriptors cimport DescriptorLists
from llmdd._core.layout cimport Slot
from llmdd._core.transfer cimport Transfer

cdef struct Run:
    # Bytes that lie side by side in each tensor.
    uint64_t begin
    uint64_t size

cdef struct StreamItem:
    Place *places                  # where each tensor in question begins
    uint64_t tensors
    Run *runs                      # of each tensor, in their order
    uint64_t run_count
    uint64_t tensor_bytes          # the sum of the runs
    uint64_t begin                 # in the stream
    CopyResult result              # why it could not be copied

cdef class Stream:
    cdef StreamItem *items
    cdef uint64_t capacity
    cdef uint64_t count
    cdef uint64_t bytes
    cdef bint all_mapped           # nothing of it is memory that the program registered
    cdef StreamItem *add(self, uint64_t tensors, uint64_t run_capacity) except NULL
    cdef int close_item(self, StreamItem *item) except -1
    cdef int describe(self, uint64_t begin, uint64_t size, uint64_t there, DescriptorLists lists) except -1
    cdef uint64_t pieces(self) noexcept
    cdef int move(self, uint64_t begin, object buffer, bint into_tensors, const Bounds *bounds) except -1
    cdef void copy(self, uint64_t begin, char *buffer, uint64_t size, bint into_tensors, const Bounds *bounds) noexcept nogil

# How many runs a side has at most: a side that lists no blocks has one, whatever number of them was announced.
cdef uint64_t run_capacity_of_ours(const Transfer *transfer) noexcept nogil
cdef uint64_t run_capacity_of_theirs(const Transfer *transfer) noexcept nogil
cdef uint64_t runs_of_ours(const Transfer *transfer, const Slot *ours, const Slot *theirs, Run *runs) noexcept nogil
cdef uint64_t runs_of_theirs(const Transfer *transfer, const Slot *ours, const Slot *theirs, Run *runs) noexcept nogil
