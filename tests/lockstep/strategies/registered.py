"""Memory of the program's own: registered, wrapped for ``swap_blocks``, remapped."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import CacheDesc, MemInfo

from ..terms import PLACEMENTS, CacheName, Call, Place
from . import odd
from .caches import blocks_desc, key_lists, new_blocks_key, slots_desc
from .odd import NOWHERE, chance, mixed_in
from .present import any_cache, machine_of, node_with, nodes

PAGE_BYTES = 4096


@st.composite
def memory_sizes(draw: DrawFn) -> tuple[str, int]:
    """A node, and how many bytes its program wants to have."""
    return draw(st.sampled_from(machine_of(draw).nodes)), draw(st.sampled_from((3, 1, 5))) * PAGE_BYTES


def places_for(draw: DrawFn, node: str, desc: CacheDesc) -> list[Place | int]:
    """Where the tensors of a new cache may lie, in memory that is used for nothing else.

    Where there is no room they lie where nothing is mapped, or where the memory ends.
    """
    machine = machine_of(draw)
    gap = draw(st.sampled_from((0, 0, 1, 16)))
    each = desc.size + gap
    memories = [memory for memory in machine.mapped_memories() if memory.node == node]
    for memory in draw(st.permutations(memories)):
        start = machine.free_offset(memory, desc.num_tensors * each)
        if start is not None:
            return [Place(memory, start + index * each) for index in range(desc.num_tensors)]
    return [NOWHERE + index * desc.size for index in range(desc.num_tensors)]


def wrong_places(draw: DrawFn, node: str, places: list[Place | int]) -> list[Place | int]:
    """One too few, or the last one where memory ends or has been taken away."""
    gone = [memory for memory in machine_of(draw).memories if memory.node == node]
    if not gone or draw(st.booleans()):
        return places[:-1]
    memory = draw(st.sampled_from(gone))
    return [*places[:-1], Place(memory, machine_of(draw).memories[memory].size - draw(st.sampled_from((1, 7))))]


def registered_before(draw: DrawFn, node: str, blocks: bool) -> CacheName | None:
    """A registered cache that lives, to be registered once more."""
    machine = machine_of(draw)
    live = machine.live_blocks_caches(node) if blocks else machine.live_slots_caches(node)
    live = [cache for cache in live if cache in machine.registrations]
    return draw(st.sampled_from(live)) if live and chance(draw, 6) else None


def where_and_what(draw: DrawFn, node: str, blocks: bool) -> dict[str, Any]:
    machine = machine_of(draw)
    again = registered_before(draw, node, blocks)
    if again is not None:
        return {"cache_desc": machine.desc(again), "addrs": list(machine.registrations[again])}
    placement = draw(st.sampled_from(PLACEMENTS if chance(draw, 4) else ("DEVICE",)))
    desc = blocks_desc(draw, placement) if blocks else slots_desc(draw, placement)
    places = places_for(draw, node, desc)
    if chance(draw, 20):
        places = wrong_places(draw, node, places)
    return {"cache_desc": desc, "addrs": places}


@st.composite
def registrations(draw: DrawFn, node: str | None = None) -> Call:
    if node is None:
        node = draw(st.sampled_from(machine_of(draw).nodes))
    arguments = where_and_what(draw, node, blocks=False)
    arguments["cache_keys"] = draw(key_lists(node, arguments["cache_desc"].batch_size))
    arguments["remote_accessible"] = draw(st.sampled_from((None, True, None, True, None, False)))
    oddities = {
        "cache_desc": odd.DESCS,
        "addrs": odd.ADDRESS_LISTS,
        "cache_keys": odd.KEY_LISTS,
        "remote_accessible": (1, "yes"),
    }
    return Call(node, "register_cache", (), mixed_in(draw, arguments, oddities, one_in=10))


@st.composite
def blocks_registrations(draw: DrawFn) -> Call:
    node = draw(st.sampled_from(machine_of(draw).nodes))
    arguments = where_and_what(draw, node, blocks=True)
    arguments["blocks_cache_key"] = new_blocks_key(draw, node)
    arguments["remote_accessible"] = draw(st.sampled_from((None, True, None, True, None, False)))
    oddities = {
        "cache_desc": odd.DESCS,
        "addrs": odd.ADDRESS_LISTS,
        "blocks_cache_key": odd.BLOCKS_KEYS,
        "remote_accessible": (1, "yes"),
    }
    return Call(node, "register_blocks_cache", (), mixed_in(draw, arguments, oddities, one_in=10))


@st.composite
def wraps(draw: DrawFn) -> Call:
    """``create_cpu_cache``; mostly like a blocks cache of the other placement, so that blocks can be swapped."""
    machine = machine_of(draw)

    def partners(node: str) -> list[CacheName]:
        live = machine.live_blocks_caches(node)
        return [cache for cache in live if machine.desc(cache).placement == "DEVICE"]

    node = node_with(draw, partners)
    desc = blocks_desc(draw, "HOST" if not chance(draw, 20) else "DEVICE")
    if partners(node):
        like = machine.desc(draw(st.sampled_from(partners(node))))
        blocks = draw(st.sampled_from((4, 2, 1)))
        desc = CacheDesc(like.num_tensors, (blocks, *like.shape[1:]), like.data_type, desc.placement)
    places = places_for(draw, node, desc)
    if chance(draw, 15):
        places = draw(st.sampled_from((places[:-1], [NOWHERE] * len(places))))
    oddities = {"cache_desc": (None, 1, "desc"), "addrs": odd.ADDRESS_LISTS}
    arguments = mixed_in(draw, {"cache_desc": desc, "addrs": places}, oddities, one_in=10)
    return Call(node, "create_cpu_cache", (), arguments)


@st.composite
def unregistrations(draw: DrawFn) -> Call:
    """``unregister_cache``; now and then of an allocated cache, or one that is unknown."""
    machine = machine_of(draw)

    def registered(node: str) -> list[CacheName]:
        return [cache for cache in machine.live_caches(node) if cache in machine.registrations]

    node = node_with(draw, registered)
    cache = any_cache(draw, node)
    if registered(node) and not chance(draw, 8):
        cache = draw(st.sampled_from(registered(node)))
    cache_id = machine.reference.caches[cache].cache_id if cache else 7
    arguments = mixed_in(draw, {"cache_id": cache_id}, {"cache_id": odd.INT64}, one_in=12)
    return Call(node, "unregister_cache", (), arguments)


@st.composite
def remaps(draw: DrawFn) -> Call:
    node = draw(nodes())
    memories = [memory for memory in machine_of(draw).mapped_memories() if memory.node == node]
    places = [Place(memory) for memory in memories] or [NOWHERE]
    infos: Any = [MemInfo("MEM_TYPE_DEVICE", place, PAGE_BYTES) for place in places]
    if draw(st.booleans()):
        infos = infos[0]
    arguments = mixed_in(draw, {"mem_infos": infos}, {"mem_infos": odd.MEMORY_INFOS}, one_in=3)
    return Call(node, "remap_registered_memory", (), arguments)
