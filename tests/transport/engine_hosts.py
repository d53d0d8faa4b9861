"""Engines with memory of their own, for the tests of engines."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmdd.transport.engine import Descriptors, TransferEngine, Writing

PATIENCE_S = 30.0
_numbers = itertools.count()

Bytes = NDArray[np.uint8]


def fresh_name() -> str:
    """A name that no other engine has."""
    return f"engine {next(_numbers)} of process {os.getpid()}"


@dataclass
class Host:
    """An engine and its memory, all of which it has registered and may be written to."""

    engine: TransferEngine
    memory: Bytes

    def rows(self, *pieces: tuple[int, int]) -> Descriptors:
        """Descriptors of pieces (offset, bytes) of the memory."""
        base = self.memory.ctypes.data
        return np.array([(base + offset, size, 0) for offset, size in pieces], np.uint64).reshape(-1, 3)

    def region(self) -> tuple[int, int]:
        return self.memory.ctypes.data, self.memory.nbytes


@dataclass
class Hosts:
    """Opens engines that can reach each other."""

    open_engine: Callable[[str], TransferEngine]
    opened: list[TransferEngine] = field(default_factory=list)

    def engine(self) -> TransferEngine:
        engine = self.open_engine(fresh_name())
        self.opened.append(engine)
        return engine

    def host(self, size: int = 1 << 16, fill: int = 0) -> Host:
        host = Host(self.engine(), np.full(size, fill, np.uint8))
        host.engine.register(*host.region(), writable=True)
        return host

    def pair(self, size: int = 1 << 16) -> tuple[Host, Host, str]:
        """A writer of anything but zeros, a target of zeros, and the target's name at the writer."""
        writer, target = self.host(size), self.host(size)
        writer.memory[:] = np.random.default_rng(size).integers(1, 256, size, np.uint8)
        return writer, target, connect(writer, target)


def connect(writer: Host, target: Host) -> str:
    """Make each known to the other, as a handshake does."""
    target.engine.connect(writer.engine.metadata())
    return writer.engine.connect(target.engine.metadata())


def complete(writing: Writing, *targets: Host) -> None:
    """Poll until all has arrived, while the targets let it proceed."""
    deadline = time.monotonic() + PATIENCE_S
    while not writing.poll():
        for target in targets:
            target.engine.progress()
        assert time.monotonic() < deadline, "the writing has not ended"
    writing.release()
