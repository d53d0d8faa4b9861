"""What a conversation between two processes is made of: variables, messages, turns, and the parties that take them.

As :mod:`.steps` is to :mod:`.protocol`, so this is to :mod:`.conversation`: data, and the checks that it makes sense.
A :class:`Turn` is what one party does at once: it takes the message at the head of its queue or sees something happen,
changes what it keeps, and sends messages. It decides by nothing but the message and what it keeps or can see itself;
:class:`Conversation` refuses anything else.

Expressions are Python's, of integers, over the names of variables and of constants (in capitals). Sets of items are
bits. ``n`` is the number of a transfer, ``i`` one item and ``k`` one stretch of bytes: a turn that names them stands
for one turn for each. ``items`` are those of the message that was taken. A variable kept for each transfer is written
``name[n]``; ``name[all]`` are the bits of all of them together, ``name[others]`` of all but ``n``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .steps import Promise, names_in

ASKER, OWNER, ENGINE, WORLD = "asker", "owner", "engine", "world"

#: The messages, and who takes each. Those about the bytes go with them, or against them.
RECEIVER, WRITER = "receiver", "writer"
TAKEN_BY = {
    "begin": OWNER,
    "begun": ASKER,
    "written": RECEIVER,
    "copied": WRITER,
    "finish": OWNER,
    "finished": ASKER,
    "abandon": OWNER,
}
KINDS = {kind: number for number, kind in enumerate(TAKEN_BY, 1)}

#: What stands for numbers, items and stretches.
INDICES = ("n", "i", "k", "all", "others")

#: When a turn that can be taken is taken: perhaps never; in time; in time if the engine ends what it has begun.
PERHAPS, IN_TIME, WITH_THE_ENGINE = "perhaps", "in time", "with the engine"


@dataclass(frozen=True)
class Variable:
    """What some party keeps: who may read and write it, and what it means.

    ``each`` makes it one variable for each transfer. A ``ghost`` is for the checks alone: nobody decides by it.
    """

    name: str
    kept_by: tuple[str, ...]
    meaning: str
    initial: str = "0"
    each: bool = False
    ghost: bool = False


@dataclass(frozen=True)
class Send:
    """Put a message at the end of the other party's queue."""

    kind: str
    items: str = "0"
    number: str = "n"


@dataclass(frozen=True)
class Way:
    """How a turn goes if ``when`` holds: what is set, all at once, and what is sent."""

    when: str = "1"
    sets: Mapping[str, str] = field(default_factory=dict, hash=False)
    sends: tuple[Send, ...] = ()
    promises: tuple[Promise, ...] = ()

    def decides_by(self) -> list[str]:
        """The expressions that the party itself works out, besides those that it sets something to."""
        return [self.when, *(text for send in self.sends for text in (send.items, send.number))]


@dataclass(frozen=True)
class Turn:
    """What a party does at once, if ``when`` holds and the message at the head of its queue is one that it ``takes``.

    It goes the first of ``ways`` whose condition holds.
    """

    party: str
    name: str
    when: str
    ways: tuple[Way, ...]
    reason: str
    clause: str
    takes: str = ""
    comes: str = IN_TIME

    def named(self) -> frozenset[str]:
        """Every name that occurs in it."""
        texts = [self.when, *(text for way in self.ways for text in way.decides_by())]
        for way in self.ways:
            texts += [*way.sets, *way.sets.values(), *(promise.condition for promise in way.promises)]
        return frozenset[str]().union(*map(names_in, texts))

    @property
    def of_each_transfer(self) -> bool:
        """Whether there is one such turn for each transfer."""
        return bool(self.takes) or "n" in self.named()

    @property
    def of_each_item(self) -> bool:
        """Whether there is one such turn for each item."""
        return "i" in self.named()

    @property
    def of_each_stretch(self) -> bool:
        """Whether there is one such turn for each stretch."""
        return "k" in self.named()


@dataclass(frozen=True)
class Situation:
    """What a check lets happen.

    ``direction`` is ``"pull"`` or ``"push"``; ``travel`` how the bytes do: ``"carried"`` on the messages, or
    ``"written"`` in so many ``stretches``, which are ``gathered`` before or written straight from where they are.
    ``items`` are asked for at once, ``calls`` times; ``together`` refuses all where one is refused. ``rebinding`` lets
    the owner bind a key that was dropped to another cache, ``impatience`` lets it end by itself what the asker takes
    too long about. ``rivals`` take keys, ``deaths`` are those of either end.
    """

    direction: str
    travel: str
    items: int = 1
    stretches: int = 1
    calls: int = 2
    together: bool = False
    gathered: bool = False
    rebinding: bool = False
    impatience: bool = False
    rivals: bool = True
    deaths: bool = True

    @property
    def receiver(self) -> str:
        """The party into whose memory the bytes go."""
        return ASKER if self.direction == "pull" else OWNER

    @property
    def writer(self) -> str:
        """The party that has the bytes, and whose engine writes them."""
        return OWNER if self.direction == "pull" else ASKER

    def taken_by(self, kind: str) -> str:
        """Who takes a kind of message."""
        return {RECEIVER: self.receiver, WRITER: self.writer}.get(TAKEN_BY[kind], TAKEN_BY[kind])


@dataclass(frozen=True)
class Conversation:
    """Variables, constants, turns, and what must hold: always, at rest, and where the engine alone is waited for."""

    variables: tuple[Variable, ...]
    constants: Mapping[str, int] = field(hash=False)
    turns: tuple[Turn, ...]
    always: tuple[Promise, ...]
    at_rest: tuple[Promise, ...]
    without_the_engine: tuple[Promise, ...]
    situation: Situation

    def __post_init__(self) -> None:
        names = [turn.name for turn in self.turns]
        if len(set(names)) != len(names):
            raise ValueError("two turns have one name")
        for turn in self.turns:
            self._check(turn)

    def _check(self, turn: Turn) -> None:
        ghosts = {variable.name for variable in self.variables if variable.ghost}
        kept = {variable.name for variable in self.variables if turn.party in variable.kept_by} - ghosts
        known = kept | {*self.constants, *INDICES} | ({"items"} if turn.takes else set())
        texts = [turn.when, *(text for way in turn.ways for text in way.decides_by())]
        texts += [value for way in turn.ways for name, value in way.sets.items() if base_name(name) not in ghosts]
        wrong = {name for text in texts for name in names_in(text)} - known
        wrong |= {base_name(name) for way in turn.ways for name in way.sets} - kept - ghosts
        if wrong:
            raise ValueError(f"{turn.party}: {turn.name} goes by what it cannot know, or sets it: {sorted(wrong)}")
        if turn.ways[-1].when != "1" or not turn.reason or not turn.clause:
            raise ValueError(f"{turn.party}: {turn.name} may get stuck, or says no reason")
        if turn.takes and self.situation.taken_by(turn.takes) != turn.party:
            raise ValueError(f"{turn.party}: {turn.name} takes a {turn.takes}, which is not for it")

    def turn(self, name: str) -> Turn:
        """The turn of that name."""
        return next(turn for turn in self.turns if turn.name == name)

    def with_turns(self, *changed: Turn) -> Conversation:
        """The conversation with some turns replaced."""
        by_name = {turn.name: turn for turn in changed}
        return replace(self, turns=tuple(by_name.get(turn.name, turn) for turn in self.turns))


def base_name(target: str) -> str:
    """The variable that a target of an assignment belongs to."""
    node = ast.parse(target, mode="eval").body
    return ast.unparse(node.value) if isinstance(node, ast.Subscript) else target
