"""Judges the soak: every call by its deadline and its code, and everything else that must not be.

What a call may end with depends on the faults that overlap it, of either end or of the link between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import faults
from .faults import Kind
from .soak_messages import Call

SUCCESS = "LLM_SUCCESS"
NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"
LINKING = ("link_clusters", "unlink_clusters")

#: Violations beyond these are only counted.
MOST_VIOLATIONS = 50


@dataclass
class Disturbance:
    """A fault, while calls may feel it."""

    kind: Kind
    processes: frozenset[int]
    """Whom it touches; of a link both ends."""
    whole_process: bool
    """Whether it touches all links of these, and not only the one between them."""
    began_ns: int
    ended_ns: int | None = None

    def touches(self, call: Call, ends: frozenset[int]) -> bool:
        if self.began_ns > call.ended_ns or (self.ended_ns is not None and self.ended_ns < call.began_ns):
            return False
        return bool(self.processes & ends) if self.whole_process else self.processes == ends


@dataclass
class FaultTally:
    """What one kind of fault came to."""

    count: int = 0
    struck: int = 0
    """Transfers that were under way from or to its victim when it came."""
    codes: Counter[str] = field(default_factory=Counter)
    """How the transfers ended that overlapped it; those that died with their process are no calls any more."""


@dataclass
class CallTally:
    """What one call of llmdd came to."""

    count: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    not_judged: int = 0
    """Their own process stood still meanwhile."""
    overruns_ms: list[float] = field(default_factory=list)
    """How much later than its deadline each returned that was not back by then."""


class Judge:
    """What was seen, and what of it must not be.

    Parameters
    ----------
    margin_ms
        By how much later than its deadline a call may return.
    settling_s
        How long after a fault has ended calls may still feel it.
    note
        Told each violation when it is found.
    """

    def __init__(self, margin_ms: float, settling_s: float, note: Callable[[str], object] = lambda words: None) -> None:
        self.margin_ms = margin_ms
        self._note = note
        self._settling_ns = int(settling_s * 1e9)
        self.faults: dict[Kind, FaultTally] = {}
        self.calls: dict[str, CallTally] = {}
        self.untouched: Counter[str] = Counter()
        """How transfers ended that no fault touched."""
        self.violations: list[str] = []
        self.violation_count = 0
        self._disturbances: list[Disturbance] = []

    def violation(self, words: str) -> None:
        self.violation_count += 1
        self._note(f"VIOLATION {words}")
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(f"{time.strftime('%H:%M:%S')} {words}")

    @contextmanager
    def fault(self, kind: Kind, processes: frozenset[int], whole_process: bool, struck: int) -> Iterator[None]:
        """While it lasts, and a while after it, calls may end as calls do that it touches."""
        tally = self.faults.setdefault(kind, FaultTally())
        tally.count += 1
        tally.struck += struck
        disturbance = Disturbance(kind, processes, whole_process, time.monotonic_ns())
        self._disturbances.append(disturbance)
        try:
            yield
        finally:
            disturbance.ended_ns = time.monotonic_ns() + self._settling_ns

    def forget(self) -> None:
        """All calls that overlap what is over have been judged."""
        now = time.monotonic_ns()
        self._disturbances = [one for one in self._disturbances if one.ended_ns is None or one.ended_ns >= now]

    def call(self, call: Call, ends: frozenset[int], stood_still: bool, who: str) -> None:
        """Judge a call that one process has made, towards another if there are two."""
        tally = self.calls.setdefault(call.name, CallTally())
        tally.count += 1
        tally.codes[call.code] += 1
        self._judge_time(call, tally, stood_still, who)
        touching = {one.kind for one in self._disturbances if one.touches(call, ends)}
        if call.name in LINKING:
            self._judge_code(call, faults.LINK_CALLS, touching, who)
        elif not call.there:
            reopened = touching & {Kind.REOPEN, Kind.REPLACE}
            allowed = faults.LOCAL_CALLS_WHILE_REOPENED if reopened else faults.LOCAL_CALLS
            self._judge_code(call, allowed, touching, who)
        else:
            self._judge_transfer(call, touching, who)

    def _judge_time(self, call: Call, tally: CallTally, stood_still: bool, who: str) -> None:
        overrun_ms = (call.ended_ns - call.began_ns) / 1e6 - call.deadline_ms
        if stood_still:
            tally.not_judged += 1
            return
        if overrun_ms > 0:
            tally.overruns_ms.append(overrun_ms)
        if overrun_ms > self.margin_ms:
            took_ms = overrun_ms + call.deadline_ms
            self.violation(f"{who}: {call.name} took {took_ms:.0f} ms of {call.deadline_ms}, {call.code}")

    def _judge_transfer(self, call: Call, touching: set[Kind], who: str) -> None:
        for kind in touching:
            self.faults[kind].codes[call.code] += 1
        allowed = faults.UNTOUCHED_TRANSFERS
        if not touching:
            self.untouched[call.code] += 1
        for kind in touching:
            allowed = allowed | faults.TRANSFERS[kind]
        if call.code != NOT_EXIST:  # judged by its request
            self._judge_code(call, allowed, touching, who)

    def _judge_code(self, call: Call, allowed: frozenset[str], touching: set[Kind], who: str) -> None:
        if call.code == SUCCESS or call.code in allowed:
            return
        meanwhile = ", ".join(kind.value for kind in touching) or "no fault"
        self.violation(f"{who}: {call.name} ended with {call.code}; meanwhile: {meanwhile}")
