"""A lock that may be taken again by the thread that holds it, and waited for until a deadline."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class TimedLock:
    cdef uint32_t word
    cdef uint64_t holder           # only ever compared with one's own identity
    cdef int depth                 # the holder's alone
    cdef bint acquire(self, int64_t timeout_ns)
    cdef void release(self) noexcept
