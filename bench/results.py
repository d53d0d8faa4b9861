"""What a run found, as it is kept in ``results.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

FORMAT = 1


class Kept(msgspec.Struct, kw_only=True):
    """What a command keeps in a file of what it found."""

    COMMAND: ClassVar[str]
    """The command, as one types it."""

    format: int = FORMAT


AnyKept = TypeVar("AnyKept", bound=Kept)


class Standing(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How one entrant did in one case. Times are nanoseconds for one operation.

    Exactly one of three holds: it was skipped (with the reason), it was incorrect (with what was wrong, and no time),
    or it was correct and has all its times.
    """

    name: str
    skipped: str | None = None
    incorrect: str | None = None
    operations: int = 0
    """In one round."""
    times_ns: list[float] = []
    """One for each round."""
    median_ns: float | None = None
    quartiles_ns: tuple[float, float] | None = None
    ratio: float | None = None
    """This median over the baseline's."""
    ratio_quartiles: tuple[float, float] | None = None
    """Of the ratios of single rounds."""
    resident_bytes: int | None = None
    """What its processes had taken when the last round ended; memory that two of them touch counts twice."""
    peak_bytes: int | None = None
    """The same at its highest."""
    measured: dict[str, Any] = {}
    """What it measured itself."""
    moves_bytes: bool = True
    """Whether it moves what the case is about."""

    @property
    def correct(self) -> bool:
        return self.skipped is None and self.incorrect is None


class CaseResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one case found."""

    name: str
    title: str
    operation: str
    baseline: str
    standings: list[Standing]
    seconds: float
    """How long it took, set-up and checks included."""
    bytes_moved: int = 0
    axis: str | None = None
    place: int | None = None
    target: str | None = None
    target_met: bool | None = None

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def standing(self, name: str) -> Standing | None:
        return next((standing for standing in self.standings if standing.name == name), None)

    def label(self, standing: Standing) -> str:
        """Its name, and how many requests it plays if the first entrant plays more."""
        whole, played = (one.measured.get("requests") for one in (self.standings[0], standing))
        shorter = whole is not None and played is not None and played < whole
        return f"{standing.name} ({played:,} requests)" if shorter else standing.name

    def rate_gb_s(self, standing: Standing) -> float | None:
        """Bytes moved over the median time, in 10⁹ bytes a second."""
        if not (self.bytes_moved and standing.median_ns and standing.moves_bytes):
            return None
        return self.bytes_moved / standing.median_ns


class Machine(msgspec.Struct, kw_only=True):
    """Where a run took place; nothing that names the machine or its user."""

    processor: str
    architecture: str
    cores: int
    memory_bytes: int
    kernel: str
    libc: str
    python: str
    caches: dict[str, int]
    """Bytes of the processor's caches, as the kernel tells them: ``L1d``, ``L2``, ``L3``."""
    load: float
    """The load average over one minute when the run began."""


class Run(Kept, kw_only=True):
    """A whole run."""

    COMMAND = "llmdd bench"

    profile: str
    began: str
    """When, in UTC, ISO 8601."""
    seconds: float
    interrupted: bool
    machine: Machine
    versions: dict[str, str]
    """Of every package that was measured."""
    cases: list[CaseResult]

    @property
    def groups(self) -> list[str]:
        """In the order in which they were played."""
        return list(dict.fromkeys(case.group for case in self.cases))

    def cases_of(self, group: str) -> list[CaseResult]:
        return [case for case in self.cases if case.group == group]

    @property
    def incorrect(self) -> list[tuple[CaseResult, Standing]]:
        return [(case, one) for case in self.cases for one in case.standings if one.incorrect is not None]


class UnreadableResults(Exception):
    """A file holds no results that this version reads."""


def write(kept: Kept, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def read(path: Path, form: type[AnyKept]) -> AnyKept:
    """What :func:`write` wrote.

    Raises
    ------
    UnreadableResults
        Naming the file and what is wrong with it.
    """
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=form)
    except (OSError, msgspec.MsgspecError) as error:
        raise UnreadableResults(f"{path} holds no results of {form.COMMAND}: {error}") from error
    if kept.format != FORMAT:
        raise UnreadableResults(f"{path} has format {kept.format}; this version reads format {FORMAT}")
    return kept
