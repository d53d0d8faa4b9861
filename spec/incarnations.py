"""The links to a cluster that is started anew, under late, lost, repeated and overtaken words.

One cluster, the *survivor*, is called by another, whose process dies, or stands still, and is started anew at the same
address with the same id. Each life of it is an *incarnation*. What a former one has said may still be on the way.
``incarnation n`` is a rule of this file; :class:`Explorer` visits every order in which things can go.

The rules
---------
 1. Whatever is said, is said by one incarnation: on the connection of its session, or with the incarnation in the word.
 2. A session's words concern that session. They take down the link only while it is the one of that session.
 3. A word on a connection of its own (a request to unlink) concerns the link only if it is of the incarnation with
    which the link stands, or if the link is broken.
 4. A handshake counts only if the link is still what it was when the handshake began. So a later incarnation's link is
    never replaced by a former one's, however late its commit arrives.
 5. A pin bit is lent to one session, from the handshake on, until its process has promised to set it no more or is
    dead. The end of a connection is neither. Whichever comes first gives the bit back, and the other does nothing.
    Nothing is lent to a process that is dead when it is to be watched.
 6. The death of a process is heard of its sessions, whether a link stands on them or not.

What is modelled
----------------
On the connection of a session words come in order, at any time, each once or never; the connection ends behind them.
A request to unlink comes at any time, also when other words have overtaken it, again and again, or never. A former
process that has not died may go on at any time, but begins nothing; its connection may break while it lives. Not
modelled is how bytes travel (``conversation``, ``protocol``), nor two crossing handshakes (``lifecycle``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from .interleavings import Broken, Interleavings

UNLINKED, LINKED, BROKEN = "UNLINKED", "LINKED", "BROKEN"

#: The survivor's pin bits: few, so that they are lent again.
BITS = 2


class Session(NamedTuple):
    """A handshake and what came of it, as both ends have it."""

    life: int
    words: tuple[str, ...] = ("request",)  # on the way to the survivor
    said: str = "request"  # the last word
    before: int = -1  # the survivor's link when it was asked; -1: it has not been
    bit: int = -1  # that is lent to it
    promised: bool = False  # the survivor has heard the promise


class State(NamedTuple):
    """Everything. Sessions are numbered from 1; 0 is none."""

    alive: frozenset[int] = frozenset({1})
    lives: int = 1
    sessions: tuple[Session, ...] = ()
    link: tuple[str, int] = (UNLINKED, 0)
    pins: tuple[int, ...] = (0,) * BITS  # which session has set each bit
    unlinks: frozenset[int] = frozenset()  # requests to unlink, by the life that has made them
    deaths: frozenset[int] = frozenset()  # that the survivor has not heard of

    def session(self, number: int) -> Session:
        return self.sessions[number - 1]

    def having(self, number: int, **changes: Any) -> State:
        """The same, but for one session."""
        changed = self.session(number)._replace(**changes)
        return self._replace(sessions=(*self.sessions[: number - 1], changed, *self.sessions[number:]))

    def numbered(self) -> list[tuple[int, Session]]:
        """The sessions by their numbers."""
        return list(enumerate(self.sessions, 1))


@dataclass(frozen=True)
class Rules:
    """How the survivor goes about it. Each may be left out, to see what happens."""

    unlinks_own_incarnation: bool = True
    ends_own_link: bool = True
    compares_before_commit: bool = True
    keeps_bit_of_living: bool = True
    returns_bit_once: bool = True
    hears_death_without_link: bool = True

    # -- what the survivor hears ----------------------------------------------------------------------------------

    def hear(self, state: State, number: int) -> State:
        """The next word on the connection of a session."""
        session = state.session(number)
        word = session.words[0]
        state = state.having(number, words=session.words[1:])
        if word == "request":
            lent = {each.bit for each in state.sessions}
            free = [bit for bit in range(BITS) if bit not in lent]
            if not free or session.life not in state.alive:
                return state
            return state.having(number, before=state.link[1], bit=free[0])
        if word == "commit":
            return self._commit(state, number)
        if word == "farewell":
            return self._take_down(state, number, UNLINKED)
        state = self._take_down(state, number, BROKEN)
        if word == "promise":
            return self._give_back(state.having(number, promised=True), number)
        return state if self.keeps_bit_of_living else self._give_back(state, number)

    def _commit(self, state: State, number: int) -> State:
        before = state.link[1]
        if self.compares_before_commit and before != state.session(number).before:
            return self._give_back(state.having(number, promised=True), number)  # neither end has transferred anything
        if before:
            require(
                state.session(before).life <= state.session(number).life,
                "a later incarnation's link is never replaced by a former one's",
            )
        return state._replace(link=(LINKED, number))

    def _take_down(self, state: State, number: int, to: str) -> State:
        if state.link[0] != LINKED or (state.link[1] != number and self.ends_own_link):
            return state
        require(state.link[1] == number, "a session's words take down no link but its own")
        return state._replace(link=(to, number if to == BROKEN else 0))

    def hear_unlink(self, state: State, life: int) -> State:
        """A request to unlink."""
        kind, number = state.link
        if kind == LINKED and state.session(number).life != life:
            if self.unlinks_own_incarnation:
                return state
            raise Broken("a sound link is not taken down by what another incarnation has said")
        return state._replace(link=(UNLINKED, 0))

    def hear_death(self, state: State, life: int) -> State:
        """The kernel tells that a process has ended."""
        state = state._replace(deaths=state.deaths - {life})
        for number, session in state.numbered():
            if session.life == life and (self.hears_death_without_link or state.link[1] == number):
                state = self._take_down(state, number, BROKEN) if state.link[1] == number else state
                state = self._give_back(state, number)
        return state

    def _give_back(self, state: State, number: int) -> State:
        session = state.session(number)
        if session.bit < 0:
            return state
        dead = session.life not in state.alive
        require(dead or session.promised, "a bit is lent until its process has promised, or is dead")
        require(state.pins[session.bit] in (0, number), "no pin of another session is dropped")
        pins = tuple(0 if bit == session.bit else holder for bit, holder in enumerate(state.pins))
        return state._replace(pins=pins).having(number, bit=-1 if self.returns_bit_once else session.bit)


@dataclass(frozen=True)
class Situation:
    """So many lives, and so many calls in all."""

    lives: int = 2
    calls: int = 2


#: Something that can happen, and what comes of it.
Move: TypeAlias = tuple[str, Callable[[], State]]


def require(condition: bool, promise: str) -> None:
    """Raise `Broken` unless a promise holds."""
    if not condition:
        raise Broken(promise)


def _to(state: State) -> Callable[[], State]:
    return lambda: state


@dataclass
class Explorer:
    """Breadth first over everything that can happen; what it finds it finds by a shortest way."""

    rules: Rules = field(default_factory=Rules)
    situation: Situation = field(default_factory=Situation)
    parent: dict[State, tuple[State, str]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def run(self) -> Interleavings:
        """Visit every state, up to the first that breaks a promise."""
        begin = time.perf_counter()
        initial = State()
        self.parent = {initial: (initial, "")}
        frontier, transitions = [initial], 0
        while frontier:
            ahead: list[State] = []
            for state in frontier:
                for name, move in self.moves(state):
                    transitions += 1
                    self.taken.add(name)
                    try:
                        following = move()
                        check(following)
                    except Broken as broken:
                        trace = (*self.trace(state), name)
                        return Interleavings(
                            "incarnations",
                            len(self.parent),
                            transitions,
                            time.perf_counter() - begin,
                            str(broken),
                            trace,
                        )
                    if following not in self.parent:
                        self.parent[following] = (state, name)
                        ahead.append(following)
            frontier = ahead
        return self._found(begin, transitions)

    def _found(
        self, begin: float, transitions: int, violation: str | None = None, trace: tuple[str, ...] = ()
    ) -> Interleavings:
        seconds = time.perf_counter() - begin
        return Interleavings("incarnations", len(self.parent), transitions, seconds, violation, trace)

    def trace(self, state: State) -> tuple[str, ...]:
        """The moves that have led to a state."""
        names: list[str] = []
        while self.parent[state][0] != state:
            state, name = self.parent[state]
            names.append(name)
        return tuple(reversed(names))

    def moves(self, state: State) -> Iterator[Move]:
        """Everything that can happen next."""
        yield from self._of_the_lives(state)
        for number, session in state.numbered():
            if session.words:
                yield (
                    f"survivor: hears {session.words[0]} of {number}",
                    partial(self.rules.hear, state, number),
                )
            if session.life in state.alive:
                yield from self._of_a_session(state, number, session)
        for life in state.unlinks:
            yield (
                f"survivor: hears a request to unlink of life {life}",
                partial(self.rules.hear_unlink, state, life),
            )
        for life in state.deaths:
            yield f"survivor: hears of the death of life {life}", partial(self.rules.hear_death, state, life)

    def _of_the_lives(self, state: State) -> Iterator[Move]:
        if state.lives < self.situation.lives:
            started = state._replace(lives=state.lives + 1, alive=state.alive | {state.lives + 1})
            yield f"life {started.lives}: begins", _to(started)
        if state.lives in state.alive and len(state.sessions) < self.situation.calls:
            called = state._replace(sessions=(*state.sessions, Session(state.lives)))
            yield f"life {state.lives}: calls, {len(called.sessions)}", _to(called)
        if state.lives in state.alive and state.lives < self.situation.lives and not state.unlinks:
            asked = state._replace(unlinks=state.unlinks | {state.lives})
            yield f"life {state.lives}: asks to unlink", _to(asked)
        for life in state.alive:
            yield f"life {life}: dies", partial(self._dies, state, life)

    def _dies(self, state: State, life: int) -> State:
        state = state._replace(alive=state.alive - {life}, deaths=state.deaths | {life})
        for number, session in state.numbered():
            if session.life == life and session.said not in ("promise", "lost"):
                state = state.having(number, words=(*session.words, "end"))
        return state

    def _of_a_session(self, state: State, number: int, session: Session) -> Iterator[Move]:
        def says(word: str) -> State:
            return state.having(number, words=(*session.words, word), said=word)

        is_latest = session.life == state.lives
        if session.said == "request" and session.bit >= 0 and is_latest:
            yield f"life {session.life}: commits {number}", partial(says, "commit")
        if session.said == "commit" and state.link == (LINKED, number) and not state.pins[session.bit]:
            pins = tuple(number if bit == session.bit else holder for bit, holder in enumerate(state.pins))
            yield f"life {session.life}: pins by {number}", _to(state._replace(pins=pins))
        if number in state.pins:
            yield f"life {session.life}: unpins by {number}", partial(self._unpins, state, number)
        if session.said == "commit" and "commit" not in session.words:
            yield f"life {session.life}: says farewell on {number}", partial(says, "farewell")
        if session.said == "commit" and not is_latest:
            lost = state.having(number, words=(*session.words, "end"), said="lost")
            yield f"network: breaks the connection of {number}", _to(lost)
        if session.said == "farewell" and number not in state.pins:
            yield f"life {session.life}: promises on {number}", partial(says, "promise")

    def _unpins(self, state: State, number: int) -> State:
        pins = tuple(0 if holder == number else holder for holder in state.pins)
        return state._replace(pins=pins)


def check(state: State) -> None:
    """What always holds, and what holds when the survivor has heard everything."""
    lent = [session.bit for session in state.sessions if session.bit >= 0]
    require(len(lent) == len(set(lent)), "a bit is lent to one session at a time")
    for bit, holder in enumerate(state.pins):
        require(not holder or state.session(holder).bit == bit, "a pin is set by whom its bit is lent to")
    if state.deaths or any(session.words for session in state.sessions):
        return
    for number, session in state.numbered():
        if session.life not in state.alive:
            require(session.bit < 0, "nothing is held for the dead")
            require(state.link != (LINKED, number), "no link stands to the dead")


#: Rules left out, and the promise that is broken first.
MISTAKES: dict[str, tuple[Rules, str]] = {
    "unlink-by-cluster-id": (
        Rules(unlinks_own_incarnation=False),
        "a sound link is not taken down by what another incarnation has said",
    ),
    "link-ended-by-any-session": (Rules(ends_own_link=False), "a session's words take down no link but its own"),
    "commit-not-compared": (
        Rules(compares_before_commit=False),
        "a later incarnation's link is never replaced by a former one's",
    ),
    "bit-returned-with-connection": (
        Rules(keeps_bit_of_living=False),
        "a bit is lent until its process has promised, or is dead",
    ),
    "bit-returned-twice": (Rules(returns_bit_once=False), "nothing is held for the dead"),
    "death-heard-of-links-alone": (Rules(hears_death_without_link=False), "nothing is held for the dead"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, print what was found, and exit with status 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="spec incarnations", description="visit every order of a restart")
    parser.add_argument("--mistake", choices=MISTAKES, help="leave a rule out, and show what it leads to")
    options = parser.parse_args(argv)
    rules = Rules() if options.mistake is None else MISTAKES[options.mistake][0]
    found = Explorer(rules).run()
    print(found)
    if found.violation is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
