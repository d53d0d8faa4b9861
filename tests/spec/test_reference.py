"""The reference model says what the contract says, clause by clause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llmdd.spec.machine import ImpossibleEvent
from llmdd.spec.options import PoolSettings
from llmdd.spec.reference import Cluster, Node, Pool, WouldWait
from llmdd.spec.statecharts import Refused
from llmdd.spec.values import INV, CacheDesc, CacheKey, CacheKeyByIdAndIndex, ClusterInfo

from .nodes import (
    DESC,
    OWNER_ADDRESS,
    PAGE,
    PLACEHOLDER,
    SLOT_BYTES,
    TO_OWNER,
    by_id,
    fill,
    key,
    options,
    prefix,
    refused,
    slot,
    two_nodes,
)

# -- allocation and references ---------------------------------------------------------------------------------------


def test_seed_1_memory_is_held_until_the_id_and_every_key_are_dropped(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1), key(2)])
    node.deallocate_cache(cache)
    node.remove_cache_key(key(1))
    assert node.live_caches == 1
    node.remove_cache_key(key(2))
    assert node.live_caches == 0
    assert node.pool_usage().free_bytes == node.pool_usage().total_bytes == 16 * PAGE


def test_seed_1_the_order_of_dropping_does_not_matter(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1)])
    node.remove_cache_key(key(1))
    assert node.live_caches == 1
    node.deallocate_cache(cache)
    assert node.live_caches == 0


def test_api_3_3_deallocating_again_or_unknown_is_no_op(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1)])
    node.deallocate_cache(cache)
    before = node.cluster.observable()
    node.deallocate_cache(cache)
    node.deallocate_cache(replace(cache, cache_id=99))
    node.deallocate_cache(replace(cache, engine=("another", 1, 1)))
    assert node.cluster.observable() == before


def test_api_3_3_a_deallocated_cache_has_no_addresses_though_its_keys_hold_the_memory(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1)])
    assert node.tensor_places(cache) == [0, PAGE]
    node.deallocate_cache(cache)
    assert node.tensor_places(cache) == []
    assert node.contents(node.open_view(cache)) == [bytes(DESC.size)] * 2


def test_api_3_3_whoever_is_asked_to_deallocate_a_cache_its_handle_is_spent(node: Node) -> None:
    other = node.cluster.start("other", 2)
    other.init(options())
    cache = node.allocate_cache(DESC)
    other.deallocate_cache(cache)
    assert node.tensor_places(cache) == []
    assert node.live_caches == 1
    node.deallocate_cache(cache)
    assert node.live_caches == 0


def test_a_view_of_a_former_engine_s_cache_is_refused(node: Node) -> None:
    cache = node.allocate_cache(DESC)
    node.finalize()
    node.init(options())
    node.allocate_cache(DESC)
    refused("LLM_ENGINE_FINALIZED", lambda: node.open_view(cache), node.cluster)
    assert node.tensor_places(cache) == []


def test_the_usage_of_a_pool_that_is_not_configured_is_all_zero(node: Node) -> None:
    assert node.pool_usage("HOST") == (0, 0, 0)


def test_seed_3b_removing_what_is_not_bound_is_no_op(node: Node) -> None:
    node.allocate_cache(DESC, [key(1), PLACEHOLDER])
    node.remove_cache_key(key(1))
    before = node.cluster.observable()
    for absent in (key(1), key(7), prefix(1), PLACEHOLDER, key(1, model=1)):
        node.remove_cache_key(absent)
    assert node.cluster.observable() == before


def test_seed_9_each_key_refers_to_its_slot(node: Node) -> None:
    cache = node.allocate_cache(DESC, (key(1), prefix(1)))
    assert node.lookup(key(1)) == by_id(cache, 0)
    assert node.lookup(prefix(1)) == by_id(cache, 1)
    assert node.lookup(CacheKey(77, 1)) == by_id(cache, 0)  # the cluster id is no part of a key's identity


def test_seed_10_placeholders_hold_nothing(node: Node) -> None:
    cache = node.allocate_cache(DESC, [PLACEHOLDER, CacheKey(1, INV, 5)])
    assert node.lookup(PLACEHOLDER) is None
    node.deallocate_cache(cache)
    assert node.live_caches == 0


def test_seed_10_keys_at_the_end_may_be_left_out(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1)])
    node.deallocate_cache(cache)
    node.remove_cache_key(key(1))
    assert node.live_caches == 0


def test_seed_11_the_last_of_a_duplicate_takes_effect(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1), key(1)])
    assert node.lookup(key(1)) == by_id(cache, 1)
    node.deallocate_cache(cache)
    node.remove_cache_key(key(1))
    assert node.live_caches == 0


def test_api_d5_d6_keys_of_other_models_and_kinds_are_different(node: Node) -> None:
    wide = CacheDesc(1, (4, 8), "DT_INT8")
    cache = node.allocate_cache(wide, [key(5), key(5, model=1), prefix(5), prefix(5, model=1)])
    found = [node.lookup(each) for each in (key(5), key(5, model=1), prefix(5), prefix(5, model=1))]
    assert found == [by_id(cache, index) for index in range(4)]


def test_api_3_1_the_prefix_counts_if_both_ids_are_given(node: Node) -> None:
    node.allocate_cache(DESC, [CacheKey(1, 3, 0, 4)])
    assert node.lookup(key(3)) is None
    assert node.lookup(prefix(4)) is not None


def test_seed_7_a_bound_key_is_refused_even_while_draining(node: Node) -> None:
    node.deallocate_cache(node.allocate_cache(DESC, [key(1)]))
    refused("LLM_PARAM_INVALID", lambda: node.allocate_cache(DESC, [key(2), key(1)]), node.cluster, "already bound")
    node.remove_cache_key(key(1))
    node.allocate_cache(DESC, [key(1)])


def test_api_d21_keys_are_checked_before_memory(node: Node) -> None:
    node.allocate_cache(DESC, [key(1)])
    huge = CacheDesc(17, (2, 8), "DT_INT8")
    refused("LLM_PARAM_INVALID", lambda: node.allocate_cache(huge, [key(1)]), node.cluster)
    refused("LLM_OUT_OF_MEMORY", lambda: node.allocate_cache(huge, [key(2)]), node.cluster)
    assert node.lookup(key(2)) is None


def test_api_3_1_ids_start_at_1_and_start_again_after_init(node: Node) -> None:
    first = node.allocate_cache(DESC)
    node.deallocate_cache(first)
    assert (first.cache_id, node.allocate_cache(DESC).cache_id) == (1, 2)
    node.finalize()
    node.init(options())
    again = node.allocate_cache(DESC)
    assert again.cache_id == 1
    node.deallocate_cache(first)  # of the engine before: unknown to this one
    assert node.live_caches == 1


BAD_ALLOCATIONS: list[tuple[str, Any, Any, str]] = [
    ("AttributeError", None, (), ""),
    ("TypeError", "a cache", (), "cache_desc only support"),
    ("TypeError", DESC, None, "cache_keys only support"),
    ("TypeError", DESC, {key(1)}, "cache_keys only support"),
    ("TypeError", DESC, [key(1), None], "cache_keys inner type only support"),
    ("TypeError", DESC, [CacheKeyByIdAndIndex(1, 1)], "cache_keys inner type only support"),
    ("LLM_PARAM_INVALID", replace(DESC, num_tensors=0), (), "num_tensors should be bigger than zero"),
    ("LLM_PARAM_INVALID", replace(DESC, placement="HOST"), (), "you should config memory pool firstly"),
    ("LLM_PARAM_INVALID", replace(DESC, num_tensors=0, placement="HOST"), (), "num_tensors"),
    ("LLM_PARAM_INVALID", replace(DESC, shape=(2, 0)), (), "positive"),
    ("LLM_PARAM_INVALID", replace(DESC, shape=(2, -1)), (), "positive"),
    ("LLM_PARAM_INVALID", replace(DESC, shape=(1,) * 33), (), "dimensions"),
    ("LLM_PARAM_INVALID", replace(DESC, shape=(2**31, 2**31)), (), "too large"),
    ("LLM_PARAM_INVALID", replace(DESC, shape=(3, 2), batch_dim_index=1), (), "contiguous"),
    ("LLM_PARAM_INVALID", DESC, [key(1), key(2), key(3)], "batch of 2"),
    ("LLM_PARAM_INVALID", DESC, [PLACEHOLDER] * 3, "batch of 2"),
    ("LLM_OUT_OF_MEMORY", replace(DESC, num_tensors=17), (), "no room"),
]


@pytest.mark.parametrize(("error", "desc", "keys", "text"), BAD_ALLOCATIONS)
def test_bad_allocations_change_nothing(node: Node, error: str, desc: Any, keys: Any, text: str) -> None:
    refused(error, lambda: node.allocate_cache(desc, keys), node.cluster, text)


def test_api_d23_batch_dim_index_is_honoured(node: Node) -> None:
    cache = node.allocate_cache(CacheDesc(1, (1, 2, 8), "DT_INT8", batch_dim_index=1), [key(1), key(2)])
    assert node.lookup(key(2)) == by_id(cache, 1)


def test_wrong_types_of_the_other_local_calls(node: Node) -> None:
    cache = node.allocate_cache(DESC)
    for call in (node.deallocate_cache, node.remove_cache_key, node.lookup):
        refused("AttributeError", lambda call=call: call(None), node.cluster)
        refused("TypeError", lambda call=call: call(3), node.cluster)
    refused("TypeError", lambda: node.remove_cache_key(by_id(cache)), node.cluster)


# -- the pool --------------------------------------------------------------------------------------------------------


def test_tensors_of_a_cache_take_one_run_at_the_lowest_address() -> None:
    pool = Pool(PoolSettings(10 * PAGE + 1023, 10))
    assert pool.room_for(2, PAGE + 1) == [range(2), range(2, 4)]
    pool.take([range(1, 2), range(6, 7)], 1)
    assert pool.room_for(1, 0) == [range(1)]
    assert pool.room_for(2, PAGE) == [range(2, 3), range(3, 4)]
    assert pool.room_for(1, 4 * PAGE) == [range(2, 6)]
    assert pool.room_for(1, 5 * PAGE) is None


def test_tensors_are_placed_one_by_one_where_no_run_takes_all() -> None:
    pool = Pool(PoolSettings(8 * PAGE, 10))
    pool.take([range(1, 2), range(5, 6)], 1)  # free: 0, 2-4, 6-7
    assert pool.room_for(2, 2 * PAGE) == [range(2, 4), range(6, 8)]
    assert pool.room_for(4, PAGE) == [range(1), range(2, 3), range(3, 4), range(4, 5)]
    assert pool.room_for(3, 2 * PAGE) is None
    assert pool.usage() == (8 * PAGE, 6 * PAGE, PAGE)


def test_returned_pages_are_reused_and_merge(node: Node) -> None:
    small = [node.allocate_cache(CacheDesc(1, (1, PAGE), "DT_INT8")) for _ in range(16)]
    whole = CacheDesc(1, (1, 16 * PAGE), "DT_INT8")
    refused("LLM_OUT_OF_MEMORY", lambda: node.allocate_cache(whole), node.cluster)
    for cache in small[::2] + small[1::2]:
        node.deallocate_cache(cache)
    node.allocate_cache(whole)
    assert node.pool_usage().free_bytes == 0


def test_pools_of_both_placements_are_apart() -> None:
    node = Cluster().start("only", 1)
    node.init(options(pages=1) | {"llm.HostMemPoolConfig": '{"memory_size": 1024, "page_shift": 10}'})
    one_page = CacheDesc(1, (1, 8), "DT_INT8")
    node.allocate_cache(one_page)
    node.allocate_cache(replace(one_page, placement="HOST"))
    for placement in ("DEVICE", "HOST"):
        full = replace(one_page, placement=placement)
        refused("LLM_OUT_OF_MEMORY", lambda full=full: node.allocate_cache(full), node.cluster)


# -- views and local copies ------------------------------------------------------------------------------------------


def test_a_view_keeps_the_memory(node: Node) -> None:
    cache = node.allocate_cache(DESC)
    view = node.open_view(cache)
    node.deallocate_cache(cache)
    assert node.live_caches == 1
    node.write(view, 0, b"kept")
    assert node.contents(view)[0].startswith(b"kept")
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.open_view(cache), node.cluster)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.copy_cache(cache, cache), node.cluster)
    node.close_view(view)
    assert node.live_caches == 0
    with pytest.raises(ImpossibleEvent):
        node.close_view(view)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.contents(cache), node.cluster)


def test_copy_cache_copies_one_slot(node: Node) -> None:
    source, target = node.allocate_cache(DESC), node.allocate_cache(DESC)
    fill(node, source, 7)
    fill(node, target, 99)
    other = slot(node, target, 0)
    node.copy_cache(target, source, dst_batch_index=1, src_batch_index=0)
    assert [slot(node, target, 1, tensor) for tensor in (0, 1)] == [slot(node, source, 0, tensor) for tensor in (0, 1)]
    assert slot(node, target, 0) == other


def test_copy_cache_copies_size_bytes_at_offset_of_both(node: Node) -> None:
    source, target = node.allocate_cache(DESC), node.allocate_cache(DESC)
    fill(node, source, 7)
    before = slot(node, target, 0)
    node.copy_cache(target, source, 0, 1, 3, 5)
    assert slot(node, target, 0) == before[:3] + slot(node, source, 1)[3:8] + before[8:]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        ("TypeError", {"dst_batch_index": None}),
        ("TypeError", {"dst_batch_index": 0.0}),
        ("ValueError", {"src_batch_index": -1}),
        ("ValueError", {"src_batch_index": 2**32}),
        ("ValueError", {"offset": -1}),
        ("ValueError", {"offset": 2**64}),
        ("ValueError", {"size": 2**63}),
        ("LLM_PARAM_INVALID", {"size": 0}),
        ("LLM_PARAM_INVALID", {"size": -2}),
        ("TypeError", {"req_id": "one"}),
        ("ValueError", {"req_id": -1}),
        ("LLM_PARAM_INVALID", {"dst_batch_index": 2}),
        ("LLM_PARAM_INVALID", {"src_batch_index": 2}),
        ("LLM_PARAM_INVALID", {"offset": SLOT_BYTES}),
        ("LLM_PARAM_INVALID", {"offset": 1, "size": SLOT_BYTES}),
        ("LLM_PARAM_INVALID", {"size": SLOT_BYTES + 1}),
    ],
)
def test_bad_copies_change_nothing(node: Node, error: str, arguments: dict[str, Any]) -> None:
    source, target = node.allocate_cache(DESC), node.allocate_cache(DESC)
    refused(error, lambda: node.copy_cache(target, source, **arguments), node.cluster)


def test_copy_cache_needs_two_caches_alike(node: Node) -> None:
    cache, other = node.allocate_cache(DESC), node.allocate_cache(replace(DESC, num_tensors=1))
    refused("AttributeError", lambda: node.copy_cache(None, cache), node.cluster)
    refused("TypeError", lambda: node.copy_cache(cache, by_id(cache)), node.cluster)
    refused("LLM_PARAM_INVALID", lambda: node.copy_cache(cache, other), node.cluster)
    unknown = replace(cache, cache_id=9)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: node.copy_cache(cache, unknown), node.cluster)


# -- pulls -----------------------------------------------------------------------------------------------------------


def test_seed_3a_a_pull_moves_the_slot_and_consumes_its_key() -> None:
    owner, puller = two_nodes()
    source, target = owner.allocate_cache(DESC, [key(1), key(2)]), puller.allocate_cache(DESC)
    fill(owner, source, 5)
    untouched = slot(puller, target, 0)
    owner.deallocate_cache(source)
    expected = [slot(owner, source, 1, tensor) for tensor in (0, 1)]
    puller.pull_cache(key(2), target, 1)
    assert [slot(puller, target, 1, tensor) for tensor in (0, 1)] == expected
    assert slot(puller, target, 0) == untouched
    assert (owner.lookup(key(2)), owner.live_caches) == (None, 1)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: puller.pull_cache(key(2), target), owner.cluster)
    puller.pull_cache(by_id(source, 1), target)  # unkeyed now, but there while the cache lives
    puller.pull_cache(by_id(source, 0), target)  # of a keyed slot: consumes the key, the last reference
    assert owner.live_caches == 0
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: puller.pull_cache(by_id(source, 0), target), owner.cluster)


def test_api_d18_a_prefix_key_is_kept() -> None:
    owner, puller = two_nodes()
    source, target = owner.allocate_cache(DESC, [prefix(1)]), puller.allocate_cache(DESC)
    owner.deallocate_cache(source)
    for _ in range(3):
        puller.pull_cache(prefix(1), target)
        puller.pull_cache(by_id(source), target)
    owner.remove_cache_key(prefix(1))
    assert owner.live_caches == 0


def test_api_d4_tensors_are_counted_for_each_key() -> None:
    owner, puller = two_nodes()
    four = replace(DESC, num_tensors=4)
    owner.allocate_cache(four, [key(1), key(2)])
    half = puller.allocate_cache(DESC)
    puller.pull_cache(key(1), half, src_layer_range=range(1))
    puller.pull_cache(key(2), half, src_layer_range=range(1, 2))
    puller.pull_cache(key(1), half, src_layer_range=range(1))
    assert owner.lookup(key(1)) is not None
    assert owner.lookup(key(2)) is not None
    puller.pull_cache(key(1), half, src_layer_range=range(1, 2))
    assert owner.lookup(key(1)) is None
    assert owner.lookup(key(2)) is not None


def test_layers_map_source_to_destination() -> None:
    owner, puller = two_nodes()
    three = replace(DESC, num_tensors=3)
    source, target = owner.allocate_cache(three, [key(1)]), puller.allocate_cache(three)
    fill(owner, source, 5)
    fill(puller, target, 50)
    kept = slot(puller, target, 0, 2)
    puller.pull_cache(key(1), target, src_layer_range=range(1, 3), dst_layer_range=range(2), tensor_num_per_layer=1)
    assert [slot(puller, target, 0, index) for index in (0, 1)] == [slot(owner, source, 0, index) for index in (1, 2)]
    assert slot(puller, target, 0, 2) == kept
    assert owner.lookup(key(1)) is not None


def test_a_pull_of_size_bytes_counts_as_a_pull() -> None:
    owner, puller = two_nodes()
    source, target = owner.allocate_cache(DESC, [key(1)]), puller.allocate_cache(DESC)
    fill(owner, source, 5)
    before = slot(puller, target, 0)
    puller.pull_cache(key(1), target, 0, 3)
    assert slot(puller, target, 0) == slot(owner, source, 0)[:3] + before[3:]
    assert owner.lookup(key(1)) is None


BAD_PULLS: list[tuple[str, dict[str, Any], str]] = [
    ("AttributeError", {"cache_key": None}, ""),
    ("TypeError", {"cache_key": 1}, "cache_key only support"),
    ("TypeError", {"layers": range(1)}, "layers"),
    ("TypeError", {"layers": 1, "cache": None}, "layers"),
    ("AttributeError", {"cache": None}, ""),
    ("TypeError", {"cache": 1}, "cache only support"),
    ("TypeError", {"batch_index": None}, ""),
    ("ValueError", {"batch_index": -1}, "out of range"),
    ("ValueError", {"batch_index": 2**32}, "is not a uint32 value"),
    ("TypeError", {"size": "all"}, ""),
    ("ValueError", {"size": 2**63}, "is not a int64 value"),
    ("LLM_PARAM_INVALID", {"size": 0}, "should be = -1 or > 0"),
    ("LLM_PARAM_INVALID", {"size": -2}, "should be = -1 or > 0"),
    ("TypeError", {"tensor_num_per_layer": None}, "tensor_num_per_layer"),
    ("ValueError", {"tensor_num_per_layer": -1}, "tensor_num_per_layer"),
    ("LLM_PARAM_INVALID", {"tensor_num_per_layer": 0}, "tensor_num_per_layer"),
    ("LLM_PARAM_INVALID", {"tensor_num_per_layer": 3}, "tensor_num_per_layer"),
    ("LLM_PARAM_INVALID", {"cache_key": PLACEHOLDER}, "one of req id and prefix id should contain valid value"),
    ("LLM_PARAM_INVALID", {"cache_key": CacheKey(1, 1, 0, 1)}, "only one of req id and prefix id"),
    ("TypeError", {"src_layer_range": (0, 1)}, "src_layer_range"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(0, 2, 2)}, "step must be 1"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(-1, 1)}, "is invalid, the start value"),
    ("ValueError", {"src_layer_range": range(2**32)}, "uint32"),
    ("ValueError", {"dst_layer_range": range(-1)}, "uint32"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(0)}, "empty"),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(5, 2)}, "empty"),
    ("LLM_PARAM_INVALID", {"cache_key": CacheKey(2, 1)}, "own cluster"),
    ("LLM_PARAM_INVALID", {"batch_index": 2}, "batch_index"),
    ("LLM_PARAM_INVALID", {"size": SLOT_BYTES + 1}, "size"),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(1, 2)}, "beyond"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1), "dst_layer_range": range(2), "tensor_num_per_layer": 1}, ""),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1), "tensor_num_per_layer": 1}, "differ in length"),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(1), "tensor_num_per_layer": 1}, "differ in tensors"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1, 2)}, "beyond"),
    ("LLM_NOT_YET_LINK", {"cache_key": CacheKey(3, 1)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": key(7)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": key(1, model=1)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": prefix(1)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": CacheKeyByIdAndIndex(1, 9)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": CacheKeyByIdAndIndex(1, 0)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": CacheKeyByIdAndIndex(1, -1)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"cache_key": CacheKeyByIdAndIndex(1, 1, 2)}, "beyond the batch"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), BAD_PULLS)
def test_bad_pulls_change_nothing(error: str, arguments: dict[str, Any], text: str) -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    target = puller.allocate_cache(DESC)
    given = {"cache_key": key(1), "cache": target, **arguments}
    refused(error, lambda: puller.pull_cache(**given), owner.cluster, text)


def test_the_first_failing_check_decides() -> None:
    owner, puller = two_nodes()
    target = puller.allocate_cache(DESC)
    gone = puller.allocate_cache(DESC)
    puller.deallocate_cache(gone)
    cluster = owner.cluster
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(CacheKey(2, 1), gone), cluster, "own cluster")
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: puller.pull_cache(CacheKey(3, 1), gone, 9), cluster)
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(CacheKey(3, 1), target, 9), cluster)
    refused("LLM_NOT_YET_LINK", lambda: puller.pull_cache(CacheKey(3, 1), target), cluster)
    foreign = owner.allocate_cache(DESC)
    refused("LLM_KV_CACHE_NOT_EXIST", lambda: puller.pull_cache(key(1), foreign), cluster)


def test_what_does_not_fit_the_remote_side_is_refused() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    wide = puller.allocate_cache(CacheDesc(2, (2, 16), "DT_FLOAT16"))
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(key(1), wide), owner.cluster, "remote slot")
    more = puller.allocate_cache(replace(DESC, num_tensors=3))
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(key(1), more), owner.cluster, "differ in tensors")
    refused("LLM_PARAM_INVALID", lambda: puller.pull_cache(key(1), more, src_layer_range=range(1)), owner.cluster)
    puller.pull_cache(key(1), wide, size=SLOT_BYTES)
    assert owner.lookup(key(1)) is None


def test_a_draining_cache_is_still_a_destination() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    target = puller.allocate_cache(DESC, [CacheKey(2, 9)])
    puller.deallocate_cache(target)
    puller.pull_cache(key(1), target)
    assert puller.lookup(CacheKey(2, 9)) is not None


def test_both_ends_of_a_link_pull() -> None:
    owner, puller = two_nodes()
    source = puller.allocate_cache(DESC, [CacheKey(2, 4)])
    fill(puller, source, 3)
    target = owner.allocate_cache(DESC)
    owner.pull_cache(CacheKey(2, 4), target)
    assert slot(owner, target, 0) == slot(puller, source, 0)


# -- transfers step by step ------------------------------------------------------------------------------------------


def test_a_transfer_pins_both_sides() -> None:
    owner, puller = two_nodes()
    source, target = owner.allocate_cache(DESC, [key(1)]), puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    owner.remove_cache_key(key(1))
    owner.deallocate_cache(source)
    puller.deallocate_cache(target)
    assert (owner.live_caches, puller.live_caches) == (1, 1)
    puller.copy(transfer)
    puller.finish(transfer)
    assert (owner.live_caches, puller.live_caches) == (0, 0)
    owner.cluster.check()


def test_concurrent_pulls_of_a_key_all_succeed() -> None:
    owner, puller = two_nodes()
    owner.deallocate_cache(owner.allocate_cache(DESC, [key(1)]))
    target = puller.allocate_cache(DESC)
    transfers = [puller.begin_pull(key(1), target, index) for index in (0, 1)]
    for transfer in transfers:
        puller.copy(transfer)
    puller.finish(transfers[0])
    assert (owner.lookup(key(1)), owner.live_caches) == (None, 1)
    puller.finish(transfers[1])
    assert owner.live_caches == 0


def test_an_abandoned_transfer_consumes_nothing() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    target = puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    puller.copy(transfer)
    puller.abandon(transfer)
    assert owner.lookup(key(1)) is not None
    puller.pull_cache(key(1), target)


def test_the_steps_of_a_transfer_have_an_order() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    transfer = puller.begin_pull(key(1), puller.allocate_cache(DESC))
    with pytest.raises(ImpossibleEvent):
        puller.finish(transfer)
    with pytest.raises(ImpossibleEvent):
        owner.copy(transfer)
    puller.copy(transfer)
    with pytest.raises(ImpossibleEvent):
        puller.copy(transfer)


# -- remote mode -----------------------------------------------------------------------------------------------------


def test_seed_3a_a_push_consumes_the_key_of_the_destination() -> None:
    owner, pusher = two_nodes(EnableRemoteCacheAccessible="1")
    target = owner.allocate_cache(DESC, [key(1), key(2)])
    source = pusher.allocate_cache(DESC, [CacheKey(2, 1)])
    fill(pusher, source, 9)
    pusher.push_cache(by_id(target, 1), source)
    assert slot(owner, target, 1) == slot(pusher, source, 0)
    assert (owner.lookup(key(1)) is None, owner.lookup(key(2)) is None) == (False, True)
    assert pusher.lookup(CacheKey(2, 1)) is not None


def test_a_push_of_layers_consumes_the_key_with_the_last() -> None:
    owner, pusher = two_nodes(EnableRemoteCacheAccessible="1")
    target, source = owner.allocate_cache(DESC, [key(1)]), pusher.allocate_cache(DESC)
    fill(pusher, source, 9)
    there = by_id(target)
    pusher.push_cache(there, source, 1, range(1), range(1, 2), tensor_num_per_layer=1)
    assert slot(owner, target, 0, 1) == slot(pusher, source, 1, 0)
    assert owner.lookup(key(1)) is not None
    pusher.push_cache(there, source, 1, range(1), range(1), tensor_num_per_layer=1)
    assert owner.lookup(key(1)) is None


def test_two_sided_mode_refuses_pushes_before_anything_else() -> None:
    owner, pusher = two_nodes()
    refused("LLM_PARAM_INVALID", lambda: pusher.push_cache(None, None), owner.cluster, "enable_remote_cache_accessible")


def test_remote_mode_pulls_by_id_and_index_alone() -> None:
    owner, puller = two_nodes(EnableRemoteCacheAccessible="1")
    source, target = owner.allocate_cache(DESC, [key(1)]), puller.allocate_cache(DESC)
    refused("TypeError", lambda: puller.pull_cache(key(1), target), owner.cluster)
    puller.pull_cache(by_id(source), target)
    assert owner.lookup(key(1)) is None


BAD_PUSHES: list[tuple[str, dict[str, Any], str]] = [
    ("TypeError", {"dst_cache_key": None}, "dst_cache_key"),
    ("TypeError", {"dst_cache_key": key(1)}, "dst_cache_key"),
    ("TypeError", {"src_cache": None}, "src_cache"),
    ("ValueError", {"src_batch_index": -1}, ""),
    ("ValueError", {"tensor_num_per_layer": 2**32}, ""),
    ("LLM_PARAM_INVALID", {"tensor_num_per_layer": 0}, ""),
    ("TypeError", {"src_layer_range": [0]}, ""),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(0, 2, 2)}, ".step == 1 failed"),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(1, 1)}, "range.start < range.stop failed"),
    ("LLM_PARAM_INVALID", {"dst_layer_range": range(-1, 1)}, "range.start < range.stop failed"),
    (
        "LLM_PARAM_INVALID",
        {"src_layer_range": range(1), "dst_layer_range": range(2)},
        "src_layer_range size should be equal",
    ),
    ("ValueError", {"size": 2**63}, ""),
    ("LLM_PARAM_INVALID", {"size": 8}, "should be = -1."),
    ("LLM_NOT_YET_LINK", {"dst_cache_key": CacheKeyByIdAndIndex(3, 1)}, ""),
    ("LLM_NOT_YET_LINK", {"dst_cache_key": CacheKeyByIdAndIndex(2, 1)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"dst_cache_key": CacheKeyByIdAndIndex(1, 0)}, ""),
    ("LLM_KV_CACHE_NOT_EXIST", {"dst_cache_key": CacheKeyByIdAndIndex(1, 9), "src_batch_index": 5}, ""),
    ("LLM_PARAM_INVALID", {"src_batch_index": 2}, "src_batch_index"),
    ("LLM_PARAM_INVALID", {"dst_cache_key": CacheKeyByIdAndIndex(1, 1, 2)}, "beyond the batch"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(2, 3), "dst_layer_range": range(1)}, "beyond"),
    ("LLM_PARAM_INVALID", {"src_layer_range": range(1), "dst_layer_range": range(2, 3)}, "beyond"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), BAD_PUSHES)
def test_bad_pushes_change_nothing(error: str, arguments: dict[str, Any], text: str) -> None:
    owner, pusher = two_nodes(EnableRemoteCacheAccessible="1")
    target, source = owner.allocate_cache(DESC, [key(1)]), pusher.allocate_cache(DESC)
    given = {"dst_cache_key": by_id(target), "src_cache": source, **arguments}
    refused(error, lambda: pusher.push_cache(**given), owner.cluster, text)


def test_api_d39_a_push_must_fit_the_remote_slot() -> None:
    owner, pusher = two_nodes(EnableRemoteCacheAccessible="1")
    target = owner.allocate_cache(DESC, [key(1)])
    wide = pusher.allocate_cache(CacheDesc(2, (2, 16), "DT_FLOAT16"))
    refused("LLM_PARAM_INVALID", lambda: pusher.push_cache(by_id(target), wide), owner.cluster, "remote slot")


# -- links -----------------------------------------------------------------------------------------------------------


def info(cluster_id: Any, address: tuple[str, int] = OWNER_ADDRESS) -> ClusterInfo:
    return ClusterInfo(cluster_id, (("127.0.0.1", 0),), (address,))


def test_linking_and_unlinking_concern_both_ends() -> None:
    owner, puller = two_nodes()
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_ALREADY_LINK"]
    assert puller.unlink_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]
    target = owner.allocate_cache(DESC)
    refused("LLM_NOT_YET_LINK", lambda: owner.pull_cache(CacheKey(2, 1), target), owner.cluster)
    assert puller.unlink_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]


def test_unlinking_drops_also_what_the_other_end_holds_of_a_link_dropped_before() -> None:
    owner, puller = two_nodes()
    puller.unlink_clusters([info(1)], force=True)
    assert owner.link_to(2).state == "BROKEN"
    assert puller.unlink_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]
    assert owner.link_to(2).state == "UNLINKED"


def test_api_4_3_with_a_transfer_backend_unlinking_is_local_and_needs_no_address() -> None:
    owner, puller = two_nodes(EnableRemoteCacheAccessible="1")
    puller.finalize()
    puller.init(options(listenIpInfo="127.0.0.1:0", TransferBackend="hixl"))
    puller.link_clusters([TO_OWNER])
    assert puller.unlink_clusters([ClusterInfo(1)])[1] == ["LLM_SUCCESS"]
    assert (puller.link_to(1).state, owner.link_to(2).state) == ("UNLINKED", "BROKEN")


def test_force_drops_one_end_and_the_other_finds_the_link_broken() -> None:
    owner, puller = two_nodes()
    assert puller.unlink_clusters([info(1)], force=True)[1] == ["LLM_SUCCESS"]
    assert puller.unlink_clusters([ClusterInfo(1)], force=True)[1] == ["LLM_SUCCESS"]
    assert owner.link_to(2).state == "BROKEN"
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]
    assert owner.link_to(2).state == "LINKED"


@pytest.mark.parametrize(
    ("code", "attempt"),
    [
        ("LLM_PARAM_INVALID", ClusterInfo(1, (("127.0.0.1", 0),), ())),
        ("LLM_PARAM_INVALID", ClusterInfo(1, (("127.0.0.1", 0),), (OWNER_ADDRESS, OWNER_ADDRESS))),
        ("LLM_PARAM_INVALID", ClusterInfo(1, (("127.0.0.1", 0), ("127.0.0.1", 1)), (OWNER_ADDRESS,))),
        ("LLM_LINK_FAILED", info(4, ("127.0.0.1", 4))),
        ("LLM_PARAM_INVALID", info(4)),
        ("LLM_ALREADY_LINK", info(1)),
    ],
)
def test_codes_of_link_clusters(code: str, attempt: ClusterInfo) -> None:
    owner, puller = two_nodes()
    before = owner.cluster.observable()
    assert puller.link_clusters((attempt,)) == (code, [code])
    assert owner.cluster.observable() == before


def test_ends_that_differ_in_remote_mode_do_not_link() -> None:
    owner, _ = two_nodes()
    third = owner.cluster.start("third", 3)
    third.init(options(EnableRemoteCacheAccessible="1"))
    assert third.link_clusters([TO_OWNER])[1] == ["LLM_PARAM_INVALID"]


def test_the_last_failing_entry_is_the_overall_code() -> None:
    _, puller = two_nodes()
    results = puller.link_clusters([info(9), info(7, ("127.0.0.1", 1)), TO_OWNER, info(8)])
    assert results == (
        "LLM_PARAM_INVALID",
        ["LLM_PARAM_INVALID", "LLM_LINK_FAILED", "LLM_ALREADY_LINK", "LLM_PARAM_INVALID"],
    )
    assert puller.link_clusters([]) == ("LLM_PARAM_INVALID", [])
    assert puller.link_clusters([TO_OWNER] * 17) == ("LLM_CLUSTER_NUM_EXCEED_LIMIT", [])


@pytest.mark.parametrize(
    ("error", "clusters", "others"),
    [
        ("TypeError", [TO_OWNER], {"timeout": None}),
        ("ValueError", [TO_OWNER], {"timeout": 2**31}),
        ("LLM_PARAM_INVALID", [TO_OWNER], {"timeout": 0}),
        ("TypeError", None, {}),
        ("TypeError", [None], {}),
        ("LLM_PARAM_INVALID", [ClusterInfo(1, (), (OWNER_ADDRESS,))], {}),
        ("TypeError", [info(None)], {}),
        ("ValueError", [info(-1)], {}),
    ],
)
def test_bad_arguments_of_link_clusters(error: str, clusters: Any, others: dict[str, Any]) -> None:
    _, puller = two_nodes()
    refused(error, lambda: puller.link_clusters(clusters, **others), puller.cluster)


def test_bad_arguments_of_unlink_clusters() -> None:
    _, puller = two_nodes()
    refused("TypeError", lambda: puller.unlink_clusters([TO_OWNER], force=1), puller.cluster)
    refused("TypeError", lambda: puller.unlink_clusters([info(None)], force=True), puller.cluster)
    assert puller.unlink_clusters([ClusterInfo(1)])[1] == ["LLM_PARAM_INVALID"]


def test_a_call_that_waits_for_a_transfer_meets_its_deadline() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    transfer = puller.begin_pull(key(1), puller.allocate_cache(DESC))
    before = owner.cluster.observable()
    for force in (False, True):
        assert puller.unlink_clusters([TO_OWNER], force=force)[1] == ["LLM_TIMEOUT"]
    with pytest.raises(WouldWait):
        puller.finalize()
    assert owner.cluster.observable() == before
    puller.copy(transfer)
    puller.finish(transfer)
    assert puller.unlink_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]


def test_forced_unlinking_by_the_owner_breaks_a_pull_off() -> None:
    owner, puller = two_nodes()
    source, target = owner.allocate_cache(DESC, [key(1)]), puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    assert owner.unlink_clusters([ClusterInfo(2)], force=True)[1] == ["LLM_SUCCESS"]
    owner.deallocate_cache(source)
    owner.remove_cache_key(key(1))
    assert owner.live_caches == 0
    with pytest.raises(Refused, match="LLM_NOT_YET_LINK"):
        puller.copy(transfer)
    puller.deallocate_cache(target)
    assert puller.live_caches == 0
    owner.cluster.check()


def test_512_links_in_two_sided_mode() -> None:
    cluster = Cluster()
    hub = cluster.start("hub", 0)
    hub.init(options(listenIpInfo="127.0.0.1:5001"))
    codes = []
    for number in range(1, 514):
        spoke = cluster.start(f"spoke {number}", number)
        spoke.init(options())
        codes += spoke.link_clusters([info(0)])[1]
    assert codes == ["LLM_SUCCESS"] * 512 + ["LLM_FAILED"]


# -- death -----------------------------------------------------------------------------------------------------------


def test_the_pins_of_the_dead_are_dropped_and_what_they_began_is_not_done() -> None:
    owner, puller = two_nodes()
    source = owner.allocate_cache(DESC, [key(1), key(2)])
    target = puller.allocate_cache(DESC)
    puller.copy(puller.begin_pull(key(1), target))
    puller.begin_pull(key(2), target)
    owner.cluster.kill("puller")
    assert owner.link_to(2).state == "BROKEN"
    assert [owner.lookup(each) for each in (key(1), key(2))] == [by_id(source, 0), by_id(source, 1)]
    owner.deallocate_cache(source)
    owner.remove_cache_key(key(1))
    owner.remove_cache_key(key(2))
    assert owner.live_caches == 0
    owner.cluster.check()


def test_the_puller_survives_the_owner() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1)])
    target = puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    owner.cluster.kill("owner")
    with pytest.raises(Refused, match="LLM_NOT_YET_LINK"):
        puller.copy(transfer)
    refused("LLM_NOT_YET_LINK", lambda: puller.pull_cache(key(1), target), puller.cluster)
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_ALREADY_LINK"]
    assert puller.unlink_clusters([TO_OWNER])[1] == ["LLM_UNLINK_FAILED"]
    puller.deallocate_cache(target)
    assert puller.live_caches == 0


def test_a_server_started_again_is_linked_after_a_forced_unlink() -> None:
    owner, puller = two_nodes()
    cluster = owner.cluster
    cluster.kill("owner")
    again = cluster.start("owner", 1)
    again.init(options(listenIpInfo="127.0.0.1:5001"))
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_ALREADY_LINK"]
    assert puller.unlink_clusters([TO_OWNER], force=True)[1] == ["LLM_SUCCESS"]
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_client_started_again_replaces_its_old_link(noticed: bool) -> None:
    owner, puller = two_nodes()
    cluster = owner.cluster
    source = owner.allocate_cache(DESC, [key(1)])
    puller.begin_pull(key(1), puller.allocate_cache(DESC))
    cluster.kill("puller", noticed)
    again = cluster.start("puller", 2)
    again.init(options())
    owner.deallocate_cache(source)
    owner.remove_cache_key(key(1))
    assert owner.live_caches == (0 if noticed else 1)
    assert again.link_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]
    assert owner.live_caches == 0
    cluster.check()


# -- init and finalize -----------------------------------------------------------------------------------------------


def test_calls_before_init_and_after_finalize() -> None:
    node = Cluster().start("only", 1)
    node.finalize()
    for error in ("RuntimeError", "LLM_ENGINE_FINALIZED"):
        for call in (
            lambda: node.allocate_cache(None),
            lambda: node.deallocate_cache(None),
            lambda: node.remove_cache_key(None),
            lambda: node.pull_cache(None, None),
            lambda: node.push_cache(None, None),
            lambda: node.copy_cache(None, None),
            lambda: node.link_clusters(None),
            lambda: node.unlink_clusters(None),
        ):
            refused(error, call, node.cluster)
        node.init(options())
        node.finalize()
        node.finalize()


def test_init_again_does_not_look_at_its_options(node: Node) -> None:
    node.init(None)
    assert node.pool_usage().total_bytes == 16 * PAGE


def test_finalize_drops_everything_and_tells_the_peers() -> None:
    owner, puller = two_nodes()
    owner.allocate_cache(DESC, [key(1), prefix(1)])
    kept = owner.allocate_cache(DESC, [key(2)])
    view = owner.open_view(kept)
    owner.deallocate_cache(kept)
    target = puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    owner.finalize()
    owner.close_view(view)
    assert owner.state == "FINALIZED"
    with pytest.raises(Refused, match="LLM_NOT_YET_LINK"):
        puller.copy(transfer)
    refused("LLM_NOT_YET_LINK", lambda: puller.pull_cache(key(1), target), owner.cluster)
    owner.init(options())
    assert owner.live_caches == 0


def test_who_was_linked_to_a_node_that_was_finalized_links_to_it_again() -> None:
    owner, puller = two_nodes()
    owner.finalize()
    assert puller.link_to(1).state == "UNLINKED"
    owner.init(options(listenIpInfo="127.0.0.1:5001"))
    assert puller.link_clusters([TO_OWNER])[1] == ["LLM_SUCCESS"]


BAD_OPTIONS: list[tuple[str, Any, str]] = [
    ("AttributeError", None, ""),
    ("TypeError", [], "options"),
    ("TypeError", {"ge.flowGraphMemMaxSize": 3}, ""),
    ("LLM_PARAM_INVALID", {"ge.flowGraphMemMaxSize": "1,2"}, "only support one mem pool"),
    ("LLM_PARAM_INVALID", {"ge.flowGraphMemMaxSize": "many"}, "must be digit"),
    (
        "LLM_PARAM_INVALID",
        {"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"},
        "llm.LocalCommRes is not supported when llm.EnableCacheManager is not configured.",
    ),
    ("LLM_PARAM_INVALID", {"llm.TransferBackend": "hixl"}, "EnableCacheManager"),
    (
        "LLM_PARAM_INVALID",
        {"llm.TransferBackend": "hixl", "llm.EnableCacheManager": "1", "llm.EnableRemoteCacheAccessible": "0"},
        "EnableRemoteCacheAccessible",
    ),
    ("LLM_PARAM_INVALID", {"llm.TransferBackend": "hixl", "llm.EnableCacheManager": "1"}, "listenIpInfo"),
    ("LLM_FEATURE_NOT_ENABLED", {}, "llm.EnableCacheManager"),
    ("LLM_FEATURE_NOT_ENABLED", {"llm.EnableCacheManager": "2"}, "llm.EnableCacheManager"),
    ("LLM_PARAM_INVALID", options(listenIpInfo="127.0.0.1"), 'format should be "ip:port"'),
    ("LLM_PARAM_INVALID", options(listenIpInfo="::1:80"), 'format should be "ip:port"'),
    ("ValueError", options(listenIpInfo="127.0.0.1:http"), ""),
    ("ValueError", options(listenIpInfo="127.0.0.1:65536"), ""),
    ("ValueError", options(listenIpInfo="127.0.0.1:+80"), ""),
    ("LLM_PARAM_INVALID", options(listenIpInfo="localhost:80"), 'format should be "ip:port"'),
    ("LLM_PARAM_INVALID", options(listenIpInfo="[127.0.0.1]:80"), 'format should be "ip:port"'),
    ("TypeError", options() | {"any": 1}, ""),
    ("TypeError", {**options(), 1: "any"}, ""),
    ("LLM_PARAM_INVALID", options(EnableRemoteCacheAccessible="yes"), ""),
    ("LLM_PARAM_INVALID", options() | {"ge.exec.deviceId": "0;1"}, ""),
    ("LLM_PARAM_INVALID", options(SyncKvCacheWaitTime="-1"), ""),
    ("LLM_PARAM_INVALID", options() | {"llmdd.WaitForMemory": "yes"}, "llmdd.WaitForMemory"),
    ("LLM_PARAM_INVALID", options() | {"llmdd.PeerTimeout": "1999"}, "PeerTimeout"),
    ("LLM_PARAM_INVALID", options() | {"llmdd.PeerTimeout": str(2**31)}, "PeerTimeout"),
    ("LLM_PARAM_INVALID", options() | {"llmdd.PeerTimeout": "5s"}, "PeerTimeout"),
    ("LLM_PARAM_INVALID", options(LinkRetryCount="0"), ""),
    ("LLM_PARAM_INVALID", options(LinkRetryCount="101"), ""),
    ("LLM_PARAM_INVALID", options(LinkTotalTime="long"), ""),
    ("LLM_PARAM_INVALID", options(LinkTotalTime=str(2**32)), ""),
    ("LLM_PARAM_INVALID", options() | {"ge.exec.deviceId": str(2**31)}, ""),
    ("LLM_PARAM_INVALID", options(MemPoolConfig="[1024]"), "object"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig="{"), "JSON"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig="{}"), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": 65536.0}'), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": true}'), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": -1}'), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": 0}'), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": 65535}'), "memory_size"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": 65536, "page_shift": 9}'), "page_shift"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig='{"memory_size": 65536, "page_shift": 31}'), "page_shift"),
    ("LLM_PARAM_INVALID", options(MemPoolConfig=f'{{"memory_size": {(2**32 - 1) << 10}, "page_shift": 10}}'), ""),
]


@pytest.mark.parametrize(("error", "given", "text"), BAD_OPTIONS)
def test_bad_options_leave_the_node_as_it_was(error: str, given: Any, text: str) -> None:
    node = Cluster().start("only", 1)
    refused(error, lambda: node.init(given), node.cluster, text)
    node.init(options())


def test_the_nixl_backend_says_how_bytes_travel_and_nothing_else() -> None:
    with_it, without = Cluster().start("only", 1), Cluster().start("only", 1)
    with_it.init(options(TransferBackend="nixl"))
    without.init(options())
    assert with_it.settings == without.settings


def test_local_comm_res_turns_both_flags_on() -> None:
    node = Cluster().start("only", 1)
    node.init({"llm.LocalCommRes": ""})
    assert node.settings is not None
    assert node.settings.remote_mode


def test_port_0_is_any_free_port_and_a_port_in_use_is_refused() -> None:
    cluster = Cluster()
    first, second, third = (cluster.start(str(number), number) for number in (1, 2, 3))
    first.init(options(listenIpInfo="[::1]:0"))
    second.init(options(listenIpInfo="[::1]:0"))
    assert first.listen_address is not None
    assert first.listen_address != second.listen_address
    ip, port = first.listen_address
    refused("LLM_FAILED", lambda: third.init(options(listenIpInfo=f"[{ip}]:{port}")), cluster, "in use")
    first.finalize()
    third.init(options(listenIpInfo=f"[{ip}]:{port}"))


# -- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_restores_everything() -> None:
    owner, puller = two_nodes()
    cluster = owner.cluster
    source = owner.allocate_cache(DESC, [key(1)])
    fill(owner, source, 3)
    target = puller.allocate_cache(DESC)
    transfer = puller.begin_pull(key(1), target)
    snapshot, before = cluster.snapshot(), cluster.observable()
    puller.copy(transfer)
    puller.finish(transfer)
    assert cluster.observable() != before
    restored = Cluster.restore(snapshot, cluster.charts)
    assert restored.observable() == before
    restored.nodes["puller"].copy(transfer)
    restored.nodes["puller"].finish(transfer)
    assert restored.observable() == cluster.observable()


def test_cluster_ids_of_the_living_are_different() -> None:
    cluster = Cluster()
    cluster.start("one", 1)
    for name, cluster_id in (("one", 2), ("two", 1)):
        with pytest.raises(ValueError, match="running already"):
            cluster.start(name, cluster_id)
