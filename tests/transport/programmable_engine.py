"""Engines in memory, for the nodes of one process, which behave as a test has programmed.

A `Network` holds the engines that can reach each other. Each writing that is begun takes the next `Course` of the
network's programme, or the usual one: how many polls it takes, in which order the pieces come, whether it waits to be
told, and where it fails. Nothing but polls moves a writing (or `Network.deliver`, for bytes that come unasked), so that
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

from llmdd.transport.engine import MAX_METADATA, Descriptors, EngineFailed, TransferEngine, Writing

Region = tuple[int, int]


@dataclass(frozen=True)
class Course:
    """What one writing does.

    Attributes
    ----------
    polls
        How many polls it is under way; the last of them says True or raises. The pieces are spread over them.
    gate
        If given, no piece comes, and it does not end, before this is set. An event that is never set makes a writing
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
        The course of writings for which none is programmed.
    programme
        The courses of the next writings, whoever begins them.
    target_proceeds
        Whether a writing moves only when its target has called `progress` since it moved last, as over TCP.
    writings
        Every writing that was begun, in order.
    """

    usual: Course = Course()
    programme: deque[Course] = field(default_factory=deque)
    target_proceeds: bool = False
    writings: list[ProgrammedWriting] = field(default_factory=list)
    engines: dict[str, ProgrammableEngine] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self, name: str, peer_timeout_ms: int = 0) -> TransferEngine:
        """An engine; to be put into ``llmdd.transport.engines.ENGINES``."""
        with self.lock:
            if name in self.engines:
                raise ValueError(f"an engine called {name!r} is there already")
            self.engines[name] = ProgrammableEngine(self, name)
            return self.engines[name]

    def follow(self, courses: Iterable[Course]) -> None:
        """Programme the next writings."""
        with self.lock:
            self.programme.extend(courses)

    def deliver(self) -> None:
        """Move every writing under way by one step, as hardware does without being polled."""
        with self.lock:
            for writing in self.writings:
                writing.step()

    @property
    def under_way(self) -> list[ProgrammedWriting]:
        """The writings that have not ended."""
        with self.lock:
            return [writing for writing in self.writings if not writing.has_ended]


class ProgrammableEngine(TransferEngine):
    """One node's engine."""

    name: ClassVar[str] = "nixl"

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.own_name = name
        self.regions: Counter[Region] = Counter()
        self.writable: set[Region] = set()
        self.peers: dict[str, list[Region]] = {}
        self.leaving: set[str] = set()
        self.failed: set[str] = set()
        self.proceeded = 0
        self.closed = False

    def register(self, address: int, size: int, *, writable: bool) -> None:
        with self.network.lock:
            self._require_open()
            self.regions[address, size] += 1
            if writable:
                self.writable.add((address, size))

    def deregister(self, address: int, size: int) -> None:
        with self.network.lock:
            if not self.regions[address, size]:
                raise KeyError(f"no memory is registered as {size} bytes at {address:#x}")
            self._require_open()
            self.regions[address, size] -= 1
            self.regions += Counter()  # drops what is at zero
            self.writable &= self.regions.keys()

    def metadata(self) -> bytes:
        with self.network.lock:
            self._require_open()
            return json.dumps([self.own_name, sorted(self.writable)]).encode()

    def connect(self, metadata: bytes) -> str:
        with self.network.lock:
            self._require_open()
            name, regions = _decoded(metadata)
            if name in self.leaving:
                self.leaving.discard(name)
                self.peers[name] = regions
                return name
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

    def reconnect(self, peer: str) -> bool:
        with self.network.lock:
            self._require_connected(peer)
            if peer not in self.failed:
                return True
            if self._writings_of(peer):
                return False
            if self.network.engines[peer].closed:
                raise EngineFailed(f"{peer!r} is gone")
            self.failed.discard(peer)
            return True

    def disconnect(self, peer: str) -> None:
        with self.network.lock:
            if self.closed or peer not in self.peers:
                return
            self.leaving.add(peer)
            self.forget_who_left()

    def write(self, peer: str, local: Descriptors, remote: Descriptors) -> Writing:
        if local.ndim != 2 or local.shape[1] != 3 or local.shape != remote.shape or not len(local):
            raise ValueError(f"descriptors must be equal numbers of rows of 3, not {local.shape} and {remote.shape}")
        if not np.array_equal(local[:, 1], remote[:, 1]):
            raise ValueError("the pieces must have equal numbers of bytes")
        with self.network.lock:
            self._require_connected(peer)
            course = self.network.programme.popleft() if self.network.programme else self.network.usual
            target = self.network.engines[peer]
            pieces = [
                (int(to), int(source), int(size)) for (source, size, _), (to, _, _) in zip(local, remote, strict=True)
            ]
            try:
                if course.refused or target.closed:
                    raise EngineFailed(f"{peer!r} cannot be written to")
                for to, source, size in pieces:
                    _require_within(source, size, self.regions, "here")
                    _require_within(to, size, self.peers[peer], f"at {peer!r}, as far as is known here")
            except EngineFailed:
                self.failed.add(peer)
                raise
            writing = ProgrammedWriting(self, target, course, pieces)
            self.network.writings.append(writing)
            return writing

    def progress(self) -> None:
        with self.network.lock:
            self._require_open()
            self.proceeded += 1

    def close(self) -> None:
        with self.network.lock:
            self.closed = True
            self.peers.clear()
            self.regions.clear()
            self.writable.clear()
            for writing in self.network.writings:
                if self is writing.writer:
                    writing.fail("the engine is closed")

    def forget_who_left(self) -> None:
        """Forget the peers that are to be gone and to which nothing is under way."""
        for peer in list(self.leaving):
            if not self._writings_of(peer):
                self.leaving.discard(peer)
                self.failed.discard(peer)
                self.peers.pop(peer, None)

    def _writings_of(self, peer: str) -> list[ProgrammedWriting]:
        return [
            writing
            for writing in self.network.writings
            if writing.writer is self and writing.target.own_name == peer and not writing.has_ended
        ]

    def _require_open(self) -> None:
        if self.closed:
            raise EngineFailed("the engine is closed")

    def _require_connected(self, peer: str) -> None:
        self._require_open()
        if peer not in self.peers or peer in self.leaving:
            raise EngineFailed(f"the engine is not connected to {peer!r}")


