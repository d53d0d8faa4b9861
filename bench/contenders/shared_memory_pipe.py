"""What one would write with the standard library: shared memory for the bytes, a pipe for the keys.

The owner answers from a thread, as it has other things to do. The puller asks where a request's bytes are, copies them
out of the memory that it has mapped, and tells the owner that it may forget the key, for which it does not wait.
"""

from __future__ import annotations

import os
import struct
import threading
from multiprocessing.connection import Connection, Pipe
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from ..contender import Incorrect, Unavailable
from .memcpy import BlockCopies, shared
from .pulls import Bytes, Owner, Pulls

MESSAGE = struct.Struct("<cQ")
PLACE = struct.Struct("<QQ")
ASK, RELEASE, COUNT = b"a", b"r", b"c"
ROOM = "/dev/shm"


def create(size: int) -> SharedMemory:
    """Shared memory without a name: whoever is forked from here has it, and it goes with the last of them.

    A user would attach by name, which maps the same pages; but then a process that is killed leaves them behind.
    """
    room = os.statvfs(ROOM)
    if room.f_bavail * room.f_frsize < size:
        raise Unavailable(f"{ROOM} has no room for {size} bytes: mount it larger")
    memory = SharedMemory(create=True, size=size)
    memory.unlink()
    return memory


class ServingOwner(Owner):
    """Answers what comes through a pipe: in a thread, which needs the interpreter for it."""

    def __init__(self, memory: Bytes, pipe: Connection) -> None:
        super().__init__(memory)
        self._pipe = pipe
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        size = self.memory.shape[1]
        receive, send = self._pipe.recv_bytes, self._pipe.send_bytes
        while True:
            try:
                kind, request_id = MESSAGE.unpack(receive())
            except EOFError:
                return
            if kind == ASK:
                row = self.keys.get(request_id)
                send(PLACE.pack(0, 0) if row is None else PLACE.pack(row * size, size))
            elif kind == RELEASE:
                self.release(request_id)
            else:
                send(PLACE.pack(len(self.keys), 0))


class PipePulls(Pulls):
    """Ask, copy, release, for each request; the copy is a ``memcpy``."""

    def __init__(self, size: int, count: int, computing: bool = False) -> None:
        super().__init__(size, count, computing)
        self._memory = create(size * count)
        assert self._memory.buf is not None
        self.source: memoryview = self._memory.buf[: size * count]
        rows = np.frombuffer(self.source, np.uint8).reshape(count, size)
        rows[:] = 0
        target, self.pulled = shared(count, size)
        ours = memoryview(target)
        self.targets = [ours[place : place + size] for place in range(0, size * count, size)]
        self.pipe, theirs = Pipe()
        self.owner = self.start(ServingOwner, rows, theirs)
        theirs.close()

    def run(self) -> None:
        send, receive, source = self.pipe.send_bytes, self.pipe.recv_bytes, self.source
        for target, request_id in zip(self.targets, self.requests, strict=True):
            send(MESSAGE.pack(ASK, request_id))
            place, size = PLACE.unpack(receive())
            if not size:
                raise Incorrect(f"the owner knows nothing of request {request_id}")
            target[:] = source[place : place + size]
            self.release(request_id)

    def release(self, request_id: int) -> None:
        self.pipe.send_bytes(MESSAGE.pack(RELEASE, request_id))

    def left(self) -> int:
        """Asked for through the same pipe, after all releases."""
        self.pipe.send_bytes(MESSAGE.pack(COUNT, 0))
        count: int = PLACE.unpack(self.pipe.recv_bytes())[0]
        return count


class ServingBlocksOwner(ServingOwner):
    """The owner of one cache of blocks, which stays: its key is 0."""

    def __init__(self, memory: Bytes, pipe: Connection) -> None:
        super().__init__(memory, pipe)
        self.keys[0] = 0


class PipeBlockPulls(BlockCopies):
    """Ask for the cache, then copy its blocks; where they are in it follows from their numbers."""

    def __init__(self, blocks: int, tensors: int, size: int) -> None:
        super(BlockCopies, self).__init__(blocks, tensors, size)
        self._memory = create(blocks * tensors * size)
        assert self._memory.buf is not None
        source = self._memory.buf[: blocks * tensors * size]
        rows = np.frombuffer(source, np.uint8).reshape(tensors, blocks * size)
        rows[:] = 0
        target, pulled = shared(tensors, blocks * size)
        self.pulled = pulled.reshape(tensors, blocks, size)
        self.pipe, theirs = Pipe()
        self.owner = self.start(ServingBlocksOwner, rows, theirs)
        theirs.close()
        self.copies = self.views(memoryview(target), source)

    def run(self) -> None:
        self.pipe.send_bytes(MESSAGE.pack(ASK, 0))
        _, size = PLACE.unpack(self.pipe.recv_bytes())
        if size != self.blocks * self.size:
            raise Incorrect("the owner has no cache of such blocks")
        super().run()
