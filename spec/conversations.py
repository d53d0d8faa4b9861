"""Visits every order in which a conversation between two hosts can go, with every fault, late answer and late byte.

The turns are those of :mod:`.conversation`, compiled to one Python function from a state to all that can follow. A
state is what every party keeps, and the messages under way in each direction.

Checked are the promises that stand at the turns, whenever one is taken; those that always hold; those at rest, where
nothing is left that comes in time; and those where nothing is left but what the engine may never do. A conversation is
finite: every turn uses up something of which there is so much and no more (:meth:`Explorer.ends`), so rest is reached
from every state.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conversation import conversation
from .interleavings import Broken, Interleavings
from .misunderstandings import MISUNDERSTANDINGS
from .steps import Promise
from .turns import IN_TIME, KINDS, OWNER, WITH_THE_ENGINE, Conversation, Situation, Turn, Way

State = tuple[Any, ...]
Following = Callable[[State], list[tuple[int, State]]]

SITUATIONS = {
    "pull, carried": Situation("pull", "carried", rebinding=True),
    "pull of two, carried": Situation("pull", "carried", items=2),
    "pull": Situation("pull", "written", impatience=True),
    "pull three times": Situation("pull", "written", calls=3, deaths=False),
    "pull of two": Situation("pull", "written", items=2, calls=1),
    "pull of two together": Situation("pull", "written", items=2, calls=1, together=True),
    "pull in stretches": Situation("pull", "written", stretches=3, rivals=False),
    "pull in stretches, gathered": Situation("pull", "written", stretches=3, gathered=True, rivals=False, deaths=False),
    "push, carried": Situation("push", "carried"),
    "push of two, carried": Situation("push", "carried", items=2),
    "push": Situation("push", "written", impatience=True),
    "push three times": Situation("push", "written", calls=3, deaths=False),
    "push of two": Situation("push", "written", items=2, calls=1),
    "push of two together": Situation("push", "written", items=2, calls=1, together=True),
    "push in stretches": Situation("push", "written", stretches=3, rivals=False),
    "push in stretches, gathered": Situation(
        "push", "written", stretches=3, gathered=True, impatience=True, rivals=False
    ),
}


class Violated(Broken):
    """A promise does not hold, when the move of that number is made, or in the state itself (-1)."""

    def __init__(self, meaning: str, move: int = -1) -> None:
        super().__init__(meaning)
        self.move = move


@dataclass(frozen=True)
class Move:
    """A turn, of one transfer, for one item or of one stretch where it names them."""

    turn: Turn
    number: int = 0
    item: int = 0
    stretch: int = 0

    def __str__(self) -> str:
        parts = [f"{self.turn.party}: {self.turn.name.replace('_', ' ')}"]
        parts += [f"of {self.number}"] if self.turn.of_each_transfer else []
        parts += [f"for item {self.item}"] if self.turn.of_each_item else []
        parts += [f"stretch {self.stretch}"] if self.turn.of_each_stretch else []
        return " ".join(parts)


class _Flattened(ast.NodeTransformer):
    """An expression of one transfer and item, over variables that have no index, constants put in."""

    def __init__(self, constants: Mapping[str, int], calls: int, move: Move) -> None:
        self.constants, self.calls, self.move = constants, calls, move

    def visit_Name(self, node: ast.Name) -> ast.expr:
        own = {"n": self.move.number, "i": self.move.item, "k": self.move.stretch}
        if node.id in own:
            return ast.Constant(own[node.id])
        return ast.Constant(self.constants[node.id]) if node.id in self.constants else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name, index = ast.unparse(node.value), ast.unparse(node.slice)
        number = self.move.number
        numbers = {
            "n": [number],
            "all": range(1, self.calls + 1),
            "others": [each for each in range(1, self.calls + 1) if each != number],
        }[index]
        return ast.parse(" | ".join(f"{name}_{each}" for each in numbers) or "0", mode="eval").body


class Compiled:
    """The turns of a conversation as one function from a state to all that can follow."""

    def __init__(self, spoken: Conversation) -> None:
        self.spoken = spoken
        self.calls = spoken.situation.calls
        self.names: list[str] = []
        initial: list[Any] = []
        for variable in spoken.variables:
            value = eval(variable.initial, dict(spoken.constants))
            names = [f"{variable.name}_{n}" for n in range(1, self.calls + 1)] if variable.each else [variable.name]
            self.names += names
            initial += [value] * len(names)
        self.initial: State = (*initial, (), ())
        self.moves = [
            Move(turn, number, item, stretch)
            for turn in spoken.turns
            for number in (range(1, self.calls + 1) if turn.of_each_transfer else (0,))
            for item in ([1 << bit for bit in range(spoken.situation.items)] if turn.of_each_item else (0,))
            for stretch in ([1 << bit for bit in range(spoken.situation.stretches)] if turn.of_each_stretch else (0,))
        ]
        self.following: Following = self._compiled()

    def queue(self, kind: str) -> str:
        """The queue that messages of this kind are in."""
        return "requests" if self.spoken.situation.taken_by(kind) == OWNER else "answers"

    def _compiled(self) -> Following:
        lines = [f"{', '.join(self.names)}, requests, answers = state", "moves, comes = [], 0"]
        whole = Move(self.spoken.turns[0])
        lines += self._checks(self.spoken.always, whole)
        for position, move in enumerate(self.moves):
            lines += self._move(position, move)
        lines += ["if not comes & 1:", *_indented(self._checks(self.spoken.without_the_engine, whole))]
        lines += ["if not comes:", *_indented(self._checks(self.spoken.at_rest, whole)), "return moves"]
        scope: dict[str, Any] = {"Violated": Violated}
        exec(compile("\n".join(["def following(state):", *_indented(lines)]), "<conversation>", "exec"), scope)
        return scope["following"]  # type: ignore[no-any-return]

    def _text(self, expression: str, move: Move) -> str:
        tree = _Flattened(self.spoken.constants, self.calls, move).visit(ast.parse(expression, mode="eval"))
        return f"({ast.unparse(tree)})"

    def _checks(self, promises: Iterable[Promise], move: Move, position: int = -1) -> list[str]:
        return [
            f"if not {self._text(each.condition, move)}: raise Violated({each.meaning!r}, {position})"
            for each in promises
        ]

    def _move(self, position: int, move: Move) -> list[str]:
        turn = move.turn
        conditions = [self._text(turn.when, move)]
        before: list[str] = []
        if turn.takes:
            queue = self.queue(turn.takes)
            conditions.insert(0, f"{queue} and {queue}[0] >> 4 == {KINDS[turn.takes] << 4 | move.number}")
            before = [f"items = {queue}[0] & 15"]
        before += {IN_TIME: ["comes |= 1"], WITH_THE_ENGINE: ["comes |= 2"]}.get(turn.comes, [])
        lines = [f"if {' and '.join(conditions)}:", *_indented(before)]
        for number, way in enumerate(turn.ways):
            branch = [*self._checks(way.promises, move, position), self._append(position, move, way)]
            lines += [f"    {'elif' if number else 'if'} {self._text(way.when, move)}:", *_indented(_indented(branch))]
        return lines

    def _append(self, position: int, move: Move, way: Way) -> str:
        values = {name: name for name in self.names} | {"requests": "requests", "answers": "answers"}
        for target, value in way.sets.items():
            values[self._text(target, move)[1:-1]] = self._text(value, move)
        if move.turn.takes:
            queue = self.queue(move.turn.takes)
            values[queue] = f"{queue}[1:]"
        for send in way.sends:
            queue = self.queue(send.kind)
            number, items = self._text(send.number, move), self._text(send.items, move)
            message = f"{KINDS[send.kind] << 8} | {number} << 4 | {items}"
            values[queue] = f"(*{values[queue]}, {message})"
        return f"moves.append(({position}, ({', '.join(values.values())})))"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines] or ["    pass"]


class Explorer:
    """Breadth first over the states of a conversation, so that what it finds it finds by a shortest way."""

    def __init__(self, spoken: Conversation, name: str = "conversation") -> None:
        self.name = name
        self.compiled = Compiled(spoken)
        self.parent: dict[State, State] = {}
        self.taken: set[int] = set()

    def run(self) -> Interleavings:
        """Visit every state, up to the first that breaks a promise."""
        begin = time.perf_counter()
        initial, following = self.compiled.initial, self.compiled.following
        parent = self.parent = {initial: initial}
        taken = self.taken = set()
        transitions = 0
        frontier = [initial]
        while frontier:
            ahead: list[State] = []
            for state in frontier:
                try:
                    moves = following(state)
                except Violated as violated:
                    trace = self._trace(state, violated.move)
                    seconds = time.perf_counter() - begin
                    return Interleavings(self.name, len(parent), transitions, seconds, str(violated), trace)
                transitions += len(moves)
                for move, target in moves:
                    taken.add(move)
                    if target not in parent:
                        parent[target] = state
                        ahead.append(target)
            frontier = ahead
        return Interleavings(self.name, len(parent), transitions, time.perf_counter() - begin)

    def ends(self) -> bool:
        """Whether no way through the states that were visited comes back to where it was."""
        following = self.compiled.following
        before = dict.fromkeys(self.parent, 0)
        for state in self.parent:
            for _, target in following(state):
                before[target] += 1
        ahead = [state for state, count in before.items() if not count]
        passed = 0
        while ahead:
            state = ahead.pop()
            passed += 1
            for _, target in following(state):
                before[target] -= 1
                if not before[target]:
                    ahead.append(target)
        return passed == len(before)

    def taken_turns(self) -> set[str]:
        """The turns that were taken. What was never taken has not been checked."""
        return {self.compiled.moves[position].turn.name for position in self.taken}

    def _trace(self, state: State, last: int) -> tuple[str, ...]:
        lines = [str(self.compiled.moves[last])] if last >= 0 else []
        while state != self.parent[state]:
            before = self.parent[state]
            position = next(move for move, target in self.compiled.following(before) if target == state)
            lines.append(self._described(self.compiled.moves[position], before, state))
            state = before
        return tuple(reversed(lines))

    def _described(self, move: Move, before: State, after: State) -> str:
        taken = self.compiled.queue(move.turn.takes) if move.turn.takes else ""
        sent = []
        for place, queue in ((-2, "requests"), (-1, "answers")):
            sent += after[place][len(before[place]) - (queue == taken) :]
        says = ", ".join(_message(each) for each in sent)
        return f"{move}; says {says}" if says else str(move)


def _message(message: int) -> str:
    kind = next(name for name, number in KINDS.items() if number == message >> 8)
    items = [str(1 << bit) for bit in range(4) if message & 1 << bit]
    return f"{kind} {message >> 4 & 15}" + (f" for {' and '.join(items)}" if items else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, print what was found, and exit with status 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="spec conversations", description="visit every order of the conversation")
    parser.add_argument(
        "--mistake", choices=MISUNDERSTANDINGS, help="put a mistake into the conversation, and show what it leads to"
    )
    options = parser.parse_args(argv)
    chosen = {name: conversation(situation) for name, situation in SITUATIONS.items()}
    if options.mistake is not None:
        mistake = MISUNDERSTANDINGS[options.mistake]
        chosen = {options.mistake: mistake.make(conversation(mistake.situation))}
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
