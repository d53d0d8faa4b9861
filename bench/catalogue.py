"""Every case of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from .case import Case, Profile
from .cases import day, first_step, hosts, managers, pulls, scale


class UnknownCase(Exception):
    """A pattern selects nothing; the message names it and what there is."""


def cases_of(profile: Profile) -> list[Case]:
    """The cases of `profile`, in the order in which they run and are shown."""
    return [case for part in (managers, day, pulls, hosts, first_step, scale) for case in part.cases(profile)]


def chosen(profile: Profile, patterns: Sequence[str]) -> list[Case]:
    """Those of a profile's cases that `patterns` select, as :func:`select` does.

    Raises
    ------
    UnknownCase
        Which also says so if only the full profile has it.
    """
    try:
        return select(cases_of(profile), patterns)
    except UnknownCase as unknown:
        if profile is Profile.QUICK and is_known(cases_of(Profile.FULL), patterns):
            raise UnknownCase(f"{unknown}; the full profile has it: --profile full") from None
        raise


def is_known(cases: Sequence[Case], patterns: Sequence[str]) -> bool:
    try:
        return bool(select(cases, patterns))
    except UnknownCase:
        return False


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Those whose name or group matches one of `patterns`, as file names do; all if there is no pattern.

    Raises
    ------
    UnknownCase
    """
    chosen = set[str]()
    for pattern in patterns:
        found = {case.name for case in cases if fnmatchcase(case.name, pattern) or fnmatchcase(case.group, pattern)}
        if not found:
            raise UnknownCase(f"no case is called {pattern!r}; there are: {', '.join(case.name for case in cases)}")
        chosen |= found
    return [case for case in cases if not patterns or case.name in chosen]
