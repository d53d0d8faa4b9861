"""What is measured: one operation at one size, and who does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .durations import duration


class Profile(str, Enum):
    """How much is measured."""

    QUICK = "quick"
    """About two minutes."""
    FULL = "full"
    """All sizes, up to half an hour."""


@dataclass(frozen=True)
class Entrant:
    """Who takes part in a case.

    Parameters
    ----------
    name : str
        As tables and plots show it: ``llmdd``, ``dictionaries``, ``NIXL``.
    factory : str
        The :class:`~.contender.Contender` to make, as ``module:class``. The contenders of one module share the process
        that forks theirs.
    parameters : mapping, optional
        Given to it as keyword arguments.
    moves_bytes : bool
        Whether it moves what the case is about, so that there is a rate; what only shows a part of the cost does not.
    """

    name: str
    factory: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    moves_bytes: bool = True

    @property
    def module(self) -> str:
        return self.factory.partition(":")[0]

    @property
    def class_name(self) -> str:
        return self.factory.partition(":")[2]


@dataclass(frozen=True)
class Target:
    """What llmdd should reach in a case: of several limits the largest. Missing it is shown, and fails nothing.

    Parameters
    ----------
    max_ratio : float, optional
        The baseline's time, so many times.
    best_of : tuple of str, optional
        `max_ratio` is of the least time of the entrants with these names instead of the baseline's.
    max_ns : float, optional
        Nanoseconds.
    one_more : str, optional
        The baseline's time and that of the entrant with this name.
    ahead_of : tuple of str, optional
        Less time than each of the entrants with these names takes: this is no limit among others, and stands alone.
    remark : str, optional
        What the limit means.
    """

    max_ratio: float | None = None
    best_of: tuple[str, ...] = ()
    max_ns: float | None = None
    one_more: str | None = None
    ahead_of: tuple[str, ...] = ()
    remark: str = ""

    def __str__(self) -> str:
        limits = []
        if self.max_ns is not None:
            limits.append(f"≤ {duration(self.max_ns)}")
        if self.max_ratio is not None:
            best = f" the best of {' and of '.join(self.best_of)}" if self.best_of else ""
            limits.append(f"≤ {self.max_ratio:.3g}x{best}")
        if self.one_more is not None:
            limits.append(f"≤ 1x and one {self.one_more}")
        if self.ahead_of:
            limits.append(f"ahead of {' and of '.join(self.ahead_of)}")
        return " or ".join(limits) + (f" ({self.remark})" if self.remark else "")

    def is_met(self, median_ns: float, baseline: str, others_ns: Mapping[str, float]) -> bool | None:
        """Whether a time is within the limit, by the others' times; None if those that it takes have none."""
        if self.ahead_of:
            least_ns = least(self.ahead_of, others_ns)
            return None if least_ns is None else median_ns < least_ns
        limits = [] if self.max_ns is None else [self.max_ns]
        if self.max_ratio is not None:
            least_ns = least(self.best_of or (baseline,), others_ns)
            if least_ns is not None:
                limits.append(self.max_ratio * least_ns)
        if self.one_more is not None and self.one_more in others_ns and baseline in others_ns:
            limits.append(others_ns[baseline] + others_ns[self.one_more])
        return median_ns <= max(limits) if limits else None


def least(names: tuple[str, ...], times_ns: Mapping[str, float]) -> float | None:
    """The least time of the entrants `names`; None unless each of them has one."""
    return min(times_ns[name] for name in names) if times_ns.keys() >= set(names) else None


@dataclass(frozen=True)
class Place:
    """Where a case stands on the axis of a log-log plot."""

    axis: str
    """What grows: ``live caches``, ``bytes``, ``linked peers``, ``blocks``."""
    value: int


@dataclass(frozen=True)
class Case:
    """One line of entrants who do the same.

    Parameters
    ----------
    name : str
        Its group and its size, ``pull/4KiB``: what ``--case`` selects by.
    title : str
        What an operation does, as a sentence's beginning.
    operation : str
        What times are for, in one word: ``cycle``, ``lookup``, ``pull``.
    entrants : tuple of Entrant
        llmdd first.
    baseline : str
        The name of the entrant that ratios divide by.
    rounds : int
        How many to play at most.
    seconds : float
        How long they may take, so that fewer are played where they are slow: :data:`~.match.LEAST_ROUNDS` at least.
    bytes_moved : int, optional
        By one operation.
    place : Place, optional
        For plots against a size.
    target : Target, optional
        For the first entrant.
    """

    name: str
    title: str
    operation: str
    entrants: tuple[Entrant, ...]
    baseline: str
    rounds: int
    seconds: float
    bytes_moved: int = 0
    place: Place | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        names = [entrant.name for entrant in self.entrants]
        if len(set(names)) < len(names) or self.baseline not in names:
            raise ValueError(f"{self.name}: the entrants {names} need names of their own, the baseline among them")

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]
