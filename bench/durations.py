"""Times, sizes and rates in units that suit them."""

from __future__ import annotations


def duration(nanoseconds: float) -> str:
    """A time with three digits: ``1.06 µs``."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def size(count: float) -> str:
    """A number of bytes with three digits: ``4 KiB``."""
    for unit, magnitude in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= magnitude:
            return f"{count / magnitude:.3g} {unit}"
    return f"{count:.3g} B"
