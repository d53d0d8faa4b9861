"""Contenders that do something cheap, rightly and in every wrong way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from llmdd.bench.contender import Contender, Unavailable, require
from llmdd.bench.other_end import OtherEnd


def versions() -> dict[str, str]:
    return {"toys": "1.2"}


class Sum(Contender):
    """Sums the numbers up to `count`."""

    operations = 10

    def __init__(self, count: int = 1000) -> None:
        self._count = count
        self._sums: list[int] = []

    def prepare(self, number: int) -> None:
        self._sums = []

    def run(self) -> None:
        for _ in range(self.operations):
            self._sums.append(sum(range(self._count)))

    def inspect(self, number: int) -> None:
        expected = [self._count * (self._count - 1) // 2] * self.operations
        require(self._sums == expected, f"round {number}: another sum")

    def verify(self) -> None:
        require(len(self._sums) == self.operations, "sums are missing")


class Wrong(Sum):
    """From the fourth round on, quick and wrong."""

    def prepare(self, number: int) -> None:
        super().prepare(number)
        self._wrong = number >= 3

    def run(self) -> None:
        if self._wrong:
            self._sums = [0] * self.operations
        else:
            super().run()


class WrongInTheEnd(Sum):
    def verify(self) -> None:
        require(False, "something is left over")


class Raises(Sum):
    def run(self) -> None:
        raise RuntimeError("out of sums")


class RaisesInClose(Sum):
    def close(self) -> None:
        raise RuntimeError("does not go away")


class Dies(Sum):
    def run(self) -> None:
        os.write(2, b"last words")
        os.kill(os.getpid(), signal.SIGKILL)


class TakesItsNurseryAlong(Sum):
    def run(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(3600)


class CannotBeMade(Sum):
    def __init__(self) -> None:
        raise Unavailable("needs a machine with an abacus")


class FarSum:
    def __init__(self) -> None:
        self._memory = bytearray()

    def add(self, first: int, second: int) -> int:
        return first + second

    def grow(self, count: int) -> None:
        self._memory = bytearray(b"x" * count)

    def fail(self) -> None:
        raise ValueError("the far end cannot add that")

    def sleep(self) -> None:
        time.sleep(3600)


class FarSumThatDoesNotClose(FarSum):
    def close(self) -> None:
        raise ValueError("something is still open")


class Together(Sum):
    """Has a process of its own for the sums, which takes `size` bytes of memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._far = OtherEnd(FarSum)
        self._far.call("grow", size)

    def inspect(self, number: int) -> None:
        require(self._far.call("add", 1, 2) == 3, "the other end cannot add")

    def measured(self) -> dict[str, int]:
        return {"process": self._far.pid}

    def other_processes(self) -> Sequence[int]:
        return (self._far.pid,)

    def close(self) -> None:
        self._far.close()
