"""api §3.4: when a key is released."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex

from conformance.world import Node, World, by_id, link, prefix, refused, request

C = CacheDesc(4, (3, 64), "DT_UINT8")
ONE_SLOT = CacheDesc(4, (1, 64), "DT_UINT8")
B = CacheDesc(4, (4, 32), "DT_UINT8")


class Owner(NamedTuple):
    """A cache with a request key in slot 0, a prefix key in slot 1 and none in slot 2; another end to call from."""

    node: Node
    cache: Any
    caller: Node
    slot: Any
    blocks: Any


def owner(world: World, remote: bool = False, registered: bool = False) -> Owner:
    node, caller = world.pair(remote=remote)
    keys = [request(1), prefix(1)]
    if registered:
        address = node.own_memory(4 * 4096)
        addrs = [address + number * 4096 for number in range(4)]
        cache = node.register_cache(C, addrs, keys, remote_accessible=True)
    else:
        cache = node.allocate_cache(C, keys)
    return Owner(node, cache, caller, caller.allocate_cache(ONE_SLOT), caller.allocate_blocks_cache(B))


def keys_left(node: Node) -> set[str]:
    return {name for name, key in (("request", request(1)), ("prefix", prefix(1))) if node.lookup(key)}


Transfer = Callable[[Owner, Any], None]


def pull_cache(o: Owner, key: Any) -> None:
    o.caller.pull_cache(key, o.slot)


def pull_blocks(o: Owner, key: Any) -> None:
    o.caller.pull_blocks(key, o.blocks, (), [2, 0])


pulls = pytest.mark.parametrize("pull", [pull_cache, pull_blocks])
modes = pytest.mark.parametrize("remote", [False, True])


@pulls
@pytest.mark.parametrize(
    ("key", "left"),
    [
        (request(1), {"prefix"}),
        (prefix(1), {"request", "prefix"}),
    ],
)
def test_pull_by_cache_key(world: World, pull: Transfer, key: Any, left: set[str]) -> None:
    """api §3.4: pull by ``CacheKey``: a request key is released, a prefix key kept (D18); registered: kept."""
    o = owner(world)
    pull(o, key)
    assert keys_left(o.node) == left


@pulls
@pytest.mark.parametrize("key", [request(1), prefix(1)])
def test_pull_by_cache_key_of_a_registered_cache(world: World, pull: Transfer, key: Any) -> None:
    """api §3.4: registered cache: kept."""
    o = owner(world, registered=True)
    pull(o, key)
    assert keys_left(o.node) == {"request", "prefix"}
    pull(o, key)


@pulls
@modes
@pytest.mark.parametrize(("slot", "left"), [(0, {"prefix"}), (1, {"request", "prefix"}), (2, {"request", "prefix"})])
def test_pull_by_id_and_index(world: World, pull: Transfer, remote: bool, slot: int, left: set[str]) -> None:
    """api §3.4: pull by id+index of a keyed slot: request key released, prefix kept; unkeyed: nothing (D16)."""
    o = owner(world, remote)
    pull(o, by_id(o.cache, slot))
    assert keys_left(o.node) == left


@pulls
@modes
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_pull_by_id_and_index_of_a_registered_cache(world: World, pull: Transfer, remote: bool, slot: int) -> None:
    """api §3.4: registered cache: kept, by id+index too."""
    o = owner(world, remote, registered=True)
    pull(o, by_id(o.cache, slot))
    assert keys_left(o.node) == {"request", "prefix"}


@pulls
def test_pull_blocks_by_cache_key_in_remote_mode(world: World, pull: Transfer) -> None:
    """api §3.4, D16: same rules in two-sided and in remote mode."""
    o = owner(world, remote=True)
    if pull is pull_blocks:
        pull(o, request(1))
    else:
        pull(o, by_id(o.cache, 0))
    assert keys_left(o.node) == {"prefix"}


@pytest.mark.parametrize(("slot", "left"), [(0, {"prefix"}), (1, {"request", "prefix"}), (2, {"request", "prefix"})])
def test_push_cache(world: World, slot: int, left: set[str]) -> None:
    """api §3.4: push_cache into a slot: the **destination** slot's request key is released (seed §3a, D17)."""
    o = owner(world, remote=True)
    source = o.caller.allocate_cache(ONE_SLOT, [request(1)])
    o.caller.push_cache(by_id(o.cache, slot), source)
    assert keys_left(o.node) == left
    assert o.caller.lookup(request(1)) is not None


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_push_cache_into_a_registered_cache(world: World, slot: int) -> None:
    """api §3.4: push_cache into a registered cache: kept."""
    o = owner(world, remote=True, registered=True)
    o.caller.push_cache(by_id(o.cache, slot), o.slot)
    assert keys_left(o.node) == {"request", "prefix"}


