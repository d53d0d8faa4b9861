"""What everybody who pulls does alike: payloads that are new each round, keys, and what is checked after a round.

The owner is a process of its own. It writes the bytes before each round; what a round pulled is compared byte for byte
after it, and the owner must have none of the round's keys left.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import payload
from ..contender import Contender, require
from ..other_end import OtherEnd
from .computation import Computation

Bytes = npt.NDArray[np.uint8]
Memories = Sequence[npt.NDArray[Any]] | npt.NDArray[Any]

#: How long an owner may take until it computes.
PATIENCE_S = 30.0


class Owner:
    """Has the bytes, in its own process.

    Parameters
    ----------
    memory : array of uint8
        A row for each request of a round, or a tensor of blocks after the other.

    Attributes
    ----------
    computes : mmap
        Tells the puller that this process computes, see :class:`.computation.Computation`.
    """

    computes: mmap.mmap

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.keys: dict[int, int] = {}
        self._computation: Computation | None = None

    def offer(self, first_request_id: int) -> dict[int, int]:
        """Write the payload of each request into its row; the rows by request."""
        self.write(first_request_id)
        self.keys.update((first_request_id + row, row) for row in range(len(self.memory)))
        return self.keys

    def write(self, first_seed: int) -> None:
        """Fill the rows with payloads, one seed after the other."""
        for row, memory in enumerate(self.memory):
            payload.fill(memory, first_seed + row)

    def release(self, request_id: int) -> None:
        """A puller has the bytes: forget the key."""
        del self.keys[request_id]

    def left(self) -> int:
        """How many keys have not been released."""
        return len(self.keys)

    def begin_computing(self) -> None:
        self._computation = Computation(self.computes)

    def end_computing(self) -> int:
        """How many powers were computed meanwhile."""
        assert self._computation is not None
        return self._computation.end()


class Pulls(Contender):
    """Pull the cache of each request of a round into a row of :attr:`pulled`, and release its key.

    Parameters
    ----------
    size, count : int
        Bytes of a cache, and requests in a round.
    computing : bool
        The owner's Python computes during each round without releasing its GIL.
    """

    owner: OtherEnd
    pulled: Memories

    def __init__(self, size: int, count: int, computing: bool = False) -> None:
        self.size = size
        self.operations = count
        self._computing = computing
        self.requests = range(0)
        self.places: dict[int, int] = {}
        self._computes = mmap.mmap(-1, 1)

    def start(self, make: Callable[..., Owner], *arguments: Any) -> OtherEnd:
        """The owner's process. It is forked: call this before anything that has threads is made here."""

        def owner() -> Owner:
            made = make(*arguments)
            made.computes = self._computes
            return made

        return OtherEnd(owner)

    def prepare(self, number: int) -> None:
        first = number * self.operations
        self.requests = range(first, first + self.operations)
        self.places = self.owner.call("offer", first)
        if self._computing:
            self.owner.call("begin_computing")
            self._await_computation()

    def _await_computation(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._computes[0]:
            require(time.monotonic() < deadline, "the owner does not compute")
            time.sleep(0.001)

    def inspect(self, number: int) -> None:
        if self._computing:
            require(self.owner.call("end_computing") > 1, "the owner did not compute")
        for row, request_id in enumerate(self.requests):
            payload.require(self.pulled[row], request_id, f"request {request_id}")
        left = self.left()
        require(left == 0, f"the owner has {left} keys left that were not released")

    def left(self) -> int:
        found: int = self.owner.call("left")
        return found

    def verify(self) -> None:
        require(len(self.requests) == self.operations, "no round was played")
        require(self.left() == 0, "the owner has keys left")

    def close(self) -> None:
        self.owner.close()

    def other_processes(self) -> Sequence[int]:
        return [self.owner.pid]


class BlockPulls(Contender):
    """Pull `blocks` blocks of each of `tensors` tensors in one operation, from and to random places.

    Attributes
    ----------
    sources, targets : list of int
        Block ``sources[i]`` of each tensor goes to block ``targets[i]`` of the same tensor, as block tables have it.
    pulled : sequence of arrays
        For each tensor an array of shape (blocks, size).
    """

    owner: OtherEnd
    pulled: Memories

    def __init__(self, blocks: int, tensors: int, size: int) -> None:
        self.blocks, self.tensors, self.size = blocks, tensors, size
        order = np.random.default_rng(0)
        self.sources, self.targets = order.permutation(blocks).tolist(), order.permutation(blocks).tolist()
        self._rounds = 0

    def prepare(self, number: int) -> None:
        self.owner.call("write", number * self.tensors)

    def inspect(self, number: int) -> None:
        expected = np.empty((self.blocks, self.size), np.uint8)
        for tensor, pulled in enumerate(self.pulled):
            payload.fill(expected, number * self.tensors + tensor)
            arrived = np.array_equal(pulled[self.targets], expected[self.sources])
            require(arrived, f"tensor {tensor}: a block does not have the bytes of the owner's")
        self._rounds += 1

    def verify(self) -> None:
        require(self._rounds > 0, "no round was played")

    def close(self) -> None:
        self.owner.close()

    def other_processes(self) -> Sequence[int]:
        return [self.owner.pid]
