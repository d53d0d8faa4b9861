"""A lock that may be taken again by the thread that holds it, and waited for until a deadline."""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t


cdef class TimedLock:
    cdef PyThread_type_lock lock
    cdef unsigned long holder
    cdef int depth
    cdef bint acquire(self, int64_t timeout_ns)
    cdef void release(self) noexcept
