"""The documentation page of the transfer protocol, written from :mod:`.protocol` and what exploring it has shown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from .interleavings import SMALL, Explorer
from .mistakes import MISTAKES
from .protocol import everything, protocol
from .steps import Call, CompareAndSwap, Configuration, FetchAdd, FetchClear, FetchOr, Operation, Role, Step, Store

INTRODUCTION = """# One-sided transfers, operation by operation

Written by `python -m spec protocol` from [`spec/protocol.py`](../spec/protocol.py), which also says the rules. Change
that file, not this page.

A linked peer transfers through the owner's mapped arena, without the owner's CPU. Each line below is one atomic
operation on one word. `found` is what it found there; the first condition that holds says which step is next. *Pairs
with* names the operations of others whose order against this one decides something. Every operation is sequentially
consistent.

"""

CHECKS = """## What checks it

`python -m spec interleavings` visits every interleaving of one owner and two peers, each of which asks again and again
and may die before any of its steps. `python -m spec spin` writes the same data as a Promela model and has
[SPIN](https://spinroot.com) visit the same states. SPIN also proves that every released cache is eventually reaped,
whatever users do, as long as no party stands still for ever and nobody asks for ever for a cache that has been closed.
`python -m spec interleavings full` explores more, in minutes.

Checked are the promises at the steps:

{promises}

and, whenever everybody is idle or gone and no death and no mark is pending:

{at_rest}

| configuration | what may happen | states | transitions |
|---|---|--:|--:|
{counts}

SPIN stores exactly as many states of each. Both find each of these mistakes, by a shortest way, which
`python -m spec interleavings --mistake NAME` shows:

| mistake | what is done wrong | what breaks first |
|---|---|---|
{mistakes}
"""

HEADINGS = {
    "owner": "The owner",
    "peer": "A peer",
    "view": "A view, or a transfer of the owner's own",
}


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_escaped(text)}`"


def _operation(operation: Operation) -> str:
    word = _code(operation.word)
    if isinstance(operation, Store):
        return f"store {_code(operation.value)} to {word}"
    if isinstance(operation, FetchOr):
        return f"set {_code(operation.bits)} in {word}"
    if isinstance(operation, FetchClear):
        return f"clear {_code(operation.bits)} in {word}"
    if isinstance(operation, FetchAdd):
        return f"add {operation.by} to {word}"
    if isinstance(operation, CompareAndSwap):
        return f"in {word} swap {_code(operation.expected)} for {_code(operation.desired)}"
    return f"load {word}"


def _step_row(step: Step) -> str:
    ways = [f"**{go.to}**" + ("" if go.when == "1" else f" if {_code(go.when)}") for go in step.goes]
    if step.may_end_at is not None:
        ways.append(f"**{step.may_end_at}** if it gives up")
    cells = (step.name, _operation(step.operation), "; ".join(ways), f"{step.reason} ({step.clause})")
    return "| " + " | ".join((*cells, ", ".join(step.pairs_with))) + " |"


def _call_row(call: Call) -> str:
    when = "at any time" if call.when == "1" else f"when `{call.when}`"
    return f"`{call.name}` {when}, from **{call.first}**"


def _role(role: Role) -> str:
    calls = "; ".join(_call_row(call) for call in role.calls)
    rows = "\n".join(_step_row(step) for step in role.steps)
    return (
        f"## {HEADINGS[role.name]}\n\nBegins {calls}.\n\n"
        f"| step | operation | next | reason | pairs with |\n|---|---|---|---|---|\n{rows}\n\n"
    )


def _meaning(configuration: Configuration) -> str:
    asked = " / ".join(", ".join(requests) or "nothing" for requests in configuration.requests)
    parts = [f"{configuration.generations} generations", f"the peers ask for {asked}"]
    parts += (
        [f"{configuration.levels} level{'s' if configuration.levels > 1 else ''} of marks"]
        if configuration.levels != 2
        else []
    )
    parts += [name for name in ("removals", "views", "evictions", "leases") if getattr(configuration, name)]
    return "; ".join(parts).replace("1 generations", "1 generation").replace("_", " ")


def page(counts: Mapping[str, tuple[int, int]]) -> str:
    """The page; ``counts`` are the states and transitions of each configuration."""
    whole = protocol(everything())
    words = "\n".join(
        f"| {word.name} | {word.writer or 'several'} | {_escaped(word.meaning)} |"
        for word in whole.words
        if not word.ghost
    )
    promises = {
        promise.meaning: None
        for role in whole.roles
        for step in role.steps
        for go in step.goes
        for promise in go.promises
    }
    rows = [
        f"| {name} | {_meaning(SMALL[name])} | {states:,} | {transitions:,} |"
        for name, (states, transitions) in counts.items()
    ]
    mistakes = [
        f"| {name} | {' '.join((mistake.make.__doc__ or '').split())} | {mistake.promise} |"
        for name, mistake in MISTAKES.items()
    ]
    return (
        INTRODUCTION
        + f"## Words\n\n| word | written by | what stands in it |\n|---|---|---|\n{words}\n\n"
        + "".join(_role(role) for role in whole.roles)
        + CHECKS.format(
            promises="\n".join(f"- {meaning}" for meaning in promises),
            at_rest="\n".join(f"- {promise.meaning}" for promise in whole.at_rest),
            counts="\n".join(rows),
            mistakes="\n".join(mistakes),
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, and write the page."""
    parser = argparse.ArgumentParser(prog="spec protocol", description="write the page of the transfer protocol")
    parser.add_argument("--output", type=Path, default=Path("docs/protocol.md"), metavar="FILE")
    options = parser.parse_args(argv)
    found = {name: Explorer(protocol(configuration), name).run() for name, configuration in SMALL.items()}
    broken = [str(each) for each in found.values() if each.violation is not None]
    if broken:
        parser.error("\n".join(broken))
    counts = {name: (each.states, each.transitions) for name, each in found.items()}
    options.output.write_text(page(counts), encoding="utf-8")