def test_blocks_keys_are_never_released(world: World) -> None:
    """api §3.4: pull_blocks by ``BlocksCacheKey`` and push_blocks: never."""
    o = owner(world, remote=True)
    o.node.allocate_blocks_cache(B, BlocksCacheKey(1, 5))
    for _ in range(2):
        o.caller.pull_blocks(BlocksCacheKey(1, 5), o.blocks, [0, 1], [2, 3])
        o.caller.push_blocks(BlocksCacheKey(1, 5), o.blocks, [0, 1], [2, 3])
    assert o.node.live_keys() == 3


@pytest.mark.parametrize("registered", [False, True])
def test_remove_cache_key(world: World, registered: bool) -> None:
    """api §3.4: remove_cache_key: request and prefix key released, of registered caches too (D9)."""
    o = owner(world, registered=registered)
    o.node.remove_cache_key(request(1))
    assert keys_left(o.node) == {"prefix"}
    o.node.remove_cache_key(prefix(1))
    assert keys_left(o.node) == set()
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        o.caller.pull_cache(request(1), o.slot)
    o.caller.pull_cache(by_id(o.cache), o.slot)


def test_a_failed_call_keeps_the_key(world: World) -> None:
    """api §3.4: any failed, refused or timed-out call: kept."""
    o = owner(world)
    three_tensors = o.caller.allocate_cache(CacheDesc(3, (1, 64), "DT_UINT8"))
    large_slot = o.caller.allocate_cache(CacheDesc(4, (1, 65), "DT_UINT8"))
    for call in (
        lambda: o.caller.pull_cache(request(1), three_tensors),
        lambda: o.caller.pull_cache(request(1), large_slot),
        lambda: o.caller.pull_cache(request(1), o.slot, size=65),
        lambda: o.caller.pull_cache(request(1), o.slot, batch_index=1),
        lambda: o.caller.pull_cache(request(1), o.slot, src_layer_range=range(1)),
        lambda: o.caller.pull_blocks(request(1), o.blocks, (), [0, 1, 2]),
        lambda: o.caller.pull_blocks(request(1), o.blocks, (), [4]),
    ):
        with refused("LLM_PARAM_INVALID"):
            call()
        assert keys_left(o.node) == {"request", "prefix"}
    o.caller.pull_cache(request(1), o.slot)


@pytest.mark.parametrize(
    ("forms", "left"),
    [
        ([{"size": 1}], {"prefix"}),
        ([{"size": 63}], {"prefix"}),
    ],
)
def test_a_smaller_size_counts(world: World, forms: list[dict[str, Any]], left: set[str]) -> None:
    """api §3.4: ``size`` smaller than the slot still counts as a pull of those tensors."""
    o = owner(world)
    for form in forms:
        o.caller.pull_cache(request(1), o.slot, **form)
    assert keys_left(o.node) == left


def test_fewer_blocks_count(world: World) -> None:
    """api §3.4: fewer blocks than the slot needs still counts as a pull of those tensors."""
    o = owner(world)
    o.caller.pull_blocks(request(1), o.blocks, (), [3])
    assert keys_left(o.node) == {"prefix"}


