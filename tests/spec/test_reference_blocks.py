"""Blocks caches in the reference model: made, dropped, pulled, pushed, copied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llmdd.spec.machine import ImpossibleEvent
from llmdd.spec.reference import Cluster, Node
from llmdd.spec.values import BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex

from .nodes import (
    DESC,
    PAGE,
    PLACEHOLDER,
    block,
    blocks_key,
    by_id,
    fill,
    key,
    options,
    own_tensors,
    prefix,
    refused,
    slot,
    two_nodes,
    with_host_pool,
)

BLOCKS = CacheDesc(2, (4, 4), "DT_FLOAT16")
BLOCK_BYTES = 8  # half of a slot of DESC


def two_blocks_caches(**others: str) -> tuple[Node, Cache, Node, Cache]:
    """An owner with a keyed blocks cache, and a peer with one without."""
    owner, peer = two_nodes(**others)
    source, target = owner.allocate_blocks_cache(BLOCKS, blocks_key()), peer.allocate_blocks_cache(BLOCKS)
    fill(owner, source, 5)
    fill(peer, target, 99)
    return owner, source, peer, target


# -- allocation and references ---------------------------------------------------------------------------------------


def test_api_3_3_deallocating_a_blocks_cache_drops_its_key_at_once(node: Node) -> None:
    cache = node.allocate_blocks_cache(BLOCKS, blocks_key())
    assert cache.is_blocks_cache
    assert node.key_index == {("blocks", 0, 0): (1, 0)}
    node.deallocate_blocks_cache(cache)
    assert (node.key_index, node.live_caches, node.tensor_addrs(cache)) == ({}, 0, [])
    before = node.cluster.observable()
    node.deallocate_blocks_cache(cache)
    node.deallocate_blocks_cache(replace(cache, cache_id=99))
    assert node.cluster.observable() == before


def test_api_3_3_transfers_in_flight_finish_first() -> None:
    owner, source, peer, target = two_blocks_caches()
    transfer = peer.begin_pull_blocks(blocks_key(), target, [0], [0])
    owner.deallocate_blocks_cache(source)
    owner.deallocate_blocks_cache(source)
    assert (owner.key_index, owner.live_caches) == ({}, 1)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: peer.pull_blocks(blocks_key(), target, [0], [0]), owner.cluster)
    peer.copy(transfer)
    peer.finish(transfer)
    assert owner.live_caches == 0
    owner.cluster.check()


def test_api_d3_each_kind_of_key_has_a_namespace_of_its_own(node: Node) -> None:
    node.allocate_blocks_cache(BLOCKS, blocks_key())
    node.allocate_blocks_cache(BLOCKS, blocks_key(model=1))
    node.allocate_cache(DESC, [PLACEHOLDER, key(0)])
    node.remove_cache_key(PLACEHOLDER)  # api D10
    assert len(node.key_index) == 3


def test_a_bound_blocks_key_is_refused(node: Node) -> None:
    first = node.allocate_blocks_cache(BLOCKS, blocks_key())
    again = lambda: node.allocate_blocks_cache(BLOCKS, blocks_key(cluster=9))  # noqa: E731
    refused("LLM_PARAM_INVALID", again, node.cluster, "already bound")
    node.allocate_blocks_cache(BLOCKS)
    node.deallocate_blocks_cache(first)
    again()


BAD_ALLOCATIONS: list[tuple[str, Any, Any, str]] = [
    ("AttributeError", None, 3, ""),
    ("TypeError", "a cache", 3, "cache_desc only support"),
    ("TypeError", BLOCKS, key(1), "blocks_cache_key only support"),
    ("TypeError", replace(BLOCKS, num_tensors=0), [blocks_key()], "blocks_cache_key only support"),
    ("LLM_PARAM_INVALID", replace(BLOCKS, num_tensors=0, placement="HOST"), None, "num_tensors should be bigger"),
    ("LLM_PARAM_INVALID", replace(BLOCKS, shape=(0, 1), placement="HOST"), None, "config memory pool firstly"),
    ("LLM_PARAM_INVALID", replace(BLOCKS, shape=(0, 1)), None, "positive"),
    ("LLM_PARAM_INVALID", replace(BLOCKS, num_tensors=17), blocks_key(5), "already bound"),
    ("LLM_OUT_OF_MEMORY", replace(BLOCKS, num_tensors=17), None, "no room"),
]


@pytest.mark.parametrize(("error", "desc", "given", "text"), BAD_ALLOCATIONS)
def test_bad_allocations_change_nothing(node: Node, error: str, desc: Any, given: Any, text: str) -> None:
    node.allocate_blocks_cache(BLOCKS, blocks_key(5))
    refused(error, lambda: node.allocate_blocks_cache(desc, given), node.cluster, text)


def test_blocks_are_those_of_the_first_dimension_whatever_the_batch_dimension(node: Node) -> None:
    cache = node.allocate_blocks_cache(CacheDesc(1, (4, 3), "DT_INT8", batch_dim_index=1))
    node.write(cache, 0, bytes(range(12)))
    node.copy_blocks(cache, {0: [3]})
    assert node.contents(cache) == [bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2])]


def test_the_kind_must_fit_the_call_that_deallocates(node: Node) -> None:
    blocks, slots = node.allocate_blocks_cache(BLOCKS), node.allocate_cache(DESC)
    refused("LLM_PARAM_INVALID", lambda: node.deallocate_cache(blocks), node.cluster, "cache can not be blocks cache")
    refused(
        "LLM_PARAM_INVALID", lambda: node.deallocate_blocks_cache(slots), node.cluster, "cache should be blocks cache"
    )
    refused("AttributeError", lambda: node.deallocate_blocks_cache(None), node.cluster)
    refused("TypeError", lambda: node.deallocate_blocks_cache(blocks_key()), node.cluster)


def test_a_blocks_key_is_not_removed(node: Node) -> None:
    node.allocate_blocks_cache(BLOCKS, blocks_key())
    refused("TypeError", lambda: node.remove_cache_key(blocks_key()), node.cluster)


def test_finalize_drops_blocks_caches(node: Node) -> None:
    node.allocate_blocks_cache(BLOCKS, blocks_key())
    node.finalize()
    refused("LLM_ENGINE_FINALIZED", lambda: node.allocate_blocks_cache(BLOCKS), node.cluster)
    node.init(options())
    assert node.allocate_blocks_cache(BLOCKS, blocks_key()).cache_id == 1


# -- pulls -----------------------------------------------------------------------------------------------------------


def test_blocks_go_where_they_are_listed() -> None:
    owner, source, peer, target = two_blocks_caches()
    kept = block(peer, target, 1)
    peer.pull_blocks(blocks_key(), target, [3, 0, 1], (0, 2, 3))
    for tensor in (0, 1):
        pulled = [block(peer, target, index, tensor) for index in (0, 2, 3)]
        assert pulled == [block(owner, source, index, tensor) for index in (3, 0, 1)]
    assert block(peer, target, 1) == kept
    assert len(owner.key_index) == 1  # never released


def test_the_last_of_duplicate_blocks_wins() -> None:
    owner, source, peer, target = two_blocks_caches()
    peer.pull_blocks(blocks_key(), target, [0, 3], [1, 1])
    assert block(peer, target, 1) == block(owner, source, 3)


def test_layers_of_blocks() -> None:
    owner, source, peer, target = two_blocks_caches()
    kept = peer.contents(target)[0]
    peer.pull_blocks(
        blocks_key(), target, [0], [0], src_layer_range=range(1), dst_layer_range=range(1, 2), tensor_num_per_layer=1
    )
    assert block(peer, target, 0, 1) == block(owner, source, 0, 0)
    assert peer.contents(target)[0] == kept


@pytest.mark.parametrize("by_index", [False, True])
def test_a_slot_is_cut_into_blocks(by_index: bool) -> None:
    owner, _, peer, target = two_blocks_caches()
    source = owner.allocate_cache(DESC, [key(1), key(2)])
    fill(owner, source, 50)
    owner.deallocate_cache(source)
    content = slot(owner, source, 1)
    peer.pull_blocks(by_id(source, 1) if by_index else key(2), target, None, [3, 1])
    assert block(peer, target, 3) + block(peer, target, 1) == content
    assert owner.lookup(key(2)) is None  # pulled: released
    assert owner.lookup(key(1)) is not None


def test_fewer_blocks_than_the_slot_needs_count_as_a_pull() -> None:
    owner, _, peer, target = two_blocks_caches()
    source = owner.allocate_cache(DESC, [key(1)])
    fill(owner, source, 50)
    peer.pull_blocks(key(1), target, dst_blocks=[2])
    assert block(peer, target, 2) == slot(owner, source, 0)[:BLOCK_BYTES]
    assert owner.lookup(key(1)) is None


def test_api_d29_the_last_block_of_a_slot_may_be_short() -> None:
    owner, puller = two_nodes()
    source = owner.allocate_cache(CacheDesc(1, (2, 10), "DT_INT8"), [key(1), prefix(2)])
    fill(owner, source, 1)
    target = puller.allocate_blocks_cache(CacheDesc(1, (4, 4), "DT_INT8"))
    puller.write(target, 0, bytes([200] * 16))
    puller.pull_blocks(prefix(2), target, dst_blocks=[0, 3, 1])
    assert puller.contents(target) == [bytes([11, 12, 13, 14, 19, 20, 200, 200, 200, 200, 200, 200, 15, 16, 17, 18])]
    assert owner.lookup(prefix(2)) is not None
    too_many = lambda: puller.pull_blocks(prefix(2), target, dst_blocks=[0, 1, 2, 3])  # noqa: E731
    refused("LLM_PARAM_INVALID", too_many, owner.cluster, "a slot fills only 3")
    large = puller.allocate_blocks_cache(CacheDesc(1, (2, 16), "DT_INT8"))
    puller.pull_blocks(prefix(2), large, dst_blocks=[1])
    assert block(puller, large, 1) == bytes([*range(11, 21), 0, 0, 0, 0, 0, 0])


BAD_PULLS: list[tuple[str, dict[str, Any], str]] = [
    ("AttributeError", {"src_cache_key": None, "dst_cache": None}, ""),
    ("TypeError", {"src_cache_key": 1}, "src_cache_key only support"),
    ("TypeError", {"layers": range(1), "dst_cache": None}, "layers"),
    ("AttributeError", {"dst_cache": None}, ""),
    ("TypeError", {"dst_cache": blocks_key(), "src_blocks": 3}, "dst_cache only support"),
    ("TypeError", {"src_blocks": {0}}, "src_blocks only support"),
    ("TypeError", {"src_blocks": [0.0]}, "src_blocks inner type only support"),
    ("TypeError", {"dst_blocks": None}, "dst_blocks only support"),
    ("ValueError", {"dst_blocks": [-1]}, "dst_blocks"),
    ("ValueError", {"src_blocks": [2**64]}, "src_blocks"),
    ("LLM_PARAM_INVALID", {"dst_blocks": []}, "dst_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"dst_blocks": [], "tensor_num_per_layer": 0}, "dst_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"src_blocks": [], "tensor_num_per_layer": 0}, "tensor_num_per_layer"),
    ("LLM_PARAM_INVALID", {"src_blocks": []}, "src_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"src_blocks": None}, "src_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"src_cache_key": PLACEHOLDER}, "src_blocks should be empty"),
    ("LLM_PARAM_INVALID", {"src_cache_key": PLACEHOLDER, "src_blocks": []}, "one of req id and prefix id"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(0)}, "empty"),
    ("LLM_PARAM_INVALID", {"src_cache_key": blocks_key(cluster=2)}, "own cluster"),
    ("LLM_KV_CACHE_NOT_EXIST", {"dst_cache": Cache(9, BLOCKS, None, True)}, ""),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(1, 2)}, "beyond"),
    ("LLM_NOT_YET_LINK", {"src_cache_key": blocks_key(cluster=3), "dst_blocks": [9]}, ""),
    ("LLM_PARAM_INVALID", {"src_cache_key": blocks_key(7), "dst_blocks": [4]}, "dst_blocks"),
    ("LLM_PARAM_INVALID", {"src_cache_key": blocks_key(7), "dst_blocks": [0, 1]}, "1 src_blocks, but 2 dst_blocks"),
    ("LLM_KV_CACHE_NOT_EXIST", {"src_cache_key": blocks_key(7), "src_blocks": [4]}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"src_cache_key": key(7), "src_blocks": []}, ""),
    ("LLM_PARAM_INVALID", {"src_blocks": [4]}, "src_blocks"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1, 2)}, "beyond"),
    ("LLM_PARAM_INVALID", {"src_cache_key": CacheKeyByIdAndIndex(1, 1), "src_blocks": []}, "is a blocks cache"),
    ("LLM_KV_CACHE_NOT_EXIST", {"src_cache_key": CacheKeyByIdAndIndex(1, 1, 1), "src_blocks": []}, "beyond the batch"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), BAD_PULLS)
def test_bad_pulls_change_nothing(error: str, arguments: dict[str, Any], text: str) -> None:
    owner, _, peer, target = two_blocks_caches()
    given = {"src_cache_key": blocks_key(), "dst_cache": target, "src_blocks": [0], "dst_blocks": [1], **arguments}
    refused(error, lambda: peer.pull_blocks(**given), owner.cluster, text)


def test_the_kinds_must_fit_the_pull() -> None:
    owner, source, peer, target = two_blocks_caches()
    slots = peer.allocate_cache(DESC)
    cluster = owner.cluster
    refused("LLM_PARAM_INVALID", lambda: peer.pull_cache(key(1), target), cluster, "cache can not be blocks cache")
    refused("LLM_PARAM_INVALID", lambda: peer.pull_blocks(blocks_key(), slots), cluster, "dst_cache should be blocks")
    refused("LLM_PARAM_INVALID", lambda: peer.pull_cache(by_id(source), slots), cluster, "is a blocks cache")
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: peer.pull_cache(by_id(source, 1), slots), cluster)
    refused("TypeError", lambda: peer.pull_cache(blocks_key(), slots), cluster, "cache_key only support")


def test_api_d30_blocks_of_other_sizes_are_refused() -> None:
    owner, _, peer, _ = two_blocks_caches()
    wide = peer.allocate_blocks_cache(CacheDesc(2, (4, 8), "DT_FLOAT16"))
    refused("LLM_PARAM_INVALID", lambda: peer.pull_blocks(blocks_key(), wide, [0], [0]), owner.cluster, "remote block")
    flat = peer.allocate_blocks_cache(CacheDesc(2, (9, 8), "DT_INT8"))
    peer.pull_blocks(blocks_key(), flat, [3], [8])  # as many bytes in a block


def test_remote_mode_pulls_blocks_by_any_key() -> None:
    owner, _, peer, target = two_blocks_caches(EnableRemoteCacheAccessible="1")
    owner.allocate_cache(DESC, [key(1)])
    peer.pull_blocks(key(1), target, dst_blocks=[0])
    peer.pull_blocks(blocks_key(), target, [0], [0])
    assert owner.lookup(key(1)) is None


# -- pushes ----------------------------------------------------------------------------------------------------------


def test_pushed_blocks_go_where_they_are_listed() -> None:
    owner, target, peer, source = two_blocks_caches(EnableRemoteCacheAccessible="1")
    kept = block(owner, target, 2)
    peer.push_blocks(blocks_key(), source, [0, 1, 2], [3, 1, 0])
    for tensor in (0, 1):
        pushed = [block(owner, target, index, tensor) for index in (3, 1, 0)]
        assert pushed == [block(peer, source, index, tensor) for index in (0, 1, 2)]
    assert block(owner, target, 2) == kept
    assert len(owner.key_index) == 1


def test_pushed_layers_of_blocks() -> None:
    owner, target, peer, source = two_blocks_caches(EnableRemoteCacheAccessible="1")
    kept = owner.contents(target)[0]
    peer.push_blocks(blocks_key(), source, [0], [0], range(1), range(1, 2), tensor_num_per_layer=1)
    assert block(owner, target, 0, 1) == block(peer, source, 0, 0)
    assert owner.contents(target)[0] == kept


BAD_PUSHES: list[tuple[str, dict[str, Any], str]] = [
    ("AttributeError", {"dst_cache_key": None, "src_cache": None}, ""),
    ("TypeError", {"dst_cache_key": CacheKeyByIdAndIndex(1, 1)}, "dst_cache_key only support"),
    ("AttributeError", {"src_cache": None}, ""),
    ("TypeError", {"src_cache": 1}, "src_cache only support"),
    ("TypeError", {"src_blocks": None}, "src_blocks only support"),
    ("ValueError", {"dst_blocks": [-1]}, "dst_blocks"),
    ("LLM_PARAM_INVALID", {"src_cache": Cache(9, DESC, None), "dst_blocks": []}, "cache should be blocks cache"),
    ("LLM_PARAM_INVALID", {"src_blocks": [], "dst_blocks": []}, "dst_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"src_blocks": [], "tensor_num_per_layer": 0}, "src_blocks can not be empty"),
    ("LLM_PARAM_INVALID", {"src_blocks": [0, 1], "tensor_num_per_layer": 0}, "2 src_blocks, but 1 dst_blocks"),
    ("LLM_PARAM_INVALID", {"tensor_num_per_layer": 0}, "tensor_num_per_layer"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(0, 2, 2)}, ".step == 1 failed"),
    (
        "LLM_PARAM_INVALID",
        {"src_layer_range": range(1), "dst_layer_range": range(2)},
        "src_layer_range size should be equal",
    ),
    ("LLM_KV_CACHE_NOT_EXIST", {"src_cache": Cache(9, BLOCKS, None, True)}, ""),
    ("LLM_NOT_YET_LINK", {"dst_cache_key": blocks_key(cluster=3), "src_blocks": [9]}, ""),
    ("LLM_NOT_YET_LINK", {"dst_cache_key": blocks_key(cluster=2)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"dst_cache_key": blocks_key(7), "src_blocks": [4]}, ""),
    ("LLM_PARAM_INVALID", {"src_blocks": [4]}, "src_blocks"),
    ("LLM_PARAM_INVALID", {"dst_blocks": [4]}, "dst_blocks"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1, 2)}, "beyond"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1), "tensor_num_per_layer": 1}, "differ in tensors"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), BAD_PUSHES)
def test_bad_pushes_change_nothing(error: str, arguments: dict[str, Any], text: str) -> None:
    owner, _, peer, source = two_blocks_caches(EnableRemoteCacheAccessible="1")
    given = {"dst_cache_key": blocks_key(), "src_cache": source, "src_blocks": [0], "dst_blocks": [1], **arguments}
    refused(error, lambda: peer.push_blocks(**given), owner.cluster, text)


def test_api_d40_a_push_of_blocks_of_other_sizes_is_refused() -> None:
    owner, _, peer, _ = two_blocks_caches(EnableRemoteCacheAccessible="1")
    wide = peer.allocate_blocks_cache(CacheDesc(2, (4, 8), "DT_FLOAT16"))
    refused("LLM_PARAM_INVALID", lambda: peer.push_blocks(blocks_key(), wide, [0], [0]), owner.cluster, "remote block")


def test_two_sided_mode_refuses_pushes_of_blocks_before_anything_else() -> None:
    owner, _, peer, _ = two_blocks_caches()
    refused("LLM_PARAM_INVALID", lambda: peer.push_blocks(None, None), owner.cluster, "enable_remote_cache_accessible")


def test_a_blocks_cache_is_not_pushed_to_as_slots() -> None:
    owner, target, peer, blocks = two_blocks_caches(EnableRemoteCacheAccessible="1")
    slots = peer.allocate_cache(DESC)
    cluster = owner.cluster
    refused("LLM_PARAM_INVALID", lambda: peer.push_cache(by_id(target), slots), cluster, "is a blocks cache")
    refused("LLM_PARAM_INVALID", lambda: peer.push_cache(by_id(target), blocks), cluster, "can not be blocks cache")


def test_the_steps_of_a_push_of_blocks() -> None:
    owner, target, peer, source = two_blocks_caches(EnableRemoteCacheAccessible="1")
    transfer = peer.begin_push_blocks(blocks_key(), source, [0], [0])
    owner.deallocate_blocks_cache(target)
    peer.deallocate_blocks_cache(source)
    assert (owner.live_caches, peer.live_caches) == (1, 1)
    with pytest.raises(ImpossibleEvent):
        peer.finish(transfer)
    peer.abandon(transfer)
    assert (owner.live_caches, peer.live_caches) == (0, 0)
    owner.cluster.check()


# -- copies ----------------------------------------------------------------------------------------------------------


def test_copy_blocks_copies_within_a_cache(node: Node) -> None:
    cache = node.allocate_blocks_cache(BLOCKS)
    fill(node, cache, 5)
    first, second = block(node, cache, 0), block(node, cache, 1)
    node.copy_blocks(cache, {0: [3, 2], 1: [0]})
    assert [block(node, cache, index) for index in range(4)] == [second, second, first, first]
    before = node.cluster.observable()
    node.copy_blocks(cache, {})
    assert node.cluster.observable() == before


@pytest.mark.parametrize(
    ("error", "given", "text"),
    [
        ("AttributeError", None, ""),
        ("TypeError", [0], "copy_block_info only support"),
        ("TypeError", {"0": [1]}, "dict key only support"),
        ("TypeError", {0: 1}, "dict value only support"),
        ("TypeError", {0: (1,)}, "dict value only support"),
        ("TypeError", {0: ["1"]}, ""),
        ("ValueError", {0: [-1]}, ""),
        ("ValueError", {-1: [0]}, ""),
        ("LLM_PARAM_INVALID", {0: [1], 1: [4]}, "should be in [0, 4)"),
        ("LLM_PARAM_INVALID", {4: [0]}, "should be in [0, 4)"),
        ("LLM_PARAM_INVALID", {4: []}, "should be in [0, 4)"),
    ],
)
def test_bad_copies_of_blocks_change_nothing(node: Node, error: str, given: Any, text: str) -> None:
    cache = node.allocate_blocks_cache(BLOCKS)
    fill(node, cache, 5)
    refused(error, lambda: node.copy_blocks(cache, given), node.cluster, text)


def test_copies_need_caches_of_their_kind(node: Node) -> None:
    blocks, slots = node.allocate_blocks_cache(BLOCKS), node.allocate_cache(DESC)
    cluster = node.cluster
    refused("AttributeError", lambda: node.copy_blocks(None, {}), cluster)
    refused("LLM_PARAM_INVALID", lambda: node.copy_blocks(slots, {}), cluster, "cache should be blocks cache")
    refused("LLM_PARAM_INVALID", lambda: node.copy_cache(blocks, slots, size=0), cluster, "can not be blocks cache")
    refused("LLM_PARAM_INVALID", lambda: node.copy_cache(slots, blocks, req_id=""), cluster, "can not be blocks cache")
    node.deallocate_blocks_cache(blocks)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.copy_blocks(blocks, {9: [9]}), cluster)


def host_node() -> tuple[Node, Cache]:
    """A node with a blocks cache on DEVICE, and with a pool for HOST."""
    node = with_host_pool(Cluster().start("only", 1))
    cache = node.allocate_blocks_cache(BLOCKS)
    fill(node, cache, 5)
    return node, cache


HOST_BLOCKS = replace(BLOCKS, placement="HOST", shape=(8, 4))


def test_swap_blocks_copies_between_the_placements() -> None:
    node, device = host_node()
    host = node.allocate_blocks_cache(HOST_BLOCKS)
    node.swap_blocks(device, host, {0: 7, 3: 1})
    assert (block(node, host, 7), block(node, host, 1)) == (block(node, device, 0), block(node, device, 3))
    node.swap_blocks(host, device, {7: 1})
    assert block(node, device, 1) == block(node, device, 0)


def test_swap_blocks_with_memory_of_the_program() -> None:
    node, device = host_node()
    addresses = own_tensors(node, HOST_BLOCKS)
    host = node.create_cpu_cache(HOST_BLOCKS, addresses)
    assert (host.cache_id, host.is_blocks_cache, node.tensor_addrs(host)) == (-1, True, addresses)
    node.swap_blocks(device, host, {0: 2})
    assert [node.read(address + 2 * BLOCK_BYTES, BLOCK_BYTES) for address in addresses] == [
        block(node, device, 0, tensor) for tensor in (0, 1)
    ]
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.copy_blocks(host, {0: [1]}), node.cluster)
    refused("LLM_PARAM_INVALID", lambda: node.open_view(host), node.cluster)
    refused("LLM_PARAM_INVALID", lambda: node.deallocate_cache(host), node.cluster, "can not be blocks cache")
    node.free_memory(addresses[1])
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, host, {0: 0}), node.cluster, "not mapped")
    node.deallocate_blocks_cache(host)
    assert node.tensor_addrs(host) == []
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, host, {0: 0}), node.cluster, "no addresses")


@pytest.mark.parametrize(
    ("error", "desc", "addrs", "text"),
    [
        ("AttributeError", None, None, ""),
        ("TypeError", 1, None, "cache_desc only support"),
        ("AttributeError", HOST_BLOCKS, None, ""),
        ("TypeError", HOST_BLOCKS, (4096, 8192), "addrs only support"),
        ("TypeError", HOST_BLOCKS, ["4096", 8192], "addrs inner type only support"),
        ("LLM_PARAM_INVALID", BLOCKS, [], "cache_desc placement must be HOST"),
        ("LLM_PARAM_INVALID", HOST_BLOCKS, [4096], "not equal addrs num"),
    ],
)
def test_bad_cpu_caches(node: Node, error: str, desc: Any, addrs: Any, text: str) -> None:
    refused(error, lambda: node.create_cpu_cache(desc, addrs), node.cluster, text)


@pytest.mark.parametrize(
    ("error", "given", "text"),
    [
        ("AttributeError", None, ""),
        ("TypeError", [(0, 0)], "src_to_dst only support"),
        ("TypeError", {0.5: 0}, "dict key only support"),
        ("TypeError", {0: [0]}, "dict value only support"),
        ("LLM_PARAM_INVALID", {4: 0}, "must be in [0, 4)"),
        ("LLM_PARAM_INVALID", {-1: 0}, "must be in [0, 4)"),
        ("LLM_PARAM_INVALID", {0: 8}, "must be in [0, 8)"),
    ],
)
def test_bad_swaps_change_nothing(error: str, given: Any, text: str) -> None:
    node, device = host_node()
    host = node.allocate_blocks_cache(HOST_BLOCKS)
    refused(error, lambda: node.swap_blocks(device, host, given), node.cluster, text)


def test_swap_blocks_needs_two_blocks_caches_alike_of_opposite_placement() -> None:
    node, device = host_node()
    cluster = node.cluster
    refused("AttributeError", lambda: node.swap_blocks(None, device, {}), cluster)
    refused("TypeError", lambda: node.swap_blocks(device, 1, {}), cluster, "dst_cache only support")
    slots = node.allocate_cache(DESC)
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, slots, None), cluster, "should be blocks cache")
    wide = node.create_cpu_cache(replace(HOST_BLOCKS, shape=(8, 8)), [1, 2])
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, wide, {9: 9}), cluster, "must be equal")
    fewer = node.create_cpu_cache(replace(HOST_BLOCKS, num_tensors=1), [1])
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, fewer, {9: 9}), cluster, "must be equal")
    empty = node.create_cpu_cache(replace(HOST_BLOCKS, shape=(0, 4)), [1, 2])
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, empty, {}), cluster, "positive")
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, device, {0: 1}), cluster, "is not support")
    unmapped = node.create_cpu_cache(HOST_BLOCKS, [4096, 8192])
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, unmapped, {0: 0}), cluster, "not mapped")
    host = node.allocate_blocks_cache(HOST_BLOCKS)
    node.deallocate_blocks_cache(device)
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(device, host, {0: 0}), cluster, "no addresses")


def test_tensors_lie_one_behind_the_other_in_their_pool() -> None:
    node, device = host_node()
    host = node.allocate_blocks_cache(HOST_BLOCKS)
    assert (node.tensor_addrs(device), node.tensor_places(device)) == ([1 << 40, (1 << 40) + PAGE], [0, PAGE])
    assert node.tensor_addrs(host)[0] == 1 << 44


def test_the_key_s_model_is_what_counts(node: Node) -> None:
    assert BlocksCacheKey(3, 4).identity == BlocksCacheKey(5, 4).identity != BlocksCacheKey(3, 5).identity
    node.check_cache_key(CacheKey(1, 0))
    refused("TypeError", lambda: node.check_cache_key(blocks_key()), node.cluster)
