"""What is counted: a path of the core that is taken again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


class Incorrect(Exception):
    """A path did something else than it is there for. It has no count."""


def require(condition: object, what: str) -> None:
    """Raise :class:`Incorrect`, saying `what` is wrong, unless `condition` holds. ``assert`` could be switched off."""
    if not condition:
        raise Incorrect(what)


class Exercise(ABC):
    """Takes one path of the core, turn after turn.

    Making one is its set-up. Then :meth:`prepare`, :meth:`run` and :meth:`inspect` are called in this order, several
    times, with various numbers of turns; only `run` is counted. In the end comes :meth:`close`.
    """

    #: Operations in one turn.
    operations: int = 1

    def prepare(self, turns: int) -> None:  # noqa: B027 - nothing to prepare is possible
        """Make ready for so many turns."""

    @abstractmethod
    def run(self, turns: int) -> None:
        """Take so many turns. All that a turn does besides is a loop."""

    def inspect(self, turns: int) -> None:  # noqa: B027 - nothing to see is possible
        """Raise :class:`Incorrect` unless the turns did what they should have."""

    def close(self) -> None:  # noqa: B027 - nothing to close is possible
        """Give back what the exercise has."""


@dataclass(frozen=True)
class CountedPath:
    """A path, and how it is exercised.

    Parameters
    ----------
    name : str
        What tables show and ``--path`` selects by.
    operation : str
        What a count is for, in one word: ``cycle``, ``key``.
    exercise : callable
        Makes the :class:`Exercise`.
    turns : int
        It is counted over so many turns, and over twice as many; the difference is what turns take.
    """

    name: str
    operation: str
    exercise: Callable[[], Exercise]
    turns: int = 100


class UnknownPath(Exception):
    """A pattern selects nothing; the message names it and what there is."""


def select(paths: Sequence[CountedPath], patterns: Sequence[str]) -> list[CountedPath]:
    """Those whose name matches one of `patterns`, as file names do; all if there is no pattern.

    Raises
    ------
    UnknownPath
    """
    for pattern in patterns:
        if not any(fnmatchcase(path.name, pattern) for path in paths):
            raise UnknownPath(f"no path is called {pattern!r}; there are: {', '.join(path.name for path in paths)}")
    return [path for path in paths if not patterns or any(fnmatchcase(path.name, pattern) for pattern in patterns)]
