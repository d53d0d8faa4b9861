"""``llmdd bench`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_bench
from llmdd.bench.command import LEAST_WIDTH
from llmdd.bench.results import Run, read

LIMIT_SECONDS = 60

TOYS = Path(toy_bench.__file__).parent


WITHOUT_MATPLOTLIB = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "matplotlib" else find(name, package)
"""


def bench(
    *arguments: str, cases: str = "right(profile)", before: str = "", cwd: Path = Path("/")
) -> subprocess.CompletedProcess[str]:
    """Run the command line with toys for cases, in a process of its own."""
    program = f"{before}\nfrom toy_bench import *; catalogue.cases_of = lambda profile: {cases}; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(TOYS)),
    )


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_run_is_shown_and_kept(tmp_path: Path) -> None:
    done = bench(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the progress bar belongs to a terminal"
    folder = tmp_path / "llmdd-bench-quick"
    assert [case.name for case in read(folder / "results.json", Run).cases] == ["sum/100", "sum/10000", "pull/4KiB"]
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        *(f"{plot}.{form}" for plot in ("sum-bars", "sum-times", "pull-bars") for form in ("png", "svg")),
    }
    assert "NIXL skipped in sum/10000, pull/4KiB: the abacus library is not installed" in done.stdout
    assert "Results: llmdd-bench-quick/results.json" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= LEAST_WIDTH


def test_some_cases_to_a_folder_of_ones_own_without_matplotlib(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    chosen = ("--case", "p*", "--case", "*/100", "--profile", "full")
    done = bench(*chosen, "--output", str(folder), before=WITHOUT_MATPLOTLIB)
    assert done.returncode == 0, done.stderr
    run = read(folder / "results.json", Run)
    assert ([case.name for case in run.cases], run.profile) == (["sum/100", "pull/4KiB"], "full")
    assert "No plots: they need matplotlib (pip install 'llmdd[bench]')" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_json_and_nothing_else(tmp_path: Path) -> None:
    done = bench("--json", "--case", "sum/100", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [case["name"] for case in json.loads(done.stdout)["cases"]] == ["sum/100"]
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_cases(tmp_path: Path) -> None:
    done = bench("--list", "--case", "sum", cwd=tmp_path)
    assert done.returncode == 0
    assert (
        words(done.stdout)
        == "sum/100 Add numbers up llmdd, dictionaries sum/10000 Add numbers up llmdd, dictionaries, NIXL"
    )
    assert json.loads(bench("--list", "--json", "--case", "pull").stdout) == [
        {"name": "pull/4KiB", "entrants": ["llmdd", "NIXL"]}
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_status_says_that_somebody_was_wrong(tmp_path: Path) -> None:
    done = bench("--output", str(tmp_path), cases="[wrong()]", before=WITHOUT_MATPLOTLIB)
    assert done.returncode == 1
    assert "WrongInTheEnd is incorrect in sum/10: something is left over" in done.stdout
    assert [standing.name for _, standing in read(tmp_path / "results.json", Run).incorrect] == [
        "Wrong",
        "WrongInTheEnd",
        "Dies",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--case", "pul"), "no case is called 'pul'; there are: sum/100, sum/10000, pull/4KiB"),
        (("--profile", "slow"), "'slow' is not one of 'quick', 'full'"),
        (("--output", "/dev/null/folder"), "/dev/null/folder cannot be made: Not a directory"),
        (("--colour",), "No such option"),
        (("page", "/nowhere.json"), "/nowhere.json holds no results of llmdd bench"),
        (("order", "/dev/null", "/dev/null"), "/dev/null holds no results of llmdd bench"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_arguments_are_explained(arguments: tuple[str, ...], complaint: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert complaint in words(done.stderr)
    assert done.stdout == ""
