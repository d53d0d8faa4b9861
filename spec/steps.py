"""What a protocol is made of: words, atomic operations, steps, and the parties that take them.

As :mod:`.machine` is to :mod:`.lifecycle`, so this is to :mod:`.protocol`: data, and the checks that it makes sense.
Each :class:`Step` is one atomic operation on one word. What a party decides, it decides together with the operation
whose result it decides by, and from nothing but that result and its own registers; :class:`Protocol` refuses anything
else.

Expressions are Python's, of integers, over names: the role's registers; words that nobody else writes; ``me``, the
party's bit; ``found``, what the operation found in its word; ``swapped``, whether a compare-and-swap has swapped. What
a call waits for, and what promises and ghost words say, may name every word: they are no part of what the parties do.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

#: Where a party stands that does nothing, and where one stands that has died.
IDLE, GONE = "idle", "gone"


@dataclass(frozen=True)
class Word:
    """A shared word: who alone writes it (empty: several do), and what stands in it; ``ghost`` if for checks alone."""

    name: str
    writer: str
    meaning: str
    initial: int = 0
    ghost: bool = False


# ---------------------------------------------------------------- operations


@dataclass(frozen=True)
class Load:
    """Read the word."""

    word: str


@dataclass(frozen=True)
class Store:
    """Write the word."""

    word: str
    value: str


@dataclass(frozen=True)
class FetchOr:
    """Set bits of the word."""

    word: str
    bits: str


@dataclass(frozen=True)
class FetchClear:
    """Clear bits of the word."""

    word: str
    bits: str


@dataclass(frozen=True)
class FetchAdd:
    """Add to the word."""

    word: str
    by: int


@dataclass(frozen=True)
class CompareAndSwap:
    """Write ``desired`` if the word has the value ``expected``; then ``swapped`` holds."""

    word: str
    expected: str
    desired: str


Operation = Load | Store | FetchOr | FetchClear | FetchAdd | CompareAndSwap


def result_of(operation: Operation) -> str | None:
    """The expression for what stands in the word afterwards; None where the word stays as it is."""
    if isinstance(operation, Store):
        return operation.value
    if isinstance(operation, FetchOr):
        return f"found | ({operation.bits})"
    if isinstance(operation, FetchClear):
        return f"found & ~({operation.bits})"
    if isinstance(operation, FetchAdd):
        return f"found + {operation.by}"
    if isinstance(operation, CompareAndSwap):
        return f"({operation.desired}) if found == ({operation.expected}) else found"
    return None


# ---------------------------------------------------------------- steps


@dataclass(frozen=True)
class Promise:
    """What must hold when a step ends in a certain way."""

    condition: str
    meaning: str


@dataclass(frozen=True)
class Go:
    """Where the role goes after a step if ``when`` holds, judged after the operation.

    ``sets`` assigns registers and ghost words, all at once.
    """

    to: str
    when: str = "1"
    sets: Mapping[str, str] = field(default_factory=dict, hash=False)
    promises: tuple[Promise, ...] = ()


@dataclass(frozen=True)
class Step:
    """One atomic operation. The first of ``goes`` whose condition holds is taken.

    ``pairs_with`` names the steps of others whose order against this one decides something. ``may_end_at`` is where the
    role goes if it gives up here instead: its deadline has passed, or the link was broken off.
    """

    name: str
    operation: Operation
    goes: tuple[Go, ...]
    reason: str
    clause: str
    pairs_with: tuple[str, ...] = ()
    may_end_at: str | None = None


#: What a crash does to what only the checks see: the kernel can tell it, and nothing is claimed of the dead.
CRASH = {"crashed": "crashed | me", "confirmed": "confirmed & ~me", "writing": "writing & ~me"}


@dataclass(frozen=True)
class Call:
    """What makes an idle role begin; its first step is taken at once.

    ``bits`` are the parties that make it; all of the role, if none is given. A ``timed`` one comes by itself in time;
    any other may never come.
    """

    name: str
    first: str
    when: str = "1"
    sets: Mapping[str, str] = field(default_factory=dict, hash=False)
    bits: tuple[int, ...] = ()
    timed: bool = False


@dataclass(frozen=True)
class Role:
    """A kind of party: its registers, what makes it begin, and its steps. There is one party for each of ``bits``."""

    name: str
    registers: tuple[str, ...]
    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    bits: tuple[int, ...] = (0,)
    mortal: bool = False

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def live_registers(self) -> dict[str, frozenset[str]]:
        """For each step the registers whose values can still matter when it is about to be taken."""
        live = {step.name: frozenset[str]() for step in self.steps} | {IDLE: frozenset(), GONE: frozenset()}
        while True:
            now = live | {step.name: self._read_from(step, live) for step in self.steps}
            if now == live:
                return live
            live = now

    def _read_from(self, step: Step, live: Mapping[str, frozenset[str]]) -> frozenset[str]:
        read = names_in(result_of(step.operation) or "0")
        for go in step.goes:
            read |= names_in(go.when) | (live[go.to] - set(go.sets))
            read |= {name for value in go.sets.values() for name in names_in(value)}
            read |= {name for promise in go.promises for name in names_in(promise.condition)}
        if step.may_end_at is not None:
            read |= live[step.may_end_at]
        return frozenset(read & set(self.registers))


@dataclass(frozen=True)
class Configuration:
    """What a check lets happen.

    ``requests`` are what each of the peers asks for, again and again. ``evictions`` are the bits of those that may be
    evicted. ``leases`` gives key 1 a lease. ``repeats`` lets the owner deallocate a cache again and again, and others
    ask by its id for one that is closed: each such call is harmless, but without an end to them the owner's timer might
    never get its turn, or never find the slot unpinned.
    """

    generations: int = 3
    levels: int = 2
    requests: tuple[tuple[str, ...], tuple[str, ...]] = (
        ("pull_key_1", "pull_tensor_1"),
        ("pull_key_1", "pull_tensor_2"),
    )
    views: bool = False
    evictions: tuple[int, ...] = ()
    removals: bool = True
    leases: bool = False
    repeats: bool = True
    crashes: bool = True


@dataclass(frozen=True)
class Protocol:
    """Words, roles, and what must hold whenever every role is idle and nothing is left to notice or to reap."""

    words: tuple[Word, ...]
    roles: tuple[Role, ...]
    at_rest: tuple[Promise, ...]
    configuration: Configuration

    def __post_init__(self) -> None:
        for role in self.roles:
            self._check(role)

    def _check(self, role: Role) -> None:
        names = [step.name for step in role.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"{role.name}: two steps have one name")
        ghosts = {word.name for word in self.words if word.ghost}
        written = {word.name for word in self.words if word.writer in ("", role.name)} - ghosts
        readable = {word.name for word in self.words if word.writer == role.name}
        readable |= {*role.registers, "found", "swapped", "me"}
        for step in role.steps:
            result = result_of(step.operation)
            texts = ["0" if result is None else result, *(go.when for go in step.goes)]
            texts += [value for go in step.goes for name, value in go.sets.items() if name not in ghosts]
            targets = {go.to for go in step.goes} | ({step.may_end_at} if step.may_end_at is not None else set())
            wrong = targets - {*names, IDLE} | {name for text in texts for name in names_in(text)} - readable
            wrong |= {name for go in step.goes for name in go.sets} - ghosts - set(role.registers)
            wrong |= {step.operation.word} - (written if result is not None else {word.name for word in self.words})
            if wrong:
                raise ValueError(f"{role.name}: {step.name} is not one operation of its own, for {sorted(wrong)}")
            if step.goes[-1].when != "1" or not step.reason or not step.clause:
                raise ValueError(f"{role.name}: {step.name} may get stuck, or says no reason")

    def role(self, name: str) -> Role:
        """The role of that name."""
        return next(role for role in self.roles if role.name == name)

    def instances(self) -> Iterator[tuple[str, Role, int]]:
        """Everybody who takes part: his name, role and pin bit."""
        for role in self.roles:
            for number, bit in enumerate(role.bits, 1):
                yield (role.name if len(role.bits) == 1 else f"{role.name}_{number}"), role, bit

    def with_steps(self, role_name: str, *changed: Step) -> Protocol:
        """The protocol with some steps of a role replaced."""
        by_name = {step.name: step for step in changed}
        role = self.role(role_name)
        steps = tuple(by_name.get(step.name, step) for step in role.steps)
        new = replace(role, steps=steps)
        return replace(self, roles=tuple(new if each is role else each for each in self.roles))


def names_in(expression: str) -> frozenset[str]:
    """The names that an expression reads."""
    return frozenset(node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name))
