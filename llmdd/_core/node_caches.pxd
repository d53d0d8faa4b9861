"""The caches of one node: made, found and dropped."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.allocation_queue cimport AllocationQueue
from llmdd._core.cache cimport Cache
from llmdd._core.cache_desc cimport CacheDesc
from llmdd._core.layout cimport KeyRecord
from llmdd._core.lifecycle cimport Allocation
from llmdd._core.node_memory cimport NodeMemory


cdef class NodeCaches:
    cdef NodeMemory memory
    cdef readonly uint64_t cluster_id
    cdef readonly bint remote_accessible
    cdef bint waits_for_memory
    cdef AllocationQueue host_queue
    cdef AllocationQueue device_queue
    # Kept by the links; read in a critical section.
    cdef public dict peers         # cluster id -> Peer; replaced, never modified
    cdef public int communicators  # how many live
    cdef readonly object failed_transfers
    cdef readonly uint64_t cache_key_lease   # milliseconds; 0: keys are bound without a lease unless one is given
    cdef public object lease_keeper   # renews the leases of keys that are expected here; None: there are none
    cdef bint has_due_leases(self) noexcept
    cdef uint64_t sweep(self, int64_t now_ms, KeyRecord *named, uint64_t most_named) except? -1
    cdef Cache make(self, str tag, CacheDesc desc, Allocation *request, tuple keys, list addresses,
                    uint64_t lease_ms=*)
    cdef int describe(self, CacheDesc desc, Allocation *request) except -1
    cdef int64_t memory_deadline(self) noexcept
    cdef int enter_arena(self, str tag, CacheDesc desc, Allocation *request, tuple keys) except -1
    cdef bint may_be_accessible(self, CacheDesc desc, object remote_accessible) except -1
    cdef int await_release(self, uint64_t slot_number, uint64_t generation) except -1
