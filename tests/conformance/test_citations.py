"""From the contract to the tests and back: every section and every departure is cited by a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

#: The sections of the contract that state something.
SECTIONS = (
    [f"1.{number}" for number in range(1, 12)]
    + [f"2.{number}" for number in range(1, 6)]
    + [f"3.{number}" for number in range(1, 12)]
    + [f"4.{number}" for number in range(1, 5)]
    + ["6"]
)
DEPARTURES = [f"D{number}" for number in range(1, 79)]

#: The steps that the contract numbers.
STEPS = [f"2.3 ({number})" for number in range(1, 14)] + [f"3.6 ({number})" for number in range(1, 11)]

CITATION = re.compile(r"^api (§\d+(\.\d+)?[A-F]?( \(\d+\))?|D\d+)(, (§\d+(\.\d+)?|D\d+|seed §\d+))*: ")

FILES = sorted(path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """Name and first docstring line of each test of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, (ast.get_docstring(node) or "").partition("\n")[0]


DOCUMENTED = {path: list(documented(path)) for path in FILES}
CITED = [line for lines in DOCUMENTED.values() for _, line in lines]


def is_cited(what: str) -> bool:
    """Whether a test cites it before its colon."""
    return any(re.search(rf"{re.escape(what)}(?![\d.])", line.partition(": ")[0]) for line in CITED)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_cited(section: str) -> None:
    """There is a test for each section."""
    assert is_cited(f"§{section}")


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_cited(step: str) -> None:
    """There is a test for each numbered step."""
    assert is_cited(f"§{step}")


@pytest.mark.parametrize("departure", DEPARTURES)
def test_every_departure_is_cited_by_a_test_of_its_own(departure: str) -> None:
    """There is a test for each departure, whose name says which."""
    named = [line for lines in DOCUMENTED.values() for name, line in lines if f"test_{departure.lower()}_" in name]
    assert named
    assert all(re.match(rf"api {departure}(?!\d)", line) for line in named)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_test_cites_a_statement(path: Path) -> None:
    """The first line of each test's docstring says what it holds the code to."""
    without = [name for name, line in DOCUMENTED[path] if not CITATION.match(line)]
    assert not without
    section = re.match(r"test_(\d)(?:_(\d+)|([a-f]))?_", path.name)
    if section and section[3] is None:
        of_the_section = f"§{section[1]}" + (f".{section[2]}" if section[2] else "")
        elsewhere = [name for name, line in DOCUMENTED[path] if of_the_section not in line.partition(": ")[0]]
        assert not elsewhere, f"not of {of_the_section}"
