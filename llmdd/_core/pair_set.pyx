# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A set of pairs (see ``pair_set.pxd``)."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from llmdd._core.atomic cimport multiply_fold

NOT_SEEN = <uint64_t>-1


cdef bint pair_set_make(PairSet *pairs, uint64_t count) noexcept nogil:
    """An empty set with room for `count` pairs, half of which stays free. False if there is no memory."""
    cdef uint64_t room = 16
    while room < 2 * count:
        room *= 2
    pairs.mask = room - 1
    pairs.pairs = <Pair *>calloc(room, sizeof(Pair))
    return pairs.pairs != NULL


cdef void pair_set_drop(PairSet *pairs) noexcept nogil:
    free(pairs.pairs)
    pairs.pairs = NULL


cdef inline Pair *place_of(const PairSet *pairs, uint64_t first, uint64_t second) noexcept nogil:
    """Where the pair is, or would be."""
    cdef uint64_t place = multiply_fold(first ^ 0x9E3779B97F4A7C15ULL, second ^ 0xD1B54A32D192ED03ULL) & pairs.mask
    while pairs.pairs[place].position and (pairs.pairs[place].first != first or pairs.pairs[place].second != second):
        place = (place + 1) & pairs.mask
    return pairs.pairs + place


cdef uint64_t pair_set_add(PairSet *pairs, uint64_t first, uint64_t second, uint64_t position) noexcept nogil:
    """Add a pair. NOT_SEEN, or the position of the one who added it before."""
    cdef Pair *pair = place_of(pairs, first, second)
    if pair.position:
        return pair.position - 1
    pair.first = first
    pair.second = second
    pair.position = position + 1
    return NOT_SEEN


cdef uint64_t pair_set_find(const PairSet *pairs, uint64_t first, uint64_t second) noexcept nogil:
    """The position of who added the pair, or NOT_SEEN."""
    return place_of(pairs, first, second).position - 1
