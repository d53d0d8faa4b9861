"""Whatever ends ``llmdd bench`` half-way, nothing of it is left: no process, no shared memory, no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import toy_bench
from llmdd.bench.results import Run, read

LIMIT_SECONDS = 60

TOYS = Path(toy_bench.__file__).parent

#: One case that ends, one that does not.
PROGRAM = "from toy_bench import *; catalogue.cases_of = lambda profile: [sums('sum/100', 100), endless()]; main()"


class Everybody:
    """All processes that were started by one, known by a mark in their environment."""

    def __init__(self, mark: str) -> None:
        self._mark = mark.encode()

    def pids(self) -> list[int]:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_one(entry)]

    def _is_one(self, entry: Path) -> bool:
        try:
            return self._mark in (entry / "environ").read_bytes()
        except OSError:  # somebody else's, or gone meanwhile
            return False

    def shared_memory(self) -> set[Path]:
        """The files in memory that any of them has mapped."""
        return {
            Path(line.split(maxsplit=5)[5])
            for pid in self.pids()
            for line in lines_of(Path(f"/proc/{pid}/maps"))
            if "/dev/shm/" in line
        }


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # it has ended
        return []


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for what happens in other processes, of which there is no notice."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: still not so after {LIMIT_SECONDS} s"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("what", "form"),
    [(signal.SIGINT, "summary"), (signal.SIGTERM, "json"), (signal.SIGKILL, "summary")],
    ids=["Ctrl-C", "terminated", "killed"],
)
def test_nothing_is_left(tmp_path: Path, what: signal.Signals, form: str) -> None:
    mark = f"LLMDD_TEST={uuid4()}"
    everybody = Everybody(mark)
    output, temporary = tmp_path / "output", tmp_path / "temporary"
    temporary.mkdir()
    arguments = ["--output", str(output)] + (["--json"] if form == "json" else [])
    name, _, value = mark.partition("=")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(TOYS), "TMPDIR": str(temporary), name: value},
    ) as process:
        wait_until(everybody.shared_memory, "the second case is being played")
        shared = everybody.shared_memory()
        assert len(everybody.pids()) >= 4, "the command, a nursery, a contender, an owner"
        process.send_signal(what)
        shown, errors = process.communicate(timeout=LIMIT_SECONDS)

    wait_until(lambda: not everybody.pids(), "nobody is left")
    wait_until(lambda: not any(path.exists() for path in shared), "no shared memory is left")
    assert list(temporary.iterdir()) == []
    assert errors == ""
    if what is signal.SIGKILL:
        assert (process.returncode, shown, list(output.iterdir())) == (-what, "", [])
        return
    assert process.returncode == 130
    run = read(output / "results.json", Run)
    assert run.interrupted
    assert [case.name for case in run.cases] == ["sum/100"]
    assert ('"interrupted":true' if form == "json" else "Interrupted") in shown
