"""Placeholder."""

from __future__ import annotations

from ..case import Case, Profile


def cases(profile: Profile) -> list[Case]:
    return []
