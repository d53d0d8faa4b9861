"""Has valgrind run the program, and makes counts of what it found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from .counts import Counted, Counting, Counts
from .exercise import CountedPath
from .profiles import read_profiles
from .program import INCORRECT, ONCE, REPORT, TWICE, Report, label
from .switch import NotCompiled, compile_switch

PACKAGE = Path(__file__).resolve().parent
PROFILES = "profile"


class Unavailable(Exception):
    """Nothing can be counted here; the message says what to install."""


class PathFailed(Exception):
    """A path did something else than it is there for, or the program came to grief; the message is its last words."""


def not_randomized() -> list[str]:
    """What a command begins with that is to have its memory where it always is, if the kernel allows it."""
    prefix = ["setarch", "--addr-no-randomize"]
    tried = subprocess.run([*prefix, "true"], capture_output=True) if shutil.which("setarch") else None
    return prefix if tried is not None and tried.returncode == 0 else []


def valgrind_version() -> str:
    """
    Raises
    ------
    Unavailable
    """
    try:
        said = subprocess.run(["valgrind", "--version"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(
            "valgrind is not installed, which counts the instructions; on Debian: apt-get install valgrind"
        ) from error
    return said.strip().removeprefix("valgrind-")


def surroundings(search_path: Sequence[str]) -> dict[str, str]:
    """The environment variables of the program: the same whoever asks, but for what it takes to start Python."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *search_path]),
    }


def count(
    paths: Sequence[CountedPath],
    module: str = f"{PACKAGE.name}.exercises",
    search_path: Sequence[str] = (),
    keep: Path | None = None,
) -> Counting:
    """Count the instructions of each path.

    Parameters
    ----------
    paths : sequence of CountedPath
    module : str, optional
        Whose ``PATHS`` they are.
    search_path : sequence of str, optional
        Further folders to import from.
    keep : Path, optional
        A folder that the profiles are copied to.

    Raises
    ------
    Unavailable, PathFailed
    """
    version = valgrind_version()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            compile_switch(folder)
        except NotCompiled as error:
            raise Unavailable(f"no C program can be compiled against valgrind's headers:\n{error}") from error
        command = [
            *not_randomized(),
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder / PROFILES}",
            sys.executable,
            *("-m", f"{PACKAGE.name}.program", str(folder), module, *(path.name for path in paths)),
        ]
        # In a folder where Python finds nothing to import.
        done = subprocess.run(command, cwd="/", env=surroundings(search_path), capture_output=True, text=True)
        if done.returncode == INCORRECT:
            raise PathFailed(done.stderr.strip())
        if done.returncode:
            raise PathFailed(f"the program ended with {done.returncode}:\n{done.stderr.strip()}")
        report = msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
        profiles = read_profiles(folder, f"{PROFILES}.*")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for profile in folder.glob(f"{PROFILES}.*"):
                shutil.copy(profile, keep)
    return Counting(
        msgspec.structs.replace(report.environment, valgrind=version),
        {path.name: Counted(path.operation, counts_of(path.name, report, profiles)) for path in paths},
    )


def counts_of(name: str, report: Report, profiles: Mapping[str, Mapping[str, int]]) -> Counts:
    """For one operation of a path: what the profile of twice as many has beyond the other."""
    once, twice = profiles[label(name, ONCE)], profiles[label(name, TWICE)]
    more = {file: twice.get(file, 0) - once.get(file, 0) for file in {*once, *twice}}
    operations = report.operations[name]
    core = set(report.core_modules)
    return Counts(
        round(sum(instructions for file, instructions in more.items() if file in core) / operations, 2),
        round(sum(more.values()) / operations, 2),
    )
