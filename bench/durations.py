"""Times, sizes and rates in units that suit them."""

from __future__ import annotations

UNITS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))


def duration(nanoseconds: float) -> str:
    """A time with three digits: ``1.06 µs``."""
    unit, size = unit_of(nanoseconds)
    return f"{digits(nanoseconds / size)} {unit}"


def spread(low_ns: float, high_ns: float) -> str:
    """From one time to another: ``1.06-1.1 µs``."""
    unit, size = unit_of(low_ns)
    if unit_of(high_ns) != (unit, size):
        return f"{duration(low_ns)}-{duration(high_ns)}"
    return f"{digits(low_ns / size)}-{digits(high_ns / size)} {unit}"


def unit_of(nanoseconds: float) -> tuple[str, float]:
    return next((unit for unit in UNITS if nanoseconds >= unit[1]), UNITS[-1])


def digits(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def rate(gb_s: float) -> str:
    """Bytes a second, from 10⁹ of them: ``12.3 GB/s``, ``40 MB/s``."""
    for unit, magnitude in (("GB", 1.0), ("MB", 1e-3)):
        if gb_s >= magnitude:
            return f"{digits(gb_s / magnitude)} {unit}/s"
    return f"{digits(gb_s * 1e6)} kB/s"


def times(ratio: float) -> str:
    """A ratio: ``1.23x``, ``1,234x``."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{digits(ratio)}x"


def size(count: float) -> str:
    """A number of bytes with three digits: ``4 KiB``."""
    for unit, magnitude in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= magnitude:
            return f"{digits(count / magnitude)} {unit}"
    return f"{digits(count)} B"
