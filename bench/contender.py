"""What takes part in a case: llmdd, a baseline or a peer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Incorrect(Exception):
    """A contender did something else than it claims: a wrong byte, a key that was not released. It has no time."""


class Unavailable(Exception):
    """A contender cannot take part here; the message says why, and what to do about it."""


class Contender(ABC):
    """One way to do what a case is about, alone in a process that was forked for it.

    Its module is imported in the process that forks, so that raises :class:`Unavailable` if something it needs is not
    installed or does not work here; and if it measures
    packages, it has a function ``versions`` that names them.

    Making one is its set-up, with the case's parameters as keyword arguments. Then, for each round, :meth:`prepare`,
    :meth:`run` and :meth:`inspect` are called; only `run` is timed. In the end come :meth:`verify` and :meth:`close`.
    The garbage collector rests from the first round on.
    """

    #: Operations in one :meth:`run`: at least so many that a round takes about a millisecond.
    operations: int = 1

    def prepare(self, number: int) -> None:  # noqa: B027 - nothing to prepare is the usual case
        """Make ready for round `number` (0, 1, ...): what it needs, and bytes that no round before had."""

    @abstractmethod
    def run(self) -> None:
        """Do the case's operation :attr:`operations` times."""

    def inspect(self, number: int) -> None:  # noqa: B027 - what the next round does not overwrite is for verify
        """Raise :class:`Incorrect` unless round `number` did what it should have."""

    @abstractmethod
    def verify(self) -> None:
        """Raise :class:`Incorrect` unless, after all rounds, everything was done and nothing is left over."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give everything back and end every other process."""

    def other_processes(self) -> Sequence[int]:
        """The ids of its :class:`~.other_end.OtherEnd` processes, whose memory counts as its own."""
        return ()

    def measured(self) -> dict[str, Any]:
        """What it measured itself beside the time, after all rounds: JSON values, such as a series to plot."""
        return {}


def require(holds: bool, otherwise: str) -> None:
    """:class:`Incorrect` with the message `otherwise` unless `holds`."""
    if not holds:
        raise Incorrect(otherwise)
