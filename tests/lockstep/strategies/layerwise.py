"""``transfer_cache_async``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import (
    BlocksCacheKey,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

from ..terms import PATIENCE_MS, CacheName, Call, Place, Script
from . import odd
from .odd import NOWHERE, chance, mixed_in
from .present import CLUSTER_IDS, batch_index_of, block_list, by_id, machine_of, one_of, other_node, route

MOST_LAYERS = 17
"""Of any cache that is allocated."""

BLOCK_SIZES: tuple[Any, ...] = (None, "8", 8.0, -1, 0, 1, 8, 2**64)


def whole_layers(draw: DrawFn, node: str) -> list[CacheName]:
    """The caches of a node that can be sent, or sent to, layer by layer."""
    machine = machine_of(draw)
    return [cache for cache in machine.live_caches(node) if machine.num_tensors(cache) % 2 == 0]


@st.composite
def layer_transfers(draw: DrawFn) -> Call:
    """A slot to slots or blocks of other clusters, or blocks to blocks."""
    machine = machine_of(draw)

    def sendable(node: str) -> list[CacheName]:
        return [cache for cache in whole_layers(draw, node) if machine.desc(cache).placement == "DEVICE"]

    takers = by_id(lambda node: whole_layers(draw, node))
    node, owner, source, target, _ = route(draw, sendable, takers, machine.can_be_sent)
    blocks = block_arguments(draw, source, target)
    configs = [draw(configs_for(node, owner, source, target))]
    while chance(draw, 3) and len(configs) < 3:
        other = other_node(draw, node)
        alike = [cache for cache in whole_layers(draw, other) if machine.alike_rows(cache, target)]
        configs.append(draw(configs_for(node, other, source, one_of(draw, alike, other))))
    arguments = {
        "src_cache": source,
        "layer_synchronizer": draw(scripts(node, source)),
        "transfer_configs": tuple(configs) if draw(st.booleans()) else configs,
        **blocks,
    }
    oddities: dict[str, Sequence[Any]] = {
        "src_cache": odd.CACHES,
        "layer_synchronizer": (None, 1, "layers"),
        "transfer_configs": (None, 1, "configs", {}, [], [None], [CacheKey(1, 1)]),
        "src_block_indices": odd.BLOCK_LISTS,
        "dst_block_indices": odd.BLOCK_LISTS,
        "dst_block_memory_size": BLOCK_SIZES,
    }
    return Call(node, "transfer_cache_async", (), mixed_in(draw, arguments, oddities, one_in=8))


def block_arguments(draw: DrawFn, source: CacheName | None, target: CacheName | None) -> dict[str, Any]:
    """Which blocks go where, if there are blocks."""
    machine = machine_of(draw)
    if not machine.is_blocks_cache(target):
        return {}
    block_bytes = machine.row_bytes(target)
    if not machine.is_blocks_cache(source):
        most = min(-(-machine.row_bytes(source) // block_bytes), machine.row_count(target), 6)
        count = draw(st.integers(1, most)) + chance(draw, 20)
        return {"dst_block_indices": block_list(draw, target, count), "dst_block_memory_size": block_bytes}
    if machine.row_count(source) == machine.row_count(target) and draw(st.booleans()):
        return {}
    count = draw(st.integers(1, 3))
    lists = {
        "src_block_indices": block_list(draw, source, count),
        "dst_block_indices": block_list(draw, target, count),
    }
    return {**lists, "dst_block_memory_size": block_bytes} if chance(draw, 4) else lists


@st.composite
def configs_for(
    draw: DrawFn, node: str, owner: str, source: CacheName | None, target: CacheName | None
) -> TransferConfig | TransferWithCacheKeyConfig:
    """Some layers for a cache of another cluster: by its key in remote mode, else by their addresses."""
    machine = machine_of(draw)
    ours, theirs = (max(1, machine.num_tensors(cache) // 2) for cache in (source, target))
    length = draw(st.integers(1, min(ours, theirs)))
    first_of_ours, first_of_theirs = draw(st.integers(0, ours - length)), draw(st.integers(0, theirs - length))
    layers = range(first_of_ours, first_of_ours + length + chance(draw, 30))
    batch_index = 0 if machine.is_blocks_cache(source) else batch_index_of(draw, source)
    if machine.remote_mode != chance(draw, 30):
        target_layers = range(first_of_theirs, first_of_theirs + len(layers))
        key = key_of(draw, owner, target)
        if isinstance(key, BlocksCacheKey):
            batch_index = 0  # anything else is refused when the config is made
        return TransferWithCacheKeyConfig(key, layers, target_layers, batch_index)
    addresses = addresses_of(draw, owner, target, range(first_of_theirs, first_of_theirs + length))
    wanted = None if length == ours and draw(st.booleans()) else layers
    return TransferConfig(CLUSTER_IDS[owner], addresses, wanted, batch_index)


def key_of(draw: DrawFn, owner: str, target: CacheName | None) -> BlocksCacheKey | CacheKeyByIdAndIndex:
    """What names the target; a blocks cache by its key, if it has one, or by its id."""
    machine = machine_of(draw)
    if target is None:
        return CacheKeyByIdAndIndex(CLUSTER_IDS[owner], 99)
    if not machine.is_blocks_cache(target):
        return CacheKeyByIdAndIndex(
            CLUSTER_IDS[owner], machine.reference.caches[target].cache_id, batch_index_of(draw, target)
        )
    bound = [key for key in machine.bound_blocks_keys(owner) if machine.cache_of_key(owner, key) == target]
    if bound and not chance(draw, 3):
        return BlocksCacheKey(CLUSTER_IDS[owner], bound[0].model_id)
    batch_index = 1 if chance(draw, 20) else 0
    return CacheKeyByIdAndIndex(CLUSTER_IDS[owner], machine.reference.caches[target].cache_id, batch_index)


def addresses_of(draw: DrawFn, owner: str, target: CacheName | None, layers: range) -> list[Place | int]:
    """Two addresses for each layer: of a slot, or of the first block; now and then one that lies a little off.

    The model's pools begin at the same address in every engine, so that an address of another one's says nothing.
    """
    machine = machine_of(draw)
    tensors = range(layers.start * 2, layers.stop * 2)
    if target is None or not machine.was_made_by(owner, target) or machine.num_tensors(target) < tensors.stop:
        return [NOWHERE for _ in tensors]
    offset = 0
    if not machine.is_blocks_cache(target):
        offset = draw(st.integers(0, machine.row_count(target) - 1)) * machine.row_bytes(target)
    addresses: list[Place | int] = [Place(target, offset, tensor) for tensor in tensors]
    if chance(draw, 15):
        off = draw(st.sampled_from((1, -1, 4096, machine.row_bytes(target))))
        other: Any = draw(st.sampled_from((0, NOWHERE, 2**64 - 1, Place(target, offset + off, tensors[-1]))))
        addresses[-1] = other
    if chance(draw, 20):
        addresses.pop()
    return addresses


@st.composite
def scripts(draw: DrawFn, node: str, source: CacheName | None) -> Script:
    """Mostly every layer comes. Meanwhile the program may have done with the source, or with a link."""
    answers: list[Any] = [True] * MOST_LAYERS
    if chance(draw, 4):
        machine = machine_of(draw)
        others = [ClusterInfo(CLUSTER_IDS[other]) for other in machine.nodes]
        unlinking = {"clusters": [draw(st.sampled_from(others))], "timeout": PATIENCE_MS, "force": True}
        meanwhile: list[Any] = [False, None, Call(node, "unlink_clusters", (), unlinking)]
        if source is not None and source.node == node:
            blocks = machine.is_blocks_cache(source)
            method = "deallocate_blocks_cache" if blocks else "deallocate_cache"
            meanwhile.append(Call(node, method, (), {"cache": source}))
        answers[draw(st.sampled_from((0, 0, 1)))] = draw(st.sampled_from(meanwhile))
    return Script(tuple(answers))
