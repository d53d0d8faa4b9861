"""The documentation page of the conversation, written from :mod:`.conversation` and what exploring it has shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from . import conversation as rules
from .conversation import conversation
from .conversations import SITUATIONS, Explorer
from .machines_page import split_rules
from .misunderstandings import MISUNDERSTANDINGS
from .turns import ASKER, ENGINE, IN_TIME, OWNER, PERHAPS, WORLD, Conversation, Situation, Turn, Way, base_name

INTRODUCTION = """# A transfer between two hosts, message by message

Written by `python -m spec conversation` from [`spec/conversation.py`](../spec/conversation.py) and
[`spec/stretches.py`](../spec/stretches.py). Change those files, not this page.

"""

NOTATION = """## How to read the tables

A turn is what one party does at once: take a message or see something happen, change what it keeps, say something. It
goes the first way whose condition holds. Sets of items are bits; `n` is the number of the transfer, `i` one item, `k`
one stretch, and `items` those of the message. A call *returns* SUCCEEDED, KEPT if it failed before its last word was
said, or UNKNOWN if it was not answered in time. Turns in *italics* may never be taken, those marked with ° are taken in
time if the engine ends what it has begun, all others in time whatever happens.

"""

CHECKS = """## What checks it

`python -m spec conversations` visits every order of these turns, faults included, in some seconds. Checked are the
promises at the turns:

{promises}

and always:

{always}

and, where nothing is left but what the engine may never do:

{without_the_engine}

and, where nothing at all is left that comes in time:

{at_rest}

| situation | what may happen | states | transitions |
|---|---|--:|--:|
{counts}

It finds each of these mistakes, by a shortest way, which `python -m spec conversations --mistake NAME` shows:

