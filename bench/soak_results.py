"""What a soak found, as it is kept in a file."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .results import Kept, Machine
from .soak import Findings
from .soak_judge import CallTally


class FaultRow(msgspec.Struct, kw_only=True):
    """What one kind of fault came to."""

    kind: str
    count: int
    struck: int
    """Transfers that were under way from or to its victim when it came."""
    codes: dict[str, int]
    """How the transfers ended that overlapped it, and came to an end."""


class CallRow(msgspec.Struct, kw_only=True):
    """What one call of llmdd came to. Milliseconds are those by which it returned after its deadline."""

    name: str
    count: int
    codes: dict[str, int]
    not_judged: int
    """Those whose own process stood still meanwhile."""
    late: int
    """Those that returned after their deadline, which includes all that ran out of time."""
    p50_ms: float
    p99_ms: float
    max_ms: float


class Part(msgspec.Struct, kw_only=True):
    """A run in one place."""

    place: str
    seconds: float
    cores: float
    requests: dict[str, int]
    ways: dict[str, int]
    retried: int
    prefilled_again: int
    lost_calls: int
    bytes_verified: int
    expired_keys: int
    """Those that went because their lease was over."""
    rests: int
    processes: int
    """How many there have been, one after another."""
    faults: list[FaultRow]
    untouched: dict[str, int]
    """How the transfers ended that no fault overlapped."""
    calls: list[CallRow]
    violations: list[str]
    violation_count: int
    interrupted: bool

    @property
    def request_count(self) -> int:
        return sum(self.requests.values())

    @property
    def fault_count(self) -> int:
        return sum(row.count for row in self.faults)


class Report(Kept, kw_only=True):
    """A whole run."""

    COMMAND = "llmdd soak"

    command: str
    """What runs it again."""
    began: str
    """When, in UTC, ISO 8601."""
    seed: int
    prefill: int
    decode: int
    requests_per_second: float
    timeout_ms: int
    margin_ms: int
    machine: Machine
    versions: dict[str, str]
    not_run: str | None = None
    """Why there is no part between hosts, if it was not possible."""
    parts: list[Part]

    @property
    def passed(self) -> bool:
        return all(part.violation_count == 0 and not part.interrupted for part in self.parts)


def part_of(findings: Findings) -> Part:
    """What is kept of a run in one place."""
    judge = findings.judge
    return Part(
        place=findings.settings.place.value,
        seconds=round(findings.seconds, 1),
        cores=round(findings.cores, 2),
        requests=dict(findings.requests),
        ways=dict(sorted(findings.ways.items())),
        retried=findings.retried,
        prefilled_again=findings.prefilled_again,
        lost_calls=findings.lost_calls,
        bytes_verified=findings.bytes_verified,
        expired_keys=findings.expired_keys,
        rests=findings.rests,
        processes=findings.processes,
        faults=[
            FaultRow(kind=kind.value, count=tally.count, struck=tally.struck, codes=dict(tally.codes))
            for kind in findings.settings.kinds
            if (tally := judge.faults.get(kind)) is not None
        ],
        untouched=dict(judge.untouched),
        calls=[row_of(name, tally) for name, tally in sorted(judge.calls.items())],
        violations=judge.violations,
        violation_count=judge.violation_count,
        interrupted=findings.interrupted,
    )


def row_of(name: str, tally: CallTally) -> CallRow:
    late = sorted(tally.overruns_ms)
    return CallRow(
        name=name,
        count=tally.count,
        codes=dict(tally.codes),
        not_judged=tally.not_judged,
        late=len(late),
        p50_ms=round(quantile(late, 0.5), 2),
        p99_ms=round(quantile(late, 0.99), 2),
        max_ms=round(quantile(late, 1.0), 2),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of them that is not below that share of all; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[max(-int(-share * len(ordered) // 1) - 1, 0)]
