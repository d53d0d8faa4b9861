"""api §3.1: numbering, batch size, key namespaces."""

from __future__ import annotations

import pytest
from llmdd.spec.values import INV, BlocksCacheKey, CacheDesc, CacheKey

from conformance.world import World, by_id, options_of, outcome, placeholder, prefix, refused, request

C = CacheDesc(2, (2, 64), "DT_UINT8")
B = CacheDesc(2, (4, 32), "DT_UINT8")


def test_one_counter_numbers_all_caches(world: World) -> None:
    """api §3.1: one counter per engine numbers all caches, allocated or registered, C or B; the first id is 1."""
    node, other = world.node(1), world.node(2)
    address = node.own_memory(1 << 14)
    addrs = [address, address + 4096]
    caches = [
        node.allocate_cache(C),
        node.allocate_blocks_cache(B),
        node.register_cache(C, addrs),
        node.register_blocks_cache(B, addrs),
        node.allocate_cache(C),
    ]
    assert [cache.cache_id for cache in caches] == [1, 2, 3, 4, 5]
    assert other.allocate_cache(C).cache_id == 1


def test_ids_are_never_reused(world: World) -> None:
    """api §3.1: ids are never reused until ``finalize``."""
    node = world.node(1)
    seen = set()
    for _ in range(5):
        cache = node.allocate_cache(C)
        assert cache.cache_id not in seen
        seen.add(cache.cache_id)
        node.deallocate_cache(cache)
    assert max(seen) < node.allocate_blocks_cache(B).cache_id


def test_numbering_starts_again_after_init(world: World) -> None:
    """api §3.1: after a new ``init`` it starts at 1 again."""
    node = world.node(1)
    node.allocate_cache(C)
    node.allocate_cache(C)
    node.finalize()
    node.init(options_of())
    assert node.allocate_cache(C).cache_id == 1


def test_a_failed_allocation_may_consume_a_number(world: World) -> None:
    """api §3.1: a failed allocate or register may consume a number: ids still ascend and are never given twice."""
    node = world.node(1)
    first = node.allocate_cache(C, [request(1)])
    outcome(lambda: node.allocate_cache(C, [request(1)]))
    outcome(lambda: node.allocate_cache(CacheDesc(1, (1, 1 << 30), "DT_UINT8")))
    assert node.allocate_cache(C).cache_id > first.cache_id


