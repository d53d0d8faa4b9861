"""A machine as a self-contained SVG: no script, no font of its own, nothing fetched, the same bytes every time.

The picture brings its own ground and follows the reader's preference for light or dark, so it is right on any page. Its
arrows and boxes carry the clauses they stand on as tooltips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from .lettering import (
    CHIP,
    LEGEND,
    NAME,
    RELEASE,
    STYLES,
    SUMMARY,
    TITLE,
    Line,
    Run,
    block_height,
    leading,
    text_width,
)
from .machine import Machine, Refusal, State, Transition
from .sketch import (
    CHIP_GAP,
    HAIRLINE,
    HEADING,
    MARGIN,
    NOTE_GAP,
    NOTE_INDENT,
    PADDING,
    Box,
    Layout,
    Path,
    Point,
    Rectangle,
    arrow_path,
    bundle_transitions,
    check_collisions,
    check_layout,
    chip_width,
    state_box,
)

NOTE_MEANINGS = {"stays": "stays in this state", "refuses": "refused: nothing changes"}

HEAD = 10
"""The length of an arrow's head."""

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, 'SF Mono', Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace"

# Each colour on light and on dark ground.
COLOURS = {
    "ground": ("#ffffff", "#12171e"),
    "edge": ("#d5dbe3", "#333c47"),
    "ink": ("#1b2129", "#e8edf3"),
    "muted": ("#5b6673", "#9aa6b3"),
    "line": ("#66717e", "#8f9baa"),
    "accent": ("#6d4ba8", "#bfa2f2"),
    "free": ("#1a7f3c", "#4cc471"),
    "free-ground": ("#eaf7ee", "#11291b"),
    "held": ("#2b66c4", "#6aa5f8"),
    "held-ground": ("#edf3fd", "#14253f"),
    "closing": ("#a86508", "#e0a63c"),
    "closing-ground": ("#fef5e2", "#30240e"),
    "refused": ("#9a5450", "#cf8f8a"),
}

TEXT_COLOURS = {
    "title": "ink", "summary": "muted", "name": "ink", "meaning": "ink", "event": "ink", "guard": "muted",
    "effect": "accent", "release-effect": "free", "note": "muted", "note-event": "ink", "note-guard": "muted",
    "note-effect": "accent", "refused": "refused", "legend": "muted",
}  # fmt: skip


def _colour_rules(dark: bool) -> Iterator[str]:
    colours = {name: pair[dark] for name, pair in COLOURS.items()}
    yield f".ground {{ fill: {colours['ground']}; stroke: {colours['edge']} }}"
    yield f".arrow {{ stroke: {colours['line']} }} .head, .dot {{ fill: {colours['line']} }}"
    yield f".arrow.release {{ stroke: {colours['free']} }} .head.release {{ fill: {colours['free']} }}"
    yield f".stays {{ stroke: {colours['muted']} }} .stays-head {{ fill: {colours['muted']} }}"
    yield f".refuses {{ stroke: {colours['refused']} }}"
    for name, colour in TEXT_COLOURS.items():
        yield f".{name} {{ fill: {colours[colour]} }}"
    for tone in ("free", "held", "closing"):
        yield f".{tone}.box {{ fill: {colours[f'{tone}-ground']}; stroke: {colours[tone]} }}"
        yield f".{tone}.hairline {{ stroke: {colours[tone]} }} .{tone}.has {{ fill: {colours[tone]} }}"
        yield f".{tone}.has, .{tone}.lacks {{ stroke: {colours[tone]} }} .{tone}.chip {{ fill: {colours[tone]} }}"
        yield f".{tone}.chip.on {{ fill: {colours['ground']} }}"


def style_sheet() -> str:
    """The style of every picture: shapes and fonts, the light colours, the dark ones where the reader prefers them."""
    rules = [
        f"text {{ font-family: {SANS} }}",
        ".ground { stroke-width: 1 } .box { stroke-width: 1.5 } .hairline { stroke-width: 1; opacity: .28 }",
        ".arrow { fill: none; stroke-width: 1.5 } .arrow.release { stroke-width: 2.5 }",
        ".reach { fill: none; stroke: #000; stroke-opacity: 0; stroke-width: 16; pointer-events: stroke }",
        ".stays, .refuses { fill: none; stroke-width: 1.4 } .has, .lacks { stroke-width: 1.2 }",
        ".lacks { fill: none; stroke-dasharray: 3 2.5; opacity: .6 } .chip.off { opacity: .75 }",
    ]
    for style in STYLES:
        family = f"font-family: {MONO}; " if style.monospaced else ""
        weight = "font-weight: 600; " if style.bold else ""
        rules.append(f".{style.name} {{ {family}{weight}font-size: {number(style.size)}px }}")
    dark = " ".join(_colour_rules(True))
    return "\n".join([*rules, *_colour_rules(False), f"@media (prefers-color-scheme: dark) {{ {dark} }}"])


