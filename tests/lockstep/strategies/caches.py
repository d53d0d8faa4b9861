"""Allocation, deallocation and keys."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import ELEMENT_BYTES, BlocksCacheKey, CacheDesc, CacheKey

from ..terms import PLACEMENTS, Call
from . import odd
from .odd import BOTH_IDS, LEASE_MS, PLACEHOLDERS, chance, mixed_in
from .present import BLOCKS_KEYS, KEYS, key_on, machine_of, node_with, nodes, one_of


def placement_of(draw: DrawFn, node: str) -> str:
    """Mostly one for which the node has a pool."""
    pools = list(machine_of(draw).reference.nodes[node].pools)
    return draw(st.sampled_from(PLACEMENTS if not pools or chance(draw, 20) else pools))


def num_tensors(draw: DrawFn) -> int:
    return draw(st.sampled_from((33, 3) if chance(draw, 20) else (2, 2, 2, 4, 1)))


def data_type(draw: DrawFn) -> str:
    return draw(st.sampled_from(("DT_INT8", "DT_FLOAT16", *ELEMENT_BYTES) if chance(draw, 3) else ("DT_INT8",)))


def slots_desc(draw: DrawFn, placement: str) -> CacheDesc:
    """A continuous cache."""
    batch_size = draw(st.sampled_from((2, 1, 2, 3, 4)))
    rest = draw(st.sampled_from(((8,), (64,), (4, 2), (8,), (300,), (3, 400))))
    if chance(draw, 15):
        batch_size, rest = draw(st.sampled_from((33, 70))), (4,)
    leading = draw(st.sampled_from(((), (), (), (1,), (1, 1))))
    shape = (*leading, batch_size, *rest)
    return CacheDesc(num_tensors(draw), shape, data_type(draw), placement, len(leading))


def blocks_desc(draw: DrawFn, placement: str) -> CacheDesc:
    """A blocks cache, often one whose blocks fit another one's.

    Which dimension is said to hold the batch makes no difference to it.
    """
    machine = machine_of(draw)
    count = draw(st.sampled_from((4, 6, 3, 8, 1)))
    others = [cache for node in machine.nodes for cache in machine.live_blocks_caches(node)]
    if others and not chance(draw, 3):
        like = machine.desc(draw(st.sampled_from(others)))
        return CacheDesc(like.num_tensors, (count, *like.shape[1:]), like.data_type, placement)
    shape = (count, *draw(st.sampled_from(((8,), (4, 2), (8,), (20,), (300,)))))
    batch_dim_index = len(shape) - 1 if chance(draw, 10) else 0
    return CacheDesc(num_tensors(draw), shape, data_type(draw), placement, batch_dim_index)


@st.composite
def key_lists(draw: DrawFn, node: str, batch_size: int) -> list[CacheKey] | tuple[CacheKey, ...]:
    """Keys for a new cache: mostly free ones, with placeholders anywhere; now and then duplicates, or one too many."""
    if batch_size >= 33 and draw(st.booleans()):
        return [CacheKey(1, 1000 + number) for number in range(draw(st.integers(30, batch_size)))]
    bound = {key.identity for key in machine_of(draw).bound_keys(node)}
    free = [key for key in KEYS if key.identity not in bound] or KEYS
    key = st.sampled_from(free) | st.sampled_from(free) | st.sampled_from(PLACEHOLDERS)
    if chance(draw, 6):
        key = key | st.sampled_from([*KEYS, BOTH_IDS])
    most = batch_size + (1 if chance(draw, 12) else 0)
    keys = draw(st.lists(key, max_size=min(most, 8), unique=not chance(draw, 4)))
    return tuple(keys) if draw(st.booleans()) else keys


def some_lease(draw: DrawFn) -> dict[str, int]:
    """Mostly none is given."""
    return {"lease": draw(st.sampled_from((0, LEASE_MS, 2 * LEASE_MS, None)))} if chance(draw, 3) else {}


def new_blocks_key(draw: DrawFn, node: str) -> BlocksCacheKey | None:
    """A key for a new blocks cache: mostly a free one, or none; now and then one that is bound."""
    if chance(draw, 4):
        return None
    bound = {key.identity for key in machine_of(draw).bound_blocks_keys(node)}
    free = [key for key in BLOCKS_KEYS if key.identity not in bound]
    if chance(draw, 8):
        return draw(st.sampled_from(BLOCKS_KEYS))
    return draw(st.sampled_from(free)) if free else None


@st.composite
def allocations(draw: DrawFn, node: str | None = None) -> Call:
    if node is None:
        node = draw(st.sampled_from(machine_of(draw).nodes))
    desc = slots_desc(draw, placement_of(draw, node))
    arguments = {"cache_desc": desc, "cache_keys": draw(key_lists(node, desc.batch_size)), **some_lease(draw)}
    oddities = {"cache_desc": odd.DESCS, "cache_keys": odd.KEY_LISTS, "lease": odd.LEASES}
    return Call(node, "allocate_cache", (), mixed_in(draw, arguments, oddities, one_in=12))


@st.composite
def blocks_allocations(draw: DrawFn, node: str | None = None) -> Call:
    if node is None:
        node = draw(st.sampled_from(machine_of(draw).nodes))
    desc = blocks_desc(draw, placement_of(draw, node))
    arguments = {"cache_desc": desc, "blocks_cache_key": new_blocks_key(draw, node)}
    oddities = {"cache_desc": odd.DESCS, "blocks_cache_key": odd.BLOCKS_KEYS}
    return Call(node, "allocate_blocks_cache", (), mixed_in(draw, arguments, oddities, one_in=12))


@st.composite
def deallocations(draw: DrawFn, blocks: bool = False) -> Call:
    """``deallocate_cache`` or ``deallocate_blocks_cache``; of a registered cache, too, or the program's own memory."""
    machine = machine_of(draw)

    def candidates(node: str) -> list[Any]:
        own = machine.cpu_caches(node) if blocks else []
        return (machine.live_blocks_caches(node) if blocks else machine.live_slots_caches(node)) + own

    node = node_with(draw, candidates)
    arguments = mixed_in(draw, {"cache": one_of(draw, candidates(node), node)}, {"cache": odd.CACHES}, one_in=12)
    return Call(node, "deallocate_blocks_cache" if blocks else "deallocate_cache", (), arguments)


@st.composite
def key_calls(draw: DrawFn, method: str) -> Call:
    """``remove_cache_key``, ``lookup`` or ``check_cache_key``."""
    node = draw(nodes())
    arguments = mixed_in(draw, {"cache_key": key_on(draw, node)}, {"cache_key": odd.KEYS}, one_in=8)
    return Call(node, method, (), arguments)
