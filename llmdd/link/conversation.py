"""Asking the owner of caches on another host for transfers: one end of a conversation (see ``transfer_messages``).

The thread that wants the transfer talks itself, over a connection of its own, and reads from the owner's memory itself;
it is the link's turn that keeps two threads from doing so at once.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from llmdd._core.distant_peer import ExchangeEnded
from llmdd.transport.engine import POLLS_IN_A_ROW, Descriptors, EngineFailed, TransferEngine
from llmdd.transport.staging import HALVES, STRETCH_BYTES, Arrived, Inflow, StagingAreas

from .messages import ProtocolError
from .transfer_messages import (
    MAX_BLOCKS,
    MAX_CARRIED,
    MAX_ITEMS,
    Abandon,
    Begin,
    Begun,
    Finish,
    Finished,
    Frames,
    Gather,
    Gathered,
    Outbox,
    Request,
    Take,
    Taken,
    Wanted,
    Way,
)

_logger = logging.getLogger("llmdd.link")

_RECEIVED_AT_ONCE = 256 * 1024
_NANOSECONDS = 1_000_000_000
_NANOSECONDS_OF_A_MILLISECOND = 1_000_000

# How long to look for an answer again and again before sleeping: about as long as one takes to come, where it comes at
# once. To fall asleep and be woken takes as long again.
_IMPATIENT_NS = 150_000
_BLOCK_BYTES = 8

_A = TypeVar("_A", Begun, Gathered, Taken, Finished)


class Exchange(Protocol):
    """The caches of who asks, as ``_core.distant_peer`` has them: a stream of bytes."""

    @property
    def stream_bytes(self) -> int: ...
    @property
    def is_broken(self) -> bool: ...
    @property
    def is_whole(self) -> bool: ...
    @property
    def pushes(self) -> bool: ...
    def lay_out_push(self) -> int: ...
    def lay_out_owners(self) -> None: ...
    def gather(self, begin: int, target: Any) -> None: ...
    def scatter(self, begin: int, source: Any) -> None: ...
    def reading(self, begin: int, size: int, here: int) -> tuple[Descriptors, Descriptors]: ...


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
    """

    #: How many transfers one request may have.
    MAX_ITEMS = MAX_ITEMS

    def __init__(self, sock: socket.socket, engine: TransferEngine, engine_peer: str, areas: StagingAreas) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._engine = engine
        self._engine_peer = engine_peer
        self._areas = areas
        self._known_serial = 0
        self._frames = Frames()
        self._outbox = Outbox(sock)
        self._last_number = 0
        self._connection_failed = False

    # -- what an exchange does with it: see _core.distant_peer -----------------------------------------------------

    def begin(
        self, items: list[tuple[Any, ...]], together: bool, staged: bool, exchange: Exchange, deadline: int
    ) -> Begun:
        """Ask for transfers. ``deadline`` is on the monotonic clock, in nanoseconds.

        Raises
        ------
        ExchangeEnded
            The time has run out, the link is lost, the owner says what cannot be, or there are too many blocks.
        """
        wanted = [Wanted(*item) for item in items]
        if len(wanted) > MAX_ITEMS or max(item.block_count for item in wanted) > MAX_BLOCKS:
            raise ExchangeEnded("TOO_MANY_AT_ONCE")
        if sum(len(item.your_blocks) + len(item.our_blocks) for item in wanted) > MAX_BLOCKS * _BLOCK_BYTES:
            raise ExchangeEnded("TOO_MANY_AT_ONCE")
        self._last_number = number = self._last_number + 1
        patience_ms = max(0, deadline - time.monotonic_ns()) // _NANOSECONDS_OF_A_MILLISECOND
        data = self._carried(exchange) if exchange.pushes else b""
        try:
            request = Begin(number, patience_ms, wanted, together, staged, data, b"")
            begun = self._ask(request, Begun, deadline, exchange.pushes and not data)
            if exchange.pushes and begun.way is Way.CARRIED and not data:
                raise ExchangeEnded("PEER_UNSOUND")
            self._take_news(begun.metadata)
        except BaseException:
            self._abandon(number)
            if exchange.pushes and not data:
                self._areas.expect_late_reader()
            raise
        return begun

    def carry(self, begun: Begun, exchange: Exchange, deadline: int) -> None:
        """Carry the bytes of a request over; raises as :meth:`begin`, and if the engine gives up."""
        if exchange.pushes:
            if begun.way is Way.STAGED:
                self._offer(begun.number, exchange, deadline)
        elif begun.way is Way.CARRIED:
            if len(begun.data) != exchange.stream_bytes:
                raise ExchangeEnded("PEER_UNSOUND")
            exchange.scatter(0, begun.data)
        else:
            self._fetch(begun, exchange, deadline)

    def finish(self, begun: Begun, succeeded: list[bool], deadline: int) -> list[int]:
        """Say which items have arrived; what became of each. Raises as :meth:`begin`: then that is not known."""
        try:
            return self._ask(Finish(begun.number, succeeded), Finished, deadline).results
        except BaseException:
            self._abandon(begun.number)
            raise

    def abandon(self, begun: Begun) -> None:
        """Say that nothing more is wanted."""
        self._abandon(begun.number)

    def break_off(self) -> None:
        """End the wait for an answer. From any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was quicker, or it is closed

    def close(self) -> None:
        """Nobody asks any more."""
        self.break_off()
        self._socket.close()

    # -- the bytes ------------------------------------------------------------------------------------------------

    def _carried(self, exchange: Exchange) -> bytes:
        """The bytes of a push, if they are few; where some cannot be read, the owner must say first whether it fits."""
        size = exchange.lay_out_push()
        if not 0 < size <= MAX_CARRIED:
            return b""
        data = bytearray(size)
        exchange.gather(0, data)
        return bytes(data) if exchange.is_whole else b""

    def _fetch(self, begun: Begun, exchange: Exchange, deadline: int) -> None:
        """Read the stream of a pull, and copy it on as it arrives."""
        total = exchange.stream_bytes
        if begun.way is Way.DIRECT:
            exchange.lay_out_owners()
        try:
            self._mend_connection()
            with Inflow(self._engine, self._engine_peer, self._areas) as inflow:
                gathering = _Gathering(self, begun, total, deadline) if begun.way is Way.STAGED else None
                stretches = _stretches(total)
                arrived_bytes = 0
                while arrived_bytes < total:
                    while inflow.has_room and (stretch := next(stretches, None)) is not None:
                        begin, size = stretch
                        if gathering is None:
                            inflow.begin(begin, size, *exchange.reading(begin, size, inflow.next_address))
                        else:
                            inflow.begin_run(begin, size, gathering.address_of_next())
                    arrived = self._wait(inflow, exchange, deadline)
                    if gathering is not None:
                        gathering.ask_for_next()
                    exchange.scatter(arrived.begin, arrived.data)
                    arrived_bytes += len(arrived.data)
        except EngineFailed as error:
            raise self._engine_failed(error) from None

    def _offer(self, number: int, exchange: Exchange, deadline: int) -> None:
        """Have the owner read the stream of a push, from our staging memory."""
        try:
            area = self._areas.take()
        except EngineFailed as error:
            raise self._engine_failed(error) from None
        try:
            waiting = False
            for count, (begin, size) in enumerate(_stretches(exchange.stream_bytes)):
                half = count % HALVES
                exchange.gather(begin, area.half(half, size))
                if waiting:
                    self._taken(number, deadline)
                news, self._known_serial = self._areas.news(self._known_serial)
                self._send(Take(number, begin, size, area.address_of(half), news), deadline)
                waiting = True
            if waiting:
                self._taken(number, deadline)
        except ExchangeEnded:
            self._areas.expect_late_reader()
            raise
        finally:
            self._areas.give_back(area, [])

    def _taken(self, number: int, deadline: int) -> None:
        if not self._answer(Taken, number, deadline, is_read_from=True).arrived:
            # The owner takes nothing of a request whose time is up.
            self._require_time(deadline)
            raise ExchangeEnded("ENGINE_FAILED")

    def _wait(self, inflow: Inflow, exchange: Exchange, deadline: int) -> Arrived:
        arrived = inflow.wait(deadline / _NANOSECONDS, lambda: exchange.is_broken)
        if arrived is None:
            raise ExchangeEnded("LINK_LOST" if exchange.is_broken else "OUT_OF_TIME")
        return arrived

    def _take_news(self, metadata: bytes) -> None:
        if metadata:
            try:
                self._engine.refresh(self._engine_peer, metadata)
            except EngineFailed as error:
                _logger.warning("what the owner's engine says of itself cannot be used: %s", error)
                raise ExchangeEnded("PEER_UNSOUND") from None

    def _mend_connection(self) -> None:
        """After the engine has failed, reach the owner's anew."""
        if self._connection_failed:
            self._engine.reconnect(self._engine_peer)
            self._connection_failed = False

    def _engine_failed(self, error: EngineFailed) -> ExchangeEnded:
        _logger.warning("the transfer engine has failed: %s", error)
        self._connection_failed = True
        return ExchangeEnded("ENGINE_FAILED")

    # -- the messages ---------------------------------------------------------------------------------------------

    def _ask(self, request: Request, kind: type[_A], deadline: int, is_read_from: bool = False) -> _A:
        self._send(request, deadline)
        return self._answer(kind, request.number, deadline, is_read_from)

    def _answer(self, kind: type[_A], number: int, deadline: int, is_read_from: bool = False) -> _A:
        """The answer to a request. Answers to those that were abandoned may come before it.

        ``is_read_from``: the owner's engine reads here before it answers.
        """
        while True:
            try:
                answer = self._frames.next_answer()
            except ProtocolError as error:
                raise self._unsound(str(error)) from None
            if answer is None:
                self._receive(deadline, is_read_from)
            elif answer.number == number:
                if not isinstance(answer, kind):
                    raise self._unsound(f"a {type(answer).__name__} is no answer to what was asked")
                return answer
            elif answer.number > number:
                raise self._unsound(f"an answer to request {answer.number}, which was not made")
            # An owner that answers what was abandoned, on and on, keeps nobody beyond his time.
            self._require_time(deadline)

    def _unsound(self, why: str) -> ExchangeEnded:
        """The owner breaks the rules: nothing that it says is heard any more."""
        _logger.warning("a conversation is dropped: %s", why)
        self.break_off()
        return ExchangeEnded("PEER_UNSOUND")

    def _receive(self, deadline: int, is_read_from: bool) -> None:
        """Wait for more of an answer."""
        patient_from = time.monotonic_ns() + _IMPATIENT_NS
        while True:
            try:
                data = self._socket.recv(_RECEIVED_AT_ONCE)
            except BlockingIOError:
                if is_read_from:
                    self._let_proceed(deadline)
                elif time.monotonic_ns() >= patient_from:
                    self._wait_until(select.POLLIN, deadline)
                continue
            except OSError as error:
                raise _lost(error) from None
            if not data:
                raise ExchangeEnded("LINK_LOST")
            self._frames.feed(data)
            return

    def _let_proceed(self, deadline: int) -> None:
        """Let the owner's engine read on."""
        self._require_time(deadline)
        try:
            for _ in range(POLLS_IN_A_ROW):
                self._engine.progress()
        except EngineFailed as error:
            raise self._engine_failed(error) from None
        time.sleep(0)  # gives up the GIL, and the processor where another process wants it

    def _require_time(self, deadline: int) -> None:
        if time.monotonic_ns() >= deadline:
            raise ExchangeEnded("OUT_OF_TIME")

    def _send(self, request: Request, deadline: int) -> None:
        try:
            self._outbox.add(request)
        except ValueError:
            raise ExchangeEnded("TOO_MANY_AT_ONCE") from None
        try:
            while not self._outbox.send():
                self._wait_until(select.POLLOUT, deadline)
        except OSError as error:
            raise _lost(error) from None

    def _abandon(self, number: int) -> None:
        """Tell the owner, as soon as the connection takes it; one that has ended need not be told."""
        self._known_serial = 0  # what was to be said of our memory may not have been
        if self._outbox.withdraw(number):
            return
        try:
            self._send(Abandon(number), time.monotonic_ns())
        except ExchangeEnded as ended:
            _logger.debug("the owner cannot be told now: %s", ended)

    def _wait_until(self, event: int, deadline: int) -> None:
        """Sleep until the connection can be read from, or written to."""
        self._require_time(deadline)
        ready = select.poll()
        try:
            ready.register(self._socket, event)
        except ValueError:
            raise ExchangeEnded("LINK_LOST") from None  # it was closed
        left_ns = max(0, deadline - time.monotonic_ns())
        ready.poll(left_ns / _NANOSECONDS_OF_A_MILLISECOND)


