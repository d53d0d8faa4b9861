"""The soak's page, from a run's results; every figure in it is theirs, the words stand in ``page_text/soak.md``."""

from __future__ import annotations

from pathlib import Path

from . import results
from .durations import size
from .page import TEXT, machine_rows, table
from .soak_results import Part, Report
from .soak_summary import codes

#: Beneath the folder of the docs.
PAGE = Path("soak.md")
RESULTS = Path("soak", "results.json")


def page(report: Report) -> str:
    """The whole page, in Markdown."""
    words = (TEXT / "soak.md").read_text(encoding="utf-8").strip()
    parts = [words, where(report), *(one_part(part) for part in report.parts)]
    return "\n\n".join(parts) + "\n"


def where(report: Report) -> str:
    """The run, the machine and the versions."""
    seconds = sum(part.seconds for part in report.parts)
    rows = [
        ("run", f"`{report.command}`, {report.began[:10]}, {seconds / 60:.0f} minutes"),
        (
            "processes",
            f"{report.prefill} prefill and {report.decode} decode, {report.requests_per_second:g} requests/s",
        ),
        ("deadline", f"{report.timeout_ms} ms for each transfer; {report.margin_ms} ms more would be a violation"),
        *machine_rows(report.machine),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
    ]
    return "## The run\n\n" + table(("", ""), rows)


def one_part(part: Part) -> str:
    """What happened in one place."""
    name = part.place[0].upper() + part.place[1:]
    return "\n\n".join((f"## {name}", totals(part), faults_of(part), overruns_of(part)))


def totals(part: Part) -> str:
    ends = ", ".join(f"{count:,} {how}" for how, count in part.requests.items())
    calls = sum(row.count for row in part.calls)
    rows = [
        ("requests", f"{part.request_count:,}: {ends}"),
        ("served, by their way", ", ".join(f"{way} {count:,}" for way, count in part.ways.items())),
        ("transfers asked for again", f"{part.retried:,}"),
        ("requests prefilled again", f"{part.prefilled_again:,}"),
        ("keys whose lease was over", f"{part.expired_keys:,}, as many as nobody kept"),
        ("faults", f"{part.fault_count:,}, for {part.seconds:.0f} s; {part.processes} processes one after another"),
        (
            "calls of llmdd",
            f"{calls:,}, and {part.lost_calls:,} things asked of a process that died before it answered",
        ),
        ("bytes verified", f"{size(part.bytes_verified)}; **wrong: 0**"),
        ("bytes still held", f"**0** at each of {part.rests} times when everything had come to rest"),
        ("processor", f"{part.cores:.2f} cores busy on the average"),
    ]
    return table(("", ""), rows)


def faults_of(part: Part) -> str:
    heading = ("fault", "times", "transfers under way at its victim", "how the transfers that overlapped it ended")
    rows = [(row.kind, f"{row.count:,}", f"{row.struck:,}", codes(row.codes)) for row in part.faults]
    return table(heading, [*rows, ("none", "", "", codes(part.untouched))])


def overruns_of(part: Part) -> str:
    """Of calls that returned after their deadline, by how much."""
    heading = ("call", "times", "own process stopped", "after the deadline", "by, median", "p99", "at most")
    rows = [
        (
            f"`{row.name}`",
            f"{row.count:,}",
            f"{row.not_judged:,}",
            f"{row.late:,}",
            *(f"{value:.1f} ms" if row.late else "" for value in (row.p50_ms, row.p99_ms, row.max_ms)),
        )
        for row in part.calls
    ]
    return table(heading, rows)


def write(report: Report, docs: Path) -> None:
    """Write the page, and the results beside it."""
    (docs / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (docs / PAGE).write_text(page(report), encoding="utf-8")
    results.write(report, docs / RESULTS)
