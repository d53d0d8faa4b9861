# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Streams of bytes (see ``streams.pxd``)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython cimport final
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from llmdd._core.copying cimport COPIED, MAPPED, Bounds, CopyResult, Piece, Place, copy_pieces
from llmdd._core.descriptors cimport DescriptorLists
from llmdd._core.layout cimport Slot
from llmdd._core.transfer cimport (
    ALL_BLOCKS,
    BLOCKS_TO_BLOCKS,
    BY_ADDRESS,
    SLOT_TO_BLOCKS,
    SLOT_TO_SLOT,
    Transfer,
)

cdef enum:
    PIECES_AT_ONCE = 256

cdef uint64_t LARGEST_STREAM = 0x3FFFFFFFFFFFFFFF


# ---------------------------------------------------------------- which bytes of each tensor


cdef uint64_t add_run(Run *runs, uint64_t count, uint64_t begin, uint64_t size) noexcept nogil:
    """Add a run, or lengthen the last one if this one goes on where it ends; how many there are now."""
    if count and runs[count - 1].begin + runs[count - 1].size == begin:
        runs[count - 1].size += size
        return count
    runs[count].begin = begin
    runs[count].size = size
    return count + 1


cdef uint64_t runs_of_blocks(
    const uint64_t *blocks, uint64_t count, uint64_t block_bytes, uint64_t bytes, Run *runs
) noexcept nogil:
    """`bytes` cut into listed blocks; the last one may take less than a block."""
    cdef uint64_t i
    cdef uint64_t made = 0
    for i in range(count):
        made = add_run(runs, made, blocks[i] * block_bytes, min(block_bytes, bytes - i * block_bytes))
    return made


cdef inline bint lists_blocks(const Transfer *transfer, bint of_target) noexcept nogil:
    return transfer.form == BLOCKS_TO_BLOCKS or (transfer.form == SLOT_TO_BLOCKS and of_target)


cdef uint64_t block_bytes_of_target(const Transfer *transfer, const Slot *target) noexcept nogil:
    return transfer.block_bytes if transfer.addressing == BY_ADDRESS else target.row_bytes


cdef uint64_t bytes_of_tensor(const Transfer *transfer, const Slot *source, const Slot *target) noexcept nogil:
    """How many bytes of each tensor are transferred. Both sides fit: `fits` has said so."""
    if transfer.form == SLOT_TO_SLOT:
        return transfer.bytes
    if transfer.form == SLOT_TO_BLOCKS:
        return min(transfer.block_count * block_bytes_of_target(transfer, target), source.row_bytes)
    if transfer.form == ALL_BLOCKS:
        return source.row_bytes * source.row_count
    return transfer.block_count * source.row_bytes


cdef uint64_t run_capacity_of_ours(const Transfer *transfer) noexcept nogil:
    return max(1, transfer.block_count) if lists_blocks(transfer, not transfer.push) else 1


cdef uint64_t run_capacity_of_theirs(const Transfer *transfer) noexcept nogil:
    return max(1, transfer.block_count) if lists_blocks(transfer, transfer.push) else 1


cdef uint64_t runs_of_ours(const Transfer *transfer, const Slot *ours, const Slot *theirs, Run *runs) noexcept nogil:
    """The runs of the cache of who wants the transfer."""
    cdef const Slot *source = ours if transfer.push else theirs
    cdef const Slot *target = theirs if transfer.push else ours
    cdef uint64_t bytes = bytes_of_tensor(transfer, source, target)
    if lists_blocks(transfer, not transfer.push):
        return runs_of_blocks(transfer.local_blocks, transfer.block_count, ours.row_bytes, bytes, runs)
    if transfer.form == ALL_BLOCKS:
        return add_run(runs, 0, 0, bytes)
    return add_run(runs, 0, transfer.local_batch_index * ours.row_bytes, bytes)


