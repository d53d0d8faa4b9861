# cython: language_level=3
"""The lock of a store and of a link (see ``timed_lock.pxd``)."""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint32_t

cdef extern from "futex.h" nogil:
    bint futex_try(uint32_t *word) noexcept
    bint futex_take(uint32_t *word, int64_t timeout_nanoseconds) noexcept
    void futex_release(uint32_t *word) noexcept


cdef class TimedLock:
    cdef bint acquire(self, int64_t timeout_ns):
        """Take the lock; False if it did not become free in time. Waits without the GIL."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint taken
        if self.holder == me:
            self.depth += 1
            return True
        if not futex_try(&self.word):
            with nogil:
                taken = futex_take(&self.word, timeout_ns)
            if not taken:
                return False
        self.holder = me
        self.depth = 1
        return True

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            self.holder = 0
            futex_release(&self.word)
