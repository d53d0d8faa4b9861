"""Visits every interleaving of the transfer protocol: one owner, two peers, a crash of either peer before every step.

The steps are those of :mod:`.protocol`, compiled to Python functions from one state to the next. A state is a string of
bytes: where each party stands, then each word, then each register; registers whose value cannot matter any more are
zero, which is why states that nobody can tell apart are one. There is no purely local step to interleave: whatever a
party decides, it decides together with the operation that it decides by.

Checked are the promises that stand at the steps, whenever one is taken, and those at rest (every party idle or gone,
every death noticed, every mark reaped). Every party's way from call to idle is finite unless others interfere, so rest
is reached from every state; SPIN checks the same as liveness (:mod:`.promela`).
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .mistakes import MISTAKES
from .protocol import PEER_BITS, protocol
from .steps import (
    CRASH,
    GONE,
    IDLE,
    Call,
    CompareAndSwap,
    Configuration,
    Go,
    Load,
    Operation,
    Protocol,
    Role,
    Step,
    result_of,
)

State = bytes
Transition = Callable[[State], "State | None"]

_KEY_1, _KEY_2, _ID = ("pull_key_1",), ("pull_key_2",), ("pull_id",)
_PUSH, _ADDRESS = ("push_id",), ("push_address",)
_TENSORS = ("pull_tensor_1", "pull_tensor_2")
_BOTH = ("pull_both",)
_RENEWAL = ("renew_key_1",)

SMALL = {
    "layers": Configuration(requests=(("pull_key_1", "pull_tensor_1"), ("pull_tensor_2",)), removals=False),
    "removals": Configuration(generations=2, requests=(_KEY_1, _KEY_1)),
    "ids": Configuration(generations=2, requests=(_KEY_1, _ID)),
    "marks": Configuration(generations=1, requests=(_KEY_1, _KEY_1), levels=3),
    "views": Configuration(generations=2, requests=(_KEY_1, ()), views=True),
    "pushes": Configuration(generations=2, requests=(_KEY_1, _PUSH), evictions=(2,)),
    "addresses": Configuration(generations=2, requests=(_KEY_1, _ADDRESS), evictions=(2,)),
    "evictions": Configuration(generations=2, requests=((*_KEY_1, *_KEY_2), _KEY_1), evictions=(1,), removals=False),
    "together": Configuration(generations=2, requests=(_BOTH, _KEY_2), evictions=(1,)),
    "leases": Configuration(generations=1, levels=1, requests=(_RENEWAL, _KEY_1), leases=True),
    "renewals": Configuration(generations=2, requests=(_RENEWAL, ()), evictions=(1,), leases=True),
}

FULL = {
    **SMALL,
    "all layers": Configuration(requests=((*_KEY_1, *_TENSORS), (*_KEY_1, *_TENSORS)), removals=False),
    "layers and removals": Configuration(generations=2, requests=(_TENSORS, _KEY_2)),
    "three generations": Configuration(requests=((*_KEY_1, *_ID), (*_KEY_1, *_ID))),
    "views of two peers": Configuration(generations=2, requests=(_KEY_1, _KEY_1), views=True),
    "pushes of two peers": Configuration(generations=2, requests=((*_KEY_1, *_PUSH), _PUSH), evictions=PEER_BITS),
    "two together": Configuration(generations=2, requests=((*_BOTH, *_TENSORS), _BOTH)),
    "leases and evictions": Configuration(generations=2, requests=(_RENEWAL, _KEY_1), evictions=(1,), leases=True),
    "renewals of two peers": Configuration(generations=2, requests=(_RENEWAL, (*_KEY_1, *_RENEWAL)), leases=True),
    "all evictions": Configuration(generations=1, requests=(_KEY_1, _TENSORS), evictions=PEER_BITS),
}

SIZES = {"small": SMALL, "full": FULL}


class Broken(Exception):
    """A promise does not hold. The text says which."""


@dataclass(frozen=True)
class Move:
    """One way in which one party can move. ``how`` says it, where it is not the step's operation."""

    party: str
    step: Step
    apply: Transition
    call: Call | None = None
    how: str = ""


@dataclass(frozen=True)
class Interleavings:
    """What exploring one configuration has shown."""

    name: str
    states: int
    transitions: int
    seconds: float
    violation: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{self.states:,} states, {self.transitions:,} transitions"
        if self.violation is None:
            return f"{self.name}: {counts}, {self.seconds:.1f} s: every promise holds"
        steps = "\n".join(f"{number:4} {line}" for number, line in enumerate(self.trace, 1))
        return f"{self.name}: broken after {counts}: {self.violation}\n{steps}"


