"""``llmdd soak`` and its options."""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.status import Status

from . import results, soak, soak_page, soak_results, soak_summary
from .contender import Unavailable
from .machine import this_machine
from .results import UnreadableResults
from .soak import Findings, Place, Settings
from .soak_results import Report
from .switched_hosts import SwitchedHosts

INTERRUPTED = 130
LEAST_WIDTH = 150

#: How often it is shown how far it is, on a terminal and elsewhere.
REFRESH_S, LINE_S = 0.25, 60.0

#: The packages that have NIXL in them.
NIXL = ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm")

app = typer.Typer(rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(invoke_without_command=True)
def run_soak(
    context: typer.Context,
    seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Requests and faults are drawn from it: the same seed, the same ones."),
    ] = 7,
    minutes: Annotated[float, typer.Option(metavar="N", min=0.01, help="How long requests and faults go on.")] = 2.0,
    prefill: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Prefill processes.")] = 3,
    decode: Annotated[int, typer.Option(metavar="N", min=1, max=16, help="Decode processes.")] = 3,
    hosts: Annotated[
        bool | None,
        typer.Option(
            "--hosts/--one-host",
            help="Every process on a host of its own (a network namespace; needs root, and NIXL), or all on this one.",
            show_default="half the time each",
        ),
    ] = None,
    requests_per_second: Annotated[
        float, typer.Option(metavar="N", min=0.1, help="On the average. 20 keep less than one core busy.")
    ] = 20.0,
    fault_every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="The mean time from one fault to the next.")
    ] = 1.0,
    timeout: Annotated[
        int, typer.Option(metavar="MS", min=100, help="The deadline of every transfer (sync_kv_timeout).")
    ] = 1000,
    margin: Annotated[
        int, typer.Option(metavar="MS", min=1, help="How much later than its deadline a call may return.")
    ] = 1000,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the results are written, as JSON.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Serve requests while processes are killed, stopped, cut off and restarted, and see that nothing goes wrong.

    Prefill processes offer the caches of thousands of requests, decode processes fetch them in every way that llmdd
    has. Faults come at random moments, several at a time. Looked at are every byte that arrives, by a checksum of its
    content and its owner; every call, by its deadline and its code; and every few seconds, when nothing is under way,
    that nobody holds a byte. The exit status is 1 if anything was violated; then the logs of the processes are kept.

    `llmdd soak --seed 7 --minutes 60 --output soak.json` is an hour of it.
    """
    if context.invoked_subcommand is not None:
        return
    if output is not None and not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.absolute().parent}", param_hint="--output")
    why_not = None if hosts is False else why_no_hosts(prefill + decode)
    if hosts and why_not is not None:
        raise typer.BadParameter(why_not, param_hint="--hosts")
    places = [Place.ONE_HOST] * (not hosts) + [Place.HOSTS] * (hosts is not False and why_not is None)
    found = []
    console = Console(stderr=True)
    began = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with Status("starting", console=console) as status:
        if not console.is_terminal:
            status.stop()
        for place in places:
            settings = Settings(
                seed=seed,
                seconds=60 * minutes / len(places),
                place=place,
                prefill=prefill,
                decode=decode,
                requests_per_second=requests_per_second,
                mean_fault_gap_s=fault_every,
                timeout_ms=timeout,
                margin_ms=margin,
            )
            found.append(soak.run(settings, shown(console, status, as_json)))
            if found[-1].interrupted:
                break
    report = Report(
        command=command(seed),
        began=began,
        seed=seed,
        prefill=prefill,
        decode=decode,
        requests_per_second=requests_per_second,
        timeout_ms=timeout,
        margin_ms=margin,
        machine=this_machine(),
        versions=versions(),
        not_run=why_not,
        parts=[soak_results.part_of(findings) for findings in found],
    )
    conclude(report, found, output, as_json)


def conclude(report: Report, found: list[Findings], output: Path | None, as_json: bool) -> None:
    """Show and keep what was found, and exit with the status that says it."""
    if output is not None:
        results.write(report, output)
    if as_json:
        typer.echo(msgspec.json.encode(report))
    else:
        console = Console()
        console.width = max(console.width, LEAST_WIDTH)
        soak_summary.show(console, report)
    for findings in found:
        if findings.logs is not None:
            typer.echo(f"The logs of the processes: {findings.logs}", err=True)
    if any(part.interrupted for part in report.parts):
        raise typer.Exit(INTERRUPTED)
    if not report.passed:
        raise typer.Exit(1)


def shown(console: Console, status: Status, quiet: bool) -> soak.Show:
    """Shows how far it is: all the time on a terminal, else a line each minute; nothing if `quiet`."""
    every_s = REFRESH_S if console.is_terminal else LINE_S
    last = time.monotonic()

    def show(words: str) -> None:
        nonlocal last
        if quiet or time.monotonic() - last < every_s:
            return
        last = time.monotonic()
        if console.is_terminal:
            status.update(words)
        else:
            console.print(words, highlight=False, soft_wrap=True)

    return show


def why_no_hosts(count: int) -> str | None:
    """What is missing for a host for each process; None if nothing is."""
    if not any(importlib.util.find_spec(package) for package in NIXL):
        return "NIXL is not installed: pip install --no-deps nixl-cu12"
    try:
        SwitchedHosts(count).close()
    except Unavailable as reason:
        return str(reason)
    return None


def command(seed: int) -> str:
    """What this program was called with, and the seed that was taken."""
    given = [] if "--seed" in " ".join(sys.argv) else ["--seed", str(seed)]
    return shlex.join(["llmdd", *sys.argv[1:], *given])


def versions() -> dict[str, str]:
    """Of what moves the bytes."""
    found = {"llmdd": version("llmdd")}
    for package in ("nixl-cu12", "nixl-cu13", "nixl"):
        try:
            found["NIXL"] = version(package)
            break
        except PackageNotFoundError:
            continue
    return found


@app.command()
def page(
    file: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="What --output of a run has written.", show_default=False)
    ],
    docs: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the page belongs.")] = Path("docs"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the page there is not what RESULTS gives.")
    ] = False,
) -> None:
    """Write the soak's page from a run: soak.md in the folder of the docs, and the results to soak/results.json."""
    try:
        report = results.read(file, Report)
    except UnreadableResults as unreadable:
        raise typer.BadParameter(str(unreadable), param_hint="RESULTS") from None
    if not report.passed:
        raise typer.BadParameter(f"{file} is of a run that failed, or was interrupted", param_hint="RESULTS")
    if check:
        there = docs / soak_page.PAGE
        if not there.is_file() or there.read_text(encoding="utf-8") != soak_page.page(report):
            typer.echo(f"{there} is not the page of these results", err=True)
            raise typer.Exit(1)
        return
    try:
        soak_page.write(report, docs)
    except OSError as error:
        raise typer.BadParameter(f"{error.filename}: {error.strerror}", param_hint="--docs") from None
    typer.echo(f"Wrote {docs / soak_page.PAGE} and {docs / soak_page.RESULTS}")
