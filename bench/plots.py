"""A run's plots, as PNG and SVG. Only here matplotlib is needed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MultipleLocator, NullLocator

from .colours import looks
from .durations import duration, rate, size
from .pictures import Picture, along_axis, file_name, pictures, series, size_name, timed
from .results import CaseResult, Run, Standing

FORMATS = ("png", "svg")

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
    "svg.hashsalt": "llmdd",  # the same run gives the same file
}

WIDTH_INCHES = 7.6
TITLE_CHARACTERS = 84
INK = "#333333"


def draw(
    run: Run,
    folder: Path,
    formats: Sequence[str] = FORMATS,
    choose: Callable[[Sequence[CaseResult]], list[Picture]] = pictures,
) -> list[Path]:
    """Write what `choose` chooses for each group of `run` into `folder`; which files those are."""
    written = []
    for group in run.groups:
        cases = run.cases_of(group)
        for picture in choose(cases):
            with style():
                figure = FIGURES[picture](cases)
                for suffix in formats:
                    path = folder / file_name(group, picture, suffix)
                    figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None)
                    written.append(path)
    return written


def style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(STYLE)


def bars(cases: Sequence[CaseResult]) -> Figure:
    """Every entrant's median time, with its quartiles."""
    shown = [(case, timed(case)) for case in cases if timed(case)]
    rows = sum(len(standings) for _, standings in shown)
    figure, axes = paper(0.27 * rows + 0.45 * len(shown) + 0.9)
    look = looks(entrants(cases))
    least = min(low_ns(one) for _, standings in shown for one in standings)
    most = max(high_ns(one) for _, standings in shown for one in standings)
    left = least / (most / least) ** 0.12 / 2
    y = 0.0
    for case, standings in shown:
        heading = size_name(case)
        axes.text(0, y, heading, transform=axes.get_yaxis_transform(), va="center", fontweight="bold", color=INK)
        for one in standings:
            y += 1
            median_ns = time_ns(one)
            axes.barh(y, median_ns - left, left=left, height=0.78, color=look[one.name].colour, linewidth=0)
            axes.errorbar(
                median_ns,
                y,
                xerr=[[median_ns - low_ns(one)], [high_ns(one) - median_ns]],
                color=INK,
                capsize=2.5,
                linewidth=1,
            )
            axes.annotate(
                duration(median_ns),
                (high_ns(one), y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=INK,
            )
        y += 1.45
    axes.set_xscale("log")
    axes.set_xlim(left, most * (most / left) ** 0.16)
    axes.set_ylim(y - 0.7, -0.8)
    labels = [one.name for _, standings in shown for one in standings]
    axes.set_yticks(places(shown), labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    durations(axes.xaxis)
    entitle(figure, title(cases))
    axes.set_xlabel(f"time for one {cases[0].operation}, median and quartiles (logarithmic)")
    return figure


def places(shown: Sequence[tuple[CaseResult, list[Standing]]]) -> list[float]:
    """Where the bars are, under their cases' headings."""
    found, y = [], 0.0
    for _, standings in shown:
        found += [y + number for number in range(1, len(standings) + 1)]
        y += len(standings) + 1.45
    return found


def times(cases: Sequence[CaseResult]) -> Figure:
    """Every entrant's time against what grows."""

    def value(case: CaseResult, one: Standing) -> tuple[float, float, float]:
        return time_ns(one), low_ns(one), high_ns(one)

    figure = lines(cases, value)
    axes = figure.axes[0]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:  # a cost that stays the same shall look so
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 10**0.5, middle * 10**0.5)
    durations(axes.yaxis)
    axes.set_ylabel(f"time for one {cases[0].operation}")
    return figure


def rates(cases: Sequence[CaseResult]) -> Figure:
    """Bytes a second against what grows."""

    def value(case: CaseResult, one: Standing) -> tuple[float, float, float] | None:
        moved = case.bytes_moved
        if not one.moves_bytes:
            return None
        return moved / time_ns(one), moved / high_ns(one), moved / low_ns(one)

    figure = lines(cases, value)
    axes = figure.axes[0]
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: rate(value) if value else "0"))
    axes.set_ylabel("bytes moved over time")
    return figure


