"""The caches of one node, and the transfers it asks peers' arenas for."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.block_lists cimport BlockLists
from llmdd._core.cache cimport Cache
from llmdd._core.cache_keys cimport CacheKey
from llmdd._core.layout cimport Slot
from llmdd._core.local_copies cimport LocalCopies, PinnedCache
from llmdd._core.transfer cimport Transfer


cdef class SourcePin:
    cdef Cache cache
    cdef PinnedCache pinned        # None once it was released; in a critical section


cdef class CacheStore(LocalCopies):
    cdef object linked(self, uint64_t cluster_id)
    cdef uint64_t name_remote(self, Transfer *transfer, object key) except *
    cdef int transfer_tensors(self, str tag, Transfer *transfer, uint64_t cluster_id, object key, Cache cache,
                              uint64_t batch_index, int64_t size, uint64_t per_layer, BlockLists lists,
                              PinnedCache local=*) except -1
    cdef int send(self, Transfer *transfer, uint64_t cluster_id, object key, object source, uint64_t src_first,
                  uint64_t batch_index, BlockLists lists, uint64_t block_memory_size) except -1


# What keeps a transfer from beginning, as far as our own side tells.
cdef int check_one_id(CacheKey key) except -1
cdef object local_refusal(Transfer *transfer, const Slot *slot, uint64_t batch_index, uint64_t per_layer)
cdef object blocks_refusal(Transfer *transfer, const Slot *slot)
