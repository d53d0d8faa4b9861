"""A TCP connection that carries messages."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, TypeVar, overload

from .messages import HEADER, Message, ProtocolError, decode, frame, payload_length

_M = TypeVar("_M")
_N = TypeVar("_N")


class ConnectionEnded(ProtocolError):
    """The other end closed the connection where more was to come."""


class Channel:
    """Sends and receives messages over a connected, non-blocking socket, which it owns.

    Attributes
    ----------
    owned
        Whether it belongs to a session, which will close it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._pid = os.getpid()
        self.owned = False

    def send(self, message: Message) -> None:
        """Say ``message`` without waiting.

        An end says a handful of short messages in its life. One that does not fit into the socket's buffer means that
        the other end has stopped listening, and raises ``OSError`` like any other broken connection.
        """
        data = frame(message)
        if self._socket.send(data) != len(data):
            raise ConnectionAbortedError("the other end does not take what it is sent")

    @overload
    async def receive(self) -> Message: ...
    @overload
    async def receive(self, first: type[_M], /) -> _M: ...
    @overload
    async def receive(self, first: type[_M], second: type[_N], /) -> _M | _N: ...
    async def receive(self, *expected: type[Any]) -> Any:
        """The next message, which must be one of ``expected`` if any are named.

        Raises
        ------
        ProtocolError
            If anything else comes, or the other end closes (:class:`ConnectionEnded`).
        """
        payload = await self._exactly(payload_length(await self._exactly(HEADER.size)))
        message = decode(payload)
        if expected and not isinstance(message, expected):
            raise ProtocolError(f"unexpected message {type(message).__name__}")
        return message

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        received = bytearray()
        while len(received) < size:
            try:
                part = await loop.sock_recv(self._socket, size - len(received))
            except OSError as error:
                raise ConnectionEnded(f"the connection broke: {error}") from None
            if not part:
                raise ConnectionEnded("the other end closed the connection")
            received += part
        return bytes(received)

    def finish(self) -> None:
        """Say no more; what the other end still says can be received."""
        self._shut(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Say no more and listen no more: a pending :meth:`receive` ends."""
        self._shut(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and close the socket."""
        self.hang_up()
        self._socket.close()

    def abandon(self) -> None:
        """Close the socket and leave the connection to the process that this one was forked from."""
        self._socket.close()

    def _shut(self, how: int) -> None:
        # A shutdown reaches every process that holds the socket. That is wanted of ours (a forked child must not keep
        # the other end waiting for the end of file), and not for a forked child to do to its parent.
        if self._socket.fileno() < 0 or os.getpid() != self._pid:
            return
        try:
            self._socket.shutdown(how)
        except OSError:
            return  # the other end was quicker


async def connect(host: str, port: int) -> Channel:
    """A channel to the numeric address ``host``; ``OSError`` if nobody answers there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no address: {error}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.getsockname() == sock.getpeername():
            # So it may come to be where nobody listens at a port that the kernel also gives to those who call.
            raise ConnectionRefusedError("the connection leads back to this end")
    except BaseException:
        sock.close()
        raise
    return Channel(sock)
