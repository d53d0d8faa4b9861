# cython: language_level=3
"""Linked peers (see ``peer.pxd``)."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close

from llmdd._core.arena cimport copy_header, what_is_wrong
from llmdd._core.atomic cimport atomic_load_word, atomic_store_word, monotonic_nanoseconds
from llmdd._core.bulk_transfers cimport carry_out_each
from llmdd._core.copying cimport (
    COPIED,
    COPY_BAD_ADDRESS,
    COPY_BROKEN_OFF,
    COPY_FORBIDDEN,
    COPY_OUT_OF_TIME,
    MAPPED,
    Bounds,
    CopyResult,
    Piece,
    Place,
    copy_pieces,
)
from llmdd._core.layout cimport PEER_LIMIT, header_of
from llmdd._core.renewals cimport renew_each
from llmdd._core.segments cimport map_arena, map_segment, require_size
from llmdd._core.status import LLMException, LLMStatusCode, failure
from llmdd._core.timed_lock cimport TimedLock
from llmdd._core.transfer cimport (
    ADDRESS_UNKNOWN,
    BLOCK_BYTES_DIFFER,
    BLOCK_COUNTS_DIFFER,
    ENGINE_FAILED,
    INDEX_IN_MOTION,
    KINDS_DIFFER,
    LINK_LOST,
    LINK_TAKEN_DOWN,
    LINK_WAS_BUSY,
    LOCALLY_REFUSED,
    NOT_ACCESSIBLE,
    NOT_BEGUN,
    NOT_MAPPED,
    OUT_OF_TIME,
    PEER_CLOSED_ITS_MEMORY,
    PEER_UNSOUND,
    REMOTE_BLOCK_RANGE,
    REMOTE_MISSING,
    REMOTE_SLOT_RANGE,
    REMOTE_SLOT_TOO_SMALL,
    REMOTE_TENSOR_RANGE,
    TENSOR_COUNTS_DIFFER,
    TOO_MANY_AT_ONCE,
    TOO_MANY_BLOCKS,
    TRANSFERRED,
    TransferResult,
    carry_out,
)

cdef enum:
    HOST = 0
    DEVICE = 1
    ASKED_AT_ONCE = 512 << 10      # bytes that the owner is asked for in one message

cdef dict _REFUSALS = {
    REMOTE_MISSING: (LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, "the peer has no such key, cache or batch slot"),
    TENSOR_COUNTS_DIFFER: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "the number of tensors selected on the two sides differs; give a layer range for the larger side",
    ),
    REMOTE_TENSOR_RANGE: (LLMStatusCode.LLM_PARAM_INVALID, "the layer range reaches beyond the peer's tensors"),
    REMOTE_SLOT_TOO_SMALL: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "a batch slot of the peer's cache has fewer bytes than are to be transferred; give a smaller size",
    ),
    REMOTE_SLOT_RANGE: (LLMStatusCode.LLM_PARAM_INVALID, "the batch index lies beyond the peer's batch"),
    KINDS_DIFFER: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "one side is a blocks cache and the other is not; blocks go to blocks, and a batch slot to a batch slot or to blocks",
    ),
    REMOTE_BLOCK_RANGE: (LLMStatusCode.LLM_PARAM_INVALID, "a block index lies beyond the peer's blocks"),
    BLOCK_BYTES_DIFFER: (LLMStatusCode.LLM_PARAM_INVALID, "the blocks of the two sides differ in bytes"),
    BLOCK_COUNTS_DIFFER: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "the two caches differ in their number of blocks; list the blocks to be transferred",
    ),
    TOO_MANY_BLOCKS: (LLMStatusCode.LLM_PARAM_INVALID, "more blocks are listed than the batch slot fills"),
    NOT_ACCESSIBLE: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "one of the caches is not remote accessible; register it with remote_accessible=True",
    ),
    ADDRESS_UNKNOWN: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "the addresses do not lie within one tensor of a live, remote accessible cache of the peer",
    ),
    NOT_MAPPED: (LLMStatusCode.LLM_PARAM_INVALID, "registered memory is not mapped any more"),
    PEER_CLOSED_ITS_MEMORY: (
        LLMStatusCode.LLM_FAILED,
        "the kernel forbids this process to touch the peer's registered memory, and the peer cannot be asked",
    ),
    OUT_OF_TIME: (LLMStatusCode.LLM_TIMEOUT, "the transfer did not end within sync_kv_timeout"),
    LINK_LOST: (LLMStatusCode.LLM_NOT_YET_LINK, "the link was lost"),
    LINK_WAS_BUSY: (LLMStatusCode.LLM_LINK_BUSY, "the link was busy for longer than sync_kv_timeout"),
    LINK_TAKEN_DOWN: (LLMStatusCode.LLM_NOT_YET_LINK, "the link has been taken down"),
    PEER_UNSOUND: (LLMStatusCode.LLM_FAILED, "what the peer says of its memory does not describe a cache"),
    ENGINE_FAILED: (LLMStatusCode.LLM_FAILED, "the transfer engine gave up; its log says why"),
    TOO_MANY_AT_ONCE: (
        LLMStatusCode.LLM_PARAM_INVALID,
        "more keys or blocks are listed than one call to another host may have; divide the list",
    ),
}


cdef class Peer:
    """A linked cluster, as transfers see it. One transfer at a time has its turn of the link."""

    def __cinit__(self, *arguments, **keywords):
        self.lock = TimedLock()

    cdef int carry_out(self, Transfer *transfer, str tag, int64_t timeout_ns, bint keep_gil) except -1:
        """Carry a transfer out when it is this call's turn; raises what it was refused with.

        True if nothing was done, because the link had been taken down when the turn came.
        """
        cdef TransferResult result = NOT_BEGUN
        transfer.deadline = monotonic_nanoseconds() + timeout_ns
        if not self.lock.acquire(timeout_ns):
            raise refusal_of(tag, LINK_WAS_BUSY)
        try:
            # Pairs with detach, as the turns do: once closing is set, nobody begins.
            if atomic_load_word(&self.closing):
                return 1
            self.carry_out_now(transfer, &result, keep_gil)
        finally:
            self.lock.release()
        if result != TRANSFERRED and result != LOCALLY_REFUSED:
            raise refusal_of(tag, result)
        return 0

    cdef int carry_out_run(
        self, Transfer *transfers, TransferResult *results, uint64_t count, int64_t deadline
    ) except -1:
        """Carry out, in one turn and in order, those transfers that are NOT_BEGUN; what became of them is in `results`.

        True if nothing was done, because the link had been taken down when the turn came.
        """
        cdef uint64_t i
        if not self.take_turn(deadline):
            for i in range(count):
                if results[i] == NOT_BEGUN:
                    results[i] = LINK_WAS_BUSY
            return 0
        try:
            if atomic_load_word(&self.closing):
                return 1
            for i in range(count):
                transfers[i].deadline = deadline
            self.carry_out_each_now(transfers, results, count)
        finally:
            self.lock.release()
        return 0

    cdef int carry_out_now(self, Transfer *transfer, TransferResult *result, bint keep_gil) except -1:
        raise NotImplementedError

    cdef int carry_out_each_now(self, Transfer *transfers, TransferResult *results, uint64_t count) except -1:
        raise NotImplementedError

    cdef bint take_turn(self, int64_t deadline):
        """Wait for the link until a deadline; False if others used it all the time. It is to be given back by `lock`."""
        return self.lock.acquire(max(0, deadline - monotonic_nanoseconds()))

    cdef void let_go(self) noexcept:
        """Drop what the link held. It is this call's turn, and nobody's afterwards."""

    def break_off(self):
        """Refuse every later transfer, and end the one in progress, with ``LLM_NOT_YET_LINK``. Never waits."""
        # Pair with carry_out, and with the looks that a transfer takes at `broken`: flags, which bring nothing with them.
        atomic_store_word(&self.closing, 1)
        atomic_store_word(&self.broken, 1)

    def detach(self, timeout_ms):
        """Refuse every later transfer, let the one in progress finish, and let go of the peer; False if it did not finish
        in time."""
        cdef int64_t timeout_ns = timeout_ms * 1000000
        # Before we take our turn: who has his later sees it.
        atomic_store_word(&self.closing, 1)
        if not self.lock.acquire(timeout_ns):
            return False
        self.let_go()
        self.lock.release()
        return True


cdef class PeerArena(Peer):
    """Maps the segments of a peer: its index, slots and pools to read, its reference words to write.

    Parameters
    ----------
    description : dict
        As the peer's ``CacheStore.export`` gave it.
    fds : sequence of int
        The segments' descriptors, in the same order; they may be closed afterwards.
    peer_bit : int
        The pin bit that the peer has given us.
    pid : int
        The peer's process, as the kernel names it here.

    Attributes
    ----------
    courier : object, optional
        Asks the peer to copy registered memory that the kernel keeps from us: has ``fetch(slot, generation, tensor,
        offset, size, timeout_s) -> bytes`` and ``store(slot, generation, tensor, offset, data, timeout_s)``, for at most
        512 KiB, which raise LLMException.

    Raises
    ------
    ValueError
        The segments are not an arena that this version can use; the message says why.
    OSError
        There is no such process.
    """

    def __cinit__(self, description, fds, peer_bit, pid):
        cdef uint64_t control_bytes, references_bytes
        self.pidfd = -1  # first of all: whatever fails from here on, __dealloc__ closes what it finds
        control_bytes = description["control_bytes"]
        references_bytes = description["references_bytes"]
        if not 0 <= peer_bit < PEER_LIMIT:
            raise ValueError(f"peer_bit is {peer_bit}, it must be in [0, {PEER_LIMIT})")
        if len(fds) < 2:
            raise ValueError(f"{len(fds)} segments were given, an arena has at least 2")
        if control_bytes < sizeof(self.known) or control_bytes > 1 << 44 or references_bytes > 1 << 44:
            raise ValueError(f"segments of {control_bytes} and {references_bytes} bytes are no arena")
        require_size(fds[0], control_bytes, "control")
        require_size(fds[1], references_bytes, "references")
        self.arena = map_arena(fds[0], control_bytes, fds[1], references_bytes, False)
        copy_header(&self.known, header_of(self.arena.base))
        wrong = what_is_wrong(&self.known, control_bytes, references_bytes)
        if wrong:
            raise ValueError(f"the peer's arena cannot be used: {wrong}")
        self.peer_bit = peer_bit
        pools = list(fds[2:])
        if len(pools) != (self.known.pools[HOST].configured != 0) + (self.known.pools[DEVICE].configured != 0):
            raise ValueError(f"{len(pools)} pool segments were given, the peer's header names another number")
        if self.known.pools[HOST].configured:
            self.host_pool = mapped_pool(pools.pop(0), self.known.pools[HOST].bytes)
        if self.known.pools[DEVICE].configured:
            self.device_pool = mapped_pool(pools.pop(0), self.known.pools[DEVICE].bytes)
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def __dealloc__(self):
        self.forget_process()

    cdef int forget_process(self) noexcept:
        cdef int pidfd = self.pidfd
        self.pidfd = -1
        if pidfd >= 0:
            close(pidfd)
        return 0

    cdef void face(self, Transfer *transfer) noexcept:
        """Enter the peer's side of a transfer."""
        transfer.arena = self.arena.base
        transfer.known = &self.known
        transfer.pools[HOST] = self.host_pool.base if self.host_pool is not None else NULL
        transfer.pools[DEVICE] = self.device_pool.base if self.device_pool is not None else NULL
        transfer.peer_bit = self.peer_bit
        transfer.pid = self.pid
        transfer.pidfd = self.pidfd
        transfer.peer = <void *>self
        transfer.ask = NULL
        if self.courier is not None:
            transfer.ask = ask_peer
        transfer.broken = &self.broken

    cdef int carry_out_now(self, Transfer *transfer, TransferResult *result, bint keep_gil) except -1:
        self.face(transfer)
        # An owner that died while it changed its index leaves it so: nobody waits for that with the GIL held.
        transfer.impatient = keep_gil
        result[0] = carry_out(transfer) if keep_gil else INDEX_IN_MOTION
        if result[0] == INDEX_IN_MOTION:
            transfer.impatient = False
            with nogil:
                result[0] = carry_out(transfer)
        return self.raise_what_asking_raised()

    cdef int carry_out_each_now(self, Transfer *transfers, TransferResult *results, uint64_t count) except -1:
        cdef uint64_t i = 0
        for i in range(count):
            if results[i] == NOT_BEGUN:
                self.face(transfers + i)
        i = 0
        while i < count:
            with nogil:
                i = carry_out_each(transfers, results, i, count)
            self.raise_what_asking_raised()
        return 0

    cdef int renew_in_turn(
        self, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms, int64_t deadline
    ) except -1:
        """Renew the leases of keys that are NOT_BEGUN. In a turn of the link's, since its pin bit is one for all that we
        do. True if nothing was done, because the link had been taken down."""
        cdef uint64_t i
        if not self.take_turn(deadline):
            for i in range(count):
                results[i] = LINK_WAS_BUSY
            return 0
        try:
            if atomic_load_word(&self.closing):
                return 1
            for i in range(count):
                self.face(named + i)
            with nogil:
                renew_each(named, results, count, lease_ms)
        finally:
            self.lock.release()
        return 0

    cdef int raise_what_asking_raised(self) except -1:
        asking_failed, self.asking_failed = self.asking_failed, None
        if asking_failed is not None:
            raise asking_failed
        return 0

    cdef void let_go(self) noexcept:
        self.arena = self.host_pool = self.device_pool = None
        self.courier = None
        self.forget_process()

    @property
    def remote_accessible(self):
        """Whether the peer lets us write into its pools."""
        return self.known.remote_accessible != 0


