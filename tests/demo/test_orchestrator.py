"""How the orchestrator watches over the demo's processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import misbehaving
import pytest

from llmdd.demo import decode, orchestrator, prefill, reference
from llmdd.demo.channel import OtherEndGone
from llmdd.demo.choices import Choices
from llmdd.demo.messages import Failed, Finish, Generated
from llmdd.demo.orchestrator import DemoFailed
from llmdd.demo.report import Report
from llmdd.demo.settings import Settings
from llmdd.demo.worker import Child

PROMPTS = [b"one", b"two", b"three"]
SETTINGS = Settings.for_prompts(PROMPTS, Choices(tokens=3, batch=2, slots=2))


@contextmanager
def child(target: object, *arguments: object) -> Iterator[Child]:
    assert callable(target)
    started = Child("subject", target, *arguments)
    try:
        yield started
    finally:
        started.dismiss()


def run() -> Report:
    return orchestrator.run(PROMPTS, SETTINGS, False, lambda progress: None)


def test_an_error_arrives_with_its_traceback() -> None:
    with child(misbehaving.fail_when_told) as subject:
        subject.tell(Finish())
        message = subject.channel.receive()
        assert isinstance(message, Failed)
        assert "in fail_when_told" in message.text
        assert "LookupError: failed on purpose" in message.text
        assert subject.end() == 1


def test_a_process_without_orchestrator_ends() -> None:
    with child(misbehaving.greet_and_wait) as subject:
        subject.channel.receive()
        subject.channel.close()
        assert subject.end() == 1


def test_a_killed_process_is_noticed() -> None:
    with child(misbehaving.greet_and_wait) as subject:
        subject.channel.receive()
        subject.process.kill()
        with pytest.raises(OtherEndGone):
            subject.channel.receive()
        subject.tell(Finish())
        assert subject.end() == -signal.SIGKILL
        assert subject.fate() == "the subject process was ended by signal SIGKILL"


def test_processes_have_one_blas_thread_and_leave_interrupts_to_the_orchestrator() -> None:
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    with child(misbehaving.tell_surroundings) as subject:
        message = subject.channel.receive()
    assert isinstance(message, Generated)
    assert message.tokens == {1: True}
    assert os.environ.get("OPENBLAS_NUM_THREADS") == before
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.parametrize(("module", "name"), [(prefill, "prefill"), (decode, "decode"), (reference, "reference")])
def test_a_failing_process_ends_the_run(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    monkeypatch.setattr(module, "run", misbehaving.fail_at_once)
    with pytest.raises(DemoFailed, match=rf"(?s)the {name} process failed:.*LookupError: failed on purpose"):
        run()


@pytest.mark.parametrize(("module", "name"), [(prefill, "prefill"), (decode, "decode"), (reference, "reference")])
def test_a_process_that_vanishes_ends_the_run(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    monkeypatch.setattr(module, "run", misbehaving.vanish)
    with pytest.raises(DemoFailed, match=rf"the {name} process ended early, with status 7"):
        run()


def test_silence_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "run", misbehaving.stay_silent)
    monkeypatch.setattr(orchestrator, "SILENCE_LIMIT_SECONDS", 0.1)
    with pytest.raises(DemoFailed, match="no process has said anything"):
        run()


def test_other_tokens_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "run", misbehaving.verify_with_another_model)
    report = run()
    assert report.different == (1, 2, 3)
    assert not report.identical
    assert not report.passed


def test_a_run_with_both_pools_free() -> None:
    report = run()
    assert report.passed
    assert report.requests == 3
    assert report.tokens == 9
    assert report.transport == "shared memory"
    assert report.seconds > 0
    assert report.hosts is None
    assert report.decode is not None
    for pool in (report.prefill.pool, report.decode.pool):
        assert pool.free_bytes == pool.total_bytes > 0


def test_prefill_waits_for_memory_and_gets_it_back() -> None:
    prompts = [b"prompt %d" % number for number in range(9)]
    settings = Settings.for_prompts(prompts, Choices(tokens=64, batch=1, slots=1))
    report = orchestrator.run(prompts, settings, False, lambda progress: None)
    assert report.passed
    assert report.requests == 9
    # Two requests fit into prefill's pool, and decode pulls the next one only when the last has got its 64 tokens.
    assert report.prefill.waits > 0
    assert report.prefill.recovery is None


def test_a_kill_leaves_keys_that_prefill_takes_back() -> None:
    prompts = [b"prompt %d" % number for number in range(9)]
    settings = Settings.for_prompts(prompts, Choices(tokens=32, batch=1, slots=1))
    report = orchestrator.run(prompts, settings, True, lambda progress: None)
    assert report.passed
    assert report.decode is None
    assert 5 <= report.requests < 9
    assert report.prefill.recovery is not None
    assert report.prefill.recovery.orphaned_keys > 0
    assert report.prefill.recovery.orphaned_bytes > 0
