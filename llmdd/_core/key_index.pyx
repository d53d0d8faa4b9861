# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The key index (see ``key_index.pxd``)."""

from libc.stdint cimport uint32_t, uint64_t

from llmdd._core.atomic cimport (
    atomic_load_acquire,
    atomic_load_relaxed,
    atomic_store_relaxed,
    atomic_store_release,
)
from llmdd._core.layout cimport INDEX_OVERFLOW, ArenaHeader, IndexEntry, KeyRecord, header_of

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *address) noexcept nogil

cdef enum:
    TAG_BITS = 32
    ENTRY_WORDS = sizeof(IndexEntry) // 8
    TAG_WORD = 2                   # tag | slot << 32
    BATCH_WORD = 3                 # batch index | generation << 32


cdef inline IndexEntry *entries_of(char *arena) noexcept nogil:
    return <IndexEntry *>(arena + header_of(arena).index_offset)


cdef inline uint64_t home(uint32_t tag, uint64_t bits) noexcept nogil:
    return tag >> (TAG_BITS - bits)


cdef IndexEntry *index_find(char *arena, uint64_t kind, uint64_t id, uint64_t model_id) noexcept nogil:
    """The owner's search; NULL if the key is not there."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint32_t tag = key_tag(header, kind, id, model_id)
    cdef IndexEntry *entry = entries_of(arena) + home(tag, header.index_bits)
    while entry.tag and entry.tag <= tag:
        if entry.id == id and entry.tag == tag and entry.model_id == model_id:
            return entry
        entry += 1
    return NULL


# ---------------------------------------------------------------- how the owner changes entries, and peers read them
#
# A seqlock without fences. The owner makes the version odd and then stores every word of an entry with release; a peer
# loads every word with acquire and then reads the version again. So whoever has read one word of a change sees the
# version odd, or a later one. Entries are moved word by word, never by memmove, because a peer may be reading them.
# Nobody but the owner writes, under its lock: it reads entries as they are.


cdef inline void begin_change(ArenaHeader *header) noexcept nogil:
    # Ordered before the entries by the release of each of them.
    atomic_store_relaxed(&header.index_version, header.index_version + 1)


cdef inline void end_change(ArenaHeader *header) noexcept nogil:
    # Pairs with the acquire in index_version: whoever begins with this version sees the change whole.
    atomic_store_release(&header.index_version, header.index_version + 1)


cdef inline void store_word(IndexEntry *entry, int word, uint64_t value) noexcept nogil:
    # Pairs with the acquire in load_word.
    atomic_store_release(<uint64_t *>entry + word, value)


cdef inline uint64_t load_word(const IndexEntry *entry, int word) noexcept nogil:
    # Pairs with the release in store_word: the version that is read after it is the change's, or a later one.
    return atomic_load_acquire(<const uint64_t *>entry + word)


cdef inline void move_entry(IndexEntry *to, const IndexEntry *entry) noexcept nogil:
    cdef int word
    for word in range(ENTRY_WORDS):
        store_word(to, word, atomic_load_relaxed(<const uint64_t *>entry + word))


cdef inline void clear_entry(IndexEntry *entry) noexcept nogil:
    cdef int word
    for word in range(ENTRY_WORDS):
        store_word(entry, word, 0)


cdef inline void clear_entries(IndexEntry *begin, IndexEntry *end) noexcept nogil:
    while begin < end:
        clear_entry(begin)
        begin += 1


# ---------------------------------------------------------------- the owner's changes


cdef bint index_reserve(char *arena, uint64_t count) noexcept nogil:
    """Make room for `count` more entries. False if the index cannot grow that far; nothing has changed then."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint64_t wanted = header.index_count + count
    if wanted > most_entries(header):
        return False
    while wanted * 4 > (<uint64_t>3 << header.index_bits) and (<uint64_t>1 << header.index_bits) < header.index_capacity:
        grow(arena)
    return True


