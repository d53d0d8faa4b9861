"""Asking the owner of caches on another host for transfers: one end of a conversation (see ``transfer_messages``).

The thread that wants the transfer talks itself, over a connection of its own, and copies what arrives itself; it is the
link's turn that keeps two threads from doing so at once.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from llmdd._core.distant_peer import ExchangeEnded
from llmdd.transport.engine import EngineFailed, Pace, TransferEngine
from llmdd.transport.staging import PARTS, STRETCH_BYTES, Inbox, Outbox, StagingAreas, may_be_area

from .complaints import Complaints
from .connection import Connection
from .messages import ProtocolError
from .stretches import ATTEMPTS, Source, Stretches, stretch_count, stretch_size
from .transfer_messages import (
    MAX_BLOCKS,
    MAX_CARRIED,
    MAX_ITEMS,
    RECEIVED_AT_ONCE,
    Abandon,
    Answer,
    Begin,
    Begun,
    Copied,
    Finish,
    Finished,
    Frames,
    Request,
    Unsent,
    Wanted,
    Way,
    Written,
)
from .wakefulness import Wakefulness

_logger = logging.getLogger("llmdd.link")
_complaints = Complaints(_logger)

_NANOSECONDS_OF_A_MILLISECOND = 1_000_000
_BLOCK_BYTES = 8

_A = TypeVar("_A", Begun, Written, Copied, Finished)


class Exchange(Source, Protocol):
    """The caches of who asks, as ``_core.distant_peer`` has them: a stream of bytes."""

    @property
    def is_broken(self) -> bool: ...
    @property
    def is_whole(self) -> bool: ...
    @property
    def pushes(self) -> bool: ...
    def lay_out_push(self) -> int: ...
    def scatter(self, begin: int, source: Any) -> None: ...


class Conversation:
    """The end that asks.

    Parameters
    ----------
    sock
        Connected to the owner's attendance; belongs to the conversation from now on.
    engine, engine_peer
        Our engine, and what the owner's is called in it.
    areas
        Our staging memory.
    given_up
        Called when a pull is given up whose bytes may still be on their way: our engine must go on receiving them.

    Attributes
    ----------
    on_end
        Called, on the thread that asks, when the connection turns out to have ended, and not by :meth:`break_off`.
    """

    #: How many transfers one request may have.
    MAX_ITEMS = MAX_ITEMS

    def __init__(
        self,
        sock: Connection,
        engine: TransferEngine,
        engine_peer: str,
        areas: StagingAreas,
        given_up: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._readable = _polled(sock, select.POLLIN)
        self._engine = engine
        self._engine_peer = engine_peer
        self._inbox = Inbox(areas)
        self._outbox = Outbox(engine, engine_peer, areas)
        self._given_up = given_up
        self.on_end: Callable[[], None] = lambda: None
        self._is_broken_off = False
        self._something_is_late = False
        self._wakefulness = Wakefulness()
        self._frames = Frames()
        self._unsent = Unsent(sock)
        self._last_number = 0

    # -- what an exchange does with it: see _core.distant_peer -----------------------------------------------------

    def begin(self, items: list[tuple[Any, ...]], together: bool, exchange: Exchange, deadline: int) -> Begun:
        """Ask for transfers. ``deadline`` is on the monotonic clock, in nanoseconds.

        Raises
        ------
        ExchangeEnded
            The time has run out, the link is lost, the owner says what cannot be, there are too many blocks, or our
            engine cannot take part.
        """
        wanted = [Wanted(*item) for item in items]
        if len(wanted) > MAX_ITEMS or max(item.block_count for item in wanted) > MAX_BLOCKS:
            raise ExchangeEnded("TOO_MANY_AT_ONCE")
        if sum(len(item.your_blocks) for item in wanted) > MAX_BLOCKS * _BLOCK_BYTES:
            raise ExchangeEnded("TOO_MANY_AT_ONCE")
        self._last_number = number = self._last_number + 1
        patience_ms = max(0, deadline - time.monotonic_ns()) // _NANOSECONDS_OF_A_MILLISECOND
        data, staging, news = b"", 0, b""
        if exchange.pushes:
            data = self._carried(exchange)
        else:
            staging, news = self._open_inbox()
        try:
            begun = self._ask(Begin(number, patience_ms, wanted, together, data, staging, news), Begun, deadline)
            if exchange.pushes and begun.way is Way.CARRIED and not data:
                raise self._unsound("what was not said is not there")
        except BaseException:
            self._give_up(number)
            raise
        if not exchange.pushes and begun.way is not Way.WRITTEN:
            self._inbox.may_be_written = self._something_is_late
        return begun

    def carry(self, begun: Begun, exchange: Exchange, deadline: int) -> None:
        """Carry the bytes of a request over; raises as :meth:`begin`, and if the engine gives up."""
        if begun.way is Way.WRITTEN:
            (self._send_stream if exchange.pushes else self._receive_stream)(begun, exchange, deadline)
            return
        if len(begun.data) != exchange.stream_bytes:
            raise ExchangeEnded("PEER_UNSOUND")
        exchange.scatter(0, begun.data)

    def finish(self, begun: Begun, succeeded: list[bool], deadline: int) -> list[int]:
        """Say which items have arrived; what became of each. Raises as :meth:`begin`: then that is not known."""
        try:
            return self._ask(Finish(begun.number, succeeded), Finished, deadline).results
        except BaseException:
            self._say(Abandon(begun.number))
            raise

    def abandon(self, begun: Begun) -> None:
        """Say that nothing more is wanted."""
        if begun.way is Way.WRITTEN:
            self._give_up(begun.number)
        else:
            self._say(Abandon(begun.number))

    def break_off(self) -> None:
        """End the wait for an answer. From any thread."""
        self._is_broken_off = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was quicker, or it is closed

    def close(self) -> None:
        """Nobody asks any more."""
        self.break_off()
        self._socket.close()
        self._inbox.close()
        self._outbox.leave()

    # -- the bytes ------------------------------------------------------------------------------------------------

    def _carried(self, exchange: Exchange) -> bytes:
        """The bytes of a push, if they are few; where some cannot be read, the owner must say first whether it fits."""
        size = exchange.lay_out_push()
        if not 0 < size <= MAX_CARRIED:
            return b""
        data = bytearray(size)
        exchange.gather(0, data)
        return bytes(data) if exchange.is_whole else b""

    def _open_inbox(self) -> tuple[int, bytes]:
        try:
            return self._inbox.open()
        except EngineFailed as error:
            raise _engine_failed(error) from None

    def _receive_stream(self, begun: Begun, exchange: Exchange, deadline: int) -> None:
        """Copy the stretches of a pull on as they arrive."""
        total = exchange.stream_bytes
        count = stretch_count(total)
        for number in range(count):
            written = self._answer(Written, begun.number, deadline, exchange)
            if not written.arrived:
                raise ExchangeEnded("ENGINE_FAILED")
            if written.stretch != number:
                raise self._unsound(f"stretch {written.stretch} is there where {number} was to come")
            exchange.scatter(number * STRETCH_BYTES, self._stretch(number, stretch_size(number, total)))
            if number + PARTS < count:
                self._send(Copied(begun.number, number), deadline)
        self._something_is_late = self._inbox.may_be_written = False

    def _stretch(self, number: int, size: int) -> memoryview:
        try:
            return self._inbox.stretch(number, size)
        except EngineFailed:
            raise ExchangeEnded("LINK_LOST") from None

    def _send_stream(self, begun: Begun, exchange: Exchange, deadline: int) -> None:
        """Write the stretches of a push to the owner, and tell of each."""
        if not may_be_area(begun.staging):
            raise self._unsound(f"there is no staging memory at {begun.staging:#x}")
        stretches = Stretches(exchange, self._outbox, begun.staging)
        pace = Pace()
        for attempt in range(ATTEMPTS):
            try:
                while not self._outbox.prepare():
                    self._look_around(exchange, deadline, pace)
                self._send_stretches(stretches, begun, exchange, deadline, pace)
                return
            except EngineFailed as error:
                _complaints.warn("the transfer engine has failed, attempt %d of %d: %s", attempt + 1, ATTEMPTS, error)
            self._require_owner()
            while not self._outbox.is_idle:
                self._look_around(exchange, deadline, pace)
            stretches.begin_again()
        raise ExchangeEnded("ENGINE_FAILED")

    def _send_stretches(
        self, stretches: Stretches, begun: Begun, exchange: Exchange, deadline: int, pace: Pace
    ) -> None:
        while True:
            for number in stretches.proceed():
                self._send(Written(begun.number, number, True), deadline)
                pace.restart()
            if stretches.are_written:
                return
            self._receive_now()
            while (answer := self._next_answer()) is not None:
                if isinstance(answer, Copied) and answer.number == begun.number:
                    stretches.allow_one_more()
                    pace.restart()
            self._look_around(exchange, deadline, pace)

    def _require_owner(self) -> None:
        """An engine gives up where the owner has gone, too: then that is what has come about."""
        while self._receive_now():
            continue

    def _look_around(self, exchange: Exchange, deadline: int, pace: Pace) -> None:
        """Between two looks at what is under way: whether it is still waited for."""
        if exchange.is_broken:
            raise ExchangeEnded("LINK_LOST")
        self._require_time(deadline)
        pace.rest()

    def _give_up(self, number: int) -> None:
        """Say that nothing more is wanted, though it may come."""
        self._something_is_late = True
        self._say(Abandon(number))
        if self._outbox.has_under_way:
            self._outbox.leave()
        self._given_up()

    # -- the messages ---------------------------------------------------------------------------------------------

    def _ask(self, request: Begin | Finish, kind: type[_A], deadline: int) -> _A:
        self._send(request, deadline)
        return self._answer(kind, request.number, deadline)

    def _answer(self, kind: type[_A], number: int, deadline: int, receiving: Exchange | None = None) -> _A:
        """The answer to a request. Answers to those that were abandoned may come before it, and what need not be heard.

        ``receiving``: the exchange whose bytes our engine receives meanwhile.
        """
        while True:
            answer = self._next_answer()
            if answer is None:
                if receiving is None:
                    self._receive(deadline)
                else:
                    self._receive_beside_engine(receiving, deadline)
            elif answer.number == number and not isinstance(answer, Copied):
                if not isinstance(answer, kind):
                    raise self._unsound(f"{type(answer).__name__} {number} comes where {kind.__name__} was to come")
                return answer
            else:
                # However much there is of what nobody waits for, the time is what it was.
                self._require_time(deadline)

    def _next_answer(self) -> Answer | None:
        try:
            answer = self._frames.next_answer()
        except ProtocolError as error:
            raise self._unsound(str(error)) from None
        if answer is None:
            return None
        if answer.number > self._last_number:
            raise self._unsound(f"{type(answer).__name__} {answer.number} answers nothing that was asked")
        if isinstance(answer, Begun) and answer.metadata:
            # Also of one that nobody waits for any more: what it says of the owner's engine is not said again.
            self._take_news(answer.metadata)
        return answer

    def _take_news(self, metadata: bytes) -> None:
        try:
            self._engine.refresh(self._engine_peer, metadata)
        except EngineFailed as error:
            raise self._unsound(f"what the owner's engine says of itself cannot be used: {error}") from None

    def _unsound(self, why: str) -> ExchangeEnded:
        """The owner breaks the rules: nothing that it says is heard any more."""
        _complaints.warn("the conversation with %s is dropped: %s", self._engine_peer, why)
        self.break_off()
        return ExchangeEnded("PEER_UNSOUND")

    def _lost(self, why: object) -> ExchangeEnded:
        _logger.debug("a conversation has ended: %s", why)
        if not self._is_broken_off:
            self.on_end()
        return ExchangeEnded("LINK_LOST")

    def _require_time(self, deadline: int) -> None:
        if time.monotonic_ns() >= deadline:
            raise ExchangeEnded("OUT_OF_TIME")

    def _receive(self, deadline: int) -> None:
        """Wait for more of an answer."""
        self._require_time(deadline)
        self._wakefulness.begin()
        while not self._receive_now():
            if self._wakefulness.is_awake:
                self._wakefulness.rest()
            else:
                self._sleep_until(self._readable, deadline)
        self._wakefulness.end()

    def _receive_beside_engine(self, exchange: Exchange, deadline: int) -> None:
        """The same, while our engine receives what the owner writes."""
        pace = Pace()
        while not self._receive_now():
            try:
                self._engine.progress()
            except EngineFailed as error:
                raise _engine_failed(error) from None
            self._look_around(exchange, deadline, pace)

    def _receive_now(self) -> bool:
        """Whether there was something to be received."""
        try:
            data = self._socket.recv(RECEIVED_AT_ONCE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost(error) from None
        if not data:
            raise self._lost("the owner has hung up")
        self._frames.feed(data)
        return True

    def _send(self, request: Request, deadline: int) -> None:
        try:
            self._unsent.add(request)
        except ValueError:
            raise ExchangeEnded("TOO_MANY_AT_ONCE") from None
        try:
            while not self._unsent.send():
                self._sleep_until(_polled(self._socket, select.POLLOUT), deadline)
        except OSError as error:
            raise self._lost(error) from None

    def _say(self, message: Abandon) -> None:
        """Tell the owner, as soon as the connection takes it; one that has ended need not be told, nor one that has not
        heard of the request."""
        if self._unsent.withdraw(message.number):
            self._inbox.tell_again()
            return
        try:
            self._send(message, time.monotonic_ns())
        except ExchangeEnded as ended:
            _logger.debug("the owner cannot be told now: %s", ended)

    def _sleep_until(self, ready: select.poll, deadline: int) -> None:
        """Sleep until the connection can be read from, or written to."""
        self._require_time(deadline)
        left_ns = max(0, deadline - time.monotonic_ns())
        ready.poll(left_ns / _NANOSECONDS_OF_A_MILLISECOND)


def _polled(sock: Connection, event: int) -> select.poll:
    ready = select.poll()
    try:
        ready.register(sock, event)
    except ValueError:
        raise ExchangeEnded("LINK_LOST") from None  # it was closed
    return ready


def _engine_failed(error: EngineFailed) -> ExchangeEnded:
    _logger.warning("the transfer engine has failed: %s", error)
    return ExchangeEnded("ENGINE_FAILED")
