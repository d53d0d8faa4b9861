"""The lifecycle of a day: a trace of requests replayed against the manager."""

from __future__ import annotations

from ..case import Case, Entrant, Profile

SEED = 20_260
REQUESTS = {Profile.QUICK: 20_000, Profile.FULL: 1_000_000}


def cases(profile: Profile) -> list[Case]:
    return []
