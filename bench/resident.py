"""How much memory processes have, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Resident(NamedTuple):
    """Bytes of data, summed over processes: memory that two of them touch counts twice, mapped files do not count."""

    now: int
    peak: int


def resident(pids: Iterable[int]) -> Resident:
    """The memory that running processes have resident, and the most that they had."""
    now = peak = 0
    for pid in pids:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        now += kibibytes(fields["RssAnon"]) + kibibytes(fields["RssShmem"])
        # The kernel keeps the peak of everything; what is mapped of files, mostly code, comes and seldom goes.
        peak += kibibytes(fields["VmHWM"]) - kibibytes(fields["RssFile"])
    return Resident(now, max(now, peak))


def kibibytes(text: str) -> int:
    number, unit = text.split()
    if unit != "kB":
        raise ValueError(f"the kernel counts memory in {unit!r}")
    return int(number) << 10
