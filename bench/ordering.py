"""Whether llmdd is faster or slower than each peer, and whether every run says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.markup import escape

from .results import CaseResult, Run

#: Other ways to use llmdd begin with its name: between them there is no order to keep.
OURS = "llmdd"


class Order(Enum):
    """How llmdd stands to a peer in one run."""

    FASTER = "faster"
    SLOWER = "slower"
    UNKNOWN = "unknown"
    """One of the two has no time there."""


@dataclass(frozen=True)
class Comparison:
    """llmdd and a peer in one case, run by run."""

    case: str
    peer: str
    orders: tuple[Order, ...]

    @property
    def same(self) -> bool:
        """Whether all runs agree; one that was skipped in all of them does."""
        return len(set(self.orders)) == 1


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """llmdd beside every peer of every case that any of `runs` has."""
    pairs = dict.fromkeys(
        (case.name, one.name)
        for run in runs
        for case in run.cases
        for one in case.standings
        if is_peer(one.name) and case.standing(OURS) is not None
    )
    return [Comparison(case, peer, tuple(order(run, case, peer) for run in runs)) for case, peer in pairs]


def is_peer(entrant: str) -> bool:
    return not entrant.startswith(OURS)


def order(run: Run, case_name: str, peer: str) -> Order:
    case = next((case for case in run.cases if case.name == case_name), None)
    if case is None:
        return Order.UNKNOWN
    ours, theirs = median_ns(case, OURS), median_ns(case, peer)
    if ours is None or theirs is None:
        return Order.UNKNOWN
    return Order.FASTER if ours < theirs else Order.SLOWER


def median_ns(case: CaseResult, entrant: str) -> float | None:
    standing = case.standing(entrant)
    return None if standing is None else standing.median_ns


def show(console: Console, found: Sequence[Comparison]) -> None:
    """Print a line for each comparison, and what the runs disagree on."""
    case = ""
    for one in found:
        if one.case != case:
            case = one.case
            console.print(f"\n[bold]{escape(case)}[/]", highlight=False)
        words = one.orders[0].value if one.same else ", ".join(order.value for order in one.orders)
        console.print(f"  {escape(f'llmdd and {one.peer}'):<34}", end="", highlight=False)
        console.print(words, style="" if one.same else "bold red", highlight=False, soft_wrap=True)
    different = sum(not one.same for one in found)
    if different:
        console.print(f"\n[bold red]{different} of {len(found)} differ from run to run.[/]", highlight=False)
    else:
        console.print(f"\n[green]All {len(found)} are in the same order in all runs.[/]", highlight=False)
