"""The generated pictures and page: they say all that the machines say, cannot be drawn wrongly, and do not drift."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from llmdd.spec import lifecycle
from llmdd.spec.diagrams import LAYOUTS, drift, main, render
from llmdd.spec.lifecycle import BATCH_SLOT, CACHE, ENGINE, MACHINES
from llmdd.spec.machine import Effect, Event, Guard, Machine, Refusal, State, Transition
from llmdd.spec.machines_page import COMMAND, machines_page, split_rules
from llmdd.spec.sketch import (
    Arrow,
    Collision,
    Mismatch,
    Place,
    Point,
    Rectangle,
    arrow_path,
    bundle_transitions,
    check_collisions,
    state_box,
)
from llmdd.spec.svg import COLOURS, draw

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"

every_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)


def picture(machine: Machine) -> ElementTree.Element:
    return ElementTree.fromstring(draw(machine, LAYOUTS[machine.name]))


def rules_of(machine: Machine) -> list[Transition | Refusal]:
    return [*machine.transitions, *machine.refusals]


def shown_text(element: ElementTree.Element) -> str:
    """What a reader sees without pointing at anything."""
    return " ".join("".join(text.itertext()) for text in element.iter(f"{SVG}text"))


def tooltips(element: ElementTree.Element) -> str:
    return "\n".join(title.text or "" for title in element.iter(f"{SVG}title"))


def by_class(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [part for part in element.iter() if name in part.get("class", "").split()]


def redrawn(machine: Machine, **changes: object) -> str:
    """The picture of ``machine`` in its layout with some of that layout's fields changed."""
    return draw(machine, replace(LAYOUTS[machine.name], **changes))  # type: ignore[arg-type]


def with_arrow(machine: Machine, bundle: tuple[str, str], arrow: Arrow) -> str:
    return redrawn(machine, arrows={**LAYOUTS[machine.name].arrows, bundle: arrow})


# what the pictures say


@every_machine
def test_every_word_of_the_machine_is_shown(machine: Machine) -> None:
    text = shown_text(picture(machine))
    assert machine.meaning in text
    for state in machine.states:
        assert state.name in text
        assert all(word in text for word in state.meaning.split())
    for rule in rules_of(machine):
        assert re.search(rf"\b{rule.event}\b", text)
        assert not rule.when or f"[{', '.join(rule.when)}]" in text
    for transition in machine.transitions:
        assert all(effect.replace("_", " ") in text for effect in transition.effects)
    for refusal in machine.refusals:
        assert refusal.error in text


@every_machine
def test_every_clause_is_a_tooltip_of_its_state_or_arrow(machine: Machine) -> None:
    groups = {}
    for group in picture(machine).iter(f"{SVG}g"):
        title = group.findtext(f"{SVG}title") or ""
        groups[re.split(r":|\n", title)[0]] = title
    for state in machine.states:
        assert f"({state.clause})" in groups[state.name]
    for transition in machine.transitions:
        stays = transition.source == transition.target
        owner = transition.source if stays else f"{transition.source} → {transition.target}"
        assert any(
            transition.event in line and line.endswith(f"({transition.clause})") for line in groups[owner].split("\n")
        )
    for refusal in machine.refusals:
        assert f": {refusal.error} ({refusal.clause})" in groups[refusal.source]


@every_machine
def test_transitions_between_the_same_states_share_one_arrow(machine: Machine) -> None:
    moves = {(t.source, t.target) for t in machine.transitions if t.source != t.target}
    layout = LAYOUTS[machine.name]
    boxes = {state.name: state_box(machine, state, layout) for state in machine.states}
    for bundle in moves:
        path = arrow_path(machine, bundle, boxes, layout)
        assert {(t.source, t.target) for t in path.transitions} == {bundle}
        assert len(path.transitions) == sum((t.source, t.target) == bundle for t in machine.transitions)
    arrows = [title for title in tooltips(picture(machine)).split("\n") if re.fullmatch(r"\w+ → \w+", title)]
    assert len(arrows) == len(moves)


@every_machine
def test_arrows_begin_and_end_on_the_edges_of_their_boxes(machine: Machine) -> None:
    layout = LAYOUTS[machine.name]
    boxes = {state.name: state_box(machine, state, layout) for state in machine.states}
    for bundle in bundle_transitions(machine):
        path = arrow_path(machine, bundle, boxes, layout)
        for name, (x, y) in zip(bundle, (path.points[0], path.points[-1]), strict=True):
            area = boxes[name].area
            on_side = x in (area.left, area.right) and area.top < y < area.bottom
            on_top = y in (area.top, area.bottom) and area.left < x < area.right
            assert on_side or on_top
        drawn = draw(machine, layout)
        assert f'd="M{path.points[-1][0]:g} {path.points[-1][1]:g}L' in drawn