| mistake | where | what is done wrong | what breaks first |
|---|---|---|---|
{mistakes}
"""

#: The sections: a title, what is said about it, the situation shown, and the one from which only differences are shown.
SECTIONS = (
    (
        "A pull that is written",
        "The owner's engine writes into the puller's staging memory.",
        Situation("pull", "written", stretches=3, gathered=True, rebinding=True, impatience=True),
        None,
    ),
    (
        "A push that is written",
        "The pusher's engine writes into the owner's staging memory.",
        Situation("push", "written", stretches=3, gathered=True),
        Situation("pull", "written", stretches=3, gathered=True),
    ),
    (
        "A pull that is carried on the messages",
        "",
        Situation("pull", "carried"),
        Situation("pull", "written", stretches=3),
    ),
    (
        "A push that is carried on the messages",
        "",
        Situation("push", "carried"),
        Situation("push", "written", stretches=3),
    ),
    (
        "Together: all or none",
        "",
        Situation("pull", "written", stretches=3, together=True),
        Situation("pull", "written", stretches=3),
    ),
)

_MAY_HAPPEN = ("together", "gathered", "rebinding", "impatience", "rivals", "deaths")

HEADINGS = {ASKER: "the asker", OWNER: "the owner", ENGINE: "the engine", WORLD: "the world"}


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _ways(spoken: Conversation, turn: Turn) -> str:
    return "; otherwise ".join(_way(spoken, way) for way in turn.ways)


def _way(spoken: Conversation, way: Way) -> str:
    ghosts = {variable.name for variable in spoken.variables if variable.ghost}
    done = [_code(f"{name} = {value}") for name, value in way.sets.items() if base_name(name) not in ghosts]
    done += [f"returns {value}" for name, value in way.sets.items() if base_name(name) == "told"]
    for send in way.sends:
        done.append(f"says **{send.kind}**" + ("" if send.items == "0" else f" of {_code(send.items)}"))
    condition = "" if way.when == "1" else f"if {_code(way.when)}: "
    return condition + (", ".join(done) or "nothing")


def _turn_row(spoken: Conversation, turn: Turn) -> str:
    mark = "*" if turn.comes == PERHAPS else ""
    name = f"{mark}{_spoken(turn.name)}{mark}" + ("" if turn.comes in (PERHAPS, IN_TIME) else "°")
    when = (f"takes **{turn.takes}**, " if turn.takes else "") + _code(turn.when)
    return "| " + " | ".join((name, when, _ways(spoken, turn), f"{turn.reason} ({turn.clause})")) + " |"


def _tables(shown: Situation, known: Situation | None) -> Iterator[str]:
    spoken = conversation(shown)
    before = set() if known is None else set(map(_comparable, conversation(known).turns))
    for party, heading in HEADINGS.items():
        turns = [turn for turn in spoken.turns if turn.party == party and _comparable(turn) not in before]
        if not turns:
            continue
        yield f"| {heading} | when | does | reason |\n|---|---|---|---|"
        yield from (_turn_row(spoken, turn) for turn in turns)
        yield ""


def _comparable(turn: Turn) -> str:
    """What the page would say of a turn: two that would look alike are alike."""
    ways = [(way.when, sorted(way.sets.items()), way.sends) for way in turn.ways]
    return repr((turn.party, turn.name, turn.when, turn.takes, ways))


def _section(title: str, text: str, shown: Situation, known: Situation | None) -> Iterator[str]:
    yield f"## {title}\n"
    if text:
        yield f"{text}\n"
    if known is not None:
        yield f"As above for a {known.direction} that is {known.travel}, but for these turns:\n"
    yield from _tables(shown, known)


def _variables() -> Iterator[str]:
    situations = [Situation(direction, "written", gathered=True) for direction in ("pull", "push")]
    pulled, pushed = (conversation(situation).variables for situation in situations)
    for variable in dict.fromkeys(each.name for each in (*pulled, *pushed) if not each.ghost):
        found = next(each for each in (*pulled, *pushed) if each.name == variable)
        name = f"{variable}[n]" if found.each else variable
        yield f"| {name} | {_keepers(variable)} | {found.meaning} |"


def _keepers(name: str) -> str:
    """Who keeps a variable; of a pull and of a push it may be another."""
    kept = {}
    for direction in ("pull", "push"):
        for variable in conversation(Situation(direction, "written", gathered=True)).variables:
            if variable.name == name:
                kept[direction] = " and ".join(party for party in variable.kept_by if party in (ASKER, OWNER))
    if len(set(kept.values())) == 1:
        return next(iter(kept.values()))
    return ", ".join(f"{party} of a {direction}" for direction, party in kept.items())


def _meaning(situation: Situation) -> str:
    parts = [f"{situation.direction}, {situation.travel}", f"{situation.calls} calls of {situation.items} items"]
    parts += [f"{situation.stretches} stretches"] if situation.stretches > 1 else []
    parts += [name for name in _MAY_HAPPEN if getattr(situation, name)]
    return "; ".join(parts).replace("1 items", "1 item").replace("1 calls", "1 call")


def _listed(meanings: Iterable[str]) -> str:
    return "\n".join(f"- {meaning}" for meaning in dict.fromkeys(meanings))


def page(counts: Mapping[str, tuple[int, int]]) -> str:
    """The page; ``counts`` are the states and transitions of each situation."""
    text, _, modelled = (rules.__doc__ or "").partition("What is modelled\n----------------\n")
    preface, numbered = split_rules(text)
    whole = [conversation(situation) for situation in SITUATIONS.values()]
    promises = (
        promise.meaning for each in whole for turn in each.turns for way in turn.ways for promise in way.promises
    )
    lines = [
        INTRODUCTION + "\n\n".join(part for part in preface if "`conversation n`" not in part),
        "",
        "## The rules",
        "",
        *(f"{number}. {rule}" for number, rule in enumerate(numbered, start=1)),
        "",
        NOTATION + "| kept | by | what it is |\n|---|---|---|",
        *_variables(),
        "",
    ]
    for section in SECTIONS:
        lines += _section(*section)
    rows = [
        f"| {name} | {_meaning(SITUATIONS[name])} | {states:,} | {transitions:,} |"
        for name, (states, transitions) in counts.items()
    ]
    mistakes = [
        f"| {name} | {each.situation.direction}, {each.situation.travel} | "
        f"{' '.join((each.make.__doc__ or '').split())} | {each.promise} |"
        for name, each in MISUNDERSTANDINGS.items()
    ]
    checks = CHECKS.format(
        promises=_listed(promises),
        always=_listed(promise.meaning for each in whole for promise in each.always),
        without_the_engine=_listed(promise.meaning for each in whole for promise in each.without_the_engine),
        at_rest=_listed(promise.meaning for each in whole for promise in each.at_rest),
        counts="\n".join(rows),
        mistakes="\n".join(mistakes),
    )
    text = "\n\n".join(" ".join(part.split()) for part in modelled.strip().split("\n\n"))
    return "\n".join([*lines, "## What is modelled\n", text.replace("``", "`"), "", checks])


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, and write the page."""
    parser = argparse.ArgumentParser(prog="spec conversation", description="write the page of the conversation")
    parser.add_argument("--output", type=Path, default=Path("docs/conversation.md"), metavar="FILE")
    options = parser.parse_args(argv)
    found = {name: Explorer(conversation(each), name).run() for name, each in SITUATIONS.items()}
    broken = [str(each) for each in found.values() if each.violation is not None]
    if broken:
        parser.error("\n".join(broken))
    counts = {name: (each.states, each.transitions) for name, each in found.items()}
    options.output.write_text(page(counts), encoding="utf-8")
