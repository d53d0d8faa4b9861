"""Reference words: bits that only go down, each word guarded by its tenant's generation.

Whoever clears a bit has taken that reference; everyone else did nothing. So a reference is never dropped twice, there is
no counter to get out of step, and no moment at which a crash leaves one half dropped. Used by the owner and, through
their mappings, by its peers.
"""

from libc.stdint cimport uint32_t, uint64_t

from llmdd._core.atomic cimport atomic_load_word, atomic_replace
from llmdd._core.layout cimport KEY_BLOCKS, KEY_PREFIX, RELEASED_LEVELS, WORD_BITS, ArenaHeader, header_of, key_words
from llmdd._core.tables cimport (
    BATCH_SLOT_STATE_BLOCKS_KEYED,
    BATCH_SLOT_STATE_PREFIX_KEYED,
    BATCH_SLOT_STATE_REQUEST_KEYED,
)

cdef uint64_t NO_SLOT

cdef bint drop_tensors(uint64_t *words, uint32_t generation, uint64_t key_count, uint64_t num_tensors,
                       uint64_t batch_index, uint64_t first, uint64_t end) noexcept nogil
cdef bint transfer_key(uint64_t *words, uint32_t generation, uint64_t key_count, uint64_t num_tensors, uint64_t kind,
                       bint registered, uint64_t batch_index, uint64_t first, uint64_t end) noexcept nogil
cdef void mark_released(char *arena, const ArenaHeader *known, uint64_t slot) noexcept nogil
cdef uint64_t take_released(char *arena) noexcept nogil

cdef inline bint drop_bit(uint64_t *word, uint32_t generation, uint32_t bit) noexcept nogil:
    """Clear one bit of this generation's word. True for the one caller who cleared it."""
    # Pair with each other, with is_set and with the owner's notice_dropped_keys: all that was done for the reference comes
    # before the bit goes. The words of one tenant have a single order, since "the last tensor" is decided over several.
    cdef uint64_t value = atomic_load_word(word)
    while value >> WORD_BITS == generation and value & bit:
        if atomic_replace(word, value, value & ~<uint64_t>bit):
            return True
        value = atomic_load_word(word)
    return False

cdef inline bint is_set(uint64_t *word, uint32_t generation, uint32_t bit) noexcept nogil:
    # Pairs with drop_bit.
    cdef uint64_t value = atomic_load_word(word)
    return value >> WORD_BITS == generation and (value & bit) != 0

cdef inline bint key_is_bound(uint64_t *words, uint32_t generation, uint64_t batch_index) noexcept nogil:
    return is_set(words + batch_index // WORD_BITS, generation, <uint32_t>1 << (batch_index % WORD_BITS))

cdef inline unsigned int keyed_state(uint64_t kind) noexcept nogil:
    """The state of a batch slot whose key, of that kind, is bound."""
    if kind == KEY_PREFIX:
        return BATCH_SLOT_STATE_PREFIX_KEYED
    return BATCH_SLOT_STATE_BLOCKS_KEYED if kind == KEY_BLOCKS else BATCH_SLOT_STATE_REQUEST_KEYED

cdef inline bint drop_key_bit(uint64_t *words, uint32_t generation, uint64_t batch_index) noexcept nogil:
    return drop_bit(words + batch_index // WORD_BITS, generation, <uint32_t>1 << (batch_index % WORD_BITS))

cdef inline bint any_key_bound(uint64_t *words, uint32_t generation, uint64_t key_count) noexcept nogil:
    cdef uint64_t value, i
    for i in range(key_words(key_count)):
        # Pairs with drop_bit.
        value = atomic_load_word(words + i)
        if value >> WORD_BITS == generation and <uint32_t>value:
            return True
    return False

cdef inline bint anything_released(char *arena) noexcept nogil:
    """Whether some slot is marked. Pairs with mark_released, which sets the highest level last."""
    return atomic_load_word(<uint64_t *>(arena + header_of(arena).released_offsets[RELEASED_LEVELS - 1])) != 0
