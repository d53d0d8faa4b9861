"""``llmdd bench`` and its options."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from . import catalogue, ordering, results, summary
from . import page as page_of_run
from .case import Case, Profile
from .progress_bar import ProgressBar
from .run import play

#: The status that a shell gives to a command that was interrupted.
INTERRUPTED = 130

#: The columns that the summary needs, wherever it goes.
LEAST_WIDTH = 130

PLOTTING = importlib.util.find_spec("matplotlib") is not None
NO_PLOTS = "No plots: they need matplotlib (pip install 'llmdd[bench]')"

app = typer.Typer(rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]})


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    profile: Annotated[
        Profile, typer.Option(help="quick: some sizes, two minutes. full: all of them, half an hour.")
    ] = Profile.QUICK,
    case: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only cases whose name or group matches, as file names do: `pull`, `'cycle/*-live'`. May be repeated.",
            show_default="all",
        ),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Show the cases, and run none.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where results.json and the plots are written.",
            show_default="./llmdd-bench-PROFILE; with --json none",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Measure llmdd beside everything one might use instead, here and now.

    Every entrant of a case works in processes of its own, and by turns with the others. What it did is checked: one
    that did something else has no time and is shown in red, and the exit status is 1. Ctrl-C keeps what was finished,
    and ends with status 130.
    """
    if context.invoked_subcommand is not None:
        return
    try:
        cases = catalogue.chosen(profile, case or ())
    except catalogue.UnknownCase as unknown:
        raise typer.BadParameter(str(unknown), param_hint="--case") from None
    if list_cases:
        list_all(cases, as_json)
        return
    folder = output
    if folder is None and not as_json:
        folder = Path(f"llmdd-bench-{profile.value}")
    if folder is not None:
        make(folder)
    with ProgressBar(Console(stderr=True), quiet=as_json) as bar:
        run = play(cases, profile, bar.show)
    written = [] if folder is None else keep(run, folder)
    if as_json:
        typer.echo(msgspec.json.encode(run))
    else:
        console = wide(Console())
        summary.show(console, run)
        tell_where(console, written)
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)
    if run.incorrect:
        raise typer.Exit(1)


def list_all(cases: list[Case], as_json: bool) -> None:
    """Print the cases, each with who takes part."""
    if as_json:
        typer.echo(msgspec.json.encode([{"name": one.name, "entrants": names(one)} for one in cases]))
        return
    console = wide(Console())
    for one in cases:
        console.print(f"[bold]{escape(one.name)}[/]  {escape(one.title)}", highlight=False, soft_wrap=True)
        console.print(f"  [dim]{escape(', '.join(names(one)))}[/]", highlight=False, soft_wrap=True)


def names(case: Case) -> list[str]:
    return [entrant.name for entrant in case.entrants]


def make(folder: Path) -> None:
    """Make `folder` before half an hour has gone into what shall be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be made: {error.strerror}", param_hint="--output") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{folder} cannot be written to", param_hint="--output")


def keep(run: results.Run, folder: Path) -> list[Path]:
    """Write the results and, if matplotlib is there, the plots; where they are."""
    path = folder / "results.json"
    results.write(run, path)
    if not PLOTTING:
        return [path]
    from . import plots

    return [path, *plots.draw(run, folder)]


def tell_where(console: Console, written: list[Path]) -> None:
    if not written:
        return
    console.print(f"\nResults: {escape(str(written[0]))}", highlight=False, soft_wrap=True)
    if not PLOTTING:
        console.print(NO_PLOTS, markup=False, highlight=False)
    elif len(written) > 1:
        console.print(f"Plots: {len(written) - 1} files beside it", highlight=False)


def wide(console: Console) -> Console:
    """So wide that a row of the summary is one line, in a narrow terminal and in a file too."""
    console.width = max(console.width, LEAST_WIDTH)
    return console


ResultFiles = Annotated[
    list[Path], typer.Argument(metavar="RESULTS...", help="The results.json of two runs or more.", show_default=False)
]


@app.command()
def order(files: ResultFiles) -> None:
    """Compare runs: is llmdd faster than the same peers, and slower, in all of them?

    For each peer of each case it says which it is. If the runs disagree about one, the exit status is 1.
    """
    if len(files) < 2:
        raise typer.BadParameter("one run has nothing to be compared with", param_hint="RESULTS")
    found = ordering.comparisons([load(path) for path in files])
    if not found:
        raise typer.BadParameter("there is no peer in any of these runs", param_hint="RESULTS")
    ordering.show(wide(Console()), found)
    if not all(one.same for one in found):
        raise typer.Exit(1)


@app.command()
def page(
    file: Annotated[Path, typer.Argument(metavar="RESULTS", help="The results.json of a run.", show_default=False)],
    docs: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the page and its plots belong.")] = Path("docs"),
    readme: Annotated[Path, typer.Option(metavar="FILE", help="Whose figures are brought up to date.")] = Path(
        "README.md"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the text there is not what RESULTS gives.")
    ] = False,
) -> None:
    """Write the benchmarks' page and the README's figures from a run.

    The page is benchmarks.md in the folder of the docs; plots and results go to the folder benchmarks beside it.
    """
    run = load(file)
    if run.interrupted:
        raise typer.BadParameter(f"{file} is of a run that was interrupted", param_hint="RESULTS")
    try:
        if check:
            different = page_of_run.differences(run, docs, readme)
            typer.echo("\n".join(different), err=True, nl=bool(different))
            raise typer.Exit(1 if different else 0)
        if not PLOTTING:
            typer.echo(NO_PLOTS, err=True)
            raise typer.Exit(1)
        page_of_run.write(run, file, docs, readme)
    except page_of_run.NoPlace as missing:
        raise typer.BadParameter(f"{readme}: {missing}", param_hint="--readme") from None
    except OSError as error:
        raise typer.BadParameter(f"{error.filename}: {error.strerror}", param_hint="--docs, --readme") from None
    typer.echo(f"Wrote {docs / page_of_run.PAGE}, {docs / page_of_run.FOLDER}/ and the figures of {readme}")


def load(path: Path) -> results.Run:
    try:
        return results.read(path, results.Run)
    except results.UnreadableResults as unreadable:
        raise typer.BadParameter(str(unreadable), param_hint="RESULTS") from None
