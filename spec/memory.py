"""The memory of a node: its pools, and the addresses at which it can be read and written.

Every byte that a program can reach has an address in its :class:`AddressSpace`: the tensors of allocated caches, which
lie in a pool, and memory of the program's own, which it may register. The addresses are made up, but behave as real
ones: what was not mapped, or is no more, cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .options import PoolSettings
from .statecharts import Refused

#: Where the pool of each placement begins.
POOL_ADDRESSES = {"DEVICE": 1 << 40, "HOST": 1 << 44}
FIRST_OWN_ADDRESS = 1 << 46
ALIGNMENT = 4096


class PoolUsage(NamedTuple):
    """How full a pool is, in bytes of whole pages."""

    total_bytes: int
    free_bytes: int
    page_bytes: int


class Pool:
    """The pages of one placement, and the cache that holds each (api §3.10)."""

    def __init__(self, settings: PoolSettings) -> None:
        self.page_bytes = 1 << settings.page_shift
        self.pages = settings.memory_size >> settings.page_shift
        self.holder: dict[int, int] = {}

    def room_for(self, tensors: int, tensor_bytes: int) -> list[range] | None:
        """The pages that the tensors of a new cache would get; None if they do not all fit.

        One run for all of them at the lowest address where a free run is long enough. If there is none, tensor by
        tensor, each at the lowest address where it fits.
        """
        each = max(1, -(-tensor_bytes // self.page_bytes))
        start = self._lowest_run(tensors * each, self.holder)
        if start is not None:
            return [range(start + index * each, start + (index + 1) * each) for index in range(tensors)]
        if tensors * each > self.pages - len(self.holder):
            return None
        found: list[range] = []
        taken = set(self.holder)
        for _ in range(tensors):
            start = self._lowest_run(each, taken)
            if start is None:
                return None
            found.append(range(start, start + each))
            taken.update(found[-1])
        return found

    def could_hold(self, tensors: int, tensor_bytes: int) -> bool:
        """Whether there would be room if nothing else were here."""
        return tensors * max(1, -(-tensor_bytes // self.page_bytes)) <= self.pages

    def _lowest_run(self, length: int, taken: Iterable[int]) -> int | None:
        start = 0
        for page in sorted(taken):
            if page - start >= length:
                break
            start = page + 1
        return start if start + length <= self.pages else None

    def take(self, pages: Sequence[range], cache_id: int) -> None:
        for page in (page for run in pages for page in run):
            assert page not in self.holder, f"page {page} is taken twice"
            self.holder[page] = cache_id

    def give_back(self, pages: Sequence[range], cache_id: int) -> None:
        for page in (page for run in pages for page in run):
            assert self.holder.get(page) == cache_id, f"page {page} is not held by cache {cache_id}"
            del self.holder[page]

    def usage(self) -> PoolUsage:
        free = self.pages - len(self.holder)
        return PoolUsage(self.pages * self.page_bytes, free * self.page_bytes, self.page_bytes)


class AddressSpace:
    """What is mapped in one process: pieces of memory, each from an address on, with gaps between them."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytearray] = {}
        self.next_own_address = FIRST_OWN_ADDRESS

    def map(self, address: int, size: int) -> None:
        """Map ``size`` zero bytes at an address."""
        assert address not in self.pieces, f"{address:#x} is mapped twice"
        self.pieces[address] = bytearray(size)

    def map_own(self, size: int) -> int:
        """Map ``size`` zero bytes of the program's own, at an address that nothing else ever had or will have."""
        address = self.next_own_address
        self.map(address, size)
        whole_pages = -(-size // ALIGNMENT)
        self.next_own_address += (whole_pages + 1) * ALIGNMENT  # and a gap behind it
        return address

    def unmap(self, address: int) -> None:
        """Take away the piece that begins at an address."""
        del self.pieces[address]

    def is_mapped(self, address: int, size: int) -> bool:
        """Whether a range lies in one piece."""
        return self._piece_of(address, size) is not None

    def reach(self, address: int, size: int) -> memoryview:
        """The bytes of a range; refuses one that does not lie in one piece."""
        start = self._piece_of(address, size)
        if start is None:
            raise Refused("LLM_PARAM_INVALID", f"{size} bytes at {address:#x} are not mapped")
        return memoryview(self.pieces[start])[address - start : address - start + size]

    def _piece_of(self, address: int, size: int) -> int | None:
        if address in self.pieces and size <= len(self.pieces[address]):
            return address
        for start, piece in self.pieces.items():
            if start <= address and address + size <= start + len(piece):
                return start
        return None


class Move(NamedTuple):
    """Bytes to move: from an address of one address space to one of the same or another."""

    source: int
    target: int
    size: int


def carry_out(moves: Sequence[Move], source: AddressSpace, target: AddressSpace) -> None:
    """Move bytes, one move after the other. If not everything is mapped nothing is moved."""
    for move in moves:
        source.reach(move.source, move.size)
        target.reach(move.target, move.size)
    for move in moves:
        target.reach(move.target, move.size)[:] = bytes(source.reach(move.source, move.size))
