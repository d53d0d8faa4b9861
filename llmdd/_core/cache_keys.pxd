"""The keys by which a cache is found: immutable, each equal to itself alone (api §1.7)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class CacheKey:
    cdef readonly uint64_t cluster_id
    cdef readonly uint64_t req_id
    cdef readonly uint64_t model_id
    cdef readonly uint64_t prefix_id
    cdef uint64_t kind(self) noexcept
    cdef uint64_t identity(self) noexcept


cdef class BlocksCacheKey:
    cdef readonly uint64_t cluster_id
    cdef readonly uint64_t model_id
    cdef str spelling


cdef class CacheKeyByIdAndIndex:
    cdef readonly uint64_t cluster_id
    cdef readonly int64_t cache_id
    cdef readonly uint32_t batch_index
    cdef bint made


cdef CacheKeyByIdAndIndex key_by_id_and_index(uint64_t cluster_id, int64_t cache_id, uint32_t batch_index)