cdef object refusal_of(str tag, TransferResult result):
    """The exception for a transfer that ended so."""
    code, detail = _REFUSALS[result]
    return failure(tag, code, detail)


cdef object status_of(TransferResult result):
    """The status code of a transfer that ended so."""
    return LLMStatusCode.LLM_SUCCESS if result == TRANSFERRED else _REFUSALS[result][0]


cdef Mapping mapped_pool(int fd, uint64_t size):
    require_size(fd, size, "pool")
    return map_segment(fd, size, True)


cdef CopyResult ask_peer(
    void *peer, uint32_t slot, uint32_t generation, uint64_t tensor, uint64_t begin, bint push, const Place *ours,
    const Piece *pieces, uint64_t count, int64_t deadline
) noexcept with gil:
    """Have the peer copy, part by part (the courier of an arena is set as long as transfers can begin)."""
    cdef uint64_t i, done, part
    cdef CopyResult result
    courier = (<PeerArena>peer).courier
    for i in range(count):
        done = 0
        while done < pieces[i].size:
            part = min(pieces[i].size - done, ASKED_AT_ONCE)
            try:
                result = ask_for_part(
                    courier,
                    slot,
                    generation,
                    tensor,
                    push,
                    ours,
                    pieces[i].source + done + (0 if push else begin),
                    pieces[i].target + done + (begin if push else 0),
                    part,
                    deadline,
                )
            except LLMException as refused:
                return result_of_status(refused.status_code)
            except BaseException as error:
                (<PeerArena>peer).asking_failed = error
                return COPY_BROKEN_OFF
            if result != COPIED:
                return result
            done += part
    return COPIED