def test_after_release(world: World) -> None:
    """api §3.4: another pull by that key is KV_CACHE_NOT_EXIST; by id+index it works while the cache lives."""
    o = owner(world)
    o.caller.pull_cache(request(1), o.slot)
    for _ in range(2):
        with refused("LLM_KV_CACHE_NOT_EXIST"):
            o.caller.pull_cache(request(1), o.slot)
        o.caller.pull_cache(by_id(o.cache), o.slot)
    o.node.deallocate_cache(o.cache)
    o.node.remove_cache_key(prefix(1))
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        o.caller.pull_cache(by_id(o.cache), o.slot)


def test_the_release_is_complete_when_the_call_returns(world: World) -> None:
    """api §3.4, D15: the release is complete before the pull or push returns: the key can be bound again."""
    prompt, decoder = world.pair()
    ours = decoder.allocate_cache(ONE_SLOT)
    for _ in range(50):
        cache = prompt.allocate_cache(C, [request(1)])
        prompt.deallocate_cache(cache)
        decoder.pull_cache(request(1), ours)
        assert prompt.is_entirely_free()


# ----------------------------------------------------------------------------------------------------- layer by layer

LAYERS = CacheDesc(6, (2, 16), "DT_UINT8")
SLOT_LAYERS = CacheDesc(6, (1, 16), "DT_UINT8")


def layered(world: World, remote: bool = False) -> tuple[Node, Any, Node, Any]:
    prompt, decoder = world.pair(remote=remote)
    cache = prompt.fill(prompt.allocate_cache(LAYERS, [request(1), request(2)]), 3)
    return prompt, cache, decoder, decoder.allocate_cache(SLOT_LAYERS)


def pull_layer(decoder: Node, key: Any, ours: Any, layer: int, per_layer: int = 2) -> None:
    only = range(layer, layer + 1)
    decoder.pull_cache(key, ours, src_layer_range=only, dst_layer_range=only, tensor_num_per_layer=per_layer)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_released_with_the_last_tensor(world: World, order: tuple[int, ...]) -> None:
    """api §3.4: with ``src_layer_range`` the key is released exactly when all tensors were pulled; any order."""
    prompt, cache, decoder, ours = layered(world)
    for layer in order:
        assert prompt.lookup(request(1)) is not None
        pull_layer(decoder, request(1), ours, layer)
    assert prompt.lookup(request(1)) is None
    assert prompt.lookup(request(2)) is not None
    assert decoder.contents(ours) == [tensor[:16] for tensor in prompt.contents(cache)]


def test_repeats_are_harmless(world: World) -> None:
    """api §3.4: repeats are harmless."""
    prompt, _, decoder, ours = layered(world)
    for layer in (0, 0, 1, 1, 0, 1):
        pull_layer(decoder, request(1), ours, layer)
    assert prompt.lookup(request(1)) is not None
    pull_layer(decoder, request(1), ours, 2)
    assert prompt.lookup(request(1)) is None


def test_a_pull_without_range_empties_the_set(world: World) -> None:
    """api §3.4: without ``src_layer_range`` a successful pull (by any addressing) empties the set."""
    prompt, cache, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0)
    decoder.pull_cache(request(1), ours)
    assert prompt.lookup(request(1)) is None
    decoder.pull_cache(by_id(cache, 1), ours)
    assert prompt.lookup(request(2)) is None


def test_layers_by_any_addressing(world: World) -> None:
    """api §3.4: layers pulled by key and by id+index count together."""
    prompt, cache, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0)
    pull_layer(decoder, by_id(cache, 0), ours, 1)
    assert prompt.lookup(request(1)) is not None
    pull_layer(decoder, by_id(cache, 0), ours, 2)
    assert prompt.lookup(request(1)) is None


def test_layers_by_different_peers(world: World) -> None:
    """api §3.4: layers may be pulled by different peers."""
    prompt, _, decoder, ours = layered(world)
    third = world.node(3)
    link(third, prompt)
    theirs = third.allocate_cache(SLOT_LAYERS)
    pull_layer(decoder, request(1), ours, 0)
    pull_layer(third, request(1), theirs, 2)
    assert prompt.lookup(request(1)) is not None
    pull_layer(third, request(1), theirs, 1)
    assert prompt.lookup(request(1)) is None


