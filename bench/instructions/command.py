"""``python bench/instructions``: its options, what it says, and how it ends."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from . import baseline as baselines
from .baseline import COMMITTED, Baseline, ElsewhereCounted, UnreadableBaseline
from .conclusions import conclusions
from .counts import Counting
from .exercise import UnknownPath, select
from .exercises import PATHS
from .table import show
from .valgrind import PathFailed, Unavailable, count
from .verdict import Judged, Verdict, judge

FINE, WORSE, CANNOT = 0, 1, 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/instructions",
        description="Count the instructions that the core's paths take, and compare them with the committed baseline.",
        epilog="The exit status is 1 if a path takes more than before or does something else, and 2 if nothing can be "
        "counted here.",
    )
    parser.add_argument(
        "--path", metavar="NAME", action="append", default=[], help="only paths of this name; * and ? are wildcards"
    )
    parser.add_argument("--accept", metavar="REASON", help="make what is counted the baseline, for this reason")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the counts")
    parser.add_argument(
        "--profiles", metavar="FOLDER", type=Path, help="keep callgrind's profiles, to read with callgrind_annotate"
    )
    parser.add_argument("--baseline", metavar="FILE", type=Path, default=COMMITTED, help="instead of the committed one")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, then compare or accept; the exit status."""
    given = parse(arguments)
    if given.accept is not None and not given.accept.strip():
        return complain("--accept needs a reason: what changed, and why it is worth it", CANNOT)
    try:
        before = baselines.read(given.baseline)
        counting = count(select(PATHS, given.path), keep=given.profiles)
    except (UnknownPath, UnreadableBaseline, Unavailable) as error:
        return complain(str(error), CANNOT)
    except PathFailed as error:
        return complain(str(error), WORSE)
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(counting), indent=2) + b"\n")
    if given.accept is not None:
        return accept(before, counting, given)
    return compare(before, counting, given)


def accept(before: Baseline | None, counting: Counting, given: argparse.Namespace) -> int:
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    try:
        after = baselines.accept(before, counting, given.accept.strip(), today, is_whole=not given.path)
    except ElsewhereCounted as error:
        return complain(str(error), CANNOT)
    if before is not None:
        show(judge(before, counting, is_whole=not given.path).paths)
    baselines.write(after, given.baseline)
    print(f"{len(counting.paths)} paths accepted in {given.baseline}: {given.accept.strip()}")
    return FINE


def compare(before: Baseline | None, counting: Counting, given: argparse.Namespace) -> int:
    if before is None:
        show([Judged(name, one.operation, None, one.counts, (), Verdict.NEW) for name, one in counting.paths.items()])
        return complain(f"{given.baseline} does not exist: make it with --accept REASON", WORSE)
    judgement = judge(before, counting, is_whole=not given.path)
    show(judgement.paths)
    print("\n".join(conclusions(judgement, before.tolerance)))
    return WORSE if judgement.fails else FINE


def complain(what: str, status: int) -> int:
    print(what, file=sys.stderr)
    return status