def memory(cases: Sequence[CaseResult]) -> Figure:
    """What entrants measured of their memory while they worked: of the last case that has it."""
    case = [case for case in cases if series(case)][-1]
    figure, axes = paper(3.6)
    look = looks(entrants(cases))
    shown = series(case)
    unit, unit_s = ("hours", 3600) if shown[0].measured["seconds"][-1] > 2 * 3600 else ("minutes", 60)
    for number, one in enumerate(shown):
        axes.plot(
            [second / unit_s for second in one.measured["seconds"]],
            one.measured["bytes"],
            color=look[one.name].colour,
            linestyle=look[one.name].line,
            linewidth=1.3 + 1.6 * (len(shown) - 1 - number),  # those that take the same are all seen
            label=one.name,
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    if unit == "hours":
        axes.xaxis.set_major_locator(MultipleLocator(3))
    axes.yaxis.set_major_locator(MultipleLocator(2 ** max(0, math.ceil(math.log2(axes.get_ylim()[1] / 6)))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: size(value)))
    axes.set_xlabel(f"{unit} of the day that is replayed")
    axes.set_ylabel("memory taken")
    entitle(figure, f"{case.name}: memory of live caches")
    legend(figure, axes)
    return figure


def lines(
    cases: Sequence[CaseResult], value: Callable[[CaseResult, Standing], tuple[float, float, float] | None]
) -> Figure:
    """A line for each entrant that has a value over the places of `cases`, with a band between the quartiles."""
    placed = sorted(along_axis(cases), key=lambda case: case.place or 0)
    figure, axes = paper(4.2)
    look = looks(entrants(cases))
    for name in entrants(placed):
        found = [(case.place, value(case, one)) for case in placed for one in timed(case) if one.name == name]
        points = [(place, *values) for place, values in found if values is not None]
        if not points:
            continue
        x, middle, low, high = zip(*points, strict=True)
        chosen = look[name]
        axes.plot(x, middle, color=chosen.colour, marker=chosen.marker, markersize=5, linestyle=chosen.line, label=name)
        axes.fill_between(x, low, high, color=chosen.colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    sizes(axes, placed)
    entitle(figure, title(cases))
    legend(figure, axes)
    return figure


def sizes(axes: Axes, placed: Sequence[CaseResult]) -> None:
    """Name the places themselves below the axis."""
    of_bytes = placed[0].axis == "bytes"
    axes.xaxis.set_major_locator(FixedLocator(sorted({case.place or 0 for case in placed})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: size(value) if of_bytes else f"{value:,.0f}"))
    axes.set_xlabel(placed[0].axis or "")


def durations(axis: Any) -> None:
    """Times in units that suit them, at the powers of ten, and between them where there are few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(numticks=12, subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, place: duration(value)))


def legend(figure: Figure, axes: Axes) -> None:
    """Beside the plot."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)


def paper(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def entitle(figure: Figure, text: str) -> None:
    """From the left edge of the paper, so that there is room for a sentence."""
    figure.suptitle("\n".join(textwrap.wrap(text, TITLE_CHARACTERS)), x=0.01, horizontalalignment="left")


def title(cases: Sequence[CaseResult]) -> str:
    """The group, and what the titles of its cases have in common."""
    titles = [case.title.split() for case in cases]
    same = takewhile(lambda words: len(set(words)) == 1, zip_longest(*titles))
    shared = " ".join(words[0] for words in same)
    if shared != cases[0].title:
        shared = shared.rpartition(",")[0]  # a whole clause
    return f"{cases[0].group}: {shared}" if shared else cases[0].group


def entrants(cases: Sequence[CaseResult]) -> list[str]:
    return list(dict.fromkeys(one.name for case in cases for one in case.standings))


def time_ns(standing: Standing) -> float:
    assert standing.median_ns is not None
    return standing.median_ns


def low_ns(standing: Standing) -> float:
    """The lower quartile; not above the median, which two rounds can have it."""
    return time_ns(standing) if standing.quartiles_ns is None else min(standing.quartiles_ns[0], time_ns(standing))


def high_ns(standing: Standing) -> float:
    return time_ns(standing) if standing.quartiles_ns is None else max(standing.quartiles_ns[1], time_ns(standing))


FIGURES: dict[Picture, Callable[[Sequence[CaseResult]], Figure]] = {
    Picture.BARS: bars,
    Picture.TIMES: times,
    Picture.RATES: rates,
    Picture.MEMORY: memory,
}
