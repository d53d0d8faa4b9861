# cython: language_level=3, boundscheck=False, wraparound=False
"""Peers on other hosts (see ``distant_peer.pxd``)."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cython cimport final
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from llmdd._core.atomic cimport atomic_load_word, monotonic_nanoseconds
from llmdd._core.copying cimport COPIED, Bounds
from llmdd._core.descriptors cimport DescriptorLists
from llmdd._core.layout cimport KEY_NONE, Slot
from llmdd._core.pair_set cimport NOT_SEEN
from llmdd._core.streams cimport Stream, StreamItem, run_capacity_of_ours, runs_of_ours
from llmdd._core.transfer cimport (
    BLOCKS_TO_BLOCKS,
    BY_ADDRESS,
    BY_KEY,
    ENGINE_FAILED,
    INDEX_IN_MOTION,
    LINK_LOST,
    LINK_TAKEN_DOWN,
    LINK_WAS_BUSY,
    LOCALLY_REFUSED,
    NOT_BEGUN,
    OUT_OF_TIME,
    PEER_UNSOUND,
    REMOTE_MISSING,
    SLOT_TO_BLOCKS,
    TOO_MANY_AT_ONCE,
    TRANSFERRED,
    Transfer,
    TransferResult,
    fits,
    place_here,
    result_of_copy,
)

cdef enum:
    ITEM_WORD = 8                  # bytes of a packed number
    LAST_RESULT = TOO_MANY_AT_ONCE


#: What the answer to a renewal on another host is told as, by name.
RENEWAL_RESULTS = {
    "RENEWED": TRANSFERRED,
    "MISSING": REMOTE_MISSING,
    "OUT_OF_TIME": OUT_OF_TIME,
    "LINK_LOST": LINK_LOST,
}


class ExchangeEnded(Exception):
    """Why a conversation could not go on: ``reason`` is one of ``OUT_OF_TIME``, ``LINK_LOST``, ``ENGINE_FAILED``,
    ``PEER_UNSOUND`` and ``TOO_MANY_AT_ONCE``, by its name."""

    RESULTS = {
        "OUT_OF_TIME": OUT_OF_TIME,
        "LINK_LOST": LINK_LOST,
        "ENGINE_FAILED": ENGINE_FAILED,
        "PEER_UNSOUND": PEER_UNSOUND,
        "TOO_MANY_AT_ONCE": TOO_MANY_AT_ONCE,
    }

    def __init__(self, str reason):
        super().__init__(reason)
        self.result = self.RESULTS[reason]


cdef TransferResult said(const Transfer *transfer, uint64_t result) noexcept:
    """What became of an item, as its owner says; PEER_UNSOUND if that is nothing that an owner can say."""
    if result > LAST_RESULT or result == INDEX_IN_MOTION or result == LINK_WAS_BUSY or result == LINK_TAKEN_DOWN:
        return PEER_UNSOUND
    if result == LOCALLY_REFUSED and not transfer.locally_refused:
        return PEER_UNSOUND
    return <TransferResult><int>result


cdef bytes packed(const uint64_t *numbers, uint64_t count):
    return PyBytes_FromStringAndSize(<const char *>numbers, count * ITEM_WORD) if numbers != NULL else b""


@final
cdef class Exchange:
    """One request to the owner of caches on another host: begin, carry the bytes over, finish; or abandon.

    The transfers stay with the caller, and must outlive it. Their results tell what became of each.
    """

    def __cinit__(self, uint64_t capacity):
        self.capacity = capacity
        self.transfers = <Transfer **>calloc(capacity, sizeof(Transfer *))
        self.results = <TransferResult **>calloc(capacity, sizeof(TransferResult *))
        self.found = <Slot *>calloc(capacity, sizeof(Slot))
        self.stream_items = <uint64_t *>calloc(capacity, sizeof(uint64_t))
        if self.transfers == NULL or self.results == NULL or self.found == NULL or self.stream_items == NULL:
            raise MemoryError(f"no memory for {capacity} transfers")
        self.stream = Stream(capacity)

    def __dealloc__(self):
        free(self.transfers)
        free(self.results)
        free(self.found)
        free(self.stream_items)

    cdef int add(self, Transfer *transfer, TransferResult *result) except -1:
        if self.count == self.capacity:
            raise AssertionError(f"an exchange was made for {self.capacity} transfers")
        self.transfers[self.count] = transfer
        self.results[self.count] = result
        self.stream_items[self.count] = NOT_SEEN
        self.count += 1
        return 0

    # ------------------------------------------------------------ begin

    cdef int begin(self, bint together) except -1:
        """Ask for all of them. What is refused has its result now; the others are NOT_BEGUN still, and pinned there."""
        cdef list items = [self.wanted(self.transfers[<uint64_t>position]) for position in range(self.count)]
        try:
            self.begun = self.conversation.begin(items, together, self, self.deadline)
        except ExchangeEnded as ended:
            return self.end_all(ended.result)
        self.take_answer()
        if self.begun is not None and self.begun.has_ended(self.pushes):
            begun, self.begun = self.begun, None
            if self.pushes and begun.is_carried:
                self.end_all(TRANSFERRED)
        return 0

    cdef object wanted(self, Transfer *transfer):
        """One item as its message has it, in the order of its fields."""
        cdef Slot *ours = transfer.local_slot
        cdef bint lists_theirs = transfer.form == BLOCKS_TO_BLOCKS or (transfer.form == SLOT_TO_BLOCKS and transfer.push)
        return (
            bool(transfer.push),
            bool(transfer.keeps_keys),
            bool(transfer.locally_refused),
            int(transfer.form),
            KEY_NONE if transfer.addressing == BY_ADDRESS else transfer.kind,
            transfer.id,
            transfer.model_id,
            transfer.batch_index,
            (transfer.addresses[0], transfer.addresses[1]),
            bool(transfer.all_remote),
            transfer.remote_first,
            transfer.remote_end,
            bool(transfer.all_local),
            transfer.local_first,
            transfer.local_end,
            transfer.bytes,
            transfer.block_count,
            transfer.block_bytes,
            packed(transfer.remote_blocks, transfer.block_count) if lists_theirs else b"",
            ours.num_tensors,
            ours.row_bytes,
            ours.row_count,
            bool(ours.accessible),
        )

    def lay_out_push(self):
        """The stream of a push, where it does not depend on the owner's cache; its bytes, or 0."""
        cdef uint64_t i
        for i in range(self.count):
            if self.transfers[i].locally_refused or (
                self.transfers[i].form == SLOT_TO_BLOCKS and self.transfers[i].addressing == BY_KEY
            ):
                return 0
        for i in range(self.count):
            self.lay_out(i)
        return self.stream.bytes

    @property
    def is_whole(self):
        """Whether everything that was copied could be."""
        cdef uint64_t i
        for i in range(self.stream.count):
            if self.stream.items[i].result != COPIED:
                return False
        return True

    cdef int take_answer(self) except -1:
        cdef uint64_t i
        if <uint64_t>len(self.begun.items) != self.count:
            self.abandon()
            return self.end_all(PEER_UNSOUND)
        for i in range(self.count):
            self.take_found(i, self.begun.items[i])
        return 0

    cdef int take_found(self, uint64_t position, object found) except -1:
        """What the owner says of one item, which is checked as its arena would be."""
        cdef Transfer *transfer = self.transfers[position]
        cdef Slot *slot = self.found + position
        cdef uint64_t result = found.result
        cdef bint unsound
        if result != TRANSFERRED:
            # Of several that go together, the first that is refused ends them all, and those behind it are not begun.
            unsound = result == NOT_BEGUN and not self.begun.has_ended(False)
            self.results[position][0] = PEER_UNSOUND if unsound else said(transfer, result)
            return 0
        if transfer.addressing == BY_ADDRESS:
            return self.lay_out_once(position)
        slot.blocks = found.blocks
        slot.num_tensors = found.tensors
        slot.row_bytes = found.row_bytes
        slot.row_count = found.rows
        slot.accessible = found.accessible
        transfer.batch_index = found.batch_index
        if slot.num_tensors == 0 or slot.row_bytes == 0 or slot.row_count == 0 or fits(transfer, slot) != TRANSFERRED:
            self.results[position][0] = PEER_UNSOUND
            return 0
        return self.lay_out_once(position)

    cdef int lay_out_once(self, uint64_t position) except -1:
        return self.lay_out(position) if self.stream_items[position] == NOT_SEEN else 0

    cdef int lay_out(self, uint64_t position) except -1:
        """Our side of one item's part of the stream."""
        cdef Transfer *transfer = self.transfers[position]
        cdef Slot *ours = transfer.local_slot
        cdef uint64_t first = 0 if transfer.all_local else transfer.local_first
        cdef uint64_t end = ours.num_tensors if transfer.all_local else transfer.local_end
        cdef StreamItem *item
        cdef uint64_t i
        self.stream_items[position] = self.stream.count
        item = self.stream.add(end - first, run_capacity_of_ours(transfer))
        for i in range(end - first):
            item.places[i] = place_here(transfer.local_arena, ours, transfer.local_pool, first + i)
        item.run_count = runs_of_ours(transfer, ours, self.found + position, item.runs)
        self.stream.close_item(item)
        return 0

    # ------------------------------------------------------------ the bytes

    cdef int carry(self) except -1:
        """Carry the bytes of what was accepted over; what fails has its result afterwards."""
        if self.begun is None:
            return 0
        try:
            self.conversation.carry(self.begun, self, self.deadline)
        except ExchangeEnded as ended:
            self.abandon()
            return self.end_all(ended.result)
        except BaseException:
            self.abandon()
            raise
        return 0

    @property
    def stream_bytes(self):
        """Of all items that were accepted."""
        return self.stream.bytes

    @property
    def is_broken(self):
        """Whether the link was lost."""
        return atomic_load_word(self.broken) != 0

    @property
    def pushes(self):
        return bool(self.transfers[0].push)

    def gather(self, uint64_t begin, target):
        """Copy the stretch of the stream from `begin` on into a buffer, as much as it holds."""
        self.copy(begin, target, False)

    def scatter(self, uint64_t begin, source):
        """Copy a buffer into the stream from `begin` on."""
        self.copy(begin, source, True)

    cdef int copy(self, uint64_t begin, object buffer, bint into_tensors) except -1:
        cdef Bounds bounds
        bounds.deadline = self.deadline
        bounds.broken = self.broken
        return self.stream.move(begin, buffer, into_tensors, &bounds)

    @property
    def pieces(self):
        """Of how many runs of bytes the stream consists."""
        return self.stream.pieces()

    @property
    def all_mapped(self):
        """Whether nothing of the stream is memory that the program registered."""
        return self.stream.all_mapped

    def writing(self, uint64_t begin, uint64_t size, uint64_t there):
        """The lists of descriptors by which a stretch of a push is written from our pools to `there`."""
        cdef DescriptorLists lists = DescriptorLists()
        self.stream.describe(begin, size, there, lists)
        return lists.arrays()

    # ------------------------------------------------------------ the end

    cdef int finish(self) except -1:
        """Have the keys dropped of what has arrived."""
        cdef uint64_t i, result
        cdef list succeeded
        if self.begun is None:
            return self.end_all(PEER_UNSOUND)
        succeeded = [self.has_arrived(position) for position in range(self.count)]
        begun, self.begun = self.begun, None
        try:
            results = self.conversation.finish(begun, succeeded, self.deadline)
        except ExchangeEnded as ended:
            return self.end_all(ended.result)
        if <uint64_t>len(results) != self.count:
            return self.end_all(PEER_UNSOUND)
        for i in range(self.count):
            result = results[i]
            if self.results[i][0] == NOT_BEGUN and (succeeded[i] or result != TRANSFERRED):
                self.results[i][0] = said(self.transfers[i], result)
        # Nothing has begun and not ended: the owner says NOT_BEGUN of what we have not had.
        return self.end_all(PEER_UNSOUND)

    cdef bint finish_well(self) except *:
        """Finish; whether every one of them has been transferred."""
        cdef uint64_t i
        self.finish()
        for i in range(self.count):
            if self.results[i][0] != TRANSFERRED:
                return False
        return True

    cdef bint has_arrived(self, uint64_t position) except *:
        """Whether an item was carried over whole; notes why not."""
        cdef StreamItem *item
        if self.results[position][0] != NOT_BEGUN or self.stream_items[position] == NOT_SEEN:
            return False
        item = self.stream.items + self.stream_items[position]
        if item.result != COPIED:
            self.results[position][0] = result_of_copy(item.result)
            return False
        return True

    cdef int abandon(self) except -1:
        """Have every pin dropped, and no key."""
        begun, self.begun = self.begun, None
        if begun is not None:
            self.conversation.abandon(begun)
        return 0

    cdef int end_all(self, TransferResult result) except -1:
        """What has no result yet ends with this one."""
        cdef uint64_t i
        for i in range(self.count):
            if self.results[i][0] == NOT_BEGUN:
                self.results[i][0] = result
        return 0


