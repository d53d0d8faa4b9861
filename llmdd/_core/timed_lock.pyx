# cython: language_level=3
"""The lock of a store and of a link (see ``timed_lock.pxd``)."""

from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_get_thread_ident,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.stdint cimport int64_t

cdef extern from "pythread.h" nogil:
    # Missing from Cython's own declarations. 1: taken.
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)


cdef class TimedLock:
    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no room for a lock")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef bint acquire(self, int64_t timeout_ns):
        """Take the lock; False if it did not become free in time. Waits without the GIL."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef int taken
        cdef int64_t microseconds = timeout_ns // 1000
        if self.depth and self.holder == me:
            self.depth += 1
            return True
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                taken = PyThread_acquire_lock_timed(self.lock, microseconds, 0)
            if not taken:
                return False
        self.holder = me
        self.depth = 1
        return True

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            self.holder = 0
            PyThread_release_lock(self.lock)
