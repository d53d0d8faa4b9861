# cython: language_level=3, boundscheck=False, wraparound=False
"""Lists of block indices (see ``block_lists.pxd``)."""

from cython cimport final
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from llmdd._core.copying cimport Piece
from llmdd._core.validation cimport checked_uint64, wrong_type


@final
cdef class BlockLists:
    """The block indices of our cache and of the peer's, position by position. One list may be empty, not both unequal."""

    def __dealloc__(self):
        free(self.pieces)


cdef BlockLists new_block_lists(tuple ours, tuple theirs):
    """From indices that checked_blocks has checked; one allocation holds the pieces and both lists."""
    cdef BlockLists lists = BlockLists.__new__(BlockLists)
    cdef uint64_t count = max(len(ours), len(theirs))
    cdef uint64_t room = max(count, 1)
    cdef uint64_t i
    lists.count = count
    lists.pieces = <Piece *>malloc(room * (sizeof(Piece) + 2 * sizeof(uint64_t)))
    if lists.pieces == NULL:
        raise MemoryError(f"{room * (sizeof(Piece) + 2 * sizeof(uint64_t))} bytes for lists of {count} blocks")
    if ours:
        lists.ours = <uint64_t *>(lists.pieces + room)
        for i in range(<uint64_t>len(ours)):
            lists.ours[i] = ours[i]
    if theirs:
        lists.theirs = <uint64_t *>(lists.pieces + room) + room
        for i in range(<uint64_t>len(theirs)):
            lists.theirs[i] = theirs[i]
    return lists


cdef tuple checked_blocks(str name, object blocks):
    """Block indices as they are now: a list or tuple of uint64; TypeError or ValueError otherwise."""
    if not isinstance(blocks, (list, tuple)):
        raise wrong_type(name, blocks, "list, tuple")
    cdef tuple indices = tuple(blocks)
    for index in indices:
        if not isinstance(index, int):
            raise TypeError(f"{name} inner type only support [int], but got {type(index)}")
        checked_uint64(name, index)
    return indices


cdef uint64_t largest(const uint64_t *blocks, uint64_t count) noexcept nogil:
    """The largest of `count` indices, 0 if there are none."""
    cdef uint64_t i
    cdef uint64_t found = 0
    for i in range(count):
        found = max(found, blocks[i])
    return found
