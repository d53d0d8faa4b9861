"""The table compiler: the machines, as the C tables that the core includes and the Python tables that the links use.

Run by the build. It writes three files into the folder given by ``--output``:

``spec_tables.h``
    enumerations of states, events, guards and effects, one dense outcome table per machine, and the function from a
    cache's facts to its state;
``spec_tables.pxi``
    the same names, declared to Cython;
``spec_machines.pxi``
    the machines as a Python literal, for code that steps them by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from .lifecycle import MACHINES
from .machine import Machine, Refusal, Transition

GENERATED = "Generated from the machines in spec/ by the build. Change them there."

IMPOSSIBLE, TAKEN, REFUSED = range(3)


def checksum(machines: Sequence[Machine] = MACHINES) -> str:
    """Sixteen hexadecimal digits that change when any state, event, guard, effect, transition or refusal does.

    Wording does not count: meanings and clauses may be rewritten without making peers strangers to each other.
    """
    rules = [
        {
            "name": machine.name,
            "initial": machine.initial,
            "states": [(state.name, sorted(state.signature.items())) for state in machine.states],
            "events": [event.name for event in machine.events],
            "guards": [guard.name for guard in machine.guards],
            "effects": [effect.name for effect in machine.effects],
            "transitions": [(t.event, t.source, t.target, t.when, t.effects) for t in machine.transitions],
            "refusals": [(r.event, r.source, r.error, r.when) for r in machine.refusals],
        }
        for machine in machines
    ]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def errors(machines: Sequence[Machine]) -> list[str]:
    """Every error that some machine refuses with, sorted."""
    return sorted({refusal.error for machine in machines for refusal in machine.refusals})


def signature_facts(machine: Machine) -> list[str]:
    """The facts of which the machine's state is a function, in the order of their bits; empty if it is none."""
    facts: list[str] = []
    for state in machine.states:
        facts += [fact for fact in state.signature if fact not in facts]
    return facts


def state_of(machine: Machine) -> list[int]:
    """For every combination of facts (first fact in the lowest bit), the number of the one state they define."""
    facts = signature_facts(machine)
    numbers = []
    for bits in product((False, True), repeat=len(facts)):
        values = dict(zip(facts, reversed(bits), strict=True))
        matching = [
            number
            for number, state in enumerate(machine.states)
            if all(values[fact] == wanted for fact, wanted in state.signature.items())
        ]
        if len(matching) != 1:
            raise ValueError(f"{machine.name}: the facts {values} define {len(matching)} states, not one")
        numbers.append(matching[0])
    return numbers


def c_name(*words: str) -> str:
    return "_".join(words).upper()


def constants(machine: Machine) -> list[tuple[str, int]]:
    """Every named number of the machine: states and events count up, guards, effects and facts are bits."""
    numbered = [("state", [s.name for s in machine.states]), ("event", [e.name for e in machine.events])]
    flags = [
        ("guard", [g.name for g in machine.guards]),
        ("effect", [e.name for e in machine.effects]),
        ("fact", signature_facts(machine)),
    ]
    result = [(c_name(machine.name, kind, n), i) for kind, names in numbered for i, n in enumerate(names)]
    result += [(c_name(machine.name, kind, n), 1 << i) for kind, names in flags for i, n in enumerate(names)]
    result.append((c_name(machine.name, "event", "count"), len(machine.events)))
    result.append((c_name(machine.name, "guard", "bits"), len(machine.guards)))
    return result


def outcome_rows(machine: Machine, error_names: Sequence[str]) -> list[tuple[int, int, int, int, str]]:
    """One row per cell: kind, target, error, effects and a remark. The first guard is the lowest bit of the cell."""
    states = [state.name for state in machine.states]
    effects = [effect.name for effect in machine.effects]
    guards = [guard.name for guard in machine.guards]
    rows = []
    for state, event in product(states, (event.name for event in machine.events)):
        for bits in range(1 << len(guards)):
            facts = {guard: bool(bits >> position & 1) for position, guard in enumerate(guards)}
            outcome = machine.outcome(state, event, facts)
            remark = " ".join([state, event, *(guard for guard in guards if facts[guard])])
            if isinstance(outcome, Transition):
                mask = sum(1 << effects.index(effect) for effect in outcome.effects)
                rows.append((TAKEN, states.index(outcome.target), 0, mask, f"{remark} -> {outcome.target}"))
            elif isinstance(outcome, Refusal):
                error = error_names.index(outcome.error) + 1
                rows.append((REFUSED, states.index(state), error, 0, f"{remark}: {outcome.error}"))
            else:
                rows.append((IMPOSSIBLE, states.index(state), 0, 0, f"{remark}: impossible"))
    return rows


