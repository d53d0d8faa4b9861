"""Laying an arena out over zeroed memory, and checking one that somebody else laid out."""

from libc.stdint cimport uint64_t

from llmdd._core.layout cimport ArenaHeader

cdef struct Capacities:
    uint64_t slots
    uint64_t keys                  # a power of two
    uint64_t records
    uint64_t words

cdef struct PoolSize:
    uint64_t memory_size           # 0: no such pool
    uint64_t page_shift

cdef void plan_arena(ArenaHeader *header, const Capacities *capacities, const PoolSize *pools) noexcept nogil
cdef void init_arena(char *arena, const ArenaHeader *plan) noexcept nogil
cdef void copy_header(ArenaHeader *known, const ArenaHeader *header) noexcept nogil
cdef str what_is_wrong(const ArenaHeader *header, uint64_t control_bytes, uint64_t references_bytes)
