"""A linked peer on another host: transfers by messages and a transfer engine, through a ``link.conversation``."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.layout cimport Slot
from llmdd._core.peer cimport Peer
from llmdd._core.streams cimport Stream
from llmdd._core.transfer cimport Transfer, TransferResult


cdef class Exchange:
    cdef object conversation
    cdef object begun              # the owner's answer; None: nothing is open there
    cdef uint64_t count
    cdef uint64_t capacity
    cdef Transfer **transfers
    cdef TransferResult **results
    cdef Slot *found               # what the owner has said of its caches
    cdef uint64_t *stream_items
    cdef Stream stream
    cdef const uint64_t *broken
    cdef int64_t deadline
    cdef int add(self, Transfer *transfer, TransferResult *result) except -1
    cdef int begin(self, bint together) except -1
    cdef object wanted(self, Transfer *transfer)
    cdef int take_answer(self) except -1
    cdef int take_found(self, uint64_t position, object found) except -1
    cdef int lay_out(self, uint64_t position) except -1
    cdef int lay_out_once(self, uint64_t position) except -1
    cdef int carry(self) except -1
    cdef int finish(self) except -1
    cdef int abandon(self) except -1
    cdef int end_all(self, TransferResult result) except -1
    cdef int copy(self, uint64_t begin, object buffer, bint into_tensors) except -1
    cdef bint finish_well(self) except *
    cdef bint has_arrived(self, uint64_t position) except *


cdef class DistantPeer(Peer):
    cdef object conversation
    cdef readonly bint remote_accessible
    cdef public object renewals    # who asks the owner to renew leases
    cdef Exchange exchange(self, uint64_t capacity, int64_t deadline)
