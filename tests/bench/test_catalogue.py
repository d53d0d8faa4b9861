"""Which cases a pattern selects, and what is said where it selects none."""

from __future__ import annotations

import pytest
from llmdd.bench.case import Profile
from llmdd.bench.catalogue import UnknownCase, cases_of, chosen


def names(profile: Profile, *patterns: str) -> list[str]:
    return [case.name for case in chosen(profile, patterns)]


@pytest.mark.parametrize("profile", Profile)
def test_every_case_has_a_name_of_its_own_and_llmdd_first(profile: Profile) -> None:
    cases = cases_of(profile)
    assert len({case.name for case in cases}) == len(cases)
    assert {case.entrants[0].name for case in cases} == {"llmdd"}


def test_names_and_groups_are_matched_as_file_names_are() -> None:
    assert names(Profile.QUICK, "pull") == ["pull/4KiB", "pull/1MiB", "pull/16MiB"]
    assert names(Profile.QUICK, "pull/*MiB", "gil/4KiB") == ["pull/1MiB", "pull/16MiB", "gil/4KiB"]
    assert names(Profile.FULL) == [case.name for case in cases_of(Profile.FULL)]


def test_what_only_the_full_profile_has_is_said_to_be_there() -> None:
    with pytest.raises(UnknownCase, match=r"'pull/256MiB'; there are: .*; the full profile has it: --profile full"):
        chosen(Profile.QUICK, ["pull/256MiB"])


@pytest.mark.parametrize("profile", Profile)
def test_what_nobody_has_is_named(profile: Profile) -> None:
    with pytest.raises(UnknownCase, match=r"no case is called 'push'; there are: .*MiB") as refusal:
        chosen(profile, ["push"])
    assert "--profile" not in str(refusal.value)
