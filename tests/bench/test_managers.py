"""The managers' cases and those of scale: whoever does something wrong has no time, and nobody does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llmdd.bench.case import Case, Profile
from llmdd.bench.cases import managers, scale
from llmdd.bench.cases.managers import DICTIONARIES, FLOORS, LLMDD_CACHES, REFERENCE_MODEL, VLLM_BLOCK_POOL
from llmdd.bench.cases.scale import LLMDD_SCALE
from llmdd.bench.stable import Stable
from playing import play, play_alone

QUICK = [*managers.cases(Profile.QUICK), *scale.cases(Profile.QUICK)]
FULL = [*managers.cases(Profile.FULL), *scale.cases(Profile.FULL)]

CYCLES = {"live": 10, "num_tensors": 3, "batch_size": 4}
LOOKUPS = {"live": 10, "seed": 1}
COPIES = {"pieces": 300, "piece_bytes": 4096, "seed": 1}
PEERS = {"peers": 4, "slot_bytes": 4096}
BLOCKS = {"blocks": 10, "block_bytes": 4096, "total": 300, "seed": 1}

BROKEN = [
    ("LlmddLeavesAKey", f"{LLMDD_CACHES}:Cycles", CYCLES, "keys are bound, not 10"),
    ("LlmddKeepsACache", f"{LLMDD_CACHES}:Cycles", CYCLES, "caches live, not 10"),
    ("LlmddLeavesACycleOut", f"{LLMDD_CACHES}:Cycles", CYCLES, "cycles made"),
    ("LlmddDoesNotPull", f"{LLMDD_CACHES}:PullCycles", CYCLES, "keys are bound, not 10"),
    ("LlmddKeepsAPulledCache", f"{LLMDD_CACHES}:PullCycles", CYCLES, "11 caches live, not 10"),
    ("LlmddPullsAWrongByte", f"{LLMDD_CACHES}:PullCycles", CYCLES, "wrong bytes were pulled to tensor 2"),
    ("LlmddAnswersAnotherCache", f"{LLMDD_CACHES}:Lookups", LOOKUPS, "was answered by"),
    ("LlmddFindsStrangers", f"{LLMDD_CACHES}:Lookups", LOOKUPS, "never bound was found"),
    ("LlmddFindsTheNextOne", f"{LLMDD_CACHES}:BulkLookups", LOOKUPS | {"given": "array"}, "by another cache"),
    ("LlmddFindsAnotherSlot", f"{LLMDD_CACHES}:BulkLookups", LOOKUPS | {"given": "keys"}, "by another batch slot"),
    ("LlmddDropsNoKey", f"{LLMDD_CACHES}:Drops", {"live": 10, "registered": False}, "11 keys are bound, not 10"),
    ("LlmddDropsNoCache", f"{LLMDD_CACHES}:Drops", {"live": 10, "registered": False}, "11 caches live, not 10"),
    ("LlmddDoesNotUnregister", f"{LLMDD_CACHES}:Drops", {"live": 10, "registered": True}, "11 keys are bound, not 10"),
    ("LlmddRemovesTooFew", f"{LLMDD_CACHES}:BulkDrops", {"count": 100}, "1 keys are bound, not 0"),
    ("LlmddDeallocatesTooFew", f"{LLMDD_CACHES}:BulkDrops", {"count": 100}, "it left a cache"),
    ("DictionariesLeaveAKey", f"{DICTIONARIES}:Cycles", CYCLES, "keys are bound, not 10"),
    ("DictionariesKeepACache", f"{DICTIONARIES}:Cycles", CYCLES, "caches live, not 10"),
    ("DictionariesLeaveACycleOut", f"{DICTIONARIES}:Cycles", CYCLES, "cycles made"),
    ("DictionariesDoNotPull", f"{DICTIONARIES}:PullCycles", CYCLES, "keys are bound, not 10"),
    ("DictionariesPullAWrongByte", f"{DICTIONARIES}:PullCycles", CYCLES, "wrong bytes were pulled to tensor 2"),
    ("DictionariesAnswerAnotherCache", f"{DICTIONARIES}:Lookups", LOOKUPS, "the key of cache"),
    ("DictionariesDropNoKey", f"{DICTIONARIES}:Drops", {"count": 100}, "1 keys are bound, not 0"),
    ("DictionariesDropNoCache", f"{DICTIONARIES}:Drops", {"count": 100}, "1 caches live, not 0"),
    ("DictionaryWithAWrongEntry", f"{FLOORS}:DictionaryLookups", LOOKUPS, "entry 4 got (5, 0)"),
    ("TooFewEmptyCalls", f"{FLOORS}:EmptyCalls", {}, "calls were made, not"),
    ("CopiesAWrongByte", f"{FLOORS}:Copies", COPIES, "place 299 does not have the bytes"),
    ("LeavesACopyOut", f"{FLOORS}:Copies", COPIES, "does not have the bytes of piece"),
    ("PeersPullAWrongByte", f"{LLMDD_SCALE}:PullsByPeers", PEERS, "wrong bytes"),
    ("PeerDoesNotPull", f"{LLMDD_SCALE}:PullsByPeers", PEERS, "request 9: wrong bytes"),
    ("PeersLeaveAKey", f"{LLMDD_SCALE}:PullsByPeers", PEERS, "the owner has 1 keys and 1 caches left"),
    ("CycleBesidePeersLeavesAKey", f"{LLMDD_SCALE}:CyclesBesidePeers", {"peers": 2}, "1 keys are bound, not 0"),
    ("LinkedPeersPullAWrongByte", f"{LLMDD_SCALE}:CyclesBesidePeers", {"peers": 2}, "instance 0 pulled wrong bytes"),
    ("PullsAWrongByteOfABlock", f"{LLMDD_SCALE}:BlocksPulls", BLOCKS, "place 299 does not have the bytes"),
    ("LeavesABlocksPullOut", f"{LLMDD_SCALE}:BlocksPulls", BLOCKS, "does not have the bytes of piece"),
]


@pytest.mark.parametrize(("name", "factory", "parameters", "message"), BROKEN, ids=[broken[0] for broken in BROKEN])
def test_a_mistake_has_no_time(
    name: str, factory: str, parameters: dict[str, Any], message: str, stable: Stable
) -> None:
    broken = play_alone(f"broken_managers:{name}", parameters, stable)
    assert broken.incorrect is not None
    assert message in broken.incorrect
    assert "Traceback" not in broken.incorrect
    assert (broken.median_ns, broken.ratio, broken.times_ns) == (None, None, [])


SOUND = {repr(broken[1:3]): pytest.param(*broken[1:3], id=broken[1].rpartition(".")[2]) for broken in BROKEN}


@pytest.mark.parametrize(("factory", "parameters"), SOUND.values())
def test_without_the_mistake_it_has(factory: str, parameters: dict[str, Any], stable: Stable) -> None:
    sound = play_alone(factory, parameters, stable)
    assert sound.incorrect is None
    assert len(sound.times_ns) == 1
    assert sound.median_ns is not None


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in QUICK])
def test_everybody_is_correct(case: Case, stable: Stable) -> None:
    """Of those that need nothing but llmdd; peers have tests of their own."""
    ours = tuple(entrant for entrant in case.entrants if entrant.module not in (REFERENCE_MODEL, VLLM_BLOCK_POOL))
    for standing in play(replace(case, entrants=ours), stable):
        assert (standing.name, standing.incorrect, standing.skipped) == (standing.name, None, None)


def test_the_full_profile_has_every_size() -> None:
    names = {case.name for case in FULL}
    assert len(names) == len(FULL)
    for group in ("cycle", "lookup"):
        assert {f"{group}/{live}-live" for live in (10, 1_000, 100_000, 1_000_000)} <= names
    assert {case.group for case in QUICK} == {case.group for case in FULL}
