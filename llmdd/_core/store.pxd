"""The caches of one node: what the manager's local calls do, and the transfers it asks peers' arenas for."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.cache cimport Cache
from llmdd._core.cache_desc cimport CacheDesc
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.segments cimport Mapping
from llmdd._core.transfer cimport Transfer


cdef class CacheStore:
    cdef NodeMemory memory
    cdef readonly uint64_t cluster_id
    cdef readonly bint remote_accessible
    cdef public dict peers         # cluster id -> PeerArena, kept by the links
    cdef public int communicators  # how many live, kept by the links
    cdef uint64_t admitted         # one bit for each pin bit given to a peer
    cdef Cache allocate(self, CacheDesc desc, tuple cache_keys)
    cdef int transfer_tensors(self, str tag, Transfer *transfer, object key, Cache cache, uint64_t batch_index,
                              int64_t size, uint64_t per_layer) except -1
    cdef int copy_slot(self, Cache dst, Cache src, uint64_t dst_index, uint64_t src_index, uint64_t offset,
                       int64_t size) except -1
    cdef int copy_pinned(self, Mapping arena, Cache dst, Cache src, uint64_t dst_index, uint64_t src_index,
                         uint64_t offset, int64_t size) except -1
