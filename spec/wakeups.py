"""How those who wait for memory are woken: every interleaving of who waits and who releases, at the grain of single
atomic operations.

The first in the queue of each pool sleeps on a word that it shares with everybody who can release something: threads
of its own process, which hold the store's lock, and peers, which hold nothing and may die before any step. The *event*
is a word with a half for each pool.

1. Who waits tries under the lock, after it has settled what was marked. In vain? It sets its half of the event, *then*
   looks at the marks once more, still under the lock. It sleeps only if there are none, and only if its half is still
   set when it falls asleep.
2. A peer marks what it has released, *then* looks at the event. If something is set there it takes the whole word, and
   wakes for each half that it took. So one of the two sees the other, and of many who release one makes the system
   call.
3. A thread of the owner releases under the lock, then does as a peer does.
4. A peer that dies between its mark and its call wakes nobody. Its mark is found all the same: whoever sleeps looks
   again after a bounded time, and the owner settles what is marked on a timer. That is why nobody need trust peers for
   it.

Explored are two who wait, for one pool each, peers who release for the one or the other, and a thread of the owner that
settles. The promise: when nothing more happens by itself, nobody is asleep for whom enough was released, unless a peer
died on the way; and then he is served after his sleep is over.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

#: Where a waiter stands, in the order of its steps; it holds the lock where it has TRIED, and while EXPECTING.
#: ASLEEP is left by being woken, SERVED never.
OUTSIDE, TRIED, EXPECTING, LOOKED, ASLEEP, SERVED = range(6)
#: Where one who releases stands.
HOLDING, MARKED, SEEN, TAKEN, DONE, DEAD = range(6)
#: Where the owner's thread that settles stands.
IDLE, SETTLED, NOTICED, TOOK, FINISHED = range(5)


@dataclass(frozen=True)
class Situation:
    """What a check lets happen: for which pool each peer releases one page, how many pages each pool's waiter wants.

    One that wants none is not there.
    """

    releases: tuple[int, ...]
    wants: tuple[int, int] = (1, 1)
    deaths: bool = False
    mistake: str = ""


SITUATIONS = {
    "one each": Situation((0, 1)),
    "both for one": Situation((0, 0), wants=(2, 0)),
    "deaths": Situation((0, 1), deaths=True),
}

#: What must not be done otherwise, and is found out if it is.
MISTAKES = {
    "no last look": "who waits sleeps without a last look at the marks",
    "event before mark": "a peer looks at the event before it marks",
    "sleep without comparing": "who waits falls asleep though its half was taken",
    "half woken": "who takes the word wakes for one half only",
}


@dataclass(frozen=True)
class State:
    """Words, and where everybody stands."""

    waiters: tuple[int, ...] = (OUTSIDE, OUTSIDE)
    peers: tuple[int, ...] = ()
    took: tuple[int, ...] = ()  # for each peer, and the owner's thread: the halves that it took
    owner: int = IDLE
    event: int = 0
    marks: int = 0  # a bit for each peer's release, until it is settled
    free: tuple[int, int] = (0, 0)

    def with_waiter(self, number: int, place: int) -> State:
        return replace(self, waiters=_changed(self.waiters, number, place))

    def with_peer(self, number: int, place: int) -> State:
        return replace(self, peers=_changed(self.peers, number, place))

    @property
    def locked(self) -> bool:
        return self.owner in (SETTLED, NOTICED, TOOK) or any(place in (TRIED, EXPECTING) for place in self.waiters)

    def woken(self, halves: int) -> State:
        """The kernel wakes who sleeps on one of these halves."""
        places = [OUTSIDE if halves >> n & 1 and place == ASLEEP else place for n, place in enumerate(self.waiters)]
        return replace(self, waiters=(places[0], places[1]))


def _changed(places: tuple[int, ...], number: int, place: int) -> tuple[int, ...]:
    return (*places[:number], place, *places[number + 1 :])


class LostWakeup(Exception):
    """Somebody sleeps on though he could be served. The text tells how it came to that."""


class Interleavings:
    """Every order of the steps of a situation."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.states = 0

    def run(self) -> int:
        """Visit every state; how many there are."""
        peers = len(self.situation.releases)
        waiters = [OUTSIDE if want else SERVED for want in self.situation.wants]
        first = State(waiters=(waiters[0], waiters[1]), peers=(HOLDING,) * peers, took=(0,) * (peers + 1))
        way: dict[State, tuple[State, str] | None] = {first: None}
        front = [first]
        for state in front:
            following = list(self.steps(state))
            if not following:
                self._check_rest(state, way)
            for line, after in following:
                if after not in way:
                    way[after] = (state, line)
                    front.append(after)
        self.states = len(way)
        return self.states

    def _check_rest(self, state: State, way: dict[State, tuple[State, str] | None]) -> None:
        """Nothing more happens by itself."""
        died = DEAD in state.peers
        for number, place in enumerate(state.waiters):
            released = sum(pool == number for pool in self._released(state))
            could = released >= self.situation.wants[number]
            if place == ASLEEP and could and not died:
                raise LostWakeup("\n".join([f"waiter {number} sleeps on", *_told(state, way)]))
            if place == ASLEEP and could and self._after_its_sleep(state, number) != SERVED:
                raise LostWakeup("\n".join([f"waiter {number} is not even served later", *_told(state, way)]))

    def _released(self, state: State) -> list[int]:
        """The pools of the pages that were released: marked, or settled."""
        marked = [place not in (HOLDING, DEAD) or bool(state.marks >> n & 1) for n, place in enumerate(state.peers)]
        pools = [pool for pool, was in zip(self.situation.releases, marked, strict=True) if was]
        settled = [pool for pool in (0, 1) for _ in range(state.free[pool])]
        return max(pools, settled, key=len)

    def _after_its_sleep(self, state: State, number: int) -> int:
        """Where one who slept stands after it has looked again."""
        return self._tried(self._settled(state), number).waiters[number]

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Every step that somebody can take, and what it leads to."""
        for number in (0, 1):
            for line, after in self._waiter_steps(state, number):
                yield f"waiter {number} {line}", after
        for number, place in enumerate(state.peers):
            for line, after in self._peer_steps(state, number):
                yield f"peer {number} {line}", after
            if self.situation.deaths and place not in (DONE, DEAD):
                yield f"peer {number} dies", state.with_peer(number, DEAD)
        for line, after in self._owner_steps(state):
            yield f"the owner's thread {line}", after

    def _waiter_steps(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        place = state.waiters[number]
        mistake = self.situation.mistake
        if place == OUTSIDE and not state.locked:
            yield "takes the lock, settles and tries", self._tried(self._settled(state), number)
        if place == TRIED:
            yield "sets its half", replace(state, event=state.event | 1 << number).with_waiter(number, EXPECTING)
        if place == EXPECTING:
            again = state.marks and mistake != "no last look"
            yield "sees a mark" if again else "sees no mark", state.with_waiter(number, OUTSIDE if again else LOOKED)
        if place == LOOKED:
            asleep = state.event >> number & 1 or mistake == "sleep without comparing"
            line = "falls asleep" if asleep else "finds its half taken"
            yield line, state.with_waiter(number, ASLEEP if asleep else OUTSIDE)

    def _settled(self, state: State) -> State:
        """What was marked goes back to its pool."""
        pools = [pool for number, pool in enumerate(self.situation.releases) if state.marks >> number & 1]
        return replace(state, marks=0, free=(state.free[0] + pools.count(0), state.free[1] + pools.count(1)))

    def _tried(self, state: State, number: int) -> State:
        enough = state.free[number] >= self.situation.wants[number]
        return state.with_waiter(number, SERVED if enough else TRIED)

    def _peer_steps(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        place = state.peers[number]
        mark = state.marks | 1 << number
        late = self.situation.mistake == "event before mark"
        if place == HOLDING and not late:
            yield "marks", replace(state, marks=mark).with_peer(number, MARKED)
        if place == HOLDING and late:
            yield "looks at the event", state.with_peer(number, SEEN if state.event else MARKED)
        if place == MARKED and late:
            yield "marks", replace(state, marks=mark).with_peer(number, DONE)
        if place == MARKED and not late:
            yield "looks at the event", state.with_peer(number, SEEN if state.event else DONE)
        if place == SEEN:
            after = replace(state, took=_changed(state.took, number, state.event), event=0)
            if late:
                after = replace(after, marks=mark)
            yield "takes the event", after.with_peer(number, TAKEN)
        if place == TAKEN:
            yield "wakes", self._wake(state, state.took[number]).with_peer(number, DONE)

    def _owner_steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.owner == IDLE and not state.locked and state.marks:
            yield "takes the lock and settles", replace(self._settled(state), owner=SETTLED)
        if state.owner == SETTLED:
            yield "looks at the event", replace(state, owner=NOTICED if state.event else TOOK)
        if state.owner == NOTICED:
            took = _changed(state.took, len(state.peers), state.event)
            yield "takes the event", replace(state, took=took, event=0, owner=TOOK)
        if state.owner == TOOK:
            yield "wakes, and leaves the lock", replace(self._wake(state, state.took[-1]), owner=FINISHED)

    def _wake(self, state: State, halves: int) -> State:
        return state.woken(halves & -halves if self.situation.mistake == "half woken" else halves)


def _told(state: State, way: dict[State, tuple[State, str] | None]) -> list[str]:
    lines: list[str] = []
    step = way[state]
    while step is not None:
        lines.insert(0, step[1])
        step = way[step[0]]
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Explore every situation; raises :class:`LostWakeup`."""
    argparse.ArgumentParser(
        prog="spec wakeups", description="visit every interleaving of waiting and releasing"
    ).parse_args(argv)
    for name, situation in SITUATIONS.items():
        print(f"{name}: {Interleavings(situation).run():,} states: nobody sleeps on")
