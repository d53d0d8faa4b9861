"""Who waits for memory: allocations of one pool, first come first served.

The first of them alone tries, whenever something was released; who comes later does not even try while another waits, so
a small cache never overtakes a large one. Each pool has a queue of its own.

The store's lock is held only while somebody tries: whatever gives memory back goes on beside those who wait. A queue is
changed with the GIL held, or in a critical section of its own, never while waiting for the store's lock: whoever gives up
leaves at once, also while another thread holds the store still.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.lifecycle cimport Allocation, Refusal
from llmdd._core.node_memory cimport NodeMemory


cdef struct Waiter:
    # On the stack of the thread that waits.
    Waiter *next
    uint32_t turn                  # 1: look again: it is the first now, or the queue has been closed


cdef class AllocationQueue:
    cdef unsigned int pool
    cdef Waiter *first
    cdef Waiter *last
    cdef readonly uint64_t length
    cdef bint closed               # nobody may wait any more
    cdef bint is_empty(self) noexcept
    cdef bint is_first(self, const Waiter *waiter) noexcept
    cdef int require_open(self, str tag) except -1
    cdef void join(self, Waiter *waiter) noexcept
    cdef void leave(self, Waiter *waiter) noexcept
    cdef void close(self) noexcept
    cdef Refusal allocate(self, NodeMemory memory, str tag, Allocation *request) except *
    cdef int wait(self, NodeMemory memory, str tag, Waiter *waiter, Allocation *request, Refusal *refusal) except -1
