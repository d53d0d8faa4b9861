"""Registered caches in the reference model: the memory is the program's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llmdd.spec.reference import Cluster, Node
from llmdd.spec.values import CacheDesc, MemInfo

from .nodes import (
    DESC,
    PLACEHOLDER,
    SLOT_BYTES,
    blocks_key,
    by_id,
    bytes_at,
    fill,
    key,
    options,
    own_tensors,
    prefix,
    rank_table,
    refused,
    slot,
    two_nodes,
    with_host_pool,
)

BLOCKS = CacheDesc(2, (4, 4), "DT_FLOAT16")
REMOTE_MODE = {"EnableRemoteCacheAccessible": "1"}


# -- memory of the program -------------------------------------------------------------------------------------------


def test_memory_of_the_program_has_gaps_between(node: Node) -> None:
    first, second = node.own_memory(4096), node.own_memory(1)
    assert first % 4096 == second % 4096 == 0
    assert second >= first + 4096 + 4096
    node.write_memory(first + 4090, b"behind")
    assert node.read(first + 4088, 8) == b"\0\0behind"
    refused("LLM_PARAM_INVALID", lambda: node.read(first + 4090, 7), node.cluster, "not mapped")
    refused("LLM_PARAM_INVALID", lambda: node.read(first - 1, 2), node.cluster, "not mapped")
    node.free_memory(first)
    refused("LLM_PARAM_INVALID", lambda: node.read(first, 1), node.cluster, "not mapped")
    assert node.own_memory(1) > second


# -- registering -----------------------------------------------------------------------------------------------------


def test_a_registered_cache_is_the_program_s_memory(node: Node) -> None:
    addresses = own_tensors(node, DESC)
    cache = node.register_cache(DESC, addresses, [key(1), PLACEHOLDER])
    assert (cache.cache_id, cache.is_blocks_cache, node.tensor_addrs(cache)) == (1, False, addresses)
    assert node.lookup(key(1)) == by_id(cache, 0)
    node.write(cache, 1, b"through the cache", 3)
    assert node.read(addresses[1] + 3, 17) == b"through the cache"
    assert node.pool_usage().free_bytes == node.pool_usage().total_bytes
    refused("LLM_PARAM_INVALID", lambda: node.open_view(cache), node.cluster)
    assert node.tensor_places(cache) == []


def test_api_3_1_one_counter_numbers_all_caches(node: Node) -> None:
    registered = node.register_blocks_cache(BLOCKS, own_tensors(node, BLOCKS), blocks_key())
    assert (registered.cache_id, registered.is_blocks_cache) == (1, True)
    assert [node.allocate_cache(DESC).cache_id, node.allocate_blocks_cache(BLOCKS).cache_id] == [2, 3]


def test_tensors_may_lie_anywhere_in_mapped_memory_and_overlap(node: Node) -> None:
    start = node.own_memory(2 * DESC.size)
    node.register_cache(DESC, [start + 1, start + DESC.size])
    node.register_cache(DESC, [start, start])


def test_api_d9_remove_cache_key_unbinds_a_registered_cache(node: Node) -> None:
    cache = node.register_cache(DESC, own_tensors(node, DESC), [key(1), prefix(1)])
    node.remove_cache_key(key(1))
    assert node.lookup(key(1)) is None
    assert node.lookup(prefix(1)) == by_id(cache, 1)
    node.remove_cache_key(prefix(1))
    assert node.live_caches == 1


def bad_registrations(keys: Any, key_errors: list[tuple[str, Any, str]]) -> list[tuple[str, dict[str, Any], str]]:
    """What is refused alike of both kinds, in the order of the checks."""
    return [
        ("AttributeError", {"cache_desc": None, "addrs": None}, ""),
        ("TypeError", {"cache_desc": "a cache", "addrs": None}, "cache_desc only support"),
        ("AttributeError", {"addrs": None, keys: 1}, ""),
        ("TypeError", {"addrs": (4096, 8192), keys: 1}, "addrs only support"),
        ("TypeError", {"addrs": [None, 1]}, "addrs inner type only support"),
        *((error, {keys: given, "remote_accessible": 1}, text) for error, given, text in key_errors),
        ("TypeError", {"remote_accessible": 1, "addrs": []}, "remote_accessible only support"),
        ("LLM_PARAM_INVALID", {"addrs": []}, "addrs can not be empty"),
        ("LLM_PARAM_INVALID", {"addrs": [0]}, "addrs length should be equal to num_tensors"),
        ("LLM_PARAM_INVALID", {"addrs": [2**64, 0]}, "addr can not be zero"),
        ("ValueError", {"addrs": [2**64, 1], "cache_desc": replace(BLOCKS, shape=(2, 0))}, "uint64"),
        ("ValueError", {"addrs": [-1, 1]}, "uint64"),
        ("LLM_PARAM_INVALID", {"cache_desc": replace(BLOCKS, shape=(2, 0))}, "positive"),
        ("LLM_PARAM_INVALID", {"cache_desc": replace(BLOCKS, shape=(1,) * 33)}, "dimensions"),
        ("LLM_PARAM_INVALID", {"addrs": [1, 2]}, "does not have"),
    ]


@pytest.mark.parametrize(
    ("error", "arguments", "text"),
    [
        *bad_registrations("cache_keys", [("TypeError", None, "cache_keys"), ("TypeError", [1], "cache_keys inner")]),
        ("LLM_PARAM_INVALID", {"cache_desc": replace(DESC, shape=(3, 2), batch_dim_index=1)}, "contiguous"),
        ("LLM_PARAM_INVALID", {"cache_keys": [PLACEHOLDER] * 5, "addrs": [1, 2]}, "batch of 4"),
        ("LLM_PARAM_INVALID", {"cache_keys": [key(7)], "addrs": [1, 2]}, "already bound"),
    ],
)
def test_bad_registrations_change_nothing(node: Node, error: str, arguments: dict[str, Any], text: str) -> None:
    node.allocate_cache(DESC, [key(7)])
    given = {"cache_desc": BLOCKS, "addrs": own_tensors(node, BLOCKS), **arguments}
    refused(error, lambda: node.register_cache(**given), node.cluster, text)


@pytest.mark.parametrize(
    ("error", "arguments", "text"),
    [
        *bad_registrations("blocks_cache_key", [("TypeError", key(1), "blocks_cache_key")]),
        ("LLM_PARAM_INVALID", {"blocks_cache_key": blocks_key(7), "addrs": [1, 2]}, "already bound"),
    ],
)
def test_bad_registrations_of_blocks_change_nothing(
    node: Node, error: str, arguments: dict[str, Any], text: str
) -> None:
    node.allocate_blocks_cache(BLOCKS, blocks_key(7))
    given = {"cache_desc": BLOCKS, "addrs": own_tensors(node, BLOCKS), **arguments}
    refused(error, lambda: node.register_blocks_cache(**given), node.cluster, text)


def test_memory_must_be_mapped_to_its_end(node: Node) -> None:
    start = node.own_memory(DESC.size)
    one = replace(DESC, num_tensors=1)
    refused("LLM_PARAM_INVALID", lambda: node.register_cache(one, [start + 1]), node.cluster, "does not have")
    node.register_cache(one, [start])


def test_api_d51_what_is_registered_after_link_is_not_remote_accessible(node: Node) -> None:
    assert node.link("pool", {1: 0, 2: 1}, rank_table(2)) == 1
    addresses = own_tensors(node, DESC)
    for call in (node.register_cache, node.register_blocks_cache):
        late = lambda call=call: call(DESC, [], remote_accessible=True)  # noqa: E731
        refused("LLM_PARAM_INVALID", late, node.cluster, "register remote accessible cache after link")
    accessible = [node.tenants[node.register_cache(DESC, addresses, (), given).cache_id] for given in (None, False)]
    assert [tenant.remote_accessible for tenant in accessible] == [False, False]
    node.unlink(1)
    assert node.tenants[node.register_cache(DESC, addresses).cache_id].remote_accessible


@pytest.mark.parametrize(
    ("placement", "given", "accessible"),
    [("DEVICE", None, True), ("HOST", None, False), ("DEVICE", False, False), ("HOST", True, True)],
)
def test_api_3_9_what_is_remote_accessible(node: Node, placement: str, given: bool | None, accessible: bool) -> None:
    desc = replace(DESC, placement=placement)  # without a pool for it
    cache = node.register_cache(desc, own_tensors(node, desc), (), given)
    assert node.tenants[cache.cache_id].remote_accessible is accessible


# -- deallocating and unregistering ----------------------------------------------------------------------------------


def test_api_3_3_deallocating_leaves_the_registration(node: Node) -> None:
    slots = node.register_cache(DESC, own_tensors(node, DESC), [key(1)])
    blocks = node.register_blocks_cache(BLOCKS, own_tensors(node, BLOCKS), blocks_key())
    node.deallocate_cache(slots)
    node.deallocate_blocks_cache(blocks)
    assert (node.live_caches, len(node.key_index)) == (2, 2)
    assert (node.tensor_addrs(slots), node.tensor_addrs(blocks)) == ([], [])
    node.copy_blocks(blocks, {0: [1]})
    node.copy_cache(slots, slots, 0, 1)
    host = node.create_cpu_cache(replace(BLOCKS, placement="HOST"), own_tensors(node, BLOCKS))
    refused("LLM_PARAM_INVALID", lambda: node.swap_blocks(blocks, host, {0: 0}), node.cluster, "no addresses")


def test_api_3_11_unregistering_drops_id_and_keys_at_once(node: Node) -> None:
    addresses = own_tensors(node, DESC)
    cache = node.register_cache(DESC, addresses, [key(1), prefix(1)])
    blocks = node.register_blocks_cache(BLOCKS, own_tensors(node, BLOCKS), blocks_key())
    node.write_memory(addresses[0], b"kept")
    node.unregister_cache(cache.cache_id)
    node.unregister_cache(blocks.cache_id)
    assert (node.live_caches, node.key_index) == (0, {})
    assert node.read(addresses[0], 4) == b"kept"
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.copy_cache(cache, cache), node.cluster)
    before = node.cluster.observable()
    for unknown in (cache.cache_id, 99, 0, -1):
        node.unregister_cache(unknown)
    assert node.cluster.observable() == before


@pytest.mark.parametrize(
    ("error", "given"), [("TypeError", None), ("TypeError", "1"), ("ValueError", 2**63), ("LLM_PARAM_INVALID", 1)]
)
def test_bad_unregistrations_change_nothing(node: Node, error: str, given: Any) -> None:
    node.allocate_cache(DESC, [key(1)])  # api D12
    refused(error, lambda: node.unregister_cache(given), node.cluster)


def test_unregistering_waits_for_transfers_and_meets_the_deadline() -> None:
    owner, puller = two_nodes()
    source, target = owner.register_cache(DESC, own_tensors(owner, DESC), [key(1)]), puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    with pytest.raises(Exception, match="LLM_TIMEOUT"):
        owner.unregister_cache(source.cache_id)
    assert (owner.key_index, owner.live_caches) == ({}, 1)  # the one refused call that has done its work
    owner.cluster.check()
    refused("LLM_TIMEOUT", lambda: owner.unregister_cache(source.cache_id), owner.cluster)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: puller.pull_cache(by_id(source), target), owner.cluster)
    puller.copy(transfer)
    puller.finish(transfer)
    assert owner.live_caches == 0
    owner.unregister_cache(source.cache_id)


def test_finalize_unregisters_and_leaves_the_memory(node: Node) -> None:
    addresses = own_tensors(node, DESC)
    cache = node.register_cache(DESC, addresses, [key(1)])
    node.write(cache, 0, b"kept")
    node.finalize()
    assert node.read(addresses[0], 4) == b"kept"
    for call in (
        lambda: node.register_cache(DESC, addresses),
        lambda: node.register_blocks_cache(DESC, addresses),
        lambda: node.unregister_cache(None),
        lambda: node.deallocate_blocks_cache(None),
        lambda: node.copy_blocks(None, None),
        lambda: node.swap_blocks(None, None, None),
        lambda: node.pull_blocks(None, None),
        lambda: node.push_blocks(None, None),
        lambda: node.remap_registered_memory(None),
        lambda: node.transfer_cache_async(None, None, None),
    ):
        refused("LLM_ENGINE_FINALIZED", call, node.cluster)
    node.init(options())
    node.register_cache(DESC, addresses, [key(1)])


# -- transfers -------------------------------------------------------------------------------------------------------


def test_api_3_4_transfers_keep_the_keys_of_registered_caches() -> None:
    owner, puller = two_nodes()
    addresses = own_tensors(owner, DESC)
    source, target = owner.register_cache(DESC, addresses, [key(1), prefix(2)]), puller.allocate_cache(DESC)
    fill(owner, source, 5)
    for named in (key(1), by_id(source), key(1)):
        puller.pull_cache(named, target)
        assert slot(puller, target, 0) == owner.read(addresses[0], SLOT_BYTES)
    puller.pull_cache(key(1), target, 1, src_layer_range=range(1))
    blocks = puller.allocate_blocks_cache(BLOCKS)
    puller.pull_blocks(key(1), blocks, dst_blocks=[0, 1])
    assert len(owner.key_index) == 2
    owner.cluster.check()


def test_a_registered_cache_is_a_destination() -> None:
    owner, puller = two_nodes()
    source = owner.allocate_cache(DESC, [key(1), key(2)])
    fill(owner, source, 5)
    addresses = own_tensors(puller, DESC)
    target = puller.register_cache(DESC, addresses)
    content = [slot(owner, source, 0, tensor) for tensor in (0, 1)]
    puller.pull_cache(key(1), target, 1)
    assert bytes_at(puller, [address + SLOT_BYTES for address in addresses], SLOT_BYTES) == content
    assert owner.lookup(key(1)) is None  # the source was allocated: its key is consumed


def test_a_push_keeps_the_keys_of_a_registered_cache() -> None:
    owner, pusher = two_nodes(**REMOTE_MODE)
    addresses = own_tensors(owner, DESC)
    target, source = owner.register_cache(DESC, addresses, [key(1)]), pusher.allocate_cache(DESC)
    fill(pusher, source, 9)
    pusher.push_cache(by_id(target), source)
    assert owner.read(addresses[1], SLOT_BYTES) == slot(pusher, source, 0, 1)
    assert owner.lookup(key(1)) is not None


def test_a_pull_by_the_key_of_registered_blocks() -> None:
    owner, puller = two_nodes()
    addresses = own_tensors(owner, BLOCKS)
    owner.register_blocks_cache(BLOCKS, addresses, blocks_key())
    owner.write_memory(addresses[0] + 8, b"block 1.")
    target = puller.register_blocks_cache(BLOCKS, own_tensors(puller, BLOCKS))
    puller.pull_blocks(blocks_key(), target, [1], [0])
    assert puller.contents(target)[0].startswith(b"block 1.")


def test_memory_that_was_taken_away_is_refused_and_the_key_kept() -> None:
    owner, puller = two_nodes()
    here, there = own_tensors(owner, DESC), own_tensors(puller, DESC)
    registered = owner.register_cache(DESC, here, [key(1)])
    allocated = owner.allocate_cache(DESC, [key(2)])
    fill(owner, allocated, 5)
    target = puller.register_cache(DESC, there)
    owner.free_memory(here[1])
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(key(1), target), owner.cluster, "not mapped")
    refused("LLM_PARAM_INVALID", lambda: owner.copy_cache(allocated, registered), owner.cluster, "not mapped")
    puller.free_memory(there[1])
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(key(2), target), owner.cluster, "not mapped")
    assert owner.lookup(key(2)) is not None
    puller.pull_cache(key(2), target, src_layer_range=range(1), dst_layer_range=range(1), tensor_num_per_layer=1)


def test_api_3_6_9_remote_mode_needs_both_sides_accessible() -> None:
    owner, peer = two_nodes(**REMOTE_MODE)
    hidden = owner.register_cache(DESC, own_tensors(owner, DESC), [key(1)], False)
    owner.register_blocks_cache(BLOCKS, own_tensors(owner, BLOCKS), blocks_key(), False)
    shown = owner.register_cache(DESC, own_tensors(owner, DESC))
    owner.register_blocks_cache(BLOCKS, own_tensors(owner, BLOCKS), blocks_key(1))
    own, own_blocks = peer.allocate_cache(DESC), peer.allocate_blocks_cache(BLOCKS)
    own_hidden = peer.register_cache(DESC, own_tensors(peer, DESC), (), False)
    own_hidden_blocks = peer.register_blocks_cache(BLOCKS, own_tensors(peer, BLOCKS), None, False)
    for call in (
        lambda: peer.pull_cache(by_id(hidden), own),
        lambda: peer.pull_cache(by_id(shown), own_hidden),
        lambda: peer.pull_blocks(key(1), own_blocks, dst_blocks=[0]),
        lambda: peer.pull_blocks(blocks_key(), own_blocks, [0], [0]),
        lambda: peer.pull_blocks(blocks_key(1), own_hidden_blocks, [0], [0]),
        lambda: peer.push_cache(by_id(hidden), own),
        lambda: peer.push_cache(by_id(shown), own_hidden),
        lambda: peer.push_blocks(blocks_key(), own_blocks, [0], [0]),
        lambda: peer.push_blocks(blocks_key(1), own_hidden_blocks, [0], [0]),
    ):
        refused("LLM_PARAM_INVALID", call, owner.cluster, "not remote accessible")
    peer.pull_cache(by_id(shown), own)
    peer.push_blocks(blocks_key(1), own_blocks, [0], [0])


def test_two_sided_mode_pulls_what_is_not_remote_accessible() -> None:
    owner, peer = two_nodes()
    owner.register_cache(DESC, own_tensors(owner, DESC), [key(1)], False)
    peer.pull_cache(key(1), peer.register_cache(DESC, own_tensors(peer, DESC), (), False))


# -- remap_registered_memory -----------------------------------------------------------------------------------------


BAD_REMAPS: list[tuple[str, Any, str]] = [
    ("TypeError", None, "mem_infos only support"),
    ("TypeError", (MemInfo("MEM_TYPE_DEVICE", 1, 1),), "mem_infos only support"),
    ("TypeError", [1], "mem_infos inner type only support"),
    ("LLM_PARAM_INVALID", MemInfo("MEM_TYPE_HOST", 0, 1), "only support Memtype.MEM_TYPE_DEVICE"),
    ("LLM_PARAM_INVALID", MemInfo("MEM_TYPE_DEVICE", 0, 0), "addr"),
    ("LLM_PARAM_INVALID", [MemInfo("MEM_TYPE_DEVICE", 1, 0)], "size"),
    ("LLM_PARAM_INVALID", [], "empty"),
]


@pytest.mark.parametrize(("error", "given", "text"), [*BAD_REMAPS, ("LLM_NOT_YET_LINK", BAD_REMAPS[1][1][0], "")])
def test_bad_remaps_change_nothing(node: Node, error: str, given: Any, text: str) -> None:
    refused(error, lambda: node.remap_registered_memory(given), node.cluster, text)


def test_a_remap_has_no_effect() -> None:
    owner, peer = two_nodes()
    before = owner.cluster.observable()
    owner.remap_registered_memory([MemInfo("MEM_TYPE_DEVICE", 1, 1)])
    peer.remap_registered_memory(MemInfo("MEM_TYPE_DEVICE", 1, 1))
    assert owner.cluster.observable() == before


def test_each_node_has_memory_of_its_own() -> None:
    cluster = Cluster()
    first, second = (with_host_pool(cluster.start(name, number)) for number, name in enumerate("ab"))
    here, there = first.own_memory(8), second.own_memory(8)
    first.write_memory(here, b"of the a")
    assert (here, second.read(there, 8)) == (there, bytes(8))
