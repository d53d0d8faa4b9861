"""A day of requests, made up from a seed: when each comes, how long it is, what it shares with others, when it leaves.

Nobody's traffic is in it, but its shape is what services report: more requests by day than by night, and bursts;
lengths with a long tail; beginnings of prompts that many requests share, a few of them by very many; clients that go
away before they got an answer. Fewer requests are not a thinner day but a shorter one: as many a second, and as many
caches that live at once. NumPy computes a million of them in about a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: A million of them in 24 hours.
REQUESTS_PER_SECOND = 1_000_000 / 86_400
#: Tokens of one page, as many as in a block of vLLM.
PAGE_TOKENS = 16
PAGE_BYTES = 1 << 10

# Tokens of a prompt without the part that it shares. The logarithms of lengths are normal, with this spread.
MEDIAN_TOKENS, TOKENS_SPREAD, MOST_TOKENS = 600.0, 1.0, 8_192.0
# Seconds from the arrival of a request until it is pulled.
MEDIAN_STAY_S, STAY_SPREAD, LONGEST_STAY_S = 5.0, 1.0, 300.0
# How many clients go away while the prompt is computed, and after its key was bound; mean seconds until they do.
GIVEN_UP, ABORTED, MEAN_PATIENCE_S = 0.02, 0.02, 1.5

# How many requests share a prefix, of how many there are, and how the use of a prefix falls with its rank.
SHARING, PREFIXES, PREFIX_ZIPF = 0.6, 2_000, 1.1
MEDIAN_PREFIX_TOKENS, PREFIX_SPREAD, MOST_PREFIX_TOKENS = 400.0, 0.8, 4_096.0
#: A prefix that nobody has needed for so long is removed.
PREFIX_IDLE_S = 300.0

BURSTS_PER_HOUR, MEAN_BURST_S = 12, 20.0


class Action(IntEnum):
    """What happens to the manager, in the order of what happens at one moment."""

    LEAVE = 0
    """A request was pulled or aborted: its key goes."""
    GIVE_UP = 1
    """A client went away while its prompt was computed: there is no key yet, the cache goes."""
    PREFIX_END = 2
    """The key of a prefix goes."""
    LOOK_UP = 3
    """Is there a cache of the prefix?"""
    PREFIX_BEGIN = 4
    """There was none: it is allocated, and only its key holds it."""
    ARRIVE = 5
    """A cache is allocated for a request, and only its key holds it."""
    BEGIN = 6
    """A cache is allocated for a request whose client will give up: it gets no key, its id holds it."""


ALLOCATES = (Action.PREFIX_BEGIN, Action.ARRIVE, Action.BEGIN)
FREES = (Action.LEAVE, Action.GIVE_UP, Action.PREFIX_END)


@dataclass(frozen=True)
class Lives:
    """Caches of the trace: one for each request, or one for each time that a prefix is held."""

    subject: Integers
    """The request's number, or the prefix's."""
    pages: Integers
    begin: Floats
    end: Floats


@dataclass(frozen=True)
class Trace:
    """Everything that happens, in order of time; see :func:`trace`."""

    requests: Lives
    prefixes: Lives
    prefix_pages: Integers
    """Of each prefix."""
    seconds: Floats
    """When each event happens."""
    actions: npt.NDArray[np.int8]
    subjects: npt.NDArray[np.int32]
    """The request of each event, or the prefix."""
    pages: npt.NDArray[np.int16]
    """What it allocates or frees; zero for a lookup."""

    @property
    def request_count(self) -> int:
        return len(self.requests.subject)

    @cached_property
    def peak_pages(self) -> int:
        """The most pages that are held at once."""
        changes = self.pages * np.where(np.isin(self.actions, ALLOCATES), 1, -1)
        return int(np.cumsum(changes, dtype=np.int64).max())

    @property
    def allocations(self) -> int:
        """How many caches are allocated in all."""
        return len(self.requests.subject) + len(self.prefixes.subject)

    @cached_property
    def prefix_begins(self) -> Integers:
        """The events that allocate a prefix."""
        return np.flatnonzero(self.actions == Action.PREFIX_BEGIN)

    @cached_property
    def prefix_ordinals(self) -> Integers:
        """The place of each of them among all allocations, from 1."""
        return np.asarray(np.cumsum(np.isin(self.actions, ALLOCATES))[self.prefix_begins])

    @cached_property
    def found(self) -> Integers:
        """For each lookup the place in :attr:`prefix_begins` of the event whose cache it finds; -1 if it finds none."""
        concerned = np.isin(self.actions, (Action.LOOK_UP, Action.PREFIX_BEGIN, Action.PREFIX_END))
        actions, subjects = self.actions[concerned], self.subjects[concerned]
        # Prefix by prefix: a lookup finds what the last event before it has left, if that is not an end.
        by_prefix = np.argsort(subjects, kind="stable")
        begun = (np.cumsum(actions == Action.PREFIX_BEGIN) - 1)[by_prefix]
        actions, subjects = actions[by_prefix], subjects[by_prefix]
        places = np.arange(len(actions))
        last = np.maximum.accumulate(np.where(actions == Action.LOOK_UP, 0, places))
        held = (actions[last] == Action.PREFIX_BEGIN) & (subjects[last] == subjects)
        found = np.empty(len(actions), np.int64)
        found[by_prefix] = np.where(held, begun[last], -1)
        return np.asarray(found[self.actions[concerned] == Action.LOOK_UP])


def trace(requests: int, seed: int) -> Trace:
    """A day, or as much of one as so many requests take.

    Parameters
    ----------
    requests : int
        How many.
    seed : int
        The same seed gives the same trace.
    """
    random = np.random.default_rng(seed)
    begin = _arrivals(requests, random)
    pages = _pages(random.lognormal(np.log(MEDIAN_TOKENS), TOKENS_SPREAD, requests), MOST_TOKENS)
    stay = np.minimum(random.lognormal(np.log(MEDIAN_STAY_S), STAY_SPREAD, requests), LONGEST_STAY_S)
    fate = random.random(requests)
    gives_up, aborts = fate < GIVEN_UP, fate > 1 - ABORTED
    patience = np.minimum(random.exponential(MEAN_PATIENCE_S, requests), stay)
    end = begin + np.where(gives_up | aborts, patience, stay)
    numbers = np.arange(requests)

    prefix_pages = _pages(random.lognormal(np.log(MEDIAN_PREFIX_TOKENS), PREFIX_SPREAD, PREFIXES), MOST_PREFIX_TOKENS)
    sharing = np.flatnonzero(random.random(requests) < SHARING)
    shared = _popular(len(sharing), random)
    prefixes = _held(shared, begin[sharing], prefix_pages)

    events = [
        (begin, np.where(gives_up, Action.BEGIN, Action.ARRIVE), numbers, pages),
        (end, np.where(gives_up, Action.GIVE_UP, Action.LEAVE), numbers, pages),
        (begin[sharing], np.full(len(sharing), Action.LOOK_UP), shared, np.zeros(len(sharing), np.int64)),
        (prefixes.begin, np.full(len(prefixes.begin), Action.PREFIX_BEGIN), prefixes.subject, prefixes.pages),
        (prefixes.end, np.full(len(prefixes.end), Action.PREFIX_END), prefixes.subject, prefixes.pages),
    ]
    seconds, actions, subjects, sizes = (np.concatenate(column) for column in zip(*events, strict=True))
    order = np.lexsort((actions, seconds))
    return Trace(
        requests=Lives(numbers, pages, begin, end),
        prefixes=prefixes,
        prefix_pages=prefix_pages,
        seconds=seconds[order],
        actions=actions[order].astype(np.int8),
        subjects=subjects[order].astype(np.int32),
        pages=sizes[order].astype(np.int16),
    )


def ledger(day: Trace, at: Floats) -> Integers:
    """The pages that are held at each of the moments `at`, by the begins and ends of all lives alone."""
    held = np.zeros(len(at), np.int64)
    for lives in (day.requests, day.prefixes):
        held += _sum_until(lives.begin, lives.pages, at) - _sum_until(lives.end, lives.pages, at)
    return held


def _sum_until(moments: Floats, pages: Integers, at: Floats) -> Integers:
    order = np.argsort(moments)
    sums = np.concatenate(([0], np.cumsum(pages[order])))
    return np.asarray(sums[np.searchsorted(moments[order], at, side="right")])


def _pages(tokens: Floats, most: float) -> Integers:
    return np.ceil(np.clip(tokens, 1, most) / PAGE_TOKENS).astype(np.int64)


def _arrivals(count: int, random: np.random.Generator) -> Floats:
    """Sorted moments, as dense as the curve of a day and its bursts are high."""
    length = count / REQUESTS_PER_SECOND
    slots = max(1, int(np.ceil(length)))
    middles = (np.arange(slots) + 0.5) / slots
    # Least at three in the morning, and three times as much at three in the afternoon.
    intensity = 1 - 0.5 * np.cos(2 * np.pi * (middles - 1 / 8))
    bursts = random.poisson(BURSTS_PER_HOUR * length / 3600)
    starts = random.random(bursts) * slots
    heights = 1 + random.pareto(2.5, bursts)
    changes = np.zeros(slots + 1)
    np.add.at(changes, starts.astype(np.int64), heights)
    ends = np.minimum(starts + random.exponential(MEAN_BURST_S, bursts) + 1, slots)
    np.add.at(changes, ends.astype(np.int64), -heights)
    density = intensity * (1 + np.cumsum(changes[:-1]))
    until = np.concatenate(([0.0], np.cumsum(density)))
    shares = np.sort(random.random(count)) * until[-1]
    return np.asarray(np.interp(shares, until, np.linspace(0, length, slots + 1)))


def _popular(count: int, random: np.random.Generator) -> Integers:
    """So many prefixes, by Zipf's law."""
    weights = np.arange(1, PREFIXES + 1) ** -PREFIX_ZIPF
    until = np.cumsum(weights)
    return np.searchsorted(until / until[-1], random.random(count), side="right").clip(max=PREFIXES - 1)


def _held(shared: Integers, moments: Floats, prefix_pages: Integers) -> Lives:
    """When each prefix is held: from its first use to a while after the last one before a long pause."""
    order = np.lexsort((moments, shared))
    prefix, moment = shared[order], moments[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (prefix[1:] != prefix[:-1]) | (moment[1:] - moment[:-1] > PREFIX_IDLE_S)
    last = np.roll(fresh, -1)
    return Lives(prefix[fresh], prefix_pages[prefix[fresh]], moment[fresh], moment[last] + PREFIX_IDLE_S)
