"""The benchmarks' page, and the README's figures, from a run's results.

Every figure in them comes from the results; the words between them stand in ``page_text/``. The same results give the
same text, so that whoever has them can tell whether the page was made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import results
from .durations import duration, rate, size, spread, times
from .headlines import headlines
from .ordering import OURS, is_peer
from .pictures import Picture, file_name, size_name, telling
from .results import CaseResult, Machine, Run, Standing
from .summary import skipped

TEXT = Path(__file__).with_name("page_text")

#: Beneath the folder of the docs: the page, and where its results and plots are.
PAGE = "benchmarks.md"
FOLDER = "benchmarks"

README_BEGIN = "<!-- figures from docs/benchmarks/results.json -->"
README_END = "<!-- end of figures -->"

#: What does less than a case asks.
FLOORS = ("dict", "empty call", "memcpy", "round trip")

UNEXPLAINED = "We have not found out why."


class NoPlace(Exception):
    """The README has no place for the figures; the message says what is missing."""


@dataclass(frozen=True)
class Texts:
    """The words of the page."""

    introduction: str
    groups: dict[str, str]
    entrants: dict[str, str]
    faster: dict[str, str]

    @classmethod
    def read(cls) -> Texts:
        return cls(
            introduction=(TEXT / "introduction.md").read_text(encoding="utf-8").strip(),
            groups=sections("groups.md"),
            entrants=sections("entrants.md"),
            faster=sections("faster.md"),
        )


def sections(file: str) -> dict[str, str]:
    """The text under each ``##`` of a file."""
    parts = (TEXT / file).read_text(encoding="utf-8").split("\n## ")[1:]
    return {name.strip(): text.strip() for name, _, text in (part.partition("\n") for part in parts)}


