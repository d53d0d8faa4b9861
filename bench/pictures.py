"""Which plots a group of cases has. What needs matplotlib to draw them is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from .results import CaseResult, Standing


class Picture(str, Enum):
    BARS = "bars"
    """Every entrant's time in every case."""
    TIMES = "times"
    """Times against what grows."""
    RATES = "rates"
    """Bytes a second against what grows."""
    MEMORY = "memory"
    """Memory taken, against the time of the day that is replayed."""


#: Along these more is moved, and a rate says how well.
RATED = ("bytes", "blocks")


def pictures(cases: Sequence[CaseResult]) -> list[Picture]:
    """Those that the cases of one group have figures for."""
    found = []
    if any(timed(case) for case in cases):
        found.append(Picture.BARS)
    if len({case.place for case in along_axis(cases)}) > 1:
        found.append(Picture.TIMES)
        if all(case.bytes_moved and case.axis in RATED for case in cases):
            found.append(Picture.RATES)
    if any(series(case) for case in cases):
        found.append(Picture.MEMORY)
    return found


def telling(cases: Sequence[CaseResult]) -> list[Picture]:
    """Without the bars, where lines show the same."""
    found = pictures(cases)
    return [picture for picture in found if picture is not Picture.BARS or Picture.TIMES not in found]


def along_axis(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """Those that have a place on the axis, and times."""
    return [case for case in cases if case.place is not None and timed(case)]


def timed(case: CaseResult) -> list[Standing]:
    return [one for one in case.standings if one.median_ns is not None]


def series(case: CaseResult) -> list[Standing]:
    """The entrants that measured their memory over time; without those that played much less of it than others."""
    measured = [one for one in timed(case) if one.measured.get("seconds") and one.measured.get("bytes")]
    longest = max((one.measured["seconds"][-1] for one in measured), default=0)
    return [one for one in measured if one.measured["seconds"][-1] > longest / 2]


def file_name(group: str, picture: Picture, suffix: str) -> str:
    return f"{group}-{picture.value}.{suffix}"


def size_name(case: CaseResult) -> str:
    """The size in a case's name, as one writes it: ``1,000,000 live``, ``4 KiB``, ``1,024 x 80``."""
    words = case.name.partition("/")[2].replace("-", " ")
    apart = re.sub(r"(?<=\d)(?=[KMG]iB)|(?<=\d)(?=x\d)|(?<=\dx)(?=\d)", " ", words)
    return re.sub(r"\d{4,}", lambda number: f"{int(number[0]):,}", apart)
