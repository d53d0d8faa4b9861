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
from ..hosts import OneHost, TwoHosts
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


class BetweenProcesses(Contender):
    """Moves what an owner in another process has into memory of this one.

    Parameters
    ----------
    apart : bool
        The owner is on another host.
    """

    owner: OtherEnd

    def __init__(self, apart: bool) -> None:
        self.apart = apart
        self.hosts = TwoHosts() if apart else OneHost()

    def start(self, make: Callable[..., Any], *arguments: Any) -> OtherEnd:
        """The owner's process. It is forked: call this before anything that has threads is made here."""
        return OtherEnd(self.hosts.other(make), *arguments)

    def close(self) -> None:
        self.owner.close()

    def other_processes(self) -> Sequence[int]:
        return [self.owner.pid]


class Pulls(BetweenProcesses):
    """Pull the cache of each request of a round into a row of :attr:`pulled`, and release its key.

    Parameters
    ----------
    size, count : int
        Bytes of a cache, and requests in a round.
    computing : bool
        The owner's Python computes during each round without releasing its GIL.
    shuffled : bool
        What is pulled one after the other the owner does not have one after the other.
    apart : bool
        The owner is on another host.
    """

    pulled: Memories

    def __init__(
        self, size: int, count: int, computing: bool = False, shuffled: bool = False, apart: bool = False
    ) -> None:
        super().__init__(apart)
        self.size = size
        self.operations = self.count = count
        self._computing = computing
        self._order = np.arange(count)
        if shuffled:
            np.random.default_rng(0).shuffle(self._order)
        self.requests: list[int] = []
        self.places: dict[int, int] = {}
        self._computes = mmap.mmap(-1, 1)

    def start(self, make: Callable[..., Owner], *arguments: Any) -> OtherEnd:
        def owner() -> Owner:
            made = make(*arguments)
            made.computes = self._computes
            return made

        return super().start(owner)

    def prepare(self, number: int) -> None:
        first = number * self.count
        self.requests = (first + self._order).tolist()
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
        require(len(self.requests) == self.count, "no round was played")
        require(self.left() == 0, "the owner has keys left")


class BlockPulls(BetweenProcesses):
    """Pull `blocks` blocks of each of `tensors` tensors in one operation, from and to random places.

    Parameters
    ----------
    blocks, tensors, size : int
        Bytes of a block, and how many there are.
    run : int
        So many blocks lie one after the other at both ends, as when memory was handed out in larger pieces.
    apart : bool
        The owner is on another host.

    Attributes
    ----------
    sources, targets : list of int
        Block ``sources[i]`` of each tensor goes to block ``targets[i]`` of the same tensor, as block tables have it.
    pulled : sequence of arrays
        For each tensor an array of shape (blocks, size).
    """

    pulled: Memories

    def __init__(self, blocks: int, tensors: int, size: int, run: int = 1, apart: bool = False) -> None:
        super().__init__(apart)
        self.blocks, self.tensors, self.size = blocks, tensors, size
        order = np.random.default_rng(0)
        self.sources, self.targets = (_in_runs(order.permutation(blocks // run), run) for _ in range(2))
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


def _in_runs(order: npt.NDArray[np.int64], run: int) -> list[int]:
    """The blocks of the runs with the numbers `order`."""
    numbers: list[int] = (order[:, np.newaxis] * run + np.arange(run)).ravel().tolist()
    return numbers
