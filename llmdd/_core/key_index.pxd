"""The key index: (kind, id, model_id) -> slot, batch index, generation.

Open addressing in hash order. An entry's *home* is the top bits of its tag, entries stand in the order of their tags, and
each stands at or behind its home with no gap between: so a search ends at the first larger tag, an insertion shifts the
rest of its run up by one, an erasure shifts it down, and there are no tombstones to slow the next search down. Doubling
the index keeps the order and is done in place.

There is one writer, the owner. Peers probe through a read-only mapping: an entry they find is believed only after the
slot it names has confirmed it (peer.pyx), and a key they do not find is believed absent only if `index_version` did not
change meanwhile.
"""

from libc.stdint cimport uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_acquire, atomic_load_relaxed, multiply_fold
from llmdd._core.layout cimport ArenaHeader, IndexEntry, KeyRecord, header_of

cdef enum:
    KIND_MASK = 7                  # the low bits of a tag: KeyKind

cdef IndexEntry *index_find(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil
cdef bint index_reserve(char *arena, uint64_t count) noexcept nogil
cdef bint index_insert(char *arena, uint64_t kind, uint64_t id, uint64_t model_id, uint32_t slot,
                       uint32_t batch_index, uint32_t generation) noexcept nogil
cdef void index_erase(char *arena, IndexEntry *entry) noexcept nogil
cdef void index_move(char *arena, IndexEntry *entry, uint32_t batch_index) noexcept nogil
cdef bint index_probe(char *arena, const ArenaHeader *known, uint32_t tag, uint64_t id, uint64_t model_id,
                      IndexEntry *found) noexcept nogil
cdef void index_prefetch(char *arena, const ArenaHeader *known, uint32_t tag) noexcept nogil
cdef void index_tags(char *arena, const ArenaHeader *known, const KeyRecord *keys, uint64_t count,
                     uint32_t *tags) noexcept nogil
cdef void index_probes(char *arena, const ArenaHeader *known, const uint32_t *tags, const KeyRecord *keys, uint64_t count,
                       IndexEntry *found) noexcept nogil
cdef int index_check(char *arena) except -1

cdef inline uint64_t most_entries(const ArenaHeader *header) noexcept nogil:
    return header.index_capacity - header.index_capacity // 16

cdef inline uint32_t key_tag(const ArenaHeader *header, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil:
    """The hash of a key, with its kind in the low bits. Seeded, so that chosen request ids cannot crowd together."""
    cdef uint64_t mixed = multiply_fold(id ^ header.hash_seed[0], model_id ^ header.hash_seed[1])
    mixed = multiply_fold(mixed ^ kind, 0x9E3779B97F4A7C15ULL)
    return <uint32_t>((mixed >> 32) & ~<uint64_t>KIND_MASK) | <uint32_t>kind

cdef inline uint64_t index_version(char *arena) noexcept nogil:
    """To be read before a search that index_is_unchanged judges. Pairs with the release in end_change."""
    return atomic_load_acquire(&header_of(arena).index_version)

cdef inline bint index_is_unchanged(char *arena, uint64_t version) noexcept nogil:
    """Whether a search since `version` was read saw the index whole.

    Pairs with begin_change, through the acquire of whatever was read since: whoever saw some of a change sees its version.
    """
    return version & 1 == 0 and atomic_load_relaxed(&header_of(arena).index_version) == version
