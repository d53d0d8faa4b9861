"""Copies and transfers of batch slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ..terms import CacheName, Call
from . import odd
from .odd import chance, mixed_in
from .present import batch_index_of, by_id, cache_of, key_on, machine_of, nodes, route, slot_of


@st.composite
def copies(draw: DrawFn) -> Call:
    node = draw(nodes())
    src = cache_of(draw, node)
    dst = cache_of(draw, node, like=src)
    arguments = {
        "dst": dst,
        "src": src,
        "dst_batch_index": batch_index_of(draw, dst),
        "src_batch_index": batch_index_of(draw, src),
        "offset": draw(st.sampled_from((0, 0, 0, 1, 5, 16, 1200))),
        "size": size_within(draw, src, dst),
        "req_id": draw(st.sampled_from((None, 1))),
    }
    oddities = {
        "dst": odd.CACHES,
        "src": odd.CACHES,
        "dst_batch_index": odd.UINT32,
        "src_batch_index": odd.UINT32,
        "offset": (*odd.UINT64, 2**64 - 1),
        "size": (*odd.SIZES, 2**63 - 1),
        "req_id": odd.UINT64,
    }
    return Call(node, "copy_cache", (), mixed_in(draw, arguments, oddities))


def size_within(draw: DrawFn, cache: CacheName | None, other: CacheName | None) -> int:
    """All of a batch slot of the first cache, or some bytes that both have; now and then one more than there are."""
    machine = machine_of(draw)
    ours, common = machine.row_bytes(cache), min(machine.row_bytes(cache), machine.row_bytes(other))
    if chance(draw, 12):
        return draw(st.sampled_from((-1, ours + 1, common + 1)))
    return draw(st.sampled_from((-1, common, -1, 1, min(common, 7)) if ours == common else (common, 1)))


def layers(draw: DrawFn, source: CacheName | None, target: CacheName | None) -> dict[str, Any]:
    """Some layers of the source, and as many of the target; now and then a range is left out."""
    machine = machine_of(draw)
    fitting = [size for size in (1, 2, 3) if machine.num_tensors(target) % size == 0]
    per_layer = draw(st.sampled_from((1, 2, 3) if chance(draw, 10) else fitting))
    there = max(1, machine.num_tensors(source) // per_layer)
    here = max(1, machine.num_tensors(target) // per_layer)
    length = draw(st.integers(1, min(there, here)))
    begin_there = draw(st.integers(0, there - length))
    begin_here = draw(st.integers(0, here - length))
    ranges = {
        "src_layer_range": range(begin_there, begin_there + length),
        "dst_layer_range": range(begin_here, begin_here + length),
        "tensor_num_per_layer": per_layer,
    }
    if chance(draw, 6):
        del ranges[draw(st.sampled_from(("src_layer_range", "dst_layer_range")))]
    return ranges


@st.composite
def pulls(draw: DrawFn, by_key: bool = False, by_layers: bool = False) -> Call:
    """``pull_cache``, by key where that is allowed, or by id; of some layers, or of all."""
    machine = machine_of(draw)
    by_key = by_key and (not machine.remote_mode or chance(draw, 15))
    theirs = machine.keyed_slots if by_key else by_id(machine.live_slots_caches)
    node, owner, cache, source, wanted = route(draw, machine.live_slots_caches, theirs, machine.alike)
    key: Any = key_on(draw, owner, wanted) if by_key else slot_of(draw, owner, source)
    arguments = {
        "cache_key": key,
        "cache": cache,
        "batch_index": batch_index_of(draw, cache),
        "size": size_within(draw, cache, source),
        **(layers(draw, source, cache) if by_layers else {}),
    }
    oddities: dict[str, Sequence[Any]] = {
        "cache_key": odd.KEYS,
        "cache": odd.CACHES,
        "batch_index": odd.UINT32,
        "size": odd.SIZES,
        "src_layer_range": odd.RANGES,
        "dst_layer_range": odd.RANGES,
        "tensor_num_per_layer": odd.TENSORS_PER_LAYER,
        "layer_range": (range(1),),
    }
    return Call(node, "pull_cache", (), mixed_in(draw, arguments, oddities, one_in=8))


@st.composite
def pushes(draw: DrawFn) -> Call:
    machine = machine_of(draw)

    def fits(ours: CacheName, theirs: CacheName) -> bool:
        return machine.alike(ours, theirs) and machine.row_bytes(ours) <= machine.row_bytes(theirs)

    has_slots = machine.live_slots_caches
    node, owner, cache, target, _ = route(draw, has_slots, by_id(has_slots), fits)
    arguments = {
        "dst_cache_key": slot_of(draw, owner, target),
        "src_cache": cache,
        "src_batch_index": batch_index_of(draw, cache),
        **(layers(draw, cache, target) if draw(st.booleans()) else {}),
    }
    oddities: dict[str, Sequence[Any]] = {
        "dst_cache_key": odd.KEYS,
        "src_cache": odd.CACHES,
        "src_batch_index": odd.UINT32,
        "size": (*odd.SIZES, 1),
        "src_layer_range": odd.RANGES,
        "dst_layer_range": odd.RANGES,
        "tensor_num_per_layer": odd.TENSORS_PER_LAYER,
    }
    return Call(node, "push_cache", (), mixed_in(draw, arguments, oddities, one_in=8))
