"""Answering peers on other hosts that ask for transfers: one thread for all of them (see ``transfer_messages``).

What a peer asks for is done at once and without the store's lock, as it would do it itself if it shared our memory;
so nobody who holds the store still (``CacheManager.paused``) holds up a transfer. The thread lets the engine proceed as
long as a peer may be reading, and sleeps otherwise.
"""

from __future__ import annotations

import logging
import math
import selectors
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
from llmdd.transport.engine import EngineFailed, TransferEngine
from llmdd.transport.staging import STRETCH_BYTES, Inflow, StagingArea, StagingAreas

from .messages import ProtocolError
from .transfer_messages import (
    MAX_CARRIED,
    Abandon,
    Answer,
    Begin,
    Begun,
    Finish,
    Finished,
    Found,
    Frames,
    Gather,
    Gathered,
    Outbox,
    Request,
    Take,
    Taken,
    Way,
)

_logger = logging.getLogger("llmdd.link")

#: Pieces that are smaller than this on the average are gathered into stretches. A larger one is worth a descriptor.
STAGED_BELOW = 32 * 1024

_OUT_OF_TIME = ExchangeEnded.RESULTS["OUT_OF_TIME"]
_ENGINE_FAILED = ExchangeEnded.RESULTS["ENGINE_FAILED"]
_RECEIVED_AT_ONCE = 256 * 1024

# Steps between two looks at the connections, while something moves.
_STEPS_IN_A_ROW = 16

# How long to stay awake for the end of a request whose bytes have been said already: it takes as long to be woken.
_FINISHED_SOON_S = 0.000_2

# How long after its time a request may stand open. Who asked has given it up by then, and perhaps could not say so.
_GRACE_S = 0.5

# A sleep that may be longer is cut into such.
_LONGEST_SLEEP_S = 3600.0

# How soon to look again at what takes longer than anybody waits for it.
_LOOK_AGAIN_S = 0.002


class _Open:
    """A request that has begun and not ended."""

    def __init__(self, number: int, served: ServedTransfers, way: Way, patience_s: float) -> None:
        self.number = number
        self.served = served
        self.way = way
        self.begun_at = time.monotonic()
        self.deadline = self.begun_at + patience_s

    @property
    def is_read_by_peer(self) -> bool:
        """Whether the peer's engine may be reading from us."""
        return self.way in (Way.DIRECT, Way.STAGED) and not self.served.pushes


