"""A process whose engine's memory another reads: prints what the other needs, and proceeds until its input ends."""

from __future__ import annotations

import json
import os
import select
import sys

import numpy as np

from llmdd.transport.nixl import NixlEngine

# Seconds between two turns in which nobody has asked for anything.
_PAUSE_S = 0.0005


def main(size: int) -> None:
    engine = NixlEngine(f"owner of process {os.getpid()}")
    memory = np.random.default_rng(size).integers(1, 256, size, np.uint8)
    engine.register(memory.ctypes.data, memory.nbytes)
    print(json.dumps([engine.metadata().hex(), memory.ctypes.data]), flush=True)
    while not select.select([sys.stdin], [], [], _PAUSE_S)[0]:
        engine.progress()
    engine.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
