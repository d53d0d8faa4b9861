"""A process with an engine, which writes and is written to: tells what others need, and does as it is told.

It prints its metadata and where its memory is, proceeds all the time, and takes orders from its input, one a line, in
JSON. ``{"write_to": metadata, "address": ..., "times": ...}`` writes all its memory to a peer's that often, or for ever
if that is 0, and answers with one line when it has, or cannot. ``{"matches": seeds}`` answers whether the memory is
what :func:`content` makes of them. ``{"register": size}`` registers that much more, and answers with the new metadata.
It closes its engine when its input ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdd.transport.engine import Descriptors, EngineFailed, TransferEngine, Writing
from llmdd.transport.nixl import NixlEngine

# Seconds between two turns in which nobody has asked for anything.
_PAUSE_S = 0.0005


def content(size: int, *seeds: int) -> NDArray[np.uint8]:
    """Bytes that depend on seeds, a part of equal size on each: none is zero but with seed 0, with which all are."""
    return np.concatenate([_part(seed, size // len(seeds)) for seed in seeds])


def _part(seed: int, size: int) -> NDArray[np.uint8]:
    if seed == 0:
        return np.zeros(size, np.uint8)
    # Repeated, since it takes its time to make; as long as a prime, so that nothing out of place looks right.
    return np.resize(np.random.default_rng(seed).integers(1, 256, 65521, np.uint8), size)


class Process:
    """The engine, its memory, and what is under way."""

    def __init__(self, seed: int, size: int) -> None:
        self.engine: TransferEngine = NixlEngine(f"engine of process {os.getpid()}")
        self.memory = content(size, seed)
        self.engine.register(self.memory.ctypes.data, size, writable=True)
        self._more: list[NDArray[np.uint8]] = []
        self._writing: Writing | None = None
        self._peer = ""
        self._there = 0
        self._left = 0
        say([self.engine.metadata().hex(), self.memory.ctypes.data])

    def proceed(self) -> None:
        self.engine.progress()
        if self._writing is None:
            return
        try:
            if not self._writing.poll():
                return
        except EngineFailed as failure:
            self._writing = None
            say(str(failure))
            return
        self._writing.release()
        self._left -= 1
        if self._left == 0:
            self._writing = None
            say("written")
        else:
            self._write()

    def obey(self, order: dict[str, Any]) -> None:
        if "matches" in order:
            say(bool(np.array_equal(self.memory, content(self.memory.nbytes, *order["matches"]))))
            return
        if "register" in order:
            self._more.append(np.zeros(order["register"], np.uint8))
            self.engine.register(self._more[-1].ctypes.data, self._more[-1].nbytes, writable=True)
            say(self.engine.metadata().hex())
            return
        self._peer = self.engine.connect(bytes.fromhex(order["write_to"]))
        self._there = order["address"]
        self._left = order["times"]
        self._write()

    @property
    def is_writing(self) -> bool:
        return self._writing is not None

    def _write(self) -> None:
        here, there = self._all_at(self.memory.ctypes.data), self._all_at(self._there)
        try:
            self._writing = self.engine.write(self._peer, here, there)
        except EngineFailed as failure:  # it was known already that the peer is gone
            self._writing = None
            say(str(failure))

    def _all_at(self, address: int) -> Descriptors:
        return np.array([[address, self.memory.nbytes, 0]], np.uint64)


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def main(seed: int, size: int) -> None:
    process = Process(seed, size)
    while True:
        if select.select([sys.stdin], [], [], 0 if process.is_writing else _PAUSE_S)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            process.obey(json.loads(line))
        process.proceed()
    process.engine.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
