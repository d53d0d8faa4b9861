"""The first decode step is right in every way to it, and a wrong one is found."""

from __future__ import annotations

import pytest
from llmdd.bench.case import Case, Entrant, Profile
from llmdd.bench.cases.first_step import MODULE, SINCE, cases, first_step
from llmdd.bench.match import Match
from llmdd.bench.stable import Stable


@pytest.mark.parametrize("since", SINCE)
def test_every_way_gives_the_same_step(since: str, stable: Stable) -> None:
    case = first_step(since, 16)
    with Match(case, stable) as match:
        match.play_round()
        result = match.conclude()
    assert [(one.name, one.correct) for one in result.standings] == [
        ("llmdd", True),
        ("llmdd, layer by layer", True),
        ("recomputed", True),
    ], result.standings


@pytest.mark.parametrize(
    ("class_name", "since", "told"),
    [
        ("NothingPulled", "handover", "other logits"),
        ("NothingPulled", "prompt", "other logits"),
        ("AWrongByte", "handover", "other logits"),
        ("TheCacheIsKept", "handover", "1 caches are left"),
        ("TheLastLayerIsMissing", "handover", "other logits"),
        ("TheLastLayerIsMissing", "prompt", "other logits"),
        ("NothingComputed", "handover", "other logits"),
    ],
)
def test_a_wrong_step_is_no_quick_step(class_name: str, since: str, told: str, stable: Stable) -> None:
    parameters = {"since": since, "length": 16}
    broken = Entrant("broken", f"broken_first_step:{class_name}", parameters)
    right = Entrant("recomputed", f"{MODULE}:Recomputed", parameters)
    case = Case("first-step/broken", "", "step", (broken, right), "recomputed", rounds=1, seconds=1)
    with Match(case, stable) as match:
        match.play_round()
        result = match.conclude()
    standing, of_the_right_one = result.standings
    assert standing.incorrect is not None and told in standing.incorrect and standing.median_ns is None
    assert of_the_right_one.correct


def test_the_full_profile_has_what_the_quick_one_has() -> None:
    assert {case.name for case in cases(Profile.QUICK)} < {case.name for case in cases(Profile.FULL)}
