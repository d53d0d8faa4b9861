"""Waiting awake: as long as it pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmdd.link import wakefulness
from llmdd.link.wakefulness import AWAKE_S, MOST_LEFT_OUT, Wakefulness

Wait = Callable[[float], bool]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Has a wait take so many seconds, and says whether it began awake."""
    now = [1000.0]
    monkeypatch.setattr(wakefulness.time, "monotonic", lambda: now[0])
    waiting = Wakefulness()

    def wait(seconds: float) -> bool:
        waiting.begin()
        began_awake = waiting.is_awake
        now[0] += seconds
        assert waiting.is_awake == (began_awake and seconds < AWAKE_S)
        waiting.end()
        return began_awake

    return wait


def test_waits_that_are_short_stay_awake(wait: Wait) -> None:
    assert all(wait(AWAKE_S / 2) for _ in range(100))


def test_waits_that_are_long_are_slept_through(wait: Wait) -> None:
    assert wait(1.0)
    awake = [wait(1.0) for _ in range(50 * (MOST_LEFT_OUT + 1))]
    assert sum(awake) / len(awake) == pytest.approx(1 / (MOST_LEFT_OUT + 1), abs=0.01)


def test_one_long_wait_among_short_ones_costs_one(wait: Wait) -> None:
    assert wait(1.0)
    assert not wait(AWAKE_S / 2)
    assert all(wait(AWAKE_S / 2) for _ in range(100))


def test_waits_that_become_short_are_awake_again_soon(wait: Wait) -> None:
    for _ in range(100):
        wait(1.0)
    awake = [wait(AWAKE_S / 2) for _ in range(2 * MOST_LEFT_OUT)]
    assert all(awake[MOST_LEFT_OUT:])
