"""Runs of the benchmarks: the fixture that measures, and the summary at the end (see docs/benchmarks.md)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one

from comparison import Comparer, Comparison
from summary import summary_lines

FOUND = pytest.StashKey[list[Comparison]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = []
    # Our summary says more; with --benchmark-verbose pytest-benchmark shows its own table as well.
    config.option.benchmark_quiet = True


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Comparer:
    return Comparer(benchmark, request.config.stash[FOUND])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[FOUND]
    if found:
        terminalreporter.section("llmdd beside its baselines: medians per operation")
        for line in summary_lines(found, colour=terminalreporter.hasmarkup):
            terminalreporter.write_line(line)
