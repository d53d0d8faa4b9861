"""Moving bytes: a plan of pieces, carried out between two tensors wherever each of them is.

Three kinds of memory are told apart. What is *mapped* here (a pool, ours or a peer's) is copied as it is. What a program
has registered may have gone since, so the kernel touches it for us (process_memory.h): *own* if the program is this one,
*foreign* if it is a peer.
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum Reach:
    MAPPED = 0
    OWN = 1
    FOREIGN = 2

cdef enum CopyResult:
    COPIED = 0
    COPY_OUT_OF_TIME = 1
    COPY_BROKEN_OFF = 2            # the link is lost, or the other process has gone
    COPY_BAD_ADDRESS = 3           # registered memory that is not mapped any more
    COPY_FORBIDDEN = 4             # the kernel does not let us into the other process
    COPY_OUTSIDE = 5               # a tensor that is nowhere in its pool

cdef enum:
    TEAM_SIZES = 5                 # 1, 2, 4, 8 or 16 threads

cdef struct Piece:
    # Bytes of each tensor that are moved in one go: offsets in the two tensors.
    uint64_t source
    uint64_t target
    uint64_t size

cdef struct Place:
    # Where a tensor begins.
    char *base
    Reach reach
    int pid                        # FOREIGN: whose
    int pidfd

cdef struct Bounds:
    # When to stop.
    int64_t deadline               # on the monotonic clock, nanoseconds
    const uint64_t *broken         # becomes non-zero when the link is lost

cdef struct Tensors:
    # Where the tensors of a mapped cache begin.
    char *pool
    uint64_t pool_bytes
    uint64_t tensor_bytes
    uint64_t first                 # offset in the pool of tensor 0, behind which the others follow; unless
    const uint64_t *places         # the offset of each stands here. A peer's may change at any time

cdef struct CopyTeam:
    # How fast large copies have been, by the number of threads that shared them.
    uint64_t[TEAM_SIZES] rates     # bytes in a microsecond
    uint64_t[TEAM_SIZES] trials    # how often that was measured
    uint64_t copies

cdef uint64_t plan_slot(Piece *pieces, uint64_t source, uint64_t target, uint64_t size) noexcept nogil
cdef uint64_t plan_slot_to_blocks(Piece *pieces, uint64_t source, uint64_t slot_bytes, const uint64_t *blocks,
                                  uint64_t count, uint64_t block_bytes) noexcept nogil
cdef uint64_t plan_blocks(Piece *pieces, const uint64_t *sources, const uint64_t *targets, uint64_t count,
                          uint64_t block_bytes) noexcept nogil
cdef CopyResult copy_pieces(const Place *target, const Place *source, const Piece *pieces, uint64_t count,
                            const Bounds *bounds) noexcept nogil
cdef CopyResult copy_tensors(const Tensors *target, uint64_t target_first, const Tensors *source, uint64_t source_first,
                             uint64_t tensors, const Piece *pieces, uint64_t count, const Bounds *bounds,
                             CopyTeam *team) noexcept nogil
cdef bint is_mapped(uint64_t address, uint64_t size) noexcept nogil
cdef bint pieces_are_mapped(const Place *place, const Piece *pieces, uint64_t count, bint of_target) noexcept nogil
