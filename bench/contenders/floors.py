"""What nothing in Python is faster than: a bare dictionary, a call that does nothing, a plain copy of bytes."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import numpy.typing as npt

from ..contender import Contender, require
from ..other_end import OtherEnd
from ..scattered import Scattered, write
from ..turns import Turns

FIRST_LIVE_REQUEST = 1 << 40

Identity = tuple[str, int, int]


class DictionaryLookups(Contender):
    """``dictionary[key]`` with as many entries as caches live, in the same order.

    A key of llmdd stands for a kind, a model and an id, so that is what is looked up. The keys are the
    very objects in the dictionary: it finds them identical, and never compares their elements.

    Parameters
    ----------
    live : int
        Entries.
    seed : int
        Of the order.
    """

    operations = 5_000

    def __init__(self, live: int, seed: int) -> None:
        gc.disable()  # as from the first round on
        self.turns = Turns(live, seed)
        self.identities: list[Identity] = [("request", 0, FIRST_LIVE_REQUEST + number) for number in range(live)]
        self.dictionary: dict[Identity, tuple[int, int]] = {
            identity: (number + 1, 0) for number, identity in enumerate(self.identities)
        }
        self.chosen: list[int] = []
        self.asked: list[Identity] = []

    def prepare(self, number: int) -> None:
        self.chosen = self.turns.next(self.operations)
        self.asked = [self.identities[index] for index in self.chosen]

    def run(self) -> None:
        dictionary = self.dictionary
        for identity in self.asked:
            dictionary[identity]

    def inspect(self, number: int) -> None:
        for index, identity in zip(self.chosen, self.asked, strict=True):
            answer = self.dictionary[identity]
            require(answer == (index + 1, 0), f"entry {index + 1} got {answer}")

    def verify(self) -> None:
        found = [self.dictionary.get(identity) for identity in self.identities]
        require(found == [(number + 1, 0) for number in range(len(found))], "an entry is missing or another one's")


def empty() -> None:
    """A call that does nothing."""


class EmptyCalls(Contender):
    """A call of a function of Python that does nothing: nothing is left that could be wrong but how many were made."""

    operations = 10_000

    def __init__(self) -> None:
        self.calls = self.rounds = 0

    def run(self) -> None:
        for number in range(self.operations):  # noqa: B007 - says afterwards how far it came
            empty()
        self.calls += number + 1

    def inspect(self, number: int) -> None:
        self.rounds = number + 1

    def verify(self) -> None:
        expected = self.rounds * self.operations
        require(self.calls == expected, f"{self.calls} calls were made, not {expected}")


class Writer:
    """The process that writes what is copied."""

    def __init__(self, memory: mmap.mmap, pieces: int) -> None:
        self._pieces = np.frombuffer(memory, np.uint8).reshape(pieces, -1)

    def write(self, number: int) -> None:
        write(self._pieces, number)


class Copies(Contender):
    """As many plain copies, by a ``memoryview`` assignment, from shared memory that another process wrote.

    Parameters
    ----------
    pieces : int
        Copied each round.
    piece_bytes : int
        Of each.
    in_one_operation : int
        How many copies count as one.
    seed : int, optional
        Of the orders in which pieces are read and written; without it they are as they stand.
    """

    def __init__(self, pieces: int, piece_bytes: int, in_one_operation: int = 1, seed: int | None = None) -> None:
        self.operations = pieces // in_one_operation
        source, target = mmap.mmap(-1, pieces * piece_bytes), mmap.mmap(-1, pieces * piece_bytes)
        self.writer = OtherEnd(Writer, source, pieces)
        self.scattered = Scattered(pieces, seed)
        to, origin = memoryview(target), memoryview(source)
        self.copies = [
            (to[into * piece_bytes :][:piece_bytes], origin[out_of * piece_bytes :][:piece_bytes])
            for out_of, into in zip(self.scattered.sources, self.scattered.targets, strict=True)
        ]
        self.copied: npt.NDArray[np.uint8] = np.frombuffer(target, np.uint8).reshape(pieces, piece_bytes)

    def prepare(self, number: int) -> None:
        self.writer.call("write", number)

    def run(self) -> None:
        for target, source in self.copies:
            target[:] = source

    def inspect(self, number: int) -> None:
        self.scattered.require_arrived(self.copied, number)

    def verify(self) -> None:
        copies = len(self.copies)
        require(copies == len(self.copied), f"{copies} copies are made for {len(self.copied)} pieces")

    def other_processes(self) -> list[int]:
        return [self.writer.pid]

    def close(self) -> None:
        self.writer.close()