def _lost(error: OSError) -> ExchangeEnded:
    _logger.debug("a conversation has ended: %s", error)
    return ExchangeEnded("LINK_LOST")


class _Gathering:
    """Has the owner gather the stretches of a stream into the halves of its staging memory, one after the other.

    The first is there when the request has begun. The next one may be asked for when the one that had its half before
    has been read: that is, one stretch ahead of what is being read.
    """

    def __init__(self, conversation: Conversation, begun: Begun, total: int, deadline: int) -> None:
        self._conversation = conversation
        self._begun = begun
        self._total = total
        self._deadline = deadline
        self._next = 0
        self._asked_for = 0

    def ask_for_next(self) -> None:
        """Ask for the next stretch, if there is one and it has not been asked for."""
        begin = self._next * STRETCH_BYTES
        if self._asked_for < self._next and begin < self._total:
            size = min(STRETCH_BYTES, self._total - begin)
            request = Gather(self._begun.number, begin, size, self._next % HALVES)
            self._conversation._send(request, self._deadline)
            self._asked_for = self._next

    def address_of_next(self) -> int:
        """Where the next stretch waits, once it does."""
        if self._next > 0:
            self.ask_for_next()
            answer = self._conversation._answer(Gathered, self._begun.number, self._deadline)
            if not answer.is_there:
                # The owner gathers nothing of a request whose time is up.
                self._conversation._require_time(self._deadline)
            if not answer.is_there or answer.begin != self._next * STRETCH_BYTES:
                raise ExchangeEnded("PEER_UNSOUND")
        address = self._begun.staging + self._next % HALVES * STRETCH_BYTES
        self._next += 1
        return address


def _stretches(total: int) -> Iterator[tuple[int, int]]:
    """Where each stretch of a stream begins, and its bytes."""
    for begin in range(0, total, STRETCH_BYTES):
        yield begin, min(STRETCH_BYTES, total - begin)
