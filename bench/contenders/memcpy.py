"""The floor of a pull: a plain copy of the same bytes between two shared mappings, without keys and messages.

The source was written by another process a moment ago, as the source of a pull was.
"""

from __future__ import annotations

import mmap

import numpy as np

from .pulls import BlockPulls, Bytes, Owner, Pulls


def shared(rows: int, size: int) -> tuple[mmap.mmap, Bytes]:
    """Memory that processes forked from here share, every page of it touched, and an array over it."""
    mapping = mmap.mmap(-1, rows * size)
    memory = np.frombuffer(mapping, np.uint8).reshape(rows, size)
    memory[:] = 0
    return mapping, memory


class PlainOwner(Owner):
    """Writes; there are no keys to release."""

    def offer(self, first_request_id: int) -> dict[int, int]:
        self.write(first_request_id)
        return {}


class Copies(Pulls):
    """Assigns one :class:`memoryview` to another, which is a ``memcpy`` and little else."""

    def __init__(self, size: int, count: int, computing: bool = False) -> None:
        super().__init__(size, count, computing)
        source, memory = shared(count, size)
        target, self.pulled = shared(count, size)
        self.owner = self.start(PlainOwner, memory)
        ours, theirs = memoryview(target), memoryview(source)
        places = range(0, size * count, size)
        self.copies = [(ours[place : place + size], theirs[place : place + size]) for place in places]

    def run(self) -> None:
        for target, source in self.copies:
            target[:] = source


class BlockCopies(BlockPulls):
    """The same, block by block; the views of all blocks are made once, before."""

    def __init__(self, blocks: int, tensors: int, size: int) -> None:
        super().__init__(blocks, tensors, size)
        source, memory = shared(tensors, blocks * size)
        target, pulled = shared(tensors, blocks * size)
        self.pulled = pulled.reshape(tensors, blocks, size)
        self.owner = self.start(PlainOwner, memory)
        self.copies = self.views(memoryview(target), memoryview(source))

    def views(self, ours: memoryview, theirs: memoryview) -> list[tuple[memoryview, memoryview]]:
        """Where each block goes and where it comes from."""
        size, tensor_size = self.size, self.blocks * self.size
        return [
            (
                ours[begin + target * size : begin + (target + 1) * size],
                theirs[begin + source * size : begin + (source + 1) * size],
            )
            for begin in range(0, self.tensors * tensor_size, tensor_size)
            for source, target in zip(self.sources, self.targets, strict=True)
        ]

    def run(self) -> None:
        for target, source in self.copies:
            target[:] = source
