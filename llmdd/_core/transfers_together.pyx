# cython: language_level=3, boundscheck=False, wraparound=False
"""All or none, across hosts (see ``transfers_together.pxd``)."""

from cython cimport final
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

from llmdd._core.bulk_transfers cimport Begun, begin_all, copy_all, drop_keys, unpin_all
from llmdd._core.distant_peer cimport DistantPeer, Exchange
from llmdd._core.pair_set cimport PairSet, pair_set_drop, pair_set_make
from llmdd._core.transfer cimport TRANSFERRED, Transfer, TransferResult


@final
cdef class TransfersTogether:
    """Transfers from peers of this host and of others that go together: begin, carry, finish; abandon in any case.

    What fails has its result at once. If nothing has, :meth:`finish` gives all of them theirs. The transfers and results
    are the caller's, and must outlive it.
    """

    def __cinit__(self, uint64_t capacity):
        self.exchanges = {}
        self.capacity = capacity
        self.transfers = <Transfer *>malloc((capacity + 1) * sizeof(Transfer))
        self.results = <TransferResult **>malloc((capacity + 1) * sizeof(TransferResult *))
        self.begun = <Begun *>malloc((capacity + 1) * sizeof(Begun))
        if self.transfers == NULL or self.results == NULL or self.begun == NULL:
            raise MemoryError(f"{capacity * sizeof(Begun)} bytes for {capacity} pulls")

    def __dealloc__(self):
        free(self.transfers)
        free(self.results)
        free(self.begun)

    cdef Exchange exchange_with(self, DistantPeer peer, int64_t deadline):
        """What is exchanged with one peer."""
        cdef Exchange exchange = self.exchanges.get(peer)
        if exchange is None:
            exchange = self.exchanges[peer] = peer.exchange(self.capacity, deadline)
        return exchange

    cdef int add(self, Transfer *transfer, TransferResult *result) except -1:
        """One of a peer on this host."""
        self.transfers[self.count] = transfer[0]
        self.results[self.count] = result
        self.count += 1
        return 0

    cdef int begin(self) except -1:
        """Find, pin and check all of them."""
        cdef PairSet pins, sources
        cdef TransferResult result
        cdef uint64_t refused = 0
        cdef bint enough
        for exchange in self.exchanges.values():
            (<Exchange>exchange).begin(True)
        enough = pair_set_make(&pins, self.count)
        enough = pair_set_make(&sources, self.count) and enough
        try:
            if not enough:
                raise MemoryError(f"no memory to compare {self.count} pulls")
            with nogil:
                result = begin_all(self.transfers, self.begun, self.count, &pins, &sources, &refused)
        finally:
            pair_set_drop(&pins)
            pair_set_drop(&sources)
        self.pinned = result == TRANSFERRED
        if not self.pinned:
            self.results[refused][0] = result
        return 0

    cdef int carry(self) except -1:
        """Copy all of them."""
        cdef TransferResult result
        cdef uint64_t refused = 0
        for exchange in self.exchanges.values():
            (<Exchange>exchange).carry()
        with nogil:
            result = copy_all(self.transfers, self.begun, self.count, &refused)
        if result != TRANSFERRED:
            self.results[refused][0] = result
        return 0

    cdef int finish(self) except -1:
        """Drop the keys of all of them: of those of other hosts first, since that may fail."""
        cdef uint64_t i
        for exchange in self.exchanges.values():
            if not (<Exchange>exchange).finish_well():
                return 0
        drop_keys(self.transfers, self.begun, self.count)
        for i in range(self.count):
            self.results[i][0] = TRANSFERRED
        return 0

    cdef int abandon(self) except -1:
        """Drop every pin that is held still."""
        if self.pinned:
            self.pinned = False
            unpin_all(self.transfers, self.begun, self.count)
        for exchange in self.exchanges.values():
            (<Exchange>exchange).abandon()
        return 0
