"""The table at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .counts import Counts
from .verdict import Judged, Verdict, growth

HEADINGS = ("path", "for one", "core, baseline", "now", "difference", "all, baseline", "now", "difference", "verdict")
STYLES = {Verdict.BETTER: "green", Verdict.NEW: "bold red", Verdict.GONE: "bold red", Verdict.WORSE: "bold red"}


def number(instructions: float | None) -> str:
    if instructions is None:
        return ""
    return f"{instructions:,.0f}" if instructions >= 1000 else f"{instructions:,.1f}"


def difference(before: float | None, now: float | None) -> str:
    if before is None or now is None:
        return ""
    grown = growth(before, now)
    if math.isinf(grown):
        return "from none"
    if before == now:
        return "="
    return f"{grown:+.2%}" if abs(grown) >= 0.00005 else "≈"


def cells_of(judged: Judged) -> list[str]:
    cells = [judged.name, judged.operation]
    for part in Counts.__struct_fields__:
        before: float | None = getattr(judged.before, part, None) if part in judged.compared else None
        now: float | None = getattr(judged.now, part, None)
        cells += [number(before), number(now), difference(before, now)]
    return [*cells, judged.verdict.value]


def show(paths: Sequence[Judged]) -> None:
    """Print the table; with rich, if that is installed."""
    try:
        show_richly(paths)
    except ImportError:
        show_plainly(paths)


def show_richly(paths: Sequence[Judged]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # What does not go to a terminal is not folded to the width of one.
    console = console if console.is_terminal else Console(width=200)
    table = Table(show_edge=False, title="instructions for one operation", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("path", "for one", "verdict") else "right")
    for path in paths:
        *cells, verdict = cells_of(path)
        table.add_row(*map(Text, cells), Text(verdict, style=STYLES.get(path.verdict, "")))
    console.print(table)


def show_plainly(paths: Sequence[Judged]) -> None:
    cells = [list(HEADINGS), *(cells_of(path) for path in paths)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print("instructions for one operation")
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
