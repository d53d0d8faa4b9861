"""Writes the transfer protocol as a model for SPIN, and has SPIN check it.

The model is written from the steps of :mod:`.protocol`, as :mod:`.interleavings` compiles them; so both visit the same
states, and say the same number of them. Each step is one ``d_step``, each party a process. SPIN checks two things:

* safety: every promise at the steps and at rest, by searching breadth first;
* liveness: every released cache is eventually reaped, if no party stands still for ever (weak fairness). Only what the
  owner's timer does comes by itself; no call of a user is ever relied on.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .interleavings import SMALL, Layout
from .mistakes import MISTAKES
from .protocol import protocol
from .steps import (
    CRASH,
    GONE,
    IDLE,
    Call,
    CompareAndSwap,
    Go,
    Promise,
    Protocol,
    Role,
    Step,
    result_of,
)

#: Where SPIN checks liveness. Without what the owner could do for ever, as long as users make it: its timer must get a
#: turn.
LIVENESS = {name: replace(SMALL[name], repeats=False) for name in ("layers", "removals", "ids", "addresses", "views")}

RELEASED = "memory != 0 && held == 0 && (keys & 3) == 0"
REAPED = "memory == 0 || held != 0"

MOST_MEBIBYTES = 4096


class NotInstalled(Exception):
    """A program that the check needs is missing. The text says which, and how to get it."""


# ---------------------------------------------------------------- expressions

_BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|",
    ast.BitXor: "^",
}  # fmt: skip
_COMPARED = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_UNARY = {ast.Not: "!", ast.Invert: "~", ast.USub: "-"}


def promela_expression(text: str, renamed: Callable[[str], str] = str) -> str:
    """An expression of the protocol in Promela, every operation in parentheses."""

    def write(node: ast.expr) -> str:
        if isinstance(node, ast.BoolOp):
            return "(" + (" && " if isinstance(node.op, ast.And) else " || ").join(map(write, node.values)) + ")"
        if isinstance(node, ast.BinOp):
            return f"({write(node.left)} {_BINARY[type(node.op)]} {write(node.right)})"
        if isinstance(node, ast.UnaryOp):
            return f"{_UNARY[type(node.op)]}({write(node.operand)})"
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return f"({write(node.left)} {_COMPARED[type(node.ops[0])]} {write(node.comparators[0])})"
        if isinstance(node, ast.IfExp):
            return f"({write(node.test)} -> {write(node.body)} : {write(node.orelse)})"
        if isinstance(node, ast.Name):
            return renamed(node.id)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return str(node.value)
        raise ValueError(f"{text!r} has something in it that Promela cannot say")

    return write(ast.parse(text, mode="eval").body)


# ---------------------------------------------------------------- the model


class _Party:
    """Writes the process of one party."""

    def __init__(self, layout: Layout, name: str, role: Role, bit: int) -> None:
        self.name, self.role, self.bit = name, role, bit
        self.positions = layout.positions[role.name]
        self.live = role.live_registers()

    def expression(self, text: str) -> str:
        return promela_expression(text, self._renamed)

    def _renamed(self, name: str) -> str:
        if name == "me":
            return str(self.bit)
        return f"{self.name}_{name}" if name in self.role.registers else name

    def at(self, place: str) -> str:
        return f"{self.name}_at == {self.positions[place]} /* {place} */"

    def calls(self, timed: bool | None = None) -> list[str]:
        """The ways to begin; ``timed`` chooses between those that come by themselves and the others."""
        return [
            self._step(self.role.step(call.first), call)
            for call in self.role.calls
            if self.bit in (call.bits or self.role.bits) and timed in (None, call.timed)
        ]

    def steps(self) -> list[str]:
        """The ways to go on."""
        options = []
        for place in self.positions:
            if place in (IDLE, GONE):
                continue
            step = self.role.step(place)
            options.append(self._step(step))
            if step.may_end_at is not None:
                options.append(self._leave(place, "gives up", Go(step.may_end_at)))
            if self.role.mortal:
                options.append(self._leave(place, "dies", Go(GONE, sets=CRASH)))
        return options

    def _step(self, step: Step, call: Call | None = None) -> str:
        guard = self.at(IDLE if call else step.name)
        if call is not None:
            guard = f"({guard}) && {self.expression(call.when)}"
        title = f"{step.name} ({call.name})" if call else step.name
        lines = [f"found = {step.operation.word};"]
        lines.append(f'printf("{self.name}: {title}: {step.operation.word} was %d\\n", found);')
        lines += [
            f"{self.name}_{register} = {self.expression(value)};"
            for register, value in (call.sets if call else {}).items()
        ]
        if isinstance(step.operation, CompareAndSwap):
            lines.append(f"swapped = (found == {self.expression(step.operation.expected)});")
        result = result_of(step.operation)
        if result is not None:
            lines.append(f"{step.operation.word} = {self.expression(result)};")
        return _option(guard, [*lines, *self._choose(step.goes)])

    def _choose(self, goes: Sequence[Go]) -> list[str]:
        first, rest = goes[0], goes[1:]
        if not rest:
            return self._go(first)
        return [
            "if",
            f":: {self.expression(first.when)} ->",
            *_indented(self._go(first)),
            ":: else ->",
            *_indented(self._choose(rest)),
            "fi;",
        ]

    def _go(self, go: Go) -> list[str]:
        lines = [line for promise in go.promises for line in _asserted(promise, self.expression(promise.condition))]
        # All at once in the protocol, one by one here: none of them reads what another one sets (test_promela).
        lines += [f"{self._renamed(name)} = {self.expression(value)};" for name, value in go.sets.items()]
        dead = [register for register in self.role.registers if register not in self.live[go.to]]
        lines += [f"{self._renamed(register)} = 0;" for register in dead]
        return [*lines, "found = 0; swapped = 0;", f"{self.name}_at = {self.positions[go.to]}; /* {go.to} */"]

    def _leave(self, place: str, how: str, go: Go) -> str:
        return _option(self.at(place), [f'printf("{self.name}: {how}\\n");', *self._go(go)])


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _option(guard: str, lines: Sequence[str]) -> str:
    return "\n".join([":: d_step {", f"     {guard} ->", *(f"     {line}" for line in lines), "   }"])


def _asserted(promise: Promise, condition: str) -> list[str]:
    return [f'if :: !({condition}) -> printf("BROKEN: {promise.meaning}\\n"); assert(false) :: else fi;']


def _process(name: str, options: Sequence[str]) -> str:
    body = "\n".join(options)
    return f"active proctype {name}() {{\nend: do\n{body}\n   od\n}}\n"


def promela(protocol: Protocol, liveness: bool = False) -> str:
    """The model: for safety, or with what liveness needs (idling, the owner's timer, the formula)."""
    layout = Layout(protocol)
    values = dict(zip(layout.names, layout.initial, strict=True))
    parties = [_Party(layout, *instance) for instance in protocol.instances()]
    parts = ["/* Written by python -m spec promela. Do not edit. */\n"]
    meanings = {word.name: word.meaning for word in protocol.words}
    for name, value in values.items():
        comment = f" /* {meanings[name]} */" if name in meanings else ""
        parts.append(f"byte {name} = {value};{comment}")
    parts.append("byte found; /* what an operation found in its word; zero between steps */")
    parts.append("byte swapped;\n")
    for party in parties:
        if not liveness:
            parts.append(_process(party.name, [*party.calls(), *party.steps()]))
            continue
        idling = _option(party.at(IDLE), ["skip"])
        parts.append(_process(party.name, [*party.calls(timed=False), idling, *party.steps()]))
        timed = party.calls(timed=True)
        if timed:
            parts.append(_process(f"{party.name}_timer", timed))
    parts.append(f"ltl reaped {{ [] (({RELEASED}) -> <> ({REAPED})) }}" if liveness else _rest(protocol, parties))
    return "\n".join(parts) + "\n"


def _rest(protocol: Protocol, parties: Sequence[_Party]) -> str:
    resting = [f"({party.at(IDLE)} || {party.at(GONE)})" for party in parties]
    guard = " && ".join([*resting, "crashed == 0", f"released_{protocol.configuration.levels - 1} == 0"])
    lines = [line for promise in protocol.at_rest for line in _asserted(promise, promela_expression(promise.condition))]
    return _process("rest", [_option(guard, lines)])


# ---------------------------------------------------------------- SPIN


@dataclass(frozen=True)
class Verdict:
    """What SPIN says of a model."""

    name: str
    states: int
    transitions: int
    seconds: float
    violation: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = f"{self.states:,} states, {self.transitions:,} transitions, {self.seconds:.1f} s"
        if self.violation is None:
            return f"{self.name}: SPIN: {counts}: no error"
        steps = "\n".join(f"{number:4} {line}" for number, line in enumerate(self.trace, 1))
        return f"{self.name}: SPIN: {counts}: {self.violation}\n{steps}"


def require_spin() -> None:
    """NotInstalled, unless SPIN and a C compiler are there."""
    if shutil.which("spin") is None:
        raise NotInstalled("spin is not installed (Debian: apt-get install spin)")
    if shutil.which("cc") is None:
        raise NotInstalled("no C compiler named cc is installed (Debian: apt-get install gcc)")


def check_with_spin(chosen: Protocol, name: str, liveness: bool = False) -> Verdict:
    """Write the model, let SPIN make its verifier, compile that and run it."""
    require_spin()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="spin-") as folder:
        Path(folder, "model.pml").write_text(promela(chosen, liveness), encoding="ascii")
        _run(folder, "spin", "-a", "model.pml")
        kind = ["-DNFAIR=3"] if liveness else ["-DSAFETY", "-DBFS"]
        options = ["-O2", "-w", "-DNOREDUCE", "-DCOLLAPSE", f"-DMEMLIM={MOST_MEBIBYTES}", *kind]
        _run(folder, "cc", *options, "-o", "pan", "pan.c")
        output = _run(folder, "./pan", *(["-a", "-f", "-m10000000", "-w24"] if liveness else ["-w24"]))
        violation: str | None = None
        trace: tuple[str, ...] = ()
        if "errors: 0" not in output or "Search not completed" in output or "max search depth too small" in output:
            violation, trace = _explained(folder, output)
        return Verdict(
            name,
            _number(r"(\d+) states, stored", output),
            _number(r"(\d+) transitions", output),
            time.perf_counter() - begin,
            violation,
            trace,
        )


