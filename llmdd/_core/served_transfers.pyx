# cython: language_level=3, boundscheck=False, wraparound=False
"""Transfers for peers on other hosts (see ``served_transfers.pxd``)."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cython cimport final, no_gc_clear
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport getpid

from llmdd._core.atomic cimport monotonic_nanoseconds
from llmdd._core.bulk_transfers cimport Begun, begin_transfer, unpin_all
from llmdd._core.copying cimport COPIED, Bounds
from llmdd._core.critical_section cimport CriticalSection, enter_critical_section, leave_critical_section
from llmdd._core.descriptors cimport DescriptorLists
from llmdd._core.layout cimport KEY_NONE, Slot, header_of
from llmdd._core.node_memory cimport NodeMemory
from llmdd._core.pair_set cimport NOT_SEEN, PairSet, pair_set_drop, pair_set_make
from llmdd._core.status import LLMStatusCode, failure
from llmdd._core.streams cimport Stream, StreamItem, run_capacity_of_theirs, runs_of_theirs
from llmdd._core.transfer cimport (
    ADDRESS_UNKNOWN,
    BLOCKS_TO_BLOCKS,
    BY_ADDRESS,
    BY_KEY,
    NOT_BEGUN,
    SLOT_TO_BLOCKS,
    SLOT_TO_SLOT,
    TENSORS_AT_ONCE,
    TRANSFERRED,
    Form,
    Landing,
    Transfer,
    TransferResult,
    bytes_at_address,
    drop_key,
    find_landing,
    landing_place,
    outcome,
    remote_place,
    result_of_copy,
    unpin,
)

cdef enum:
    HOST = 0
    DEVICE = 1
    ITEM_WORD = 8                  # bytes of a packed number


@final
@no_gc_clear
cdef class ServedTransfers:
    """What one request of a peer on another host has pinned here, until it is finished or abandoned.

    Made by ``CacheStore.serve``. Used by one thread at a time.

    Attributes
    ----------
    pushes : bool
        Whether the bytes come here.
    """

    def __cinit__(self, uint64_t count):
        self.count = count
        self.transfers = <Transfer *>calloc(count, sizeof(Transfer))
        self.askers = <Slot *>calloc(count, sizeof(Slot))
        self.begun = <Begun *>calloc(count, sizeof(Begun))
        self.codes = <TransferResult *>malloc(count * sizeof(TransferResult))
        self.stream_items = <uint64_t *>malloc(count * sizeof(uint64_t))
        self.landings = <Landing *>calloc(TENSORS_AT_ONCE, sizeof(Landing))
        if (
            self.transfers == NULL
            or self.askers == NULL
            or self.begun == NULL
            or self.codes == NULL
            or self.stream_items == NULL
            or self.landings == NULL
        ):
            raise MemoryError(f"no memory for {count} transfers")
        for position in range(count):
            self.codes[<uint64_t>position] = NOT_BEGUN
            self.stream_items[<uint64_t>position] = NOT_SEEN
            self.begun[<uint64_t>position].holder = NOT_SEEN
        if not (pair_set_make(&self.pinned, count) and pair_set_make(&self.sources, count)):
            raise MemoryError(f"no memory to compare {count} transfers")
        self.kept = []
        self.stream = Stream(count)

    def __dealloc__(self):
        self.unpin()
        free(self.transfers)
        free(self.askers)
        free(self.begun)
        free(self.codes)
        free(self.stream_items)
        free(self.landings)
        pair_set_drop(&self.pinned)
        pair_set_drop(&self.sources)

    # ------------------------------------------------------------ what is asked for

    def take(self, list items):
        """Find, pin and check the next of them. ValueError if there can be no such transfers."""
        cdef uint64_t begin = self.taken
        cdef uint64_t end = begin + <uint64_t>len(items)
        cdef uint64_t position
        if not self.is_open:
            raise ValueError("the transfers have ended")
        if end > self.count:
            raise ValueError(f"{end} transfers are asked for, {self.count} were announced")
        for position in range(begin, end):
            self.enter(position, items[position - begin])
            if self.transfers[position].push != self.transfers[0].push:
                raise ValueError("pulls and pushes do not come together")
        self.taken = end
        self.pushes = self.transfers[0].push
        if self.transfers[0].addressing == BY_ADDRESS:
            self.begin_at_addresses()
        else:
            self.begin_keyed(begin, end)
        self.lay_out(begin, end)
        if self.taken == self.count:
            pair_set_drop(&self.pinned)
            pair_set_drop(&self.sources)

    cdef int enter(self, uint64_t position, object wanted) except -1:
        """Take one item from its message; ValueError if there can be no such transfer."""
        cdef Transfer *transfer = self.transfers + position
        cdef Slot *asker = self.askers + position
        cdef bint by_address = wanted.kind == KEY_NONE
        transfer.arena = self.arena.base
        transfer.known = header_of(self.arena.base)
        transfer.pools[HOST] = self.host_pool.base if self.host_pool is not None else NULL
        transfer.pools[DEVICE] = self.device_pool.base if self.device_pool is not None else NULL
        transfer.pid = getpid()
        transfer.pidfd = -1
        transfer.broken = &self.never
        transfer.served = True
        transfer.deadline = self.deadline
        transfer.addressing = BY_ADDRESS if by_address else BY_KEY
        transfer.kind = wanted.kind
        transfer.id = wanted.id
        transfer.model_id = wanted.model_id
        transfer.batch_index = wanted.batch_index
        transfer.addresses[0], transfer.addresses[1] = wanted.addresses
        transfer.push = wanted.push
        transfer.keeps_keys = wanted.keeps_keys
        transfer.remote_mode = self.remote_mode
        transfer.locally_refused = wanted.only_look
        transfer.all_remote = wanted.whole_yours
        transfer.remote_first = wanted.your_first
        transfer.remote_end = wanted.your_end
        transfer.all_local = wanted.whole_ours
        transfer.local_first = wanted.our_first
        transfer.local_end = wanted.our_end
        transfer.form = <Form><int>wanted.form
        transfer.bytes = wanted.bytes_of_tensor
        transfer.block_count = wanted.block_count
        transfer.block_bytes = wanted.block_bytes
        transfer.local_slot = asker
        asker.num_tensors = wanted.our_tensors
        asker.row_bytes = wanted.our_row_bytes
        asker.row_count = wanted.our_rows
        asker.accessible = wanted.accessible
        if not by_address and not transfer.all_remote and transfer.remote_first >= transfer.remote_end:
            raise ValueError(f"tensors {transfer.remote_first} to {transfer.remote_end} are none")
        if not transfer.all_local and transfer.local_first >= transfer.local_end:
            raise ValueError(f"tensors {transfer.local_first} to {transfer.local_end} of the sender are none")
        if transfer.form == SLOT_TO_SLOT and transfer.bytes == 0 and not transfer.locally_refused:
            raise ValueError("no bytes of a tensor are wanted")
        if by_address:
            self.require_addressable(position)
        self.keep_blocks(position, wanted)
        return 0

    cdef int require_addressable(self, uint64_t position) except -1:
        """What a transfer to addresses of ours must say (api §3.7)."""
        cdef Transfer *transfer = self.transfers + position
        if self.count != 1 or not transfer.push or not transfer.keeps_keys or transfer.locally_refused:
            raise ValueError("a transfer to addresses is a push, keeps keys and comes alone")
        if transfer.all_local or transfer.local_end - transfer.local_first != TENSORS_AT_ONCE:
            raise ValueError(f"a transfer to addresses is of {TENSORS_AT_ONCE} tensors")
        if transfer.form in (SLOT_TO_BLOCKS, BLOCKS_TO_BLOCKS) and (transfer.block_bytes == 0 or transfer.block_count == 0):
            raise ValueError("a transfer to blocks at addresses says how large they are, and lists them")
        return 0

    cdef int keep_blocks(self, uint64_t position, object wanted) except -1:
        """The list of our blocks, whose bytes are kept as long as they are used."""
        cdef Transfer *transfer = self.transfers + position
        cdef bytes blocks = wanted.your_blocks
        cdef bint are_listed = transfer.form == BLOCKS_TO_BLOCKS or (transfer.form == SLOT_TO_BLOCKS and transfer.push)
        # Of a push that the sender refuses, unless there is no such cache, the list may be anything.
        if <uint64_t>len(blocks) != (transfer.block_count * ITEM_WORD if are_listed else 0) and not transfer.locally_refused:
            raise ValueError(f"{len(blocks) // ITEM_WORD} blocks are listed, {transfer.block_count} were announced")
        self.kept.append(blocks)
        if blocks:
            transfer.remote_blocks = <const uint64_t *>PyBytes_AS_STRING(blocks)
        return 0

    # ------------------------------------------------------------ begin

    cdef int begin_keyed(self, uint64_t begin, uint64_t end) except -1:
        """Find, pin and check these; of several that go together, up to the first that is refused."""
        cdef uint64_t i
        with nogil:
            for i in range(begin, end):
                if self.together and self.has_refused:
                    break
                self.codes[i] = begin_transfer(self.transfers, self.begun, i, &self.pinned, &self.sources)
                self.transfers[i].pinned = NULL
                if self.codes[i] != TRANSFERRED:
                    self.begun[i].holder = NOT_SEEN
                    self.has_refused = True
        return 0

    cdef int begin_at_addresses(self) except -1:
        """Find and pin what lies at the two addresses."""
        cdef Transfer *transfer = self.transfers
        cdef uint64_t size = bytes_at_address(transfer)
        cdef TransferResult result = TRANSFERRED if size else ADDRESS_UNKNOWN
        with nogil:
            while result == TRANSFERRED and self.found < TENSORS_AT_ONCE:
                result = find_landing(transfer, size, self.landings, self.found)
                self.found += result == TRANSFERRED
        self.codes[0] = result
        return 0

    cdef int lay_out(self, uint64_t begin, uint64_t end) except -1:
        """The part of the stream that consists of these, as far as they can be transferred."""
        cdef uint64_t i
        for i in range(begin, end):
            if self.codes[i] == TRANSFERRED:
                self.lay_out_item(i)
        return 0

    cdef int lay_out_item(self, uint64_t position) except -1:
        cdef Transfer *transfer = self.transfers + position
        cdef bint by_address = transfer.addressing == BY_ADDRESS
        cdef Slot *found = self.found_slot(position)
        cdef uint64_t tensors = TENSORS_AT_ONCE if by_address else transfer.remote_end - transfer.remote_first
        cdef uint64_t i
        cdef bint sound = True
        self.stream_items[position] = self.stream.count
        cdef StreamItem *item = self.stream.add(tensors, run_capacity_of_theirs(transfer))
        for i in range(tensors):
            if by_address:
                sound = landing_place(transfer, self.landings + i, item.places + i) and sound
            else:
                sound = remote_place(transfer, found, transfer.remote_first + i, item.places + i) and sound
        if not sound:
            raise AssertionError("a tensor of a pinned cache lies nowhere in its pool")
        item.run_count = runs_of_theirs(transfer, transfer.local_slot, found, item.runs)
        self.stream.close_item(item)
        return 0

    # ------------------------------------------------------------ what was found

    @property
    def stream_bytes(self):
        """Of all items that can be transferred."""
        return self.stream.bytes

    @property
    def all_mapped(self):
        """Whether nothing of the stream is memory that the program registered."""
        return self.stream.all_mapped

    @property
    def pieces(self):
        """Of how many runs of bytes the stream consists."""
        return self.stream.pieces()

    def is_accepted(self, uint64_t position):
        """Whether an item can be transferred."""
        return self.codes[position] == TRANSFERRED

    def describe(self, uint64_t position):
        """What an item names: result, whether blocks, tensors, bytes and number of rows, whether accessible, batch index."""
        cdef Slot *found = self.found_slot(position)
        cdef TransferResult result = self.codes[position]
        if result != TRANSFERRED:
            return int(result), False, 0, 0, 0, False, 0
        return (
            int(result),
            bool(found.blocks),
            found.num_tensors,
            found.row_bytes,
            found.row_count,
            bool(found.accessible),
            self.transfers[position].batch_index,
        )

    cdef Slot *found_slot(self, uint64_t position) noexcept:
        """Our cache that an item names; at addresses, the one at the first."""
        if self.transfers[position].addressing == BY_ADDRESS:
            return &self.landings[0].remote
        return &self.begun[position].remote

    # ------------------------------------------------------------ the bytes

    def gather(self, uint64_t begin, target):
        """Copy the stretch of the stream from `begin` on into a buffer, as much as it holds."""
        self.copy(begin, target, False)

    def scatter(self, uint64_t begin, source):
        """Copy a buffer into the stream from `begin` on."""
        self.copy(begin, source, True)

    cdef int copy(self, uint64_t begin, object buffer, bint into_tensors) except -1:
        cdef Bounds bounds
        bounds.deadline = self.deadline
        bounds.broken = &self.never
        if not self.is_open:
            raise ValueError("the transfers have ended")
        return self.stream.move(begin, buffer, into_tensors, &bounds)

    def writing(self, uint64_t begin, uint64_t size, uint64_t there):
        """The lists of descriptors by which a stretch of a pull is written from our pools to `there`."""
        cdef DescriptorLists lists = DescriptorLists()
        self.stream.describe(begin, size, there, lists)
        return lists.arrays()

    # ------------------------------------------------------------ the end

    def finish(self, list succeeded):
        """Drop the keys of the items whose bytes have arrived, then every pin; what became of each item.

        NOT_BEGUN is the result of what has not arrived.
        """
        cdef uint64_t i
        cdef bint all_well = True
        if not self.is_open:
            raise ValueError("the transfers have ended")
        if self.taken != self.count:
            raise ValueError(f"{self.count - self.taken} of {self.count} transfers have not been taken")
        if <uint64_t>len(succeeded) != self.count:
            raise ValueError(f"{len(succeeded)} outcomes were given for {self.count} transfers")
        for i in range(self.count):
            if self.codes[i] == TRANSFERRED:
                self.codes[i] = self.result_of(i, succeeded[i])
            all_well = all_well and self.codes[i] == TRANSFERRED
        if all_well or not self.together:
            for i in range(self.count):
                if self.codes[i] == TRANSFERRED and not self.transfers[i].keeps_keys:
                    if drop_key(self.transfers + i, &self.begun[i].entry, &self.begun[i].remote):
                        self.begun[self.begun[i].holder].dropped_key = True
        self.unpin()
        return [int(self.codes[<uint64_t>position]) for position in range(self.count)]

    cdef TransferResult result_of(self, uint64_t position, bint succeeded) noexcept:
        cdef Transfer *transfer = self.transfers + position
        cdef StreamItem *item = self.stream.items + self.stream_items[position]
        if not succeeded:
            return NOT_BEGUN
        return outcome(
            transfer,
            &self.landings[0].entry if transfer.addressing == BY_ADDRESS else &self.begun[position].entry,
            TRANSFERRED if item.result == COPIED else result_of_copy(item.result),
        )

    def abandon(self):
        """Drop every pin, and no key; how many there were. Again is nothing."""
        return self.unpin()

    cdef uint64_t unpin(self) noexcept:
        cdef uint64_t i
        cdef uint64_t pins = 0
        if not self.is_open:
            return 0
        self.is_open = False
        for i in range(self.count):
            pins += self.begun[i].holder == i
        unpin_all(self.transfers, self.begun, self.count)
        for i in range(self.found):
            if i == 0 or self.landings[i].entry.slot != self.landings[0].entry.slot:
                unpin(self.transfers, self.landings[i].entry.slot, False)
                pins += 1
        return pins


cdef ServedTransfers serve(
    NodeMemory memory, bint remote_mode, list items, bint together, int64_t patience_ns, uint64_t count
):
    """Begin what a peer on another host asks for: `count` transfers, of which these are the first. ValueError if there
    can be no such transfers."""
    cdef ServedTransfers served = ServedTransfers(count)
    cdef CriticalSection section
    served.remote_mode = remote_mode
    served.deadline = monotonic_nanoseconds() + patience_ns
    served.together = together
    # Nobody closes the memory between the look whether it is there and our own references to it.
    enter_critical_section(&section, <PyObject *>memory)
    if memory.base != NULL:
        served.arena = memory.arena
        served.host_pool = memory.host_pool
        served.device_pool = memory.device_pool
    leave_critical_section(&section)
    if served.arena is None:
        raise failure("serve", LLMStatusCode.LLM_ENGINE_FINALIZED, "the caches have been given up")
    served.is_open = True
    served.take(items)
    return served
