"""The bytes of an arena: a second account of ``layout.pxd``, and what a peer may do to them."""

from __future__ import annotations

import ctypes
import struct
from mmap import ACCESS_READ, mmap
from typing import Any


class PageTree(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("offset", "pages", "words", "free_pages")]


class Pool(ctypes.Structure):
    _fields_ = [
        ("configured", ctypes.c_uint64),
        ("page_shift", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("tenants", ctypes.c_uint64),
        ("tree", PageTree),
    ]


class IndexEntry(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint64),
        ("model_id", ctypes.c_uint64),
        ("tag", ctypes.c_uint32),
        ("slot", ctypes.c_uint32),
        ("batch_index", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
    ]


class ArenaHeader(ctypes.Structure):
    """As in ``layout.pxd``, version 4."""

    _fields_ = [
        ("magic", ctypes.c_char * 8),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "layout_version",
                "spec_checksum",
                "incarnation",
                "cluster_id",
                "remote_accessible",
                "control_bytes",
                "references_bytes",
                "slot_capacity",
                "index_capacity",
                "index_offset",
                "slots_offset",
                "free_slots_offset",
                "registrations_offset",
                "records_offset",
                "record_capacity",
            )
        ),
        ("released_offsets", ctypes.c_uint64 * 4),
        *(
            (name, ctypes.c_uint64)
            for name in ("reference_slots_offset", "more_pins_offset", "words_offset", "word_capacity")
        ),
        ("hash_seed", ctypes.c_uint64 * 2),
        ("pools", Pool * 2),
        ("record_tree", PageTree),
        ("word_tree", PageTree),
        ("padding", ctypes.c_uint64 * 8),
        *((name, ctypes.c_uint64) for name in ("index_version", "index_bits", "index_count")),
    ]


class Slot(ctypes.Structure):
    """The beginning of one."""

    _fields_ = [
        ("gate", ctypes.c_uint64),
        ("local_pins", ctypes.c_uint64),
        ("indexed", ctypes.c_uint32),
        *((name, ctypes.c_uint8) for name in ("tenant", "held", "quarantined", "contiguous")),
        ("cache_id", ctypes.c_int64),
        ("words", ctypes.c_uint64),
    ]


class StillPeer:
    """What a peer does to an owner's references, one operation at a time: one that stands still when a test likes.

    It may have a pin bit in the first word of each slot's pins.
    """

    def __init__(self, owner: Any, peer_bit: int) -> None:
        description, fds = owner.export()
        self.peer_bit = peer_bit
        self.control = mmap(fds[0], description["control_bytes"], access=ACCESS_READ)
        self.references = mmap(fds[1], description["references_bytes"])
        self.header = ArenaHeader.from_buffer_copy(self.control[: ctypes.sizeof(ArenaHeader)])

    def close(self) -> None:
        self.control.close()
        self.references.close()

    def _change(self, offset: int, *, setting: int = 0, clearing: int = 0) -> None:
        place = offset - self.header.control_bytes
        (value,) = struct.unpack_from("<Q", self.references, place)
        struct.pack_into("<Q", self.references, place, (value | setting) & ~clearing)

    def _pins(self, slot: int, writing: bool) -> int:
        if self.peer_bit < 64:
            return int(self.header.reference_slots_offset) + 64 * slot + 8 * writing
        return int(self.header.more_pins_offset) + 16 * (15 * slot + self.peer_bit // 64 - 1) + 8 * writing

    def pin(self, slot: int, *, writing: bool = False) -> None:
        self._change(self._pins(slot, writing), setting=1 << self.peer_bit % 64)

    def unpin(self, slot: int, *, writing: bool = False) -> None:
        """As one does who finds the gate closed afterwards: mark the slot for the owner."""
        self._change(self._pins(slot, writing), clearing=1 << self.peer_bit % 64)
        for offset in self.header.released_offsets:
            self._change(offset + slot // 64 * 8, setting=1 << slot % 64)
            slot //= 64

    def has_pinned(self, slot: int, *, writing: bool = False) -> bool:
        place = self._pins(slot, writing) - self.header.control_bytes
        (value,) = struct.unpack_from("<Q", self.references, place)
        return bool(value >> self.peer_bit % 64 & 1)

    def words_offset(self, slot: int) -> int:
        """Where the reference words of a slot begin."""
        size = (self.header.free_slots_offset - self.header.slots_offset) // self.header.slot_capacity
        begin = self.header.slots_offset + slot * size
        return int(Slot.from_buffer_copy(self.control[begin : begin + ctypes.sizeof(Slot)]).words)

    def words(self, slot: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self.references, self.words_offset(slot) - self.header.control_bytes)

    def transfer_every_tensor(self, slot: int, key_words: int, tensors: int) -> None:
        """Of the slot's first key; the key itself is not dropped yet."""
        for word in range((tensors + 31) // 32):
            self._change(self.words_offset(slot) + 8 * (key_words + word), clearing=(1 << 32) - 1)
