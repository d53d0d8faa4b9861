"""What llmdd needs of an engine that moves bytes between the memory of two hosts.

A node has one engine. It registers the memory that may take part, gives its *metadata* to the engines of its peers,
and reads from a peer's registered memory into its own. There is no writing into a peer's memory: who wants the bytes
fetches them, so that whatever goes wrong, memory is written by its own process alone, and :meth:`Reading.poll` says
when it is written no more.

:mod:`llmdd.transport.engines` knows which engines there are.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

#: Pieces of memory, one a row: address, number of bytes, and 0 (the number of the device, which is the host).
Descriptors = NDArray[np.uint64]

#: The longest metadata, in bytes, that an engine gives or takes.
MAX_METADATA = 1 << 20

#: How often a reading is polled before the other threads of the process have a turn.
POLLS_IN_A_ROW = 8


class EngineUnavailable(Exception):
    """The engine cannot be had on this machine. The message says what is missing and what to install."""


class EngineFailed(Exception):
    """The engine has given up. Nothing of the transfer that it speaks of is written any more."""


class Reading(ABC):
    """One read under way: bytes of a peer come into memory of this process."""

    @abstractmethod
    def poll(self) -> bool:
        """Whether all bytes have arrived. Lets the engine proceed, too: what is not polled does not move.

        Raises
        ------
        EngineFailed
            If they will not arrive. What has been written until now stays, and nothing is written any more. Asked
            again, it is raised again.
        """

    @abstractmethod
    def release(self) -> None:
        """Give back what the engine keeps for this read; only when `poll` has said True or raised. Again is nothing."""


class TransferEngine(ABC):
    """The engine of one node. Any method may be called from any thread.

    Attributes
    ----------
    name
        What users call this kind of engine, as in the option ``transfer_backend``.
    """

    name: ClassVar[str]

    @abstractmethod
    def register(self, address: int, size: int) -> None:
        """Let memory of this process be read by peers, and written by what is read from them.

        Regions may overlap, and each is registered as often as it is asked for. One piece of a transfer lies within
        one region.

        Raises
        ------
        EngineFailed
            If the engine cannot have that memory.
        """

    @abstractmethod
    def deregister(self, address: int, size: int) -> None:
        """Take back one registration: exactly what was registered, and no read under way uses it.

        Raises
        ------
        KeyError
            If nothing is registered as that.
        """

    @abstractmethod
    def metadata(self) -> bytes:
        """What a peer's engine needs to read what is registered now; at most `MAX_METADATA` bytes.

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
        """Take newer metadata of a connected peer, which has registered more memory since.

        Raises
        ------
        EngineFailed
            If the metadata is of no use, or is not that peer's.
        """

    @abstractmethod
    def reconnect(self, peer: str) -> None:
        """Reach a peer anew, after `EngineFailed`: it is there still, its connection may not be.

        Raises
        ------
        EngineFailed
            If it cannot be reached, or reads from it are under way still.
        """

    @abstractmethod
    def disconnect(self, peer: str) -> None:
        """Forget a peer. Again is nothing.

        Readings from it that are under way go on, and are to be polled until they have ended: an engine need not be
        able to end them. New ones are refused, and so is `connect`, until the last has ended.
        """

    @abstractmethod
    def read(self, peer: str, local: Descriptors, remote: Descriptors) -> Reading:
        """Begin to read pieces of a peer's memory into pieces of this process's.

        Parameters
        ----------
        peer
            As `connect` has named it.
        local, remote
            Where to, and where from: as many rows, and equal numbers of bytes row by row. They are not kept.

        Raises
        ------
        EngineFailed
            If a piece is not within one registered region, or the peer cannot be reached. Nothing is written.
        """

    @abstractmethod
    def progress(self) -> None:
        """Let proceed what peers read here. Cheap; called again and again while a peer reads."""

    @abstractmethod
    def close(self) -> None:
        """End all that is under way: nothing is written any more. Later polls and calls fail. Again is nothing."""


def wait(reading: Reading, deadline: float, broken: Callable[[], bool]) -> bool:
    """Poll until all bytes have arrived, and say so; False if the deadline or a break came first.

    Parameters
    ----------
    deadline
        As ``time.monotonic()`` counts; ``math.inf`` for none. At least one poll is made in any case.
    broken
        Whether there is nobody left to wait for.

    Raises
    ------
    EngineFailed
        If the bytes will not arrive.
    """
    while True:
        for _ in range(POLLS_IN_A_ROW):
            if reading.poll():
                return True
        if broken() or time.monotonic() >= deadline:
            return False
        time.sleep(0)  # gives up the GIL, and the processor where another process wants it