cdef void grow(char *arena) noexcept nogil:
    """Double the homes in place: pack every entry at the far end, then lay them out again in order from the near end.

    The entries still packed need at least as much room as is left, so what is laid out never overtakes them.
    """
    cdef ArenaHeader *header = header_of(arena)
    cdef IndexEntry *entries = entries_of(arena)
    cdef uint64_t old_end = (<uint64_t>1 << header.index_bits) + INDEX_OVERFLOW
    cdef uint64_t end = (<uint64_t>2 << header.index_bits) + INDEX_OVERFLOW
    cdef uint64_t bits = header.index_bits + 1
    cdef uint64_t packed = end
    cdef uint64_t position = old_end
    cdef uint64_t next_free = 0
    cdef uint64_t target
    begin_change(header)
    while position > 0:
        position -= 1
        if entries[position].tag:
            packed -= 1
            move_entry(entries + packed, entries + position)
    while packed < end:
        target = home(entries[packed].tag, bits)
        if target < next_free:
            target = next_free
        clear_entries(entries + next_free, entries + target)
        move_entry(entries + target, entries + packed)
        next_free = target + 1
        packed += 1
    clear_entries(entries + next_free, entries + end)
    # Pairs with the acquire in index_probe, as a word of an entry does.
    atomic_store_release(&header.index_bits, bits)
    end_change(header)


cdef bint index_insert(
    char *arena, uint64_t kind, uint64_t id, uint64_t model_id, uint32_t slot, uint32_t batch_index, uint32_t generation
) noexcept nogil:
    """Add an entry for a key that has none. Room must have been reserved; False if its run reaches the index's end."""
    cdef ArenaHeader *header = header_of(arena)
    cdef uint32_t tag = key_tag(header, kind, id, model_id)
    cdef IndexEntry *entry = entries_of(arena) + home(tag, header.index_bits)
    cdef IndexEntry *last = entries_of(arena) + (<uint64_t>1 << header.index_bits) + INDEX_OVERFLOW - 1
    cdef IndexEntry *gap
    while entry.tag and entry.tag <= tag:
        entry += 1
    gap = entry
    while gap.tag:
        gap += 1
    if gap >= last:
        # The last entry stays empty: it is where every search ends.
        return False
    begin_change(header)
    while gap > entry:
        move_entry(gap, gap - 1)
        gap -= 1
    store_word(entry, 0, id)
    store_word(entry, 1, model_id)
    store_word(entry, TAG_WORD, tag | <uint64_t>slot << 32)
    store_word(entry, BATCH_WORD, batch_index | <uint64_t>generation << 32)
    header.index_count += 1
    end_change(header)
    return True


cdef void index_erase(char *arena, IndexEntry *entry) noexcept nogil:
    """Remove an entry; those behind it move down unless they stand at home."""
    cdef ArenaHeader *header = header_of(arena)
    cdef IndexEntry *entries = entries_of(arena)
    cdef IndexEntry *behind = entry + 1
    cdef uint64_t bits = header.index_bits
    begin_change(header)
    while behind.tag and home(behind.tag, bits) < <uint64_t>(behind - entries):
        move_entry(behind - 1, behind)
        behind += 1
    clear_entry(behind - 1)
    header.index_count -= 1
    end_change(header)


cdef void index_move(char *arena, IndexEntry *entry, uint32_t batch_index) noexcept nogil:
    """The same key now stands for another batch slot of the same cache."""
    begin_change(header_of(arena))
    store_word(entry, BATCH_WORD, batch_index | <uint64_t>entry.generation << 32)
    end_change(header_of(arena))


cdef inline uint64_t bits_of(char *arena, const ArenaHeader *known) noexcept nogil:
    """How many homes there are, as a power of two; 0 if that cannot be. Whatever the owner writes, nothing outside the
    index is read: `known` is the peer's own copy of the header, checked when it attached."""
    # Pairs with the release in grow.
    cdef uint64_t bits = atomic_load_acquire(&header_of(arena).index_bits)
    return 0 if bits >= TAG_BITS or (<uint64_t>1 << bits) > known.index_capacity else bits


