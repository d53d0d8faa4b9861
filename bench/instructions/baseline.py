"""What the counts were when somebody last accepted them, and why they became so."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .counts import Counting, Counts
from .environment import DIFFERENT_BESIDES_THE_CORE, WHOLLY_DIFFERENT, Environment, differences

COMMITTED = Path(__file__).with_name("baseline.json")

#: So many acceptances are remembered.
HISTORY = 20


class Tolerance(msgspec.Struct, frozen=True):
    """By what part counts may grow. What is counted twice differs by less (see docs/instructions.md)."""

    core: float = 0.005
    everything: float = 0.03


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one path."""

    old: Counts | None = None
    """None for a path that had not been counted."""
    new: Counts | None = None
    """None for a path that is counted no more."""


class Acceptance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why counts are what they are."""

    date: str
    reason: str
    environment: dict[str, tuple[str, str]] = {}
    """What differed from the environment of before; then all counts did, and are not listed."""
    paths: dict[str, Change] = {}


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Counts that were accepted, and where they were counted."""

    environment: Environment
    tolerance: Tolerance = msgspec.field(default_factory=Tolerance)
    paths: dict[str, Counts]
    history: list[Acceptance]
    """The latest first."""


class UnreadableBaseline(Exception):
    """A file holds no baseline."""


class ElsewhereCounted(Exception):
    """Some counts alone cannot be accepted: the others are of another environment."""


def read(file: Path) -> Baseline | None:
    """None where there is no such file.

    Raises
    ------
    UnreadableBaseline
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Baseline)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise UnreadableBaseline(f"{file} holds no baseline: {error}") from error


def write(baseline: Baseline, file: Path) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=2) + b"\n")


def accept(before: Baseline | None, counting: Counting, reason: str, date: str, *, is_whole: bool) -> Baseline:
    """The baseline that `counting` makes of the one before.

    Parameters
    ----------
    before : Baseline, optional
    counting : Counting
    reason, date : str
    is_whole : bool
        Whether all paths were counted: then those are dropped that were not.

    Raises
    ------
    ElsewhereCounted
    """
    paths = {name: counted.counts for name, counted in counting.paths.items()}
    if before is None:
        return Baseline(environment=counting.environment, paths=paths, history=[Acceptance(date=date, reason=reason)])
    different = differences(before.environment, counting.environment, WHOLLY_DIFFERENT | DIFFERENT_BESIDES_THE_CORE)
    if different and not is_whole:
        raise ElsewhereCounted(f"the baseline is of another environment ({', '.join(different)}): accept all paths")
    after = paths if is_whole else before.paths | paths
    changes = {
        name: Change(before.paths.get(name), after.get(name))
        for name in before.paths | after
        if before.paths.get(name) != after.get(name)
    }
    accepted = Acceptance(date=date, reason=reason, environment=different, paths={} if different else changes)
    return Baseline(
        environment=counting.environment,
        tolerance=before.tolerance,
        paths=after,
        history=[accepted, *before.history][:HISTORY],
    )
