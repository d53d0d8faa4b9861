# cython: language_level=3
"""The lock of a store and of a link (see ``timed_lock.pxd``)."""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_relaxed, atomic_store_relaxed

cdef extern from "futex.h" nogil:
    bint futex_try(uint32_t *word) noexcept
    bint futex_take(uint32_t *word, int64_t timeout_nanoseconds) noexcept
    void futex_release(uint32_t *word) noexcept


cdef class TimedLock:
    cdef bint acquire(self, int64_t timeout_ns):
        """Take the lock; False if it did not become free in time. Waits without the GIL."""
        cdef uint64_t me = PyThread_get_thread_ident()
        cdef bint taken
        # Only this thread writes its own identity here: whatever else is found, and however late, it is another's.
        if atomic_load_relaxed(&self.holder) == me:
            self.depth += 1
            return True
        if not futex_try(&self.word):
            with nogil:
                taken = futex_take(&self.word, timeout_ns)
            if not taken:
                return False
        atomic_store_relaxed(&self.holder, me)
        self.depth = 1
        return True

    cdef void release(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            atomic_store_relaxed(&self.holder, 0)
            futex_release(&self.word)
