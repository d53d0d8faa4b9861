"""What a state machine is made of, and the one rule by which it steps.

A :class:`Machine` is data: states, events, guards and transitions, each with the clause it comes from. For every state,
event and combination of guards exactly one of three things holds, and :meth:`Machine.outcome` says which:

* a :class:`Transition` is taken: the state changes to its target, its effects happen;
* a :class:`Refusal` is answered: an error the caller sees, nothing changes;
* neither: the event cannot occur there. Stepping raises :class:`ImpossibleEvent`, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product


@dataclass(frozen=True)
class State:
    """A state, what it means in one sentence, and the clause that tells it apart from the others.

    ``signature`` names the facts that define the state where the state is a function of facts (a cache's is).
    """

    name: str
    meaning: str
    clause: str
    signature: Mapping[str, bool] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Event:
    """Something that happens to the machine."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Guard:
    """A fact that an event finds, evaluated *after* the event's own change to the references."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Effect:
    """Something the owner of the machine must do when a transition is taken."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Transition:
    """``event`` in ``source`` leads to ``target`` when every guard in ``when`` holds.

    A guard is written by its name, or as ``"not name"``.
    """

    event: str
    source: str
    target: str
    clause: str
    when: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """``event`` in ``source`` is answered with ``error`` and changes nothing.

    ``error`` is the name of a status code, or the name of a Python exception.
    """

    event: str
    source: str
    error: str
    clause: str
    when: tuple[str, ...] = ()


Outcome = Transition | Refusal | None


class ImpossibleEvent(Exception):
    """The event cannot occur in this state: whoever sent it has lost count."""


class MalformedMachine(Exception):
    """The machine's data contradict themselves."""


@dataclass(frozen=True)
class Machine:
    """States, events, guards, effects and transitions of one kind of object."""

    name: str
    meaning: str
    initial: str
    states: tuple[State, ...]
    events: tuple[Event, ...]
    guards: tuple[Guard, ...]
    effects: tuple[Effect, ...]
    transitions: tuple[Transition, ...]
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        self._check_names()
        for state, event, facts in self.cells():
            matching = self._matching(state, event, facts)
            if len(matching) > 1:
                raise MalformedMachine(f"{self.name}: {event} in {state} with {facts} is decided {len(matching)} times")

    def _check_names(self) -> None:
        states = {state.name for state in self.states}
        events = {event.name for event in self.events}
        guards = {guard.name for guard in self.guards}
        effects = {effect.name for effect in self.effects}
        if self.initial not in states:
            raise MalformedMachine(f"{self.name}: the initial state {self.initial} does not exist")
        for rule in self._rules():
            unknown = {rule.source} - states | {rule.event} - events | {guard_name(term) for term in rule.when} - guards
            if isinstance(rule, Transition):
                unknown |= {rule.target} - states | set(rule.effects) - effects
            if unknown:
                raise MalformedMachine(f"{self.name}: {rule} names {sorted(unknown)}, which the machine does not have")
            if not rule.clause:
                raise MalformedMachine(f"{self.name}: {rule} cites no clause")

    def cells(self) -> Iterator[tuple[str, str, dict[str, bool]]]:
        """Every state, event and combination of guards, in table order."""
        names = [guard.name for guard in self.guards]
        for state, event in product(self.states, self.events):
            for values in product((False, True), repeat=len(names)):
                yield state.name, event.name, dict(zip(names, values, strict=True))

    def outcome(self, state: str, event: str, facts: Mapping[str, bool]) -> Outcome:
        """What ``event`` does in ``state`` when the guards have the values in ``facts``."""
        matching = self._matching(state, event, facts)
        return matching[0] if matching else None

    def _rules(self) -> list[Transition | Refusal]:
        return [*self.transitions, *self.refusals]

    def _matching(self, state: str, event: str, facts: Mapping[str, bool]) -> list[Transition | Refusal]:
        return [
            rule
            for rule in self._rules()
            if rule.source == state
            and rule.event == event
            and all(facts[guard_name(term)] is not term.startswith("not ") for term in rule.when)
        ]


def guard_name(term: str) -> str:
    """The guard that ``"pinned"`` or ``"not pinned"`` speaks of."""
    return term.removeprefix("not ")