def number(value: float) -> str:
    """A coordinate, in as few digits as it needs."""
    return f"{round(value, 2):g}"


def element(tag: str, content: str | None = None, **attributes: object) -> str:
    """An SVG element around ``content``, which is already escaped; ``text_anchor`` is written text-anchor."""
    written = ""
    for name, value in attributes.items():
        text = number(value) if isinstance(value, (int, float)) else escape(str(value))
        written += f' {name.rstrip("_").replace("_", "-")}="{text}"'
    return f"<{tag}{written}/>" if content is None else f"<{tag}{written}>{content}</{tag}>"


def text_line(line: Line, x: float, y: float, anchor: str = "start") -> str:
    """A line of text on the baseline ``y``; neighbouring runs of one style become one span."""
    spans = []
    for style, runs in groupby(line, key=lambda run: run.style):
        spans.append(element("tspan", escape(" ".join(run.text for run in runs), quote=False), class_=style.name))
    place = {"text_anchor": anchor} if anchor != "start" else {}
    return element("text", " ".join(spans), x=x, y=y, **place)


def text_block(lines: Sequence[Line], x: float, top: float, anchor: str = "start") -> Iterator[str]:
    """Lines under each other, beginning at ``top``."""
    for line in lines:
        if line:
            yield text_line(line, x, top + leading(line) - 5, anchor)
        top += leading(line)


def rounded(area: Rectangle, radius: float, css: str) -> str:
    """A rectangle with round corners."""
    width, height = area.right - area.left, area.bottom - area.top
    return element("rect", x=area.left, y=area.top, width=width, height=height, rx=radius, class_=css)


def icon(kind: str, x: float, y: float) -> str:
    """The small sign before a note, its middle at (x, y): a turn for what stays, a barred ring for what is refused."""
    if kind == "stays":
        turn = f"M{number(x - 1.9)} {number(y - 4.2)}A4.6 4.6 0 1 0 {number(x + 3.3)} {number(y - 3.2)}"
        head = f"M{number(x + 1)} {number(y - 5.7)}l5.1 0.8l-3.7 4Z"
        return element("path", d=turn, class_="stays") + element("path", d=head, class_="stays-head")
    bar = f"M{number(x - 3.3)} {number(y + 3.3)}L{number(x + 3.3)} {number(y - 3.3)}"
    return element("circle", cx=x, cy=y, r=4.7, class_="refuses") + element("path", d=bar, class_="refuses")


def chip(fact: str, holds: bool, right: float, top: float, tone: str) -> str:
    """A fact of a state: filled where it holds, hollow where not."""
    left = right - chip_width(fact)
    shape = rounded(Rectangle(left, top, right, top + 17), 8.5, f"{tone} {'has' if holds else 'lacks'}")
    css = f"{CHIP.name} {tone} {'on' if holds else 'off'}"
    label = element("text", escape(fact), x=(left + right) / 2, y=top + 12.2, text_anchor="middle", class_=css)
    return shape + label


def draw_box(machine: Machine, box: Box) -> str:
    """A state: name and chips, meaning, a hairline, notes."""
    state, area, tone = box.state, box.area, box.place.tone
    parts = [element("title", escape(state_tooltip(machine, state), quote=False)), rounded(area, 11, f"{tone} box")]
    left, y = area.left + PADDING, area.top + PADDING - 3
    parts += text_block([[Run(state.name, NAME)]], left, y)
    edge = area.right - PADDING + 3
    for fact, holds in reversed(box.chips):
        parts.append(chip(fact, holds, edge, y + 0.5, tone))
        edge -= chip_width(fact) + CHIP_GAP
    y += NAME.leading + 4
    parts += text_block(box.meaning, left, y)
    y += block_height(box.meaning)
    if box.notes:
        line = f"M{number(area.left + PADDING)} {number(y + 9)}H{number(area.right - PADDING)}"
        parts.append(element("path", d=line, class_=f"{tone} hairline"))
        y += HAIRLINE
    for kind, lines in box.notes:
        parts.append(icon(kind, left + 6, y + 8.5))
        parts += text_block(lines, left + NOTE_INDENT, y)
        y += block_height(lines) + NOTE_GAP
    return element("g", "\n" + "\n".join(parts) + "\n")


