"""The reference model's bulk calls: item by item as the single calls, or all or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.reference import Node
from llmdd.spec.statecharts import Refused
from llmdd.spec.values import INV, CacheDesc, CacheKey

from .nodes import DESC, PLACEHOLDER, blocks_key, by_id, fill, key, own_tensors, prefix, refused, slot, two_nodes

NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"
INVALID = "LLM_PARAM_INVALID"
OK = "LLM_SUCCESS"
BLOCKS = CacheDesc(2, (6, 4), "DT_FLOAT16")


# -- keys and caches -------------------------------------------------------------------------------------------------


def test_lookups_are_those_of_single_keys(node: Node) -> None:
    cache = node.allocate_cache(DESC, [key(1), prefix(7)])
    assert node.lookup_many([key(1), key(2), prefix(7), PLACEHOLDER]) == (
        [cache.cache_id, 0, cache.cache_id, 0],
        [0, 0, 1, 0],
    )
    assert node.lookup_many((1, INV, 7)) == ([cache.cache_id, 0, 0], [0, 0, 0])
    assert node.lookup_many([1], model_id=1) == ([0], [0])
    assert node.lookup_many([]) == ([], [])


def test_removals_are_those_of_single_keys(node: Node) -> None:
    node.deallocate_cache(node.allocate_cache(DESC, [key(1), key(2)]))
    assert node.remove_cache_keys([key(1), PLACEHOLDER, key(1), key(9)]) == [True, False, False, False]
    assert node.remove_cache_keys([2]) == [True]
    assert node.live_caches == 0


@pytest.mark.parametrize("keys", [[key(1), key(9)], [key(1), key(1)], [PLACEHOLDER], [1, 2, INV], [2, 1, 2]])
def test_all_keys_are_removed_or_none(node: Node, keys: list[Any]) -> None:
    node.allocate_cache(DESC, [key(1), key(2)])
    refused(NOT_EXIST, lambda: node.remove_cache_keys(keys, all_or_nothing=True), node.cluster)
    assert node.remove_cache_keys([2, 1], all_or_nothing=True) == [True, True]


def test_deallocations_are_those_of_single_caches(node: Node) -> None:
    one, two = node.allocate_cache(DESC, [key(1)]), node.allocate_cache(DESC)
    blocks = node.allocate_blocks_cache(DESC, blocks_key())
    registered = node.register_cache(DESC, own_tensors(node, DESC))
    assert node.deallocate_many([one, blocks, registered, one]) == [True, False, False, False]
    assert node.tensor_addrs(one) == []
    assert node.deallocate_many([one.cache_id, blocks.cache_id, registered.cache_id, two.cache_id, 99]) == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert node.tensor_addrs(two) == []
    assert node.lookup(key(1)) is not None
    assert node.live_caches == 3


def test_all_caches_are_deallocated_or_none(node: Node) -> None:
    cache, gone = node.allocate_cache(DESC), node.allocate_cache(DESC)
    node.deallocate_cache(gone)
    blocks = node.allocate_blocks_cache(DESC)
    registered = node.register_cache(DESC, own_tensors(node, DESC))
    wrong: list[tuple[list[Any], str]] = [
        ([cache, gone], NOT_EXIST),
        ([cache, cache], NOT_EXIST),
        ([cache.cache_id] * 2, NOT_EXIST),
        ([cache.cache_id, 99], NOT_EXIST),
        ([cache, blocks], INVALID),
        ([cache, registered], INVALID),
        ([cache.cache_id, blocks.cache_id], INVALID),
    ]
    for items, error in wrong:
        refused(error, lambda items=items: node.deallocate_many(items, all_or_nothing=True), node.cluster)
    assert node.deallocate_many([cache], all_or_nothing=True) == [True]


@pytest.mark.parametrize("call", ["lookup_many", "remove_cache_keys", "deallocate_many"])
@pytest.mark.parametrize(
    ("given", "error"),
    [(None, "AttributeError"), (1, "TypeError"), ("1", "TypeError"), ([None], "TypeError"), ([1.0], "TypeError"),
     ([-1], "ValueError"), ([2**64], "ValueError"), ([1, key(1)], "TypeError")],
)  # fmt: skip
def test_what_is_no_sequence_of_numbers_is_refused(node: Node, call: str, given: Any, error: str) -> None:
    refused(error, lambda: getattr(node, call)(given), node.cluster)


def test_a_model_is_for_request_ids(node: Node) -> None:
    refused(INVALID, lambda: node.lookup_many([key(1)], model_id=1), node.cluster)
    refused("TypeError", lambda: node.remove_cache_keys([1], model_id=None), node.cluster)


# -- pulls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> tuple[Node, Node]:
    """An owner with keys 1 and 2 in a cache that nothing else holds, and a puller."""
    owner, puller = two_nodes()
    cache = owner.allocate_cache(DESC, [key(1), key(2)])
    fill(owner, cache, 1)
    owner.deallocate_cache(cache)
    return owner, puller


def test_each_item_ends_as_its_pull(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    target = puller.allocate_cache(CacheDesc(2, (6, 8), "DT_FLOAT16"))
    keys = [key(2), key(2), PLACEHOLDER, CacheKey(2, 1), CacheKey(9, 1), key(1)]
    expected = [OK, NOT_EXIST, INVALID, INVALID, "LLM_NOT_YET_LINK", OK]
    assert puller.pull_many(keys, target) == expected
    assert owner.live_caches == 0
    assert any(slot(puller, target, 5))
    owner.cluster.check()


def test_request_ids_of_a_cluster(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    targets = [puller.allocate_cache(DESC) for _ in range(2)]
    assert puller.pull_many([1, 9], targets, [1, 1], cluster_id=1) == [OK, NOT_EXIST]
    assert puller.pull_many([2], targets[0], cluster_id=1, size=4) == [OK]
    assert slot(puller, targets[0], 0)[4:] == bytes(12)
    assert owner.live_caches == 0


def test_slots_into_blocks(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    blocks = puller.allocate_blocks_cache(BLOCKS)
    assert puller.pull_many([1, 2], blocks, block_tables=[[5, 0], []], cluster_id=1) == [OK, INVALID]
    assert puller.pull_many([2], blocks, block_tables=[(3,)], cluster_id=1) == [OK]
    assert owner.live_caches == 0


def test_all_slots_or_none(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    target = puller.allocate_cache(DESC)
    for keys, error in (
        ([key(1), key(9)], NOT_EXIST),
        ([key(1), key(1)], NOT_EXIST),
        ([by_id_of(owner, 0), key(1)], NOT_EXIST),
        ([key(1), CacheKey(2, 1)], INVALID),
    ):
        with pytest.raises(Refused) as refusal:
            puller.pull_many(keys, target, all_or_nothing=True)
        assert refusal.value.error == error
        assert owner.lookup_many([1, 2])[0] == [1, 1]
        assert not any(puller.contents(target)[0])
        owner.cluster.check()
        assert not owner.cluster.transfers
    assert puller.pull_many([key(2), key(1)], target, all_or_nothing=True) == [OK, OK]
    assert owner.live_caches == 0


def by_id_of(owner: Node, index: int) -> Any:
    place = owner.lookup(key(1 + index))
    assert place is not None
    return place


def test_keys_that_are_not_released_may_be_named_twice(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    kept = owner.register_cache(DESC, own_tensors(owner, DESC), [prefix(7), key(5)])
    target = puller.allocate_cache(CacheDesc(2, (4, 8), "DT_FLOAT16"))
    keys = [prefix(7), prefix(7), key(5), key(5)]
    assert puller.pull_many(keys, target, all_or_nothing=True) == [OK] * 4
    assert owner.lookup_many([key(5), prefix(7)])[0] == [kept.cache_id] * 2


def test_a_copy_that_fails_releases_no_key(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    addresses = own_tensors(puller, DESC)
    gone = puller.register_cache(DESC, addresses)
    puller.free_memory(addresses[1])
    targets = [puller.allocate_cache(DESC), gone]
    with pytest.raises(Refused) as refusal:
        puller.pull_many([key(1), key(2)], targets, all_or_nothing=True)
    assert refusal.value.error == INVALID
    assert owner.lookup_many([1, 2])[0] == [1, 1]
    owner.cluster.check()
    assert puller.pull_many([key(1), key(2)], targets) == [OK, INVALID]


def test_what_contradicts_itself_is_refused_before_anything(pair: tuple[Node, Node]) -> None:
    owner, puller = pair
    target, blocks = puller.allocate_cache(DESC), puller.allocate_blocks_cache(BLOCKS)
    two = [key(1), key(2)]
    calls: list[tuple[dict[str, Any], str]] = [
        ({"cache_keys": [1], "cache": target}, "AttributeError"),
        ({"cache_keys": [1], "cache": target, "cluster_id": -1}, "ValueError"),
        ({"cache_keys": two, "cache": target, "cluster_id": 1}, INVALID),
        ({"cache_keys": two, "cache": target, "model_id": 1}, INVALID),
        ({"cache_keys": [blocks_key()], "cache": target}, "TypeError"),
        ({"cache_keys": two, "cache": None}, "AttributeError"),
        ({"cache_keys": two, "cache": [target]}, INVALID),
        ({"cache_keys": two, "cache": target, "batch_indices": [0]}, INVALID),
        ({"cache_keys": two, "cache": target, "batch_indices": [1, 1]}, INVALID),
        ({"cache_keys": two, "cache": target, "batch_indices": [0, 2**32]}, "ValueError"),
        ({"cache_keys": two, "cache": target, "size": 0}, INVALID),
        ({"cache_keys": two, "cache": target, "size": 1.0}, "TypeError"),
        ({"cache_keys": two, "cache": target, "all_or_nothing": 1}, "TypeError"),
        ({"cache_keys": two, "cache": blocks}, INVALID),
        ({"cache_keys": two, "cache": target, "block_tables": [[0], [1]]}, INVALID),
        ({"cache_keys": two, "cache": blocks, "block_tables": [[0], [1]], "batch_indices": [0, 1]}, INVALID),
        ({"cache_keys": two, "cache": blocks, "block_tables": [[0], [1, 0]]}, INVALID),
        ({"cache_keys": two, "cache": blocks, "block_tables": [[0]]}, INVALID),
        ({"cache_keys": two, "cache": blocks, "block_tables": [[0], 1]}, "TypeError"),
        ({"cache_keys": two, "cache": blocks, "block_tables": [[0], [1]], "size": 4}, INVALID),
    ]
    for arguments, error in calls:
        refused(error, lambda arguments=arguments: puller.pull_many(**arguments), owner.cluster)


def test_remote_mode_names_slots_by_id() -> None:
    owner, puller = two_nodes(EnableRemoteCacheAccessible="1")
    cache, target = owner.allocate_cache(DESC, [key(1), key(2)]), puller.allocate_cache(DESC)
    refused("TypeError", lambda: puller.pull_many([1], target, cluster_id=1), owner.cluster)
    refused("TypeError", lambda: puller.pull_many([key(1)], target), owner.cluster)
    assert puller.pull_many([by_id(cache, 1), by_id(cache, 0)], target) == [OK, OK]
    assert owner.lookup_many([1, 2])[0] == [0, 0]
