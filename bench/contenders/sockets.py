"""What one would write with the standard library: a TCP connection, a thread that answers, and what it takes at least.

The puller asks for a request's bytes, receives them into their place, and tells the owner that it may forget the key,
for which it does not wait.
"""

from __future__ import annotations

import socket
import struct
import threading

import numpy as np

from ..contender import Incorrect, require
from .pulls import BetweenProcesses, Bytes, Owner, Pulls

MESSAGE = struct.Struct("<cQ")
ASK, RELEASE, COUNT = b"a", b"r", b"c"
NUMBER = struct.Struct("<Q")

#: Bytes of what goes there and comes back in a round trip: a number, and nothing.
PING = struct.Struct("<Q56x")


def touched(rows: int, size: int) -> Bytes:
    """Ordinary memory, every page of it touched."""
    memory = np.empty((rows, size), np.uint8)
    memory[:] = 0
    return memory


def receive(connection: socket.socket, memory: memoryview) -> None:
    """Fill `memory` with what comes; :class:`EOFError` if the other end hangs up before that."""
    received = 0
    while received < len(memory):
        count = connection.recv_into(memory[received:], flags=socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other end has hung up")
        received += count


class AnsweringOwner(Owner):
    """Answers what comes over a connection, in a thread."""

    def __init__(self, rows: int, size: int, connection: socket.socket) -> None:
        super().__init__(touched(rows, size))
        self._connection = connection
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        message = bytearray(MESSAGE.size)
        rows = [memoryview(row) for row in self.memory]
        while True:
            try:
                receive(self._connection, memoryview(message))
            except EOFError:
                return
            kind, request_id = MESSAGE.unpack(message)
            if kind == ASK and request_id not in self.keys:
                self._connection.shutdown(socket.SHUT_RDWR)
            elif kind == ASK:
                self._connection.sendall(rows[self.keys[request_id]])
            elif kind == RELEASE:
                self.release(request_id)
            else:
                self._connection.sendall(NUMBER.pack(len(self.keys)))


class SocketPulls(Pulls):
    """Ask, receive, release, for each request."""

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.connection, theirs = self.hosts.connection()
        self.owner = self.start(AnsweringOwner, count, size, theirs)
        theirs.close()
        self.pulled = touched(count, size)
        self.targets = [memoryview(row) for row in self.pulled]

    def run(self) -> None:
        connection = self.connection
        for target, request_id in zip(self.targets, self.requests, strict=True):
            connection.sendall(MESSAGE.pack(ASK, request_id))
            try:
                receive(connection, target)
            except EOFError as ended:
                raise Incorrect(f"the owner knows nothing of request {request_id}") from ended
            self.release(request_id)

    def release(self, request_id: int) -> None:
        self.connection.sendall(MESSAGE.pack(RELEASE, request_id))

    def left(self) -> int:
        """Asked for over the same connection, after all releases."""
        self.connection.sendall(MESSAGE.pack(COUNT, 0))
        number = bytearray(NUMBER.size)
        receive(self.connection, memoryview(number))
        count: int = NUMBER.unpack(number)[0]
        return count


class Echo:
    """Sends back whatever comes, its number one higher, in a thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        message = bytearray(PING.size)
        while True:
            try:
                receive(self._connection, memoryview(message))
            except EOFError:
                return
            PING.pack_into(message, 0, PING.unpack(message)[0] + 1)
            self._connection.sendall(message)


class RoundTrips(BetweenProcesses):
    """What goes there and comes back over a connection, and nothing else: what one more message costs at least."""

    def __init__(self, count: int, apart: bool = False) -> None:
        super().__init__(apart)
        self.operations = count
        self.connection, theirs = self.hosts.connection()
        self.owner = self.start(Echo, theirs)
        theirs.close()
        self.message = bytearray(PING.size)
        self._played = False

    def prepare(self, number: int) -> None:
        PING.pack_into(self.message, 0, number << 32)

    def run(self) -> None:
        connection, message = self.connection, memoryview(self.message)
        for _ in range(self.operations):
            connection.sendall(message)
            receive(connection, message)

    def inspect(self, number: int) -> None:
        count = PING.unpack(self.message)[0] - (number << 32)
        self._played = True
        require(count == self.operations, f"{count} round trips of {self.operations} were made")

    def verify(self) -> None:
        require(self._played, "no round was played")
