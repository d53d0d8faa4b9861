"""Who may knock, how many at once, and for how long."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from llmdd._core.status import LLMStatusCode

from .channel import Channel, ConnectionEnded
from .complaints import Complaints
from .keys import LinkKeys, UnusableKeys
from .messages import Converse, LinkRequest, ProtocolError, Refusal, SpeaksTLS, UnlinkRequest
from .refused import Refused
from .secure_connection import NotAuthenticated, WithoutTLS

_logger = logging.getLogger("llmdd.link")
_complaints = Complaints(_logger)

#: How long a connection may take to say what it wants.
REQUEST_TIMEOUT_S = 5.0

#: Connections that have not said yet what they want. The next one ends the oldest of them: silence keeps nobody out.
MAX_SILENT = 64

#: Requests being answered at a time. Further ones wait for their turn.
MAX_REQUESTS = 64

#: Requests that wait for their turn. Further ones are sent away.
MAX_WAITING = 448

_BACKLOG = 128

# Strangers are told of once in so long: they come as often as they like.
_STRANGERS_TOLD_OF_S = 1.0

# After the process ran out of descriptors; the connection stays in the backlog and would otherwise wake us at once.
_ACCEPT_PAUSE_S = 0.1

Request = LinkRequest | UnlinkRequest | Converse
Serve = Callable[[Channel, Request], Awaitable[None]]


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the numeric address ``host`` and ``port`` (0: any free one), or ``OSError``."""
    flags = socket.AI_PASSIVE | socket.AI_NUMERICHOST
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no address: {error}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by the connections
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts connections, hears what each wants, and has it served. Owns its socket. Lives on the event loop.

    Parameters
    ----------
    sock
        As :func:`bind` makes it.
    serve
        Serves one request. The channel is closed afterwards unless a session owns it, or it was released. Cancelled
        when the listener closes.
    keys
        By which whoever connects is to be known; None: by nothing.
    """

    def __init__(self, sock: socket.socket, serve: Serve, keys: LinkKeys | None = None) -> None:
        self._socket = sock
        self._serve = serve
        self._keys = keys
        self._strangers_told_of = float("-inf")
        self._silent: dict[asyncio.Task[None], None] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, or waits for that."""
        return bool(self._requests)

    def retire(self) -> None:
        """Stop listening. Requests that have come are answered."""
        for task in self._silent:
            task.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            if self._pause is not None:
                self._pause.cancel()
            self._socket.shutdown(socket.SHUT_RDWR)  # also for a forked child that holds the socket too
            self._socket.close()

    async def close(self) -> None:
        """Stop listening, and drop every connection that has not become a session."""
        tasks = [*self._silent, *self._requests]
        self.retire()
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abandon(self) -> None:
        """Close the socket, and nothing else: it belongs to the process that this one was forked from."""
        self._socket.close()

    def _accept(self) -> None:
        # Not by `sock_accept`: cancelled at the wrong moment it loses the connection that it has just accepted.
        try:
            sock, address = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # who knocked has gone
        except OSError as error:
            _complaints.warn("cannot accept a connection: %s", error)
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._loop.add_reader, self._socket, self._accept)
            return
        self._admit(Channel(sock), address[0])

    def _admit(self, channel: Channel, host: str) -> None:
        if len(self._silent) >= MAX_SILENT:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._hear(channel, host), name="connection")
        self._silent[task] = None
        task.add_done_callback(lambda task: self._ended(task, channel))

    async def _hear(self, channel: Channel, host: str) -> None:
        try:
            request = await asyncio.wait_for(self._request(channel), REQUEST_TIMEOUT_S)
        except asyncio.TimeoutError:
            _logger.debug("a connection was dropped: it said nothing for %s s", REQUEST_TIMEOUT_S)
            return
        except (NotAuthenticated, UnusableKeys, SpeaksTLS) as error:
            self._tell_of_stranger(host, error)
            if isinstance(error, WithoutTLS):
                channel.refuse_in_the_clear(_refusal("this end speaks only TLS: it has keys"))
            elif isinstance(error, SpeaksTLS):
                channel.refuse_in_the_clear(_refusal("this end speaks no TLS, it has no keys"))
            return
        except ConnectionEnded as error:
            _logger.debug("a connection was dropped: %s", error)
            return
        except ProtocolError as error:
            _complaints.warn("a connection was dropped: %s", error)
            return
        task = asyncio.current_task()
        assert task is not None
        self._silent.pop(task, None)
        if isinstance(request, Converse):
            await self._serve(channel, request)  # out of turn: those that are being answered wait for it
            return
        if len(self._requests) >= MAX_REQUESTS + MAX_WAITING:
            _complaints.warn("a request was dropped: %d others came before", len(self._requests))
            return
        self._requests.add(task)
        async with self._turns:
            await self._serve(channel, request)

    async def _request(self, channel: Channel) -> Request:
        if self._keys is not None:
            await channel.authenticate(self._keys.credentials(), accepts=True)
        return await channel.receive(LinkRequest, UnlinkRequest, Converse)

    def _tell_of_stranger(self, host: str, reason: Exception) -> None:
        now = self._loop.time()
        is_told = now - self._strangers_told_of >= _STRANGERS_TOLD_OF_S
        if is_told:
            self._strangers_told_of = now
        _logger.log(logging.WARNING if is_told else logging.DEBUG, "a connection from %s was dropped: %s", host, reason)

    def _ended(self, task: asyncio.Task[None], channel: Channel) -> None:
        # Here, and not in the task, because a task cancelled before its first step never runs.
        self._silent.pop(task, None)
        self._requests.discard(task)
        if not channel.owned:
            channel.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("a request failed", exc_info=error)


def _refusal(reason: str) -> Refusal:
    return Refused(LLMStatusCode.LLM_LINK_FAILED, reason).message
