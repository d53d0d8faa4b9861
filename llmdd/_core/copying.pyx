# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Moving bytes (see ``copying.pxd``)."""

from libc.errno cimport EFAULT, ESRCH
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport getpid

from llmdd._core.atomic cimport (
    atomic_fetch_add_word,
    atomic_load_relaxed,
    atomic_load_word,
    atomic_replace,
    atomic_store_relaxed,
    monotonic_nanoseconds,
)

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

cdef extern from "streaming.h" nogil:
    void stream_bytes(char *target, const char *source, uint64_t size) noexcept
    void end_streaming() noexcept
    unsigned int usable_processors() noexcept

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attributes, void *(*run)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef enum:
    CHUNK = 4 << 20                # bytes copied between two looks at the clock
    LEAST_PIECE = 256              # a smaller piece takes as long as one of this size
    STREAMED = 512 << 10           # a copy this large would only push others out of a core's caches
    SHARED = 16 << 20              # a copy this large takes far longer than to start threads
    MOST_THREADS = 16
    PARTS_A_THREAD = 4             # so that who is held up is not waited for long
    COPIES_BETWEEN_TRIALS = 16     # of a team that is one size larger, or smaller, than the best
    ENOUGH_TRIALS = 3
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


cdef struct Copier:
    # One thread's copying between mapped memory.
    const Bounds *bounds
    bint streams
    int64_t left                   # bytes until it looks at the clock again


cdef inline Copier copier(const Bounds *bounds, uint64_t bytes) noexcept nogil:
    """One for a copy of so many bytes in all."""
    cdef Copier made
    made.bounds = bounds
    made.streams = bytes >= STREAMED
    made.left = CHUNK
    return made


cdef CopyResult copy_run(Copier *copier, char *target, const char *source, uint64_t size) noexcept nogil:
    """Copy bytes, looking at the clock between chunks; once it has run out not a byte is moved."""
    cdef uint64_t part
    cdef CopyResult result
    while size:
        part = min(size, <uint64_t>copier.left)
        if copier.streams:
            stream_bytes(target, source, part)
        else:
            memcpy(target, source, part)
        target += part
        source += part
        size -= part
        copier.left -= <int64_t>max(part, LEAST_PIECE)
        if copier.left <= 0:
            copier.left = CHUNK
            result = interrupted(copier.bounds)
            if result != COPIED:
                return result
    return COPIED


cdef uint64_t bytes_of(const Piece *pieces, uint64_t count) noexcept nogil:
    cdef uint64_t i
    cdef uint64_t size = 0
    for i in range(count):
        size += pieces[i].size
    return size


cdef CopyResult copy_mapped(
    char *target, const char *source, const Piece *pieces, uint64_t count, const Bounds *bounds
) noexcept nogil:
    """Pieces between mapped memory, each by itself: they may overlap, and a later one reads what an earlier one wrote."""
    cdef Copier copies = copier(bounds, bytes_of(pieces, count))
    cdef uint64_t i
    cdef CopyResult result = COPIED
    for i in range(count):
        result = copy_run(&copies, target + pieces[i].target, source + pieces[i].source, pieces[i].size)
        if result != COPIED:
            break
    end_streaming()
    return result


# ---------------------------------------------------------------- many tensors at once, by as many threads as pay off


cdef struct Work:
    # The same pieces of tensor after tensor, cut into parts that whoever has a hand free takes.
    const Tensors *target
    uint64_t target_first
    const Tensors *source
    uint64_t source_first
    uint64_t tensors
    const Piece *pieces
    uint64_t count
    const Bounds *bounds
    uint64_t bytes
    uint64_t tensors_a_part        # 0: a part is a part of a tensor's only piece
    uint64_t parts_a_tensor
    uint64_t parts
    uint64_t next_part             # taken by fetch-and-add: each part by one thread
    uint64_t result                # CopyResult; the first that is not COPIED stays


cdef inline char *tensor_at(const Tensors *tensors, uint64_t number) noexcept nogil:
    """Where a tensor begins; NULL if it is nowhere in the pool."""
    cdef uint64_t begin = tensors.first + number * tensors.tensor_bytes
    if tensors.places != NULL:
        # Read once, then judged: the peer that wrote it may write again.
        begin = atomic_load_relaxed(tensors.places + number)
    if begin > tensors.pool_bytes or tensors.tensor_bytes > tensors.pool_bytes - begin:
        return NULL
    return tensors.pool + begin


cdef CopyResult copy_whole_tensors(Work *work, Copier *copies, uint64_t first, uint64_t end) noexcept nogil:
    """Tensors [first, end). What follows its predecessor on both sides is copied with it, across tensors too."""
    cdef char *to
    cdef char *run_target = NULL
    cdef const char *origin
    cdef const char *run_source = NULL
    cdef const Piece *piece
    cdef uint64_t size = 0
    cdef uint64_t tensor, i
    cdef CopyResult result
    for tensor in range(first, end):
        to = tensor_at(work.target, work.target_first + tensor)
        origin = tensor_at(work.source, work.source_first + tensor)
        if to == NULL or origin == NULL:
            return COPY_OUTSIDE
        for i in range(work.count):
            piece = work.pieces + i
            if to + piece.target == run_target + size and origin + piece.source == run_source + size and size:
                size += piece.size
                continue
            result = copy_run(copies, run_target, run_source, size)
            if result != COPIED:
                return result
            run_target = to + piece.target
            run_source = origin + piece.source
            size = piece.size
    return copy_run(copies, run_target, run_source, size)


