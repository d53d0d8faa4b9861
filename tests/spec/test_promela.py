"""SPIN, given the protocol as a model, visits the explorer's states and finds what the explorer finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from llmdd.spec.interleavings import SMALL, Explorer
from llmdd.spec.mistakes import MISTAKES
from llmdd.spec.promela import LIVENESS, check_with_spin, main, promela, promela_expression
from llmdd.spec.protocol import protocol
from llmdd.spec.steps import Configuration

from .thorough import thorough_unless

needs_spin = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None,
    reason="SPIN or a C compiler is not installed (Debian: apt-get install spin gcc)",
)

LOST_MARKS = [name for name, mistake in MISTAKES.items() if mistake.promise == "every released cache is reaped"]

#: What SPIN is to find without ``-m thorough``.
QUICKLY_FOUND = "address-not-validated"

TENSORS = Configuration(generations=1, requests=(("pull_tensor_1",), ("pull_tensor_2",)))


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("found & 1", "(found & 1)"),
        ("found == (hint << 1 | 1) and by_id", "((found == ((hint << 1) | 1)) && by_id)"),
        ("not keys & 3 or gate >> 1 <= 3", "(!((keys & 3)) || ((gate >> 1) <= 3))"),
        ("4 if key == 1 else want", "((key == 1) -> 4 : want)"),
        ("found & ~(leaver)", "(found & ~(leaver))"),
    ],
)
def test_expression(python: str, expected: str) -> None:
    assert promela_expression(python) == expected


@pytest.mark.parametrize("text", ["a < b < c", "f(x)", "'text'", "x ** 2", "[1]"])
def test_expression_that_promela_cannot_say(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        promela_expression(text)


def test_model_has_a_process_for_each_party() -> None:
    model = promela(protocol(SMALL["views"]))
    assert [model.count(f"active proctype {name}()") for name in ("owner", "peer_1", "peer_2", "view", "rest")] == [
        1
    ] * 5
    assert "ltl" not in model
    assert "ltl reaped" in promela(protocol(SMALL["views"]), liveness=True)


def test_command_writes_the_model(tmp_path: Path) -> None:
    main(["--output", str(tmp_path / "model.pml"), "--configuration", "ids"])
    assert (tmp_path / "model.pml").read_text() == promela(protocol(SMALL["ids"]))


def test_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["--check"])
    assert ended.value.code == 2
    assert "spin is not installed" in capsys.readouterr().err


@needs_spin
@pytest.mark.thorough
@pytest.mark.parametrize("configuration", [TENSORS, SMALL["views"]], ids=["tensors", "views"])
def test_spin_visits_the_states_that_the_explorer_visits(configuration: Configuration) -> None:
    verdict = check_with_spin(protocol(configuration), "model")
    assert verdict.violation is None, str(verdict)
    assert verdict.states == Explorer(protocol(configuration)).run().states


@needs_spin
@pytest.mark.parametrize("name", thorough_unless(lambda name: name == QUICKLY_FOUND, MISTAKES))
def test_spin_finds_the_mistake_by_as_short_a_way(name: str) -> None:
    mistake = MISTAKES[name]
    wrong = mistake.make(protocol(mistake.configuration))
    verdict = check_with_spin(wrong, name)
    assert verdict.violation == mistake.promise
    assert len(verdict.trace) == len(Explorer(wrong).run().trace)
    assert verdict.trace[0] == "owner: take_memory (allocate): memory was 0"


@needs_spin
@pytest.mark.thorough
def test_every_released_cache_is_eventually_reaped() -> None:
    """Here in one configuration; ``python -m spec spin`` has all."""
    verdict = check_with_spin(protocol(LIVENESS["removals"]), "removals", liveness=True)
    assert verdict.violation is None, str(verdict)
    assert verdict.states > 100_000


@needs_spin
@pytest.mark.thorough
@pytest.mark.parametrize("name", LOST_MARKS)
def test_lost_mark_is_a_cache_that_is_never_reaped(name: str) -> None:
    wrong = MISTAKES[name].make(protocol(LIVENESS["removals"]))
    verdict = check_with_spin(wrong, name, liveness=True)
    assert verdict.violation == "a released cache is not reaped, for ever"
    assert any("START OF CYCLE" in line for line in verdict.trace)
