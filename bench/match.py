"""One case, played: every entrant in a process of its own, round by round, by turns.

Whatever else the machine does meets all of them, and the ratio of their medians means something where the times
themselves do not. Who begins changes from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from types import TracebackType

from .case import Case, Entrant
from .contender import Incorrect, Unavailable
from .results import CaseResult, Standing
from .stable import Failed, Nursery, Stable

WARM_UP_ROUNDS = 2
LEAST_ROUNDS = 5


class Seat:
    """An entrant in a match."""

    def __init__(self, entrant: Entrant) -> None:
        self.entrant = entrant
        self.standing = Standing(name=entrant.name, moves_bytes=entrant.moves_bytes)
        self.nursery: Nursery | None = None
        self.times_ns: list[float] = []

    @property
    def plays(self) -> bool:
        return self.nursery is not None and self.standing.incorrect is None

    def sit_down(self, stable: Stable) -> None:
        with Judgement(self.standing):
            nursery = stable.nursery(self.entrant.module)
            self.standing.operations = nursery.start(self.entrant.class_name, self.entrant.parameters)
            self.nursery = nursery

    def play(self, number: int) -> None:
        assert self.nursery is not None
        with Judgement(self.standing):
            self.times_ns.append(self.nursery.play(number) / self.standing.operations)

    def conclude(self) -> None:
        assert self.nursery is not None
        with Judgement(self.standing):
            found = self.nursery.conclude()
            self.standing.resident_bytes = found["resident_bytes"]
            self.standing.peak_bytes = found["peak_bytes"]
            self.standing.measured = found["measured"]

    def stand_up(self) -> None:
        """End its process. Not being able to close what it had is a failure like any other."""
        if self.nursery is not None:
            with Judgement(self.standing):
                self.nursery.stop()
            self.nursery = None


class Judgement:
    """Writes into a standing why its entrant is out, instead of raising it."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Unavailable):
            self._standing.skipped = str(error)
        elif isinstance(error, (Incorrect, Failed)):
            self._standing.incorrect = self._standing.incorrect or str(error)
        else:
            return False
        return True


class Match:
    """A case in progress; a context, in which its processes live.

    Parameters
    ----------
    case : Case
    stable : Stable
        Where its processes come from.
    """

    def __init__(self, case: Case, stable: Stable) -> None:
        self.case = case
        self._began = time.monotonic()
        self._stable = stable
        self._seats = [Seat(entrant) for entrant in case.entrants]
        self._rounds = 0

    def __enter__(self) -> Match:
        try:
            for seat in self._seats:
                seat.sit_down(self._stable)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        for seat in self._seats:
            seat.stand_up()

    def warm_up(self) -> int:
        """Rounds whose times do not count; how many that count the case has time for."""
        begin = 0.0
        for _ in range(WARM_UP_ROUNDS):
            begin = time.monotonic()
            self.play_round()
        for seat in self._seats:
            seat.times_ns.clear()
        affordable = int(self.case.seconds / (time.monotonic() - begin))
        return min(self.case.rounds, max(LEAST_ROUNDS, affordable))

    def play_round(self) -> None:
        """Everybody once, but for those that did something wrong before."""
        begins = self._rounds % len(self._seats)
        for seat in self._seats[begins:] + self._seats[:begins]:
            if seat.plays:
                seat.play(self._rounds)
        self._rounds += 1

    def play(self, observe: Callable[[float], None] = lambda share: None) -> CaseResult:
        """All rounds; `observe` is told after each what share of the match is over."""
        rounds = self.warm_up()
        for number in range(rounds):
            self.play_round()
            observe((number + 1) / rounds)
        return self.conclude()

    def last_time_ns(self) -> float | None:
        """The time of the first entrant's last round, for one operation."""
        times = self._seats[0].times_ns
        return times[-1] if times and self._seats[0].plays else None

    def conclude(self) -> CaseResult:
        """End all processes, and say what came out."""
        for seat in self._seats:
            if seat.plays:
                seat.conclude()
        self._leave()
        baseline = next(seat for seat in self._seats if seat.entrant.name == self.case.baseline)
        for seat in self._seats:
            settle(seat, baseline)
        case, first = self.case, self._seats[0].standing
        result = CaseResult(
            name=case.name,
            title=case.title,
            operation=case.operation,
            baseline=case.baseline,
            standings=[seat.standing for seat in self._seats],
            seconds=time.monotonic() - self._began,
            bytes_moved=case.bytes_moved,
        )
        if case.place is not None:
            result.axis, result.place = case.place.axis, case.place.value
        if case.target is not None:
            result.target = str(case.target)
            times_ns = {one.name: one.median_ns for one in result.standings if one.median_ns is not None}
            if first.median_ns is not None:
                result.target_met = case.target.is_met(first.median_ns, case.baseline, times_ns)
        return result


def settle(seat: Seat, baseline: Seat) -> None:
    """Write an entrant's times into its standing, unless it did something wrong: then it has none."""
    standing = seat.standing
    if not standing.correct:
        standing.resident_bytes = standing.peak_bytes = None
        standing.measured = {}
        return
    standing.times_ns = seat.times_ns
    standing.median_ns = median(seat.times_ns)
    standing.quartiles_ns = quartiles(seat.times_ns)
    if baseline.standing.correct:
        standing.ratio = standing.median_ns / median(baseline.times_ns)
        standing.ratio_quartiles = quartiles(
            [ours / theirs for ours, theirs in zip(seat.times_ns, baseline.times_ns, strict=True)]
        )


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4)
    return low, high
