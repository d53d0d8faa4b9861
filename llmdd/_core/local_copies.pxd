"""Copies between caches of one node, and to and from the program's own memory."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.cache cimport Cache
from llmdd._core.copying cimport Piece, Place
from llmdd._core.exported_caches cimport ExportedCaches
from llmdd._core.layout cimport Slot
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.segments cimport Mapping


cdef class PinnedCache:
    """A cache that stays while this object lives, and where its tensors are."""

    cdef Mapping arena             # None: memory that only create_cpu_cache knows
    cdef Mapping pool
    cdef uint64_t slot_number
    cdef Slot *slot
    cdef tuple addresses           # of a create_cpu_cache
    cdef uint64_t num_tensors
    cdef uint64_t row_count
    cdef uint64_t row_bytes
    cdef Place tensor(self, uint64_t number)


cdef class LocalCopies(ExportedCaches):
    cdef PinnedCache existing(self, str tag, Cache cache)
    cdef int copy_slot(self, PinnedCache target, PinnedCache source, uint64_t dst_index, uint64_t src_index,
                       uint64_t offset, int64_t size) except -1
    cdef int copy_all_tensors(self, str tag, PinnedCache target, PinnedCache source, const Piece *pieces,
                              uint64_t count) except -1


cdef PinnedCache pinned(NodeMemory memory, Cache cache)
