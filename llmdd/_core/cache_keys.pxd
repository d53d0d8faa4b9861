"""The keys by which a cache is found: immutable, each equal to itself alone (api §1.7)."""

from cython cimport final
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t

from llmdd._core.layout cimport KEY_NONE, KEY_PREFIX, KEY_REQUEST


@final
cdef class CacheKey:
    cdef readonly uint64_t cluster_id
    cdef readonly uint64_t req_id
    cdef readonly uint64_t model_id
    cdef readonly uint64_t prefix_id

    cdef inline uint64_t kind(self) noexcept:
        """The namespace the key binds in: a prefix wins if both ids are given (api §3.1)."""
        if self.prefix_id != UINT64_MAX:
            return KEY_PREFIX
        return KEY_NONE if self.req_id == UINT64_MAX else KEY_REQUEST

    cdef inline uint64_t identity(self) noexcept:
        return self.req_id if self.prefix_id == UINT64_MAX else self.prefix_id


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
