"""A trace replayed against a manager, and what it has to show for it."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from .contender import Contender, require
from .other_end import OtherEnd
from .trace import PAGE_BYTES, Action, Floats, Integers, ledger, trace

#: How often in a trace the memory in use is read.
SAMPLES = 288  # every five minutes of a day

#: The pool has so many times the most pages that are ever held at once, so that everything fits. A cache is one run of
#: pages, and what is free lies in pieces: a pool of twice that has no room for a long cache in the end of some days of
#: the manager in plain Python, which puts neighbours together only when nothing fits.
ROOM = 4

# As plain integers, which compare faster than members do.
LEAVE, GIVE_UP, PREFIX_END, LOOK_UP, PREFIX_BEGIN, ARRIVE, BEGIN = map(int, Action)


@dataclass(frozen=True)
class Script:
    """What a trace tells a contender to do, and what should come of it: see :class:`~.trace.Trace`."""

    actions: npt.NDArray[np.int8]
    subjects: npt.NDArray[np.int32]
    pages: npt.NDArray[np.int16]
    moments: Floats
    """When the memory in use is read."""
    ends: list[int]
    """Behind how many events that is."""
    ledger_bytes: Integers
    """How much should be in use then."""
    peak_pages: int
    allocations: int
    found: Integers
    prefix_begins: Integers
    prefix_ordinals: Integers
    prefix_pages: Integers


class Author:
    """Writes a script, in a process of its own: what it takes to make up a trace is no memory of a contender's."""

    def __init__(self, requests: int, seed: int) -> None:
        self._day = trace(requests, seed)

    def write(self) -> Script:
        day = self._day
        moments = np.linspace(0, day.seconds[-1], SAMPLES + 1)
        return Script(
            actions=day.actions,
            subjects=day.subjects,
            pages=day.pages,
            moments=moments,
            ends=np.searchsorted(day.seconds, moments, side="right").tolist(),
            ledger_bytes=ledger(day, moments) * PAGE_BYTES,
            peak_pages=day.peak_pages,
            allocations=day.allocations,
            found=day.found,
            prefix_begins=day.prefix_begins,
            prefix_ordinals=day.prefix_ordinals,
            prefix_pages=day.prefix_pages,
        )


class Replay(Contender):
    """A whole trace is a round, and a request an operation.

    Everybody reads the same events from the same compact arrays, a piece at a time, within the time that is measured;
    after each piece the memory in use is read. It has to be what the trace's own ledger says at that moment, and in the
    end nothing. What each lookup found has to be what the trace says it should have.

    Parameters
    ----------
    requests, seed : int
        Of the :func:`~.trace.trace`.
    """

    def __init__(self, requests: int, seed: int) -> None:
        with OtherEnd(Author, requests, seed) as author:
            self.day: Script = author.call("write")
        self.operations = requests
        self.pool_pages = ROOM * self.day.peak_pages
        self.used_bytes: list[int] = []
        self.answers = array("q")  # one for each lookup, zero if there was nothing

    @abstractmethod
    def replay(self, actions: Sequence[int], subjects: Sequence[int], pages: Sequence[int]) -> None:
        """Let a piece of the trace happen, and put an answer to each lookup into :attr:`answers`."""

    @abstractmethod
    def bytes_in_use(self) -> int:
        """By the manager's own account."""

    def prepare(self, number: int) -> None:
        self.used_bytes = []
        self.answers = array("q")

    def run(self) -> None:
        day = self.day
        begin = 0
        for end in day.ends:
            piece = slice(begin, end)
            self.replay(day.actions[piece].tolist(), day.subjects[piece].tolist(), day.pages[piece].tolist())
            self.used_bytes.append(self.bytes_in_use())
            begin = end

    def inspect(self, number: int) -> None:
        day = self.day
        for moment, used, right in zip(day.moments, self.used_bytes, day.ledger_bytes, strict=True):
            require(used == right, f"after {moment:.0f} s {used:,} bytes are in use, by the trace's ledger {right:,}")
        require(self.bytes_in_use() == 0, f"in the end {self.bytes_in_use():,} bytes are in use")
        self.inspect_answers(number)

    @abstractmethod
    def inspect_answers(self, number: int) -> None:
        """Raise :class:`Incorrect` unless every lookup of round `number` found what it should have."""

    def measured(self) -> dict[str, Any]:
        """How long its day is, and the memory in use over the last one."""
        return {
            "requests": self.operations,
            "seconds": self.day.moments.round(1).tolist(),
            "bytes": self.used_bytes,
        }


