"""Writing a stream to a peer, stretch by stretch: the same at either end of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from llmdd.transport.engine import Descriptors
from llmdd.transport.staging import PARTS, STRETCH_BYTES, Outbox, address_of_part

#: Pieces that are smaller than this on the average are gathered. A larger one is worth a descriptor.
GATHERED_BELOW = 32 * 1024


#: How often a stream is written before the transfer fails. A connection that has died is found out by the first that is
#: to be written, and the peer may be there all the same.
ATTEMPTS = 2


class Source(Protocol):
    """What is written: the stream of an ``Exchange`` that pushes, or of ``ServedTransfers`` that are pulled."""

    @property
    def stream_bytes(self) -> int: ...
    @property
    def all_mapped(self) -> bool: ...
    @property
    def pieces(self) -> int: ...
    def gather(self, begin: int, target: Any) -> None: ...
    def writing(self, begin: int, size: int, there: int) -> tuple[Descriptors, Descriptors]: ...


class Stretches:
    """The stretches of one stream, written into the parts of the peer's area by turns.

    Memory that the program registered is always gathered: the kernel touches it, which a pull of memory that is gone
    survives.

    Parameters
    ----------
    source, outbox
        What is written, and to whom.
    there
        The peer's area.
    """

    def __init__(self, source: Source, outbox: Outbox, there: int) -> None:
        self._source = source
        self._outbox = outbox
        self._there = there
        self._count = stretch_count(source.stream_bytes)
        self._straight = source.all_mapped and source.stream_bytes >= GATHERED_BELOW * source.pieces
        self._begun = 0
        self._free_parts = PARTS
        self._written = 0

    @property
    def are_written(self) -> bool:
        """Whether all of them are."""
        return self._written == self._count

    def allow_one_more(self) -> None:
        """The peer has copied one on."""
        self._free_parts = min(PARTS, self._free_parts + 1)

    def begin_again(self) -> None:
        """The engine has failed, and nothing is under way: those that have not been written are to be begun anew."""
        self._free_parts += self._begun - self._written
        self._begun = self._written

    def proceed(self) -> Iterator[int]:
        """Begin what can be begun, and give the numbers of those that have been written since.

        Raises
        ------
        EngineFailed
            If one will not be.
        """
        while self._begun < self._count and self._free_parts:
            self._begin(self._begun)
            self._begun += 1
            self._free_parts -= 1
        while self._written < self._begun and (number := self._outbox.poll()) is not None:
            self._written += 1
            yield number

    def _begin(self, number: int) -> None:
        begin, size = number * STRETCH_BYTES, stretch_size(number, self._source.stream_bytes)
        there = address_of_part(self._there, number % PARTS)
        if self._straight:
            self._outbox.write(number, *self._source.writing(begin, size, there))
        else:
            self._source.gather(begin, self._outbox.gathered(number, size))
            self._outbox.write_gathered(number, size, there)


def stretch_count(total: int) -> int:
    """How many stretches a stream of ``total`` bytes has."""
    return -(-total // STRETCH_BYTES)


def stretch_size(number: int, total: int) -> int:
    """How many bytes a stretch of it has."""
    return min(STRETCH_BYTES, total - number * STRETCH_BYTES)
