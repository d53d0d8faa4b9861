"""One process and its caches: the life of a cache, and how it is found, beside few and beside many others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..case import Case, Entrant, Place, Profile, Target

FEW, SOME, MANY = 1_000, 100_000, 1_000_000
MOST_FOR_THE_REFERENCE_MODEL = 1_000
"""It is there to be right, not fast: setting up more caches takes it longer than all rounds take the others."""

SEED = 5
BATCH: Mapping[str, Any] = {"live": 0, "num_tensors": 80, "batch_size": 64}

LOOKUP_TARGETS = {FEW: Target(max_ratio=1.5), MANY: Target(max_ratio=1.5)}
LOOKUP_MANY_TARGETS = {FEW: Target(max_ns=15), MANY: Target(max_ns=80)}

LLMDD_CACHES = "llmdd.bench.contenders.llmdd_caches"
DICTIONARIES = "llmdd.bench.contenders.dictionaries"
FLOORS = "llmdd.bench.contenders.floors"
REFERENCE_MODEL = "llmdd.bench.contenders.reference_model"
VLLM_BLOCK_POOL = "llmdd.bench.contenders.vllm_block_pool"


def cases(profile: Profile) -> list[Case]:
    full = profile is Profile.FULL
    sizes = (10, FEW, SOME, MANY) if full else (FEW, SOME)
    return [
        *(cycle(live, full) for live in sizes),
        batch(full),
        *(cycle_with_pull(live, full) for live in (sizes if full else (FEW,))),
        batch_with_pull(full),
        # With more keys llmdd and the dict both wait for memory, and come too close for few rounds to tell their order.
        *(lookup(live, full) for live in (sizes if full else (FEW,))),
        *(lookup_many(live, given, full) for given in ("array", "keys") for live in sizes),
        *(bulk_drop(count, full) for count in ((4_096, SOME) if full else (4_096,))),
        *(drop_beside_many(registered, full) for registered in (False, True)),
        *beside_an_empty_call(full),
    ]


def length(full: bool) -> Mapping[str, Any]:
    """How long a case goes on."""
    return {"rounds": 61, "seconds": 8.0} if full else {"rounds": 31, "seconds": 1.5}


def managers(class_name: str, parameters: Mapping[str, Any]) -> tuple[Entrant, ...]:
    """llmdd, and everything else that keeps caches and keys."""
    entrants = [
        Entrant("llmdd", f"{LLMDD_CACHES}:{class_name}", parameters),
        Entrant("dictionaries", f"{DICTIONARIES}:{class_name}", parameters),
    ]
    if parameters["live"] <= MOST_FOR_THE_REFERENCE_MODEL:
        entrants.append(Entrant("reference model", f"{REFERENCE_MODEL}:{class_name}", parameters))
    entrants.append(Entrant("vLLM BlockPool", f"{VLLM_BLOCK_POOL}:{class_name}", parameters))
    return tuple(entrants)


def cycle(live: int, full: bool) -> Case:
    return Case(
        name=f"cycle/{live}-live",
        title=f"Allocate a cache with a key, remove the key, deallocate, while {live:,} other caches live",
        operation="cycle",
        entrants=managers("Cycles", {"live": live, "num_tensors": 1, "batch_size": 1}),
        baseline="dictionaries",
        place=Place("live caches", live),
        **length(full),
    )


def batch(full: bool) -> Case:
    return Case(
        name="batch/64-keys-80-tensors",
        title="Allocate a cache of 80 tensors with a key for each of 64 batch slots, remove each key, deallocate",
        operation="cycle",
        entrants=managers("Cycles", BATCH),
        baseline="dictionaries",
        target=Target(max_ns=15_000),
        **length(full),
    )


def cycle_with_pull(live: int, full: bool) -> Case:
    parameters = {"live": live, "num_tensors": 1, "batch_size": 1}
    return Case(
        name=f"cycle-pull/{live}-live",
        title="Allocate a cache with a key, pull 1 KiB by the key from an instance of the same process, deallocate, "
        f"while {live:,} other caches live",
        operation="cycle",
        entrants=linked("PullCycles", parameters),
        baseline="dictionaries",
        bytes_moved=1 << 10,
        place=Place("live caches", live),
        target=Target(max_ns=3_000) if live < MANY else None,
        **length(full),
    )


def batch_with_pull(full: bool) -> Case:
    return Case(
        name="batch-pull/64-keys-80-tensors",
        title="Allocate a cache of 80 tensors with a key for each of 64 batch slots, pull each from an instance of the "
        "same process, deallocate",
        operation="cycle",
        entrants=linked("PullCycles", BATCH),
        baseline="dictionaries",
        bytes_moved=80 * 64 << 10,
        **length(full),
    )


def linked(class_name: str, parameters: Mapping[str, Any]) -> tuple[Entrant, ...]:
    """Those of which one can pull from another."""
    return (
        Entrant("llmdd", f"{LLMDD_CACHES}:{class_name}", parameters),
        Entrant("dictionaries", f"{DICTIONARIES}:{class_name}", parameters),
    )


def lookup(live: int, full: bool) -> Case:
    parameters = {"live": live, "seed": SEED}
    return Case(
        name=f"lookup/{live}-live",
        title=f"Look a bound key up, of {live:,} in random order",
        operation="lookup",
        entrants=(*managers("Lookups", parameters), Entrant("dict", f"{FLOORS}:DictionaryLookups", parameters)),
        baseline="dict",
        place=Place("live caches", live),
        target=LOOKUP_TARGETS.get(live),
        **length(full),
    )


def lookup_many(live: int, given: str, full: bool) -> Case:
    array = given == "array"
    return Case(
        name=f"lookup-many-by-{given}/{live}-live",
        title=f"Look 20,000 bound keys up by one call, given as {'an array of request ids' if array else 'a list'}, "
        f"of {live:,} in random order",
        operation="key",
        entrants=(
            Entrant("llmdd", f"{LLMDD_CACHES}:BulkLookups", {"live": live, "seed": SEED, "given": given}),
            Entrant("dict", f"{FLOORS}:DictionaryLookups", {"live": live, "seed": SEED}),
        ),
        baseline="dict",
        place=Place("live caches", live),
        target=LOOKUP_MANY_TARGETS.get(live) if array else None,
        **length(full),
    )


def bulk_drop(count: int, full: bool) -> Case:
    return Case(
        name=f"bulk-drop/{count}-caches",
        title=f"Remove the keys of {count:,} caches, and deallocate them, by two calls; the dictionaries by a loop",
        operation="cache",
        entrants=(
            Entrant("llmdd", f"{LLMDD_CACHES}:BulkDrops", {"count": count}),
            Entrant("dictionaries", f"{DICTIONARIES}:Drops", {"count": count}),
        ),
        baseline="dictionaries",
        **length(full),
    )


def drop_beside_many(registered: bool, full: bool) -> Case:
    """How much the others matter: two entrants of llmdd."""
    return Case(
        name=f"drop/{'unregister' if registered else 'remove-and-deallocate'}",
        title=f"{'Unregister a cache with a key' if registered else 'Remove the key of a cache, deallocate it'}, "
        f"while {SOME:,} other caches live",
        operation="drop",
        entrants=(
            Entrant("llmdd", f"{LLMDD_CACHES}:Drops", {"live": SOME, "registered": registered}),
            Entrant("llmdd, beside none", f"{LLMDD_CACHES}:Drops", {"live": 0, "registered": registered}),
        ),
        baseline="llmdd, beside none",
        target=Target(max_ratio=1.5, remark="the processor's caches"),
        **length(full),
    )


def beside_an_empty_call(full: bool) -> list[Case]:
    chosen = [
        ("none-live", 0, False, Target(max_ratio=12, max_ns=1_000)),
        (f"{SOME}-live", SOME, False, Target(max_ratio=24, max_ns=2_000)),
        (f"{SOME}-live-remote-mode", SOME, True, Target(max_ratio=24, max_ns=2_000)),
    ]
    return [
        Case(
            name=f"empty-call/{size}",
            title="Allocate a cache with a key, remove the key, deallocate, while "
            f"{f'{live:,}' if live else 'no'} other caches live{', in remote mode' if remote else ''}",
            operation="cycle",
            entrants=(
                Entrant("llmdd", f"{LLMDD_CACHES}:Cycles", {"live": live, "remote": remote}),
                Entrant("empty call", f"{FLOORS}:EmptyCalls"),
            ),
            baseline="empty call",
            target=target,
            **length(full),
        )
        for size, live, remote, target in chosen
    ]
