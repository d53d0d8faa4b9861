"""The soak finds what is planted, and nothing where nothing is; and its page says what its results say."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import broken_soak_worker
import numpy as np
import pytest
from llmdd.bench import faults, soak, soak_page, soak_process, soak_results, workload
from llmdd.bench.faults import Kind
from llmdd.bench.machine import this_machine
from llmdd.bench.results import write
from llmdd.bench.soak import Findings, Settings
from llmdd.bench.soak_judge import Judge
from llmdd.bench.soak_messages import Call
from llmdd.bench.stamped_rows import UNTOUCHED, Stamp, Stamper, flaw
from llmdd.bench.workload import Way
from typer.testing import CliRunner

from llmdd.cli import app

#: Two processes, one of each role, and no faults. Among the first requests of the seed are all that the tests need.
SMALL = Settings(seed=34, seconds=0.7, prefill=1, decode=1, requests_per_second=80, mean_fault_gap_s=None)


@pytest.fixture(autouse=True)
def logs_are_the_tests_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def with_broken(what: type) -> Settings:
    """A run of processes of that class."""
    script = str(Path(broken_soak_worker.__file__))
    return replace(SMALL, command=(sys.executable, script, what.__name__), timeout_ms=200, margin_ms=100)


# ----------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_with_faults_violates_nothing() -> None:
    found = soak.run(replace(SMALL, seconds=3.0, prefill=2, mean_fault_gap_s=0.4))
    assert found.violations == []
    assert found.requests["served"] > 20
    assert found.bytes_verified > 1 << 20
    assert sum(tally.count for tally in found.judge.faults.values()) > 2
    assert found.rests == 1
    assert found.logs is None


def test_what_is_planted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "REST_PATIENCE_S", 2.0)
    found = soak.run(with_broken(broken_soak_worker.Wrong))
    for words in (
        "are not those that its checksum is of",
        r"pull_cache took \d+ ms of 200, LLM_SUCCESS",
        "pull_cache ended with LLM_NOT_YET_LINK; meanwhile: no fault",
        "wrote into tensor",
        "has no key any more, and was not pulled",
        r"decode 0 still holds something: .*'caches': 1,",
        r"prefill 0: the leases of \d+ keys were over, not of \d+ to \d+",
        "prefill 0 ended with 4",
    ):
        assert any(re.search(words, violation) for violation in found.violations), (words, found.violations)
    assert found.logs is not None
    assert {path.name for path in found.logs.iterdir()} == {"prefill-0.log", "decode-0.log", "soak.log"}


@pytest.mark.parametrize(
    ("what", "words"),
    [(broken_soak_worker.Death, "decode 0 has ended by itself"), (broken_soak_worker.Hang, "decode 0 hangs in fetch")],
    ids=["dead", "hanging"],
)
def test_a_process_that_does_not_answer_ends_the_run(what: type, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_process, "PATIENCE_S", 5.0)
    found = soak.run(with_broken(what))
    assert any(words in violation for violation in found.violations), found.violations


# ---------------------------------------------------------------------------------------------------- rows and drawings


@pytest.fixture
def row() -> np.ndarray:
    written = np.full(256, UNTOUCHED, np.uint8)
    Stamper(incarnation=5).write(written, request=6, tensor=7, place=8)
    return written


def test_every_byte_of_a_row_counts(row: np.ndarray) -> None:
    expected = Stamp(5, 6, 7, 8)
    assert flaw(row, expected) is None
    for place in range(row.size):
        row[place] ^= 0x10
        assert flaw(row, expected) is not None, place
        row[place] ^= 0x10
    assert flaw(row, expected) is None


@pytest.mark.parametrize("other", [Stamp(4, 6, 7, 8), Stamp(5, 5, 7, 8), Stamp(5, 6, 6, 8), Stamp(5, 6, 7, 7)])
def test_a_row_of_another_is_told(row: np.ndarray, other: Stamp) -> None:
    assert flaw(row, other) == f"instead of {other}, 256 bytes, there is {Stamp(5, 6, 7, 8)}, 256 bytes"


def test_a_row_that_did_not_come_is_told() -> None:
    assert (
        flaw(np.full(256, UNTOUCHED, np.uint8), Stamp(5, 6, 7, 8))
        == f"instead of {Stamp(5, 6, 7, 8)} nothing has arrived"
    )


def test_what_is_drawn_follows_from_the_seed_and_the_number() -> None:
    requests = [workload.draw(7, number, 3, 3) for number in range(300)]
    assert requests == [workload.draw(7, number, 3, 3) for number in range(300)]
    assert {request.way for request in requests} == set(Way)
    assert all(request.used for request in requests)
    struck = [faults.draw(7, number, 3, 3, faults.BETWEEN_HOSTS, 1.0, 1.0) for number in range(300)]
    assert struck == [faults.draw(7, number, 3, 3, faults.BETWEEN_HOSTS, 1.0, 1.0) for number in range(300)]
    assert {fault.kind for fault in struck} == set(Kind)
    assert all((fault.victim < 3) != (fault.other < 3) for fault in struck)


# ------------------------------------------------------------------------------------------------------------ the judge


def call(code: str, took_ms: int = 1, name: str = "pull_cache") -> Call:
    """A call by process 3 towards process 0 that ends now."""
    ended = soak.time.monotonic_ns()
    return Call(name, ended - took_ms * 1_000_000, ended, code, 1000, 4, 1 if name == "pull_cache" else 0)


def violations(judge: Judge, made: Call, stood_still: bool = False) -> int:
    ends = frozenset({3, 0} if made.there else {3})
    before = judge.violation_count
    judge.call(made, ends, stood_still, "decode 0")
    return judge.violation_count - before


@pytest.mark.parametrize(
    ("kind", "processes", "whole_process", "allowed"),
    [
        (Kind.KILL, {0}, True, True),
        (Kind.KILL, {1}, True, False),
        (Kind.CUT, {0, 3}, False, True),
        (Kind.CUT, {0, 4}, False, False),
        (Kind.STOP, {0}, True, False),
    ],
)
def test_a_lost_link_needs_a_fault_that_loses_it(
    kind: Kind, processes: set[int], whole_process: bool, allowed: bool
) -> None:
    judge = Judge(margin_ms=100, settling_s=0.0)
    assert violations(judge, call("LLM_NOT_YET_LINK")) == 1
    with judge.fault(kind, frozenset(processes), whole_process, struck=0):
        assert violations(judge, call("LLM_NOT_YET_LINK")) == (0 if allowed else 1)
    soak.time.sleep(0.002)
    assert violations(judge, call("LLM_NOT_YET_LINK")) == 1
    assert judge.untouched["LLM_NOT_YET_LINK"] + judge.faults[kind].codes["LLM_NOT_YET_LINK"] == 3


def test_a_call_is_late_beyond_the_margin_unless_its_process_stood_still() -> None:
    judge = Judge(margin_ms=100, settling_s=0.0)
    assert violations(judge, call("LLM_TIMEOUT", took_ms=1050)) == 0
    assert violations(judge, call("LLM_TIMEOUT", took_ms=1150)) == 1
    assert violations(judge, call("LLM_TIMEOUT", took_ms=1150), stood_still=True) == 0
    tally = judge.calls["pull_cache"]
    assert (tally.count, tally.not_judged, [round(late, -1) for late in tally.overruns_ms]) == (3, 1, [50, 150])


def test_memory_may_run_out_and_nothing_else_of_a_call_at_home() -> None:
    judge = Judge(margin_ms=100, settling_s=0.0)
    assert violations(judge, call("LLM_OUT_OF_MEMORY", name="allocate_cache")) == 0
    assert violations(judge, call("LLM_PARAM_INVALID", name="allocate_cache")) == 1
    assert violations(judge, call("LLM_OUT_OF_MEMORY")) == 1


# ----------------------------------------------------------------------------------------------------- results and page


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The file of a run in which something happened, and nothing was violated."""
    findings = Findings(SMALL, Judge(margin_ms=100, settling_s=0.0), seconds=60.0, cores=0.5)
    findings.requests.update(served=1234, aborted=5)
    findings.bytes_verified, findings.rests, findings.processes = 5 << 30, 6, 17
    with findings.judge.fault(Kind.KILL, frozenset({0}), True, struck=4):
        violations(findings.judge, call("LLM_NOT_YET_LINK"))
    for late in range(1, 101):
        violations(findings.judge, call("LLM_TIMEOUT", took_ms=1000), stood_still=True)
        findings.judge.calls["pull_cache"].overruns_ms.append(float(late))
    report = soak_results.Report(
        command="llmdd soak --seed 7",
        began="2026-11-26T12:00:00+00:00",
        seed=7,
        prefill=1,
        decode=1,
        requests_per_second=20.0,
        timeout_ms=1000,
        margin_ms=100,
        machine=this_machine(),
        versions={"llmdd": "0.1.0"},
        parts=[soak_results.part_of(findings)],
    )
    write(report, tmp_path / "soak.json")
    return tmp_path / "soak.json"


