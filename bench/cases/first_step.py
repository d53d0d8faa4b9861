"""From a prompt to the first decode step of the demo's model, with its KV cache fetched or computed again."""

from __future__ import annotations

from ..case import Case, Entrant, Place, Profile

MODULE = "llmdd.bench.contenders.first_step"

SINCE = {
    "handover": "from the moment at which prefill has computed a prompt's KV cache to decode's first step with it",
    "prompt": "from the moment at which a prompt is there to decode's first step, prefill included",
}


def cases(profile: Profile) -> list[Case]:
    lengths = (256,) if profile is Profile.QUICK else (64, 256, 1024, 2048)
    return [first_step(since, length) for since in SINCE for length in lengths]


def first_step(since: str, length: int) -> Case:
    """The case that begins with `since` and a prompt of `length` tokens."""
    parameters = {"since": since, "length": length}
    return Case(
        name=f"first-step-from-{since}/{length}-tokens",
        title=f"a prompt of {length:,} tokens: {SINCE[since]}",
        operation="first step",
        entrants=(
            Entrant("llmdd", f"{MODULE}:PulledWhole", parameters),
            Entrant("llmdd, layer by layer", f"{MODULE}:LayerByLayer", parameters),
            Entrant("recomputed", f"{MODULE}:Recomputed", parameters),
        ),
        baseline="recomputed",
        rounds=31,
        seconds=3 if length <= 256 else 15,
        place=Place("prompt tokens", length),
    )
