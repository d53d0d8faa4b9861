"""Many keys and caches of one's own at once: looked up, removed, deallocated.

`find_keys` takes no lock, as a lookup of one key; the others run under the store's. None needs the GIL.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.layout cimport KeyRecord
from llmdd._core.pair_set cimport PairSet

cdef struct Keys:
    # Either records, or request ids of one model.
    const KeyRecord *records
    const uint64_t *request_ids
    uint64_t model_id
    uint64_t count

cdef enum Standing:
    HELD = 0                       # by the id reference, which deallocating drops
    NOT_HELD = 1                   # gone, dropped before, or never there
    OTHERS_DROP_IT = 2             # a blocks cache, or a registered one
    ALREADY_NAMED = 3              # by an item before

cdef struct CacheReference:
    uint64_t slot
    uint32_t generation
    uint32_t standing

cdef uint64_t find_keys(char *arena, const Keys *keys, uint64_t begin, int64_t *cache_ids,
                        uint32_t *batch_indices) noexcept nogil
cdef uint64_t first_unbound(char *arena, const Keys *keys, PairSet *named) noexcept nogil
cdef void remove_keys(char *arena, const Keys *keys, unsigned char *removed) noexcept nogil
cdef void find_caches(char *arena, const uint64_t *cache_ids, CacheReference *references, uint64_t count) noexcept nogil
cdef uint64_t first_not_held(char *arena, CacheReference *references, uint64_t count, PairSet *named) noexcept nogil
cdef void drop_ids(char *arena, CacheReference *references, uint64_t count, unsigned char *dropped) noexcept nogil
