"""Reads the profiles that callgrind writes: https://valgrind.org/docs/manual/cl-format.html."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

TRIGGER = "desc: Trigger: Client Request: "
OBJECT = re.compile(r"c?ob=\((\d+)\)(?: (.*))?")


class UnreadableProfile(Exception):
    """The instructions of a profile do not add up to what it says they do."""


def instructions_of_objects(lines: Iterable[str]) -> tuple[str, Counter[str]]:
    """The label of a profile, empty if it was not asked for, and the instructions executed in each object file.

    Raises
    ------
    UnreadableProfile
    """
    label = ""
    total: int | None = None
    names: dict[str, str] = {}
    current = ""
    is_inclusive = False
    instructions: Counter[str] = Counter()
    for line in lines:
        if line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            # The line after a call has what was executed in the callee, where it is counted already.
            if not is_inclusive:
                instructions[current] += int(line.split()[1])
            is_inclusive = False
        elif line.startswith("calls="):
            is_inclusive = True
        elif found := OBJECT.match(line):
            number, name = found.groups()
            names.setdefault(number, name)
            if not line.startswith("c"):
                current = names[number]
        elif line.startswith(TRIGGER):
            label = line[len(TRIGGER) :].strip()
        elif line.startswith("totals:"):
            total = int(line.split()[1])
    if label and instructions.total() != total:
        raise UnreadableProfile(f"{label}: {instructions.total()} instructions were read, callgrind counted {total}")
    return label, instructions


def read_profiles(folder: Path, pattern: str) -> dict[str, Counter[str]]:
    """The labelled profiles of a folder, by label.

    Raises
    ------
    UnreadableProfile
    """
    profiles = {}
    for file in folder.glob(pattern):
        with file.open() as lines:
            label, instructions = instructions_of_objects(lines)
        if label:
            profiles[label] = instructions
    return profiles
