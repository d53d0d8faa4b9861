"""The commands of ``llmdd`` and their options."""

from __future__ import annotations

import importlib
import json
from enum import Enum
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from llmdd.demo.orchestrator import DemoFailed, run
from llmdd.demo.prompts import UnusablePrompts, bundled_prompts, read_prompts
from llmdd.demo.settings import Settings

from .demo_display import ProgressDisplay, show_report

app = typer.Typer(
    help="KV caches for disaggregated LLM serving: moved between prefill and decode, and freed when nobody needs them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Installed from bench/, which is no part of this package in the source.
app.add_typer(importlib.import_module("llmdd.bench.command").app, name="bench")


class Victim(str, Enum):
    """A process that the demo can kill."""

    DECODE = "decode"


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdd {version('llmdd')}")
        raise typer.Exit


@app.callback()
def llmdd(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    prompts: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            metavar="FILE",
            help="Prompts, one on each line; - reads standard input.",
            show_default="those that come with llmdd",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Tokens to answer each prompt with.")] = 48,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Requests in one prefill batch.")] = 4,
    slots: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Sequences that decode runs at once.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the model's random weights.")] = 0,
    kill: Annotated[
        Victim | None,
        typer.Option(
            help="Kill this process (SIGKILL) when half of the requests have been pulled.", show_default=False
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Serve prompts with two linked processes, and check them against one.

    A prefill process reads the prompts and offers each request's KV cache under a key. A decode process pulls it into
    its running batch and generates. The model is small and untrained, but real, and every token must be the one that
    a single process generates. The exit status is 0 only if that is so and no memory is left over.
    """
    errors = Console(stderr=True)
    try:
        chosen = bundled_prompts() if prompts is None else read_prompts(prompts, prompts.name)
    except UnusablePrompts as unusable:
        raise typer.BadParameter(str(unusable), param_hint="--prompts") from None
    settings = Settings.for_prompts(chosen, tokens, seed, batch, slots)
    try:
        with ProgressDisplay(errors, quiet=as_json) as progress:
            report = run(chosen, settings, kill is Victim.DECODE, progress.show)
    except DemoFailed as failure:
        errors.print("[bold red]The demo failed:[/] ", end="")
        errors.print(str(failure), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(report.as_object()))
    else:
        show_report(Console(), report, settings)
    if not report.passed:
        raise typer.Exit(1)
