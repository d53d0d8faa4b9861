"""The programs of ``examples/`` run against llmdd as they stand, between real processes, and leave none behind."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import llmdd

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHARED = "processes.py"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != SHARED)
CANNOT_RUN_HERE = 77
TIMEOUT_S = 240.0

# What llmdd has and the original has not (README): programs written for the original do not use it.
BEYOND_THE_ORIGINAL = {
    "tensors",
    "lookup",
    "pool_usage",
    "live_caches",
    "live_keys",
    "paused",
    "check",
    "listen_address",
    "__enter__",
}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts examples, each in a session of its own, so that every process of it is known by that."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmdd.dropin", str(EXAMPLES / program), *arguments],
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for left in processes_of_session(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()


def processes_of_session(session: int) -> list[int]:
    """The processes that descend from the one that began a session, itself included, without those that have ended."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = Path("/proc", process, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        state, _parent, _group, of_session = status.rpartition(")")[2].split()[:4]
        if int(of_session) == session and state != "Z":
            found.append(int(process))
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_moves_its_bytes_and_leaves_no_process_behind(
    program: str, start: Start, eventually: Callable[[Callable[[], object], str], None]
) -> None:
    process = start(program)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    eventually(lambda: not processes_of_session(process.pid), "all processes of the example have ended")
    if process.returncode == CANNOT_RUN_HERE:
        pytest.skip(output.strip())
    assert process.returncode == 0, output
    assert "byte for byte" in output and "Traceback" not in output, output


def test_its_processes_can_be_started_one_by_one(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    processes = [start("pull_cache.py", "--role", role, "--address", address) for role in ("decoder", "prompt")]
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(line.startswith("[decoder]") for line in outputs[0].splitlines())
    assert all(line.startswith("[prompt]") for line in outputs[1].splitlines())


def test_an_example_whose_bytes_are_wrong_fails(tmp_path: Path, start: Start) -> None:
    """A difference is found and reaches the exit status, and the other process does not wait for ever."""
    wrong = (EXAMPLES / "pull_blocks.py").read_text().replace("src_blocks=table_there", "src_blocks=table_there[::-1]")
    (tmp_path / "wrong.py").write_text(wrong)
    (tmp_path / SHARED).write_text((EXAMPLES / SHARED).read_text())
    process = start(str(tmp_path / "wrong.py"))
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output
    assert "it is not so: block 0 of tensor 0" in output


@pytest.mark.parametrize("program", [*PROGRAMS, SHARED])
def test_an_example_uses_what_the_original_has_and_nothing_else(program: str) -> None:
    tree = ast.parse((EXAMPLES / program).read_text())
    imported: set[str] = set()
    modules: set[str | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
            if node.module == "llm_datadist":
                imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert imported and imported <= set(llmdd.v2_list)
    assert not any(module and module.partition(".")[0] == "llmdd" for module in modules)
    assert not attributes & BEYOND_THE_ORIGINAL


def test_the_table_lists_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text()
    assert [program for program in PROGRAMS if f"[{program}]({program})" not in table] == []
