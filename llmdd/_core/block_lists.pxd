"""Lists of block indices of one call, and room for the pieces that a transfer plans from them."""

from libc.stdint cimport uint64_t

from llmdd._core.copying cimport Piece


cdef class BlockLists:
    cdef uint64_t *ours            # NULL: none was given
    cdef uint64_t *theirs
    cdef uint64_t count
    cdef Piece *pieces             # room for one a block, one at least


cdef BlockLists new_block_lists(tuple ours, tuple theirs)
cdef tuple checked_blocks(str name, object blocks)
cdef uint64_t largest(const uint64_t *blocks, uint64_t count) noexcept nogil
