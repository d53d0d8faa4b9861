"""Answering peers on other hosts that ask for transfers: one thread for all of them (see ``transfer_messages``).

What a peer asks for is done at once and without the store's lock, as it would do it itself if it shared our memory;
so nobody who holds the store still (``CacheManager.paused``) holds up a transfer. Peers take turns: one that asks for
much is served in portions. The thread lets the engine proceed as long as a peer may be reading, and sleeps otherwise.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator

from msgspec.structs import replace

from llmdd._core.distant_peer import ExchangeEnded
from llmdd._core.served_transfers import ServedTransfers
from llmdd._core.status import LLMException
from llmdd._core.store import CacheStore
from llmdd.transport.engine import EngineFailed, Pace, TransferEngine
from llmdd.transport.staging import STRETCH_BYTES, Inbox, Outbox, StagingAreas, may_be_area

from .complaints import Complaints
from .connection import Connection
from .messages import ProtocolError
from .stretches import ATTEMPTS, Stretches, stretch_count, stretch_size
from .transfer_messages import (
    MAX_CARRIED,
    RECEIVED_AT_ONCE,
    Abandon,
    Answer,
    Begin,
    Begun,
    Copied,
    Finish,
    Finished,
    Found,
    Frames,
    Request,
    Unsent,
    Way,
    Written,
)
from .wakefulness import Wakefulness

_logger = logging.getLogger("llmdd.link")
_complaints = Complaints(_logger)

#: How long a request may stand open beyond the patience of who has made it: then it is taken for given up.
GRACE_S = 1.0

#: How long the engine goes on receiving what may be written here for a transfer that was given up.
RECEIVED_LATE_S = 60.0

#: How long it goes on after a peer has parted.
RECEIVED_AFTER_PARTING_S = 5.0

#: What may wait to be sent to one peer.
MAX_UNSENT = 16 << 20

_ENGINE_FAILED = ExchangeEnded.RESULTS["ENGINE_FAILED"]
_OUT_OF_TIME = ExchangeEnded.RESULTS["OUT_OF_TIME"]

# Steps between two looks at the connections, while something moves.
_STEPS_IN_A_ROW = 16

# A request is begun so many items at a time, between which others are served.
_ITEMS_AT_ONCE = 256

# How long the requests of one peer are heard before others have their turn.
_TURN_S = 0.002

# How soon to look again at what takes longer than anybody waits for it.
_LOOK_AGAIN_S = 0.002


class _Open:
    """A request that has begun and not ended."""

    def __init__(self, request: Begin, served: ServedTransfers, way: Way) -> None:
        self.number = request.number
        self.served = served
        self.way = way
        self.deadline = time.monotonic() + request.patience_ms / 1000
        self.stretches_of_push = 0

    @property
    def is_written_by_peer(self) -> bool:
        """Whether the peer's engine may be writing to us."""
        return self.way is Way.WRITTEN and self.served.pushes


class Guest:
    """One peer that asks: its connection, and what it has under way. Lives on the attendance's thread, but for
    :meth:`dismiss`."""

    def __init__(self, attendance: Attendance, sock: Connection, engine_peer: str, on_end: Callable[[], None]) -> None:
        self.socket = sock
        self.engine_peer = engine_peer
        self.on_end = on_end
        self.open: _Open | None = None
        self.last_number = 0
        self.inbox = Inbox(attendance.areas)
        self.outbox = Outbox(attendance.engine, engine_peer, attendance.areas)
        self.stretches: Stretches | None = None
        self.work: Generator[None] | None = None
        self.beginning: Generator[None] | None = None
        self.coming: ServedTransfers | None = None  # what is beginning, as far as it is pinned
        self.pins_dropped = 0
        self.is_behind = False
        self.wakefulness = Wakefulness()  # from when bytes were sent on a message until it is said that they are there
        self.is_slow = False  # its connection has not taken yet what was said
        self.unsent = Unsent(sock)
        self.frames = Frames()
        self.is_gone = False
        self._attendance = attendance

    def patience(self, now: float) -> float | None:
        """How long what it has under way can be left alone; None if there is nothing."""
        if self.is_behind or (self.open is not None and self.wakefulness.is_awake):
            return 0.0
        under_way = _LOOK_AGAIN_S if self.outbox.has_under_way else None
        if self.open is None:
            return under_way
        if (self.work is not None or self.open.is_written_by_peer) and now < self.open.deadline:
            return 0.0
        return under_way or max(_LOOK_AGAIN_S, self.open.deadline + GRACE_S - now)

    def dismiss(self, done: Callable[[int], None]) -> None:
        """Serve it no more. When nothing that it asked for holds memory ``done`` is told how many pins were dropped for
        it. From any thread; again is nothing more."""
        self._attendance.post(lambda: self._attendance.part_from(self, done))


