"""The faults of the soak: what each is, whom it strikes, and with which codes calls may end that it touches."""

from __future__ import annotations

from enum import Enum
from random import Random

import msgspec


class Kind(str, Enum):
    """What happens to a process, its links or its network."""

    KILL = "killed"
    KILL_STOPPED = "killed while stopped"
    STOP = "stopped for less than the timeout"
    STOP_LONG = "stopped for longer than the timeout"
    CUT = "link dropped by force at one end"
    REOPEN = "instances finalized and initialized again"
    REPLACE = "process ended and started again"
    UNPLUG = "cable pulled and put back"
    SLOW = "rate of the network limited"


ANYWHERE = (Kind.KILL, Kind.KILL_STOPPED, Kind.STOP, Kind.STOP_LONG, Kind.CUT, Kind.REOPEN, Kind.REPLACE)
BETWEEN_HOSTS = (*ANYWHERE, Kind.UNPLUG, Kind.SLOW)
LIKELIHOODS = {
    Kind.KILL: 4,
    Kind.KILL_STOPPED: 1,
    Kind.STOP: 3,
    Kind.STOP_LONG: 2,
    Kind.CUT: 4,
    Kind.REOPEN: 2,
    Kind.REPLACE: 2,
    Kind.UNPLUG: 4,
    Kind.SLOW: 3,
}

_LATE = frozenset({"LLM_TIMEOUT", "LLM_LINK_BUSY"})
_LOST = _LATE | {"LLM_NOT_YET_LINK"}

#: How a transfer may end that overlaps such a fault, besides well. A key that is gone is judged by its request.
TRANSFERS = {
    Kind.KILL: _LOST,
    Kind.KILL_STOPPED: _LOST,
    Kind.STOP: _LATE,
    Kind.STOP_LONG: _LATE,
    Kind.CUT: _LOST,
    Kind.REOPEN: _LOST | {"LLM_ENGINE_FINALIZED"},
    Kind.REPLACE: _LOST | {"LLM_ENGINE_FINALIZED"},
    Kind.UNPLUG: _LOST,
    Kind.SLOW: _LATE,
}

#: How a transfer may end that no fault has touched: well, or late, which a busy machine may make it.
UNTOUCHED_TRANSFERS = _LATE

#: The same for calls that concern this end alone: memory may run out, and their lock be held.
LOCAL_CALLS = frozenset({"LLM_OUT_OF_MEMORY", "LLM_TIMEOUT"})
LOCAL_CALLS_WHILE_REOPENED = LOCAL_CALLS | {"LLM_ENGINE_FINALIZED"}

#: Links are made anew after every fault, by both ends at once if need be, and until it succeeds.
LINK_CALLS = frozenset(
    {
        "LLM_ALREADY_LINK",
        "LLM_LINK_FAILED",
        "LLM_UNLINK_FAILED",
        "LLM_TIMEOUT",
        "LLM_LINK_BUSY",
        "LLM_FAILED",
        "LLM_ENGINE_FINALIZED",
    }
)


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, drawn from the seed and its number alone."""

    number: int
    kind: Kind
    gap_s: float
    """How long after the one before."""
    victim: int
    """A process; prefill processes are counted first."""
    other: int
    """Of the processes of the other role, the one to which a link is cut."""
    aimed: bool
    """Whether it waits for the victim's next transfer."""
    delay_s: float
    """From then on."""
    length_s: float
    """How long it lasts, of those that pass."""


def draw(
    seed: int, number: int, prefill: int, decode: int, kinds: tuple[Kind, ...], mean_gap_s: float, timeout_s: float
) -> Fault:
    """Fault `number` of a run."""
    source = Random(f"{seed}: fault {number}")
    kind = source.choices(kinds, [LIKELIHOODS[one] for one in kinds])[0]
    victim = source.randrange(prefill + decode)
    return Fault(
        number=number,
        kind=kind,
        gap_s=source.expovariate(1 / mean_gap_s),
        victim=victim,
        other=source.randrange(decode) + prefill if victim < prefill else source.randrange(prefill),
        aimed=source.random() < 0.7,
        delay_s=source.choice((0.0, source.uniform(0, 0.002), source.uniform(0, 0.03))),
        length_s=_length(source, kind, timeout_s),
    )


def _length(source: Random, kind: Kind, timeout_s: float) -> float:
    if kind is Kind.STOP:
        return source.uniform(0.02, 0.6) * timeout_s
    if kind in (Kind.STOP_LONG, Kind.KILL_STOPPED):
        return source.uniform(1.1, 2.5) * timeout_s
    if kind is Kind.UNPLUG:
        return source.choice((source.uniform(0.05, 0.5), source.uniform(1.0, 4.0))) * timeout_s
    return source.uniform(0.5, 3.0)
