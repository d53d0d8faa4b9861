# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Reference words (see ``references.pxd``)."""

from libc.stdint cimport uint32_t, uint64_t

from llmdd._core.atomic cimport (
    atomic_fetch_clear,
    atomic_fetch_set,
    atomic_load_word,
    lowest_bit,
)
from llmdd._core.layout cimport (
    KEY_NONE,
    RELEASED_LEVELS,
    WORD_BITS,
    ArenaHeader,
    header_of,
    key_words,
    tensor_words,
)
from llmdd._core.release_event cimport announce_release
from llmdd._core.tables cimport (
    BATCH_SLOT_EFFECT_DROP_KEY,
    BATCH_SLOT_EVENT_TRANSFER,
    BATCH_SLOT_GUARD_REGISTERED,
    BATCH_SLOT_GUARD_TENSORS_REMAIN,
    BATCH_SLOT_STATE_REQUEST_KEYED,
    BATCH_SLOT_STATE_UNKEYED,
    batch_slot_outcome,
    spec_outcome,
)

NO_SLOT = <uint64_t>-1


cdef bint drop_tensors(
    uint64_t *words,
    uint32_t generation,
    uint64_t key_count,
    uint64_t num_tensors,
    uint64_t batch_index,
    uint64_t first,
    uint64_t end,
) noexcept nogil:
    """Mark tensors [first, end) as transferred for one key; whether some tensor remains.

    Two who transfer the last tensors at once each clear their own and then look: the later look sees none left.
    """
    cdef uint64_t count = tensor_words(num_tensors)
    cdef uint64_t *remaining = words + key_words(key_count) + batch_index * count
    cdef uint64_t value, tensor, i
    for tensor in range(first, end):
        drop_bit(remaining + tensor // WORD_BITS, generation, <uint32_t>1 << (tensor % WORD_BITS))
    # Pairs with the other's drop_bit: in the single order of all of them somebody's is the last.
    for i in range(count):
        value = atomic_load_word(remaining + i)
        if value >> WORD_BITS == generation and <uint32_t>value:
            return True
    return False


cdef bint transfer_key(
    uint64_t *words,
    uint32_t generation,
    uint64_t key_count,
    uint64_t num_tensors,
    uint64_t kind,
    bint registered,
    uint64_t batch_index,
    uint64_t first,
    uint64_t end,
) noexcept nogil:
    """Tensors [first, end) of a batch slot have been transferred: what the spec says happens to the slot's key.

    True if the key reference was dropped by this call; the caller then marks the slot as released.
    """
    cdef unsigned int state = BATCH_SLOT_STATE_UNKEYED
    cdef unsigned int guards = BATCH_SLOT_GUARD_REGISTERED if registered else 0
    cdef spec_outcome outcome
    if batch_index < key_count and kind != KEY_NONE and key_is_bound(words, generation, batch_index):
        state = keyed_state(kind)
    if state == BATCH_SLOT_STATE_REQUEST_KEYED and not registered and (first > 0 or end < num_tensors):
        if drop_tensors(words, generation, key_count, num_tensors, batch_index, first, end):
            guards |= BATCH_SLOT_GUARD_TENSORS_REMAIN
    outcome = batch_slot_outcome(state, BATCH_SLOT_EVENT_TRANSFER, guards)
    if outcome.effects & BATCH_SLOT_EFFECT_DROP_KEY:
        return drop_key_bit(words, generation, batch_index)
    return False


cdef inline uint64_t *released_word(char *arena, const ArenaHeader *known, int level, uint64_t index) noexcept nogil:
    return <uint64_t *>(arena + known.released_offsets[level]) + index


cdef void mark_released(char *arena, const ArenaHeader *known, uint64_t slot) noexcept nogil:
    """Tell the owner to look at `slot`: set its bit in every level, the lowest first; then wake whoever waits for memory.

    Pairs with take_released, which clears a parent only after it has seen the child empty, and then looks again.
    """
    cdef uint64_t index = slot
    cdef uint64_t bit
    cdef uint64_t *word
    cdef int level
    for level in range(RELEASED_LEVELS):
        bit = <uint64_t>1 << (index % 64)
        index //= 64
        word = released_word(arena, known, level, index)
        # Pair with take_released, which clears first and looks afterwards: a bit that we see set will be looked behind.
        if not atomic_load_word(word) & bit:
            atomic_fetch_set(word, bit)
    # Behind the one word of the highest level: release_event_of, without computing where it is once more.
    announce_release(word + 1)


cdef uint64_t take_released(char *arena) noexcept nogil:
    """Take one slot that somebody marked; NO_SLOT if there is none."""
    cdef ArenaHeader *header = header_of(arena)
    cdef int level = RELEASED_LEVELS - 1
    cdef uint64_t index = 0
    cdef uint64_t bit, word
    # All pair with mark_released, which sets the lowest level first.
    while True:
        word = atomic_load_word(released_word(arena, header, level, index))
        if word:
            bit = lowest_bit(word)
            if level == 0:
                # Before the slot is looked at: who marks it later finds the bit clear, and sets it again.
                atomic_fetch_clear(released_word(arena, header, 0, index), <uint64_t>1 << bit)
                return index * 64 + bit
            index = index * 64 + bit
            level -= 1
        elif level == RELEASED_LEVELS - 1:
            return NO_SLOT
        else:
            bit = <uint64_t>1 << (index % 64)
            level += 1
            # Before the second look below: who marked there without setting this bit, because it was set, is seen.
            atomic_fetch_clear(released_word(arena, header, level, index // 64), bit)
            if atomic_load_word(released_word(arena, header, level - 1, index)):
                atomic_fetch_set(released_word(arena, header, level, index // 64), bit)
            index //= 64
