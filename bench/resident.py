"""How much memory processes have, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Resident(NamedTuple):
    """Bytes, summed over processes: memory that two of them touch counts twice."""

    now: int
    peak: int


def resident(pids: Iterable[int]) -> Resident:
    """The resident sets of running processes, and the largest that they had."""
    now = peak = 0
    for pid in pids:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        now += kibibytes(fields["VmRSS"])
        peak += kibibytes(fields["VmHWM"])
    return Resident(now, peak)


def kibibytes(text: str) -> int:
    number, unit = text.split()
    if unit != "kB":
        raise ValueError(f"the kernel counts memory in {unit!r}")
    return int(number) << 10
