"""A cache as its user holds it, and the arrays that are its tensors."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_relaxed, atomic_store_release
from llmdd._core.cache_desc cimport CacheDesc
from llmdd._core.lifecycle cimport Allocation
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.segments cimport Mapping


cdef class Cache:
    cdef readonly int64_t cache_id
    cdef readonly CacheDesc cache_desc
    cdef readonly bint is_blocks_cache
    cdef bint registered           # its memory is the caller's own, and known to the manager
    cdef NodeMemory memory         # None for a create_cpu_cache
    cdef uint64_t slot
    cdef uint32_t generation
    cdef uint64_t dropped          # for is_dropped
    cdef tuple shape               # as it was when the cache was made
    cdef object data_type
    cdef list addresses            # of a create_cpu_cache; replaced by forget_addresses: read in a critical section
    cdef list own_addresses(self)
    cdef int forget_addresses(self) except -1


cdef class ViewPin:
    """Holds a cache for as long as any array shows its memory."""
    cdef Mapping arena
    cdef Mapping pool
    cdef uint64_t slot


cdef class TensorMemory:
    """The bytes of one tensor, as a buffer."""
    cdef ViewPin pin
    cdef char *start
    cdef Py_ssize_t size


cdef inline bint is_dropped(Cache cache) noexcept:
    """Whether its id was given up by a call with this object; another thread may be doing so."""
    return atomic_load_relaxed(&cache.dropped) != 0

cdef inline void drop(Cache cache) noexcept:
    atomic_store_release(&cache.dropped, 1)

cdef Cache new_cache(NodeMemory memory, CacheDesc desc, tuple shape, const Allocation *made)
