"""Handing memory over: file descriptors across an abstract Unix socket.

The socket exists for one handshake. Its name is random and stands in no file system; whoever connects must be a process
of the same user and show the token that the handshake gave it. The kernel says which process that is: the one whose
death the other end will watch for.
"""

from __future__ import annotations

import array
import asyncio
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from types import TracebackType

from llmdd.transport import local

from .messages import MAX_PAYLOAD, ProtocolError, Segments, decode, encode
from .readiness import readable

_NAME = "\0llmdd-{}"  # the leading zero makes it an abstract socket
_CREDENTIALS = struct.Struct("iII")
_FD_SIZE = array.array("i").itemsize


@dataclass(frozen=True)
class Handover:
    """What the other end handed over. Closing it closes the descriptors; what was mapped from them stays mapped."""

    segments: Segments
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class SegmentSocket:
    """A connection over which each end hands its memory over once. Owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @property
    def peer_pid(self) -> int:
        """The process at the other end, as the kernel knows it."""
        return self._credentials()[0]

    def require_same_user(self) -> None:
        """:class:`ProtocolError` if the other end runs as another user: memory is shared with nobody else."""
        user = self._credentials()[1]
        if user != os.geteuid():
            raise ProtocolError(f"a process of user {user} asks for memory of user {os.geteuid()}")

    def send(self, segments: Segments, fds: tuple[int, ...]) -> None:
        """Hand over ``fds`` and their description; the descriptors here stay open."""
        socket.send_fds(self._socket, [encode(segments)], list(fds))

    async def receive(self) -> Handover:
        """What the other end hands over, for the caller to close."""
        while True:
            try:
                return self._receive_now()
            except BlockingIOError:
                await readable(self._socket)

    def _receive_now(self) -> Handover:
        space = socket.CMSG_SPACE(local.MAX_SEGMENTS * _FD_SIZE)
        try:
            payload, ancillary, flags, _ = self._socket.recvmsg(MAX_PAYLOAD, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise ProtocolError(f"the other end broke off the handover: {error}") from None
        fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a handover of more than a handover can be")
            if not payload:
                raise ProtocolError("the other end closed without handing over its memory")
            segments = decode(payload)
            if not isinstance(segments, Segments):
                raise ProtocolError(f"unexpected message {type(segments).__name__}")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Handover(segments, tuple(fds))

    def _credentials(self) -> tuple[int, int]:
        pid, user, _ = _CREDENTIALS.unpack(
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return pid, user

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> SegmentSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Rendezvous:
    """A place for one handover: a listening socket under a random name."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(16)
        self._socket = _unix_socket()
        try:
            self._socket.bind(_NAME.format(self.name))
            self._socket.listen(1)
        except BaseException:
            self._socket.close()
            raise

    async def accept(self) -> SegmentSocket:
        """The next process that comes."""
        while True:
            try:
                # Not by `sock_accept`: cancelled at the wrong moment it loses what it has just accepted.
                connection, _ = self._socket.accept()
            except BlockingIOError:
                await readable(self._socket)
            else:
                connection.setblocking(False)
                return SegmentSocket(connection)

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


async def come_to(name: str) -> SegmentSocket:
    """A connection to the rendezvous ``name``; ``OSError`` if it is over."""
    sock = _unix_socket()
    try:
        await asyncio.get_running_loop().sock_connect(sock, _NAME.format(name))
        return SegmentSocket(sock)
    except BaseException:
        sock.close()
        raise


def _unix_socket() -> socket.socket:
    # Packets, so that a description and its descriptors arrive together or not at all.
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
