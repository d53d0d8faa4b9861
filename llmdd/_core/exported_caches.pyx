# cython: language_level=3
"""What peers may do with the caches of one node (see ``exported_caches.pxd``)."""

from cython cimport critical_section
from libc.stdint cimport int64_t, uint64_t

from llmdd._core.atomic cimport (
    atomic_fetch_add_word,
    atomic_fetch_clear,
    atomic_fetch_set,
    atomic_load_word,
    count_bits,
    monotonic_nanoseconds,
)
from llmdd._core.copying cimport COPIED, COPY_BAD_ADDRESS, MAPPED, OWN, Bounds, CopyResult, Piece, Place, copy_pieces
from llmdd._core.layout cimport (
    PEER_LIMIT,
    PEER_WORDS,
    POOL_COUNT,
    ArenaHeader,
    PinWords,
    Slot,
    header_of,
    pin_words,
    slot_at,
)
from llmdd._core.lifecycle cimport (
    admit_peer_bit,
    dismiss_peer,
    evict_peer,
    generation_of,
    tensor_place,
    unpin_local,
)
from llmdd._core.node_memory cimport is_closed
from llmdd._core.segments cimport Mapping
from llmdd._core.served_transfers cimport serve
from llmdd._core.status import LLMStatusCode, failure
from llmdd._core.validation cimport checked_uint64


