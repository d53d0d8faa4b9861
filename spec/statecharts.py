"""The machines of :mod:`.lifecycle` as running ``transitions`` machines.

A :class:`Statechart` wraps one ``transitions.Machine``, built from a :class:`.machine.Machine`: what a transition or
refusal has in ``when`` becomes its ``conditions`` and ``unless``; its effects become ``after`` callbacks; a refusal
becomes an internal transition whose callback raises :class:`Refused`.

The ``transitions`` machine drives a single *cursor*, not the objects of the model. :meth:`Statechart.fire` reads the
subject's state and guards, steps the cursor from there, writes the new state back and calls the effects on the subject.
So a subject stays plain data, which can be pickled and copied freely:

* its attribute ``state`` holds the name of its state;
* it has a property for each guard that an event in its state consults, unless whoever fires the event states it;
* it has a method for each effect that it must carry out. An effect it has no method for asks nothing of it.

What a machine does in a cell (a state, an event, the guards) never changes, so each cell is asked of ``transitions``
once and remembered: the explorer fires millions of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import transitions

from .lifecycle import MACHINES
from .machine import ImpossibleEvent, Machine, Refusal, Transition, guard_name


class Refused(Exception):
    """A call was answered with an error, and has changed nothing.

    Parameters
    ----------
    error
        The name of a status code (``"LLM_KV_CACHE_NOT_EXIST"``) or of a Python exception (``"TypeError"``).
    message
        What was wrong, with the fragment that the contract gives where it gives one.
    """

    def __init__(self, error: str, message: str = "") -> None:
        super().__init__(error, message)
        self.error = error
        self.message = message

    @property
    def exception(self) -> str:
        """The exception that the caller sees: ``"LLMException"`` or a Python exception."""
        return "LLMException" if self.status else self.error

    @property
    def status(self) -> str | None:
        """The name of the status code, if the exception carries one."""
        return self.error if self.error.startswith("LLM_") else None

    def __str__(self) -> str:
        return f"{self.error}: {self.message}" if self.message else self.error


class Subject(Protocol):
    """Anything that lives by a machine."""

    state: str


@dataclass(frozen=True)
class Step:
    """What an event has done: the new state, and the effects in order."""

    target: str
    effects: tuple[str, ...]


class Cursor:
    """The one model of a ``transitions`` machine: stands where it is put, and notes the effects of its step."""

    state: str

    def __init__(self, machine: Machine) -> None:
        self.facts: dict[str, bool] = {}
        self.effects: list[str] = []
        for guard in machine.guards:
            setattr(self, guard.name, partial(self._holds, guard.name))
        for effect in machine.effects:
            setattr(self, effect.name, partial(self.effects.append, effect.name))

    def _holds(self, guard: str) -> bool:
        return self.facts[guard]


class Statechart:
    """A machine of the lifecycle that runs."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._cursor = Cursor(machine)
        self._chart = _build(machine, self._cursor)
        self._consulted = _consulted_guards(machine)
        self._known: dict[tuple[str, str, tuple[bool, ...]], Step | Refusal | None] = {}

    def fire(self, subject: Subject, event: str, **stated: bool) -> Step:
        """Let ``event`` happen to ``subject``: its state changes, then its effects are carried out.

        Parameters
        ----------
        stated
            Guards that the caller knows and the subject does not.

        Raises
        ------
        Refused
            The machine refuses the event; nothing has changed.
        ImpossibleEvent
            The event cannot occur in this state; nothing has changed.
        """
        step = self.peek(subject, event, **stated)
        subject.state = step.target
        for effect in step.effects:
            carry_out = getattr(subject, effect, None)
            if carry_out is not None:
                carry_out()
        return step

    def peek(self, subject: Subject, event: str, **stated: bool) -> Step:
        """What :meth:`fire` would do, without doing it; it refuses alike."""
        state = subject.state
        consulted = self._consulted.get((state, event), ())
        values = tuple([stated[guard] if guard in stated else bool(getattr(subject, guard)) for guard in consulted])
        return self._answer(state, event, values)

    def step(self, state: str, event: str, **facts: bool) -> Step:
        """What ``event`` does in ``state`` when the guards are as in ``facts``."""
        consulted = self._consulted.get((state, event), ())
        return self._answer(state, event, tuple([facts[guard] for guard in consulted]))

    def _answer(self, state: str, event: str, values: tuple[bool, ...]) -> Step:
        cell = (state, event, values)
        if cell not in self._known:
            self._known[cell] = self._run(*cell)
        answer = self._known[cell]
        if isinstance(answer, Step):
            return answer
        if answer is None:
            raise ImpossibleEvent(f"{self.machine.name}: {event} cannot occur in {state}")
        raise Refused(answer.error, f"{self.machine.name} is {state}: {answer.clause}")

    def _run(self, state: str, event: str, values: tuple[bool, ...]) -> Step | Refusal | None:
        cursor = self._cursor
        cursor.facts = dict(zip(self._consulted.get((state, event), ()), values, strict=True))
        cursor.effects.clear()
        self._chart.set_state(state)
        try:
            taken = self._chart.events[event].trigger(cursor)
        except _RefusedByRule as refused:
            return refused.rule
        except transitions.MachineError:
            return None
        return Step(cursor.state, tuple(cursor.effects)) if taken else None


class _RefusedByRule(Exception):
    """Raised inside the ``transitions`` machine to leave it by a refusal."""

    def __init__(self, rule: Refusal) -> None:
        super().__init__(rule)
        self.rule = rule


def _build(machine: Machine, cursor: Cursor) -> transitions.Machine:
    chart = transitions.Machine(
        model=cursor,
        states=[state.name for state in machine.states],
        initial=machine.initial,
        auto_transitions=False,
    )
    for event in machine.events:
        for rule in _rules(machine):
            if rule.event != event.name:
                continue
            target, after = _consequence(rule)
            chart.add_transition(
                rule.event,
                rule.source,
                target,
                conditions=[term for term in rule.when if not term.startswith("not ")],
                unless=[guard_name(term) for term in rule.when if term.startswith("not ")],
                after=after,
            )
    return chart


def _consequence(rule: Transition | Refusal) -> tuple[str | None, list[str | Callable[..., bool | None]]]:
    """Where a rule leads and what follows; a target of None is an internal transition."""
    if isinstance(rule, Transition):
        return rule.target, list(rule.effects)

    def refuse() -> None:
        raise _RefusedByRule(rule)

    return None, [refuse]


def _rules(machine: Machine) -> list[Transition | Refusal]:
    return [*machine.transitions, *machine.refusals]


def _consulted_guards(machine: Machine) -> dict[tuple[str, str], tuple[str, ...]]:
    consulted: dict[tuple[str, str], dict[str, None]] = {}
    for rule in _rules(machine):
        guards = consulted.setdefault((rule.source, rule.event), {})
        guards.update(dict.fromkeys(guard_name(term) for term in rule.when))
    return {cell: tuple(guards) for cell, guards in consulted.items()}


@dataclass(frozen=True)
class Statecharts:
    """One running machine of each kind."""

    cache: Statechart
    batch_slot: Statechart
    link: Statechart
    communicator: Statechart
    engine: Statechart

    @classmethod
    def of(cls, machines: Iterable[Machine] = MACHINES) -> Statecharts:
        """The machines of the lifecycle, or others of the same names."""
        charts = {machine.name: Statechart(machine) for machine in machines}
        return cls(**charts)
