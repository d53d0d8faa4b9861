"""Runs of the benchmarks by pytest: see test_cases.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llmdd.bench.results import CaseResult
from llmdd.bench.stable import Stable

FOUND = pytest.StashKey[list[CaseResult]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--profile", choices=["quick", "full"], default="quick", help="How much is measured.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = []
    # Our summary says more; with --benchmark-verbose pytest-benchmark shows its own table as well.
    config.option.benchmark_quiet = True


@pytest.fixture(scope="session")
def stable() -> Iterator[Stable]:
    """The processes that every case's contenders are forked from: what they import, they import once."""
    with Stable() as stable:
        yield stable