cdef class DistantPeer(Peer):
    """A linked peer that shares no memory with us.

    Parameters
    ----------
    conversation : llmdd.link.conversation.Conversation
        By which its owner is asked.
    remote_accessible : bool
        Whether the peer is in remote mode, as we are.

    Attributes
    ----------
    renewals : object
        Asks the owner to renew leases: has ``ask(items, lease_ms)``, whose result has ``answers(timeout_s)``, a
        ``TransferResult`` for each item (``link.renewals``).
    """

    def __cinit__(self, conversation, remote_accessible):
        self.conversation = conversation
        self.remote_accessible = remote_accessible

    cdef Exchange exchange(self, uint64_t capacity, int64_t deadline):
        cdef Exchange made = Exchange(capacity)
        made.conversation = self.conversation
        made.deadline = deadline
        made.broken = &self.broken
        return made

    cdef int carry_out_now(self, Transfer *transfer, TransferResult *result, bint keep_gil) except -1:
        return self.carry_out_each_now(transfer, result, 1)

    cdef int carry_out_each_now(self, Transfer *transfers, TransferResult *results, uint64_t count) except -1:
        cdef uint64_t most = self.conversation.MAX_ITEMS
        cdef uint64_t i = 0
        cdef Exchange exchange
        while i < count:
            exchange = self.exchange(min(count - i, most), transfers[i].deadline)
            while i < count and exchange.count < exchange.capacity:
                if results[i] == NOT_BEGUN:
                    exchange.add(transfers + i, results + i)
                i += 1
            if exchange.count == 0:
                return 0
            try:
                exchange.begin(False)
                exchange.carry()
                exchange.finish()
            finally:
                exchange.abandon()
        return 0

    def break_off(self):
        """As of a peer on this host; whoever waits for an answer of the peer's wakes up."""
        Peer.break_off(self)
        self.conversation.break_off()

    cdef void let_go(self) noexcept:
        """Nothing: the conversation ends with the session, which knows when the other end expects it to."""
