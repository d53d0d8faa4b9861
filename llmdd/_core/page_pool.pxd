"""Runs of pages: the lowest address where a run fits, neighbours merged by construction, O(log pages).

The pages are bits of a bitmap (1: taken), 64 to a word. Above the words stands a binary tree whose nodes say how long the
free runs at the low end, at the high end and anywhere in their span are. What a node stores is what is *missing* from an
entirely free span, so a tree of zeros is a free pool, and a pool of any size costs nothing until it is used.

Node 1 is the root, the children of node n are 2n and 2n + 1, and the parent of leaf word w is (words + w) / 2.
"""

from libc.stdint cimport uint64_t

from llmdd._core.layout cimport PageTree

cdef uint64_t NO_RUN                       # what find gives when no run is long enough

cdef uint64_t page_tree_words(uint64_t pages) noexcept nogil
cdef uint64_t page_tree_bytes(uint64_t pages) noexcept nogil
cdef void page_tree_init(char *arena, PageTree *tree, uint64_t offset, uint64_t pages) noexcept nogil
cdef uint64_t take_run(char *arena, PageTree *tree, uint64_t count) noexcept nogil
cdef bint return_run(char *arena, PageTree *tree, uint64_t first, uint64_t count) noexcept nogil
cdef bint run_is_taken(char *arena, PageTree *tree, uint64_t first, uint64_t count) noexcept nogil
cdef int page_tree_check(char *arena, PageTree *tree) except -1
