"""Leases of keys: the words that say when each is over, for caches whose keys were bound with one.

They stand behind the reference words, one for each batch slot: the tenant's generation in the upper half, and in the
lower one the millisecond at which the lease ends. The clock is the kernel's monotonic one, which every process of a host
reads alike; half a word of it goes round in 49 days, so times are compared by their distance, which is less than a lease.

Owner and peers only ever put an end off, until the owner writes LEASE_OVER, which nobody puts off. So whoever has
renewed a lease can rely on it: the owner takes the key only after its own compare-and-swap has found no later end.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_word, atomic_replace
from llmdd._core.layout cimport WORD_BITS, key_words, tensor_words

cdef enum:
    LEASE_OVER = 0xFFFFFFFF
    LONGEST_LEASE_MS = 0x7FFFFFFF  # an int32, as distances are

cdef int64_t lease_clock_ms() noexcept nogil

cdef inline uint32_t end_of_lease(int64_t now_ms, uint64_t lease_ms) noexcept nogil:
    """The millisecond at which a lease ends that begins now; the one after it where that is LEASE_OVER."""
    cdef uint32_t end = <uint32_t>(<uint64_t>now_ms + lease_ms)
    return end if end != LEASE_OVER else 0

cdef inline int32_t time_left(uint32_t end, int64_t now_ms) noexcept nogil:
    """Milliseconds until an end; not positive: it has come."""
    return <int32_t>(end - <uint32_t>now_ms)

cdef inline uint64_t *lease_words(uint64_t *words, uint64_t key_count, uint64_t num_tensors) noexcept nogil:
    return words + key_words(key_count) + key_count * tensor_words(num_tensors)

cdef inline bint put_off(uint64_t *word, uint32_t generation, uint32_t end) noexcept nogil:
    """Let a lease end then, unless it ends later; False if it is over, or of another tenant."""
    # Pair with take_if_over, and with one another: nothing else is written by a renewal.
    cdef uint64_t value = atomic_load_word(word)
    while value >> WORD_BITS == generation and <uint32_t>value != LEASE_OVER:
        if <int32_t>(end - <uint32_t>value) <= 0:
            return True
        if atomic_replace(word, value, <uint64_t>generation << WORD_BITS | end):
            return True
        value = atomic_load_word(word)
    return False

cdef inline bint take_if_over(uint64_t *word, uint32_t generation, int64_t now_ms, int32_t *left_ms) noexcept nogil:
    """For the owner: whether a lease is over, which it stays then; else how much is left of it."""
    # Pairs with put_off: whoever came before this has put the end off, whoever comes later is told that it is over.
    cdef uint64_t value = atomic_load_word(word)
    while value >> WORD_BITS == generation and <uint32_t>value != LEASE_OVER:
        left_ms[0] = time_left(<uint32_t>value, now_ms)
        if left_ms[0] > 0:
            return False
        if atomic_replace(word, value, <uint64_t>generation << WORD_BITS | LEASE_OVER):
            return True
        value = atomic_load_word(word)
    # A peer that runs wild may write what it likes here, as it may give up keys: then the lease is over.
    return True
