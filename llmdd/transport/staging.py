"""Memory into which a node's engine reads, and from which its peers may: what is read is copied on from there.

An engine cannot be made to stop: what it was asked to read may arrive long after everybody has lost patience. So it
never reads into a cache, but into an *area* that is nobody's; and an area with readings under way is set aside until
they have ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .engine import Descriptors, EngineFailed, Reading, TransferEngine, wait

_logger = logging.getLogger("llmdd.transport")

#: Bytes of a half of an area, which is the most that is read at a time.
STRETCH_BYTES = 2 << 20

HALVES = 2

#: How long a peer may go on reading after everybody has lost patience, and is let proceed.
LATE_READER_S = 60.0


class StagingArea:
    """Two halves of memory that the engine knows.

    Attributes
    ----------
    address
        Where the first half begins.
    """

    def __init__(self) -> None:
        self._memory = np.zeros(HALVES * STRETCH_BYTES, np.uint8)
        self.address = int(self._memory.ctypes.data)
        self.size = self._memory.nbytes

    def address_of(self, half: int) -> int:
        return self.address + half * STRETCH_BYTES

    def half(self, number: int, size: int) -> memoryview:
        """The first ``size`` bytes of a half."""
        begin = number * STRETCH_BYTES
        return self._memory.data[begin : begin + size]


class _SetAside(NamedTuple):
    area: StagingArea
    readings: list[Reading]


class StagingAreas:
    """The areas of one node. An area is registered with the engine for good: a peer may read late, too.

    Parameters
    ----------
    engine
        Of the node.
    when_left
        Called when something goes on that nobody waits for: an area was set aside, for :meth:`poll` to look after, or
        a peer may be reading late.

    Attributes
    ----------
    serial
        Grows when the engine learns of new memory, of which its peers must then be told.
    """

    def __init__(self, engine: TransferEngine, when_left: Callable[[], None]) -> None:
        self._engine = engine
        self._when_left = when_left
        self._changing = threading.Lock()
        self._free: list[StagingArea] = []
        self._set_aside: list[_SetAside] = []
        self._read_late_until = 0.0
        self.serial = 0

    def take(self) -> StagingArea:
        """An area that nobody uses; :class:`~.engine.EngineFailed` if the engine cannot have more memory."""
        with self._changing:
            if self._free:
                return self._free.pop()
        area = StagingArea()
        self._engine.register(area.address, area.size)
        with self._changing:
            self.serial += 1
        return area

    def give_back(self, area: StagingArea, readings: list[Reading]) -> None:
        """Nobody uses ``area`` any more; it is set aside until the ``readings`` that go on into it have ended."""
        with self._changing:
            if not readings:
                self._free.append(area)
                return
            self._set_aside.append(_SetAside(area, readings))
        self._when_left()

    def news(self, known: int) -> tuple[bytes, int]:
        """The engine's metadata if a peer knows it as of serial number ``known`` only, and as of which it will then."""
        with self._changing:
            serial = self.serial
        return (b"", known) if serial == known else (self._engine.metadata(), serial)

    def expect_late_reader(self) -> None:
        """A peer was given up which may be reading here: its engine ends that when ours lets it proceed, not before."""
        self._read_late_until = time.monotonic() + LATE_READER_S
        self._when_left()

    @property
    def may_be_read_late(self) -> bool:
        """Whether our engine is to proceed though nobody waits for it."""
        return time.monotonic() < self._read_late_until

    @property
    def has_set_aside(self) -> bool:
        """Whether there is anything for :meth:`poll` to do."""
        return bool(self._set_aside)

    def poll(self) -> None:
        """Look after the areas that are set aside."""
        with self._changing:
            waiting, self._set_aside = self._set_aside, []
        under_way = [aside for aside in waiting if not _all_ended(aside.readings)]
        with self._changing:
            self._free += [aside.area for aside in waiting if not aside.readings]
            self._set_aside += under_way


def _all_ended(readings: list[Reading]) -> bool:
    """Whether the engine is done with all of them; those with which it is are taken off the list."""
    readings[:] = [reading for reading in readings if not _has_ended(reading)]
    return not readings


def _has_ended(reading: Reading) -> bool:
    try:
        if not reading.poll():
            return False
    except EngineFailed as error:
        _logger.debug("a reading that nobody waits for any more has failed: %s", error)
    reading.release()
    return True


class Arrived(NamedTuple):
    """A stretch that has arrived: where it begins in its stream, and its bytes, until the next one is begun."""

    begin: int
    data: memoryview


class _UnderWay(NamedTuple):
    reading: Reading
    begin: int
    data: memoryview


class Inflow:
    """Stretches that are read from one peer, two at most at a time, and taken in the order in which they were begun.

    Usable as a context manager, which ends it.
    """

    def __init__(self, engine: TransferEngine, peer: str, areas: StagingAreas) -> None:
        self._engine = engine
        self._peer = peer
        self._areas = areas
        self._area = areas.take()
        self._under_way: deque[_UnderWay] = deque()
        self._begun = 0

    @property
    def has_room(self) -> bool:
        """Whether another stretch can be begun. What was taken last must have been copied on by then."""
        return len(self._under_way) < HALVES

    @property
    def next_address(self) -> int:
        """Where the next stretch goes."""
        return self._area.address_of(self._begun % HALVES)

    def begin(self, begin: int, size: int, here: Descriptors, there: Descriptors) -> None:
        """Begin to read a stretch: what lies ``there`` comes ``here``, to :attr:`next_address` and behind it."""
        half = self._begun % HALVES
        reading = self._engine.read(self._peer, here, there)
        self._under_way.append(_UnderWay(reading, begin, self._area.half(half, size)))
        self._begun += 1

    def begin_run(self, begin: int, size: int, address: int) -> None:
        """Begin to read a stretch that lies side by side at ``address``."""
        self.begin(begin, size, _run(self.next_address, size), _run(address, size))

    def poll(self) -> Arrived | None:
        """The oldest stretch if it has arrived; :class:`~.engine.EngineFailed` if it will not."""
        return self._take() if self._under_way[0].reading.poll() else None

    def wait(self, deadline: float, broken: Callable[[], bool]) -> Arrived | None:
        """Wait for the oldest stretch, as :func:`~.engine.wait` does; None if it has not arrived by then."""
        return self._take() if wait(self._under_way[0].reading, deadline, broken) else None

    def _take(self) -> Arrived:
        oldest = self._under_way.popleft()
        oldest.reading.release()
        return Arrived(oldest.begin, oldest.data)

    def end(self) -> None:
        """Want no more of it."""
        readings = [each.reading for each in self._under_way]
        self._under_way.clear()
        # One that has failed has ended, and one that has arrived as well.
        _all_ended(readings)
        self._areas.give_back(self._area, readings)

    def __enter__(self) -> Inflow:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


def _run(address: int, size: int) -> Descriptors:
    return np.array([[address, size, 0]], np.uint64)
