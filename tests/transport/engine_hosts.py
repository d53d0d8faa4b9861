"""Engines with memory of their own, for the tests of engines."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmdd.transport.engine import Descriptors, Reading, TransferEngine

PATIENCE_S = 30.0
_numbers = itertools.count()

Bytes = NDArray[np.uint8]


def fresh_name() -> str:
    """A name that no other engine has."""
    return f"engine {next(_numbers)} of process {os.getpid()}"


@dataclass
class Host:
    """An engine and its memory, all of which it has registered."""

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
        host.engine.register(*host.region())
        return host

    def pair(self, size: int = 1 << 16) -> tuple[Host, Host, str]:
        """A reader of zeros, an owner of anything else, and the owner's name at the reader."""
        reader, owner = self.host(size), self.host(size)
        owner.memory[:] = np.random.default_rng(size).integers(1, 256, size, np.uint8)
        return reader, owner, connect(reader, owner)


def connect(reader: Host, owner: Host) -> str:
    """Make each known to the other, as a handshake does."""
    owner.engine.connect(reader.engine.metadata())
    return reader.engine.connect(owner.engine.metadata())


def complete(reading: Reading, *owners: Host) -> None:
    """Poll until all has arrived, while the owners let it proceed."""
    deadline = time.monotonic() + PATIENCE_S
    while not reading.poll():
        for owner in owners:
            owner.engine.progress()
        assert time.monotonic() < deadline, "the reading has not ended"
    reading.release()