def page(run: Run) -> str:
    """The whole page, in Markdown."""
    texts = Texts.read()
    parts = [
        texts.introduction,
        where(run),
        at_a_glance(run),
        slower(run, texts),
        "## The cases",
        *(group(run, name, texts) for name in run.groups),
        set_up(run, texts),
        not_measured(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def where(run: Run) -> str:
    """The machine, the versions, and when."""
    rows = [
        ("run", f"`llmdd bench --profile {run.profile}`, {run.began[:10]}, {run.seconds / 60:.0f} minutes"),
        *machine_rows(run.machine),
        ("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
    ]
    return "## Where\n\n" + table(("", ""), rows)


def machine_rows(machine: Machine) -> list[tuple[str, str]]:
    caches = ", ".join(f"{level} {size(count)}" for level, count in machine.caches.items())
    return [
        ("processor", f"{machine.processor}, {machine.architecture}, {machine.cores} cores"),
        ("its caches", caches or "not told by the kernel"),
        ("memory", size(machine.memory_bytes)),
        ("system", f"Linux {machine.kernel}, {machine.libc}, {machine.python}"),
        ("load before", f"{machine.load:.2f}"),
    ]


def at_a_glance(run: Run) -> str:
    """How often llmdd is faster, and by how much, peer by peer."""
    names = dict.fromkeys(one.name for case in run.cases for one in case.standings if is_peer(one.name))
    peers = sorted(names, key=FLOORS.__contains__)
    rows = []
    for peer in peers:
        pairs = beside(run, peer)
        if not pairs:
            continue
        faster = sum(ours < theirs for ours, theirs in pairs)
        ratios = [theirs / ours for ours, theirs in pairs]
        rows.append((peer, f"{faster} of {len(pairs)}", f"{times(min(ratios))} to {times(max(ratios))}"))
    if not rows:
        return ""
    explanation = (
        "In how many of the cases in which both take part llmdd is faster, and by what its time is multiplied to get"
        " the other's: from the worst case for llmdd to the best."
    )
    return f"## At a glance\n\n{explanation}\n\n" + table(
        ("beside", "llmdd is faster in", "their time over llmdd's"), rows
    )


def beside(run: Run, peer: str) -> list[tuple[float, float]]:
    """llmdd's time and a peer's, in every case in which both have one."""
    found = []
    for case in run.cases:
        ours, theirs = case.standing(OURS), case.standing(peer)
        if ours is not None and theirs is not None and ours.median_ns and theirs.median_ns:
            found.append((ours.median_ns, theirs.median_ns))
    return found


def slower(run: Run, texts: Texts) -> str:
    """Every case in which somebody is faster than llmdd, and why."""
    peers = faster_than_llmdd(run, floors=False)
    floors = faster_than_llmdd(run, floors=True)
    parts = ["## Where others are faster, and why"]
    if peers:
        parts.append("\n".join(lines_of(peers, texts)))
    else:
        parts.append("In this run no peer was faster than llmdd in any case.")
    if floors:
        parts.append("These do less than the case asks, and show what cannot be undercut:")
        parts.append("\n".join(lines_of(floors, texts)))
    return "\n\n".join(parts)


Faster = dict[tuple[str, str], list[tuple[CaseResult, Standing, Standing]]]


def faster_than_llmdd(run: Run, floors: bool) -> Faster:
    """For each group and entrant the cases in which that entrant's median is below llmdd's."""
    found: Faster = {}
    for case in run.cases:
        ours = case.standing(OURS)
        if ours is None or ours.median_ns is None:
            continue
        for one in case.standings:
            if one.median_ns is None or not is_peer(one.name) or (one.name in FLOORS) is not floors:
                continue
            if one.median_ns < ours.median_ns:
                found.setdefault((case.group, one.name), []).append((case, one, ours))
    return found


def lines_of(found: Faster, texts: Texts) -> list[str]:
    lines = []
    for (group_name, entrant), places in found.items():
        figures = "; ".join(
            f"{size_name(case)}: {duration(nanoseconds(one))} beside llmdd's {duration(nanoseconds(ours))}"
            for case, one, ours in places
        )
        why = texts.faster.get(f"{group_name}, {entrant}") or texts.faster.get(entrant) or UNEXPLAINED
        lines.append(f"- **{entrant}** in [{group_name}](#{group_name}): {figures}. {one_line(why)}")
    return lines


def one_line(text: str) -> str:
    return " ".join(text.split())


def last_line(text: str) -> str:
    """What a traceback ends with."""
    return text.strip().rpartition("\n")[2]


def nanoseconds(standing: Standing) -> float:
    assert standing.median_ns is not None
    return standing.median_ns


def group(run: Run, name: str, texts: Texts) -> str:
    """A group's heading, words, plots and table."""
    cases = run.cases_of(name)
    parts = [f"### {name}", texts.groups.get(name) or titles(cases)]
    parts += [
        f"![{name}: {ALTERNATIVE[picture]}]({FOLDER}/{file_name(name, picture, 'svg')})" for picture in telling(cases)
    ]
    parts.append(figures(cases))
    return "\n\n".join(parts)


ALTERNATIVE = {
    Picture.BARS: "times of every entrant",
    Picture.TIMES: "times against what grows",
    Picture.RATES: "bytes a second against what grows",
    Picture.MEMORY: "memory taken over the day",
}


def titles(cases: Sequence[CaseResult]) -> str:
    """What stands there of a group that has no words of its own."""
    return "\n".join(f"{title}." for title in dict.fromkeys(case.title for case in cases))


def figures(cases: Sequence[CaseResult]) -> str:
    """A line for each entrant of each case."""
    moved = any(case.bytes_moved for case in cases)
    heading = ["case", f"for one {cases[0].operation}", "median", "quartiles", f"over {cases[0].baseline}"]
    heading += (["rate"] if moved else []) + ["memory", "at its peak", "correct"]
    rows = []
    for case in cases:
        for number, one in enumerate(case.standings):
            cells = ["" if number else f"`{case.name}`", case.label(one)]
            rows.append(cells + measures(case, one, moved))
    targets = [
        f"`{case.name}`: {case.target}, {'met' if case.target_met else 'missed'}"
        for case in cases
        if case.target is not None and case.target_met is not None
    ]
    text = table(heading, rows)
    return text + (f"\n\nTargets for llmdd: {'; '.join(targets)}." if targets else "")


def measures(case: CaseResult, one: Standing, moved: bool) -> list[str]:
    """What a line says beside the names."""
    if one.median_ns is None or one.quartiles_ns is None:
        verdict = "skipped" if one.skipped is not None else "**no**"
        return ["", "", "", *([""] if moved else []), "", "", verdict]
    gb_s = case.rate_gb_s(one)
    ratio = "1" if one.name == case.baseline else "" if one.ratio is None else times(one.ratio)
    if one.name != case.baseline and one.ratio_quartiles is not None:
        ratio += f" ({times(one.ratio_quartiles[0])}-{times(one.ratio_quartiles[1])})"
    return [
        duration(one.median_ns),
        spread(*one.quartiles_ns),
        ratio,
        *(["" if gb_s is None else rate(gb_s)] if moved else []),
        "" if one.resident_bytes is None else size(one.resident_bytes),
        "" if one.peak_bytes is None else size(one.peak_bytes),
        "yes",
    ]


def set_up(run: Run, texts: Texts) -> str:
    """How every entrant of the run was set up."""
    names = dict.fromkeys(one.name for case in run.cases for one in case.standings)
    described = [f"**{name}.** {texts.entrants[name]}" for name in names if name in texts.entrants]
    return "## How each is set up\n\n" + "\n\n".join(described) if described else ""


def not_measured(run: Run) -> str:
    """Who was skipped, and who was wrong."""
    lines = [f"- {name} was skipped in {', '.join(cases)}: {one_line(reason)}" for name, reason, cases in skipped(run)]
    lines += [
        f"- {one.name} did something wrong in {case.name}: {last_line(one.incorrect or '')}"
        for case, one in run.incorrect
    ]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def readme_with(run: Run, readme: str) -> str:
    """The README with the figures of `run` between its markers.

    Raises
    ------
    NoPlace
    """
    before, begin, rest = readme.partition(README_BEGIN)
    _, end, after = rest.partition(README_END)
    if not begin or not end:
        raise NoPlace(f"it needs a line {README_BEGIN!r} and, below, a line {README_END!r}")
    return f"{before}{begin}\n{headlines(run)}\n{end}{after}"


def write(run: Run, source: Path, docs: Path, readme: Path) -> None:
    """Write the page, its plots and results, and the README's figures."""
    from . import plots

    text, readme_text = page(run), readme_with(run, readme.read_text(encoding="utf-8"))
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    plots.draw(run, folder, ("svg",), telling)
    if source.resolve() != (folder / "results.json").resolve():
        results.write(run, folder / "results.json")
    (docs / PAGE).write_text(text, encoding="utf-8")
    readme.write_text(readme_text, encoding="utf-8")


def differences(run: Run, docs: Path, readme: Path) -> list[str]:
    """What is there and is not what `run` gives: files whose text differs, plots that are missing."""
    found = []
    if not (docs / PAGE).is_file() or (docs / PAGE).read_text(encoding="utf-8") != page(run):
        found.append(f"{docs / PAGE} is not the page of these results")
    readme_text = readme.read_text(encoding="utf-8")
    if readme_text != readme_with(run, readme_text):
        found.append(f"{readme} has other figures than these results")
    for name in run.groups:
        for picture in telling(run.cases_of(name)):
            plot = docs / FOLDER / file_name(name, picture, "svg")
            if not plot.is_file():
                found.append(f"{plot} is missing")
    return found
