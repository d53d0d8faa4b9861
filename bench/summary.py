"""The table at the end of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from comparison import Comparison, Target, duration

GROWTH_TARGET = Target(max_ratio=2, remark="beyond the dict's own")


@dataclass(frozen=True)
class Row:
    case: str
    median: str
    baseline: str
    ratio: str
    rate: str
    target: str = ""
    met: str = ""


HEADINGS = Row("case", "median", "baseline median", "ratio", "rate", "target", "met")


def row_of(found: Comparison) -> Row:
    low, high = found.ratio_quartiles
    return Row(
        found.case,
        duration(found.median_ns),
        f"{duration(found.baseline_median_ns)} {found.baseline}",
        f"{found.ratio:.2f}x ({low:.2f}-{high:.2f})",
        f"{found.bytes_moved / found.median_ns:.3g} GB/s" if found.bytes_moved else "",
        str(found.target or ""),
        met(found.target_is_met),
    )


def met(is_met: bool | None) -> str:
    return "" if is_met is None else "yes" if is_met else "no"


def growth_rows(found: Sequence[Comparison]) -> list[Row]:
    """How lookups slow down as keys become more, beside how the dictionary does: that is what the CPU's caches cost."""
    by_case = {one.case: one for one in found}
    rows = []
    for access in ("random", "repeated"):
        few = by_case.get(f"lookup, {access}, 1,000 keys")
        many = by_case.get(f"lookup, {access}, 1,000,000 keys")
        if few is None or many is None:
            continue
        ours = many.median_ns / few.median_ns
        dictionary = many.baseline_median_ns / few.baseline_median_ns
        rows.append(
            Row(
                f"lookup, {access}, growth from 1,000 to 1,000,000",
                f"{ours:.2f}x",
                f"{dictionary:.2f}x {few.baseline}",
                f"{ours / dictionary:.2f}x",
                "",
                str(GROWTH_TARGET),
                met(GROWTH_TARGET.is_met(ours / dictionary, 0)),
            )
        )
    return rows


def summary_lines(found: Sequence[Comparison], colour: bool) -> list[str]:
    rows = [row_of(one) for one in found] + growth_rows(found)
    try:
        return rich_lines(rows, colour)
    except ImportError:
        return plain_lines(rows)


def rich_lines(rows: Sequence[Row], colour: bool) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False)
    for name, value in vars(HEADINGS).items():
        table.add_column(value, justify="right" if name in ("median", "ratio", "rate") else "left", no_wrap=True)
    for row in rows:
        *cells, is_met = astuple(row)
        table.add_row(*map(Text, cells), Text(is_met, style={"yes": "green", "no": "bold red"}.get(is_met, "")))
    console = Console(file=io.StringIO(), force_terminal=colour, no_color=not colour, width=200)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def plain_lines(rows: Sequence[Row]) -> list[str]:
    cells = [astuple(row) for row in (HEADINGS, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
