"""The few figures of a run that say most, for the README."""

from __future__ import annotations

from dataclasses import dataclass

from .durations import duration, rate
from .ordering import OURS, is_peer
from .pictures import size_name, timed
from .results import CaseResult, Run


@dataclass(frozen=True)
class Headline:
    """A figure: the last case of a group, or the one that is named."""

    group: str
    what: str
    """With ``{size}`` for what the case's name says of it."""
    case: str | None = None
    without: tuple[str, ...] = ()
    """Who does another part of the work, so that one line cannot say how the two compare."""

    def find(self, run: Run) -> CaseResult | None:
        cases = [case for case in run.cases_of(self.group) if self.case is None or case.name == self.case]
        with_time = [case for case in cases if median_ns(case, OURS) is not None]
        return with_time[-1] if with_time else None

    def compares(self, name: str) -> bool:
        return is_peer(name) and name not in self.without


HEADLINES = (
    Headline("pull", "pull a cache of 1 MiB from another process, by its key", case="pull/1MiB"),
    Headline("hosts", "pull a cache of {size} from another host, over TCP", case="hosts/16MiB"),
    Headline("gil", "pull {size} while the owner's Python thread computes"),
    Headline(
        "day",
        "a request's life in a day of {size}: bound, looked up, released",
        without=("reference model", "vLLM BlockPool"),
    ),
)


def headlines(run: Run) -> str:
    """A table with a line for each, without those that the run has no figure for, and the plot of pulls."""
    rows = [(one, case) for one in HEADLINES if (case := one.find(run)) is not None]
    lines = ["| | llmdd | beside it |", "|---|---|---|"]
    for one, case in rows:
        what = one.what.format(size=size_name(case))
        others = ", ".join(figure(case, other.name) for other in timed(case) if one.compares(other.name))
        lines.append(f"| {what} | {figure(case, OURS, named=False)} | {others} |")
    where = f"Medians of one run on {run.machine.processor}, {run.machine.cores} cores."
    page = "[The benchmarks' page](docs/benchmarks.md) has all of it, and where others are faster."
    picture = "![Rates of pulls from another process, by their size](docs/benchmarks/pull-rates.svg)"
    pictured = [picture, ""] if run.cases_of("pull") else []
    return "\n".join([*lines, "", *pictured, f"{where} {page}"])


def figure(case: CaseResult, name: str, named: bool = True) -> str:
    """An entrant's median time, and its rate where much is moved."""
    standing = case.standing(name)
    assert standing is not None
    assert standing.median_ns is not None
    text = duration(standing.median_ns)
    gb_s = case.rate_gb_s(standing)
    if gb_s is not None and case.bytes_moved >= 1 << 20:
        text += f" ({rate(gb_s)})"
    return f"{name} {text}" if named else f"**{text}**"


def median_ns(case: CaseResult, name: str) -> float | None:
    standing = case.standing(name)
    return None if standing is None else standing.median_ns
