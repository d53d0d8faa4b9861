"""``llmdd``, with toys for the cases of its benchmarks."""

from __future__ import annotations

from llmdd.bench import catalogue
from llmdd.bench.case import Case, Entrant, Place, Profile

from llmdd.cli import main

ROUNDS = 8


def sums(name: str, numbers: int, *others: Entrant) -> Case:
    entrants = (
        Entrant("llmdd", "toy_contenders:Sum", {"count": numbers}),
        Entrant("dictionaries", "toy_contenders:Sum", {"count": 16 * numbers}),
        *others,
    )
    return Case(name, "Add numbers up", "sum", entrants, "dictionaries", ROUNDS, 600.0, place=Place("numbers", numbers))


def pulls(rounds: int) -> Case:
    entrants = (Entrant("llmdd", "toy_pulls:Pulls"), Entrant("NIXL", "missing_library:Any"))
    return Case("pull/4KiB", "Pull a cache", "pull", entrants, "llmdd", rounds, 600.0, bytes_moved=4096)


def right(profile: Profile) -> list[Case]:
    """Cases in which nobody does anything wrong."""
    return [sums("sum/100", 100), sums("sum/10000", 10_000, Entrant("NIXL", "missing_library:Any")), pulls(ROUNDS)]


def wrong() -> Case:
    """A case in which everybody but llmdd and the baseline does."""
    return sums("sum/10", 10, *(Entrant(name, f"toy_contenders:{name}") for name in ("Wrong", "WrongInTheEnd", "Dies")))


def endless() -> Case:
    """A case that goes on until it is interrupted."""
    return pulls(1 << 30)


if __name__ == "__main__":
    catalogue.cases_of = right
    main()