class Attendance:
    """Serves the peers of a node that are on other hosts, until it is closed.

    Parameters
    ----------
    store
        The caches that they ask for.
    engine
        The node's, which knows its pools.

    Attributes
    ----------
    engine, areas
        The node's engine, and its staging memory.
    """

    def __init__(self, store: CacheStore, engine: TransferEngine) -> None:
        self._store = store
        self.engine = engine
        self._connections = select.epoll()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._connections.register(self._woken, select.EPOLLIN)
        self._errands: deque[Callable[[], None]] = deque()
        self._guests: dict[int, Guest] = {}  # by the descriptors of their sockets
        self._busy: set[Guest] = set()
        self._posting = threading.Lock()
        self._closed = self._ended = False
        self.areas = StagingAreas(engine, self._ring)
        self._receive_until = 0.0
        self._engine_receives = True
        self._pace = Pace()
        self._thread = threading.Thread(target=self._run, name=f"llmdd attendance {store.cluster_id}", daemon=True)
        self._thread.start()

    def admit(self, sock: Connection, engine_peer: str, on_end: Callable[[], None]) -> Guest:
        """Serve a peer over a connection, which belongs to the attendance from now on.

        ``on_end`` is called, on the attendance's thread, when the peer has hung up or broken the rules.
        """
        sock.setblocking(False)
        guest = Guest(self, sock, engine_peer, on_end)
        self.post(lambda: self._welcome(guest))
        return guest

    def post(self, errand: Callable[[], None]) -> None:
        """Have something done on the attendance's thread."""
        with self._posting:
            if not self._ended:
                self._errands.append(errand)
                self._ring()
                return
        errand()

    def close(self) -> None:
        """Serve nobody any more. Again is nothing."""
        self.post(self._end)
        self._thread.join()

    def abandon(self) -> None:
        """Close the sockets in a forked child, and leave the peers to the parent."""
        for guest in self._guests.values():
            guest.socket.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._connections.close()
        self._wake.close()
        self._woken.close()

    def _ring(self) -> None:
        try:
            self._wake.send(b"\0")
        except BlockingIOError:
            return  # it has been rung for already
        except OSError:
            return  # the attendance has ended, and with it everything that was under way

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            patience: float | None = None
            while not self._closed:
                for descriptor, events in self._connections.poll(patience):
                    guest = self._guests.get(descriptor)
                    if guest is not None:
                        self._attend(guest, events)
                    elif descriptor == self._woken.fileno():
                        self._hear_bell()
                patience = self._proceed()
                if patience == 0.0:
                    self._pace.rest()
        except Exception:
            _logger.exception("peers on other hosts are not served any more")
        finally:
            with self._posting:
                self._ended = True
            while self._errands:
                self._errands.popleft()()
            for guest in list(self._guests.values()):
                self.part_from(guest, lambda _: None)
            self._close_descriptors()

    def _end(self) -> None:
        self._closed = True

    def _hear_bell(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass
        while self._errands:
            self._errands.popleft()()

    def receive_late(self) -> None:
        """A pull of ours was given up, and a peer may be writing for it still. From any thread."""
        self._receive_until = time.monotonic() + RECEIVED_LATE_S
        self._ring()

    def _proceed(self) -> float | None:
        """Let everything that is under way go on a little; how long to sleep after that, if nobody comes."""
        now = time.monotonic()
        receiving = now < self._receive_until
        patience = _LOOK_AGAIN_S if receiving else None
        for guest in list(self._busy):
            if guest.open is not None and now > guest.open.deadline + GRACE_S:
                _logger.debug("request %d is dropped: whoever wanted it has not ended it", guest.open.number)
                self._drop(guest)
            if guest.beginning is not None:
                self._guarded(guest, self._go_on_beginning)
            elif guest.is_behind:
                self._guarded(guest, self._hear_what_has_come)
            if guest.work is not None:
                self._guarded(guest, self._work_on)
            elif guest.outbox.has_under_way:
                self._guarded(guest, lambda guest: guest.outbox.is_idle)
            receiving = receiving or (guest.open is not None and guest.open.is_written_by_peer)
            longest = guest.patience(now)
            if longest is None:
                self._busy.discard(guest)
            else:
                patience = longest if patience is None else min(patience, longest)
        if receiving:
            self._receive()
        if self.areas.has_left_over:
            self.areas.look_after_what_is_left_over()
            patience = _LOOK_AGAIN_S if patience is None else min(patience, _LOOK_AGAIN_S)
        return patience

    def _receive(self) -> None:
        try:
            for _ in range(_STEPS_IN_A_ROW):
                self.engine.progress()
        except EngineFailed as error:
            # What is on its way will not be told of as written, and its calls end by themselves.
            if self._engine_receives:
                _logger.warning("the transfer engine receives nothing: %s", error)
            self._engine_receives = False
            self._receive_until = 0.0
            time.sleep(_LOOK_AGAIN_S)  # nothing tells when it does again
        else:
            self._engine_receives = True

    def _work_on(self, guest: Guest) -> None:
        assert guest.work is not None
        for _ in range(_STEPS_IN_A_ROW):
            if next(guest.work, self) is self:
                guest.work = None
                return

    # -- guests ---------------------------------------------------------------------------------------------------

    def _welcome(self, guest: Guest) -> None:
        if guest.is_gone:
            guest.socket.close()
            return
        self._guests[guest.socket.fileno()] = guest
        self._connections.register(guest.socket, select.EPOLLIN)
        self._guarded(guest, self._hear)  # what came behind the first word, and was received with it

    def part_from(self, guest: Guest, done: Callable[[int], None]) -> None:
        """On the thread: drop everything that a guest has under way."""
        if self._guests.pop(guest.socket.fileno(), None) is not None:
            self._busy.discard(guest)
            try:
                self._connections.unregister(guest.socket)
            except FileNotFoundError:
                _logger.debug("a conversation's descriptor was closed behind our back")
            guest.pins_dropped = self._drop(guest)
            guest.inbox.close()
            guest.outbox.leave()
            guest.socket.close()
            # If the peer has died, the engine finds out by looking, and gives back what it had for it.
            self._receive_until = max(self._receive_until, time.monotonic() + RECEIVED_AFTER_PARTING_S)
        guest.is_gone = True
        done(guest.pins_dropped)

    def _drop(self, guest: Guest) -> int:
        """End the request that is open without dropping a key; how many pins it had."""
        pins = 0
        guest.work = guest.stretches = None
        if guest.coming is not None:
            pins += guest.coming.abandon()
        if guest.beginning is not None:
            guest.beginning.close()
            guest.beginning = None
        if guest.open is not None:
            if guest.open.is_written_by_peer:
                self._receive_until = time.monotonic() + RECEIVED_LATE_S
            pins += guest.open.served.abandon()
            guest.open = None
        return pins

    def _attend(self, guest: Guest, events: int) -> None:
        if events & select.EPOLLOUT:
            self._guarded(guest, self._send_unsent)
        if events & ~select.EPOLLOUT and not guest.is_gone:
            self._guarded(guest, self._hear)

    def _guarded(self, guest: Guest, work: Callable[[Guest], object]) -> None:
        """Whatever goes wrong with one guest ends its visit, and touches no other."""
        try:
            work(guest)
            return
        except (ProtocolError, ValueError) as error:
            _complaints.warn("the conversation with %s is dropped: %s", guest.engine_peer, error)
        except OSError as error:
            _logger.debug("the conversation with %s has ended: %s", guest.engine_peer, error)
        except LLMException as error:
            _logger.debug("a conversation ends: %s", error)
        except Exception:
            _logger.exception("a conversation is dropped")
        self.part_from(guest, lambda _: guest.on_end())

    def _hear(self, guest: Guest) -> None:
        if guest.is_behind:
            return
        try:
            data = guest.socket.recv(RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the peer has hung up")
        guest.frames.feed(data)
        guest.wakefulness.end()
        self._busy.add(guest)
        self._pace.restart()
        self._hear_what_has_come(guest)

    def _hear_what_has_come(self, guest: Guest) -> None:
        """Serve what a guest has asked for, one request after the other, until its turn is over."""
        turn_ends = time.monotonic() + _TURN_S
        guest.is_behind = True
        while guest.beginning is None and (request := guest.frames.next_request()) is not None:
            self._serve(guest, request)
            if time.monotonic() > turn_ends:
                return
        guest.is_behind = guest.beginning is not None

    def _say(self, guest: Guest, answer: Answer) -> None:
        guest.unsent.add(answer)
        # Those to requests that were given up may wait there for their reader.
        if guest.unsent.size > MAX_UNSENT:
            raise ProtocolError("the peer does not take what it is sent")
        self._send_unsent(guest)

    def _send_unsent(self, guest: Guest) -> None:
        has_unsent = not guest.unsent.send()
        if has_unsent != guest.is_slow:
            guest.is_slow = has_unsent
            self._connections.modify(guest.socket, select.EPOLLIN | (select.EPOLLOUT if has_unsent else 0))

    # -- requests -------------------------------------------------------------------------------------------------

    def _serve(self, guest: Guest, request: Request) -> None:
        if isinstance(request, Begin):
            self._begin(guest, request)
            return
        is_open = guest.open is not None and guest.open.number == request.number
        if isinstance(request, Abandon) and not is_open:
            return  # of one that has ended, or whose Begin never came to be sent
        if request.number > guest.last_number:
            raise ProtocolError(f"{type(request).__name__} {request.number} is of no request that has begun")
        if isinstance(request, Finish):
            results = self._finish(guest, request) if is_open else [_OUT_OF_TIME] * len(request.succeeded)
            self._say(guest, Finished(request.number, results))
        elif not is_open:
            return  # of one that we have given up since
        elif isinstance(request, Abandon):
            self._drop(guest)
        elif isinstance(request, Copied):
            if guest.stretches is not None:
                guest.stretches.allow_one_more()
        else:
            self._copy_on(guest, request)

    def _begin(self, guest: Guest, request: Begin) -> None:
        if guest.open is not None:
            raise ProtocolError(f"Begin {request.number} while {guest.open.number} is open")
        if request.number <= guest.last_number:
            raise ProtocolError(f"Begin {request.number} after {guest.last_number}")
        if not may_be_area(request.staging):
            raise ProtocolError(f"Begin {request.number} says that there is staging memory at {request.staging:#x}")
        guest.last_number = request.number
        if request.metadata:
            self._take_news(guest, request.metadata)
        guest.beginning = self._beginning(guest, request)
        self._go_on_beginning(guest)

    def _go_on_beginning(self, guest: Guest) -> None:
        assert guest.beginning is not None
        self._pace.restart()
        if next(guest.beginning, self) is self:
            guest.beginning = None

    def _beginning(self, guest: Guest, request: Begin) -> Generator[None]:
        """Find, pin and check what is wanted, and answer: in portions, if that is much."""
        count = len(request.items)
        portions = request.portions(_ITEMS_AT_ONCE)
        served = guest.coming = self._store.serve(next(portions), request.together, request.patience_ms, count)
        try:
            for items in portions:
                yield
                served.take(items)
            found: list[Found] = []
            for begin in range(0, count, _ITEMS_AT_ONCE):
                if begin:
                    yield
                end = min(begin + _ITEMS_AT_ONCE, count)
                found += [Found(*served.describe(number)) for number in range(begin, end)]
            way = self._way(request, served)
            try:
                begun = self._answer_to(guest, request, served, way, found)
            except EngineFailed as error:
                _complaints.warn("the transfer engine cannot take part: %s", error)
                found = [Found(_ENGINE_FAILED, False, 0, 0, 0, False, 0)] * count
                begun = Begun(request.number, found, Way.NONE, b"", 0, b"")
            if not begun.has_ended(served.pushes):
                guest.open = _Open(request, served, begun.way)
            self._say(guest, begun)
            if guest.open is None:
                served.abandon()
            elif begun.way is Way.CARRIED:
                guest.wakefulness.begin()
            elif begun.way is Way.WRITTEN and not served.pushes:
                guest.stretches = Stretches(served, guest.outbox, request.staging)
                guest.work = self._write(guest, request.number, guest.stretches)
        except BaseException:
            served.abandon()
            raise
        finally:
            guest.coming = None

    def _way(self, request: Begin, served: ServedTransfers) -> Way:
        """How the bytes travel."""
        accepted = [served.is_accepted(number) for number in range(len(request.items))]
        if not any(accepted) or (request.together and not all(accepted)):
            return Way.NONE
        carried = bool(request.data) if served.pushes else served.stream_bytes <= MAX_CARRIED
        return Way.CARRIED if carried else Way.WRITTEN

    def _answer_to(self, guest: Guest, request: Begin, served: ServedTransfers, way: Way, items: list[Found]) -> Begun:
        data, staging, news = b"", 0, b""
        if way is Way.CARRIED and served.pushes:
            if len(request.data) != served.stream_bytes:
                raise ProtocolError(f"{len(request.data)} bytes came with a push of {served.stream_bytes}")
            served.scatter(0, request.data)
            results = served.finish([True] * len(items))
            items = [
                item if item.result == result else replace(item, result=result)
                for item, result in zip(items, results, strict=True)
            ]
        elif way is Way.CARRIED:
            carried = bytearray(served.stream_bytes)
            served.gather(0, carried)
            data = bytes(carried)
        elif way is Way.WRITTEN and served.pushes:
            try:
                staging, news = guest.inbox.open()
            except EngineFailed as error:
                _complaints.warn("the transfer engine has failed: %s", error)
                way, items = Way.NONE, [replace(item, result=_ENGINE_FAILED) for item in items]
        return Begun(request.number, items, way, data, staging, news)

    def _write(self, guest: Guest, number: int, stretches: Stretches) -> Generator[None]:
        """Write what is pulled, stretch by stretch, and tell of each."""
        for attempt in range(ATTEMPTS):
            try:
                while not guest.outbox.prepare():
                    yield
                while not stretches.are_written:
                    for stretch in stretches.proceed():
                        self._say(guest, Written(number, stretch, True))
                        self._pace.restart()
                    yield
                return
            except EngineFailed as error:
                _complaints.warn("the transfer engine has failed, attempt %d of %d: %s", attempt + 1, ATTEMPTS, error)
            while not guest.outbox.is_idle:
                yield
            stretches.begin_again()
        self._say(guest, Written(number, 0, False))

    def _copy_on(self, guest: Guest, request: Written) -> None:
        """A stretch of a push is in our staging memory."""
        assert guest.open is not None
        if not request.arrived:
            self._drop(guest)
            return
        served, total = guest.open.served, guest.open.served.stream_bytes
        if not guest.open.is_written_by_peer or request.stretch != guest.open.stretches_of_push:
            raise ProtocolError(f"Written {request.stretch} of a request that has no such stretch now")
        if request.stretch >= stretch_count(total):
            raise ProtocolError(f"Written {request.stretch} of a push of {stretch_count(total)} stretches")
        served.scatter(
            request.stretch * STRETCH_BYTES, guest.inbox.stretch(request.stretch, stretch_size(request.stretch, total))
        )
        guest.open.stretches_of_push += 1
        self._say(guest, Copied(request.number, request.stretch))

    def _finish(self, guest: Guest, request: Finish) -> list[int]:
        assert guest.open is not None
        finished = guest.open
        guest.open = guest.work = guest.stretches = None
        if finished.is_written_by_peer:
            is_whole = finished.stretches_of_push == stretch_count(finished.served.stream_bytes)
            if any(request.succeeded) and not is_whole:
                finished.served.abandon()
                raise ProtocolError("Finish of a push that has not been written whole")
            guest.inbox.may_be_written = guest.inbox.may_be_written and not is_whole
        try:
            return finished.served.finish(request.succeeded)
        finally:
            finished.served.abandon()

    def _take_news(self, guest: Guest, metadata: bytes) -> None:
        try:
            self.engine.refresh(guest.engine_peer, metadata)
        except EngineFailed as error:
            raise ProtocolError(f"what the peer's engine says of itself cannot be used: {error}") from None