class Guest:
    """One peer that asks: its connection, and what it has under way. Lives on the attendance's thread, but for
    :meth:`dismiss`."""

    def __init__(
        self, attendance: Attendance, sock: socket.socket, engine_peer: str, on_end: Callable[[], None]
    ) -> None:
        self.socket = sock
        self.engine_peer = engine_peer
        self.on_end = on_end
        self.open: _Open | None = None
        self.work: Generator[None] | None = None
        self.area: StagingArea | None = None
        self.known_serial = 0
        self.connection_failed = False
        self.last_begun = -1
        self.last_abandoned = -1
        self.outbox = Outbox(sock)
        self.frames = Frames()
        self.is_gone = False
        self._attendance = attendance

    @property
    def is_reading(self) -> bool:
        """Whether its engine may be reading from us."""
        return self.open is not None and self.open.is_read_by_peer

    def dismiss(self, done: Callable[[], None]) -> None:
        """Serve it no more, and call ``done`` when nothing that it asked for holds memory. From any thread; again is
        nothing more."""
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
    areas
        The node's staging memory.
    """

    def __init__(self, store: CacheStore, engine: TransferEngine) -> None:
        self._store = store
        self._engine = engine
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._errands: deque[Callable[[], None]] = deque()
        self._guests: set[Guest] = set()
        self._posting = threading.Lock()
        self._closed = self._ended = False
        self.areas = StagingAreas(engine, self._ring)
        self._thread = threading.Thread(target=self._run, name=f"llmdd attendance {store.cluster_id}", daemon=True)
        self._thread.start()

    def admit(self, sock: socket.socket, engine_peer: str, on_end: Callable[[], None]) -> Guest:
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
        for guest in self._guests:
            guest.socket.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._selector.close()
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
            while not self._closed:
                for key, events in self._selector.select(self._patience()):
                    if key.data is None:
                        self._hear_bell()
                    else:
                        self._attend(key.data, events)
                self._proceed()
        except Exception:
            _logger.exception("peers on other hosts are not served any more")
        finally:
            with self._posting:
                self._ended = True
            while self._errands:
                self._errands.popleft()()
            for guest in list(self._guests):
                self.part_from(guest, lambda: None)
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

    def _patience(self) -> float | None:
        """How long to sleep, if nobody comes."""
        now = time.monotonic()
        patience = _LOOK_AGAIN_S if self.areas.has_set_aside or self.areas.may_be_read_late else math.inf
        for guest in self._guests:
            if guest.open is None:
                continue
            if guest.work is not None or guest.open.is_read_by_peer:
                # Who lets a request stand open beyond its time has been held up, or has gone.
                if now < guest.open.deadline:
                    return 0.0
                patience = min(patience, _LOOK_AGAIN_S)
            elif now < guest.open.begun_at + _FINISHED_SOON_S:
                return 0.0
            patience = min(patience, max(0.0, guest.open.deadline + _GRACE_S - now))
        return None if patience == math.inf else min(patience, _LONGEST_SLEEP_S)

    def _proceed(self) -> None:
        """Let everything that is under way go on a little."""
        if self.areas.has_set_aside:
            self.areas.poll()
        now = time.monotonic()
        for guest in list(self._guests):
            if guest.open is not None and now > guest.open.deadline + _GRACE_S:
                self._drop(guest)
            if guest.work is not None:
                self._guarded(guest, self._work_on)
        if self.areas.may_be_read_late or any(guest.is_reading for guest in self._guests):
            for _ in range(_STEPS_IN_A_ROW):
                self._engine.progress()

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
        self._guests.add(guest)
        self._selector.register(guest.socket, selectors.EVENT_READ, guest)

    def part_from(self, guest: Guest, done: Callable[[], None]) -> None:
        """On the thread: drop everything that a guest has under way."""
        if guest in self._guests:
            self._guests.discard(guest)
            self._selector.unregister(guest.socket)
            self._drop(guest)
            if guest.area is not None:
                self.areas.give_back(guest.area, [])
            guest.socket.close()
        guest.is_gone = True
        done()

    def _drop(self, guest: Guest) -> None:
        """End the request that is open without dropping a key."""
        if guest.work is not None:
            guest.work.close()
            guest.work = None
        if guest.open is not None:
            if guest.is_reading:
                self.areas.expect_late_reader()
            guest.open.served.abandon()
            guest.open = None

    def _attend(self, guest: Guest, events: int) -> None:
        if guest in self._guests and events & selectors.EVENT_WRITE:
            self._guarded(guest, self._send_unsent)
        if guest in self._guests and events & selectors.EVENT_READ:
            self._guarded(guest, self._hear)

    def _guarded(self, guest: Guest, work: Callable[[Guest], None]) -> None:
        """Whatever goes wrong with one guest ends its visit, and touches no other."""
        try:
            work(guest)
            return
        except (ProtocolError, ValueError) as error:
            _logger.warning("a conversation is dropped: %s", error)
        except OSError as error:
            _logger.debug("a conversation has ended: %s", error)
        except LLMException as error:
            _logger.debug("a conversation ends: %s", error)
        except Exception:
            _logger.exception("a conversation is dropped")
        self.part_from(guest, guest.on_end)

    def _hear(self, guest: Guest) -> None:
        try:
            data = guest.socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the peer has hung up")
        guest.frames.feed(data)
        while (request := guest.frames.next_request()) is not None:
            self._serve(guest, request)

    def _say(self, guest: Guest, answer: Answer) -> None:
        guest.outbox.add(answer)
        self._send_unsent(guest)

    def _send_unsent(self, guest: Guest) -> None:
        guest.outbox.send()
        events = selectors.EVENT_READ | (0 if guest.outbox.is_empty else selectors.EVENT_WRITE)
        if self._selector.get_key(guest.socket).events != events:
            self._selector.modify(guest.socket, events, guest)

    # -- requests -------------------------------------------------------------------------------------------------

    def _serve(self, guest: Guest, request: Request) -> None:
        if isinstance(request, Abandon):
            self._abandon(guest, request.number)
            return
        if guest.work is not None or (not guest.outbox.is_empty and guest.last_begun > guest.last_abandoned):
            raise ProtocolError(f"a {type(request).__name__} before the last request was answered")
        if isinstance(request, Begin):
            self._begin(guest, request)
            return
        if not guest.last_abandoned < request.number <= guest.last_begun:
            raise ProtocolError(f"{type(request).__name__} {request.number} is of no request that was begun")
        open_request = guest.open
        if open_request is None or open_request.number != request.number:
            self._decline(guest, request)
        elif isinstance(request, Finish):
            guest.open = None
            self._say(guest, Finished(request.number, open_request.served.finish(request.succeeded)))
        elif isinstance(request, Gather):
            self._gather(guest, open_request, request)
        else:
            self._take(guest, open_request, request)

    def _abandon(self, guest: Guest, number: int) -> None:
        """Who asked waits no longer, and hears no more of it. What was said of our memory may not have been heard."""
        if number > guest.last_begun:
            raise ProtocolError(f"Abandon {number} is of no request that was begun")
        guest.last_abandoned = max(guest.last_abandoned, number)
        guest.outbox.withdraw(number)
        guest.known_serial = 0
        if guest.open is not None and guest.open.number == number:
            self._drop(guest)

    def _decline(self, guest: Guest, request: Gather | Take | Finish) -> None:
        """Answer what is said of a request that has ended: its time was up."""
        if isinstance(request, Finish):
            self._say(guest, Finished(request.number, [_OUT_OF_TIME] * len(request.succeeded)))
        elif isinstance(request, Gather):
            self._say(guest, Gathered(request.number, request.begin, False))
        else:
            if request.metadata:
                self._take_news(guest, request.metadata)
            self._say(guest, Taken(request.number, request.begin, False))

    def _begin(self, guest: Guest, request: Begin) -> None:
        if guest.open is not None:
            raise ProtocolError(f"Begin {request.number} while {guest.open.number} is open")
        if request.number <= guest.last_begun:
            raise ProtocolError(f"Begin {request.number} after {guest.last_begun}")
        guest.last_begun = request.number
        if request.metadata:
            self._take_news(guest, request.metadata)
        served = self._store.serve(request.items, request.together, request.patience_ms)
        try:
            way = self._way(request, served)
            guest.open = _Open(request.number, served, way, request.patience_ms / 1000)
            if way is Way.DIRECT and served.pushes:
                guest.work = self._take_in(guest, request, served)
                return
            self._say(guest, self._answer_to(guest, request, served, way))
        except BaseException:
            served.abandon()
            raise
        if way is Way.NONE or (way is Way.CARRIED and served.pushes):
            served.abandon()
            guest.open = None

    def _way(self, request: Begin, served: ServedTransfers) -> Way:
        """How the bytes travel, the request being what it is and what it names where it is."""
        accepted = [served.is_accepted(number) for number in range(len(request.items))]
        if not any(accepted) or (request.together and not all(accepted)):
            return Way.NONE
        if served.pushes and request.data:
            return Way.CARRIED
        if not served.pushes and served.stream_bytes <= MAX_CARRIED:
            return Way.CARRIED
        pieces = max(served.pieces, served.pieces_elsewhere([item.our_pieces for item in request.items]))
        straight = not request.staged and served.lay_out_askers() if served.pushes else served.all_mapped
        if straight and served.stream_bytes >= STAGED_BELOW * pieces:
            return Way.DIRECT
        return Way.STAGED

    def _answer_to(self, guest: Guest, request: Begin, served: ServedTransfers, way: Way) -> Begun:
        data = b""
        staging = 0
        pulls = not served.pushes
        if way is Way.CARRIED and pulls:
            carried = bytearray(served.stream_bytes)
            served.gather(0, carried)
            data = bytes(carried)
        elif way is Way.STAGED and pulls:
            area = self._area_of(guest)
            served.gather(0, area.half(0, min(STRETCH_BYTES, served.stream_bytes)))
            staging = area.address
        items = [Found(*served.describe(number, way is Way.DIRECT and pulls)) for number in range(len(request.items))]
        if way is Way.CARRIED and served.pushes:
            if len(request.data) != served.stream_bytes:
                raise ProtocolError(f"{len(request.data)} bytes came with a push of {served.stream_bytes}")
            served.scatter(0, request.data)
            results = served.finish([True] * len(items))
            items = [replace(item, result=result) for item, result in zip(items, results, strict=True)]
        news, guest.known_serial = self.areas.news(guest.known_serial) if staging else (b"", guest.known_serial)
        return Begun(request.number, items, way, data, staging, news)

    def _area_of(self, guest: Guest) -> StagingArea:
        if guest.area is None:
            guest.area = self.areas.take()
        return guest.area

    def _gather(self, guest: Guest, open_request: _Open, request: Gather) -> None:
        if open_request.way is not Way.STAGED or open_request.served.pushes:
            raise ProtocolError("Gather of a request whose bytes do not travel so")
        open_request.served.gather(request.begin, self._area_of(guest).half(request.half, request.size))
        self._say(guest, Gathered(request.number, request.begin, True))

    def _take(self, guest: Guest, open_request: _Open, request: Take) -> None:
        if open_request.way is not Way.STAGED or not open_request.served.pushes:
            raise ProtocolError("Take of a request whose bytes do not travel so")
        if request.metadata:
            self._take_news(guest, request.metadata)
        guest.work = self._take_stretch(guest, open_request.served, request)

    def _take_stretch(self, guest: Guest, served: ServedTransfers, request: Take) -> Generator[None]:
        """Read one stretch of a push from the peer's staging memory."""
        arrived = True
        try:
            self._mend_connection(guest)
            with Inflow(self._engine, guest.engine_peer, self.areas) as inflow:
                inflow.begin_run(request.begin, request.size, request.address)
                while (stretch := inflow.poll()) is None:
                    yield
                served.scatter(stretch.begin, stretch.data)
        except EngineFailed as error:
            arrived = self._note_failure(guest, error)
        self._say(guest, Taken(request.number, request.begin, arrived))

    def _take_in(self, guest: Guest, request: Begin, served: ServedTransfers) -> Generator[None]:
        """Read a push straight from the peer's pools, all of it, then answer."""
        total = served.stream_bytes
        begun_bytes = arrived_bytes = 0
        try:
            self._mend_connection(guest)
            with Inflow(self._engine, guest.engine_peer, self.areas) as inflow:
                while arrived_bytes < total:
                    while inflow.has_room and begun_bytes < total:
                        size = min(STRETCH_BYTES, total - begun_bytes)
                        inflow.begin(begun_bytes, size, *served.reading(begun_bytes, size, inflow.next_address))
                        begun_bytes += size
                    while (stretch := inflow.poll()) is None:
                        yield
                    served.scatter(stretch.begin, stretch.data)
                    arrived_bytes += len(stretch.data)
        except EngineFailed as error:
            self._note_failure(guest, error)
        answer = self._answer_to(guest, request, served, Way.DIRECT)
        if arrived_bytes < total:
            served.abandon()
            guest.open = None
            items = [replace(item, result=_ENGINE_FAILED) for item in answer.items]
            answer = replace(answer, items=items, way=Way.NONE)
        self._say(guest, answer)

    def _note_failure(self, guest: Guest, error: EngineFailed) -> bool:
        _logger.warning("the transfer engine has failed: %s", error)
        guest.connection_failed = True
        return False

    def _mend_connection(self, guest: Guest) -> None:
        """After the engine has failed, reach the peer's anew."""
        if guest.connection_failed:
            self._engine.reconnect(guest.engine_peer)
            guest.connection_failed = False

    def _take_news(self, guest: Guest, metadata: bytes) -> None:
        try:
            self._engine.refresh(guest.engine_peer, metadata)
        except EngineFailed as error:
            raise ProtocolError(f"what the peer's engine says of itself cannot be used: {error}") from None