class ProgrammedWriting(Writing):
    """A writing that follows its course."""

    def __init__(
        self, writer: ProgrammableEngine, target: ProgrammableEngine, course: Course, pieces: list[tuple[int, int, int]]
    ) -> None:
        self.writer = writer
        self.target = target
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
        self._seen = target.proceeded

    @property
    def has_ended(self) -> bool:
        """Whether nothing is written any more."""
        return self.arrived or self.failure is not None

    def poll(self) -> bool:
        with self.writer.network.lock:
            self.step()
            if self.failure is not None:
                raise self.failure
            return self.arrived

    def release(self) -> None:
        with self.writer.network.lock:
            if not self.has_ended:
                raise RuntimeError("the writing is under way: poll it until it has ended")
            self.released = True

    def fail(self, why: str) -> None:
        """End it, if it has not ended."""
        if not self.has_ended:
            self.failure = EngineFailed(why)
            self.writer.failed.add(self.target.own_name)
            self.writer.forget_who_left()

    def step(self) -> None:
        """Move it by one step; the network's lock is held."""
        if self.has_ended:
            return
        if self.target.closed:
            self.fail(f"{self.target.own_name!r} is gone")
        elif self._may_move():
            self.polls += 1
            try:
                self._move()
            except EngineFailed as failure:
                self.fail(str(failure))

    def _may_move(self) -> bool:
        network = self.writer.network
        if self.target.own_name in network.frozen or (self.course.gate is not None and not self.course.gate.is_set()):
            return False
        if network.target_proceeds and self._seen == self.target.proceeded:
            return False
        self._seen = self.target.proceeded
        return True

    def _move(self) -> None:
        for _ in range(min(self._portion, len(self._pieces))):
            if self._until_failure == 0:
                break
            to, source, size = self._pieces.popleft()
            _require_within(source, size, self.writer.regions, "here")
            _require_within(to, size, self.target.writable, f"at {self.target.own_name!r}")
            ctypes.memmove(to, source, size)
            if self._until_failure is not None:
                self._until_failure -= 1
        if self.polls < self.course.polls:
            return
        if self.course.fails is not None:
            raise EngineFailed("it was programmed to fail")
        if not self._pieces:
            self.arrived = True
            self.writer.forget_who_left()


def _require_within(address: int, size: int, regions: Iterable[Region], where: str) -> None:
    if not any(begin <= address and address + size <= begin + length for begin, length in regions):
        raise EngineFailed(f"no region {where} has {size} bytes at {address:#x}")


def _decoded(metadata: bytes) -> tuple[str, list[Region]]:
    try:
        if len(metadata) > MAX_METADATA:
            raise ValueError("too long")
        name, regions = json.loads(metadata)
        return str(name), [(int(address), int(size)) for address, size in regions]
    except (ValueError, TypeError) as error:
        raise EngineFailed(f"the metadata is damaged: {error}") from error
