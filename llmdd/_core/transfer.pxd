"""One transfer between a cache of our own and one of a linked peer, through the peer's mapped arena.

No message is sent and the owner does not run: the steps are those of "References only go down" in the design. Look the
key up, pin, look again, copy, drop the key, unpin, and leave the owner a mark to reap by.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.layout cimport ArenaHeader, IndexEntry, Slot

cdef enum TransferResult:
    TRANSFERRED = 0
    REMOTE_MISSING = 1             # no such key or cache, or no such batch slot
    TENSOR_COUNTS_DIFFER = 2
    REMOTE_TENSOR_RANGE = 3
    REMOTE_SLOT_TOO_SMALL = 4
    OUT_OF_TIME = 5
    LINK_LOST = 6
    PEER_UNSOUND = 7               # the peer's arena says what cannot be
    REMOTE_SLOT_RANGE = 8          # a push beyond the peer's batch
    LOCALLY_REFUSED = 9
    INDEX_IN_MOTION = 10           # nothing was begun, and the caller asked not to wait

cdef struct Transfer:
    # the peer
    char *arena
    const ArenaHeader *known       # our copy of its header, checked when we attached
    char *pools[2]
    unsigned int peer_bit
    const uint64_t *broken         # becomes non-zero when the link is lost
    # which batch slot of the peer's
    uint64_t kind                  # KeyKind
    uint64_t id
    uint64_t model_id
    uint64_t batch_index           # of KEY_CACHE_ID; else it comes with the key
    # ours, pinned by the caller
    char *local_arena
    Slot *local_slot
    char *local_pool
    uint64_t local_batch_index
    # what
    bint push
    bint locally_refused           # only look whether the remote side exists: that is answered first (api §3.7)
    bint all_local                 # every tensor of ours; else [local_first, local_end)
    bint all_remote
    uint64_t local_first
    uint64_t local_end
    uint64_t remote_first
    uint64_t remote_end
    uint64_t bytes                 # of each tensor
    int64_t deadline               # on the monotonic clock, nanoseconds
    bint impatient                 # do not wait while the owner changes its index: INDEX_IN_MOTION

cdef TransferResult carry_out(Transfer *transfer) noexcept nogil
cdef bint copy_until(char *target, const char *source, uint64_t size, int64_t deadline, const uint64_t *broken) noexcept nogil
