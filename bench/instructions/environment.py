"""What counts depend on besides the source."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

UNKNOWN = "unknown"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Who compiled the core, and what it runs in."""

    architecture: str
    python: str
    compiler: str
    """Of the core, as its modules name it; the interpreter's own does not matter."""
    cython: str
    libc: str
    numpy: str
    vectors: str
    """The widest that the processor has, by which the C library chooses how to copy."""
    valgrind: str = UNKNOWN


def first_numbers(text: str, count: int) -> str:
    """``first_numbers("GCC 12.2.0", 1)`` is ``GCC 12``."""
    return re.sub(r"\d+(?:\.\d+)+", lambda numbers: ".".join(numbers[0].split(".")[:count]), text)


ALL = 9
"""More numbers than a version has."""

#: With these the core's instructions are others altogether: what compiled it, and to which headers.
WHOLLY_DIFFERENT = {"architecture": ALL, "python": 2, "compiler": 1, "cython": 2}

#: With these the instructions of everything else are.
DIFFERENT_BESIDES_THE_CORE = {"python": ALL, "libc": ALL, "numpy": ALL, "vectors": ALL, "valgrind": 2}


def differences(ours: Environment, theirs: Environment, fields: dict[str, int]) -> dict[str, tuple[str, str]]:
    """Those fields that differ in so many of their leading numbers: ``{"python": ("3.11.7", "3.12.1")}``."""
    pairs = {name: (str(getattr(ours, name)), str(getattr(theirs, name))) for name in fields}
    return {
        name: pair
        for name, pair in pairs.items()
        if first_numbers(pair[0], fields[name]) != first_numbers(pair[1], fields[name])
    }


def environment_of(core_modules: Sequence[str]) -> Environment:
    """Of this process, which has imported these modules of the core."""
    compiled = b"".join(Path(module).read_bytes() for module in core_modules)
    return Environment(
        architecture=platform.machine(),
        python=platform.python_version() + getattr(sys, "abiflags", ""),
        compiler=compiler_of(compiled),
        cython=cython_of(compiled),
        libc=" ".join(platform.libc_ver()).strip() or UNKNOWN,
        numpy=version("numpy"),
        vectors=widest_vectors(),
    )


def compiler_of(compiled: bytes) -> str:
    """Which compiler made modules, from the comment that it leaves in each."""
    for name, pattern in (("clang", rb"clang version (\d+[\d.]*)"), ("GCC", rb"GCC: \([^)]*\) (\d+[\d.]*)")):
        found = re.search(pattern, compiled)
        if found:
            return f"{name} {found[1].decode()}"
    return UNKNOWN


def cython_of(compiled: bytes) -> str:
    """Which Cython wrote modules, from the name of the module by which they share its types. Not all of them do."""
    found = re.search(rb"_cython_(\d+(?:_\d+)*)", compiled)
    return found[1].decode().replace("_", ".") if found else UNKNOWN


def widest_vectors() -> str:
    """Of those that the valgrind of today passes on to programs."""
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:
        return UNKNOWN
    return next((name for name in ("avx2", "avx", "sse4_2") if re.search(rf"\b{name}\b", processor)), "baseline")
