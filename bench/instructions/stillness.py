"""What would differ from run to run is made the same."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch


class RepeatableBytes:
    """In place of ``os.urandom``, which seeds the key indices: else it is chance how far a key stands from its home."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, size: int) -> bytes:
        self._calls += 1
        odd_constant = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: all bits differ from call to call
        return (self._calls * odd_constant % (1 << 8 * size)).to_bytes(size, "little")


class AlwaysAlive:
    """In place of ``os.pidfd_open``, which valgrind may not know: descriptors that say that the process lives.

    They are the end of a pipe that nobody writes to. The owners of all caches are in this very process.
    """

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()

    def __call__(self, pid: int, flags: int = 0) -> int:
        return os.dup(self._read_end)

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


@contextmanager
def stillness() -> Iterator[None]:
    """Nothing random, no garbage collection, nothing that valgrind does not know."""
    with ExitStack() as stack:
        alive = AlwaysAlive()
        stack.callback(alive.close)
        stack.enter_context(patch.object(os, "urandom", RepeatableBytes()))
        stack.enter_context(patch.object(os, "pidfd_open", alive))
        if gc.isenabled():
            stack.callback(gc.enable)
        gc.disable()
        yield
