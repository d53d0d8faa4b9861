"""Reference words: bits that only go down, each word guarded by its tenant's generation.

Whoever clears a bit has taken that reference; everyone else did nothing. So a reference is never dropped twice, there is
no counter to get out of step, and no moment at which a crash leaves one half dropped. Used by the owner and, through
their mappings, by its peers.
"""

from libc.stdint cimport uint32_t, uint64_t

from llmdd._core.layout cimport ArenaHeader, ReferenceSlot, Slot

cdef uint64_t NO_SLOT

cdef bint drop_bit(uint64_t *word, uint32_t generation, uint32_t bit) noexcept nogil
cdef bint is_set(uint64_t *word, uint32_t generation, uint32_t bit) noexcept nogil
cdef bint key_is_bound(uint64_t *words, uint32_t generation, uint64_t batch_index) noexcept nogil
cdef unsigned int keyed_state(uint64_t kind) noexcept nogil
cdef bint drop_key_bit(uint64_t *words, uint32_t generation, uint64_t batch_index) noexcept nogil
cdef bint any_key_bound(uint64_t *words, uint32_t generation, uint64_t key_count) noexcept nogil
cdef bint drop_tensors(uint64_t *words, uint32_t generation, uint64_t key_count, uint64_t num_tensors,
                       uint64_t batch_index, uint64_t first, uint64_t end) noexcept nogil
cdef bint transfer_key(uint64_t *words, uint32_t generation, uint64_t key_count, uint64_t num_tensors, uint64_t kind,
                       bint registered, uint64_t batch_index, uint64_t first, uint64_t end) noexcept nogil
cdef void mark_released(char *arena, const ArenaHeader *known, uint64_t slot) noexcept nogil
cdef uint64_t take_released(char *arena) noexcept nogil
cdef bint anything_released(char *arena) noexcept nogil
