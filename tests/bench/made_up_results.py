"""Results with figures that are made up, to see how they are shown."""

from __future__ import annotations

from llmdd.bench.results import CaseResult, Machine, Run, Standing

MACHINE = Machine(
    processor="A processor",
    architecture="x86_64",
    cores=2,
    memory_bytes=8 << 30,
    kernel="6.1.0",
    libc="glibc 2.36",
    python="CPython 3.11.7",
    caches={"L1d": 32 << 10, "L2": 512 << 10},
    load=0.25,
)


def correct(name: str, median_ns: float, baseline_ns: float) -> Standing:
    return Standing(
        name=name,
        operations=100,
        times_ns=[median_ns * 0.9, median_ns, median_ns * 1.1],
        median_ns=median_ns,
        quartiles_ns=(median_ns * 0.95, median_ns * 1.05),
        ratio=median_ns / baseline_ns,
        ratio_quartiles=(median_ns / baseline_ns * 0.9, median_ns / baseline_ns * 1.1),
        resident_bytes=3 << 20,
        peak_bytes=5 << 20,
    )


def case(
    name: str, times_ns: dict[str, float], *others: Standing, bytes_moved: int = 0, place: int | None = None
) -> CaseResult:
    """A case in which the last of `times_ns` is the baseline, and `others` have no time."""
    baseline = list(times_ns)[-1]
    return CaseResult(
        name=name,
        title=f"Do what {name} does",
        operation="turn",
        baseline=baseline,
        standings=[correct(one, ns, times_ns[baseline]) for one, ns in times_ns.items()] + list(others),
        seconds=1.5,
        bytes_moved=bytes_moved,
        axis=None if place is None else "bytes",
        place=place,
        target="≤ 2x",
        target_met=True,
    )


def run(*cases: CaseResult, interrupted: bool = False) -> Run:
    return Run(
        profile="full",
        began="2026-01-02T03:04:05+00:00",
        seconds=1200,
        interrupted=interrupted,
        machine=MACHINE,
        versions={"llmdd": "0.1.0", "toys": "1.2.3"},
        cases=list(cases),
    )


def usual() -> Run:
    """A run that has everything: lines, bars, memory over time, somebody who is faster, skipped or wrong."""
    day = case("day/1000-requests", {"llmdd": 2500, "dictionaries": 9000})
    day.standings[0].measured = {"seconds": [0, 3600, 86400], "bytes": [0, 1 << 20, 0]}
    return run(
        case("lookup/10-live", {"llmdd": 120, "vLLM BlockPool": 100, "dict": 40, "dictionaries": 400}),
        day,
        case("pull/4KiB", {"llmdd": 2000, "memcpy": 400}, absent("NIXL"), bytes_moved=4096, place=4096),
        case("pull/1MiB", {"llmdd": 140_000, "memcpy": 150_000}, absent("NIXL"), bytes_moved=1 << 20, place=1 << 20),
        case("gil/4KiB", {"llmdd": 2100, "memcpy": 400}, wrong("Mooncake"), bytes_moved=4096),
    )


def absent(name: str) -> Standing:
    return Standing(name=name, skipped=f"{name} is not installed: pip install {name}")


def wrong(name: str) -> Standing:
    return Standing(name=name, incorrect="byte 7 [of 4096] is wrong")
