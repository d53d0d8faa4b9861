"""The memory of one node, shared by its store, its caches and their views."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.arena cimport Capacities
from llmdd._core.copying cimport CopyTeam
from llmdd._core.layout cimport ArenaHeader
from llmdd._core.segments cimport Mapping
from llmdd._core.timed_lock cimport TimedLock


cdef class NodeMemory:
    cdef readonly bint closed
    cdef Mapping arena
    cdef Mapping host_pool
    cdef Mapping device_pool
    cdef char *base
    cdef char *pools[2]
    cdef TimedLock lock
    cdef int64_t timeout_ns
    cdef list fds
    cdef CopyTeam team
    cdef int enter(self, str tag) except -1
    cdef void leave(self) noexcept
    cdef int require_open(self, str tag) except -1
    cdef Mapping pool_mapping(self, uint64_t placement)
    cdef int map_all(self, const ArenaHeader *plan, bint shared) except -1
    cdef Mapping obtain_pool(self, uint64_t size, bint shared)
    cdef int close_segments(self) except -1