def draw_way(points: Sequence[Point], css: str) -> str:
    """A line with round corners from the first point to the last, where its head touches."""
    commands = [f"M{number(points[0][0])} {number(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(14.0, _distance(before, corner) / 2, _distance(corner, after) / 2)
        (x1, y1), (x2, y2) = _towards(corner, before, radius), _towards(corner, after, radius)
        commands.append(f"L{number(x1)} {number(y1)}Q{number(corner[0])} {number(corner[1])} {number(x2)} {number(y2)}")
    tip = points[-1]
    neck = _towards(tip, points[-2], HEAD - 2)
    commands.append(f"L{number(neck[0])} {number(neck[1])}")
    back = _towards(tip, points[-2], HEAD)
    across_x, across_y = (back[1] - tip[1]) / HEAD * 4.6, (tip[0] - back[0]) / HEAD * 4.6
    head = (
        f"M{number(tip[0])} {number(tip[1])}L{number(back[0] + across_x)} {number(back[1] + across_y)}"
        f"L{number(neck[0])} {number(neck[1])}L{number(back[0] - across_x)} {number(back[1] - across_y)}Z"
    )
    way = " ".join(commands)
    return (
        element("path", d=way, class_="reach")
        + element("path", d=way, class_=f"arrow{css}")
        + element("path", d=head, class_=f"head{css}")
    )


def _distance(one: Point, other: Point) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _towards(start: Point, end: Point, distance: float) -> Point:
    """The point ``distance`` away from ``start`` on the (axis-parallel) way to ``end``."""
    share = distance / _distance(start, end)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def draw_path(machine: Machine, path: Path) -> str:
    """An arrow and its label, which has a ground of its own where it lies on the arrow."""
    parts = [element("title", escape(path_tooltip(machine, path), quote=False))]
    parts.append(draw_way(path.points, " release" if path.stands_out else ""))
    area = path.label_area
    if path.covered:
        parts.append(rounded(path.label_room(), 9, "free box" if path.stands_out else "ground"))
    x = {"start": area.left, "middle": (area.left + area.right) / 2, "end": area.right}[path.anchor]
    parts += text_block(path.label, x, area.top, path.anchor)
    return element("g", "\n" + "\n".join(parts) + "\n")


def draw_start(box: Box) -> str:
    """The mark of the initial state: a dot, from which an arrow enters the box."""
    way = box.start()
    meaning = element("title", escape(f"{box.state.name} is the initial state", quote=False))
    return element("g", meaning + element("circle", cx=way[0][0], cy=way[0][1], r=6, class_="dot") + draw_way(way, ""))


def rule_words(rule: Transition | Refusal) -> str:
    """A rule and its clause in one line of plain text."""
    guard = f" [{', '.join(rule.when)}]" if rule.when else ""
    if isinstance(rule, Refusal):
        return f"refuses {rule.event}{guard}: {rule.error} ({rule.clause})"
    effects = f" / {', '.join(rule.effects)}" if rule.effects else ""
    return f"{rule.event}{guard}{effects} ({rule.clause})"


def state_tooltip(machine: Machine, state: State) -> str:
    """What a state means, what leaves it as it is, what it refuses, each with its clause."""
    rules = [rule for rule in machine.transitions if rule.source == state.name == rule.target]
    refusals = [rule for rule in machine.refusals if rule.source == state.name]
    return "\n".join(
        [
            f"{state.name}: {state.meaning} ({state.clause})",
            *(f"stays on {rule_words(rule)}" for rule in rules),
            *map(rule_words, refusals),
        ]
    )


def path_tooltip(machine: Machine, path: Path) -> str:
    """The transitions of an arrow with their clauses, then what their events mean."""
    taken = {transition.event for transition in path.transitions}
    return "\n".join(
        [
            path.name.replace("->", "→"),
            *map(rule_words, path.transitions),
            *(f"{event.name}: {event.meaning}" for event in machine.events if event.name in taken),
        ]
    )


def draw_legend(machine: Machine, layout: Layout, top: float) -> tuple[list[str], float]:
    """What the colours and signs of this picture mean, in as many lines as it takes; also gives the bottom."""
    boxes = [state_box(machine, state, layout) for state in machine.states]
    kinds = {kind for box in boxes for kind, _ in box.notes}
    entries: list[tuple[str, str]] = [(tone, meaning) for tone, meaning in layout.tones.items()]
    stands_out = any(
        all(layout.release[0] in transition.effects for transition in bundle)
        for bundle in bundle_transitions(machine).values()
    )
    entries.append(("release" if stands_out else "release-effect", layout.release[1]))
    if layout.chips:
        entries.append(("chips", "reference still there, or gone"))
    entries += [(kind, meaning) for kind, meaning in NOTE_MEANINGS.items() if kind in kinds]
    parts: list[str] = []
    x, y = float(MARGIN), top
    for sign, meaning in entries:
        sign_width = {"chips": 52, "release": 32}.get(sign, 23)
        width = sign_width + 0.94 * text_width(meaning, LEGEND)
        if x + width > layout.width - MARGIN and x > MARGIN:
            x, y = MARGIN, y + LEGEND.leading
        parts.append(_legend_sign(sign, x, y))
        parts += text_block([[Run(meaning, LEGEND)]], x + sign_width, y - 3)
        x += width + 18
    return parts, y + LEGEND.leading


def _legend_sign(sign: str, x: float, y: float) -> str:
    if sign in ("stays", "refuses"):
        return icon(sign, x + 8, y + 12)
    if sign == "release":
        return draw_way([(x, y + 12), (x + 24, y + 12)], " release")
    if sign == "release-effect":
        return text_line([Run("→", RELEASE)], x, y + 16)
    if sign == "chips":
        has = rounded(Rectangle(x, y + 5, x + 20, y + 19), 7, "held has")
        return has + rounded(Rectangle(x + 24, y + 5, x + 44, y + 19), 7, "held lacks")
    return rounded(Rectangle(x, y + 5, x + 15, y + 19), 4, f"{sign} box")


def draw(machine: Machine, layout: Layout) -> str:
    """The picture of a machine.

    Raises
    ------
    Mismatch
        The layout lacks a state or an arrow of the machine, or has one that the machine does not have.
    Collision
        Two parts of the picture overlap, or one leaves it.
    """
    check_layout(machine, layout)
    boxes = {state.name: state_box(machine, state, layout) for state in machine.states}
    paths = [arrow_path(machine, bundle, boxes, layout) for bundle in bundle_transitions(machine)]
    areas = [box.area for box in boxes.values()] + [path.label_room() for path in paths]
    areas += [piece for path in paths for piece in path.pieces()]
    foot = max(area.bottom for area in areas) + 24
    legend, bottom = draw_legend(machine, layout, foot)
    height = bottom + 14
    room = Rectangle(MARGIN / 2, HEADING, layout.width - MARGIN / 2, foot)
    check_collisions(machine, room, boxes.values(), paths)
    title = machine.name.replace("_", " ").capitalize()
    initial = boxes[machine.initial]
    parts = [
        element("title", escape(f"The {machine.name.replace('_', ' ')} machine", quote=False), id="title"),
        element("desc", escape(machine.meaning, quote=False), id="description"),
        element("style", f"\n{style_sheet()}\n"),
        rounded(Rectangle(0.5, 0.5, layout.width - 0.5, height - 0.5), 14, "ground"),
        text_line([Run(title, TITLE)], MARGIN, 44),
        text_line([Run(machine.meaning, SUMMARY)], MARGIN, 69),
        draw_start(initial),
        *(draw_path(machine, path) for path in paths),
        *(draw_box(machine, box) for box in boxes.values()),
        *legend,
    ]
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {number(layout.width)} {number(height)}",
        "width": layout.width,
        "height": height,
        "role": "img",
        "aria-labelledby": "title description",
    }
    return element("svg", "\n" + "\n".join(parts) + "\n", **attributes) + "\n"
