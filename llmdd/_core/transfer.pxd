"""One transfer between a cache of our own and one of a linked peer, through the peer's mapped arena.

No message is sent and the owner does not run: the steps are those of "References only go down" in the design. Look the
key up, pin, look again, copy, drop the key, unpin, and leave the owner a mark to reap by.

Only where the peer's memory is its program's own and the kernel lets nobody else touch it, the peer is asked to copy.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from llmdd._core.copying cimport CopyResult, CopyTeam, Piece, Place
from llmdd._core.layout cimport ArenaHeader, IndexEntry, Slot
from llmdd._core.pair_set cimport PairSet

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
    KINDS_DIFFER = 11              # a blocks cache where a continuous one is meant, or the reverse
    REMOTE_BLOCK_RANGE = 12
    BLOCK_BYTES_DIFFER = 13
    BLOCK_COUNTS_DIFFER = 14       # of two whole blocks caches
    TOO_MANY_BLOCKS = 15           # more than the batch slot fills
    NOT_ACCESSIBLE = 16
    ADDRESS_UNKNOWN = 17           # no accessible tensor of the peer's reaches over these addresses
    NOT_MAPPED = 18                # registered memory that is gone
    PEER_CLOSED_ITS_MEMORY = 19    # the kernel forbids the way, and there is nobody to ask
    NOT_BEGUN = 20                 # of several: this one's turn is still to come
    LINK_WAS_BUSY = 21             # others used the link until the time had run out
    LINK_TAKEN_DOWN = 22
    ENGINE_FAILED = 23             # the transfer engine between two hosts gave up
    TOO_MANY_AT_ONCE = 24          # more blocks than a request to another host may list

cdef enum Form:
    SLOT_TO_SLOT = 0
    SLOT_TO_BLOCKS = 1
    BLOCKS_TO_BLOCKS = 2
    ALL_BLOCKS = 3                 # of one blocks cache to all of the other

cdef enum Addressing:
    BY_KEY = 0
    BY_ADDRESS = 1                 # where each tensor of ours goes in the peer's process

cdef enum:
    TENSORS_AT_ONCE = 2            # by address: those of a layer

# How a peer that closed its memory is asked to copy: pieces, from `begin` of its tensor on, from or to memory of ours.
ctypedef CopyResult (*AskPeer)(void *peer, uint32_t slot, uint32_t generation, uint64_t tensor, uint64_t begin, bint push,
                               const Place *ours, const Piece *pieces, uint64_t count, int64_t deadline) noexcept nogil

cdef struct Transfer:
    # the peer
    char *arena
    const ArenaHeader *known       # our copy of its header, checked when we attached
    char *pools[2]
    unsigned int peer_bit
    int pid
    int pidfd
    const uint64_t *broken         # becomes non-zero when the link is lost
    void *peer
    AskPeer ask
    # which cache of the peer's
    Addressing addressing
    uint64_t kind                  # KeyKind
    uint64_t id
    uint64_t model_id
    uint64_t batch_index           # of KEY_CACHE_ID; else it comes with the key
    uint64_t[TENSORS_AT_ONCE] addresses
    # ours, pinned by the caller
    char *local_arena
    Slot *local_slot
    char *local_pool
    uint64_t local_batch_index
    # what
    bint push
    bint keeps_keys                # an asynchronous transfer drops none (api §3.4)
    bint remote_mode               # both sides must be accessible (api §3.9)
    bint locally_refused           # only look whether the remote side exists: that is answered first (api §3.7)
    bint all_local                 # every tensor of ours; else [local_first, local_end)
    bint all_remote
    uint64_t local_first
    uint64_t local_end
    uint64_t remote_first
    uint64_t remote_end
    Form form
    uint64_t bytes                 # SLOT_TO_SLOT: of each tensor
    const uint64_t *local_blocks
    const uint64_t *remote_blocks
    uint64_t block_count
    uint64_t block_bytes           # of the target, as the caller knows them; 0: as the target cache has them
    Piece *pieces                  # room for one a block, one at least
    int64_t deadline               # on the monotonic clock, nanoseconds
    CopyTeam *team                 # threads for large copies
    bint impatient                 # do not wait while the owner changes its index: INDEX_IN_MOTION
    const PairSet *pinned          # of several at once: (arena, slot) of what they have pinned already; NULL: of one
    bint served                    # the owner itself carries it out, for a peer on another host: its pins are counted

cdef struct Landing:
    # Where one tensor goes that goes to an address: the pinned slot, its record, which tensor of it, and the address in that.
    IndexEntry entry
    Slot remote
    uint64_t tensor
    uint64_t address

cdef Place place_here(char *arena, const Slot *slot, char *pool, uint64_t tensor) noexcept nogil
cdef TransferResult carry_out(Transfer *transfer) noexcept nogil

# The steps of carry_out, for several transfers that go together (bulk_transfers.pxd), and for those between two hosts.
cdef TransferResult find_and_pin(Transfer *transfer, IndexEntry *entry, Slot *copy) noexcept nogil
cdef TransferResult fits_slot(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil
cdef TransferResult copy_tensors(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil
cdef TransferResult outcome(Transfer *transfer, const IndexEntry *entry, TransferResult result) noexcept nogil
cdef bint drop_key(Transfer *transfer, const IndexEntry *entry, const Slot *remote) noexcept nogil
cdef void unpin(Transfer *transfer, uint64_t slot, bint dropped_key) noexcept nogil
cdef TransferResult fits(Transfer *transfer, const Slot *remote) noexcept nogil
cdef uint64_t plan(Transfer *transfer, const Slot *remote) noexcept nogil
cdef bint remote_place(Transfer *transfer, const Slot *remote, uint64_t tensor, Place *place) noexcept nogil
cdef uint64_t bytes_at_address(Transfer *transfer) noexcept nogil
cdef TransferResult find_landing(Transfer *transfer, uint64_t size, Landing *landings, uint64_t number) noexcept nogil
cdef bint landing_place(Transfer *transfer, const Landing *landing, Place *place) noexcept nogil
cdef TransferResult result_of_copy(CopyResult result) noexcept nogil
