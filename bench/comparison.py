"""Times a subject and its baseline in alternating rounds of one run, and says how they compare."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

WARM_UP_ROUNDS = 2

Action = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """What a case should reach: of two limits the larger one. A missed target is shown as missed, and fails nothing."""

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
class Comparison:
    """Medians over all rounds, in nanoseconds for one operation."""

    case: str
    median_ns: float
    baseline: str
    baseline_median_ns: float
    ratio_quartiles: tuple[float, float]
    target: Target | None = None
    bytes_moved: int = 0

    @property
    def ratio(self) -> float:
        return self.median_ns / self.baseline_median_ns

    @property
    def target_is_met(self) -> bool | None:
        return None if self.target is None else self.target.is_met(self.ratio, self.median_ns)

    def extra_info(self) -> dict[str, Any]:
        """What goes beside the times into pytest-benchmark's reports."""
        info: dict[str, Any] = {
            "case": self.case,
            "median_ns": self.median_ns,
            "baseline": self.baseline,
            "baseline_median_ns": self.baseline_median_ns,
            "ratio": self.ratio,
            "ratio_quartiles": self.ratio_quartiles,
        }
        if self.target is not None:
            info |= {"target": str(self.target), "target_met": self.target_is_met}
        if self.bytes_moved:
            info |= {
                "bytes": self.bytes_moved,
                "rate_gb_s": self.bytes_moved / self.median_ns,
                "baseline_rate_gb_s": self.bytes_moved / self.baseline_median_ns,
            }
        return info


class AlternatingRounds:
    """Each round prepares, then times subject and baseline once, the other one first in every second round."""

    def __init__(self, subject: Action, baseline: Action, prepare: Action, inspect: Action) -> None:
        self._subject = subject
        self._baseline = baseline
        self._prepare = prepare
        self._inspect = inspect
        self._rounds = 0
        self.subject_ns: list[int] = []
        self.baseline_ns: list[int] = []

    def begin(self) -> None:
        self._prepare()
        if self._rounds % 2:
            self.baseline_ns.append(elapsed_ns(self._baseline))

    def run_subject(self) -> None:
        self.subject_ns.append(elapsed_ns(self._subject))

    def end(self) -> None:
        if not self._rounds % 2:
            self.baseline_ns.append(elapsed_ns(self._baseline))
        self._inspect()
        self._rounds += 1

    def forget(self) -> None:
        """Drop the times of the rounds so far: they warmed up."""
        self.subject_ns.clear()
        self.baseline_ns.clear()


def elapsed_ns(action: Action) -> int:
    begin = time.perf_counter_ns()
    action()
    return time.perf_counter_ns() - begin


def nothing() -> None:
    """The default for what a round does outside its timed parts."""


class Comparer:
    """The fixture by which a benchmark is written (see :meth:`__call__`); keeps what it found for the summary."""

    def __init__(self, benchmark: BenchmarkFixture, found: list[Comparison]) -> None:
        self._benchmark = benchmark
        self._found = found

    def __call__(
        self,
        case: str,
        subject: Action,
        baseline: Action,
        *,
        baseline_name: str,
        verify: Action,
        operations: int,
        rounds: int,
        prepare: Action = nothing,
        inspect: Action = nothing,
        bytes_moved: int = 0,
        target: Target | None = None,
    ) -> None:
        """Measure one case.

        Parameters
        ----------
        case : str
            Its name in the summary.
        subject, baseline : callable
            One round of each: the same work, `operations` times.
        baseline_name : str
        verify : callable
            Raises if subject or baseline did not do what they claim. Called once, after all rounds; what the next round
            would overwrite is to be looked at in `inspect`.
        operations, rounds : int
        prepare, inspect : callable, optional
            Called before and after each round, outside the timed parts.
        bytes_moved : int, optional
            By one operation.
        target : Target, optional
        """
        self._benchmark.extra_info["correct"] = False
        pair = AlternatingRounds(subject, baseline, prepare, inspect)
        gc.collect()
        gc.disable()
        try:
            for _ in range(WARM_UP_ROUNDS):
                pair.begin()
                pair.run_subject()
                pair.end()
            pair.forget()
            self._run(pair, rounds)
        finally:
            gc.enable()
        verify()
        if self._benchmark.disabled:
            return
        ratios = [ours / theirs for ours, theirs in zip(pair.subject_ns, pair.baseline_ns, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        found = Comparison(
            case,
            statistics.median(pair.subject_ns) / operations,
            baseline_name,
            statistics.median(pair.baseline_ns) / operations,
            (low, high),
            target,
            bytes_moved,
        )
        self._found.append(found)
        self._benchmark.extra_info.update(found.extra_info(), operations_per_round=operations, correct=True)

    def _run(self, pair: AlternatingRounds, rounds: int) -> None:
        self._benchmark.pedantic(  # type: ignore[no-untyped-call]
            pair.run_subject, setup=pair.begin, teardown=pair.end, rounds=rounds, iterations=1
        )
        if self._benchmark.disabled:
            pair.end()  # a disabled benchmark runs one round, and no teardown


def duration(nanoseconds: float) -> str:
    """A time with three digits and the unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"
