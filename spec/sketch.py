"""Where everything in a diagram goes: the :class:`Layout` laid down by hand, the boxes and arrows that follow from it.

A picture is refused rather than drawn wrongly: :class:`Mismatch` when the layout and the machine do not name the same
things, :class:`Collision` when two parts of the picture would overlap or a text would leave its box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import fsum  # exact, so that every version of Python draws the same

from .lettering import (
    CHIP,
    MEANING,
    NAME,
    NOTE,
    NOTE_EFFECT,
    NOTE_EVENT,
    NOTE_GUARD,
    REFUSED,
    Line,
    Run,
    block_height,
    effect_runs,
    flow,
    guard_runs,
    label_lines,
    line_width,
    listed,
    text_width,
    words,
)
from .machine import Machine, State, Transition

Point = tuple[float, float]

PADDING = 15
"""Between the edge of a box and its words."""
HAIRLINE = 17
"""The room of the line between a state's meaning and its notes."""
NOTE_INDENT = 20
"""The room of the sign before a note."""
NOTE_GAP = 3
CHIP_GAP = 5
LABEL_PADDING = 7
"""Between the words of a label that lies on its arrow and the edge of its ground."""
MARGIN = 28
"""Between the edge of the picture and what it shows."""
HEADING = 84
"""Where the title ends."""
MARK = 34
"""The length of the arrow that marks the initial state."""


class Mismatch(Exception):
    """A layout and its machine do not name the same states, arrows or effects."""


class Collision(Exception):
    """Two parts of a picture overlap, or a part leaves its room."""


@dataclass(frozen=True)
class Place:
    """Where a state's box stands (left, top) and how wide it is; its height follows from what it says.

    ``tone`` is what the state means for memory: ``"free"``, ``"held"`` or ``"closing"``.
    """

    left: float
    top: float
    width: float
    tone: str


@dataclass(frozen=True)
class Arrow:
    """The way of one arrow, at right angles, through at least one point that lies straight across from each box.

    The label stands ``side`` (above, below, left, right) of the point ``label``, or ``"on"`` it, in lines no longer
    than ``width``.
    """

    through: tuple[Point, ...]
    label: Point
    side: str
    width: float


@dataclass(frozen=True)
class Layout:
    """How one machine is drawn.

    ``tones`` says in words what each tone means here; ``release`` names the effect that stands out, and its meaning;
    ``chips`` the facts shown as filled or hollow in each box, for a machine whose state is a function of facts.
    """

    width: float
    places: Mapping[str, Place]
    arrows: Mapping[tuple[str, str], Arrow]
    tones: Mapping[str, str]
    release: tuple[str, str]
    chips: tuple[str, ...] = ()


def check_layout(machine: Machine, layout: Layout) -> None:
    """Raise :class:`Mismatch`, naming everything that the layout lacks or has too much."""
    states = {state.name for state in machine.states}
    bundles = set(bundle_transitions(machine))
    effects = {effect.name for effect in machine.effects}
    facts = {fact for state in machine.states for fact in state.signature}
    tones = {place.tone for place in layout.places.values()}
    complaints = [
        *(f"state {name} has no place" for name in sorted(states - set(layout.places))),
        *(f"there is a place for {name}, which is no state" for name in sorted(set(layout.places) - states)),
        *(f"{source} -> {target} has no arrow" for source, target in sorted(bundles - set(layout.arrows))),
        *(
            f"there is an arrow {source} -> {target}, which no transition takes"
            for source, target in sorted(set(layout.arrows) - bundles)
        ),
        *(f"the legend does not say what {tone} means" for tone in sorted(tones - set(layout.tones))),
        *(f"the legend explains {tone}, which no state has" for tone in sorted(set(layout.tones) - tones)),
        *(f"the effect {name} is to stand out and does not exist" for name in {layout.release[0]} - effects),
        *(f"the chip {name} is no fact of any state" for name in sorted(set(layout.chips) - facts)),
    ]
    if complaints:
        raise Mismatch(f"{machine.name}: " + "; ".join(complaints))


def bundle_transitions(machine: Machine) -> dict[tuple[str, str], list[Transition]]:
    """The transitions that change the state, by source and target: each entry is one arrow."""
    bundles: dict[tuple[str, str], list[Transition]] = {}
    for transition in machine.transitions:
        if transition.source != transition.target:
            bundles.setdefault((transition.source, transition.target), []).append(transition)
    return bundles


