"""``llmdd demo`` as a user runs it: real processes, real links."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmdd.cli import app
from llmdd.demo import orchestrator
from llmdd.demo.choices import Choices
from llmdd.demo.orchestrator import DemoFailed
from llmdd.demo.prompts import bundled_prompts
from llmdd.demo.released import DecodeReleased, PoolState, PrefillReleased
from llmdd.demo.report import Report
from llmdd.demo.settings import Settings

LIMIT_SECONDS = 120

#: Not the repository, whose source folder would come before the installed package.
ELSEWHERE = "/"

KEYS = {
    "identical",
    "requests",
    "tokens",
    "bytes_moved",
    "transport",
    "seconds",
    "pull_latency_us",
    "rate_gb_s",
    "leaked_bytes",
}


def llmdd(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own and wait until it and every process it started have ended.

    Whoever is left behind would hold the pipes open, and the wait would time out.
    """
    command = [sys.executable, "-m", "llmdd.cli", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT_SECONDS, cwd=ELSEWHERE)


def succeed(completed: subprocess.CompletedProcess[bytes], warned: str = "") -> dict[str, Any]:
    """The one object that a successful run with ``--json`` prints. ``warned``: of what the log may warn."""
    assert completed.returncode == 0, completed.stderr.decode()
    warnings = completed.stderr.decode().splitlines()
    assert len(warnings) <= bool(warned), "the run may be over before the log tells of it"
    assert all(warned in line for line in warnings)
    result: dict[str, Any] = json.loads(completed.stdout)
    assert set(result) == KEYS
    assert result["identical"] is True
    assert result["leaked_bytes"] == 0
    assert 0 < result["pull_latency_us"]["median"] <= result["pull_latency_us"]["p99"]
    assert result["rate_gb_s"] > 0
    assert result["transport"] == "shared memory"
    assert result["seconds"] > 0
    return result


def test_the_bundled_prompts() -> None:
    prompts = bundled_prompts()
    result = succeed(llmdd("demo", "--json", "--tokens", "4"))
    assert result["requests"] == len(prompts)
    assert result["tokens"] == 4 * len(prompts)
    settings = Settings.for_prompts(prompts, Choices(tokens=4))
    assert result["bytes_moved"] == len(prompts) * settings.slot_bytes


def test_prompts_from_a_file(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_bytes(b"one prompt\nanother prompt\n\xffa third\n")
    result = succeed(llmdd("demo", "--json", "--tokens", "4", "--prompts", str(prompts), "--seed", "9"))
    assert (result["requests"], result["tokens"]) == (3, 12)


@pytest.mark.parametrize(
    ("batch", "slots", "tokens"),
    [(1, 1, 5), (5, 2, 3), (2, 5, 1)],
    ids=["one by one", "batches larger than the running batch", "one token each"],
)
def test_prompts_from_standard_input(batch: int, slots: int, tokens: int) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(11))
    sizes = ("--batch", str(batch), "--slots", str(slots), "--tokens", str(tokens))
    result = succeed(llmdd("demo", "--json", "--prompts", "-", *sizes, stdin=lines))
    assert (result["requests"], result["tokens"]) == (11, 11 * tokens)


DECODE_IS_GONE = "cluster 2 (incarnation "


def test_a_killed_decode_process_costs_prefill_nothing() -> None:
    prompts = bundled_prompts()
    result = succeed(llmdd("demo", "--json", "--tokens", "8", "--kill", "decode"), DECODE_IS_GONE)
    assert len(prompts) / 2 <= result["requests"] < len(prompts)
    assert 0 < result["tokens"] < 8 * len(prompts)


def test_a_decode_process_killed_at_its_only_request() -> None:
    completed = llmdd("demo", "--json", "--tokens", "2", "--kill", "decode", "--prompts", "-", stdin=b"x")
    assert succeed(completed, DECODE_IS_GONE)["requests"] == 1


def test_the_summary_for_people() -> None:
    completed = llmdd("demo", "--tokens", "1")
    assert completed.returncode == 0, completed.stderr.decode()
    assert completed.stderr == b"", "the progress bar belongs to a terminal"
    summary = completed.stdout.decode()
    for line in (
        "identical",
        "requests",
        "tokens",
        "transport",
        "time",
        "pull latency",
        "pull rate",
        "prefill pool",
        "decode pool",
        "leaked",
    ):
        assert line in summary
    assert summary.count("entirely free") == 2


