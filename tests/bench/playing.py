"""Plays of one case or one contender, and the processes that are left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llmdd.bench.case import Case, Entrant
from llmdd.bench.match import Match
from llmdd.bench.results import Standing
from llmdd.bench.stable import Stable

PATIENCE_S = 30.0


def named(value: Any) -> str | None:
    """The class alone, of a contender's."""
    return value.rpartition(":")[2] if isinstance(value, str) else ""


def play(case: Case, stable: Stable) -> list[Standing]:
    """One round that counts, after those that warm up."""
    with Match(replace(case, rounds=1), stable) as match:
        return match.play().standings


def play_alone(factory: str, parameters: dict[str, Any], stable: Stable) -> Standing:
    """The standing of one contender."""
    entrant = Entrant("alone", factory, parameters)
    (standing,) = play(Case("test/alone", "Nothing", "thing", (entrant,), "alone", 1, 1.0), stable)
    return standing


def play_if_possible(factory: str, parameters: dict[str, Any], stable: Stable) -> Standing:
    """The same; a skip where it cannot take part."""
    standing = play_alone(factory, parameters, stable)
    if standing.skipped is not None:
        pytest.skip(standing.skipped)
    return standing


def play_broken(name: str, factory: str, parameters: dict[str, Any], stable: Stable) -> Standing:
    """The standing of a contender that is broken in the way `name`."""
    return play_if_possible(f"broken_pulls:{name}", {"factory": factory, **parameters}, stable)


def eventually(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def processes() -> Iterator[tuple[int, int, int]]:
    """The id, the parent and the session of each that runs; one that has ended and is not waited for does not."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(entry), int(parent), int(session)


def nurseries() -> set[int]:
    """This process's children that lead a session of their own."""
    return {pid for pid, parent, session in processes() if parent == os.getpid() and session == pid}


def children_of_nurseries() -> set[int]:
    """Whoever else is in the sessions of nurseries."""
    leaders = nurseries()
    return {pid for pid, _, session in processes() if session in leaders and pid not in leaders}