def test_only_the_arrow_that_returns_the_memory_stands_out() -> None:
    drawn = picture(CACHE)
    standing_out = [
        group.findtext(f"{SVG}title", "").split("\n")[0]
        for group in drawn.iter(f"{SVG}g")
        if any("release" in path.get("class", "").split() for path in group)
    ]
    assert standing_out == ["RELEASING → FREE"]


def test_chips_show_which_references_a_state_has() -> None:
    chips = {}
    for group in picture(CACHE).iter(f"{SVG}g"):
        found = {chip.text: "on" in chip.get("class", "").split() for chip in by_class(group, "chip")}
        if found:
            chips[(group.findtext(f"{SVG}title") or "").split(":")[0]] = found
    assert chips == {
        "FREE": {"id": False, "keys": False},
        "HELD": {"id": True, "keys": False},
        "INDEXED": {"id": True, "keys": True},
        "DRAINING": {"id": False, "keys": True},
        "RELEASING": {"id": False, "keys": False},
    }


@every_machine
def test_the_initial_state_is_marked(machine: Machine) -> None:
    drawn = picture(machine)
    assert f"{machine.initial} is the initial state" in tooltips(drawn)
    (dot,) = by_class(drawn, "dot")
    assert LAYOUTS[machine.name].places[machine.initial].left < float(dot.get("cx", "0"))


@every_machine
def test_a_picture_is_self_contained_and_has_a_ground_of_its_own(machine: Machine) -> None:
    source = draw(machine, LAYOUTS[machine.name])
    assert not re.search(r"<script|href|url\(|@import|@font-face|<image|<foreignObject", source)
    assert re.findall(r"https?://[^\"' ]*", source) == ["http://www.w3.org/2000/svg"]
    drawn = ElementTree.fromstring(source)
    (ground,) = by_class(drawn, "ground")
    assert float(ground.get("width", "0")) == float(drawn.get("width", "0")) - 1
    light, dark = source.split("@media (prefers-color-scheme: dark)")
    assert COLOURS["ground"][0] in light
    assert COLOURS["ground"][1] in dark


# what cannot be drawn


@every_machine
def test_a_state_without_a_place_is_named(machine: Machine) -> None:
    for state in machine.states:
        places = {name: place for name, place in LAYOUTS[machine.name].places.items() if name != state.name}
        with pytest.raises(Mismatch, match=f"{machine.name}: state {state.name} has no place"):
            redrawn(machine, places=places)


@every_machine
def test_an_arrow_that_no_layout_knows_is_named(machine: Machine) -> None:
    for bundle in bundle_transitions(machine):
        arrows = {ends: arrow for ends, arrow in LAYOUTS[machine.name].arrows.items() if ends != bundle}
        with pytest.raises(Mismatch, match=f"{bundle[0]} -> {bundle[1]} has no arrow"):
            redrawn(machine, arrows=arrows)


def test_a_place_for_no_state_is_named() -> None:
    places = {**LAYOUTS["engine"].places, "PAUSED": Place(0, 0, 100, "held")}
    with pytest.raises(Mismatch, match="engine: there is a place for PAUSED, which is no state"):
        redrawn(ENGINE, places=places)


def test_an_arrow_that_no_transition_takes_is_named() -> None:
    fewer = tuple(t for t in CACHE.transitions if (t.source, t.target) != ("HELD", "RELEASING"))
    with pytest.raises(Mismatch, match="cache: there is an arrow HELD -> RELEASING, which no transition takes"):
        draw(replace(CACHE, transitions=fewer), LAYOUTS["cache"])


def test_a_new_state_cannot_be_left_out() -> None:
    changed = replace(
        ENGINE,
        states=(*ENGINE.states, State("PAUSED", "Waits.", "design")),
        events=ENGINE.events,
        transitions=(*ENGINE.transitions, Transition("call", "PAUSED", "READY", "design")),
    )
    with pytest.raises(Mismatch, match="state PAUSED has no place; PAUSED -> READY has no arrow"):
        draw(changed, LAYOUTS["engine"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"release": ("burn_memory", "")}, "the effect burn_memory is to stand out and does not exist"),
        ({"chips": ("id", "leases")}, "the chip leases is no fact of any state"),
        ({"tones": {"free": "", "held": ""}}, "the legend does not say what closing means"),
        ({"tones": {"free": "", "held": "", "closing": "", "odd": ""}}, "the legend explains odd, which no state has"),
    ],
)
def test_a_layout_that_speaks_of_what_is_not_there_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(Mismatch, match=complaint):
        redrawn(CACHE, **changes)


