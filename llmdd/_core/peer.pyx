# cython: language_level=3
"""A linked peer's arena (see ``peer.pxd``)."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.arena cimport what_is_wrong
from llmdd._core.atomic cimport atomic_load_word, atomic_store_word, monotonic_nanoseconds
from llmdd._core.layout cimport PEER_LIMIT, header_of
from llmdd._core.segments cimport map_arena, map_segment, require_size
from llmdd._core.status import LLMStatusCode, failure
from llmdd._core.transfer cimport (
    INDEX_IN_MOTION,
    LINK_LOST,
    LOCALLY_REFUSED,
    OUT_OF_TIME,
    PEER_UNSOUND,
    REMOTE_MISSING,
    REMOTE_SLOT_RANGE,
    REMOTE_SLOT_TOO_SMALL,
    REMOTE_TENSOR_RANGE,
    TENSOR_COUNTS_DIFFER,
    TRANSFERRED,
    TransferResult,
    carry_out,
)

cdef enum:
    HOST = 0
    DEVICE = 1

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
    OUT_OF_TIME: (LLMStatusCode.LLM_TIMEOUT, "the transfer did not end within sync_kv_timeout"),
    LINK_LOST: (LLMStatusCode.LLM_NOT_YET_LINK, "the link was lost"),
    PEER_UNSOUND: (LLMStatusCode.LLM_FAILED, "the peer's memory does not describe a cache"),
}


cdef class PeerArena:
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
        The owner's process, as this one sees it.

    Raises
    ------
    ValueError
        The segments are not an arena that this version can use; the message says why.
    """

    def __cinit__(self, description, fds, peer_bit, pid=0):
        cdef uint64_t control_bytes = description["control_bytes"]
        cdef uint64_t references_bytes = description["references_bytes"]
        cdef bint writable
        if not 0 <= peer_bit < PEER_LIMIT:
            raise ValueError(f"peer_bit is {peer_bit}, it must be in [0, {PEER_LIMIT})")
        if len(fds) < 2:
            raise ValueError(f"{len(fds)} segments were given, an arena has at least 2")
        if control_bytes < sizeof(self.known) or control_bytes > 1 << 44 or references_bytes > 1 << 44:
            raise ValueError(f"segments of {control_bytes} and {references_bytes} bytes are no arena")
        require_size(fds[0], control_bytes, "control")
        require_size(fds[1], references_bytes, "references")
        self.arena = map_arena(fds[0], control_bytes, fds[1], references_bytes, False)
        self.known = header_of(self.arena.base)[0]
        wrong = what_is_wrong(&self.known, control_bytes, references_bytes)
        if wrong:
            raise ValueError(f"the peer's arena cannot be used: {wrong}")
        self.lock = TimedLock()
        self.peer_bit = peer_bit
        self.pid = pid
        writable = self.known.remote_accessible != 0
        pools = list(fds[2:])
        if len(pools) != (self.known.pools[HOST].configured != 0) + (self.known.pools[DEVICE].configured != 0):
            raise ValueError(f"{len(pools)} pool segments were given, the peer's header names another number")
        if self.known.pools[HOST].configured:
            self.host_pool = mapped_pool(pools.pop(0), self.known.pools[HOST].bytes, writable)
        if self.known.pools[DEVICE].configured:
            self.device_pool = mapped_pool(pools.pop(0), self.known.pools[DEVICE].bytes, writable)

    cdef int carry_out(self, Transfer *transfer, str tag, int64_t timeout_ns, bint keep_gil) except -1:
        """Carry a transfer out when it is this call's turn; raises what it was refused with."""
        cdef TransferResult result
        cdef int64_t begin = monotonic_nanoseconds()
        transfer.deadline = begin + timeout_ns
        if not self.lock.acquire(timeout_ns):
            raise failure(tag, LLMStatusCode.LLM_LINK_BUSY, "the link was busy for longer than sync_kv_timeout")
        try:
            if atomic_load_word(&self.closing):
                raise failure(tag, LLMStatusCode.LLM_NOT_YET_LINK, "the link has been taken down")
            transfer.arena = self.arena.base
            transfer.known = &self.known
            transfer.pools[HOST] = self.host_pool.base if self.host_pool is not None else NULL
            transfer.pools[DEVICE] = self.device_pool.base if self.device_pool is not None else NULL
            transfer.peer_bit = self.peer_bit
            transfer.broken = &self.broken
            # An owner that died while it changed its index leaves it so: nobody waits for that with the GIL held.
            transfer.impatient = keep_gil
            result = carry_out(transfer) if keep_gil else INDEX_IN_MOTION
            if result == INDEX_IN_MOTION:
                transfer.impatient = False
                with nogil:
                    result = carry_out(transfer)
        finally:
            self.lock.release()
        if result != TRANSFERRED and result != LOCALLY_REFUSED:
            code, detail = _REFUSALS[result]
            raise failure(tag, code, detail)
        return 0

    def break_off(self):
        """Refuse every later transfer, and end the one in progress, with ``LLM_NOT_YET_LINK``. Never waits."""
        atomic_store_word(&self.closing, 1)
        atomic_store_word(&self.broken, 1)

    def detach(self, timeout_ms):
        """Refuse every later transfer, let the one in progress finish, and unmap; False if it did not finish in time."""
        cdef int64_t timeout_ns = timeout_ms * 1000000
        atomic_store_word(&self.closing, 1)
        if not self.lock.acquire(timeout_ns):
            return False
        self.arena = self.host_pool = self.device_pool = None
        self.lock.release()
        return True

    @property
    def remote_accessible(self):
        """Whether the peer lets us write into its pools."""
        return self.known.remote_accessible != 0


cdef Mapping mapped_pool(int fd, uint64_t size, bint writable):
    require_size(fd, size, "pool")
    return map_segment(fd, size, writable)
