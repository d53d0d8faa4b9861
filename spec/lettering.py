"""The lettering of the diagrams: kinds of text, how wide it comes out, how it breaks into lines.

Nothing is measured by a renderer. Widths are estimated on the generous side, so that a picture is the same wherever it
is made and its words fit in whatever font the reader has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import fsum  # exact, so that every version of Python draws the same

from .machine import Transition


@dataclass(frozen=True)
class Style:
    """A kind of text: its CSS class, size, whether every character is equally wide, and the height of its line."""

    name: str
    size: float
    leading: float
    monospaced: bool = False
    bold: bool = False


TITLE = Style("title", 22, 30, bold=True)
SUMMARY = Style("summary", 15, 22)
NAME = Style("name", 15, 20, bold=True)
MEANING = Style("meaning", 13, 18)
EVENT = Style("event", 13, 18, monospaced=True, bold=True)
GUARD = Style("guard", 12.5, 18, monospaced=True)
EFFECT = Style("effect", 12.5, 17)
RELEASE = Style("release-effect", 12.5, 17, bold=True)
NOTE = Style("note", 12, 17)
NOTE_EVENT = Style("note-event", 12, 17, monospaced=True)
NOTE_GUARD = Style("note-guard", 12, 17, monospaced=True)
NOTE_EFFECT = Style("note-effect", 12, 17)
REFUSED = Style("refused", 11, 17, monospaced=True)
CHIP = Style("chip", 11, 14, monospaced=True)
LEGEND = Style("legend", 12.5, 24)

STYLES = (
    TITLE, SUMMARY, NAME, MEANING, EVENT, GUARD, EFFECT, RELEASE,
    NOTE, NOTE_EVENT, NOTE_GUARD, NOTE_EFFECT, REFUSED, CHIP, LEGEND,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A few characters of one style, never broken over two lines."""

    text: str
    style: Style


Line = list[Run]


def text_width(text: str, style: Style) -> float:
    """How wide ``text`` may come out: at least as wide as in the wide ones of the fonts readers have."""
    if style.monospaced:
        return 0.61 * style.size * len(text)
    return style.size * (1.1 if style.bold else 1) * fsum(map(_character_width, text))


def _character_width(character: str) -> float:
    if character in " .,:;'|!()[]fijlrtI":
        return 0.39
    if character in "mwMW_@%→":
        return 0.95
    return 0.73 if character.isupper() else 0.62


def line_width(line: Line) -> float:
    """The width of the runs with a space between each two."""
    spaces = fsum(text_width(" ", run.style) for run in line[1:])
    return spaces + fsum(text_width(run.text, run.style) for run in line)


def words(text: str, style: Style) -> Line:
    """A sentence, to be broken between any two words."""
    return [Run(word, style) for word in text.split()]


def flow(runs: Iterable[Run], width: float) -> list[Line]:
    """Break runs into lines that are no longer than ``width``, or hold a single run."""
    lines: list[Line] = []
    for run in runs:
        if lines and line_width([*lines[-1], run]) <= width:
            lines[-1].append(run)
        else:
            lines.append([run])
    return lines


def block_height(lines: Sequence[Line]) -> float:
    """The height of lines under each other; an empty line is a small gap."""
    return fsum(leading(line) for line in lines)


def leading(line: Line) -> float:
    """The height of one line."""
    return max((run.style.leading for run in line), default=6)


def listed(names: Sequence[str], style: Style, *, end: str = "") -> Line:
    """Names with commas between them; ``end`` closes the last."""
    return [*(Run(f"{name},", style) for name in names[:-1]), Run(names[-1] + end, style)]


def guard_runs(when: Sequence[str], style: Style, *, end: str = "") -> Line:
    """A guard as it stands in a diagram: in brackets, closed by ``end``."""
    return [Run(f"[{', '.join(when)}]{end}", style)] if when else []


def effect_runs(effects: Sequence[str], style: Style, release: str = "") -> Line:
    """Effects as words behind an arrow, each kept on one line; ``release`` is the one that stands out."""
    runs = []
    for effect in effects:
        arrow = "→ " if effect == effects[0] else ""
        comma = "" if effect == effects[-1] else ","
        runs.append(Run(arrow + effect.replace("_", " ") + comma, RELEASE if effect == release else style))
    return runs


def label_lines(transitions: Sequence[Transition], width: float, release: str) -> list[Line]:
    """The label of an arrow: events with guard, effects beneath; events that do the same share an entry."""
    lines: list[Line] = []
    for (when, effects), alike in groupby(transitions, key=lambda t: (t.when, t.effects)):
        if lines:
            lines.append([])
        lines += flow([*listed([t.event for t in alike], EVENT), *guard_runs(when, GUARD)], width)
        lines += flow(effect_runs(effects, EFFECT, release), width)
    return lines