cdef uint64_t runs_of_theirs(const Transfer *transfer, const Slot *ours, const Slot *theirs, Run *runs) noexcept nogil:
    """The runs of the cache that the key names; at an address they begin there."""
    cdef const Slot *source = ours if transfer.push else theirs
    cdef const Slot *target = theirs if transfer.push else ours
    cdef uint64_t bytes = bytes_of_tensor(transfer, source, target)
    if lists_blocks(transfer, transfer.push):
        return runs_of_blocks(
            transfer.remote_blocks,
            transfer.block_count,
            block_bytes_of_target(transfer, target) if transfer.push else theirs.row_bytes,
            bytes,
            runs,
        )
    if transfer.form == ALL_BLOCKS or transfer.addressing == BY_ADDRESS:
        return add_run(runs, 0, 0, bytes)
    return add_run(runs, 0, transfer.batch_index * theirs.row_bytes, bytes)


# ---------------------------------------------------------------- the stream


@final
cdef class Stream:
    """The bytes of several transfers at one of their ends.

    Parameters
    ----------
    capacity : int
        How many transfers there are at most.
    """

    def __cinit__(self, uint64_t capacity):
        self.items = <StreamItem *>calloc(capacity + 1, sizeof(StreamItem))
        if self.items == NULL:
            raise MemoryError(f"{capacity * sizeof(StreamItem)} bytes for {capacity} transfers")
        self.capacity = capacity
        self.all_mapped = True

    def __dealloc__(self):
        cdef uint64_t i
        if self.items == NULL:
            return
        for i in range(self.count):
            free(self.items[i].places)
            free(self.items[i].runs)
        free(self.items)

    cdef StreamItem *add(self, uint64_t tensors, uint64_t run_capacity) except NULL:
        """Room for one more transfer; the caller enters its places and runs, and closes it."""
        cdef StreamItem *item = self.items + self.count
        item.places = <Place *>malloc(tensors * sizeof(Place))
        item.runs = <Run *>malloc(run_capacity * sizeof(Run))
        self.count += 1
        if item.places == NULL or item.runs == NULL:
            raise MemoryError(f"{tensors * sizeof(Place) + run_capacity * sizeof(Run)} bytes for a transfer")
        item.tensors = tensors
        item.result = COPIED
        return item

    cdef int close_item(self, StreamItem *item) except -1:
        cdef uint64_t i
        item.begin = self.bytes
        item.tensor_bytes = 0
        for i in range(item.run_count):
            if item.runs[i].size > LARGEST_STREAM - item.tensor_bytes:
                raise ValueError("a transfer of more bytes than there can be")
            item.tensor_bytes += item.runs[i].size
        if item.tensor_bytes and item.tensors > (LARGEST_STREAM - self.bytes) // item.tensor_bytes:
            raise ValueError("a transfer of more bytes than there can be")
        self.bytes += item.tensors * item.tensor_bytes
        for i in range(item.tensors):
            self.all_mapped = self.all_mapped and item.places[i].reach == MAPPED
        return 0

    cdef uint64_t pieces(self) noexcept:
        """Of how many runs it consists."""
        cdef uint64_t i
        cdef uint64_t total = 0
        for i in range(self.count):
            total += self.items[i].tensors * self.items[i].run_count
        return total

    cdef int move(self, uint64_t begin, object buffer, bint into_tensors, const Bounds *bounds) except -1:
        """`copy` between the tensors and a buffer of Python's, as much as it holds; ValueError beyond the stream."""
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE if into_tensors else PyBUF_WRITABLE)
        try:
            if <uint64_t>view.len > self.bytes or begin > self.bytes - <uint64_t>view.len:
                raise ValueError(f"{view.len} bytes from {begin} on are beyond the {self.bytes} that are transferred")
            with nogil:
                self.copy(begin, <char *>view.buf, view.len, into_tensors, bounds)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef void copy(self, uint64_t begin, char *buffer, uint64_t size, bint into_tensors, const Bounds *bounds) noexcept nogil:
        """Move the stretch [begin, begin + size) of the stream between the tensors and `buffer`.

        What cannot be moved is passed over, and noted in the item.
        """
        cdef uint64_t i, offset, part
        for i in range(self.count):
            if size == 0:
                return
            if begin >= self.items[i].begin + self.items[i].tensors * self.items[i].tensor_bytes:
                continue
            offset = begin - self.items[i].begin
            part = min(size, self.items[i].tensors * self.items[i].tensor_bytes - offset)
            copy_item(self.items + i, offset, buffer, part, into_tensors, bounds)
            begin += part
            buffer += part
            size -= part


    cdef int describe(self, uint64_t begin, uint64_t size, uint64_t there, DescriptorLists lists) except -1:
        """Enter the stretch [begin, begin + size) of the stream, to be written to `there`, at the other end, and behind it.
        No more than the stream has: what the caller asks for is within it."""
        cdef uint64_t i, offset, part
        for i in range(self.count):
            if size == 0:
                return 0
            if begin >= self.items[i].begin + self.items[i].tensors * self.items[i].tensor_bytes:
                continue
            offset = begin - self.items[i].begin
            part = min(size, self.items[i].tensors * self.items[i].tensor_bytes - offset)
            with nogil:
                describe_item(self.items + i, offset, part, there, lists)
            begin += part
            there += part
            size -= part
        return 0


