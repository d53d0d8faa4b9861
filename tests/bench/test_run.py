"""Cases are played to their end, or to an interrupt, and what was found is kept."""

from __future__ import annotations

import os
import signal
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import toy_bench
from llmdd.bench import results
from llmdd.bench.case import Profile
from llmdd.bench.progress_bar import clock, seconds_left
from llmdd.bench.results import Run
from llmdd.bench.run import Progress, play

TOYS = str(Path(toy_bench.__file__).parent)


@pytest.fixture(scope="module")
def played() -> tuple[Run, list[Progress]]:
    """A run in which nobody did anything wrong, and what was told of it meanwhile."""
    seen: list[Progress] = []
    return play(toy_bench.right(Profile.QUICK), Profile.QUICK, seen.append, TOYS), seen


def test_everybody_has_a_time_or_a_reason(played: tuple[Run, list[Progress]]) -> None:
    run, _ = played
    assert [case.name for case in run.cases] == ["sum/100", "sum/10000", "pull/4KiB"]
    assert (run.profile, run.interrupted, run.incorrect) == ("quick", False, [])
    assert run.versions == {"llmdd": version("llmdd"), "numpy": version("numpy"), "toys": "1.2"}
    for case in run.cases:
        for standing in case.standings:
            if standing.name == "NIXL":
                assert standing.skipped == "the abacus library is not installed"
                assert standing.median_ns is None
            else:
                assert standing.correct
                assert len(standing.times_ns) == toy_bench.ROUNDS
                assert standing.median_ns is not None
                assert standing.quartiles_ns is not None
                assert standing.quartiles_ns[0] <= standing.median_ns <= standing.quartiles_ns[1]


def test_who_is_wrong_has_no_time_and_harms_nobody() -> None:
    run = play([toy_bench.wrong(), toy_bench.sums("sum/100", 100)], Profile.QUICK, search_path=TOYS)
    found = {standing.name: standing for standing in run.cases[0].standings}
    assert found["Wrong"].incorrect == "round 3: another sum"
    assert found["WrongInTheEnd"].incorrect == "something is left over"
    assert found["Dies"].incorrect == f"its process ended with {-signal.SIGKILL}"
    for name, standing in found.items():
        right = name in ("llmdd", "dictionaries")
        assert standing.correct is right
        assert (standing.median_ns is not None) is right
        assert bool(standing.times_ns) is right
    assert [standing.name for _, standing in run.incorrect] == ["Wrong", "WrongInTheEnd", "Dies"]
    assert {case.name for case, _ in run.incorrect} == {"sum/10"}


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_finished(what: signal.Signals) -> None:
    rounds = 0

    def interrupt(progress: Progress) -> None:
        nonlocal rounds
        rounds += progress.case.name == "pull/4KiB"
        if rounds == 3:
            os.kill(os.getpid(), what)

    before = signal.getsignal(signal.SIGTERM)
    run = play([toy_bench.sums("sum/100", 100), toy_bench.endless()], Profile.QUICK, interrupt, TOYS)
    assert run.interrupted
    assert [case.name for case in run.cases] == ["sum/100"]
    assert rounds == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_within_a_round_ends_it() -> None:
    """The answer to what was asked last is still to come then, and must not be taken for another."""

    def interrupt(progress: Progress) -> None:
        if progress.case.name == "pull/4KiB" and not timers:
            timers.append(threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)))
            timers[0].start()

    timers: list[threading.Timer] = []
    run = play([toy_bench.endless()], Profile.QUICK, interrupt, TOYS)
    assert run.interrupted
    assert run.cases == []


def test_progress_goes_from_nothing_to_everything(played: tuple[Run, list[Progress]]) -> None:
    _, seen = played
    done = [progress.done_s for progress in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == pytest.approx(seen[-1].planned_s)
    assert {(progress.number, progress.case.name) for progress in seen} == {
        (number, case.name) for number, case in enumerate(toy_bench.right(Profile.QUICK))
    }


def test_the_time_left_is_as_planned_until_the_pace_is_known() -> None:
    [case, *_] = toy_bench.right(Profile.QUICK)
    assert seconds_left(Progress(case, 0, 3, 0, 120), 0) == 120
    assert seconds_left(Progress(case, 1, 3, 60, 120), 200) == pytest.approx(180)
    assert seconds_left(Progress(case, 2, 3, 120, 120), 130) == 0
    assert clock(65.4) == "1:05"


def test_results_are_read_as_they_were_written(tmp_path: Path, played: tuple[Run, list[Progress]]) -> None:
    run, _ = played
    results.write(run, tmp_path / "results.json")
    assert results.read(tmp_path / "results.json", results.Run) == run


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1}', b"\xff"])
def test_what_holds_no_results_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(results.UnreadableResults, match=r"results\.json holds no results of llmdd bench"):
        results.read(path, results.Run)
