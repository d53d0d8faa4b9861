"""The cases of pulls: whoever does something wrong has no time, nobody does, and nothing is left of who is killed."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llmdd.bench.case import Case, Entrant, Profile
from llmdd.bench.cases import pulls
from llmdd.bench.cases.pulls import LLMDD, MEMCPY, MOONCAKE, NIXL, SHARED_MEMORY_PIPE
from llmdd.bench.contender import Unavailable
from llmdd.bench.match import Match
from llmdd.bench.results import Standing
from llmdd.bench.stable import Stable

PATIENCE_S = 30.0

PARAMETERS = {"size": 4096, "count": 4}
BLOCKS = {"blocks": 8, "tensors": 3, "size": 4096}

PLAIN = f"{MEMCPY}:Copies"
WITH_KEYS = [
    f"{LLMDD}:CachePulls",
    f"{SHARED_MEMORY_PIPE}:PipePulls",
    f"{NIXL}:NixlPulls",
    f"{MOONCAKE}:MooncakePulls",
]
OF_BLOCKS = [
    f"{LLMDD}:BlocksCachePulls",
    f"{MEMCPY}:BlockCopies",
    f"{SHARED_MEMORY_PIPE}:PipeBlockPulls",
    f"{NIXL}:NixlBlockPulls",
    f"{MOONCAKE}:MooncakeBlockPulls",
]
BROKEN = [
    *(("WrongByte", factory, PARAMETERS, "wrong bytes of payload") for factory in [PLAIN, *WITH_KEYS]),
    *(("MissingByte", factory, PARAMETERS, "wrong bytes of payload") for factory in [PLAIN, *WITH_KEYS]),
    *(("OtherOffer", factory, PARAMETERS, "wrong bytes of payload") for factory in [PLAIN, *WITH_KEYS]),
    *(("NothingPulled", factory, PARAMETERS, "wrong bytes of payload") for factory in [PLAIN, *WITH_KEYS]),
    *(("KeyLeft", factory, PARAMETERS, "the owner has 1 keys left") for factory in WITH_KEYS),
    *(("BlockMixedUp", factory, BLOCKS, "tensor 2: a block does not have the bytes") for factory in OF_BLOCKS),
    *(("NothingPulled", factory, BLOCKS, "tensor 0: a block does not have the bytes") for factory in OF_BLOCKS),
    ("OtherOffer", f"{LLMDD}:CachePulls", {**PARAMETERS, "registered": True}, "wrong bytes of payload"),
    ("IdleOwner", f"{LLMDD}:CachePulls", {**PARAMETERS, "computing": True}, "the owner did not compute"),
    ("BatchLeftOut", f"{LLMDD}:PullsAtOnce", {"size": 4096, "count": 128}, "64 pulls of 128 succeeded"),
]


def named(value: Any) -> str | None:
    """The class alone, of a contender's."""
    return value.rpartition(":")[2] if isinstance(value, str) else ""


@pytest.fixture(scope="module")
def stable() -> Iterator[Stable]:
    with Stable(search_path=str(Path(__file__).parent)) as made:
        yield made


def play(case: Case, stable: Stable) -> list[Standing]:
    """One round that counts, after those that warm up."""
    with Match(replace(case, rounds=1), stable) as match:
        return match.play().standings


def play_alone(factory: str, parameters: dict[str, Any], stable: Stable) -> Standing:
    """The standing of one contender; a skip where it cannot take part."""
    entrant = Entrant("alone", factory, parameters)
    (standing,) = play(Case("test/alone", "Nothing", "thing", (entrant,), "alone", 1, 1.0), stable)
    if standing.skipped is not None:
        pytest.skip(standing.skipped)
    return standing


def play_broken(name: str, factory: str, parameters: dict[str, Any], stable: Stable) -> Standing:
    """The standing of a contender that is broken in the way `name`."""
    return play_alone(f"broken_pulls:{name}", {"factory": factory, **parameters}, stable)


@pytest.mark.parametrize(("name", "factory", "parameters", "what"), BROKEN, ids=named)
def test_who_does_something_wrong_has_no_time(
    name: str, factory: str, parameters: dict[str, Any], what: str, stable: Stable
) -> None:
    standing = play_broken(name, factory, parameters, stable)
    assert standing.incorrect is not None
    assert what in standing.incorrect
    assert standing.median_ns is None
    assert not standing.times_ns


@pytest.mark.parametrize("case", pulls.cases(Profile.QUICK), ids=lambda case: case.name)
def test_every_case_is_correct(case: Case, stable: Stable) -> None:
    for standing in play(case, stable):
        assert standing.incorrect is None, f"{standing.name}: {standing.incorrect}"
        # The pipe's memory needs room in /dev/shm.
        may_be_missing = standing.name in ("NIXL", "Mooncake", "shared memory + pipe")
        assert len(standing.times_ns) == 1 or (may_be_missing and standing.skipped is not None)


def test_batches_are_correct(stable: Stable) -> None:
    for name in ("BatchesOfPulls", "PullsAtOnce"):
        standing = play_alone(f"{LLMDD}:{name}", {"size": 4096, "count": 128}, stable)
        assert standing.correct, standing.incorrect


@pytest.mark.parametrize("parameters", [{"computing": True}, {"registered": True}], ids=lambda one: next(iter(one)))
def test_cases_of_the_full_profile_are_correct(parameters: dict[str, Any], stable: Stable) -> None:
    standing = play_alone(f"{LLMDD}:CachePulls", {**PARAMETERS, **parameters}, stable)
    assert standing.correct, standing.incorrect


def test_the_full_profile_has_what_the_quick_one_has() -> None:
    full = pulls.cases(Profile.FULL)
    assert len({case.name for case in full}) == len(full)
    assert {case.group for case in pulls.cases(Profile.QUICK)} <= {case.group for case in full}
    assert all(case.entrants[0].name == "llmdd" for case in full)


def import_without(module: str, failure: Callable[[str], ImportError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Import a module of contenders where what it imports by name fails."""

    def fails(name: str) -> None:
        raise failure(name)

    import_module = importlib.import_module
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(importlib, "import_module", fails)
    import_module(module)


@pytest.mark.parametrize(
    ("module", "how"),
    [
        (NIXL, "pip install --no-deps nixl-cu12"),
        (MOONCAKE, "pip install mooncake-transfer-engine-non-cuda"),
    ],
)
def test_a_peer_that_is_not_installed_says_how_to_get_it(
    module: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> ImportError:
        package = name.partition(".")[0]
        return ModuleNotFoundError(f"No module named {package!r}", name=package)

    with pytest.raises(Unavailable, match=how):
        import_without(module, not_installed, monkeypatch)


def test_mooncake_says_which_library_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("libibverbs.so.1: cannot open shared object file: No such file or directory")
    with pytest.raises(Unavailable, match="install Debian's libibverbs1"):
        import_without(MOONCAKE, lambda name: error, monkeypatch)


@pytest.mark.parametrize("factory", [PLAIN, *WITH_KEYS], ids=named)
def test_nothing_is_left_of_a_killed_puller(factory: str) -> None:
    before, nurseries_before = set(os.listdir("/dev/shm")), nurseries()
    with Stable(search_path=str(Path(__file__).parent)) as stable:
        standing = play_broken("KilledHalfWay", factory, PARAMETERS, stable)
        assert standing.incorrect == "its process ended with -9"
        eventually(lambda: not children_of_nurseries(), "a process of the killed puller is left")
        eventually(lambda: set(os.listdir("/dev/shm")) <= before, "a segment of the killed puller is left")
    assert nurseries() == nurseries_before


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