class CachesReplay(Replay):
    """The trace for a manager of caches with LLM-DataDist's calls: the same lines of Python whoever it is.

    ========================== =======================================================================================
    a request arrives          ``allocate_cache`` with its key, then ``deallocate_cache``: the key alone holds it
    it was pulled, or aborted  ``remove_cache_key``
    it will be given up early  ``allocate_cache`` without a key, and when that comes about ``deallocate_cache``
    it shares a prefix         ``lookup`` of the prefix key
    which nobody holds         ``allocate_cache`` with the prefix key, then ``deallocate_cache``
    which has long been idle   ``remove_cache_key``
    ========================== =======================================================================================

    A cache is one tensor with a page for every 16 tokens. The keys of requests are made from their numbers as they come
    and as they leave, as from messages; descriptions of each length and prefix keys are ready.
    """

    allocate: Callable[..., Any]
    deallocate: Callable[[Any], None]
    remove: Callable[[Any], None]
    look_up: Callable[[Any], Any]
    cache_id: Callable[[Any], int] = attrgetter("cache_id")
    """Of what a lookup found."""
    key: Callable[[int, int], Any]
    """Of a cluster's id and a request's number."""
    cluster_id: int
    prefix_keys: Sequence[Any]
    descs: Sequence[Any]
    """By their pages."""

    def __init__(self, requests: int, seed: int) -> None:
        super().__init__(requests, seed)
        self.held: dict[int, Any] = {}  # caches of requests that will be given up

    def replay(self, actions: Sequence[int], subjects: Sequence[int], pages: Sequence[int]) -> None:
        allocate, deallocate, remove, look_up = self.allocate, self.deallocate, self.remove, self.look_up
        key, cluster_id, prefix_keys, descs = self.key, self.cluster_id, self.prefix_keys, self.descs
        held, answer, cache_id = self.held, self.answers.append, self.cache_id
        for action, subject, size in zip(actions, subjects, pages, strict=True):
            if action == ARRIVE:
                deallocate(allocate(descs[size], [key(cluster_id, subject)]))
            elif action == LEAVE:
                remove(key(cluster_id, subject))
            elif action == LOOK_UP:
                found = look_up(prefix_keys[subject])
                answer(0 if found is None else cache_id(found))
            elif action == PREFIX_BEGIN:
                deallocate(allocate(descs[size], [prefix_keys[subject]]))
            elif action == PREFIX_END:
                remove(prefix_keys[subject])
            elif action == BEGIN:
                held[subject] = allocate(descs[size])
            else:
                deallocate(held.pop(subject))

    def inspect_answers(self, number: int) -> None:
        found = self.day.found
        require(len(self.answers) == len(found), f"{len(self.answers)} of {len(found)} lookups were answered")
        # Caches are numbered in the order of their making, round after round.
        cache_ids = number * self.day.allocations + self.day.prefix_ordinals
        expected = np.where(found < 0, 0, cache_ids[found])
        wrong = np.count_nonzero(np.asarray(self.answers) != expected)
        require(wrong == 0, f"{wrong} of {len(found)} lookups found another cache than they should have")

    @property
    def longest(self) -> int:
        """Pages of the longest cache."""
        return int(self.day.pages.max())