def test_boxes_must_not_overlap() -> None:
    layout = LAYOUTS["engine"]
    moved = replace(layout, places={**layout.places, "READY": replace(layout.places["READY"], left=200)})
    boxes = [state_box(ENGINE, state, moved) for state in ENGINE.states]
    with pytest.raises(Collision, match=r"engine: the box UNINITIALIZED and the box READY overlap$"):
        check_collisions(ENGINE, Rectangle(0, 0, 2000, 2000), boxes, [])


@pytest.mark.parametrize(
    ("through", "crossed"),
    [
        (((690, 560), (690, 90), (133, 90)), "the arrow HELD -> RELEASING and the arrow RELEASING -> FREE"),
        (((690, 520), (133, 520)), "the box HELD and the arrow RELEASING -> FREE"),
        (((690, 470), (133, 470)), "the label of HELD -> RELEASING and the arrow RELEASING -> FREE"),
    ],
)
def test_an_arrow_must_cross_nothing(through: tuple[Point, ...], crossed: str) -> None:
    with pytest.raises(Collision, match=f"{crossed} overlap"):
        with_arrow(CACHE, ("RELEASING", "FREE"), Arrow(through, (487, 690), "below", 400))


def test_a_label_must_not_lie_on_a_box() -> None:
    arrow = LAYOUTS["cache"].arrows["INDEXED", "HELD"]
    with pytest.raises(Collision, match="the box HELD and the label of INDEXED -> HELD overlap"):
        with_arrow(CACHE, ("INDEXED", "HELD"), replace(arrow, label=(452, 460)))


def test_a_label_must_stay_in_the_picture() -> None:
    arrow = LAYOUTS["batch_slot"].arrows["UNKEYED", "PREFIX_KEYED"]
    with pytest.raises(Collision, match="the label of UNKEYED -> PREFIX_KEYED leaves the picture"):
        with_arrow(BATCH_SLOT, ("UNKEYED", "PREFIX_KEYED"), replace(arrow, label=(60, 240), side="left"))


def test_an_arrow_must_run_at_right_angles_and_meet_its_boxes() -> None:
    bundle = ("UNINITIALIZED", "READY")
    with pytest.raises(Mismatch, match="UNINITIALIZED -> READY is not drawn at right angles"):
        with_arrow(ENGINE, bundle, Arrow(((260, 190), (320, 200)), (307, 196), "above", 160))
    with pytest.raises(Mismatch, match="UNINITIALIZED -> READY is not straight across from its boxes"):
        with_arrow(ENGINE, bundle, Arrow(((307, 20),), (307, 196), "above", 160))


def test_a_name_too_long_for_its_box_is_refused() -> None:
    error = "LLM_" + "VERY_" * 8 + "LONG"
    refusals = (*ENGINE.refusals[1:], Refusal("call", "UNINITIALIZED", error, "design"))
    with pytest.raises(Collision, match=f"'{error}' does not fit into the box UNINITIALIZED"):
        draw(replace(ENGINE, refusals=refusals), LAYOUTS["engine"])


def test_a_label_that_grows_into_its_neighbour_is_refused() -> None:
    names = [f"do_the_{number}_thing" for number in range(12)]
    effects = (*CACHE.effects, *(Effect(name, name) for name in names))
    transitions = tuple(
        replace(t, effects=(*t.effects, *names)) if (t.source, t.target) == ("INDEXED", "HELD") else t
        for t in CACHE.transitions
    )
    with pytest.raises(Collision, match="the label of INDEXED -> HELD"):
        draw(replace(CACHE, effects=effects, transitions=transitions), LAYOUTS["cache"])


def test_rectangles_that_share_an_edge_do_not_overlap() -> None:
    square = Rectangle(0, 0, 10, 10)
    assert not square.overlaps(Rectangle(10, 0, 20, 10))
    assert square.overlaps(Rectangle(9, 9, 20, 20))
    assert square.edge_towards((5, 30)) == (5, 10)
    assert square.edge_towards((-4, 3)) == (0, 3)
    assert square.edge_towards((30, 30)) is None
    assert square.edge_towards((5, 5)) is None


