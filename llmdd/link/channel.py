"""A TCP connection that carries messages."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from llmdd.transport.peer_timeout import probing, watch_for_a_dead_host

from .connection import Connection
from .keys import Credentials, LinkKeys, UnusableKeys
from .messages import (
    HEADER,
    MAX_BULK_PAYLOAD,
    MAX_PAYLOAD,
    Message,
    ProtocolError,
    Refusal,
    decode,
    frame,
    largest_payload,
    payload_length,
)
from .readiness import readable
from .secure_connection import NotAuthenticated, SecureConnection

_logger = logging.getLogger("llmdd.link")

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
    credentials
        What this end has shown the other, and seen it by; None: the two do not know each other.
    peer_fingerprint
        What the other end's key is called, or empty.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket: Connection = sock
        self._pid = os.getpid()
        self.owned = False
        self.credentials: Credentials | None = None
        self.peer_fingerprint = ""
        self._silence_s = 0
        self._unsent = bytearray()
        self._sending_on: asyncio.AbstractEventLoop | None = None
        self._flushed = asyncio.Event()
        self._flushed.set()

    async def authenticate(self, credentials: Credentials, *, accepts: bool) -> None:
        """Go on under TLS, with an end that shows a key that is allowed; before anything is said. Not bounded in time.

        Raises
        ------
        NotAuthenticated
            The two do not come to know each other.
        ConnectionEnded
            The other end has gone before it has said anything, or the connection broke.
        """
        assert isinstance(self._socket, socket.socket)
        self._socket = secure = SecureConnection(self._socket, credentials, accepts=accepts)
        try:
            await secure.authenticate()
        except NotAuthenticated:
            raise
        except (EOFError, OSError) as error:
            raise ConnectionEnded(f"the connection broke before anything was said: {error}") from None
        self.credentials, self.peer_fingerprint = credentials, secure.peer_fingerprint

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
        received = bytearray()
        while len(received) < size:
            try:
                part = self._socket.recv(size - len(received))
            except BlockingIOError:
                await readable(self._socket)
                continue
            except TimeoutError:
                raise ConnectionEnded(f"its host has answered nothing for {self._silence_s} s") from None
            except OSError as error:
                raise ConnectionEnded(f"the connection broke: {error}") from None
            if not part:
                raise ConnectionEnded("the other end closed the connection")
            received += part
        return bytes(received)

    @contextmanager
    def while_it_stands(self) -> Iterator[None]:
        """What is awaited in here ends with :class:`ConnectionEnded` if the other end hangs up. Nothing is received
        meanwhile."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        has_ended = False

        def end() -> None:
            nonlocal has_ended
            has_ended = True
            loop.remove_reader(watch.fileno())
            task.cancel()

        # An epoll of its own, since the loop's cannot be asked for the end alone, and would wake us for what is said.
        watch = select.epoll()
        watch.register(self._socket, select.EPOLLRDHUP)
        loop.add_reader(watch.fileno(), end)
        try:
            yield
        except asyncio.CancelledError:
            if not has_ended:
                raise
            raise ConnectionEnded("the other end hung up meanwhile") from None
        finally:
            if os.getpid() == self._pid:
                loop.remove_reader(watch.fileno())
            watch.close()

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

    def refuse_in_the_clear(self, refusal: Refusal) -> None:
        """Say so to an end that speaks TLS where this one does not, or the other way round, as far as it hears it."""
        sock = self._socket.plain_socket if isinstance(self._socket, SecureConnection) else self._socket
        try:
            # What is unread when the connection is closed would take back what is said.
            while sock.recv(MAX_PAYLOAD):
                pass
        except OSError:
            pass
        try:
            sock.send(frame(refusal))
        except OSError as error:
            _logger.debug("whoever was refused has gone: %s", error)

    def release(self) -> Connection:
        """Give the connection away: all said has been sent, and nothing is being received."""
        self.owned = True
        return self._socket

    async def connect_again(self) -> Channel:
        """Another channel to the same address, and the same peer; ``OSError`` if it does not answer there any more."""
        assert isinstance(self._socket, (socket.socket, SecureConnection))
        channel = await _connect(self._socket.family, self._socket.getpeername())
        if self.credentials is None:
            return channel
        await _authenticated(channel, self.credentials)
        if channel.peer_fingerprint != self.peer_fingerprint:
            channel.close()
            raise NotAuthenticated("another than the peer of the link answers there")
        return channel


async def connect(host: str, port: int, keys: LinkKeys | None = None, like: Credentials | None = None) -> Channel:
    """A channel to the numeric address ``host``.

    Parameters
    ----------
    host, port
        Where.
    keys
        By which the two ends are to know each other, if they are.
    like
        Of a connection before: this end shows the key that it has shown there.

    Raises
    ------
    OSError
        Nobody answers there, or not whom the keys allow.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no address: {error}") from None
    family, _, _, _, address = found[0]
    if keys is None:
        return await _connect(family, address)
    try:
        credentials = keys.credentials() if like is None else keys.credentials_with_key_of(like)
    except UnusableKeys as error:
        raise NotAuthenticated(str(error)) from None
    return await _authenticated(await _connect(family, address), credentials)


async def _authenticated(channel: Channel, credentials: Credentials) -> Channel:
    try:
        await channel.authenticate(credentials, accepts=False)
    except ConnectionEnded as error:
        channel.close()
        raise NotAuthenticated(f"{error}; has it keys (link_key, link_allowed_keys), as this end has?") from None
    except BaseException:
        channel.close()
        raise
    return channel


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
