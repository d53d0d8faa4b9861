"""Pulls between two processes, beside a plain copy of the same bytes and beside what else moves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..case import Case, Entrant, Place, Profile, Target

CONTENDERS = f"{__package__.rpartition('.')[0]}.contenders"

LLMDD = f"{CONTENDERS}.llmdd_pulls"
MEMCPY = f"{CONTENDERS}.memcpy"
SHARED_MEMORY_PIPE = f"{CONTENDERS}.shared_memory_pipe"
NIXL = f"{CONTENDERS}.nixl_pulls"
MOONCAKE = f"{CONTENDERS}.mooncake_pulls"

KIB, MIB = 1 << 10, 1 << 20

SMALL_TARGET = Target(max_ns=5_000)
RATE_TARGET = Target(max_ratio=1 / 0.95, remark="95% of the rate")
BLOCKS_TARGET = Target(max_ratio=1 / 0.85, remark="85% of the rate")
BUSY_TARGET = Target(max_ratio=1.1, remark="as fast, within noise")


@dataclass(frozen=True)
class Size:
    """How caches of one size are pulled.

    `count` caches are pulled in a round by whoever needs no message for it, `messages` by the others, whose pulls take
    so much longer.
    """

    name: str
    size: int
    count: int
    messages: int
    rounds: int
    seconds: float
    target: Target | None = None


QUICK_SIZES = (
    Size("4KiB", 4 * KIB, 256, 64, 41, 3.0, SMALL_TARGET),
    Size("1MiB", MIB, 16, 16, 21, 3.0, RATE_TARGET),
    Size("16MiB", 16 * MIB, 2, 2, 13, 3.0, RATE_TARGET),
)
FULL_SIZES = (
    Size("4KiB", 4 * KIB, 256, 64, 101, 15.0, SMALL_TARGET),
    Size("64KiB", 64 * KIB, 64, 32, 101, 15.0),
    Size("1MiB", MIB, 16, 16, 51, 20.0, RATE_TARGET),
    Size("16MiB", 16 * MIB, 2, 2, 31, 30.0, RATE_TARGET),
    Size("256MiB", 256 * MIB, 1, 1, 11, 60.0, RATE_TARGET),
)


def cases(profile: Profile) -> list[Case]:
    """The cases of `profile`."""
    quick = profile is Profile.QUICK
    found = [pull(size) for size in (QUICK_SIZES if quick else FULL_SIZES)]
    found.append(blocks(8, rounds=11, seconds=4.0) if quick else blocks(80, rounds=11, seconds=90.0))
    found.append(gil(rounds=7, seconds=3.0) if quick else gil(rounds=21, seconds=30.0))
    if not quick:  # these compare what takes about the same time: which is faster may differ from run to run
        found += [gil_idle(), pull_many(), registered()]
    return found


def peers(messages: int, **parameters: Any) -> tuple[Entrant, ...]:
    parameters["count"] = messages
    return (
        Entrant("NIXL", f"{NIXL}:NixlPulls", parameters),
        Entrant("Mooncake", f"{MOONCAKE}:MooncakePulls", parameters),
        Entrant("shared memory + pipe", f"{SHARED_MEMORY_PIPE}:PipePulls", parameters),
    )


def pull(size: Size) -> Case:
    parameters = {"size": size.size, "count": size.count}
    return Case(
        f"pull/{size.name}",
        f"Pull a cache of {size.name} from another process and release its key",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:CachePulls", parameters),
            Entrant("memcpy", f"{MEMCPY}:Copies", parameters),
            *peers(size.messages, size=size.size),
        ),
        "memcpy",
        rounds=size.rounds,
        seconds=size.seconds,
        bytes_moved=size.size,
        place=Place("bytes", size.size),
        target=size.target,
    )


def blocks(tensors: int, rounds: int, seconds: float) -> Case:
    count, size = 1024, 4 * KIB
    parameters = {"blocks": count, "tensors": tensors, "size": size}
    return Case(
        f"blocks/1024x{tensors}",
        f"Pull 1,024 scattered blocks of 4KiB of each of {tensors} tensors from another process",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:BlocksCachePulls", parameters),
            Entrant("memcpy", f"{MEMCPY}:BlockCopies", parameters),
            Entrant("NIXL", f"{NIXL}:NixlBlockPulls", parameters),
            Entrant("Mooncake", f"{MOONCAKE}:MooncakeBlockPulls", parameters),
            Entrant("shared memory + pipe", f"{SHARED_MEMORY_PIPE}:PipeBlockPulls", parameters),
        ),
        "memcpy",
        rounds=rounds,
        seconds=seconds,
        bytes_moved=count * tensors * size,
        target=BLOCKS_TARGET,
    )


def gil(rounds: int, seconds: float) -> Case:
    size = 4 * KIB
    parameters = {"size": size, "count": 256, "computing": True}
    nixl, mooncake, pipe = peers(32, size=size, computing=True)
    # Each pull of this one waits for the owner's interpreter, twenty milliseconds and more.
    pipe = Entrant(pipe.name, pipe.factory, {**pipe.parameters, "count": 4})
    return Case(
        "gil/4KiB",
        "Pull a cache of 4KiB while the owner's Python thread computes without releasing the GIL",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:CachePulls", parameters),
            Entrant("memcpy", f"{MEMCPY}:Copies", parameters),
            nixl,
            mooncake,
            pipe,
        ),
        "memcpy",
        rounds=rounds,
        seconds=seconds,
        bytes_moved=size,
        target=SMALL_TARGET,
    )


def gil_idle() -> Case:
    parameters = {"size": 4 * KIB, "count": 256}
    return Case(
        "gil-idle/4KiB",
        "Pull a cache of 4KiB while the owner computes without releasing the GIL, beside an owner that is idle",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:CachePulls", {**parameters, "computing": True}),
            Entrant("llmdd, owner idle", f"{LLMDD}:CachePulls", parameters),
        ),
        "llmdd, owner idle",
        rounds=41,
        seconds=15.0,
        bytes_moved=4 * KIB,
        target=BUSY_TARGET,
    )


def pull_many() -> Case:
    parameters = {"size": 4 * KIB, "count": 1024}
    return Case(
        "pull-many/64x4KiB",
        "Pull a cache of 4KiB by a call for 64 keys at once",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:PullsAtOnce", parameters),
            Entrant("llmdd, one by one", f"{LLMDD}:BatchesOfPulls", parameters),
            Entrant("memcpy", f"{MEMCPY}:Copies", parameters),
        ),
        "llmdd, one by one",
        rounds=101,
        seconds=10.0,
        bytes_moved=4 * KIB,
    )


def registered() -> Case:
    parameters = {"size": MIB, "count": 16}
    return Case(
        "pull-registered/1MiB",
        "Pull a cache of 1MiB out of memory that its owner registered, beside one of the owner's pool",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:CachePulls", {**parameters, "registered": True}),
            Entrant("llmdd, pool memory", f"{LLMDD}:CachePulls", parameters),
        ),
        "llmdd, pool memory",
        rounds=41,
        seconds=10.0,
        bytes_moved=MIB,
    )
