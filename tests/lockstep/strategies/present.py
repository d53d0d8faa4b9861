"""What there is in the cluster, to be named in a call: mostly what fits, now and then anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import INV, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex

from ..terms import CacheName, MemoryName, ViewName
from .odd import chance

if TYPE_CHECKING:
    from ..machine import Lockstep

CLUSTER_IDS = {"a": 1, "b": 2, "c": 2**64 - 1}

REQUEST_KEYS = [CacheKey(1, number, model) for number in (1, 2, 3, 4, INV - 1) for model in (0, 1)]
PREFIX_KEYS = [CacheKey(1, INV, model, number) for number in (1, 2) for model in (0, INV)]
KEYS = [*REQUEST_KEYS, *PREFIX_KEYS]
BLOCKS_KEYS = [BlocksCacheKey(1, model) for model in (0, 1, 2, INV)]


RUNNER = st.runner()


def machine_of(draw: DrawFn) -> Lockstep:
    machine: Lockstep = draw(RUNNER)
    return machine


@st.composite
def nodes(draw: DrawFn) -> str:
    """A node; mostly one where there are caches."""
    machine = machine_of(draw)
    busy = [node for node in machine.nodes if machine.live_caches(node)]
    return draw(st.sampled_from(machine.nodes if not busy or chance(draw, 10) else busy))


def node_with(draw: DrawFn, wanted: Callable[[str], object]) -> str:
    """A node that has what is wanted; now and then, and where there is none, any."""
    machine = machine_of(draw)
    fitting = [node for node in machine.nodes if wanted(node)]
    return draw(st.sampled_from(fitting)) if fitting and not chance(draw, 15) else draw(nodes())


def other_node(draw: DrawFn, node: str) -> str:
    """Another node; now and then, and where there is none, the same."""
    others = [other for other in machine_of(draw).nodes if other != node]
    return draw(st.sampled_from(others)) if others and not chance(draw, 20) else node


class Route(NamedTuple):
    """Between which nodes and which of their caches something may be transferred, and by what the remote is named."""

    node: str
    owner: str
    ours: CacheName | None
    theirs: CacheName | None
    key: CacheKey | BlocksCacheKey | None = None


#: A cache, and a key of it by which it is to be named.
Named = tuple[CacheKey | BlocksCacheKey | None, CacheName]


def route(
    draw: DrawFn,
    ours: Callable[[str], Sequence[CacheName]],
    theirs: Callable[[str], Sequence[Named]],
    fits: Callable[[CacheName, CacheName], bool],
) -> Route:
    """Some way between two linked nodes by which a transfer would succeed; now and then, and if there is none, any."""
    machine = machine_of(draw)
    found = [
        Route(node, owner, cache, other, key)
        for node, owner in permutations(machine.nodes, 2)
        if machine.are_linked(node, owner)
        for cache in ours(node)
        for key, other in theirs(owner)
        if fits(cache, other)
    ]
    if found and not chance(draw, 8):
        return draw(st.sampled_from(found))
    node = draw(nodes())
    owner = other_node(draw, node)
    key, other = draw(st.sampled_from([*theirs(owner), (None, any_cache(draw, owner))]))
    return Route(node, owner, one_of(draw, ours(node), node), other, key)


def by_id(caches_of: Callable[[str], Sequence[CacheName]]) -> Callable[[str], Sequence[Named]]:
    """The caches of a node without a key."""
    return lambda node: [(None, cache) for cache in caches_of(node)]


def any_cache(draw: DrawFn, node: str) -> CacheName | None:
    """Any cache that lives on the node, or one that once did, or one of another node. None where there is none."""
    machine = machine_of(draw)
    candidates = machine.live_caches(node) or machine.caches_known_beside(node)
    if chance(draw, 3):
        candidates = machine.caches_known_beside(node)
    return draw(st.sampled_from(candidates)) if candidates else None


def one_of(draw: DrawFn, fitting: Sequence[CacheName], node: str) -> CacheName | None:
    """One of some caches; now and then, and where there are none, :func:`any_cache`."""
    return draw(st.sampled_from(fitting)) if fitting and not chance(draw, 15) else any_cache(draw, node)


def cache_of(draw: DrawFn, node: str, like: CacheName | None = None) -> CacheName | None:
    """A continuous cache that lives on the node, mostly, with as many tensors as another one."""
    machine = machine_of(draw)
    live = machine.live_slots_caches(node)
    return one_of(draw, [cache for cache in live if machine.alike(cache, like)] if like else live, node)


def batch_index_of(draw: DrawFn, cache: CacheName | None) -> int:
    """One of the cache's batch slots; now and then the one after the last."""
    batch_size = machine_of(draw).row_count(cache)
    return batch_size if chance(draw, 25) else draw(st.integers(0, batch_size - 1))


def block_list(draw: DrawFn, cache: CacheName | None, length: int) -> list[int] | tuple[int, ...]:
    """Some of a cache's blocks; now and then the one after the last among them."""
    count = machine_of(draw).row_count(cache)
    blocks = draw(st.lists(st.integers(0, count - 1), min_size=length, max_size=length))
    if blocks and chance(draw, 25):
        blocks[-1] = count
    return tuple(blocks) if draw(st.booleans()) else blocks


def slot_of(draw: DrawFn, node: str, cache: CacheName | None) -> CacheKeyByIdAndIndex:
    """A batch slot of a cache on the node, by its id; now and then one that never was."""
    if cache is None or chance(draw, 20):
        return CacheKeyByIdAndIndex(CLUSTER_IDS[node], draw(st.sampled_from((0, -1, 1, 99, 2**63 - 1))))
    cache_id = machine_of(draw).reference.caches[cache].cache_id
    return CacheKeyByIdAndIndex(CLUSTER_IDS[node], cache_id, batch_index_of(draw, cache))


def key_on(draw: DrawFn, node: str, wanted: CacheKey | BlocksCacheKey | None = None) -> CacheKey:
    """The wanted key, or one that is bound on the node; now and then any key."""
    key = wanted
    if not isinstance(key, CacheKey) or chance(draw, 15):
        bound = machine_of(draw).bound_keys(node)
        key = draw(st.sampled_from(KEYS if not bound or chance(draw, 15) else bound))
    return CacheKey(CLUSTER_IDS[node], key.req_id, key.model_id, key.prefix_id)


def blocks_key_on(draw: DrawFn, node: str, wanted: CacheKey | BlocksCacheKey | None = None) -> BlocksCacheKey:
    """The wanted key, or one that is bound on the node; now and then any."""
    key = wanted
    if not isinstance(key, BlocksCacheKey) or chance(draw, 15):
        bound = machine_of(draw).bound_blocks_keys(node)
        key = draw(st.sampled_from(BLOCKS_KEYS if not bound or chance(draw, 15) else bound))
    return BlocksCacheKey(CLUSTER_IDS[node], key.model_id)


@st.composite
def views(draw: DrawFn) -> ViewName:
    return draw(st.sampled_from(machine_of(draw).open_views))


@st.composite
def memories(draw: DrawFn) -> MemoryName:
    """Memory of a program's own that is still mapped."""
    return draw(st.sampled_from(machine_of(draw).mapped_memories()))


@st.composite
def caches(draw: DrawFn) -> CacheName:
    """A cache that lives on some node, or one that did."""
    machine = machine_of(draw)
    live = [cache for node in machine.nodes for cache in machine.live_caches(node)]
    return draw(st.sampled_from(machine.caches if not live or chance(draw, 10) else live))
