# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Moving bytes (see ``copying.pxd``)."""

from libc.errno cimport EFAULT, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport getpid

from llmdd._core.atomic cimport atomic_load_word, monotonic_nanoseconds

cdef extern from "process_memory.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    int64_t process_memory_read(int pid, const iovec *here, const iovec *there, unsigned long count)
    int64_t process_memory_write(int pid, const iovec *here, const iovec *there, unsigned long count)
    int64_t process_memory_pipe(const int *ends, char *target, const char *source, uint64_t size)
    int process_memory_open_pipe(int *ends)
    void process_memory_close_pipe(const int *ends)
    bint process_is_alive(int pidfd)
    bint memory_is_mapped(uint64_t address, uint64_t size)

cdef enum:
    CHUNK = 4 << 20                # bytes copied between two looks at the clock
    PIECES_AT_ONCE = 64            # handed to the kernel in one call


# ---------------------------------------------------------------- plans


cdef uint64_t append(Piece *pieces, uint64_t count, uint64_t source, uint64_t target, uint64_t size) noexcept nogil:
    """Add a piece, or lengthen the last one if this one goes on where it ends on both sides; how many there are now."""
    cdef Piece *last
    if count:
        last = pieces + count - 1
        if last.source + last.size == source and last.target + last.size == target:
            last.size += size
            return count
    pieces[count].source = source
    pieces[count].target = target
    pieces[count].size = size
    return count + 1


cdef uint64_t plan_slot(Piece *pieces, uint64_t source, uint64_t target, uint64_t size) noexcept nogil:
    """One run of bytes."""
    return append(pieces, 0, source, target, size)


cdef uint64_t plan_slot_to_blocks(
    Piece *pieces, uint64_t source, uint64_t slot_bytes, const uint64_t *blocks, uint64_t count, uint64_t block_bytes
) noexcept nogil:
    """Bytes [i * block_bytes, min((i + 1) * block_bytes, slot_bytes)) of a slot to the start of listed block i (api §3.5).

    `pieces` has room for one a block, and every listed block has a part of the slot.
    """
    cdef uint64_t i, begin
    cdef uint64_t made = 0
    for i in range(count):
        begin = i * block_bytes
        made = append(pieces, made, source + begin, blocks[i] * block_bytes, min(block_bytes, slot_bytes - begin))
    return made


cdef uint64_t plan_blocks(
    Piece *pieces, const uint64_t *sources, const uint64_t *targets, uint64_t count, uint64_t block_bytes
) noexcept nogil:
    """Listed block i to listed block i."""
    cdef uint64_t i
    cdef uint64_t made = 0
    for i in range(count):
        made = append(pieces, made, sources[i] * block_bytes, targets[i] * block_bytes, block_bytes)
    return made


# ---------------------------------------------------------------- carrying one out


cdef CopyResult interrupted(const Bounds *bounds) noexcept nogil:
    if atomic_load_word(bounds.broken):
        return COPY_BROKEN_OFF
    return COPY_OUT_OF_TIME if monotonic_nanoseconds() > bounds.deadline else COPIED


cdef CopyResult copy_mapped(
    char *target, const char *source, const Piece *pieces, uint64_t count, const Bounds *bounds
) noexcept nogil:
    """Between mapped memory, looking at the clock between chunks; once it has run out not a byte is moved."""
    cdef uint64_t left = CHUNK
    cdef uint64_t i, done, part
    cdef CopyResult result
    for i in range(count):
        done = 0
        while done < pieces[i].size:
            part = min(pieces[i].size - done, left)
            memcpy(target + pieces[i].target + done, source + pieces[i].source + done, part)
            done += part
            left -= part
            if left == 0:
                left = CHUNK
                result = interrupted(bounds)
                if result != COPIED:
                    return result
    return COPIED


cdef int64_t ask_kernel(
    const Place *target, const Place *source, const iovec *targets, const iovec *sources, unsigned long count
) noexcept nogil:
    """Let the kernel copy; bytes moved, or -errno."""
    if source.reach == FOREIGN:
        return process_memory_read(source.pid, targets, sources, count) if process_is_alive(source.pidfd) else -ESRCH
    if target.reach == FOREIGN:
        return process_memory_write(target.pid, sources, targets, count) if process_is_alive(target.pidfd) else -ESRCH
    if source.reach == OWN:
        return process_memory_read(getpid(), targets, sources, count)
    return process_memory_write(getpid(), sources, targets, count)