@dataclass(frozen=True)
class Rectangle:
    """An axis-parallel rectangle, by its corners."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Rectangle) -> bool:
        """Whether the two share more than an edge."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def grown(self, margin: float) -> Rectangle:
        """The same with ``margin`` more on every side."""
        return Rectangle(self.left - margin, self.top - margin, self.right + margin, self.bottom + margin)

    def edge_towards(self, point: Point) -> Point | None:
        """The point of the edge straight across from ``point``; none if it lies askew or inside."""
        x, y = point
        if self.left < x < self.right and not self.top <= y <= self.bottom:
            return x, self.top if y < self.top else self.bottom
        if self.top < y < self.bottom and not self.left <= x <= self.right:
            return self.left if x < self.left else self.right, y
        return None


@dataclass
class Box:
    """A state as it is drawn: place, facts, lines, and notes, each with the sign that goes before it."""

    state: State
    place: Place
    chips: list[tuple[str, bool]]
    meaning: list[Line]
    notes: list[tuple[str, list[Line]]]
    area: Rectangle = field(init=False)

    def __post_init__(self) -> None:
        height = 2 * PADDING + NAME.leading + block_height(self.meaning)
        if self.notes:
            height += HAIRLINE + fsum(block_height(lines) + NOTE_GAP for _, lines in self.notes) - NOTE_GAP
        left, top = self.place.left, self.place.top
        self.area = Rectangle(left, top, left + self.place.width, top + height)

    def start(self) -> list[Point]:
        """The arrow that marks this box as the initial state: from the dot to the edge."""
        return [(self.area.left + 36, self.area.top - MARK), (self.area.left + 36, self.area.top)]

    def overflow(self) -> list[str]:
        """The lines that are too long for the box."""
        room = self.place.width - 2 * PADDING
        beside = fsum(chip_width(fact) + CHIP_GAP for fact, _ in self.chips)
        lines = [([Run(self.state.name, NAME)], room - beside), *((line, room) for line in self.meaning)]
        lines += [(line, room - NOTE_INDENT) for _, note in self.notes for line in note]
        return [" ".join(run.text for run in line) for line, width in lines if line_width(line) > width]


@dataclass(frozen=True)
class Path:
    """An arrow as it is drawn: its corners from edge to edge, and its label, which may lie on it (``covered``)."""

    transitions: Sequence[Transition]
    points: Sequence[Point]
    label: Sequence[Line]
    label_area: Rectangle
    anchor: str
    covered: bool
    stands_out: bool

    @property
    def name(self) -> str:
        """What an error calls it."""
        return f"{self.transitions[0].source} -> {self.transitions[0].target}"

    def label_room(self) -> Rectangle:
        """The room the label takes, with its ground if it has one."""
        return self.label_area.grown(LABEL_PADDING) if self.covered else self.label_area

    def pieces(self) -> list[Rectangle]:
        """The room each straight piece takes."""
        return [
            Rectangle(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)).grown(5)
            for (x1, y1), (x2, y2) in pairwise(self.points)
        ]


def chip_width(fact: str) -> float:
    """How wide the chip of a fact is."""
    return text_width(fact, CHIP) + 14


def state_box(machine: Machine, state: State, layout: Layout) -> Box:
    """A state's box: its meaning, what leaves it as it is, what it refuses."""
    place = layout.places[state.name]
    room = place.width - 2 * PADDING
    notes = []
    stays = [t for t in machine.transitions if t.source == state.name == t.target]
    by_kind: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for transition in sorted(stays, key=lambda t: (bool(t.when), bool(t.effects))):
        by_kind.setdefault((transition.when, transition.effects), []).append(transition.event)
    for (when, effects), events in by_kind.items():
        lines = flow([*listed(events, NOTE_EVENT), *guard_runs(when, NOTE_GUARD)], room - NOTE_INDENT)
        lines += flow(effect_runs(effects, NOTE_EFFECT, layout.release[0]), room - NOTE_INDENT)
        notes.append(("stays", lines))
    refused: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for refusal in machine.refusals:
        if refusal.source == state.name:
            refused.setdefault((refusal.when, refusal.error), []).append(refusal.event)
    for (when, error), events in refused.items():
        names = listed(events, NOTE_EVENT, end="" if when else ":")
        guard = guard_runs(when, NOTE_GUARD, end=":")
        lines = flow([Run("refuses", NOTE), *names, *guard], room - NOTE_INDENT)
        notes.append(("refuses", [*lines, [Run(error, REFUSED)]]))
    chips = [(fact, state.signature.get(fact, False)) for fact in layout.chips]
    return Box(state, place, chips, flow(words(state.meaning, MEANING), room), notes)


