"""Transfers of one call that go together, all or none, though some are from peers of this host and some of others."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.bulk_transfers cimport Begun
from llmdd._core.distant_peer cimport DistantPeer, Exchange
from llmdd._core.transfer cimport Transfer, TransferResult


cdef class TransfersTogether:
    cdef dict exchanges            # peer on another host -> Exchange
    cdef Transfer *transfers       # of peers on this host, side by side
    cdef TransferResult **results
    cdef Begun *begun
    cdef uint64_t count
    cdef uint64_t capacity
    cdef bint pinned
    cdef Exchange exchange_with(self, DistantPeer peer, int64_t deadline)
    cdef int add(self, Transfer *transfer, TransferResult *result) except -1
    cdef int begin(self) except -1
    cdef int carry(self) except -1
    cdef int finish(self) except -1
    cdef int abandon(self) except -1
