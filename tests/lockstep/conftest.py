"""How long the search is: the profile named by ``HYPOTHESIS_PROFILE``, ``ci`` if none is."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # for this folder's modules, here and in child processes

from lockstep.child_process import Children
from lockstep.rules import StepCount

COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": False,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("ci", stateful_step_count=60, max_examples=200, **COMMON)
settings.register_profile("night", stateful_step_count=200, max_examples=5000, **COMMON)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
STEPS = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STEPS] = {}


@pytest.fixture
def profile() -> settings:
    return settings.get_profile(PROFILE)


@pytest.fixture
def counter(request: pytest.FixtureRequest) -> Iterator[StepCount]:
    """Counts the steps of a test, which the summary of the session tells."""
    counter = StepCount()
    yield counter
    request.config.stash[STEPS][request.node.name] = counter.steps


@pytest.fixture
def steps_of_all_tests(request: pytest.FixtureRequest) -> dict[str, int]:
    return request.config.stash[STEPS]


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
    for name, steps in config.stash[STEPS].items():
        terminalreporter.write_line(f"{name}: {steps:,} steps in lockstep")
