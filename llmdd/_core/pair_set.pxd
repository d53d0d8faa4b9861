"""A set of pairs of numbers that remembers who added each: finds in one pass what is named twice."""

from libc.stdint cimport uint64_t

cdef uint64_t NOT_SEEN

cdef struct Pair:
    uint64_t first
    uint64_t second
    uint64_t position              # plus 1; 0: empty

cdef struct PairSet:
    Pair *pairs
    uint64_t mask

cdef bint pair_set_make(PairSet *pairs, uint64_t count) noexcept nogil
cdef void pair_set_drop(PairSet *pairs) noexcept nogil
cdef uint64_t pair_set_add(PairSet *pairs, uint64_t first, uint64_t second, uint64_t position) noexcept nogil
cdef uint64_t pair_set_find(const PairSet *pairs, uint64_t first, uint64_t second) noexcept nogil
