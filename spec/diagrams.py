"""The pictures of the machines and the page about them, in ``docs/``: generated, never edited.

Where each state and arrow stands is told here, by hand; everything that is said is taken from :mod:`.lifecycle`. A
state or an arrow without a place, or a place for one that does not exist, is an error, so that no picture outlives its
machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import lifecycle
from .lifecycle import MACHINES
from .machines_page import COMMAND, machines_page
from .sketch import Arrow, Layout, Mismatch, Place
from .svg import draw

LAYOUTS = {
    "cache": Layout(
        width=980,
        places={
            "FREE": Place(28, 256, 210, "free"),
            "INDEXED": Place(416, 136, 222, "held"),
            "HELD": Place(416, 436, 222, "held"),
            "DRAINING": Place(730, 136, 222, "held"),
            "RELEASING": Place(730, 436, 222, "closing"),
        },
        arrows={
            ("FREE", "INDEXED"): Arrow(((258, 326), (258, 196)), (337, 196), "above", 140),
            ("FREE", "HELD"): Arrow(((258, 366), (258, 496)), (337, 496), "above", 140),
            ("INDEXED", "HELD"): Arrow(((452, 368),), (452, 368), "right", 150),
            ("INDEXED", "DRAINING"): Arrow(((680, 196),), (684, 196), "above", 90),
            ("HELD", "RELEASING"): Arrow(((680, 496),), (684, 496), "above", 90),
            ("DRAINING", "RELEASING"): Arrow(((766, 368),), (766, 368), "right", 150),
            ("RELEASING", "FREE"): Arrow(((841, 680), (133, 680)), (487, 680), "on", 400),
        },
        tones={"free": "memory in the pool", "held": "memory held", "closing": "closed, memory still held"},
        release=("return_memory", "memory goes back to the pool"),
        chips=("id", "keys"),
    ),
    "batch_slot": Layout(
        width=980,
        places={
            "UNKEYED": Place(28, 440, 236, "free"),
            "PREFIX_KEYED": Place(662, 136, 290, "held"),
            "REQUEST_KEYED": Place(662, 440, 290, "held"),
            "BLOCKS_KEYED": Place(662, 800, 290, "held"),
        },
        arrows={
            ("UNKEYED", "PREFIX_KEYED"): Arrow(((130, 176), (462, 176)), (462, 176), "above", 300),
            ("PREFIX_KEYED", "UNKEYED"): Arrow(((462, 220), (200, 220)), (462, 220), "below", 300),
            ("UNKEYED", "REQUEST_KEYED"): Arrow(((462, 490),), (462, 490), "above", 300),
            ("REQUEST_KEYED", "UNKEYED"): Arrow(((462, 534),), (462, 534), "below", 300),
            ("UNKEYED", "BLOCKS_KEYED"): Arrow(((130, 884), (462, 884)), (462, 884), "below", 300),
            ("BLOCKS_KEYED", "UNKEYED"): Arrow(((462, 840), (200, 840)), (462, 840), "above", 300),
        },
        tones={"free": "holds nothing", "held": "holds a key reference of the cache"},
        release=("drop_key", "the cache loses a key reference"),
    ),
    "link": Layout(
        width=980,
        places={
            "UNLINKED": Place(28, 136, 316, "free"),
            "LINKED": Place(636, 136, 316, "held"),
            "BROKEN": Place(636, 470, 316, "closing"),
        },
        arrows={
            ("UNLINKED", "LINKED"): Arrow(((490, 212),), (490, 212), "above", 260),
            ("LINKED", "UNLINKED"): Arrow(((490, 246),), (490, 246), "below", 260),
            ("LINKED", "BROKEN"): Arrow(((740, 420),), (740, 420), "left", 140),
            ("BROKEN", "LINKED"): Arrow(((790, 420),), (790, 420), "right", 140),
            ("BROKEN", "UNLINKED"): Arrow(((186, 560),), (411, 560), "above", 300),
        },
        tones={"free": "no link", "held": "memory is shared", "closing": "other end gone"},
        release=("drop_peer_pins", "its pins here dropped"),
    ),
    "communicator": Layout(
        width=980,
        places={
            "UNKNOWN": Place(28, 374, 260, "free"),
            "OK": Place(662, 136, 290, "held"),
            "PREPARING": Place(662, 354, 290, "held"),
            "FAILED": Place(662, 642, 290, "closing"),
        },
        arrows={
            ("OK", "UNKNOWN"): Arrow(((470, 206), (158, 206)), (470, 206), "above", 300),
            ("UNKNOWN", "PREPARING"): Arrow(((475, 428),), (475, 428), "above", 300),
            ("PREPARING", "UNKNOWN"): Arrow(((475, 472),), (475, 472), "below", 300),
            ("PREPARING", "OK"): Arrow(((698, 300),), (698, 300), "right", 240),
            ("PREPARING", "FAILED"): Arrow(((698, 600),), (698, 600), "right", 240),
            ("FAILED", "UNKNOWN"): Arrow(((470, 712), (158, 712)), (470, 712), "below", 300),
        },
        tones={"free": "no communicator", "held": "memory is shared, or about to be", "closing": "given up"},
        release=("part_members", "the members' memory is let go"),
    ),
    "engine": Layout(
        width=980,
        places={
            "UNINITIALIZED": Place(28, 146, 194, "free"),
            "READY": Place(393, 146, 194, "held"),
            "FINALIZED": Place(758, 146, 194, "free"),
        },
        arrows={
            ("UNINITIALIZED", "READY"): Arrow(((307, 196),), (307, 196), "above", 160),
            ("READY", "FINALIZED"): Arrow(((672, 186),), (672, 186), "above", 160),
            ("FINALIZED", "READY"): Arrow(((672, 222),), (672, 222), "below", 160),
        },
        tones={"free": "holds nothing", "held": "holds links, caches and pools"},
        release=("release_everything", "everything is let go"),
    ),
}


def render(docs: Path) -> dict[Path, str]:
    """Every generated file of the folder ``docs``, with its contents.

    Raises
    ------
    Mismatch
        A machine has no layout, a layout no machine, or the two do not name the same states and arrows.
    Collision
        Two parts of a picture would overlap.
    """
    names = {machine.name for machine in MACHINES}
    if names != set(LAYOUTS):
        raise Mismatch(f"machines without a layout, or layouts without a machine: {sorted(names ^ set(LAYOUTS))}")
    files = {docs / "diagrams" / f"{machine.name}.svg": draw(machine, LAYOUTS[machine.name]) for machine in MACHINES}
    files[docs / "machines.md"] = machines_page(MACHINES, lifecycle.__doc__ or "")
    return files


def drift(docs: Path) -> list[str]:
    """What in ``docs`` differs from what the machines give: a line for each file, none if nothing does."""
    files = render(docs)
    complaints = []
    for path, contents in files.items():
        if not path.exists():
            complaints.append(f"{path} is missing")
        elif path.read_bytes() != contents.encode():
            complaints.append(f"{path} differs from the machines")
    for path in sorted((docs / "diagrams").glob("*.svg")):
        if path not in files:
            complaints.append(f"{path} belongs to no machine")
    return complaints


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, or with ``--check`` exit with status 1 if any is not as it would be written."""
    parser = argparse.ArgumentParser(prog="spec diagrams", description="draw the machines, write the page about them")
    parser.add_argument("--output", type=Path, default=Path("docs"), metavar="DIR", help="the documentation's folder")
    parser.add_argument("--check", action="store_true", help="write nothing; fail, naming each file that differs")
    options = parser.parse_args(argv)
    if options.check:
        complaints = drift(options.output)
        if complaints:
            sys.exit("\n".join([*complaints, f"run `{COMMAND}` and commit what it writes"]))
        return
    for path, contents in render(options.output).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents.encode())


if __name__ == "__main__":
    main()
