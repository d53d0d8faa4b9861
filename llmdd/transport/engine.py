"""What llmdd needs of an engine that moves bytes between the memory of two hosts.

A node has one engine. It registers the memory that may take part, gives its *metadata* to the engines of its peers,
and writes from its own memory into a peer's. Nothing is read from a peer: UCX, over TCP, lets a process abort from
which another reads that dies meanwhile. Nor can a write be called back, so no engine is ever pointed at a cache: what
may be written to is staging memory (:mod:`.staging`).

:mod:`llmdd.transport.engines` knows which engines there are.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

#: Pieces of memory, one a row: address, number of bytes, and 0 (the number of the device, which is the host).
Descriptors = NDArray[np.uint64]

#: The longest metadata, in bytes, that an engine gives or takes.
MAX_METADATA = 1 << 20

#: How often a writing is polled before the other threads of the process have a turn.
POLLS_IN_A_ROW = 8

#: How long a writing is polled without a pause, and the pause between polls from then on, in seconds. A peer that takes
#: longer is slow or frozen, and not worth a whole core; what goes out meanwhile is in the buffers of the network.
EAGER_S = 0.02
PAUSE_S = 0.0002


class EngineUnavailable(Exception):
    """The engine cannot be had on this machine. The message says what is missing and what to install."""


class EngineFailed(Exception):
    """The engine has given up. Nothing of the transfer that it speaks of is written any more."""


class Writing(ABC):
    """One write under way: bytes of this process come into memory of a peer."""

    @abstractmethod
    def poll(self) -> bool:
        """Whether all bytes are in the peer's memory. Lets the engine proceed, too: what is not polled does not move.

        Raises
        ------
        EngineFailed
            If they will not arrive. What has been written until now stays, and nothing is written any more. Asked
            again, it is raised again.
        """

    @abstractmethod
    def release(self) -> None:
        """Give back what the engine keeps for it; only when `poll` has said True or raised. Again is nothing."""


class TransferEngine(ABC):
    """The engine of one node. Any method may be called from any thread.

    Attributes
    ----------
    name
        What users call this kind of engine, as in the option ``transfer_backend``.
    """

    name: ClassVar[str]

    @abstractmethod
    def register(self, address: int, size: int, *, writable: bool) -> None:
        """Let memory of this process be written from, to peers.

        Regions may overlap, and each is registered as often as it is asked for. One piece of a transfer lies within
        one region.

        Parameters
        ----------
        address, size
            Of the region.
        writable
            Whether peers may write to it, too: only then do they learn of it, and hardware lets them. A region that is
            registered both ways is writable.

        Raises
        ------
        EngineFailed
            If the engine cannot have that memory.
        """

    @abstractmethod
    def deregister(self, address: int, size: int) -> None:
        """Take back one registration: exactly what was registered, and nothing under way uses it.

        Raises
        ------
        KeyError
            If nothing is registered as that.
        """

    @abstractmethod
    def metadata(self) -> bytes:
        """What a peer's engine needs to write to what is writable now; at most `MAX_METADATA` bytes.

        Raises
        ------
        EngineFailed
            If it would be longer, or cannot be made.
        """

    @abstractmethod
    def connect(self, metadata: bytes) -> str:
        """Make a peer's engine known to this one, and say by which name it is known here.

        Raises
        ------
        EngineFailed
            If the metadata is of no use: damaged, of another version, or of an engine that this one cannot reach or
            is connected to already.
        """

    @abstractmethod
    def refresh(self, peer: str, metadata: bytes) -> None:
        """Take newer metadata of a connected peer, which has registered more writable memory since.

        Raises
        ------
        EngineFailed
            If the metadata is of no use, or is not that peer's.
        """

    @abstractmethod
    def reconnect(self, peer: str) -> bool:
        """Reach a peer anew, if a write to it has failed since it was reached last: its connection may be gone.

        Whoever begins to write asks this first, whichever transfer it was that failed.

        Returns
        -------
        bool
            Whether the peer is reached. If not, other writes to it are under way still: each is to be polled until it
            has ended, and this asked again.

        Raises
        ------
        EngineFailed
            If it cannot be reached.
        """

    @abstractmethod
    def disconnect(self, peer: str) -> None:
        """Forget a peer. Again is nothing.

        Writings to it that are under way go on, and are to be polled until they have ended: an engine need not be
        able to end them. New ones are refused. `connect` makes it known again.
        """

    @abstractmethod
    def write(self, peer: str, local: Descriptors, remote: Descriptors) -> Writing:
        """Begin to write pieces of this process's memory into pieces of a peer's.

        What is changed here meanwhile may arrive as it was or as it is.

        Parameters
        ----------
        peer
            As `connect` has named it.
        local, remote
            Where from, and where to: as many rows, and equal numbers of bytes row by row. They are not kept.

        Raises
        ------
        EngineFailed
            If a piece is not within one registered region here, or one writable region of the peer's as far as its
            metadata told, or the peer cannot be reached. Nothing is written.
        """

    @abstractmethod
    def progress(self) -> None:
        """Let proceed what peers write here. Cheap; called again and again while a peer writes."""

    @abstractmethod
    def close(self) -> None:
        """End all that is under way: nothing is written any more. Later polls and calls fail. Again is nothing."""


class Pace:
    """How often to look at what is under way, and give the GIL and the processor to others: all the time at first."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Something has moved: look often again."""
        self._looks = 0
        self._eager_until = time.monotonic() + EAGER_S

    def rest(self) -> None:
        """Between two looks."""
        self._looks += 1
        if self._looks % POLLS_IN_A_ROW == 0:
            # Even no pause at all gives up the GIL, and the processor where another process wants it.
            time.sleep(0 if time.monotonic() < self._eager_until else PAUSE_S)
