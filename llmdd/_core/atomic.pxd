"""Atomic words, bit scans, the hash's multiply, and the monotonic clock (see ``atomic.h``)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "atomic.h" nogil:
    uint64_t atomic_load_word(const uint64_t *word) noexcept
    uint64_t atomic_load_acquire(const uint64_t *word) noexcept
    uint64_t atomic_load_relaxed(const uint64_t *word) noexcept
    void atomic_store_word(uint64_t *word, uint64_t value) noexcept
    void atomic_store_relaxed(uint64_t *word, uint64_t value) noexcept
    void atomic_store_release(uint64_t *word, uint64_t value) noexcept
    uint64_t atomic_fetch_set(uint64_t *word, uint64_t bits) noexcept
    uint64_t atomic_fetch_clear(uint64_t *word, uint64_t bits) noexcept
    uint64_t atomic_fetch_add_word(uint64_t *word, uint64_t by) noexcept
    uint64_t atomic_fetch_subtract(uint64_t *word, uint64_t by) noexcept
    uint64_t atomic_take(uint64_t *word) noexcept
    bint atomic_replace(uint64_t *word, uint64_t expected, uint64_t value) noexcept
    void atomic_fence_acquire() noexcept
    void atomic_fence_release() noexcept
    uint32_t atomic_load_number(const uint32_t *number) noexcept
    void atomic_store_number(uint32_t *number, uint32_t value) noexcept
    bint atomic_load_flag(const uint8_t *flag) noexcept
    void atomic_store_flag(uint8_t *flag, bint value) noexcept
    void atomic_raise(uint64_t *word, uint64_t value) noexcept
    unsigned int lowest_bit(uint64_t word) noexcept
    unsigned int highest_bit(uint64_t word) noexcept
    unsigned int count_bits(uint64_t word) noexcept
    uint64_t multiply_fold(uint64_t a, uint64_t b) noexcept
    int64_t monotonic_nanoseconds() noexcept
