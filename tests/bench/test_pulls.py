"""The cases of pulls: whoever does something wrong has no time, nobody does, and nothing is left of who is killed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llmdd.bench.case import Case, Profile
from llmdd.bench.cases import pulls
from llmdd.bench.cases.pulls import LLMDD, MEMCPY, MOONCAKE, NIXL, SHARED_MEMORY_PIPE
from llmdd.bench.contender import Unavailable
from llmdd.bench.stable import Stable
from playing import children_of_nurseries, eventually, named, nurseries, play, play_broken, play_if_possible

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
#: What all look for alike is broken in one that has keys and one that has none, and once in each of the others.
LOOKED_FOR_ALIKE = [PLAIN, f"{LLMDD}:CachePulls"]
BROKEN = [
    *(("WrongByte", factory, PARAMETERS, "wrong bytes of payload") for factory in [PLAIN, *WITH_KEYS]),
    *(("MissingByte", factory, PARAMETERS, "wrong bytes of payload") for factory in LOOKED_FOR_ALIKE),
    *(("OtherOffer", factory, PARAMETERS, "wrong bytes of payload") for factory in LOOKED_FOR_ALIKE),
    *(("NothingPulled", factory, PARAMETERS, "wrong bytes of payload") for factory in LOOKED_FOR_ALIKE),
    *(("KeyLeft", factory, PARAMETERS, "the owner has 1 keys left") for factory in WITH_KEYS),
    *(("BlockMixedUp", factory, BLOCKS, "tensor 2: a block does not have the bytes") for factory in OF_BLOCKS),
    ("NothingPulled", f"{LLMDD}:BlocksCachePulls", BLOCKS, "tensor 0: a block does not have the bytes"),
    ("OtherOffer", f"{LLMDD}:CachePulls", {**PARAMETERS, "registered": True}, "wrong bytes of payload"),
    ("IdleOwner", f"{LLMDD}:CachePulls", {**PARAMETERS, "computing": True}, "the owner did not compute"),
    ("BatchLeftOut", f"{LLMDD}:PullsAtOnce", {"size": 4096, "count": 128}, "64 pulls of 128 succeeded"),
]

#: The sizes that take longer are played by ``pytest bench/``.
SMALLEST = [case for case in pulls.cases(Profile.QUICK) if case.name.endswith("/4KiB")]


@pytest.mark.parametrize(("name", "factory", "parameters", "what"), BROKEN, ids=named)
def test_who_does_something_wrong_has_no_time(
    name: str, factory: str, parameters: dict[str, Any], what: str, stable: Stable
) -> None:
    standing = play_broken(name, factory, parameters, stable)
    assert standing.incorrect is not None
    assert what in standing.incorrect
    assert standing.median_ns is None
    assert not standing.times_ns


def test_there_is_a_smallest_size_of_each_kind() -> None:
    assert {case.group for case in pulls.cases(Profile.QUICK)} == {case.group for case in SMALLEST} | {"blocks"}


@pytest.mark.parametrize("case", SMALLEST, ids=lambda case: case.name)
def test_every_case_is_correct(case: Case, stable: Stable) -> None:
    for standing in play(case, stable):
        assert standing.incorrect is None, f"{standing.name}: {standing.incorrect}"
        # The pipe's memory needs room in /dev/shm.
        may_be_missing = standing.name in ("NIXL", "Mooncake", "shared memory + pipe")
        assert len(standing.times_ns) == 1 or (may_be_missing and standing.skipped is not None)


@pytest.mark.parametrize("factory", OF_BLOCKS, ids=named)
def test_pulls_of_blocks_are_correct(factory: str, stable: Stable) -> None:
    standing = play_if_possible(factory, BLOCKS, stable)
    assert standing.correct, standing.incorrect


def test_batches_are_correct(stable: Stable) -> None:
    for name in ("BatchesOfPulls", "PullsAtOnce"):
        standing = play_if_possible(f"{LLMDD}:{name}", {"size": 4096, "count": 128}, stable)
        assert standing.correct, standing.incorrect


@pytest.mark.parametrize("parameters", [{"computing": True}, {"registered": True}], ids=lambda one: next(iter(one)))
def test_cases_of_the_full_profile_are_correct(parameters: dict[str, Any], stable: Stable) -> None:
    standing = play_if_possible(f"{LLMDD}:CachePulls", {**PARAMETERS, **parameters}, stable)
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
