"""What grows, and what it costs then: instances linked to one owner, blocks in one pull."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..case import Case, Entrant, Place, Profile
from .managers import DICTIONARIES, FLOORS

LLMDD_SCALE = "llmdd.bench.contenders.llmdd_scale"

SLOT_BYTES = BLOCK_BYTES = 4 << 10
PULLS = 1024
LEAST_BLOCKS_A_ROUND = 1024
SEED = 5


def cases(profile: Profile) -> list[Case]:
    full = profile is Profile.FULL
    peers = (1, 4, 16, 64) if full else (1, 4, 16)
    blocks = tuple(4**power for power in range(8)) if full else (1, 1024, 4096)
    return [
        *(pull_beside_peers(count, full) for count in peers),
        *(cycle_beside_peers(count, full) for count in peers),
        *(pull_of_blocks(count, full) for count in blocks),
    ]


def length(full: bool) -> Mapping[str, Any]:
    """How long a case goes on."""
    return {"rounds": 61, "seconds": 6.0} if full else {"rounds": 21, "seconds": 1.0}


def instances(count: int) -> str:
    return f"{count} instance{'s' if count > 1 else ''}"


def pull_beside_peers(peers: int, full: bool) -> Case:
    return Case(
        name=f"peers-pull/{peers}",
        title=f"Pull 4 KiB from another process, by {instances(peers)} linked to it, each its share",
        operation="pull",
        entrants=(
            Entrant("llmdd", f"{LLMDD_SCALE}:PullsByPeers", {"peers": peers, "slot_bytes": SLOT_BYTES}),
            Entrant("memcpy", f"{FLOORS}:Copies", {"pieces": PULLS, "piece_bytes": SLOT_BYTES}),
        ),
        baseline="memcpy",
        bytes_moved=SLOT_BYTES,
        place=Place("linked peers", peers),
        **length(full),
    )


def cycle_beside_peers(peers: int, full: bool) -> Case:
    return Case(
        name=f"peers-cycle/{peers}",
        title=f"Allocate a cache with a key, remove the key, deallocate, with {instances(peers)} linked",
        operation="cycle",
        entrants=(
            Entrant("llmdd", f"{LLMDD_SCALE}:CyclesBesidePeers", {"peers": peers}),
            Entrant("dictionaries", f"{DICTIONARIES}:Cycles", {"live": 0}),
        ),
        baseline="dictionaries",
        place=Place("linked peers", peers),
        **length(full),
    )


def pull_of_blocks(blocks: int, full: bool) -> Case:
    total = max(blocks, LEAST_BLOCKS_A_ROUND)
    return Case(
        name=f"blocks-scale/{blocks}",
        title=f"Pull {blocks:,} scattered block{'s' if blocks > 1 else ''} of 4 KiB from another process by one call",
        operation="pull",
        entrants=(
            Entrant(
                "llmdd",
                f"{LLMDD_SCALE}:BlocksPulls",
                {"blocks": blocks, "block_bytes": BLOCK_BYTES, "total": total, "seed": SEED},
            ),
            Entrant(
                "memcpy",
                f"{FLOORS}:Copies",
                {"pieces": total, "piece_bytes": BLOCK_BYTES, "in_one_operation": blocks, "seed": SEED},
            ),
        ),
        baseline="memcpy",
        bytes_moved=blocks * BLOCK_BYTES,
        place=Place("blocks", blocks),
        **length(full),
    )