cdef inline bint search(
    const IndexEntry *entries, uint64_t bits, uint32_t tag, uint64_t id, uint64_t model_id, IndexEntry *found
) noexcept nogil:
    """Look through the entries from a key's home on."""
    cdef const IndexEntry *entry = entries + home(tag, bits)
    cdef const IndexEntry *end = entries + (<uint64_t>1 << bits) + INDEX_OVERFLOW
    cdef uint64_t word
    while entry < end:
        word = load_word(entry, TAG_WORD)
        if <uint32_t>word == 0 or <uint32_t>word > tag:
            return False
        if load_word(entry, 0) == id and <uint32_t>word == tag and load_word(entry, 1) == model_id:
            found.id = id
            found.model_id = model_id
            found.tag = tag
            found.slot = <uint32_t>(word >> 32)
            word = load_word(entry, BATCH_WORD)
            found.batch_index = <uint32_t>word
            found.generation = <uint32_t>(word >> 32)
            return True
        entry += 1
    return False


cdef bint index_probe(
    char *arena, const ArenaHeader *known, uint32_t tag, uint64_t id, uint64_t model_id, IndexEntry *found
) noexcept nogil:
    """A peer's search: whether it came across the key. `found` is a copy that may be torn, not to be believed yet."""
    cdef uint64_t bits = bits_of(arena, known)
    return bits != 0 and search(<IndexEntry *>(arena + known.index_offset), bits, tag, id, model_id, found)


cdef void index_prefetch(char *arena, const ArenaHeader *known, uint32_t tag) noexcept nogil:
    """Have the place fetched where a search for the tag will begin; nothing is read yet."""
    cdef uint64_t bits = atomic_load_relaxed(&header_of(arena).index_bits)
    if 0 < bits < TAG_BITS:
        prefetch(<IndexEntry *>(arena + known.index_offset) + home(tag, bits))


cdef void index_tags(
    char *arena, const ArenaHeader *known, const KeyRecord *keys, uint64_t count, uint32_t *tags
) noexcept nogil:
    """The tags of several keys, whose places are being fetched when this returns."""
    cdef const IndexEntry *entries = <IndexEntry *>(arena + known.index_offset)
    cdef uint64_t bits = bits_of(arena, known)
    cdef uint64_t i
    for i in range(count):
        tags[i] = key_tag(known, keys[i].kind, keys[i].id, keys[i].model_id)
        if bits:
            # An entry often stands one behind its home, and then perhaps in the next cache line.
            prefetch(entries + home(tags[i], bits))
            prefetch(entries + home(tags[i], bits) + 1)


cdef void index_probes(
    char *arena, const ArenaHeader *known, const uint32_t *tags, const KeyRecord *keys, uint64_t count, IndexEntry *found
) noexcept nogil:
    """index_probe for each of several keys; an entry that it did not come across has tag 0."""
    cdef const IndexEntry *entries = <IndexEntry *>(arena + known.index_offset)
    cdef uint64_t bits = bits_of(arena, known)
    cdef uint64_t i
    for i in range(count):
        if bits == 0 or not search(entries, bits, tags[i], keys[i].id, keys[i].model_id, found + i):
            found[i].tag = 0


cdef int index_check(char *arena) except -1:
    """Every invariant of the index."""
    cdef ArenaHeader *header = header_of(arena)
    cdef IndexEntry *entries = entries_of(arena)
    cdef uint64_t end = (<uint64_t>1 << header.index_bits) + INDEX_OVERFLOW
    cdef uint64_t position
    cdef uint64_t count = 0
    cdef uint32_t previous = 0
    assert header.index_version % 2 == 0, "the index was left in the middle of a change"
    for position in range(end):
        if entries[position].tag == 0:
            continue
        count += 1
        tag = key_tag(header, entries[position].tag & KIND_MASK, entries[position].id, entries[position].model_id)
        assert entries[position].tag == tag, f"index entry {position}: its tag is not its key's"
        assert entries[position].tag >= previous, f"index entry {position} is out of order"
        assert home(entries[position].tag, header.index_bits) <= position, f"index entry {position} is before its home"
        if home(entries[position].tag, header.index_bits) < position:
            assert entries[position - 1].tag, f"index entry {position} has a gap before it"
        previous = entries[position].tag
    assert count == header.index_count, f"{count} index entries, {header.index_count} counted"
    return 0