def test_layers_of_another_thickness(world: World) -> None:
    """api §3.4: a range removes the tensors ``start*tnpl .. stop*tnpl-1`` from the set."""
    prompt, _, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0, per_layer=3)  # 0 1 2
    pull_layer(decoder, request(1), ours, 2)  # 4 5
    assert prompt.lookup(request(1)) is not None
    pull_layer(decoder, request(1), ours, 3, per_layer=1)  # 3
    assert prompt.lookup(request(1)) is None


def test_each_key_has_a_set_of_its_own(world: World) -> None:
    """api §3.4: every bound key has its own set of tensors not yet pulled (D4)."""
    prompt, _, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0)
    for layer in (1, 2):
        pull_layer(decoder, request(2), ours, layer)
    assert prompt.live_keys() == 2
    pull_layer(decoder, request(2), ours, 0)
    assert (prompt.lookup(request(1)) is None, prompt.lookup(request(2)) is None) == (False, True)


def test_a_key_that_is_bound_again_begins_anew(world: World) -> None:
    """api §3.4: the set is initially all tensor indices."""
    prompt, _, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0)
    prompt.remove_cache_key(request(1))
    prompt.allocate_cache(LAYERS, [request(1)])
    for layer in (1, 2):
        pull_layer(decoder, request(1), ours, layer)
    assert prompt.lookup(request(1)) is not None
    pull_layer(decoder, request(1), ours, 0)
    assert prompt.lookup(request(1)) is None


def test_only_dst_layer_range(world: World) -> None:
    """api §3.4: only ``dst_layer_range`` given: the source side is all tensors."""
    prompt, decoder = world.pair()
    prompt.fill(prompt.allocate_cache(CacheDesc(2, (1, 16), "DT_UINT8"), [request(1)]), 1)
    ours = decoder.allocate_cache(SLOT_LAYERS)
    decoder.pull_cache(request(1), ours, dst_layer_range=range(1, 2))
    assert prompt.lookup(request(1)) is None


def test_push_cache_applies_it_to_destination_tensors(world: World) -> None:
    """api §3.4: push_cache applies the same rule to destination tensors."""
    prompt, cache, decoder, ours = layered(world, remote=True)
    for layer in range(3):
        assert prompt.lookup(request(2)) is not None
        decoder.push_cache(by_id(cache, 1), ours, src_layer_range=range(1), dst_layer_range=range(layer, layer + 1))
    assert prompt.lookup(request(2)) is None
    assert prompt.lookup(request(1)) is not None


def test_blocks_by_layers(world: World) -> None:
    """api §3.4: pull_blocks of a slot counts layer by layer as pull_cache does."""
    prompt, _, decoder, ours = layered(world)
    blocks = decoder.allocate_blocks_cache(CacheDesc(6, (4, 8), "DT_UINT8"))
    for layer in range(2):
        only = range(layer, layer + 1)
        decoder.pull_blocks(request(1), blocks, (), [0, 1], src_layer_range=only, dst_layer_range=only)
    pull_layer(decoder, request(1), ours, 1)
    assert prompt.lookup(request(1)) is not None
    decoder.pull_blocks(request(1), blocks, (), [0], src_layer_range=range(2, 3), dst_layer_range=range(1))
    assert prompt.lookup(request(1)) is None


def test_remove_cache_key_ignores_the_set(world: World) -> None:
    """api §3.4: ``remove_cache_key`` ignores the set."""
    prompt, cache, decoder, ours = layered(world)
    pull_layer(decoder, request(1), ours, 0)
    prompt.deallocate_cache(cache)
    prompt.remove_cache_key(request(1))
    prompt.remove_cache_key(request(2))
    assert prompt.is_entirely_free()


def test_a_pull_by_a_cache_that_was_never_keyed(world: World) -> None:
    """api §3.4: the same of an unkeyed slot: nothing to release."""
    o = owner(world)
    plain = o.node.allocate_cache(C)
    o.caller.pull_cache(CacheKeyByIdAndIndex(1, plain.cache_id, 0), o.slot)
    assert keys_left(o.node) == {"request", "prefix"}
