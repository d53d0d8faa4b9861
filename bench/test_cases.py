"""Each case of ``llmdd bench`` as a benchmark of pytest-benchmark, whose times are the first entrant's.

The times are taken in the entrants' own processes: the clock that pytest-benchmark reads here is moved on by what they
measured. The other entrants, and everything else that is known of a case, stand in ``extra_info``.
"""

from __future__ import annotations

import msgspec
import pytest
from llmdd.bench.case import Case, Profile
from llmdd.bench.catalogue import cases_of
from llmdd.bench.match import Match
from llmdd.bench.stable import Stable
from pytest_benchmark.fixture import BenchmarkFixture

from .conftest import FOUND


class Clock:
    """Seconds that pass only when a round has been played, but for a nanosecond at each look."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1e-9
        return self._now

    def advance(self, nanoseconds: float) -> None:
        self._now += nanoseconds * 1e-9


CLOCK = Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = cases_of(Profile(metafunc.config.getoption("--profile")))
    metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.mark.benchmark(timer=CLOCK)
def test_case(case: Case, benchmark: BenchmarkFixture, stable: Stable, request: pytest.FixtureRequest) -> None:
    with Match(case, stable) as match:

        def play_round() -> None:
            match.play_round()
            CLOCK.advance(match.last_time_ns() or 0.0)

        rounds = 1 if benchmark.disabled else match.warm_up()
        benchmark.pedantic(play_round, rounds=rounds, iterations=1)
        result = match.conclude()
    incorrect = [f"{one.name}: {one.incorrect}" for one in result.standings if one.incorrect is not None]
    benchmark.extra_info.update(msgspec.to_builtins(result), correct=not incorrect)
    request.config.stash[FOUND].append(result)
    assert not incorrect, "\n".join(incorrect)
