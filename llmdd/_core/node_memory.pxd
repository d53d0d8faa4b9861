"""The memory of one node, shared by its store, its caches and their views."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.arena cimport Capacities
from llmdd._core.atomic cimport atomic_load_relaxed
from llmdd._core.copying cimport CopyTeam
from llmdd._core.layout cimport ArenaHeader
from llmdd._core.segments cimport Mapping
from llmdd._core.timed_lock cimport TimedLock


cdef class NodeMemory:
    cdef uint64_t closed           # for is_closed
    cdef bint[2] configured        # whether there is such a pool
    # Dropped by close and abandon: read under the lock, or in a critical section that also looks whether `base` is there.
    cdef char *base                # NULL: closed
    cdef Mapping arena
    cdef Mapping host_pool
    cdef Mapping device_pool
    cdef char *pools[2]
    cdef TimedLock lock
    cdef int64_t timeout_ns
    cdef list fds                  # replaced by close: read in a critical section
    cdef CopyTeam team
    cdef int enter(self, str tag) except -1
    cdef void leave(self) noexcept
    cdef int require_open(self, str tag) except -1
    cdef Mapping pool_mapping(self, uint64_t placement)
    cdef int map_all(self, const ArenaHeader *plan, bint shared) except -1
    cdef Mapping obtain_pool(self, uint64_t size, bint shared)
    cdef int close_segments(self) except -1


cdef int enter_before(NodeMemory memory, str tag, int64_t deadline) except -1


cdef inline bint is_closed(NodeMemory memory) noexcept:
    """Whether it was closed: by now, if the answer is no and neither the lock nor a critical section keeps it open."""
    return atomic_load_relaxed(&memory.closed) != 0
