"""The caches of one node: made, found and dropped."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.cache cimport Cache
from llmdd._core.cache_desc cimport CacheDesc
from llmdd._core.layout cimport PEER_WORDS, KeyRecord
from llmdd._core.lifecycle cimport Allocation
from llmdd._core.node_memory cimport NodeMemory


cdef class NodeCaches:
    cdef NodeMemory memory
    cdef readonly uint64_t cluster_id
    cdef readonly bint remote_accessible
    # Kept by the links; read in a critical section.
    cdef public dict peers         # cluster id -> Peer; replaced, never modified
    cdef public int communicators  # how many live
    cdef uint64_t[PEER_WORDS] admitted   # one bit for each pin bit given to a peer
    cdef readonly uint64_t cache_key_lease   # milliseconds; 0: keys are bound without a lease unless one is given
    cdef public object lease_keeper   # renews the leases of keys that are expected here; None: there are none
    cdef int64_t leases_due_ms     # when the first may be over that is known of; changed under the lock
    cdef uint64_t sweep(self, int64_t now_ms, KeyRecord *named, uint64_t most_named) except? -1
    cdef Cache make(self, str tag, CacheDesc desc, Allocation *request, tuple keys, list addresses,
                    uint64_t lease_ms=*)
    cdef int describe(self, CacheDesc desc, Allocation *request) except -1
    cdef int enter_arena(self, str tag, CacheDesc desc, Allocation *request, tuple keys, uint64_t lease_ms=*) except -1
    cdef bint may_be_accessible(self, CacheDesc desc, object remote_accessible) except -1
    cdef int move_registered(self, uint64_t peer_bit, uint64_t slot_number, uint64_t generation, uint64_t tensor,
                             uint64_t offset, uint64_t size, char *data, bint to_tensor) except -1
    cdef int require_admitted(self, unsigned int bit) except -1
    cdef int await_release(self, uint64_t slot_number, uint64_t generation) except -1
