"""Who is wrong, raises, dies or is missing is out, with the reason and without a time; the others play on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from llmdd.bench.case import Case, Entrant, Target
from llmdd.bench.match import LEAST_ROUNDS, Match
from llmdd.bench.other_end import OtherEnd, OtherEndFailed
from llmdd.bench.results import CaseResult, Standing
from llmdd.bench.stable import Stable

HERE = Path(__file__).parent

GOOD = Entrant("good", "toy_contenders:Sum", {"count": 1000})
SLOWER = Entrant("slower", "toy_contenders:Sum", {"count": 4000})


@pytest.fixture(scope="module")
def stable() -> Iterator[Stable]:
    with Stable(str(HERE)) as stable:
        yield stable


def case_of(*entrants: Entrant, baseline: str = "good", seconds: float = 600, target: Target | None = None) -> Case:
    return Case("toy/1", "sums", "sum", entrants, baseline, rounds=7, seconds=seconds, target=target)


def play(stable: Stable, *entrants: Entrant, **keywords: object) -> CaseResult:
    with Match(case_of(*entrants, **keywords), stable) as match:  # type: ignore[arg-type]
        return match.play()


def standing_of(stable: Stable, class_name: str, module: str = "toy_contenders") -> tuple[Standing, CaseResult]:
    """How a contender does beside a good one, which must not be concerned."""
    result = play(stable, GOOD, Entrant("odd", f"{module}:{class_name}"))
    good, odd = result.standings
    assert good.correct and len(good.times_ns) == 7 and good.ratio == 1
    assert odd.median_ns is None and odd.ratio is None and odd.times_ns == []
    assert odd.resident_bytes is None and odd.peak_bytes is None and not odd.correct
    return odd, result


def test_times_are_for_one_operation_and_ratios_against_the_baseline(stable: Stable) -> None:
    result = play(stable, GOOD, SLOWER, target=Target(max_ratio=2))
    good, slower = result.standings
    assert good.correct and slower.correct and good.operations == 10
    assert good.median_ns is not None and slower.median_ns is not None and slower.ratio is not None
    assert slower.ratio == slower.median_ns / good.median_ns > 1
    assert good.quartiles_ns is not None and good.quartiles_ns[0] <= good.median_ns <= good.quartiles_ns[1]
    assert result.target == "≤ 2x" and result.target_met is True
    assert stable.versions == {"toys": "1.2"}


LIMITS = [
    (Target(max_ratio=2), "≤ 2x", 200, 201),
    (Target(max_ratio=2, best_of=("peer", "trip")), "≤ 2x the best of peer and of trip", 60, 61),
    (Target(max_ns=150), "≤ 150 ns", 150, 151),
    (Target(max_ratio=2, max_ns=250), "≤ 250 ns or ≤ 2x", 250, 251),
    (Target(one_more="trip"), "≤ 1x and one trip", 130, 131),
    (Target(ahead_of=("peer", "trip"), remark="both"), "ahead of peer and of trip (both)", 29, 30),
]


@pytest.mark.parametrize(
    ("target", "text", "met", "missed"), LIMITS, ids=lambda one: one if isinstance(one, str) else ""
)
def test_a_target_is_judged_by_the_times_of_others(target: Target, text: str, met: float, missed: float) -> None:
    times_ns = {"peer": 100.0, "trip": 30.0}
    assert str(target) == text
    assert target.is_met(met, "peer", times_ns) is True
    assert target.is_met(missed, "peer", times_ns) is False
    assert target.is_met(met, "peer", {}) is (None if target.max_ns is None else met <= target.max_ns)


@pytest.mark.parametrize(
    "target", [Target(max_ratio=2, best_of=("peer", "trip")), Target(ahead_of=("peer", "trip"))], ids=str
)
def test_a_target_that_takes_the_times_of_several_is_not_judged_without_one_of_them(target: Target) -> None:
    for times_ns in ({"peer": 100.0}, {"trip": 30.0}, {"peer": 100.0, "other": 30.0}):
        assert target.is_met(1, "peer", times_ns) is None


def test_without_time_the_least_number_of_rounds_is_played(stable: Stable) -> None:
    result = play(stable, GOOD, seconds=1e-9)
    assert len(result.standings[0].times_ns) == LEAST_ROUNDS


@pytest.mark.parametrize(
    ("class_name", "told"),
    [
        ("Wrong", "round 3: another sum"),
        ("WrongInTheEnd", "something is left over"),
        ("Raises", "RuntimeError: out of sums"),
        ("RaisesInClose", "RuntimeError: does not go away"),
        ("Dies", "its process ended with -9"),
        ("NoSuchClass", "NoSuchClass"),
    ],
)
def test_who_is_wrong_has_no_time(stable: Stable, class_name: str, told: str) -> None:
    standing, _ = standing_of(stable, class_name)
    assert standing.skipped is None and standing.incorrect is not None and told in standing.incorrect


@pytest.mark.parametrize(
    ("module", "class_name", "told"),
    [
        ("toy_contenders", "CannotBeMade", "needs a machine with an abacus"),
        ("missing_library", "Anything", "the abacus library is not installed"),
    ],
)
def test_who_is_missing_is_skipped_with_the_reason(stable: Stable, module: str, class_name: str, told: str) -> None:
    standing, _ = standing_of(stable, class_name, module)
    assert standing.skipped == told and standing.incorrect is None


def test_without_a_correct_baseline_there_are_times_and_no_ratios(stable: Stable) -> None:
    result = play(stable, Entrant("bad", "toy_contenders:Wrong"), SLOWER, baseline="bad", target=Target(max_ratio=2))
    assert result.standings[1].median_ns is not None and result.standings[1].ratio is None
    assert result.target_met is None


def test_a_module_that_cannot_be_imported_is_a_failure(stable: Stable) -> None:
    standing, _ = standing_of(stable, "Anything", "no_such_module")
    assert standing.incorrect is not None and "no_such_module" in standing.incorrect


def test_a_nursery_that_was_lost_is_replaced(stable: Stable) -> None:
    result = play(stable, Entrant("good", "toy_contenders:TakesItsNurseryAlong"))
    assert "ended with status -9" in (result.standings[0].incorrect or "")
    assert play(stable, GOOD, SLOWER).standings[0].correct


def test_memory_is_what_all_processes_of_a_contender_took(stable: Stable) -> None:
    size = 64 << 20
    small, large = play(
        stable,
        Entrant("good", "toy_contenders:Together", {"size": 1}),
        Entrant("large", "toy_contenders:Together", {"size": size}),
    ).standings
    assert small.resident_bytes is not None and large.resident_bytes is not None and large.peak_bytes is not None
    assert size <= large.resident_bytes - small.resident_bytes < 1.5 * size
    # The bytes are copied once into the array that stays.
    assert large.peak_bytes >= large.resident_bytes + size // 2


def test_every_process_has_ended_with_the_match(stable: Stable) -> None:
    result = play(stable, Entrant("good", "toy_contenders:Together", {"size": 1}))
    process = result.standings[0].measured["process"]
    assert not Path(f"/proc/{process}").exists()


def test_two_entrants_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="names of their own"):
        case_of(GOOD, GOOD)
    with pytest.raises(ValueError, match="the baseline among them"):
        case_of(SLOWER)


def test_the_other_end_tells_what_it_raised() -> None:
    from toy_contenders import FarSum

    with OtherEnd(FarSum) as far:
        assert far.call("add", 2, 3) == 5
        with pytest.raises(OtherEndFailed, match="the far end cannot add that"):
            far.call("fail")
        assert far.call("add", 3, 4) == 7
    assert not Path(f"/proc/{far.pid}").exists()


def test_what_the_other_end_raises_when_it_closes_is_told() -> None:
    from toy_contenders import FarSumThatDoesNotClose

    far = OtherEnd(FarSumThatDoesNotClose)
    with pytest.raises(OtherEndFailed, match="something is still open"):
        far.close()
    assert not Path(f"/proc/{far.pid}").exists()


def test_an_other_end_that_is_killed_is_noticed() -> None:
    from toy_contenders import FarSum

    far = OtherEnd(FarSum)
    far.tell("sleep")
    os.kill(far.pid, 9)
    with pytest.raises(OtherEndFailed, match="ended without an answer"):
        far.answer()
    far.close()
    assert not Path(f"/proc/{far.pid}").exists()
