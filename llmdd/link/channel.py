"""A TCP connection that carries messages."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, TypeVar, overload

from llmdd.transport.peer_timeout import probing, watch_for_a_dead_host

from .messages import (
    HEADER,
    MAX_BULK_PAYLOAD,
    MAX_PAYLOAD,
    Message,
    ProtocolError,
    decode,
    frame,
    largest_payload,
    payload_length,
)

_M = TypeVar("_M")
_N = TypeVar("_N")
_O = TypeVar("_O")

# What may wait to be sent: an answer and a request with a piece of memory each, and the short messages behind them.
_MAX_UNSENT = 3 * MAX_BULK_PAYLOAD


class ConnectionEnded(ProtocolError):
    """The other end closed the connection where more was to come."""


class Channel:
    """Sends and receives messages over a connected, non-blocking socket, which it owns.

    Attributes
    ----------
    owned
        Whether it belongs to a session, which will close it, or has been released.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._pid = os.getpid()
        self.owned = False
        self._silence_s = 0
        self._unsent = bytearray()
        self._sending_on: asyncio.AbstractEventLoop | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()

    def send(self, message: Message) -> None:
        """Say ``message`` without waiting: what the socket's buffer does not take is sent as the other end listens.

        More than an end ever has to say means that the other end has stopped listening. Then, as when the connection
        is broken already, this raises ``OSError``.
        """
        self._unsent += frame(message)
        if not self._flushed.is_set():
            if len(self._unsent) > _MAX_UNSENT:
                self.hang_up()
                raise ConnectionAbortedError("the other end does not take what it is sent")
            return
        try:
            self._send_some()
        except OSError:
            self._unsent.clear()
            raise
        if self._unsent:
            self._flushed.clear()
            self._sending_on = asyncio.get_running_loop()
            self._sending_on.add_writer(self._socket, self._writable)

    def _send_some(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        del self._unsent[:sent]

    def _writable(self) -> None:
        try:
            self._send_some()
        except OSError:
            self._unsent.clear()  # whoever listens will find the connection broken
        if not self._unsent:
            self._stop_sending()

    def _stop_sending(self) -> None:
        if self._sending_on is not None:
            self._sending_on.remove_writer(self._socket)
            self._sending_on = None
            self._unsent.clear()
            self._flushed.set()

    async def flush(self) -> None:
        """Until everything said has been sent, or cannot be."""
        await self._flushed.wait()

    @overload
    async def receive(self, /, *, bulk: bool = False) -> Message: ...
    @overload
    async def receive(self, first: type[_M], /) -> _M: ...
    @overload
    async def receive(self, first: type[_M], second: type[_N], /) -> _M | _N: ...
    @overload
    async def receive(self, first: type[_M], second: type[_N], third: type[_O], /) -> _M | _N | _O: ...
    async def receive(self, *expected: type[Any], bulk: bool = False) -> Any:
        """The next message, which must be one of ``expected`` if any are named. ``bulk``: if none are, it may be large.

        Raises
        ------
        ProtocolError
            If anything else comes, or the other end closes (:class:`ConnectionEnded`).
        """
        largest = max(map(largest_payload, expected), default=MAX_BULK_PAYLOAD if bulk else MAX_PAYLOAD)
        payload = await self._exactly(payload_length(await self._exactly(HEADER.size), largest))
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
            except TimeoutError:
                raise ConnectionEnded(f"its host has answered nothing for {self._silence_s} s") from None
            except OSError as error:
                raise ConnectionEnded(f"the connection broke: {error}") from None
            if not part:
                raise ConnectionEnded("the other end closed the connection")
            received += part
        return bytes(received)

    def hang_up(self) -> None:
        """Say no more and listen no more: a pending :meth:`receive` ends."""
        # A shutdown reaches every process that holds the socket. That is wanted of ours (a forked child must not keep
        # the other end waiting for the end of file), and not for a forked child to do to its parent.
        if self._socket.fileno() < 0 or os.getpid() != self._pid:
            return
        self._stop_sending()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was quicker

    def close(self) -> None:
        """Hang up and close the socket."""
        self.hang_up()
        self._socket.close()

    def abandon(self) -> None:
        """Close the socket and leave the connection to the process that this one was forked from."""
        self._socket.close()

    def watch_for_a_dead_host(self, peer_timeout_ms: int) -> None:
        """As the function of that name; only on TCP."""
        watch_for_a_dead_host(self._socket, peer_timeout_ms)
        self._silence_s = probing(peer_timeout_ms).total_s

    def release(self) -> socket.socket:
        """Give the connection away, as a blocking socket: all said has been sent, and nothing is being received."""
        sock = socket.socket(fileno=self._socket.detach())
        sock.setblocking(True)
        self.owned = True
        return sock

    async def connect_again(self) -> Channel:
        """Another channel to the same address; ``OSError`` if nobody answers there any more."""
        return await _connect(self._socket.family, self._socket.getpeername())


async def connect(host: str, port: int) -> Channel:
    """A channel to the numeric address ``host``; ``OSError`` if nobody answers there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no address: {error}") from None
    family, _, _, _, address = found[0]
    return await _connect(family, address)


async def _connect(family: int, address: Any) -> Channel:
    sock = socket.socket(family, socket.SOCK_STREAM)
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
