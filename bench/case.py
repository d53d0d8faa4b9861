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
    """

    name: str
    factory: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.factory.partition(":")[0]

    @property
    def class_name(self) -> str:
        return self.factory.partition(":")[2]


@dataclass(frozen=True)
class Target:
    """What llmdd should reach in a case: of two limits the larger. Missing it is shown, and fails nothing."""

    max_ratio: float | None = None
    max_ns: float | None = None
    remark: str = ""

    def __str__(self) -> str:
        limits = []
        if self.max_ns is not None:
            limits.append(f"≤ {duration(self.max_ns)}")
        if self.max_ratio is not None:
            limits.append(f"≤ {self.max_ratio:.3g}x")
        return " or ".join(limits) + (f" ({self.remark})" if self.remark else "")

    def is_met(self, ratio: float, median_ns: float) -> bool:
        return (self.max_ratio is not None and ratio <= self.max_ratio) or (
            self.max_ns is not None and median_ns <= self.max_ns
        )


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
