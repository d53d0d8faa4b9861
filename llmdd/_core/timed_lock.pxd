"""A lock that may be taken again by the thread that holds it, and waited for until a deadline."""

from libc.stdint cimport int64_t, uint32_t


cdef class TimedLock:
    cdef uint32_t word
    cdef unsigned long holder      # only ever compared with one's own identity
    cdef int depth
    cdef bint acquire(self, int64_t timeout_ns)
    cdef void release(self) noexcept
