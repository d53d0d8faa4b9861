# cython: language_level=3
"""The clock of leases (see ``leases.pxd``)."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.atomic cimport atomic_fetch_add_word, atomic_load_relaxed, monotonic_nanoseconds

# Of this process's leases alone.
cdef uint64_t ahead_ms = 0


cdef int64_t lease_clock_ms() noexcept nogil:
    return monotonic_nanoseconds() // 1000000 + <int64_t>atomic_load_relaxed(&ahead_ms)


def advance_lease_clock(uint64_t milliseconds):
    """Let leases, as this process sees them, and its renewals, go by a clock that is so much further ahead.

    For tests, which would have to wait otherwise. Processes that share caches must agree about the time: the result is how
    far ahead this one is in all.
    """
    return atomic_fetch_add_word(&ahead_ms, milliseconds) + milliseconds
