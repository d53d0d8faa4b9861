"""The lifecycle of a day: a trace of requests replayed against the manager."""

from __future__ import annotations

from dataclasses import dataclass

from ..case import Case, Entrant, Profile

SEED = 20_260


@dataclass(frozen=True)
class Lengths:
    """How many requests each plays, in a round.

    A shorter trace has as many requests a second and as many caches that live at once, so the time for one request is
    much the same. Who needs so long for each that the whole day would take minutes plays a shorter one.
    """

    whole: int
    by_blocks: int
    by_the_reference: int
    seconds: float


LENGTHS = {
    Profile.QUICK: Lengths(whole=20_000, by_blocks=4_000, by_the_reference=300, seconds=4.0),
    Profile.FULL: Lengths(whole=1_000_000, by_blocks=50_000, by_the_reference=1_000, seconds=100.0),
}


def cases(profile: Profile) -> list[Case]:
    lengths = LENGTHS[profile]

    def plays(module: str, requests: int) -> tuple[str, dict[str, int]]:
        return f"llmdd.bench.contenders.{module}:Day", {"requests": requests, "seed": SEED}

    return [
        Case(
            name=f"day/{lengths.whole}-requests",
            title="Everything that a day of requests asks of the manager: allocate, bind, look up, remove, deallocate",
            operation="request",
            entrants=(
                Entrant("llmdd", *plays("llmdd_day", lengths.whole)),
                Entrant("dictionaries", *plays("dictionaries_day", lengths.whole)),
                Entrant("reference model", *plays("reference_model", lengths.by_the_reference)),
                Entrant("vLLM BlockPool", *plays("vllm_block_pool", lengths.by_blocks)),
            ),
            baseline="dictionaries",
            rounds=9,
            seconds=lengths.seconds,
        )
    ]
