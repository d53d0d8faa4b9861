"""Engines in memory, for the nodes of one process, which behave as a test has programmed.

A `Network` holds the engines that can reach each other. Each reading that is begun takes the next `Course` of the
network's programme, or the usual one: how many polls it takes, in which order the pieces come, whether it waits to be
told, and where it fails. Nothing but polls moves a reading (or `Network.deliver`, for bytes that come unasked), so that
a test decides when memory is written.
"""

from __future__ import annotations

import ctypes
import json
import random
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from llmdd.transport.engine import MAX_METADATA, Descriptors, EngineFailed, Reading, TransferEngine

Region = tuple[int, int]


@dataclass(frozen=True)
class Course:
    """What one reading does.

    Attributes
    ----------
    polls
        How many polls it is under way; the last of them says True or raises. The pieces are spread over them.
    gate
        If given, no piece comes, and it does not end, before this is set. An event that is never set makes a reading
        that hangs until its engine or its peer's is closed.
    fails
        Whether it fails in the end, and after how many pieces; None if it does not.
    order
        Shuffles the pieces; None for the order asked for.
    refused
        Whether it is refused when it is asked for.
    """

    polls: int = 1
    gate: threading.Event | None = None
    fails: int | None = None
    order: random.Random | None = None
    refused: bool = False


@dataclass
class Network:
    """Engines that reach each other.

    Attributes
    ----------
    usual
        The course of readings for which none is programmed.
    programme
        The courses of the next readings, whoever begins them.
    owner_proceeds
        Whether a reading moves only when its owner has called `progress` since it moved last, as over TCP.
    readings
        Every reading that was begun, in order.
    """

    usual: Course = Course()
    programme: deque[Course] = field(default_factory=deque)
    owner_proceeds: bool = False
    readings: list[ProgrammedReading] = field(default_factory=list)
    engines: dict[str, ProgrammableEngine] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self, name: str) -> TransferEngine:
        """An engine; to be put into ``llmdd.transport.engines.ENGINES``."""
        with self.lock:
            if name in self.engines:
                raise ValueError(f"an engine called {name!r} is there already")
            self.engines[name] = ProgrammableEngine(self, name)
            return self.engines[name]

    def follow(self, courses: Iterable[Course]) -> None:
        """Programme the next readings."""
        with self.lock:
            self.programme.extend(courses)

    def deliver(self) -> None:
        """Move every reading under way by one step, as hardware does without being polled."""
        with self.lock:
            for reading in self.readings:
                reading.step()

    @property
    def under_way(self) -> list[ProgrammedReading]:
        """The readings that have not ended."""
        with self.lock:
            return [reading for reading in self.readings if not reading.has_ended]


class ProgrammableEngine(TransferEngine):
    """One node's engine."""

    name: ClassVar[str] = "nixl"

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.own_name = name
        self.regions: Counter[Region] = Counter()
        self.peers: dict[str, list[Region]] = {}
        self.leaving: set[str] = set()
        self.proceeded = 0
        self.closed = False

    def register(self, address: int, size: int) -> None:
        with self.network.lock:
            self._require_open()
            self.regions[address, size] += 1

    def deregister(self, address: int, size: int) -> None:
        with self.network.lock:
            if not self.regions[address, size]:
                raise KeyError(f"no memory is registered as {size} bytes at {address:#x}")
            self._require_open()
            self.regions[address, size] -= 1
            self.regions += Counter()  # drops what is at zero

    def metadata(self) -> bytes:
        with self.network.lock:
            self._require_open()
            return json.dumps([self.own_name, list(self.regions)]).encode()

    def connect(self, metadata: bytes) -> str:
        with self.network.lock:
            self._require_open()
            name, regions = _decoded(metadata)
            if name == self.own_name or name in self.peers or name not in self.network.engines:
                raise EngineFailed(f"{self.own_name} cannot be connected to {name!r}")
            self.peers[name] = regions
            return name

    def refresh(self, peer: str, metadata: bytes) -> None:
        with self.network.lock:
            self._require_connected(peer)
            name, regions = _decoded(metadata)
            if name != peer:
                raise EngineFailed(f"the metadata is of {name!r}, not of {peer!r}")
            self.peers[peer] = regions

    def reconnect(self, peer: str) -> None:
        with self.network.lock:
            self._require_connected(peer)
            if self._readings_of(peer):
                raise EngineFailed(f"readings from {peer!r} are under way still")
            if self.network.engines[peer].closed:
                raise EngineFailed(f"{peer!r} is gone")

    def disconnect(self, peer: str) -> None:
        with self.network.lock:
            if self.closed or peer not in self.peers:
                return
            self.leaving.add(peer)
            self.forget_who_left()

    def read(self, peer: str, local: Descriptors, remote: Descriptors) -> Reading:
        if local.ndim != 2 or local.shape[1] != 3 or local.shape != remote.shape or not len(local):
            raise ValueError(f"descriptors must be equal numbers of rows of 3, not {local.shape} and {remote.shape}")
        if not np.array_equal(local[:, 1], remote[:, 1]):
            raise ValueError("the pieces must have equal numbers of bytes")
        with self.network.lock:
            self._require_connected(peer)
            course = self.network.programme.popleft() if self.network.programme else self.network.usual
            owner = self.network.engines[peer]
            if course.refused or owner.closed:
                raise EngineFailed(f"{peer!r} cannot be read from")
            pieces = [
                (int(to), int(source), int(size)) for (to, size, _), (source, _, _) in zip(local, remote, strict=True)
            ]
            for to, source, size in pieces:
                _require_within(to, size, self.regions, "here")
                _require_within(source, size, self.peers[peer], f"at {peer!r}, as far as is known here")
            reading = ProgrammedReading(self, owner, course, pieces)
            self.network.readings.append(reading)
            return reading

    def progress(self) -> None:
        with self.network.lock:
            self._require_open()
            self.proceeded += 1

    def close(self) -> None:
        with self.network.lock:
            self.closed = True
            self.peers.clear()
            self.regions.clear()
            for reading in self.network.readings:
                if self is reading.reader:
                    reading.fail("the engine is closed")

    def forget_who_left(self) -> None:
        """Forget the peers that are to be gone and from which nothing is under way."""
        for peer in list(self.leaving):
            if not self._readings_of(peer):
                self.leaving.discard(peer)
                self.peers.pop(peer, None)

    def _readings_of(self, peer: str) -> list[ProgrammedReading]:
        return [
            reading
            for reading in self.network.readings
            if reading.reader is self and reading.owner.own_name == peer and not reading.has_ended
        ]

    def _require_open(self) -> None:
        if self.closed:
            raise EngineFailed("the engine is closed")

    def _require_connected(self, peer: str) -> None:
        self._require_open()
        if peer not in self.peers or peer in self.leaving:
            raise EngineFailed(f"the engine is not connected to {peer!r}")


