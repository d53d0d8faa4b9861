"""The commands of ``llmdd`` and their options."""

from __future__ import annotations

import importlib
import json
import os
from enum import Enum
from importlib.metadata import version
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from llmdd.demo import decode_end, orchestrator, prefill_end
from llmdd.demo.choices import (
    DEFAULT_BATCH,
    DEFAULT_SEED,
    DEFAULT_SLOTS,
    DEFAULT_TOKENS,
    MAX_BATCH,
    MAX_SEED,
    MAX_SLOTS,
    MAX_TOKENS,
    Choices,
)
from llmdd.demo.introduction import Address
from llmdd.demo.orchestrator import DemoFailed
from llmdd.demo.prompts import UnusablePrompts, bundled_prompts, read_prompts
from llmdd.demo.settings import Settings

from . import keys
from .demo_display import ProgressDisplay, show_report

app = typer.Typer(
    help="KV caches for disaggregated LLM serving: moved between prefill and decode, and freed when nobody needs them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(keys.app, name="keys")
# Installed from bench/, which is no part of this package in the source.
app.add_typer(importlib.import_module("llmdd.bench.command").app, name="bench")
app.add_typer(importlib.import_module("llmdd.bench.soak_command").app, name="soak")


TWO_HOSTS = "On two hosts"


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


class Role(str, Enum):
    """The end of a run on two hosts that a command starts."""

    PREFILL = "prefill"
    DECODE = "decode"


class Transport(str, Enum):
    """What KV caches can be told to travel by."""

    NIXL = "nixl"


def read_address(text: str) -> Address:
    """An option's value as an address."""
    try:
        return Address.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


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
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_TOKENS,
            help="Tokens to answer each prompt with.",
            show_default=str(DEFAULT_TOKENS),
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=MAX_BATCH, help="Requests in one prefill batch.", show_default=str(DEFAULT_BATCH)
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_SLOTS,
            help="Sequences that decode runs at once.",
            show_default=str(DEFAULT_SLOTS),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=MAX_SEED, help="Seed of the model's random weights.", show_default=str(DEFAULT_SEED)
        ),
    ] = None,
    kill: Annotated[
        Victim | None,
        typer.Option(
            help="Kill this process (SIGKILL) when half of the requests have been pulled.", show_default=False
        ),
    ] = None,
    transport: Annotated[
        Transport | None,
        typer.Option(
            help="Move KV caches by NIXL even where memory could be shared.", show_default="what the hosts allow"
        ),
    ] = None,
    role: Annotated[
        Role | None,
        typer.Option(help="Run this end only; the other one is started on another host.", rich_help_panel=TWO_HOSTS),
    ] = None,
    listen: Annotated[
        Address | None,
        typer.Option(
            metavar="HOST:PORT",
            parser=read_address,
            help="Where the prefill end waits for the other; llmdd listens at the next port.",
            rich_help_panel=TWO_HOSTS,
        ),
    ] = None,
    connect: Annotated[
        Address | None,
        typer.Option(
            metavar="HOST:PORT",
            parser=read_address,
            help="Where the decode end finds the other.",
            rich_help_panel=TWO_HOSTS,
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="How long either end waits for the other.", rich_help_panel=TWO_HOSTS
        ),
    ] = 120,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="LLMDD_LINK_KEY",
            help="This end's key (llmdd keys new): it proves who it is, and what is said is encrypted.",
            show_default=False,
            rich_help_panel=TWO_HOSTS,
        ),
    ] = None,
    allowed_keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="LLMDD_LINK_ALLOWED_KEYS",
            help="The certificates of those who may be the other end.",
            show_default=False,
            rich_help_panel=TWO_HOSTS,
        ),
    ] = None,
    open_links: Annotated[
        bool,
        typer.Option(
            "--open-links",
            envvar="LLMDD_OPEN_LINKS",
            help="Let anybody who reaches it be the other end, where there are no keys.",
            rich_help_panel=TWO_HOSTS,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else on standard output.")
    ] = False,
) -> None:
    """Serve prompts with two linked processes, and check them against one.

    A prefill process reads the prompts and offers each request's KV cache under a key. A decode process pulls it into
    its running batch and generates. The model is small and untrained, but real, and every token must be the one that
    a single process generates. The exit status is 0 only if that is so and no memory is left over.

    On two hosts: `llmdd demo --role prefill --listen 10.0.0.1:26000` on the one that has that address, and `llmdd demo
    --role decode --connect 10.0.0.1:26000` on the other, each with a `--key` and its `--allowed-keys`. The prompts are
    the prefill end's. What else is chosen may be said at either end, and is shown at both.
    """
    tell_of_keys(key, allowed_keys, open_links)
    require_consistent_role(role, listen, connect, prompts is not None)
    errors = Console(stderr=True)
    choices = Choices(
        tokens, batch, slots, seed, None if transport is None else transport.value, kill_decode=kill is Victim.DECODE
    )

    def invite(address: Address) -> None:
        words = f"waiting for the other end: llmdd demo --role decode --connect {address}"
        errors.print(words, markup=False, highlight=False, soft_wrap=True)

    try:
        with ProgressDisplay(errors, quiet=as_json) as progress:
            if connect is not None:
                report = decode_end.run(choices, connect, wait, progress.show)
            elif listen is not None:
                report = prefill_end.run(chosen_prompts(prompts), choices, listen, wait, invite, progress.show)
            else:
                chosen = chosen_prompts(prompts)
                settings = Settings.for_prompts(chosen, choices)
                report = orchestrator.run(chosen, settings, choices.kill_decode, progress.show)
    except DemoFailed as failed:
        errors.print("[bold red]The demo failed:[/] ", end="")
        errors.print(str(failed), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(report.as_object()))
    else:
        show_report(Console(), report)
    if not report.passed:
        raise typer.Exit(1)


def tell_of_keys(key: str | None, allowed_keys: str | None, open_links: bool) -> None:
    """Have every process of the run know the keys, and nobody else."""
    if (key is None) != (allowed_keys is None):
        raise typer.BadParameter("the one is given and the other is not", param_hint="--key and --allowed-keys")
    if key is not None and allowed_keys is not None:
        os.environ["LLMDD_LINK_KEY"], os.environ["LLMDD_LINK_ALLOWED_KEYS"] = key, allowed_keys
    if open_links:
        os.environ["LLMDD_OPEN_LINKS"] = "1"


def require_consistent_role(
    role: Role | None, listen: Address | None, connect: Address | None, has_prompts: bool
) -> None:
    """Refuse options that do not belong to the end of the run that is started."""
    if role is None and (listen or connect):
        raise typer.BadParameter("it needs --role, which says which end this is", param_hint="--listen or --connect")
    if role is Role.PREFILL and (listen is None or connect is not None):
        raise typer.BadParameter(
            "the prefill end waits for the other: it takes --listen HOST:PORT, and no --connect", param_hint="--role"
        )
    if role is Role.DECODE and (connect is None or listen is not None):
        raise typer.BadParameter(
            "the decode end calls the other: it takes --connect HOST:PORT, and no --listen", param_hint="--role"
        )
    if role is Role.DECODE and has_prompts:
        raise typer.BadParameter("the prompts are the prefill end's: give them there", param_hint="--prompts")


def chosen_prompts(stream: BinaryIO | None) -> list[bytes]:
    """The prompts of the user, or those that come with llmdd."""
    try:
        return bundled_prompts() if stream is None else read_prompts(stream, stream.name)
    except UnusablePrompts as unusable:
        raise typer.BadParameter(str(unusable), param_hint="--prompts") from None
