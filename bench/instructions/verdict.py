"""What is said about the difference between counts and their baseline."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .baseline import Baseline
from .counts import Counted, Counting, Counts
from .environment import DIFFERENT_BESIDES_THE_CORE, WHOLLY_DIFFERENT, differences


class Verdict(str, Enum):
    """On one path. The worst that is true of it."""

    NOT_COMPARED = ""
    SAME = "same"
    BETTER = "better"
    NEW = "new"
    """Counted, and in no baseline: nothing would notice if it got worse."""
    GONE = "gone"
    """In the baseline, and not counted."""
    WORSE = "worse"

    @property
    def fails(self) -> bool:
        return self in (Verdict.NEW, Verdict.GONE, Verdict.WORSE)


@dataclass(frozen=True)
class Judged:
    """A path with what was found about it."""

    name: str
    operation: str
    before: Counts | None
    now: Counts | None
    compared: tuple[str, ...]
    """Which of the counts mean something beside those before."""
    verdict: Verdict


@dataclass(frozen=True)
class Judgement:
    """All paths with what was found about them."""

    paths: list[Judged]
    incomparable: dict[str, tuple[str, str]]
    """In what the environment differs so much that nothing is compared."""
    only_the_core: dict[str, tuple[str, str]]
    """In what it differs so that only the core is compared."""

    @property
    def fails(self) -> bool:
        return any(path.verdict.fails for path in self.paths)

    def having(self, verdict: Verdict) -> list[str]:
        """The names of the paths with this verdict."""
        return [path.name for path in self.paths if path.verdict is verdict]


def growth(before: float, now: float) -> float:
    """0.01 is one in a hundred more."""
    if before == now:
        return 0.0
    return now / before - 1 if before else float("inf")


def judge(baseline: Baseline, counting: Counting, *, is_whole: bool) -> Judgement:
    """Compare counts with the baseline.

    Parameters
    ----------
    baseline : Baseline
    counting : Counting
    is_whole : bool
        Whether all paths were to be counted: then those of the baseline that were not are gone.
    """
    incomparable = differences(baseline.environment, counting.environment, WHOLLY_DIFFERENT)
    only_the_core = differences(baseline.environment, counting.environment, DIFFERENT_BESIDES_THE_CORE)
    compared = () if incomparable else ("core",) if only_the_core else ("core", "everything")

    def verdict_on(before: Counts | None, now: Counted) -> Verdict:
        if not compared:
            return Verdict.NOT_COMPARED
        if before is None:
            return Verdict.NEW
        verdicts = [
            verdict_of(getattr(before, part), getattr(now.counts, part), getattr(baseline.tolerance, part))
            for part in compared
        ]
        return next((one for one in (Verdict.WORSE, Verdict.BETTER) if one in verdicts), Verdict.SAME)

    judged = []
    for name, now in counting.paths.items():
        before = baseline.paths.get(name)
        judged.append(Judged(name, now.operation, before, now.counts, compared, verdict_on(before, now)))
    if is_whole and compared:
        judged += [
            Judged(name, "", before, None, compared, Verdict.GONE)
            for name, before in baseline.paths.items()
            if name not in counting.paths
        ]
    return Judgement(judged, incomparable, only_the_core)


def verdict_of(before: float, now: float, tolerance: float) -> Verdict:
    """On one number."""
    grown = growth(before, now)
    return Verdict.WORSE if grown > tolerance else Verdict.BETTER if grown < -tolerance else Verdict.SAME