class ProgrammedReading(Reading):
    """A reading that follows its course."""

    def __init__(
        self, reader: ProgrammableEngine, owner: ProgrammableEngine, course: Course, pieces: list[tuple[int, int, int]]
    ) -> None:
        self.reader = reader
        self.owner = owner
        self.course = course
        self.polls = 0
        self.released = False
        self.arrived = False
        self.failure: EngineFailed | None = None
        self._pieces = deque(pieces)
        if course.order is not None:
            course.order.shuffle(self._pieces)
        self._until_failure = course.fails
        self._portion = max(1, -(-len(pieces) // max(1, course.polls)))
        self._seen = owner.proceeded

    @property
    def has_ended(self) -> bool:
        """Whether nothing is written any more."""
        return self.arrived or self.failure is not None

    def poll(self) -> bool:
        with self.reader.network.lock:
            self.step()
            if self.failure is not None:
                raise self.failure
            return self.arrived

    def release(self) -> None:
        with self.reader.network.lock:
            if not self.has_ended:
                raise RuntimeError("the reading is under way: poll it until it has ended")
            self.released = True

    def fail(self, why: str) -> None:
        """End it, if it has not ended."""
        if not self.has_ended:
            self.failure = EngineFailed(why)
            self.reader.forget_who_left()

    def step(self) -> None:
        """Move it by one step; the network's lock is held."""
        if self.has_ended:
            return
        if self.owner.closed:
            self.fail(f"{self.owner.own_name!r} is gone")
        elif self._may_move():
            self.polls += 1
            try:
                self._move()
            except EngineFailed as failure:
                self.fail(str(failure))

    def _may_move(self) -> bool:
        network = self.reader.network
        if self.owner.own_name in network.frozen or (self.course.gate is not None and not self.course.gate.is_set()):
            return False
        if network.owner_proceeds and self._seen == self.owner.proceeded:
            return False
        self._seen = self.owner.proceeded
        return True

    def _move(self) -> None:
        for _ in range(min(self._portion, len(self._pieces))):
            if self._until_failure == 0:
                break
            to, source, size = self._pieces.popleft()
            _require_within(source, size, self.owner.regions, f"at {self.owner.own_name!r}")
            _require_within(to, size, self.reader.regions, "here")
            ctypes.memmove(to, source, size)
            if self._until_failure is not None:
                self._until_failure -= 1
        if self.polls < self.course.polls:
            return
        if self.course.fails is not None:
            raise EngineFailed("it was programmed to fail")
        if not self._pieces:
            self.arrived = True
            self.reader.forget_who_left()


def _require_within(address: int, size: int, regions: Iterable[Region], where: str) -> None:
    if not any(begin <= address and address + size <= begin + length for begin, length in regions):
        raise EngineFailed(f"no registered region {where} has {size} bytes at {address:#x}")


def _decoded(metadata: bytes) -> tuple[str, list[Region]]:
    try:
        if len(metadata) > MAX_METADATA:
            raise ValueError("too long")
        name, regions = json.loads(metadata)
        return str(name), [(int(address), int(size)) for address, size in regions]
    except (ValueError, TypeError) as error:
        raise EngineFailed(f"the metadata is damaged: {error}") from error
