"""What a path takes."""

from __future__ import annotations

import msgspec

from .environment import Environment


class Counts(msgspec.Struct, frozen=True):
    """Instructions for one operation."""

    core: float
    """In the compiled modules of ``llmdd._core``."""
    everything: float
    """In all: these, the interpreter, the C library."""


class Counted(msgspec.Struct, frozen=True):
    """A path that was counted."""

    operation: str
    counts: Counts


class Counting(msgspec.Struct, frozen=True):
    """What was counted, and where."""

    environment: Environment
    paths: dict[str, Counted]
