"""Leases of keys, as a node's program and its peers renew them."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.bulk_calls cimport BulkCalls, Pulls
from llmdd._core.segments cimport Mapping
from llmdd._core.transfer cimport Transfer, TransferResult


cdef class LeaseCalls(BulkCalls):
    cdef uint64_t never            # nothing breaks a renewal of our own off
    cdef uint64_t checked_lease(self, object lease) except 0
    cdef int renew_own(self, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms) except -1
    cdef int renew_at(self, uint64_t cluster_id, Transfer *named, TransferResult *results, uint64_t count,
                      uint64_t lease_ms, int64_t deadline) except -1
    cdef int renew_some_at(self, uint64_t cluster_id, Transfer *named, TransferResult *results, uint64_t count,
                           uint64_t lease_ms, int64_t deadline) except -1


cdef class NamedKeys:
    # Of one cluster's keys: their places in the call, and what they name.
    cdef uint64_t count
    cdef Transfer *named
    cdef TransferResult *results
    cdef list positions
    cdef object asked              # what the owner on another host was asked for