cdef int describe_item(
    const StreamItem *item, uint64_t offset, uint64_t size, uint64_t there, DescriptorLists lists
) except -1 nogil:
    cdef uint64_t tensor = offset // item.tensor_bytes
    cdef uint64_t run = 0
    cdef uint64_t part
    offset -= tensor * item.tensor_bytes
    while size:
        while offset >= item.runs[run].size:
            offset -= item.runs[run].size
            run += 1
        part = min(size, item.runs[run].size - offset)
        lists.add(<uint64_t>item.places[tensor].base + item.runs[run].begin + offset, there, part)
        there += part
        size -= part
        offset = 0
        run += 1
        if run == item.run_count:
            run = 0
            tensor += 1
    return 0


cdef void copy_item(
    StreamItem *item, uint64_t offset, char *buffer, uint64_t size, bint into_tensors, const Bounds *bounds
) noexcept nogil:
    cdef uint64_t tensor = offset // item.tensor_bytes
    cdef uint64_t part
    offset -= tensor * item.tensor_bytes
    while size and item.result == COPIED:
        part = min(size, item.tensor_bytes - offset)
        item.result = copy_tensor(item, tensor, offset, buffer, part, into_tensors, bounds)
        buffer += part
        size -= part
        offset = 0
        tensor += 1


cdef CopyResult copy_tensor(
    StreamItem *item, uint64_t tensor, uint64_t offset, char *buffer, uint64_t size, bint into_tensors, const Bounds *bounds
) noexcept nogil:
    """Move `size` bytes of one tensor, from byte `offset` of its runs on."""
    cdef Piece[PIECES_AT_ONCE] pieces
    cdef uint64_t count = 0
    cdef uint64_t run = 0
    cdef uint64_t done = 0
    cdef uint64_t part
    cdef Place here
    cdef CopyResult result = COPIED
    here.base = buffer
    here.reach = MAPPED
    here.pid = 0
    here.pidfd = -1
    while offset >= item.runs[run].size:
        offset -= item.runs[run].size
        run += 1
    while done < size:
        part = min(size - done, item.runs[run].size - offset)
        if into_tensors:
            pieces[count].source = done
            pieces[count].target = item.runs[run].begin + offset
        else:
            pieces[count].source = item.runs[run].begin + offset
            pieces[count].target = done
        pieces[count].size = part
        done += part
        offset = 0
        run += 1
        count += 1
        if count == PIECES_AT_ONCE or done == size:
            if into_tensors:
                result = copy_pieces(item.places + tensor, &here, pieces, count, bounds)
            else:
                result = copy_pieces(&here, item.places + tensor, pieces, count, bounds)
            if result != COPIED:
                return result
            count = 0
    return result
