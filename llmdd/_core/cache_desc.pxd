"""The description of a cache's tensors."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class CacheDesc:
    cdef readonly uint32_t num_tensors
    cdef readonly object shape     # replaced by update_dim; read in a critical section
    cdef readonly object data_type
    cdef readonly object placement
    cdef readonly int64_t seq_len_dim_index
    cdef readonly object kv_tensor_format
    cdef int64_t batch_dim_index
    cdef int64_t cached_size
    cdef bint device
    cdef int64_t element_bytes
    cdef int64_t batch_slots(self) except -1
    cdef bint slots_are_contiguous(self) except -1


cdef int64_t checked_tensor_bytes(CacheDesc desc) except -1
