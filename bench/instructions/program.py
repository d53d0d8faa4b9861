"""The program that is measured: ``python -m instructions.program FOLDER MODULE PATH...``, run by valgrind.

Takes each path of the module's ``PATHS`` that is named, and writes ``report.json`` into the folder, where the switch is
and the profiles go.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .environment import Environment, environment_of
from .exercise import CountedPath, Incorrect
from .stillness import stillness
from .switch import Switch

INCORRECT = 3
"""The exit status where a path did something else."""

REPORT = "report.json"
ONCE, TWICE = "once", "twice"


class Report(msgspec.Struct, frozen=True):
    """What the profiles do not say."""

    environment: Environment
    core_modules: list[str]
    """The files of all compiled modules of ``llmdd._core``."""
    operations: dict[str, int]
    """How many each path did more in its second profile than in its first."""


def label(name: str, part: str) -> str:
    """By which the profile of a part of a path is known."""
    return f"{name}: {part}"


def take(path: CountedPath, switch: Switch) -> int:
    """Count a path over its turns, and over twice as many; how many operations the second time has beyond the first.

    Before, it is taken uncounted: what CPython finds out about a loop, and what allocators keep, is there by then.
    """
    # Anew for each path: what it finds does not depend on which others were taken before.
    with stillness():
        exercise = path.exercise()
        try:
            exercise.prepare(2 * path.turns)
            exercise.run(2 * path.turns)
            exercise.inspect(2 * path.turns)
            for part, turns in ((ONCE, path.turns), (TWICE, 2 * path.turns)):
                exercise.prepare(turns)
                switch.on()
                exercise.run(turns)
                switch.off(label(path.name, part))
                exercise.inspect(turns)
        finally:
            exercise.close()
    return path.turns * exercise.operations


def core_modules() -> list[str]:
    """The files of the compiled modules that have been imported. An editable installation has them elsewhere."""
    modules = [module for name, module in sys.modules.items() if name.startswith("llmdd._core.")]
    files = [getattr(module, "__file__", None) or "" for module in modules]
    return sorted(file for file in files if not file.endswith(".py"))


def main(arguments: Sequence[str]) -> int:
    folder, module, *names = arguments
    paths: Sequence[CountedPath] = importlib.import_module(module).PATHS
    switch = Switch(Path(folder) / "switch.so")
    operations = {}
    for path in paths:
        if path.name not in names:
            continue
        try:
            operations[path.name] = take(path, switch)
        except Incorrect as incorrect:
            print(f"{path.name}: {incorrect}", file=sys.stderr)
            return INCORRECT
    modules = core_modules()
    report = Report(environment_of(modules), modules, operations)
    (Path(folder) / REPORT).write_bytes(msgspec.json.encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
