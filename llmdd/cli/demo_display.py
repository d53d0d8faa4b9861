"""What ``llmdd demo`` shows: a progress bar for each process while it runs, a summary at the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llmdd.demo import messages
from llmdd.demo.released import PoolState, Recovery
from llmdd.demo.report import Report

MIB = 1 << 20


class ProgressDisplay:
    """Progress bars on ``console`` while the context lasts; nothing if ``quiet`` or if it is no terminal."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._shown = console.is_terminal and not quiet
        self._bars = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            disable=not self._shown,
            transient=True,
        )
        self._prefill = self._bars.add_task("prefill", unit="requests", note="", total=None)
        self._decode = self._bars.add_task("decode", unit="tokens", note="", total=None)
        self._verify = self._bars.add_task(
            "single process", unit="tokens", note="", total=None, visible=False, start=False
        )

    def __enter__(self) -> ProgressDisplay:
        if self._shown:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._bars.stop()

    def show(self, progress: messages.Progress) -> None:
        """Bring the bars up to date."""
        waiting = progress.prefilled - progress.pulled
        self._bars.update(
            self._prefill, completed=progress.prefilled, total=progress.requests, note=f"{waiting} waiting to be pulled"
        )
        running = "killed" if progress.decode_killed else f"{progress.running} running"
        self._bars.update(self._decode, completed=progress.generated, total=progress.tokens, note=running)
        if progress.to_verify:
            self._bars.start_task(self._verify)
            self._bars.update(self._verify, completed=progress.verified, total=progress.to_verify, visible=True)


def show_report(console: Console, report: Report) -> None:
    """Print what the run has shown."""
    rows = Table.grid(padding=(0, 3))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column()
    rows.add_row("identical", identity(report))
    rows.add_row("requests", f"{report.requests:,}")
    rows.add_row("tokens", f"{report.tokens:,}")
    rows.add_row("bytes moved", f"{mebibytes(report.bytes_moved)}, {mebibytes(report.slot_bytes)} for each request")
    rows.add_row("transport", report.transport)
    rows.add_row(
        "pull latency", f"median {report.pull_latency_us(50):,.0f} µs, p99 {report.pull_latency_us(99):,.0f} µs"
    )
    rows.add_row("pull rate", f"{report.rate_gb_s:.1f} GB/s")
    rows.add_row("time", f"{report.seconds:,.1f} s from the first prompt to the last release")
    rows.add_row("backpressure", f"prefill waited {report.prefill.waits:,} times for a pull to give memory back")
    if report.prefill.recovery is not None:
        rows.add_row("decode", Text("killed", style="yellow").append(f" after {report.requests} pulls", style="none"))
        rows.add_row("left behind", orphans(report.prefill.recovery))
    rows.add_row("prefill pool", freedom(report.prefill.pool, report.prefill.recovery))
    if report.decode is not None:
        rows.add_row("decode pool", freedom(report.decode.pool))
    rows.add_row("leaked", verdict(report.leaked_bytes == 0, f"{report.leaked_bytes:,} bytes"))
    remark = Text("The model is untrained: its answers are noise, but they are the same noise.", style="dim")
    console.print(
        Panel(
            Group(rows, Text(), remark),
            title=f"[bold]llmdd demo[/]: {places(report)}",
            title_align="left",
            border_style="green" if report.passed else "red",
            padding=(1, 2),
            expand=False,
        )
    )


def places(report: Report) -> str:
    """Where prefill and decode ran."""
    if report.hosts is None:
        return "prefill and decode in two processes"
    prefill, decode = map(escape, report.hosts)
    return f"prefill at {prefill}, decode at {decode}"


def identity(report: Report) -> Text:
    """Whether the tokens are those of a single process, and where not."""
    if report.identical:
        return verdict(True, "yes", ": every token is the one that a single process generates")
    requests = ", ".join(map(str, report.different[:8])) + (", ..." if len(report.different) > 8 else "")
    return verdict(False, "no", f": {len(report.different)} requests differ ({requests})")


def orphans(recovery: Recovery) -> str:
    """What a dead decode process left with prefill."""
    return f"{mebibytes(recovery.orphaned_bytes)} of prefill's pool, {recovery.orphaned_keys} keys never to be pulled"


def freedom(pool: PoolState, recovery: Recovery | None = None) -> Text:
    """How much of a pool is free, and how long that took after a peer's death."""
    size = mebibytes(pool.total_bytes)
    if pool.taken_bytes:
        return verdict(False, f"{mebibytes(pool.taken_bytes)} of {size} taken")
    after = f" again after {recovery.seconds * 1000:,.2f} ms" if recovery is not None else ""
    return verdict(True, "entirely free", f"{after} ({size})")


def verdict(good: bool, words: str, rest: str = "") -> Text:
    """``words`` in the colour of success or failure, then ``rest``."""
    return Text(words, style="bold green" if good else "bold red").append(rest, style="not bold default")


def mebibytes(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"
