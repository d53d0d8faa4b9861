# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many keys and caches of one's own (see ``bulk_keys.pxd``)."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.key_index cimport (
    index_find,
    index_is_unchanged,
    index_prefetch,
    index_probes,
    index_tags,
    index_version,
    key_tag,
)
from llmdd._core.layout cimport (
    KEY_CACHE_ID,
    KEY_NONE,
    KEY_REQUEST,
    IndexEntry,
    KeyRecord,
    ReferenceSlot,
    Slot,
    header_of,
    reference_slot_at,
    slot_at,
)
from llmdd._core.lifecycle cimport bound_cache_id, drop_id, find_bound_key, generation_of, remove_key
from llmdd._core.pair_set cimport NOT_SEEN, PairSet, pair_set_add

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *address) noexcept nogil

cdef enum:
    GROUP = 32                     # keys whose cache misses wait for memory together
    AHEAD = 8                      # how far ahead of the key in work the index is fetched

cdef uint64_t NOT_A_REQUEST = <uint64_t>-1


cdef inline KeyRecord key_at(const Keys *keys, uint64_t position) noexcept nogil:
    cdef KeyRecord key
    if keys.records != NULL:
        return keys.records[position]
    key.id = keys.request_ids[position]
    key.model_id = keys.model_id
    key.kind = KEY_NONE if key.id == NOT_A_REQUEST else KEY_REQUEST
    return key


cdef uint64_t find_keys(
    char *arena, const Keys *keys, uint64_t begin, int64_t *cache_ids, uint32_t *batch_indices
) noexcept nogil:
    """Where keys from `begin` on are bound; up to which one. It stops at a group during which the index changed.

    A miss in memory costs as much as ten keys in a cache, and a lookup has three: the index, the slot, the reference
    words. So each is asked for, for a group of keys, before the first of them is waited for.
    """
    cdef KeyRecord[GROUP] requests
    cdef const KeyRecord *group
    cdef uint32_t[GROUP] tags
    cdef IndexEntry[GROUP] entries
    cdef uint64_t version, count, i
    while begin < keys.count:
        count = min(<uint64_t>GROUP, keys.count - begin)
        group = keys.records + begin
        if keys.records == NULL:
            for i in range(count):
                requests[i] = key_at(keys, begin + i)
            group = requests
        version = index_version(arena)
        index_tags(arena, header_of(arena), group, count, tags)
        index_probes(arena, header_of(arena), tags, group, count, entries)
        if not index_is_unchanged(arena, version):
            return begin           # an entry may be torn
        read_places(arena, entries, count, cache_ids + begin, batch_indices + begin)
        # As long as the index is unchanged the caches of its entries are there.
        if not index_is_unchanged(arena, version):
            return begin
        begin += count
    return begin


cdef inline void read_places(
    char *arena, const IndexEntry *entries, uint64_t count, int64_t *cache_ids, uint32_t *batch_indices
) noexcept nogil:
    """The cache and the batch slot of each entry whose key is bound; 0 and 0 of another."""
    cdef Slot *slots = slot_at(arena, 0)
    cdef ReferenceSlot *references = reference_slot_at(arena, 0)
    cdef uint64_t i
    for i in range(count):
        if entries[i].tag:
            prefetch(slots + entries[i].slot)
            prefetch(references[entries[i].slot].words)
    for i in range(count):
        cache_ids[i] = bound_cache_id(arena, entries + i) if entries[i].tag else 0
        batch_indices[i] = entries[i].batch_index if cache_ids[i] else 0


cdef uint64_t first_unbound(char *arena, const Keys *keys, PairSet *named) noexcept nogil:
    """The first key that is not bound, or stands for what an earlier one stands for; the number of keys if there is none."""
    cdef uint64_t i
    cdef KeyRecord key
    cdef IndexEntry *entry
    for i in range(keys.count):
        key = key_at(keys, i)
        entry = NULL if key.kind == KEY_NONE else find_bound_key(arena, key.kind, key.id, key.model_id)
        if entry == NULL or pair_set_add(named, entry.slot, entry.batch_index, i) != NOT_SEEN:
            return i
    return keys.count


cdef void remove_keys(char *arena, const Keys *keys, unsigned char *removed) noexcept nogil:
    """Remove one key after the other; whether each was bound, and dropped by this."""
    cdef uint64_t i
    cdef KeyRecord key
    for i in range(keys.count):
        if i + AHEAD < keys.count:
            key = key_at(keys, i + AHEAD)
            index_prefetch(arena, header_of(arena), key_tag(header_of(arena), key.kind, key.id, key.model_id))
        key = key_at(keys, i)
        removed[i] = key.kind != KEY_NONE and remove_key(arena, key.kind, key.id, key.model_id)


cdef uint32_t standing_of(char *arena, const CacheReference *reference) noexcept nogil:
    cdef Slot *slot = slot_at(arena, reference.slot)
    if slot.tenant == 0 or generation_of(slot) != reference.generation:
        return NOT_HELD
    if slot.blocks or slot.registered:
        return OTHERS_DROP_IT
    return HELD if slot.held else NOT_HELD


cdef void find_caches(char *arena, const uint64_t *cache_ids, CacheReference *references, uint64_t count) noexcept nogil:
    """The caches of these ids."""
    cdef uint64_t i
    cdef IndexEntry *entry
    for i in range(count):
        if i + AHEAD < count:
            index_prefetch(arena, header_of(arena), key_tag(header_of(arena), KEY_CACHE_ID, cache_ids[i + AHEAD], 0))
        entry = index_find(arena, KEY_CACHE_ID, cache_ids[i], 0)
        references[i].standing = NOT_HELD
        if entry != NULL:
            references[i].slot = entry.slot
            references[i].generation = entry.generation
            references[i].standing = HELD


cdef uint64_t first_not_held(char *arena, CacheReference *references, uint64_t count, PairSet *named) noexcept nogil:
    """The first cache whose id reference cannot be dropped, or would be by an earlier item; `count` if there is none."""
    cdef uint64_t i
    for i in range(count):
        if references[i].standing == HELD:
            references[i].standing = standing_of(arena, references + i)
        if references[i].standing != HELD:
            return i
        if pair_set_add(named, references[i].slot, references[i].generation, i) != NOT_SEEN:
            references[i].standing = ALREADY_NAMED
            return i
    return count


cdef void drop_ids(char *arena, CacheReference *references, uint64_t count, unsigned char *dropped) noexcept nogil:
    """Drop one id reference after the other; whether each was held."""
    cdef uint64_t i
    for i in range(count):
        dropped[i] = references[i].standing == HELD and standing_of(arena, references + i) == HELD
        if dropped[i]:
            drop_id(arena, references[i].slot, references[i].generation)
