"""The library does what the reference model says, call by call."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from llmdd.transport.engine import TransferEngine

from .child_process import Children
from .clusters import LockstepAcrossProcesses, LockstepBetweenHosts, LockstepInOneProcess
from .machine import Lockstep
from .tally import Tally

FEWEST_STEPS = 5_000


def run(make_machine: Callable[[], Lockstep], profile: settings) -> None:
    run_state_machine_as_test(make_machine, settings=profile)  # type: ignore[arg-type]  # any factory will do


def test_nodes_in_one_process(profile: settings, tally: Tally) -> None:
    run(lambda: LockstepInOneProcess(tally), profile)


def test_nodes_on_hosts_of_their_own(profile: settings, tally: Tally) -> None:
    a_third = settings(profile, max_examples=profile.max_examples // 3)
    run(lambda: LockstepBetweenHosts(tally), a_third)


def test_nodes_between_which_is_nixl(
    nixl_engine: Callable[[str, int], TransferEngine], profile: settings, tally: Tally
) -> None:
    a_third = settings(profile, max_examples=profile.max_examples // 3)
    run(lambda: LockstepBetweenHosts(tally, nixl_engine), a_third)


def test_nodes_in_processes_of_their_own(profile: settings, tally: Tally, children: Children) -> None:
    a_third = settings(profile, max_examples=profile.max_examples // 3)
    run(lambda: LockstepAcrossProcesses(tally, children), a_third)


def test_enough_steps_were_made(tally_of_all_tests: Tally) -> None:
    assert tally_of_all_tests.steps >= FEWEST_STEPS


def test_every_call_has_succeeded(tally_of_all_tests: Tally) -> None:
    assert not tally_of_all_tests.never_succeeded
