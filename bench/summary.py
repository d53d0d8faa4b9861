"""What a run found, as the terminal shows it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .durations import duration, rate, size, spread, times
from .results import CaseResult, Run, Standing

#: Of the columns; cases stand under each other without a table around them all.
WIDTHS = (35, 8, 15, 8, 17, 11, 20, 7)
HEADINGS = ("times for one operation", "median", "quartiles", "ratio", "", "rate", "resident / peak", "correct")


def show(console: Console, run: Run) -> None:
    """Print every case with its entrants, then who was skipped and why, and what was wrong."""
    console.print(row(*(Text(heading, style="dim") for heading in HEADINGS)))
    for case in run.cases:
        console.print(heading(case), soft_wrap=True)
        for standing in case.standings:
            if standing.skipped is None:
                console.print(row(*cells(case, standing)))
    for name, reason, cases in skipped(run):
        console.print(f"\n[yellow]{escape(name)} skipped[/] in {escape(', '.join(cases))}: ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    for case, standing in run.incorrect:
        console.print(f"\n[bold red]{escape(standing.name)} is incorrect[/] in {escape(case.name)}: ", end="")
        console.print(standing.incorrect, style="red", markup=False, highlight=False, soft_wrap=True)
    if run.interrupted:
        console.print("\n[bold yellow]Interrupted:[/] cases that were not finished are missing.")


def row(*cells: Text) -> Table:
    table = Table.grid(padding=(0, 1))
    for number, width in enumerate(WIDTHS):
        table.add_column(width=width, no_wrap=True, justify="left" if number == 0 else "right")
    table.add_row(*cells)
    return table


def heading(case: CaseResult) -> Text:
    """The case, and whether llmdd has reached what it should."""
    text = Text("\n").append(case.name, style="bold").append(f"  {case.title}", style="dim")
    if case.target is not None and case.target_met is not None:
        text.append(f", target {case.target}: ", style="dim")
        text.append("met" if case.target_met else "missed", style="green" if case.target_met else "yellow")
    return text


def cells(case: CaseResult, standing: Standing) -> list[Text]:
    name = Text(f"  {case.label(standing)}")
    if standing.median_ns is None or standing.quartiles_ns is None:
        return [name, *[Text("-", style="dim")] * 6, Text("no", style="bold red")]
    gb_s = case.rate_gb_s(standing)
    return [
        name,
        Text(duration(standing.median_ns), style="bold"),
        Text(spread(*standing.quartiles_ns)),
        Text(ratio(case, standing)),
        Text(ratio_spread(case, standing), style="dim"),
        Text("" if gb_s is None else rate(gb_s)),
        Text(memory(standing)),
        Text("yes", style="green"),
    ]


def ratio(case: CaseResult, standing: Standing) -> str:
    """To the baseline's median; nothing if the baseline has none."""
    if standing.name == case.baseline:
        return "baseline"
    return "" if standing.ratio is None else times(standing.ratio)


def ratio_spread(case: CaseResult, standing: Standing) -> str:
    if standing.name == case.baseline or standing.ratio_quartiles is None:
        return ""
    low, high = standing.ratio_quartiles
    return f"({times(low)}-{times(high)})"


def memory(standing: Standing) -> str:
    if standing.resident_bytes is None or standing.peak_bytes is None:
        return ""
    return f"{size(standing.resident_bytes)} / {size(standing.peak_bytes)}"


def skipped(run: Run) -> list[tuple[str, str, list[str]]]:
    """Each entrant that was skipped for a reason, with the cases in which it was."""
    cases: dict[tuple[str, str], list[str]] = {}
    for case in run.cases:
        for one in case.standings:
            if one.skipped is not None:
                cases.setdefault((one.name, one.skipped), []).append(case.name)
    return [(name, reason, names) for (name, reason), names in cases.items()]