# the page


def test_the_page_has_every_rule_in_order() -> None:
    preface, rules = split_rules(lifecycle.__doc__ or "")
    assert len(rules) == len(re.findall(r"^ *\d+\. ", lifecycle.__doc__ or "", flags=re.MULTILINE))
    assert any("`seed §n`" in paragraph for paragraph in preface)
    page = machines_page(MACHINES, lifecycle.__doc__ or "")
    positions = [page.index(f"\n{number}. {rule}\n") for number, rule in enumerate(rules, start=1)]
    assert positions == sorted(positions)
    assert page.startswith(f"*Generated by `{COMMAND}`, run from the repository's root.")


@pytest.mark.parametrize(
    "text", ["", "Summary.\n\nThe rules\n---------\n", "Summary.\n\nThe rules\n---------\n 1. One.\n 3. Three.\n"]
)
def test_rules_that_are_missing_or_misnumbered_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="numbered 1, 2, 3"):
        split_rules(text)


@every_machine
def test_the_page_has_a_row_for_everything(machine: Machine) -> None:
    page = machines_page([machine], lifecycle.__doc__ or "")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in page.split("\n") if line.startswith("| ")
    ]
    for state in machine.states:
        initial = " (initial)" if state.name == machine.initial else ""
        assert [f"`{state.name}`{initial}", state.meaning, state.clause] in rows
    named_parts: list[Event | Guard | Effect] = [*machine.events, *machine.guards, *machine.effects]
    for named in named_parts:
        assert [f"`{named.name}`", named.meaning] in rows
    for rule in rules_of(machine):
        row = next(
            row
            for row in rows
            if row[:3] == [f"`{rule.source}`", f"`{rule.event}`", ", ".join(f"`{term}`" for term in rule.when)]
        )
        assert row[-1] == rule.clause
        assert row[3] == f"`{rule.target if isinstance(rule, Transition) else rule.error}`"
    assert f"](diagrams/{machine.name}.svg)" in page


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    states = (replace(ENGINE.states[0], meaning="this | that"), *ENGINE.states[1:])
    assert r"this \| that" in machines_page([replace(ENGINE, states=states)], lifecycle.__doc__ or "")


# the command


def test_what_is_written_passes_the_check(tmp_path: Path) -> None:
    main(["--output", str(tmp_path)])
    main(["--output", str(tmp_path), "--check"])
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"machines.md", *(f"diagrams/{machine.name}.svg" for machine in MACHINES)}


def test_the_check_names_each_file_that_differs_and_writes_nothing(tmp_path: Path) -> None:
    main(["--output", str(tmp_path)])
    changed, missing, stray = (tmp_path / "diagrams" / name for name in ("cache.svg", "link.svg", "lease.svg"))
    changed.write_bytes(changed.read_bytes().replace(b"FREE", b"IDLE"))
    missing.unlink()
    stray.write_text("<svg/>")
    with pytest.raises(SystemExit) as failure:
        main(["--output", str(tmp_path), "--check"])
    complaint = str(failure.value.code)
    assert f"{changed} differs" in complaint
    assert f"{missing} is missing" in complaint
    assert f"{stray} belongs to no machine" in complaint
    assert "batch_slot" not in complaint
    assert b"IDLE" in changed.read_bytes()
    assert not missing.exists()


def test_a_line_ending_is_a_difference(tmp_path: Path) -> None:
    main(["--output", str(tmp_path)])
    page = tmp_path / "machines.md"
    page.write_bytes(page.read_bytes().replace(b"\n", b"\r\n"))
    assert drift(tmp_path) == [f"{page} differs from the machines"]


def test_a_machine_without_a_layout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(LAYOUTS, "link")
    with pytest.raises(Mismatch, match="link"):
        render(tmp_path)


def test_the_bytes_depend_on_no_hash_seed_and_no_installed_package(tmp_path: Path) -> None:
    outputs = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-S", "-m", "spec.diagrams", "--output", str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ""},
            check=True,
        )
        outputs.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert outputs[0] == outputs[1]
    assert outputs[0] == {path.relative_to(tmp_path): text.encode() for path, text in render(tmp_path).items()}


def test_the_committed_documentation_is_what_the_machines_give() -> None:
    assert drift(ROOT / "docs") == []
