"""What a soak found, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .durations import size
from .soak_judge import SUCCESS
from .soak_results import Part, Report


def show(console: Console, report: Report) -> None:
    """Print each part: the faults, the calls, the requests; then what was violated, and how to see it again."""
    for part in report.parts:
        console.print(f"\n[bold]{escape(part.place)}[/]  {escape(in_words(part))}", highlight=False, soft_wrap=True)
        console.print(faults_of(part))
        console.print(calls_of(part))
        console.print(f"[dim]{escape(margin(report))}[/]", highlight=False, soft_wrap=True)
        for words in part.violations:
            console.print(f"[bold red]violated[/] {escape(words)}", highlight=False, soft_wrap=True)
        if part.violation_count > len(part.violations):
            console.print(f"[bold red]and {part.violation_count - len(part.violations)} more[/]")
        if part.interrupted:
            console.print("[bold yellow]Interrupted.[/]")
    if report.not_run is not None:
        console.print(f"\n[yellow]Not run between hosts:[/] {escape(report.not_run)}", soft_wrap=True)
    failed = any(part.violation_count for part in report.parts)
    verdict = "[bold red]Failed.[/]" if failed else "[bold green]Nothing was violated.[/]"
    console.print(f"\n{verdict} Again: {escape(report.command)}", highlight=False, soft_wrap=True)


def in_words(part: Part) -> str:
    """What was done, in one line."""
    ends = ", ".join(f"{count:,} {how}" for how, count in part.requests.items())
    begin = f"{part.request_count:,} requests in {part.seconds:.0f} s: {ends}. "
    if part.violation_count:
        return begin + f"{part.violation_count} violations"
    return begin + (
        f"{part.retried:,} transfers asked again, {part.prefilled_again:,} requests prefilled again,"
        f" {part.expired_keys:,} leases over; {size(part.bytes_verified)} verified, 0 bytes held at {part.rests} rests"
        f" of {part.processes} processes; {part.cores:.2f} cores busy"
    )


def margin(report: Report) -> str:
    return (
        f"Late: returned after the deadline ({report.timeout_ms} ms for a transfer), by so much. More than"
        f" {report.margin_ms} ms would be a violation. Not judged: the calling process itself was stopped meanwhile."
    )


def faults_of(part: Part) -> Table:
    table = Table("fault", "times", "struck", "transfers that overlapped it ended with", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in part.faults:
        table.add_row(row.kind, f"{row.count:,}", f"{row.struck:,}", codes(row.codes))
    table.add_row("none", "", "", codes(part.untouched))
    return table


def calls_of(part: Part) -> Table:
    headings = ("call", "times", "not judged", "late", "p50 ms", "p99 ms", "max ms", "ended with")
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns[1:7]:
        column.justify = "right"
    for row in part.calls:
        late = [f"{value:.1f}" for value in (row.p50_ms, row.p99_ms, row.max_ms)] if row.late else ["", "", ""]
        times = [f"{value:,}" if value else "" for value in (row.count, row.not_judged, row.late)]
        table.add_row(row.name, *times, *late, codes(row.codes))
    return table


def codes(found: Mapping[str, int]) -> str:
    """Each code and how often, the successes first."""
    ordered = sorted(found.items(), key=lambda item: (item[0] != SUCCESS, -item[1], item[0]))
    return ", ".join(f"{code.removeprefix('LLM_')} {count:,}" for code, count in ordered)
