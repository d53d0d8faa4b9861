"""Calls for many keys or caches at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import INV, BlocksCacheKey, CacheKey

from ..terms import Array, CacheName, Call
from . import odd
from .odd import LEASE_MS, PLACEHOLDERS, chance, mixed_in
from .present import CLUSTER_IDS, KEYS, any_cache, by_id, key_on, machine_of, node_with, nodes, route, slot_of
from .slots import size_within

MOST_ITEMS = 5
REQUEST_IDS = (1, 2, 3, 4, INV - 1, INV, 1000, 1001)

DTYPES = (("int64", 2**63), ("uint64", 2**64), (">u4", 2**32), ("int8", 2**7))

NUMBERS: tuple[Any, ...] = (None, 1, "1", {1}, [None], [1.0], [-1], [2**64], [True, 2], Array((-1, 2)))
MANY_KEYS: tuple[Any, ...] = (*NUMBERS, [CacheKey(1, 1), 1], [1, CacheKey(1, 1)], [BlocksCacheKey(1)], [], ())
MANY_CACHES: tuple[Any, ...] = (*NUMBERS, [CacheKey(1, 1)], [], 99, [99, 2**63])
TABLES: tuple[Any, ...] = (*NUMBERS, [[0]], [], [()], [[0], [0]], [[-1]])


def laid_out(draw: DrawFn, numbers: Sequence[int]) -> list[int] | Array:
    """A list of the numbers, or an array of some type that has room for them, in some layout."""
    largest = max(numbers, default=0)
    fitting = [
        name for name, most in (("int64", 2**63), ("uint64", 2**64), (">u4", 2**32), ("int8", 128)) if largest < most
    ]
    if draw(st.booleans()):
        return list(numbers)
    return Array(tuple(numbers), draw(st.sampled_from(fitting)), draw(st.sampled_from((1, 2, -1))))


def some_keys(draw: DrawFn, node: str) -> dict[str, Any]:
    """Keys, mostly bound ones, with placeholders and others among them; or request ids of one model."""
    bound = machine_of(draw).bound_keys(node)
    key = st.sampled_from(bound or KEYS) if not chance(draw, 3) else st.sampled_from([*bound, *KEYS, *PLACEHOLDERS])
    keys = draw(st.lists(key, max_size=MOST_ITEMS, unique=not chance(draw, 4)))
    if draw(st.booleans()):
        return {"cache_keys": tuple(keys) if draw(st.booleans()) else keys}
    model = keys[0].model_id if keys else 0
    ids = [key.req_id for key in keys if key.model_id == model and key.req_id != INV]
    if chance(draw, 4):
        ids.append(draw(st.sampled_from(REQUEST_IDS)))
    return {"cache_keys": laid_out(draw, ids), "model_id": model}


@st.composite
def lookups(draw: DrawFn) -> Call:
    node = draw(nodes())
    oddities = {"cache_keys": MANY_KEYS, "model_id": odd.UINT64}
    return Call(node, "lookup_many", (), mixed_in(draw, some_keys(draw, node), oddities))


@st.composite
def removals(draw: DrawFn) -> Call:
    node = node_with(draw, machine_of(draw).bound_keys)
    arguments = {**some_keys(draw, node), "all_or_nothing": draw(st.booleans())}
    oddities = {"cache_keys": MANY_KEYS, "model_id": odd.UINT64, "all_or_nothing": odd.FLAGS}
    return Call(node, "remove_cache_keys", (), mixed_in(draw, arguments, oddities, one_in=8))


@st.composite
def deallocations(draw: DrawFn) -> Call:
    """Of caches or their ids; now and then of a blocks cache, a registered one, or one that is gone."""
    machine = machine_of(draw)
    node = node_with(draw, machine.live_slots_caches)
    fitting = [cache for cache in machine.live_slots_caches(node) if cache not in machine.registrations]
    caches = draw(st.lists(st.sampled_from(fitting), max_size=2, unique=not chance(draw, 6))) if fitting else []
    if chance(draw, 4) and (other := any_cache(draw, node)) is not None:
        caches.append(other)
    items: Any = caches
    if draw(st.booleans()):
        items = laid_out(draw, [max(0, machine.reference.caches[cache].cache_id) for cache in caches])
    arguments = {"caches": items, "all_or_nothing": draw(st.booleans())}
    oddities = {"caches": MANY_CACHES, "all_or_nothing": odd.FLAGS}
    return Call(node, "deallocate_many", (), mixed_in(draw, arguments, oddities, one_in=8))


@st.composite
def renewals(draw: DrawFn) -> Call:
    """Of keys of the node itself or of others, linked or not; by key, by slot, or by request ids of one cluster."""
    machine = machine_of(draw)
    node = draw(nodes())
    owner = node_with(draw, machine.bound_keys)
    bound = machine.bound_keys(owner)
    keys: Any = [
        key_on(draw, owner, key) for key in draw(st.lists(st.sampled_from(bound or KEYS), max_size=MOST_ITEMS))
    ]
    arguments: dict[str, Any] = {"cache_keys": keys, "lease": draw(st.sampled_from((1, LEASE_MS, 2 * LEASE_MS)))}
    if chance(draw, 3):
        ids = [key.req_id for key in keys if key.model_id == 0]
        arguments |= {"cache_keys": laid_out(draw, ids), "cluster_id": CLUSTER_IDS[owner]}
    elif chance(draw, 3):
        keys.append(slot_of(draw, owner, any_cache(draw, owner)))
    oddities = {
        "cache_keys": MANY_KEYS,
        "lease": (*odd.LEASES, 0, None),
        "cluster_id": odd.UINT64,
        "model_id": odd.UINT64,
    }
    return Call(node, "renew_leases", (), mixed_in(draw, arguments, oddities, one_in=8))


@st.composite
def pulls(draw: DrawFn, into_blocks: bool) -> Call:
    """Slots of linked nodes into slots or blocks; mostly as all of them would succeed."""
    machine = machine_of(draw)
    ours = machine.live_blocks_caches if into_blocks else machine.live_slots_caches
    by_key = into_blocks or not machine.remote_mode or chance(draw, 15)
    theirs = machine.keyed_slots if by_key else by_id(machine.live_slots_caches)
    node, owner, cache, source, wanted = route(draw, ours, theirs, machine.alike)
    sources = [(owner, wanted, source)]
    others = [
        (other, key, found)
        for other in machine.nodes
        if machine.are_linked(node, other)
        for key, found in theirs(other)
        if cache is not None and machine.alike(cache, found) and key != wanted
    ]
    if others:
        sources += draw(st.lists(st.sampled_from(others), max_size=MOST_ITEMS - 1, unique=not chance(draw, 8)))
    keys: Any = [key_on(draw, of, key) if by_key else slot_of(draw, of, found) for of, key, found in sources]
    arguments: dict[str, Any] = {"cache_keys": keys, "all_or_nothing": draw(st.booleans())}
    if by_key and draw(st.booleans()):
        first = keys[0]
        ids = [key.req_id for key in keys if (key.cluster_id, key.model_id) == (first.cluster_id, first.model_id)]
        arguments["cache_keys"] = laid_out(draw, ids)
        arguments["cluster_id"], arguments["model_id"] = CLUSTER_IDS[owner], first.model_id
        count = len(ids)
    else:
        count = len(keys)
    if into_blocks:
        arguments |= into_tables(draw, cache, [found for _, _, found in sources[:count]])
    else:
        arguments |= into_slots(draw, node, cache, count)
        arguments["size"] = size_within(draw, cache, source)
    oddities: dict[str, Sequence[Any]] = {
        "cache_keys": MANY_KEYS,
        "cache": (*odd.CACHES, []),
        "batch_indices": NUMBERS,
        "block_tables": TABLES,
        "cluster_id": odd.UINT64,
        "model_id": odd.UINT64,
        "size": odd.SIZES,
        "all_or_nothing": odd.FLAGS,
    }
    return Call(node, "pull_many", (), mixed_in(draw, arguments, oddities, one_in=8))


def into_slots(draw: DrawFn, node: str, cache: CacheName | None, count: int) -> dict[str, Any]:
    """Different slots of one cache, or a cache for each; now and then one slot twice, or one after the last."""
    machine = machine_of(draw)
    alike = [other for other in machine.live_slots_caches(node) if machine.alike(other, cache)]
    if alike and chance(draw, 3):
        caches = draw(st.lists(st.sampled_from(alike), min_size=count, max_size=count, unique=len(alike) >= count))
        if len(set(caches)) == len(caches) and draw(st.booleans()):
            return {"cache": caches}
        return {"cache": tuple(caches), "batch_indices": laid_out(draw, [position % 2 for position in range(count)])}
    if count <= machine.row_count(cache) and chance(draw, 3):
        return {"cache": cache}
    slots = range(machine.row_count(cache) + (1 if chance(draw, 10) else 0))
    unique = count <= len(slots) and not chance(draw, 15)
    indices = draw(st.lists(st.sampled_from(slots), min_size=count, max_size=count, unique=unique))
    return {"cache": cache, "batch_indices": laid_out(draw, indices)}


def into_tables(draw: DrawFn, cache: CacheName | None, sources: Sequence[CacheName | None]) -> dict[str, Any]:
    """Blocks for each slot, none of them twice as long as there are enough."""
    machine = machine_of(draw)
    free = list(draw(st.permutations(range(min(machine.row_count(cache), 64)))))
    tables: list[Any] = []
    for source in sources:
        enough = -(-machine.row_bytes(source) // machine.row_bytes(cache)) + (1 if chance(draw, 20) else 0)
        length = draw(st.integers(1, min(enough, 4)))
        blocks, free = (free[:length], free[length:]) if len(free) >= length else (free[:1] or [0], free[1:])
        tables.append(laid_out(draw, blocks))
    return {"cache": cache, "block_tables": tables}
