"""Copies and transfers of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ..terms import CacheName, Call
from . import odd
from .odd import chance, mixed_in
from .present import (
    block_list,
    blocks_key_on,
    by_id,
    key_on,
    machine_of,
    node_with,
    one_of,
    route,
    slot_of,
)
from .slots import layers

LAYER_ODDITIES: dict[str, Sequence[Any]] = {
    "src_layer_range": odd.RANGES,
    "dst_layer_range": odd.RANGES,
    "tensor_num_per_layer": odd.TENSORS_PER_LAYER,
}

COPIES: tuple[Any, ...] = (
    None,
    1,
    [(0, [1])],
    {"0": [1]},
    {0: 1},
    {0: (1,)},
    {0: [None]},
    {-1: [0]},
    {0: [-1]},
    {},
    {0: []},
    {99: []},
    {0: [0]},
)
SWAPS: tuple[Any, ...] = (None, 1, [(0, 1)], {"0": 1}, {0: None}, {-1: 0}, {0: -1}, {0: 99}, {}, {True: 0})


@st.composite
def block_copies(draw: DrawFn) -> Call:
    node = node_with(draw, machine_of(draw).live_blocks_caches)
    cache = one_of(draw, machine_of(draw).live_blocks_caches(node), node)
    sources = dict.fromkeys(block_list(draw, cache, draw(st.integers(1, 3))))
    copies: Any = {source: list(block_list(draw, cache, draw(st.integers(1, 2)))) for source in sources}
    oddities = {"cache": odd.CACHES, "copy_block_info": COPIES}
    arguments = mixed_in(draw, {"cache": cache, "copy_block_info": copies}, oddities)
    return Call(node, "copy_blocks", (), arguments)


@st.composite
def swaps(draw: DrawFn) -> Call:
    """Blocks to or from memory of the other placement; mostly where blocks and tensors are alike."""
    machine = machine_of(draw)
    node = node_with(draw, machine.swappable)
    known = [cache for cache in machine.caches if cache.node == node]
    pairs = machine.swappable(node)
    source, target = draw(st.sampled_from(pairs)) if pairs else (None, None)
    if known and (source is None or chance(draw, 15)):
        source, target = draw(st.sampled_from(known)), draw(st.sampled_from(known))
    count = draw(st.integers(1, 3))
    pairing: Any = dict(zip(block_list(draw, source, count), block_list(draw, target, count), strict=True))
    arguments = {"src_cache": source, "dst_cache": target, "src_to_dst": pairing}
    oddities = {"src_cache": odd.CACHES, "dst_cache": odd.CACHES, "src_to_dst": SWAPS}
    return Call(node, "swap_blocks", (), mixed_in(draw, arguments, oddities, one_in=8))


def some_layers(draw: DrawFn, source: CacheName | None, target: CacheName | None) -> dict[str, Any]:
    """No layer ranges, mostly; they can fit only where both caches are alike."""
    return layers(draw, source, target) if chance(draw, 3) else {}


@st.composite
def block_pulls(draw: DrawFn) -> Call:
    """``pull_blocks`` by a blocks key."""
    machine = machine_of(draw)
    node, owner, cache, source, key = route(draw, machine.live_blocks_caches, machine.keyed_blocks, machine.same_blocks)
    count = draw(st.integers(1, 3))
    arguments = {
        "src_cache_key": blocks_key_on(draw, owner, key),
        "dst_cache": cache,
        "src_blocks": block_list(draw, source, count),
        "dst_blocks": block_list(draw, cache, count),
        **some_layers(draw, source, cache),
    }
    return Call(node, "pull_blocks", (), mixed_in(draw, arguments, _pull_oddities(), one_in=8))


@st.composite
def pulls_into_blocks(draw: DrawFn, by_key: bool) -> Call:
    """``pull_blocks`` of a batch slot, by its key or by the cache's id."""
    machine = machine_of(draw)
    theirs = machine.keyed_slots if by_key else by_id(machine.live_slots_caches)
    node, owner, cache, source, wanted = route(draw, machine.live_blocks_caches, theirs, machine.alike)
    key: Any = key_on(draw, owner, wanted) if by_key else slot_of(draw, owner, source)
    blocks_of_slot = -(-machine.row_bytes(source) // machine.row_bytes(cache))
    count = min(blocks_of_slot, machine.row_count(cache), 6)
    if not chance(draw, 3):
        count = draw(st.integers(1, count))
    arguments = {
        "src_cache_key": key,
        "dst_cache": cache,
        "dst_blocks": block_list(draw, cache, count + chance(draw, 20)),
        **({"src_blocks": draw(st.sampled_from((None, ())))} if draw(st.booleans()) else {}),
        **some_layers(draw, source, cache),
    }
    return Call(node, "pull_blocks", (), mixed_in(draw, arguments, _pull_oddities(), one_in=8))


def _pull_oddities() -> dict[str, Sequence[Any]]:
    return {
        "src_cache_key": odd.KEYS,
        "dst_cache": odd.CACHES,
        "src_blocks": odd.BLOCK_LISTS,
        "dst_blocks": odd.BLOCK_LISTS,
        "layer_range": (range(1),),
        **LAYER_ODDITIES,
    }


@st.composite
def block_pushes(draw: DrawFn) -> Call:
    machine = machine_of(draw)
    node, owner, cache, target, key = route(draw, machine.live_blocks_caches, machine.keyed_blocks, machine.same_blocks)
    count = draw(st.integers(1, 3))
    arguments = {
        "dst_cache_key": blocks_key_on(draw, owner, key),
        "src_cache": cache,
        "src_blocks": block_list(draw, cache, count),
        "dst_blocks": block_list(draw, target, count),
        **some_layers(draw, cache, target),
    }
    oddities: dict[str, Sequence[Any]] = {
        "dst_cache_key": odd.KEYS,
        "src_cache": odd.CACHES,
        "src_blocks": odd.BLOCK_LISTS,
        "dst_blocks": odd.BLOCK_LISTS,
        **LAYER_ODDITIES,
    }
    return Call(node, "push_blocks", (), mixed_in(draw, arguments, oddities, one_in=8))