cdef CopyResult copy_part(Work *work, Copier *copies, uint64_t part) noexcept nogil:
    cdef uint64_t tensor, step, begin
    cdef char *to
    cdef const char *origin
    if work.tensors_a_part:
        begin = part * work.tensors_a_part
        return copy_whole_tensors(work, copies, begin, min(begin + work.tensors_a_part, work.tensors))
    tensor = part // work.parts_a_tensor
    step = (work.pieces.size + work.parts_a_tensor - 1) // work.parts_a_tensor
    begin = min(part % work.parts_a_tensor * step, work.pieces.size)
    to = tensor_at(work.target, work.target_first + tensor)
    origin = tensor_at(work.source, work.source_first + tensor)
    if to == NULL or origin == NULL:
        return COPY_OUTSIDE
    return copy_run(
        copies,
        to + work.pieces.target + begin,
        origin + work.pieces.source + begin,
        min(step, work.pieces.size - begin),
    )


cdef void *take_parts(void *shared) noexcept nogil:
    """What each thread does: part after part, until none is left or one has failed."""
    cdef Work *work = <Work *>shared
    cdef Copier copies = copier(work.bounds, work.bytes)
    cdef uint64_t part
    cdef CopyResult result
    while atomic_load_word(&work.result) == COPIED:
        part = atomic_fetch_add_word(&work.next_part, 1)
        if part >= work.parts:
            break
        result = copy_part(work, &copies, part)
        if result != COPIED:
            atomic_replace(&work.result, COPIED, result)
    # The one who joins us sees what we wrote: joining a thread orders that, and this what went past the caches.
    end_streaming()
    return NULL


cdef void divide(Work *work, uint64_t threads) noexcept nogil:
    """Cut the work for so many threads: between tensors, as the order of a tensor's pieces matters (api §3.5); a single
    piece also within."""
    cdef uint64_t wanted = threads * PARTS_A_THREAD
    if work.count == 1 and work.tensors < wanted and threads > 1:
        work.tensors_a_part = 0
        work.parts_a_tensor = (wanted + work.tensors - 1) // work.tensors
        work.parts = work.tensors * work.parts_a_tensor
        return
    work.tensors_a_part = work.tensors if threads == 1 else (work.tensors + wanted - 1) // wanted
    work.parts = (work.tensors + work.tensors_a_part - 1) // work.tensors_a_part


cdef int size_of_team(CopyTeam *team) noexcept nogil:
    """The power of two of threads to copy with: one, until twice as many have been a fifth faster, and so on; now and then
    one size more or less, to see whether that holds."""
    cdef unsigned int processors = min(usable_processors(), MOST_THREADS)
    cdef uint64_t copies = atomic_fetch_add_word(&team.copies, 1)
    cdef int best = 0
    cdef int size
    for size in range(1, TEAM_SIZES):
        if 1 << size > <int>processors or atomic_load_relaxed(&team.trials[size]) < ENOUGH_TRIALS:
            break
        if atomic_load_relaxed(&team.rates[size]) * 5 > atomic_load_relaxed(&team.rates[best]) * 6:
            best = size
    if copies % COPIES_BETWEEN_TRIALS == COPIES_BETWEEN_TRIALS - 1:
        size = best - 1 if best and copies // COPIES_BETWEEN_TRIALS % 2 else best + 1
        if size < TEAM_SIZES and 1 << size <= <int>processors:
            return size
    return best


cdef void note_rate(CopyTeam *team, int size, uint64_t bytes, int64_t nanoseconds) noexcept nogil:
    cdef uint64_t rate = bytes * 1000 // <uint64_t>max(nanoseconds, 1) + 1
    cdef uint64_t before = atomic_load_relaxed(&team.rates[size])
    # Two who note at once lose one of the two: it is an average.
    atomic_store_relaxed(&team.rates[size], (3 * before + rate) // 4 if before else rate)
    atomic_fetch_add_word(&team.trials[size], 1)


cdef CopyResult copy_tensors(
    const Tensors *target,
    uint64_t target_first,
    const Tensors *source,
    uint64_t source_first,
    uint64_t tensors,
    const Piece *pieces,
    uint64_t count,
    const Bounds *bounds,
    CopyTeam *team,
) noexcept nogil:
    """Move the same pieces of `tensors` tensors between different mapped pools. Of equal targets the last takes effect."""
    cdef Work work
    cdef pthread_t[MOST_THREADS] threads
    cdef int size = 0
    cdef int started = 0
    cdef int64_t begin
    work.target = target
    work.target_first = target_first
    work.source = source
    work.source_first = source_first
    work.tensors = tensors
    work.pieces = pieces
    work.count = count
    work.bounds = bounds
    work.bytes = bytes_of(pieces, count) * tensors
    work.next_part = work.result = 0
    if work.bytes < SHARED:
        divide(&work, 1)
        take_parts(&work)
        return <CopyResult>work.result
    size = size_of_team(team)
    divide(&work, <uint64_t>1 << size)
    begin = monotonic_nanoseconds()
    # Fewer do it too, where the kernel gives us no more threads.
    while started < (1 << size) - 1 and pthread_create(threads + started, NULL, take_parts, &work) == 0:
        started += 1
    take_parts(&work)
    while started:
        started -= 1
        pthread_join(threads[started], NULL)
    if work.result == COPIED:
        note_rate(team, size, work.bytes, monotonic_nanoseconds() - begin)
    return <CopyResult>work.result


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
