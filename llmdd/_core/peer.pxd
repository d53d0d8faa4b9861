"""A linked peer: on this host, its arena as this process maps it. Of another host it is :mod:`.distant_peer`."""

from libc.stdint cimport int64_t, uint64_t

from llmdd._core.layout cimport ArenaHeader
from llmdd._core.segments cimport Mapping
from llmdd._core.timed_lock cimport TimedLock
from llmdd._core.transfer cimport Transfer, TransferResult


cdef class Peer:
    cdef TimedLock lock
    cdef uint64_t closing          # no further transfer begins
    cdef uint64_t broken           # the transfer in progress ends too
    cdef int carry_out(self, Transfer *transfer, str tag, int64_t timeout_ns, bint keep_gil) except -1
    cdef int carry_out_run(self, Transfer *transfers, TransferResult *results, uint64_t count, int64_t deadline) except -1
    cdef int carry_out_now(self, Transfer *transfer, TransferResult *result, bint keep_gil) except -1
    cdef int carry_out_each_now(self, Transfer *transfers, TransferResult *results, uint64_t count) except -1
    cdef bint take_turn(self, int64_t deadline)
    cdef void let_go(self) noexcept


cdef class PeerArena(Peer):
    cdef Mapping arena
    cdef Mapping host_pool
    cdef Mapping device_pool
    cdef ArenaHeader known
    cdef unsigned int peer_bit
    cdef int pid                   # of the owner
    cdef int pidfd
    cdef public object courier     # who asks the owner to copy; None: nobody
    cdef object asking_failed      # what the courier raised that no status code stands for
    cdef int forget_process(self) noexcept
    cdef void face(self, Transfer *transfer) noexcept
    cdef int raise_what_asking_raised(self) except -1
    cdef int renew_in_turn(self, Transfer *named, TransferResult *results, uint64_t count, uint64_t lease_ms,
                           int64_t deadline) except -1


cdef object refusal_of(str tag, TransferResult result)
cdef object status_of(TransferResult result)