def llmdd(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def test_the_page_has_the_figures_of_the_results(results: Path, tmp_path: Path) -> None:
    assert llmdd("soak", "page", str(results), "--docs", str(tmp_path / "docs"))[0] == 0
    page = (tmp_path / "docs" / soak_page.PAGE).read_text()
    assert "1,239: 1,234 served, 5 aborted" in page
    assert "| killed | 1 | 4 | TIMEOUT 100, NOT_YET_LINK 1 |" in page
    assert "| `pull_cache` | 101 | 100 | 100 | 50.0 ms | 99.0 ms | 100.0 ms |" in page
    assert "5 GiB; **wrong: 0**" in page
    kept = tmp_path / "docs" / soak_page.RESULTS
    assert llmdd("soak", "page", str(kept), "--docs", str(tmp_path / "docs"), "--check")[0] == 0


def test_a_page_of_other_results_is_found(results: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert llmdd("soak", "page", str(results), "--docs", str(docs), "--check")[0] == 1
    llmdd("soak", "page", str(results), "--docs", str(docs))
    changed = json.loads(results.read_text())
    changed["parts"][0]["rests"] += 1
    results.write_text(json.dumps(changed))
    status, words = llmdd("soak", "page", str(results), "--docs", str(docs), "--check")
    assert (status, "is not the page of these results" in words) == (1, True)


def test_no_page_is_made_of_a_run_that_failed(results: Path, tmp_path: Path) -> None:
    changed = json.loads(results.read_text())
    changed["parts"][0]["violation_count"] = 1
    results.write_text(json.dumps(changed))
    status, words = llmdd("soak", "page", str(results), "--docs", str(tmp_path / "docs"))
    assert (status, "is of a run that failed" in words) == (2, True)
    results.write_text("{}")
    assert "holds no results of llmdd soak" in llmdd("soak", "page", str(results))[1]