def _run(folder: str, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{output}")
    return output


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if found is None:
        raise RuntimeError(f"the verifier's output has no {pattern!r}:\n{output}")
    return int(found.group(1))


def _explained(folder: str, output: str) -> tuple[str, tuple[str, ...]]:
    """What was violated, and the steps that lead there, by replaying SPIN's trail."""
    if not Path(folder, "model.pml.trail").exists():
        raise RuntimeError(f"the search was not completed:\n{output}")
    lines = [line.strip() for line in _run(folder, "spin", "-t", "-B", "model.pml").splitlines()]
    steps = [line for line in lines if re.match(r"(owner|peer_\d|view): |<<<<<START OF CYCLE>>>>>", line)]
    broken = [line.removeprefix("BROKEN: ") for line in lines if line.startswith("BROKEN: ")]
    if broken:
        return broken[-1], tuple(steps)
    if "acceptance cycle" in output:
        return "a released cache is not reaped, for ever", tuple(steps)
    raise RuntimeError(f"the verifier found an error that is none of the protocol's promises:\n{output}")


# ---------------------------------------------------------------- commands


def main(argv: Sequence[str] | None = None) -> None:
    """Write the model; or check it, and exit with status 1 if SPIN finds an error, 2 if it is not installed."""
    parser = argparse.ArgumentParser(prog="spec promela", description="the protocol as a model for SPIN")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--output", type=Path, metavar="FILE", help="write the model there")
    chosen.add_argument(
        "--check", action="store_true", help="have SPIN check it: every configuration, or the one named"
    )
    parser.add_argument("--configuration", choices=sorted({*SMALL, *LIVENESS}))
    parser.add_argument("--liveness", action="store_true", help="only that every released cache is eventually reaped")
    parser.add_argument("--mistake", choices=MISTAKES, help="put a mistake into the protocol")
    options = parser.parse_args(argv)
    models = _models(options)
    if options.output is not None:
        options.output.write_text(promela(*next(iter(models.values()))), encoding="ascii")
        return
    try:
        require_spin()
    except NotInstalled as error:
        parser.error(str(error))
    for name, (model, liveness) in models.items():
        verdict = check_with_spin(model, name, liveness)
        print(verdict, flush=True)
        if verdict.violation is not None:
            sys.exit(1)


def _models(options: argparse.Namespace) -> dict[str, tuple[Protocol, bool]]:
    """By name: each protocol that was asked for, and whether it is its liveness that is."""
    if options.mistake is not None:
        mistake = MISTAKES[options.mistake]
        return {options.mistake: (mistake.make(protocol(mistake.configuration)), options.liveness)}
    models = {} if options.liveness else {name: (protocol(each), False) for name, each in SMALL.items()}
    models |= {f"{name}, liveness": (protocol(each), True) for name, each in LIVENESS.items()}
    if options.configuration is None:
        return models
    return {name: model for name, model in models.items() if name.partition(",")[0] == options.configuration}
