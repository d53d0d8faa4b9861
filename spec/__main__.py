"""The commands of the spec: ``python -m spec COMMAND``, installed ``python -m llmdd.spec COMMAND``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

#: For each command the module whose ``main`` it is, what is put before its arguments, and what it does.
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "explore": ("explorer", [], "visit every state of a small cluster and check every promise"),
    "queues": ("queues", [], "visit every state of allocations that wait for memory"),
    "wakeups": ("wakeups", [], "visit every interleaving of who waits for memory and who releases it"),
    "interleavings": ("interleavings", [], "visit every interleaving of one-sided transfers, and every crash"),
    "protocol": ("protocol_page", [], "explore the protocol and write its page of the documentation"),
    "incarnations": ("incarnations", [], "visit every order in which a cluster is started anew under its links"),
    "conversations": ("conversations", [], "visit every order of the conversation of two hosts, with every fault"),
    "conversation": ("conversation_page", [], "explore the conversation and write its page of the documentation"),
    "promela": ("promela", [], "write the protocol of one-sided transfers as a model for SPIN"),
    "spin": ("promela", ["--check"], "have SPIN check that model: safety, and that every released cache is reaped"),
    "tables": ("compiler", [], "compile the machines into the tables of the core"),
    "diagrams": ("diagrams", [], "draw the machines"),
    "check": ("diagrams", ["--check"], "fail if a generated file that is committed differs from the spec"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. ``COMMAND --help`` tells its arguments."""
    parser = argparse.ArgumentParser(prog="spec", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, _, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    chosen, arguments = parser.parse_known_args(argv)
    module, given, _ = COMMANDS[chosen.command]
    importlib.import_module(f".{module}", __package__).main([*given, *arguments])


if __name__ == "__main__":
    main()
