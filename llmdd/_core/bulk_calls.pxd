"""The calls for many keys or caches at once."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.bulk_keys cimport CacheReference, Keys
from llmdd._core.cache cimport Cache
from llmdd._core.copying cimport Piece
from llmdd._core.integer_arrays cimport Integers
from llmdd._core.layout cimport KeyRecord
from llmdd._core.local_copies cimport PinnedCache
from llmdd._core.store cimport CacheStore
from llmdd._core.transfer cimport Transfer, TransferResult


cdef class GivenKeys:
    # Keys, or request ids of one model, as they were when the call began.
    cdef Keys keys
    cdef KeyRecord *records
    cdef Integers request_ids
    cdef tuple objects             # None: request ids


cdef class GivenCaches:
    cdef CacheReference *references
    cdef uint64_t count
    cdef Integers cache_ids
    cdef tuple handles             # None: cache ids


cdef class Pulls:
    # What pull_many was asked for, and what became of it, item by item.
    cdef uint64_t count
    cdef tuple keys                # None: request ids, of one cluster and model
    cdef Integers request_ids
    cdef uint64_t cluster_id
    cdef uint64_t model_id
    cdef Cache cache               # of all; or one for each:
    cdef tuple caches
    cdef bint into_blocks
    cdef Integers batch_indices    # None: as they come
    cdef Transfer *transfers
    cdef TransferResult *results
    cdef uint64_t *cluster_ids
    cdef Piece *pieces             # room for those of any one item
    cdef dict refusals             # position -> the exception that the single call would raise, of LOCALLY_REFUSED
    cdef list kept                 # what the transfers point to
    cdef Cache cache_of(self, uint64_t position)
    cdef uint64_t batch_index_of(self, uint64_t position) noexcept
    cdef object named(self, uint64_t position)


cdef Pulls given_pulls(object cache_keys, object cluster_id, object model_id, bint into_blocks, bint remote_mode)


cdef class BulkCalls(CacheStore):
    cdef int tell_lease_keeper(self, Pulls pulls) except -1
    cdef int plan(self, Pulls pulls, int64_t size) except -1
    cdef object name_source(self, Pulls pulls, uint64_t position)
    cdef object plan_pull(self, Pulls pulls, uint64_t position, PinnedCache local, int64_t size)
    cdef int carry_out_in_order(self, Pulls pulls, int64_t deadline) except -1
    cdef int carry_out_run(self, Pulls pulls, uint64_t begin, uint64_t end, int64_t deadline) except -1
    cdef int carry_out_together(self, Pulls pulls, int64_t deadline) except -1
    cdef int with_links(self, Pulls pulls, uint64_t accepted, list cluster_ids, dict first_of, int64_t deadline) except -1
    cdef int carry_out_held(self, Pulls pulls, uint64_t accepted, dict peers, int64_t deadline) except -1
    cdef int carry_out_across(self, Pulls pulls, uint64_t accepted, dict peers, int64_t deadline) except -1