def test_the_summary_of_a_kill() -> None:
    completed = llmdd("demo", "--tokens", "4", "--kill", "decode")
    assert completed.returncode == 0, completed.stderr.decode()
    summary = completed.stdout.decode()
    pulls = re.search(r"killed after (\d+) pulls", summary)
    assert pulls is not None
    assert 13 <= int(pulls[1]) < 26
    assert summary.count("entirely free again") == 1
    assert "decode pool" not in summary


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--prompts", "-"), "has no prompt"),
        (("--prompts", "/nowhere/at/all"), "No such file"),
        (("--tokens", "0"), "--tokens"),
        (("--batch", "many"), "--batch"),
        (("--kill", "prefill"), "--kill"),
        (("--colour",), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_arguments_are_explained(arguments: tuple[str, ...], complaint: str) -> None:
    completed = llmdd("demo", *arguments)
    assert completed.returncode == 2
    assert complaint in " ".join(completed.stderr.decode().replace("│", " ").split())
    assert completed.stdout == b""


def test_the_version() -> None:
    completed = llmdd("--version")
    assert completed.stdout.decode().strip() == f"llmdd {version('llmdd')}"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from llmdd.cli import main; main()"
    completed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=LIMIT_SECONDS, cwd=ELSEWHERE
    )
    assert completed.returncode == 1
    assert completed.stderr.decode() == f"llmdd's command line needs {missing}: pip install 'llmdd[cli]'\n"


WHOLE, TAKEN = PoolState(1 << 20, 1 << 20), PoolState(1 << 20, 1 << 19)


@pytest.mark.parametrize(
    ("different", "prefill_pool", "status"),
    [((), WHOLE, 0), ((2,), WHOLE, 1), ((), TAKEN, 1)],
    ids=["success", "a different token", "a leak"],
)
@pytest.mark.parametrize("form", ["--json", "summary"])
def test_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, form: str, different: tuple[int, ...], prefill_pool: PoolState, status: int
) -> None:
    prefill, decode = PrefillReleased(prefill_pool, 0, None), DecodeReleased(WHOLE)
    report = Report(2, 6, different, 100, (1000, 3000), prefill, decode, "shared memory", 1.5)
    monkeypatch.setattr(orchestrator, "run", lambda *_: report)
    result = CliRunner().invoke(app, ["demo", *([form] if form == "--json" else [])])
    assert result.exit_code == status
    if form == "--json":
        shown = json.loads(result.stdout)
        assert shown["identical"] is (different == ())
        assert shown["leaked_bytes"] == prefill_pool.taken_bytes
        assert shown["bytes_moved"] == 200
        assert shown["pull_latency_us"]["median"] == 2
        assert shown["rate_gb_s"] == 0.05


def test_a_failure_is_told_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Report:
        raise DemoFailed("the decode process failed:\nTraceback [bold] of it")

    monkeypatch.setattr(orchestrator, "run", fail)
    with pytest.raises(SystemExit, match="1"):
        app(["demo", "--json"])
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors == "The demo failed: the decode process failed:\nTraceback [bold] of it\n"


ANNOUNCING_PROGRESS = """
from llmdd.demo import orchestrator
from llmdd.demo.choices import Choices
from llmdd.demo.settings import Settings

def announce(progress):
    if progress.pulled == 3:
        print("three pulled", flush=True)

if __name__ == "__main__":
    prompts = [b"prompt number %d" % number for number in range(200)]
    orchestrator.run(prompts, Settings.for_prompts(prompts, Choices(tokens=64)), False, announce)
"""


@pytest.mark.parametrize(
    ("whom", "what"),
    [("all", signal.SIGINT), ("orchestrator", signal.SIGTERM), ("orchestrator", signal.SIGKILL)],
    ids=["Ctrl-C", "terminated", "killed"],
)
def test_an_interrupted_run_leaves_nobody_behind(tmp_path: Path, whom: str, what: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(ANNOUNCING_PROGRESS)
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"three pulled\n"
        if whom == "all":
            os.killpg(process.pid, what)  # what a terminal does with Ctrl-C
        else:
            process.send_signal(what)
        _, errors = process.communicate(timeout=LIMIT_SECONDS)  # returns when nobody is left to write
    assert process.returncode == -what
    assert errors.count(b"Traceback") == (1 if what == signal.SIGINT else 0), errors.decode()