class Layout:
    """Which byte of a state is what, and the parties' positions as numbers."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.parties = list(protocol.instances())
        self.words = [word.name for word in protocol.words]
        self.places = [f"{party}_at" for party, _, _ in self.parties]
        registers = [f"{party}_{register}" for party, role, _ in self.parties for register in role.registers]
        self.names = [*self.places, *self.words, *registers]
        self.positions = {role.name: self._positions(role) for role in protocol.roles}
        initial = {word.name: word.initial for word in protocol.words}
        self.initial = bytes(initial.get(name, 0) for name in self.names)

    @staticmethod
    def _positions(role: Role) -> dict[str, int]:
        """Numbers of the places where a role can stand between two steps: idle, gone, and before every later step."""
        later = {go.to for step in role.steps for go in step.goes} | {step.may_end_at for step in role.steps}
        standing = [step.name for step in role.steps if step.name in later]
        return {name: number for number, name in enumerate([IDLE, GONE, *standing])}

    def value(self, state: State, name: str) -> int:
        return state[self.names.index(name)]


class _Renamed(ast.NodeTransformer):
    """An expression's registers as the party's own variables."""

    def __init__(self, party: str, role: Role, bit: int) -> None:
        self.party, self.registers, self.bit = party, set(role.registers), bit

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id == "me":
            return ast.Constant(self.bit)
        return ast.Name(f"{self.party}_{node.id}") if node.id in self.registers else node


class _Party:
    """Turns the steps of one party into functions from state to state."""

    def __init__(self, layout: Layout, name: str, role: Role, bit: int) -> None:
        self.layout, self.name, self.role, self.bit = layout, name, role, bit
        self.positions = layout.positions[role.name]
        self.live = role.live_registers()

    def moves(self) -> list[list[Move]]:
        """By position: the ways in which the party can move."""
        role, positions = self.role, self.positions
        rows: list[list[Move]] = [[] for _ in positions]
        for call in role.calls:
            if self.bit in (call.bits or role.bits):
                rows[positions[IDLE]].append(self._step(role.step(call.first), call))
        for name, position in positions.items():
            if name in (IDLE, GONE):
                continue
            step = role.step(name)
            rows[position].append(self._step(step))
            if step.may_end_at is not None:
                rows[position].append(self._leave(step, "gives up", Go(step.may_end_at)))
            if role.mortal:
                rows[position].append(self._leave(step, "dies", Go(GONE, sets=CRASH)))
        return rows

    def _own(self, text: str) -> str:
        return ast.unparse(_Renamed(self.name, self.role, self.bit).visit(ast.parse(text, mode="eval")))

    def _variable(self, name: str) -> str:
        return f"{self.name}_{name}" if name in self.role.registers else name

    def _step(self, step: Step, call: Call | None = None) -> Move:
        operation = step.operation
        lines = []
        if call is not None:
            lines.append(f"if not ({self._own(call.when)}): return None")
            lines += [f"{self._variable(register)} = {self._own(value)}" for register, value in call.sets.items()]
        lines.append(f"found = {operation.word}")
        if isinstance(operation, CompareAndSwap):
            lines.append(f"swapped = found == {self._own(operation.expected)}")
        result = result_of(operation)
        if result is not None:
            lines.append(f"{operation.word} = {self._own(result)}")
        for go in step.goes:
            lines.append(f"if {self._own(go.when)}:")
            lines += [f"    {line}" for line in self._go(go)]
        return Move(self.name, step, _function(self.layout, lines), call=call)

    def _go(self, go: Go) -> list[str]:
        lines = [f"if not ({self._own(each.condition)}): raise Broken({each.meaning!r})" for each in go.promises]
        if go.sets:
            values = ", ".join(self._own(value) for value in go.sets.values())
            lines.append(f"{', '.join(self._variable(name) for name in go.sets)}, = {values},")
        lines += [f"{self._variable(each)} = 0" for each in self.role.registers if each not in self.live[go.to]]
        lines.append(f"{self.name}_at = {self.positions[go.to]}")
        return [*lines, f"return bytes(({', '.join(self.layout.names)}))"]

    def _leave(self, step: Step, how: str, go: Go) -> Move:
        return Move(self.name, step, _function(self.layout, self._go(go)), how=how)


def _function(layout: Layout, lines: Sequence[str]) -> Callable[[State], Any]:
    """A function of a state, whose parts the lines know by their names."""
    scope: dict[str, Any] = {"Broken": Broken}
    source = ["def function(state):", f"    {', '.join(layout.names)}, = state", *(f"    {line}" for line in lines)]
    exec(compile("\n".join(source), "<protocol>", "exec"), scope)
    return scope["function"]  # type: ignore[no-any-return]


def _judge_of_rest(layout: Layout) -> Callable[[State], str | None]:
    """A function that says which promise a resting state breaks. With a death or a mark pending nothing is at rest."""
    lines = [f"if crashed or released_{layout.protocol.configuration.levels - 1}: return None"]
    lines += [f"if not ({each.condition}): return {each.meaning!r}" for each in layout.protocol.at_rest]
    return _function(layout, [*lines, "return None"])


class Explorer:
    """Breadth first over the states of a protocol, so that what it finds it finds by a shortest way."""

    def __init__(self, protocol: Protocol, name: str = "protocol") -> None:
        self.name = name
        self.layout = Layout(protocol)
        self.moves = [_Party(self.layout, *instance).moves() for instance in self.layout.parties]
        self.at_rest = _judge_of_rest(self.layout)
        idle = [
            {positions[IDLE], positions[GONE]}
            for positions in (self.layout.positions[role.name] for _, role, _ in self.layout.parties)
        ]
        self.resting = {bytes([])}
        for choices in idle:
            self.resting = {prefix + bytes([choice]) for prefix in self.resting for choice in choices}
        self.parent: dict[State, State] = {}

    def run(self) -> Interleavings:
        """Visit every state, up to the first that breaks a promise."""
        begin = time.perf_counter()
        initial = self.layout.initial
        parent = self.parent = {initial: initial}
        count = len(self.layout.parties)
        tables = [[[move.apply for move in row] for row in rows] for rows in self.moves]
        indexed = list(enumerate(tables))
        resting, at_rest = self.resting, self.at_rest
        transitions = 0
        frontier = [initial]
        while frontier:
            following: list[State] = []
            for state in frontier:
                if state[:count] in resting:
                    broken = at_rest(state)
                    if broken is not None:
                        return self._report(begin, transitions, broken, state)
                for party, rows in indexed:
                    for apply in rows[state[party]]:
                        try:
                            target = apply(state)
                        except Broken as error:
                            return self._report(begin, transitions, str(error), state, apply)
                        if target is None:
                            continue
                        transitions += 1
                        if target not in parent:
                            parent[target] = state
                            following.append(target)
            frontier = following
        return Interleavings(self.name, len(parent), transitions, time.perf_counter() - begin)

    def reached(self) -> set[tuple[str, str]]:
        """By role: the steps before which some party has stood. What was never reached has not been checked."""
        found = set()
        for place, (_, role, _) in enumerate(self.layout.parties):
            names = list(self.layout.positions[role.name])
            found |= {(role.name, names[position]) for position in {state[place] for state in self.parent}}
        return found

    def values(self, word: str) -> set[int]:
        """Every value that a word has had."""
        place = self.layout.names.index(word)
        return {state[place] for state in self.parent}

    def _report(
        self, begin: float, transitions: int, violation: str, state: State, last: Transition | None = None
    ) -> Interleavings:
        lines: list[str] = []
        if last is not None:
            move = next(move for rows in self.moves for row in rows for move in row if move.apply is last)
            lines.append(self._described(move, state, None))
        while state != self.parent[state]:
            before = self.parent[state]
            move = next(move for move in self._moves_from(before) if move.apply(before) == state)
            lines.append(self._described(move, before, state))
            state = before
        return Interleavings(
            self.name, len(self.parent), transitions, time.perf_counter() - begin, violation, tuple(reversed(lines))
        )

    def _moves_from(self, state: State) -> Iterator[Move]:
        for party, rows in enumerate(self.moves):
            yield from rows[state[party]]

    def _described(self, move: Move, before: State, after: State | None) -> str:
        if move.how:
            return f"{move.party}: {move.how}"
        word = move.step.operation.word
        found = self.layout.value(before, word)
        call = f"({move.call.name}) " if move.call is not None else ""
        line = f"{move.party}: {call}{move.step.name}: {verb(move.step.operation)} {word}, finds {found}"
        if isinstance(move.step.operation, Load) or after is None:
            return line
        return f"{line}, leaves {self.layout.value(after, word)}"


def verb(operation: Operation) -> str:
    """What an operation does, as a verb whose object is the word."""
    return {
        "Load": "loads",
        "Store": "stores to",
        "FetchOr": "sets bits of",
        "FetchClear": "clears bits of",
        "FetchAdd": "adds to",
        "CompareAndSwap": "compares and swaps",
    }[type(operation).__name__]


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, print what was found, and exit with status 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="spec interleavings", description="visit every interleaving of the protocol")
    parser.add_argument("size", nargs="?", choices=SIZES, default="small", help="small: seconds; full: minutes")
    parser.add_argument(
        "--mistake", choices=MISTAKES, help="put a mistake into the protocol, and show what it leads to"
    )
    options = parser.parse_args(argv)
    chosen = {name: protocol(configuration) for name, configuration in SIZES[options.size].items()}
    if options.mistake is not None:
        mistake = MISTAKES[options.mistake]
        chosen = {options.mistake: mistake.make(protocol(mistake.configuration))}
    states = transitions = 0
    for name, each in chosen.items():
        found = Explorer(each, name).run()
        print(found, flush=True)
        if found.violation is not None:
            sys.exit(1)
        states += found.states
        transitions += found.transitions
    print(f"in all: {states:,} states, {transitions:,} transitions: every promise holds")


if __name__ == "__main__":
    main()
