"""The library does what the reference model says, call by call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from .child_process import Children
from .rules import Lockstep, LockstepAcrossProcesses, LockstepInOneProcess, StepCount

FEWEST_STEPS = 10_000


def run(make_machine: Callable[[], Lockstep], profile: settings) -> None:
    run_state_machine_as_test(make_machine, settings=profile)  # type: ignore[arg-type]  # any factory will do


def test_nodes_in_one_process(profile: settings, counter: StepCount) -> None:
    run(lambda: LockstepInOneProcess(counter), profile)


def test_nodes_in_processes_of_their_own(profile: settings, counter: StepCount, children: Children) -> None:
    half_as_long = settings(profile, max_examples=profile.max_examples // 2)
    run(lambda: LockstepAcrossProcesses(counter, children), half_as_long)


def test_enough_steps_were_made(steps_of_all_tests: dict[str, int]) -> None:
    if len(steps_of_all_tests) < 2:
        pytest.skip("not both of the tests above were run")
    assert sum(steps_of_all_tests.values()) >= FEWEST_STEPS