def test_batch_size_is_the_number_of_slots(world: World) -> None:
    """api §3.1: batch size = number of slots = ``shape[batch_dim_index]``."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(CacheDesc(1, (1, 3, 8), "DT_UINT8", "DEVICE", 1)), 1)
    ours = decoder.allocate_cache(CacheDesc(1, (1, 8), "DT_UINT8"))
    content = prompt.contents(theirs)[0]
    for slot in range(3):
        decoder.pull_cache(by_id(theirs, slot), ours)
        assert decoder.contents(ours) == [content[8 * slot : 8 * slot + 8]]
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        decoder.pull_cache(by_id(theirs, 3), ours)


def test_a_blocks_cache_has_blocks_and_batch_size_one(world: World) -> None:
    """api §3.1: a B cache has ``shape[0]`` blocks and batch size 1."""
    node = world.node(1)
    blocks = node.fill(node.allocate_blocks_cache(B), 1)
    node.copy_blocks(blocks, {0: [3]})
    with refused("LLM_PARAM_INVALID"):
        node.copy_blocks(blocks, {0: [4]})
    assert [content[:32] == content[96:] for content in node.contents(blocks)] == [True, True]


def test_freshly_allocated_memory_can_be_read(world: World) -> None:
    """api §3.1: the contents of freshly allocated memory are unspecified, but they are memory."""
    node = world.node(1)
    assert [len(content) for content in node.contents(node.allocate_cache(C))] == [128, 128]


def test_the_namespaces_are_independent(world: World) -> None:
    """api §3.1, D3, D6: request, prefix and blocks keys of one number and model are different keys."""
    node = world.node(1)
    by_request = node.allocate_cache(C, [request(5, 7)])
    by_prefix = node.allocate_cache(C, [prefix(5, 7)])
    blocks = node.allocate_blocks_cache(B, BlocksCacheKey(1, 7))
    assert node.live_keys() == 3
    assert node.lookup(request(5, 7)) == by_id(by_request)
    assert node.lookup(prefix(5, 7)) == by_id(by_prefix)
    node.remove_cache_key(request(5, 7))
    assert node.live_keys() == 2
    node.deallocate_blocks_cache(blocks)
    assert node.live_keys() == 1
    assert node.lookup(prefix(5, 7)) == by_id(by_prefix)


@pytest.mark.parametrize("number", [0, 1, 2**63, INV - 1])
def test_request_keys(world: World, number: int) -> None:
    """api §3.1: a request key is (req_id, model_id), req_id ≠ INV, prefix_id = INV."""
    node = world.node(1)
    caches = [node.allocate_cache(C, [request(number, model)]) for model in (0, 1, INV)]
    assert [node.lookup(request(number, model)) for model in (0, 1, INV)] == [by_id(cache) for cache in caches]


@pytest.mark.parametrize("number", [0, 1, 2**63, INV - 1])
def test_prefix_keys(world: World, number: int) -> None:
    """api §3.1: a prefix key is (prefix_id, model_id), prefix_id ≠ INV."""
    node = world.node(1)
    caches = [node.allocate_cache(C, [prefix(number, model)]) for model in (0, 1, INV)]
    assert [node.lookup(prefix(number, model)) for model in (0, 1, INV)] == [by_id(cache) for cache in caches]


def test_prefix_wins_when_both_ids_are_given(world: World) -> None:
    """api §3.1: on binding, prefix wins if both ids are given."""
    node = world.node(1)
    cache = node.allocate_cache(C, [CacheKey(1, 5, 0, 6)])
    assert node.lookup(prefix(6)) == by_id(cache)
    assert node.lookup(request(5)) is None


def test_blocks_keys(world: World) -> None:
    """api §3.1: a blocks key is (model_id)."""
    node = world.node(1)
    node.allocate_blocks_cache(B, BlocksCacheKey(1, 0))
    node.allocate_blocks_cache(B, BlocksCacheKey(1, INV))
    with refused("LLM_PARAM_INVALID", "already bound"):
        node.allocate_blocks_cache(B, BlocksCacheKey(9, INV))
    assert node.live_keys() == 2


def test_a_placeholder_binds_nothing(world: World) -> None:
    """api §3.1: a placeholder (both ids INV) binds nothing."""
    node = world.node(1)
    node.allocate_cache(C, [placeholder(), placeholder(3)])
    node.allocate_cache(C, [placeholder()])
    assert node.live_keys() == 0
    assert node.lookup(placeholder()) is None


def test_the_cluster_of_a_key_is_ignored_on_the_owner(world: World) -> None:
    """api §3.1: ``cluster_id`` inside a key is ignored when binding, removing or resolving on the owner."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(C, [request(1, cluster_id=77), request(2, cluster_id=78)]), 1)
    with refused("LLM_PARAM_INVALID", "already bound"):
        prompt.allocate_cache(C, [request(1, cluster_id=79)])
    prompt.remove_cache_key(request(2, cluster_id=80))
    assert prompt.live_keys() == 1
    ours = decoder.allocate_cache(CacheDesc(2, (1, 64), "DT_UINT8"))
    decoder.pull_cache(request(1, cluster_id=1), ours)
    assert decoder.contents(ours) == [content[:64] for content in prompt.contents(theirs)]
    assert prompt.live_keys() == 0


def test_the_cluster_of_a_key_selects_the_peer(world: World) -> None:
    """api §3.1: ``cluster_id`` only selects the peer for a pull or push."""
    prompt, decoder = world.pair()
    prompt.allocate_cache(C, [request(1)])
    with refused("LLM_NOT_YET_LINK"):
        decoder.pull_cache(request(1, cluster_id=3), decoder.allocate_cache(C))
    assert prompt.live_keys() == 1


def test_a_key_is_bound_to_one_live_cache(world: World) -> None:
    """api §3.1: a key can be bound to at most one live cache of the process."""
    node, other = world.node(1), world.node(2)
    node.allocate_cache(C, [request(1), prefix(1)])
    for keys in ([request(1)], [request(9), request(1)], [prefix(1)]):
        with refused("LLM_PARAM_INVALID", "already bound"):
            node.allocate_cache(C, keys)
    other.allocate_cache(C, [request(1), prefix(1)])
