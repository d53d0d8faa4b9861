"""What the table means, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from .baseline import Tolerance
from .verdict import Judgement, Verdict

ABOUT_PATHS = {
    Verdict.WORSE: "Takes more instructions than the baseline says: {}. If that is worth it, --accept REASON.",
    Verdict.NEW: "In no baseline: {}. With --accept REASON it will be.",
    Verdict.GONE: "In the baseline, but counted no more: {}. If that is meant so, --accept REASON.",
    Verdict.BETTER: "Takes fewer instructions than the baseline says: {}. Make sure of it with --accept REASON.",
}


def conclusions(judgement: Judgement, tolerance: Tolerance) -> list[str]:
    """A line for whatever there is to say, at least one."""
    if judgement.incomparable:
        return [
            f"Not compared: the baseline is of another environment, in {named(judgement.incomparable)}.",
            "Counts mean something only beside counts of the same environment: count the commit before here, too.",
        ]
    lines = []
    limits = f"{tolerance.core:.1%} in the core"
    if judgement.only_the_core:
        lines.append(f"Only the core is compared: it runs in another environment, in {named(judgement.only_the_core)}.")
    else:
        limits += f", {tolerance.everything:.1%} in all"
    for verdict, sentence in ABOUT_PATHS.items():
        if names := judgement.having(verdict):
            lines.append(sentence.format(", ".join(names)))
    if not judgement.fails:
        lines.append(f"No path takes more than the baseline says, within {limits}.")
    return lines


def named(differing: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({then} in the baseline, {now} here)" for name, (then, now) in differing.items())