def arrow_path(machine: Machine, bundle: tuple[str, str], boxes: Mapping[str, Box], layout: Layout) -> Path:
    """An arrow from edge to edge, with its label where the layout wants it."""
    transitions = bundle_transitions(machine)[bundle]
    hint = layout.arrows[bundle]
    first = boxes[bundle[0]].area.edge_towards(hint.through[0])
    last = boxes[bundle[1]].area.edge_towards(hint.through[-1])
    if first is None or last is None:
        raise Mismatch(f"{machine.name}: the arrow {' -> '.join(bundle)} is not straight across from its boxes")
    points = [first, *hint.through, last]
    if any(x1 != x2 and y1 != y2 for (x1, y1), (x2, y2) in pairwise(points)):
        raise Mismatch(f"{machine.name}: the arrow {' -> '.join(bundle)} is not drawn at right angles")
    release = layout.release[0]
    lines = label_lines(transitions, hint.width, release)
    area, anchor = _label_area(lines, hint)
    stands_out = all(release in transition.effects for transition in transitions)
    return Path(transitions, _without_flat_corners(points), lines, area, anchor, hint.side == "on", stands_out)


def _label_area(lines: Sequence[Line], hint: Arrow) -> tuple[Rectangle, str]:
    x, y = hint.label
    width, height = max(map(line_width, lines)), block_height(lines)
    if hint.side in ("above", "below", "on"):
        top = {"above": y - 10 - height, "below": y + 10, "on": y - height / 2}[hint.side]
        return Rectangle(x - width / 2, top, x + width / 2, top + height), "middle"
    top, bottom = y - height / 2, y + height / 2
    if hint.side == "right":
        return Rectangle(x + 13, top, x + 13 + width, bottom), "start"
    return Rectangle(x - 13 - width, top, x - 13, bottom), "end"


def _without_flat_corners(points: Sequence[Point]) -> list[Point]:
    """The points at which the way begins, ends or turns."""
    kept = [points[0]]
    for point, following in pairwise(points[1:]):
        before = kept[-1]
        if (before[0] == point[0]) != (point[0] == following[0]):
            kept.append(point)
    return [*kept, points[-1]]


def check_collisions(machine: Machine, canvas: Rectangle, boxes: Iterable[Box], paths: Iterable[Path]) -> None:
    """Raise :class:`Collision`, naming every two parts that overlap and every part that leaves its room."""
    complaints: list[str] = []
    parts: list[tuple[str, Rectangle]] = []
    joined: set[frozenset[str]] = set()
    for box in boxes:
        parts.append((f"the box {box.state.name}", box.area))
        complaints += [f"the text {text!r} does not fit into {parts[-1][0]}" for text in box.overflow()]
        if box.state.name == machine.initial:
            (x, y), (_, tip) = box.start()
            parts.append(("the mark of the initial state", Rectangle(x - 8, y - 8, x + 8, tip - 1)))
    for path in paths:
        arrow, label = f"the arrow {path.name}", f"the label of {path.name}"
        parts.append((label, path.label_room()))
        parts += [(arrow, piece) for piece in path.pieces()]
        ends = {path.transitions[0].source, path.transitions[0].target}
        joined |= {frozenset({arrow}), frozenset({arrow, label}), *(frozenset({arrow, f"the box {e}"}) for e in ends)}
    for (name, area), (other_name, other_area) in combinations(parts, 2):
        if frozenset({name, other_name}) not in joined and area.overlaps(other_area):
            complaints.append(f"{name} and {other_name} overlap")
    for name, area in parts:
        inside = canvas.left <= area.left and area.right <= canvas.right
        if not (inside and canvas.top <= area.top and area.bottom <= canvas.bottom):
            complaints.append(f"{name} leaves the picture")
    if complaints:
        raise Collision(f"{machine.name}: " + "; ".join(dict.fromkeys(complaints)))