cdef class ExportedCaches(NodeCaches):
    """The caches of one node, as the links let peers at them."""

    def export(self):
        """What a peer needs to attach: sizes for a message, and the segments' descriptors, which stay ours."""
        cdef ArenaHeader *header
        with critical_section(self.memory):
            self.memory.require_open("export")
            if not self.memory.fds:
                raise ValueError("the store's memory is private, no peer can attach to it")
            header = header_of(self.memory.base)
            return (
                {"control_bytes": header.control_bytes, "references_bytes": header.references_bytes},
                list(self.memory.fds),
            )

    def admit_peer(self):
        """A pin bit for one more peer on this host; LLMException (``LLM_FAILED``) when all are taken. Never waits."""
        cdef uint64_t bit
        cdef Mapping arena
        with critical_section(self.memory):
            self.memory.require_open("link_clusters")
            arena = self.memory.arena
        for bit in range(PEER_LIMIT):
            if not atomic_fetch_set(&self.admitted[bit // 64], <uint64_t>1 << bit % 64) >> bit % 64 & 1:
                admit_peer_bit(arena.base, bit)
                return bit
        raise failure(
            "link_clusters",
            LLMStatusCode.LLM_FAILED,
            f"{PEER_LIMIT} links to clusters of this host stand, that is the limit",
        )

    def pool_regions(self):
        """Address and bytes of each pool of ours, for a transfer engine."""
        cdef ArenaHeader *header
        cdef int pool
        with critical_section(self.memory):
            self.memory.require_open("link_clusters")
            header = header_of(self.memory.base)
            return [
                (<uint64_t>self.memory.pools[pool], header.pools[pool].bytes)
                for pool in range(POOL_COUNT)
                if header.pools[pool].configured
            ]

    def serve(self, items, together, patience_ms, count=None):
        """Begin what a peer on another host asks for (``link.transfer_messages.Wanted``): it is pinned as for a peer here.

        ``count``: how many transfers there are in all, if ``items`` are not all of them: the rest is to be taken next.

        Returns
        -------
        ServedTransfers

        Raises
        ------
        ValueError
            There can be no such transfers.
        LLMException
            ``LLM_ENGINE_FINALIZED``: the store was closed.
        """
        return serve(
            self.memory,
            self.remote_accessible,
            list(items),
            together,
            <int64_t>patience_ms * 1000000,
            len(items) if count is None else count,
        )

    def evict_peer(self, peer_bit):
        """A peer's link is down, and its process lives: what it reads is held for it no longer (protocol 11).

        What only its reads have held goes back at once; it finds out after its copy, which is refused. What it writes to
        stays held, and its bit stays taken, until :meth:`dismiss_peer`. How many caches it was reading.
        """
        cdef unsigned int bit = peer_bit
        cdef uint64_t pinned
        if is_closed(self.memory):
            return 0
        self.memory.enter("unlink_clusters")
        try:
            self.require_admitted(bit)
            with nogil:
                pinned = evict_peer(self.memory.base, bit)
            return pinned
        finally:
            self.memory.leave()

    def dismiss_peer(self, peer_bit):
        """A peer's process has gone, or has promised to transfer no more: clear its pins, settle what it left half done.

        How many caches it has held until now.
        """
        cdef unsigned int bit = peer_bit
        cdef uint64_t held
        if is_closed(self.memory):
            return 0
        self.memory.enter("unlink_clusters")
        try:
            self.require_admitted(bit)
            with nogil:
                held = dismiss_peer(self.memory.base, bit)
            # Pairs with admit_peer: whoever is given the bit next finds none of its pins left.
            atomic_fetch_clear(&self.admitted[bit // 64], <uint64_t>1 << bit % 64)
            return held
        finally:
            self.memory.leave()

    cdef int require_admitted(self, unsigned int bit) except -1:
        if bit >= PEER_LIMIT or not atomic_load_word(&self.admitted[bit // 64]) >> bit % 64 & 1:
            raise ValueError(f"peer bit {bit} was given to nobody")
        return 0

    @property
    def admitted_peers(self):
        """How many pin bits are with peers."""
        cdef int word
        return sum([count_bits(atomic_load_word(&self.admitted[word])) for word in range(PEER_WORDS)])

    # ------------------------------------------------------------ memory of the program's own

    def read_registered(self, peer_bit, slot, generation, tensor, offset, size):
        """Bytes of a registered tensor, for a peer that has pinned its cache and cannot read them itself.

        Raises
        ------
        ValueError
            There can be no such slot, or it has no such bytes.
        LLMException
            ``LLM_KV_CACHE_NOT_EXIST``: the peer holds no registered cache there, or does not any more: a request may come
            late. ``LLM_PARAM_INVALID``: the memory is not mapped any more.
        """
        cdef bytearray data = bytearray(<Py_ssize_t>checked_uint64("size", size))
        self.move_registered(peer_bit, slot, generation, tensor, offset, size, <char *>data, False)
        return bytes(data)

    def write_registered(self, peer_bit, slot, generation, tensor, offset, data):
        """Write bytes of a registered tensor, for a peer that has pinned its cache; as :meth:`read_registered`."""
        cdef bytes given = data
        self.move_registered(peer_bit, slot, generation, tensor, offset, len(given), <char *>given, True)

    cdef int move_registered(
        self, uint64_t peer_bit, uint64_t slot_number, uint64_t generation, uint64_t tensor, uint64_t offset,
        uint64_t size, char *data, bint to_tensor
    ) except -1:
        cdef Slot *slot
        cdef PinWords *words
        cdef bint pinned
        cdef Place here, there
        cdef Piece piece
        cdef Bounds bounds
        cdef uint64_t never = 0
        cdef CopyResult result
        cdef Mapping arena
        if size == 0:
            raise ValueError("nothing was asked for")
        self.memory.enter("courier")
        try:
            # Under the lock nothing is freed; the pin of our own then holds when the peer's goes.
            if peer_bit >= PEER_LIMIT or slot_number >= header_of(self.memory.base).slots_used:
                raise ValueError(f"there is no slot {slot_number}")
            slot = slot_at(self.memory.base, slot_number)
            words = pin_words(self.memory.base, header_of(self.memory.base), slot_number, peer_bit // 64)
            pinned = atomic_load_word(&words.writers if to_tensor else &words.readers) >> peer_bit % 64 & 1
            if not (pinned and slot.tenant and slot.registered and generation_of(slot) == generation):
                raise failure(
                    "courier",
                    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                    f"the peer has not pinned a registered cache of generation {generation} in slot {slot_number}",
                )
            if tensor >= slot.num_tensors or size > slot.tensor_stride or offset > slot.tensor_stride - size:
                raise ValueError(f"{size} bytes at {offset} of tensor {tensor} are beyond the cache")
            atomic_fetch_add_word(&slot.local_pins, 1)
            there.base = <char *>tensor_place(self.memory.base, slot, tensor)
            arena = self.memory.arena
        finally:
            self.memory.leave()
        there.reach = OWN
        here.base = data
        here.reach = MAPPED
        here.pid = there.pid = 0
        here.pidfd = there.pidfd = -1
        piece.source = 0 if to_tensor else offset
        piece.target = offset if to_tensor else 0
        piece.size = size
        bounds.deadline = monotonic_nanoseconds() + self.memory.timeout_ns
        bounds.broken = &never
        try:
            with nogil:
                if to_tensor:
                    result = copy_pieces(&there, &here, &piece, 1, &bounds)
                else:
                    result = copy_pieces(&here, &there, &piece, 1, &bounds)
        finally:
            unpin_local(arena.base, slot_number)
        if result == COPIED:
            return 0
        if result == COPY_BAD_ADDRESS:
            raise failure("courier", LLMStatusCode.LLM_PARAM_INVALID, "registered memory is not mapped any more")
        raise failure("courier", LLMStatusCode.LLM_TIMEOUT, "registered memory could not be copied in time")
