"""The library does what the reference model says, call by call."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from .child_process import Children
from .rules import LockstepAcrossProcesses, LockstepInOneProcess, StepCount

FEWEST_STEPS = 10_000


def test_nodes_in_one_process(profile: settings, counter: StepCount) -> None:
    run_state_machine_as_test(lambda: LockstepInOneProcess(counter), settings=profile)


def test_nodes_in_processes_of_their_own(profile: settings, counter: StepCount, children: Children) -> None:
    run_state_machine_as_test(lambda: LockstepAcrossProcesses(counter, children), settings=profile)


def test_enough_steps_were_made(steps_of_all_tests: dict[str, int]) -> None:
    if len(steps_of_all_tests) < 2:
        pytest.skip("not both of the tests above were run")
    assert sum(steps_of_all_tests.values()) >= FEWEST_STEPS
