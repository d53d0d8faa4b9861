"""How long the search is: the profile named by ``HYPOTHESIS_PROFILE``, ``ci`` if none is.

``ci`` makes the same search every time, so that a change is judged by itself; ``night`` makes a new one.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # for this folder's modules, here and in child processes

from lockstep.child_process import Children
from lockstep.tally import Tally

COMMON: dict[str, Any] = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("ci", derandomize=True, database=None, stateful_step_count=60, max_examples=100, **COMMON)
settings.register_profile("night", stateful_step_count=200, max_examples=5000, **COMMON)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
TALLIES = pytest.StashKey[dict[str, Tally]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLIES] = {}


@pytest.fixture
def profile() -> settings:
    return settings.get_profile(PROFILE)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts what a test does, which the summary of the session tells."""
    tally = Tally()
    yield tally
    request.config.stash[TALLIES][request.node.name] = tally


@pytest.fixture
def tally_of_all_tests(request: pytest.FixtureRequest) -> Tally:
    tallies = request.config.stash[TALLIES]
    if len(tallies) < 3:
        pytest.skip("not all searches were run")
    return sum_of(tallies.values())


def sum_of(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Calls are refused by the thousand here: the library need not warn of each."""
    logger = logging.getLogger("llmdd")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # not by patching the attribute: loggers remember what they have answered
    yield
    logger.setLevel(before)


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.kill_all()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tallies = config.stash[TALLIES]
    for name, tally in tallies.items():
        terminalreporter.write_line(f"{name}: {tally.steps:,} steps in lockstep")
    if tallies:
        for line in sum_of(tallies.values()).table():
            terminalreporter.write_line(line)