cdef CopyResult ask_for_part(
    object courier, uint32_t slot, uint32_t generation, uint64_t tensor, bint push, const Place *ours, uint64_t source,
    uint64_t target, uint64_t size, int64_t deadline
) except *:
    cdef Place here
    cdef Piece piece
    cdef Bounds bounds
    cdef uint64_t never = 0
    cdef double timeout_s = (deadline - monotonic_nanoseconds()) / 1e9
    cdef bytes data
    cdef CopyResult result
    if timeout_s <= 0:
        return COPY_OUT_OF_TIME
    bounds.deadline = deadline
    bounds.broken = &never
    here.reach = MAPPED
    here.pid = 0
    here.pidfd = -1
    piece.size = size
    if push:
        data = PyBytes_FromStringAndSize(NULL, size)
        here.base = PyBytes_AS_STRING(data)
        piece.source = source
        piece.target = 0
        result = copy_pieces(&here, ours, &piece, 1, &bounds)
        if result == COPIED:
            courier.store(slot, generation, tensor, target, data, timeout_s)
        return result
    data = courier.fetch(slot, generation, tensor, source, size, timeout_s)
    if <uint64_t>len(data) != size:
        return COPY_FORBIDDEN
    here.base = PyBytes_AS_STRING(data)
    piece.source = 0
    piece.target = target
    return copy_pieces(ours, &here, &piece, 1, &bounds)


cdef CopyResult result_of_status(object status_code):
    if status_code is LLMStatusCode.LLM_TIMEOUT:
        return COPY_OUT_OF_TIME
    if status_code is LLMStatusCode.LLM_PARAM_INVALID:
        return COPY_BAD_ADDRESS
    return COPY_BROKEN_OFF
