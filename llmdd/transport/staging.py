"""Memory into which a node's peers write, and from which its engine writes: what arrives is copied on from there.

A write that is under way cannot be called back: the bytes may arrive long after everybody has lost patience. So no
peer ever writes into a cache, but into an *area* of one conversation, where what comes late is overwritten by what
comes next.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .engine import Descriptors, EngineFailed, TransferEngine, Writing

_logger = logging.getLogger("llmdd.transport")

#: Bytes of a part of an area, which is the most that is written at a time.
STRETCH_BYTES = 2 << 20

#: Of an area: so many stretches are under way at most, so that the next is there when one has been copied on.
PARTS = 4


class StagingArea:
    """Four parts of memory that the engine knows.

    Attributes
    ----------
    address
        Where the first part begins.
    """

    def __init__(self) -> None:
        self._memory = np.zeros(PARTS * STRETCH_BYTES, np.uint8)
        self.address = int(self._memory.ctypes.data)
        self.size = self._memory.nbytes

    def part(self, number: int, size: int) -> memoryview:
        """The first ``size`` bytes of a part."""
        begin = address_of_part(0, number)
        return self._memory.data[begin : begin + size]


def address_of_part(address: int, number: int) -> int:
    """Where a part of the area at ``address`` begins."""
    return address + number * STRETCH_BYTES


def may_be_area(address: int) -> bool:
    """Whether an area, of which only its address is known, can be there."""
    return address + PARTS * STRETCH_BYTES <= 1 << 64


class StagingAreas:
    """The areas of one node. They are registered with its engine until that is closed.

    Parameters
    ----------
    engine
        Of the node.
    when_left_over
        Called, in any thread, when there is something for :meth:`look_after_what_is_left_over` to do.
    """

    def __init__(self, engine: TransferEngine, when_left_over: Callable[[], None]) -> None:
        self._engine = engine
        self._when_left_over = when_left_over
        self._left_over: set[Outbox] = set()
        self._changing = threading.Lock()
        self._free: list[StagingArea] = []
        self._given_up: list[StagingArea] = []
        self._serial = 0

    def take(self) -> StagingArea:
        """An area that nobody uses; :class:`~.engine.EngineFailed` if the engine cannot have more memory."""
        with self._changing:
            if self._free:
                return self._free.pop()
        area = StagingArea()
        self._engine.register(area.address, area.size, writable=True)
        with self._changing:
            self._serial += 1
        return area

    def give_back(self, area: StagingArea) -> None:
        """Nobody uses ``area`` any more, and nothing is being written to it."""
        with self._changing:
            self._free.append(area)

    def give_up(self, area: StagingArea) -> None:
        """A peer that has been lost may be writing to ``area`` still: nobody is to use it again."""
        with self._changing:
            self._given_up.append(area)

    def leave_over(self, outbox: Outbox) -> None:
        """What is under way there goes on, and nobody waits for it: the engine must hear from it until it ends."""
        with self._changing:
            self._left_over.add(outbox)
        self._when_left_over()

    @property
    def has_left_over(self) -> bool:
        return bool(self._left_over)

    def look_after_what_is_left_over(self) -> None:
        """Let it go on a little."""
        with self._changing:
            waiting, self._left_over = self._left_over, set()
        unfinished = {outbox for outbox in waiting if not outbox.look_after()}
        with self._changing:
            self._left_over |= unfinished

    def news(self, known: int) -> tuple[bytes, int]:
        """The engine's metadata if a peer knows only those areas that there were when ``known`` was its answer to this;
        and what is so now."""
        with self._changing:
            serial = self._serial
        return (b"", known) if serial == known else (self._engine.metadata(), serial)


class Inbox:
    """Where one peer writes to: an area that its conversation has for good, once it is needed.

    Attributes
    ----------
    may_be_written
        Whether the peer has been asked to write there, and has not said since that nothing is under way any more.
    """

    def __init__(self, areas: StagingAreas) -> None:
        self._areas = areas
        self._area: StagingArea | None = None
        self._known = 0
        self.may_be_written = False

    def open(self) -> tuple[int, bytes]:
        """Where the peer may write, and what its engine must be told first, if anything."""
        if self._area is None:
            self._area = self._areas.take()
        self.may_be_written = True
        news, self._known = self._areas.news(self._known)
        return self._area.address, news

    def tell_again(self) -> None:
        """What :meth:`open` gave last has not been told."""
        self._known = 0

    def stretch(self, number: int, size: int) -> memoryview:
        """What the peer has written as its stretch of that number; ``EngineFailed`` once it is closed."""
        area = self._area
        if area is None:
            raise EngineFailed("the conversation has ended")
        return area.part(number % PARTS, size)

    def close(self) -> None:
        """The peer has parted, or is lost."""
        area, self._area = self._area, None
        if area is not None:
            (self._areas.give_up if self.may_be_written else self._areas.give_back)(area)


class _UnderWay(NamedTuple):
    writing: Writing
    number: int


class Outbox:
    """What is written to one peer: the stretches of one stream at a time.

    Those of the next one are begun when all that were begun before have ended: so whoever is told that a stretch has
    been written finds that, and nothing older.

    Used by one thread at a time; what is :meth:`left <leave>` is looked after by another until :meth:`prepare`.
    """

    def __init__(self, engine: TransferEngine, peer: str, areas: StagingAreas) -> None:
        self._engine = engine
        self._peer = peer
        self._areas = areas
        self._area: StagingArea | None = None
        self._under_way: deque[_UnderWay] = deque()
        self._is_left = False
        self._taking_turns = threading.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way. Looks after what is."""
        while self._under_way:
            try:
                if not self._under_way[0].writing.poll():
                    return False
            except EngineFailed as error:
                _logger.debug("what nobody waits for any more was not written: %s", error)
            self._under_way.popleft().writing.release()
        return True

    @property
    def has_under_way(self) -> bool:
        """Whether anything is under way, as far as is known."""
        return bool(self._under_way)

    def prepare(self) -> bool:
        """Begin a new stream, if nothing is under way and the peer is reached; ask again until it is so.

        Raises
        ------
        EngineFailed
            If the peer cannot be reached any more.
        """
        with self._taking_turns:
            self._is_left = False
            if not self.is_idle:
                return False
        return self._engine.reconnect(self._peer)

    def gathered(self, number: int, size: int) -> memoryview:
        """Where to gather a stretch that is not written straight from where it is."""
        if self._area is None:
            self._area = self._areas.take()
        return self._area.part(number % PARTS, size)

    def write_gathered(self, number: int, size: int, there: int) -> None:
        """Begin to write a stretch that was gathered."""
        assert self._area is not None
        here = address_of_part(self._area.address, number % PARTS)
        self.write(number, _run(here, size), _run(there, size))

    def write(self, number: int, here: Descriptors, there: Descriptors) -> None:
        """Begin to write a stretch: what lies ``here`` goes ``there``; raises as :meth:`poll`."""
        self._under_way.append(_UnderWay(self._engine.write(self._peer, here, there), number))

    def poll(self) -> int | None:
        """The number of the oldest stretch under way if it has been written.

        Raises
        ------
        EngineFailed
            If it will not be. Nothing of it is written any more.
        """
        oldest = self._under_way[0]
        try:
            if not oldest.writing.poll():
                return None
        except EngineFailed:
            self._under_way.popleft().writing.release()
            raise
        self._under_way.popleft().writing.release()
        return oldest.number

    def leave(self) -> None:
        """Nobody waits any more for what is under way. It goes on by itself, and the memory comes back when it ends."""
        self._is_left = True
        if not self.look_after():
            self._areas.leave_over(self)

    def look_after(self) -> bool:
        """Give the memory back if what was left has ended; whether it needs no more looking after."""
        with self._taking_turns:
            if not self._is_left:
                return True
            if not self.is_idle:
                return False
            self._is_left = False
            area, self._area = self._area, None
        if area is not None:
            self._areas.give_back(area)
        return True


def _run(address: int, size: int) -> Descriptors:
    return np.array([[address, size, 0]], np.uint64)