def header(machines: Sequence[Machine] = MACHINES) -> str:
    """The C header."""
    error_names = errors(machines)
    lines = [
        f"/* {GENERATED} */",
        "#ifndef LLMDD_SPEC_TABLES_H",
        "#define LLMDD_SPEC_TABLES_H",
        "#include <stdint.h>",
        "",
        f"#define SPEC_CHECKSUM_BITS 0x{checksum(machines)}ULL",
        "",
        f"enum {{ OUTCOME_IMPOSSIBLE = {IMPOSSIBLE}, OUTCOME_TAKEN = {TAKEN}, OUTCOME_REFUSED = {REFUSED} }};",
        "",
        "typedef struct { uint8_t kind; uint8_t target; uint8_t error; uint8_t effects; } spec_outcome;",
        "",
        "enum {",
        *(f"    SPEC_ERROR_{c_name(name)} = {number}," for number, name in enumerate(error_names, 1)),
        "};",
    ]
    for machine in machines:
        lines += ["", "enum {", *(f"    {name} = {value}," for name, value in constants(machine)), "};"]
        rows = outcome_rows(machine, error_names)
        lines += ["", f"static const spec_outcome {c_name(machine.name)}_OUTCOMES[{len(rows)}] = {{"]
        lines += [f"    {{{k}, {t}, {e}, {m}}}, /* {remark} */" for k, t, e, m, remark in rows]
        lines += ["};"]
        if signature_facts(machine):
            numbers = state_of(machine)
            table = ", ".join(map(str, numbers))
            lines += ["", f"static const uint8_t {c_name(machine.name)}_STATE_OF[{len(numbers)}] = {{{table}}};"]
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def declarations(machines: Sequence[Machine] = MACHINES) -> str:
    """The Cython declarations of the header's names."""
    lines = [
        f"# {GENERATED}",
        "from libc.stdint cimport uint8_t, uint64_t",
        "",
        'cdef extern from "spec_tables.h" nogil:',
        "    const uint64_t SPEC_CHECKSUM_BITS",
        "    enum: OUTCOME_IMPOSSIBLE, OUTCOME_TAKEN, OUTCOME_REFUSED",
        "    ctypedef struct spec_outcome:",
        "        uint8_t kind",
        "        uint8_t target",
        "        uint8_t error",
        "        uint8_t effects",
        *(f"    enum: SPEC_ERROR_{c_name(name)}" for name in errors(machines)),
    ]
    for machine in machines:
        lines += [f"    enum: {name}" for name, _ in constants(machine)]
        lines += [f"    const spec_outcome[] {c_name(machine.name)}_OUTCOMES"]
        if signature_facts(machine):
            lines += [f"    const uint8_t[] {c_name(machine.name)}_STATE_OF"]
    return "\n".join(lines) + "\n"


def machine_literals(machines: Sequence[Machine] = MACHINES) -> str:
    """The machines as a Python literal: name -> states, events, guards, errors, effects and the rows of the table."""
    lines = [f"# {GENERATED}", f'SPEC_CHECKSUM_TEXT = "{checksum(machines)}"', "", "SPEC_MACHINES = {"]
    for machine in machines:
        guards = tuple(guard.name for guard in machine.guards)
        lines += [
            f'    "{machine.name}": (',
            f"        {tuple(s.name for s in machine.states)!r},",
            f"        {tuple(e.name for e in machine.events)!r},",
            f"        {guards!r},",
            "        {",
        ]
        for state, event, facts in machine.cells():
            outcome = machine.outcome(state, event, facts)
            cell = (state, event, *(facts[guard] for guard in guards))
            if isinstance(outcome, Transition):
                lines.append(f"            {cell!r}: ({TAKEN}, {outcome.target!r}, {outcome.effects!r}),")
            elif isinstance(outcome, Refusal):
                lines.append(f"            {cell!r}: ({REFUSED}, {outcome.error!r}, ()),")
        lines += ["        },", "    ),"]
    lines += ["}", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(prog="spec tables", description="compile the machines into the core's tables")
    parser.add_argument("--output", type=Path, default=Path("."), help="the folder to write into (default: here)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "spec_tables.h").write_text(header())
    (options.output / "spec_tables.pxi").write_text(declarations())
    (options.output / "spec_machines.pxi").write_text(machine_literals())


if __name__ == "__main__":
    main()