cdef CopyResult copy_by_kernel(
    const Place *target, const Place *source, const Piece *pieces, uint64_t count, const Bounds *bounds
) noexcept nogil:
    """Where one side is registered memory: as many pieces in a call as the kernel takes, and at most CHUNK bytes."""
    cdef iovec[PIECES_AT_ONCE] targets
    cdef iovec[PIECES_AT_ONCE] sources
    cdef uint64_t i = 0
    cdef uint64_t done = 0         # of piece i
    cdef uint64_t at_once, skipped, next_piece, part, left
    cdef int64_t moved
    cdef CopyResult result
    while i < count:
        at_once = 0
        left = CHUNK
        next_piece = i
        skipped = done
        while next_piece < count and at_once < PIECES_AT_ONCE and left:
            part = min(pieces[next_piece].size - skipped, left)
            targets[at_once].iov_base = target.base + pieces[next_piece].target + skipped
            sources[at_once].iov_base = <char *>source.base + pieces[next_piece].source + skipped
            targets[at_once].iov_len = sources[at_once].iov_len = part
            at_once += 1
            left -= part
            next_piece += 1
            skipped = 0
        moved = ask_kernel(target, source, targets, sources, at_once)
        if moved == -EFAULT:
            return COPY_BAD_ADDRESS
        if moved == -ESRCH:
            return COPY_BROKEN_OFF
        if moved < 0:
            return COPY_FORBIDDEN
        # The kernel may stop early at a bad address: the next call then begins with it and says so.
        done += <uint64_t>moved
        while i < count and done >= pieces[i].size:
            done -= pieces[i].size
            i += 1
        result = interrupted(bounds)
        if result != COPIED:
            return result
    return COPIED


cdef CopyResult copy_through_pipe(
    char *target, const char *source, const Piece *pieces, uint64_t count, const Bounds *bounds
) noexcept nogil:
    cdef int[2] ends
    cdef uint64_t i, done
    cdef int64_t moved
    cdef CopyResult result = COPIED
    if process_memory_open_pipe(ends) != 0:
        return COPY_FORBIDDEN
    for i in range(count):
        done = 0
        while done < pieces[i].size and result == COPIED:
            moved = process_memory_pipe(
                ends, target + pieces[i].target + done, source + pieces[i].source + done, pieces[i].size - done
            )
            if moved < 0:
                result = COPY_BAD_ADDRESS if moved == -EFAULT else COPY_FORBIDDEN
            else:
                done += <uint64_t>moved
                result = interrupted(bounds)
    process_memory_close_pipe(ends)
    return result


cdef CopyResult copy_pieces(
    const Place *target, const Place *source, const Piece *pieces, uint64_t count, const Bounds *bounds
) noexcept nogil:
    """Move every piece of one tensor, in their order."""
    cdef CopyResult result
    if target.reach == MAPPED and source.reach == MAPPED:
        return copy_mapped(target.base, source.base, pieces, count, bounds)
    result = copy_by_kernel(target, source, pieces, count, bounds)
    if result == COPY_FORBIDDEN and target.reach != FOREIGN and source.reach != FOREIGN:
        return copy_through_pipe(target.base, source.base, pieces, count, bounds)
    return result


cdef bint is_mapped(uint64_t address, uint64_t size) noexcept nogil:
    """Whether something is mapped at every address of a range of this process."""
    return memory_is_mapped(address, size)


cdef bint pieces_are_mapped(const Place *place, const Piece *pieces, uint64_t count, bint of_target) noexcept nogil:
    """Whether every piece of one tensor of ours is mapped; asked about all of them at once where they are."""
    cdef uint64_t begin = <uint64_t>-1
    cdef uint64_t end = 0
    cdef uint64_t i, offset
    if place.reach != OWN:
        return True
    for i in range(count):
        offset = pieces[i].target if of_target else pieces[i].source
        begin = min(begin, offset)
        end = max(end, offset + pieces[i].size)
    if is_mapped(<uint64_t>place.base + begin, end - begin):
        return True
    for i in range(count):
        offset = pieces[i].target if of_target else pieces[i].source
        if not is_mapped(<uint64_t>place.base + offset, pieces[i].size):
            return False
    return True
