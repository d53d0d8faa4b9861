"""Pulls between two hosts, which are network namespaces of this one, by TCP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..case import Case, Entrant, Place, Profile, Target
from .pulls import CONTENDERS, KIB, LLMDD, MIB, MOONCAKE, NIXL, RATE_TARGET, Size

SOCKETS = f"{CONTENDERS}.sockets"
ROUND_TRIP = "round trip"

#: From here on a pull is judged by its rate, below by what it takes beside the transfer itself.
LARGE = 16 * MIB
MESSAGE_TARGET = Target(one_more=ROUND_TRIP)
LARGE_TARGET = replace(RATE_TARGET, best_of=("NIXL", "NIXL, writing"))
BLOCKS_TARGET = Target(ahead_of=("NIXL", "NIXL, merged", "Mooncake"))
LARGE_BLOCKS_TARGET = replace(RATE_TARGET, best_of=("NIXL", "NIXL, merged"))

KEYS = 64


def sized(name: str, size: int, count: int, rounds: int, seconds: float) -> Size:
    """Everybody pulls as many caches: they all take messages."""
    return Size(name, size, count, count, rounds, seconds, LARGE_TARGET if size >= LARGE else MESSAGE_TARGET)


QUICK_SIZES = (sized("4KiB", 4 * KIB, 32, 31, 3.0), sized("16MiB", 16 * MIB, 1, 9, 3.0))
FULL_SIZES = (
    sized("4KiB", 4 * KIB, 32, 101, 15.0),
    sized("64KiB", 64 * KIB, 16, 101, 15.0),
    sized("1MiB", MIB, 4, 51, 15.0),
    sized("16MiB", 16 * MIB, 1, 31, 20.0),
    sized("256MiB", 256 * MIB, 1, 9, 40.0),
)


def cases(profile: Profile) -> list[Case]:
    """The cases of `profile`."""
    if profile is Profile.QUICK:
        return [*map(pull, QUICK_SIZES), blocks(1024, 4 * KIB, 8, 1, 3.0, BLOCKS_TARGET)]
    return [
        *map(pull, FULL_SIZES),
        pull_many(),
        blocks(1024, 4 * KIB, 80, 1, 60.0, BLOCKS_TARGET),
        blocks(256, 64 * KIB, 1, 1, 20.0, LARGE_BLOCKS_TARGET),
        blocks(256, 64 * KIB, 1, 16, 20.0, LARGE_BLOCKS_TARGET),
    ]


def round_trip(count: int) -> Entrant:
    return Entrant(ROUND_TRIP, f"{SOCKETS}:RoundTrips", {"count": count, "apart": True}, moves_bytes=False)


def pull(size: Size) -> Case:
    parameters: dict[str, Any] = {"size": size.size, "count": size.count, "apart": True}
    entrants = [
        Entrant("llmdd", f"{LLMDD}:CachePulls", parameters),
        Entrant("NIXL", f"{NIXL}:NixlPulls", parameters),
        Entrant("NIXL, writing", f"{NIXL}:NixlWrites", parameters),
        Entrant("Mooncake", f"{MOONCAKE}:MooncakePulls", parameters),
        Entrant("sockets", f"{SOCKETS}:SocketPulls", parameters),
    ]
    if size.target is MESSAGE_TARGET:
        entrants.append(round_trip(size.count))
    return Case(
        f"hosts/{size.name}",
        f"Pull a cache of {size.name} from another host and release its key",
        "pull",
        tuple(entrants),
        "NIXL",
        rounds=size.rounds,
        seconds=size.seconds,
        bytes_moved=size.size,
        place=Place("bytes", size.size),
        target=size.target,
    )


def pull_many() -> Case:
    size = 4 * KIB
    parameters: dict[str, Any] = {"size": size, "count": KEYS, "shuffled": True, "apart": True}
    return Case(
        f"hosts-many/{KEYS}x4KiB",
        f"Pull {KEYS} caches of 4KiB from another host at once and release their keys",
        "call",
        (
            Entrant("llmdd", f"{LLMDD}:CallsForMany", parameters),
            Entrant("NIXL", f"{NIXL}:NixlPullsAtOnce", parameters),
            Entrant("NIXL, merged", f"{NIXL}:NixlMergedPulls", parameters),
            Entrant("Mooncake", f"{MOONCAKE}:MooncakePullsAtOnce", parameters),
            round_trip(16),
        ),
        "NIXL, merged",
        rounds=101,
        seconds=15.0,
        bytes_moved=KEYS * size,
        target=MESSAGE_TARGET,
    )


def blocks(count: int, size: int, tensors: int, run: int, seconds: float, target: Target) -> Case:
    """Blocks of `size` bytes, `run` of which lie one after the other at both ends, in each tensor."""
    parameters: dict[str, Any] = {"blocks": count, "tensors": tensors, "size": size, "run": run, "apart": True}
    scattered = "scattered " if run == 1 else ""
    name = f"{count}x{tensors}" if tensors > 1 else f"{count}x{size // KIB}KiB"
    whose = f"each of {tensors} tensors" if tensors > 1 else "a tensor"
    lying = f", {run} of which lie together," if run > 1 else ""
    return Case(
        f"hosts-blocks/{name}{f'-in-runs-of-{run}' if run > 1 else ''}",
        f"Pull {count:,} {scattered}blocks of {size // KIB}KiB{lying} of {whose} from another host",
        "pull",
        (
            Entrant("llmdd", f"{LLMDD}:BlocksCachePulls", parameters),
            Entrant("NIXL", f"{NIXL}:NixlBlockPulls", parameters),
            Entrant("NIXL, merged", f"{NIXL}:NixlMergedBlockPulls", parameters),
            Entrant("Mooncake", f"{MOONCAKE}:MooncakeBlockPulls", parameters),
        ),
        "NIXL",
        rounds=11,
        seconds=seconds,
        bytes_moved=count * tensors * size,
        target=target,
    )
