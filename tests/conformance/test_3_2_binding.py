"""api §3.2: binding ``cache_keys``, for allocated and for registered caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc, CacheKey, CacheKeyByIdAndIndex

from conformance.world import Node, World, by_id, placeholder, prefix, refused, request

C = CacheDesc(2, (3, 64), "DT_UINT8")

Make = Callable[[Node, Sequence[CacheKey]], Any]


def allocate(node: Node, keys: Sequence[CacheKey]) -> Any:
    return node.allocate_cache(C, keys)


def register(node: Node, keys: Sequence[CacheKey]) -> Any:
    address = node.own_memory(1 << 13)
    return node.register_cache(C, [address, address + 4096], keys)


both = pytest.mark.parametrize("make", [allocate, register])


def bound(node: Node, keys: Sequence[CacheKey]) -> list[int | None]:
    """The slots that keys are bound to."""
    found: list[CacheKeyByIdAndIndex | None] = [node.lookup(key) for key in keys]
    return [None if where is None else where.batch_index for where in found]


@both
def test_key_i_belongs_to_slot_i(world: World, make: Make) -> None:
    """api §3.2: key *i* belongs to slot *i* (seed §9)."""
    node = world.node(1)
    keys = [request(30), prefix(10), request(20)]
    cache = make(node, keys)
    assert [node.lookup(key) for key in keys] == [by_id(cache, slot) for slot in range(3)]


@both
@pytest.mark.parametrize("container", [list, tuple])
def test_keys_may_be_a_list_or_a_tuple(world: World, make: Make, container: type) -> None:
    """api §3.2: the keys are a list or a tuple, empty by default."""
    node = world.node(1)
    make(node, container([request(1), request(2)]))
    make(node, container())
    assert node.live_keys() == 2


@both
def test_fewer_keys_than_slots(world: World, make: Make) -> None:
    """api §3.2: fewer keys than slots: the remaining slots are unkeyed (seed §10)."""
    node = world.node(1)
    make(node, [request(1)])
    assert (bound(node, [request(1)]), node.live_keys()) == ([0], 1)


@both
def test_more_keys_than_slots(world: World, make: Make) -> None:
    """api §3.2: more keys than slots: LX."""
    node = world.node(1)
    for keys in ([request(number) for number in range(4)], [placeholder()] * 4, [request(1)] * 4):
        with refused("LLM_PARAM_INVALID"):
            make(node, keys)
    assert (node.live_caches(), node.live_keys()) == (0, 0)


@both
def test_placeholders_skip_their_slot(world: World, make: Make) -> None:
    """api §3.2: placeholders skip their slot; any number of them, any model_id (seed §10, D2)."""
    node = world.node(1)
    make(node, [placeholder(), placeholder(), request(1)])
    make(node, [placeholder(4), request(2), placeholder(4)])
    assert bound(node, [request(1), request(2)]) == [2, 1]
    assert node.live_keys() == 2


@both
@pytest.mark.parametrize(
    ("keys", "slots"),
    [
        ([request(1), request(1)], {request(1): 1}),
        ([request(1), request(2), request(1)], {request(1): 2, request(2): 1}),
        ([request(1)] * 3, {request(1): 2}),
        ([prefix(1), prefix(1), request(2)], {prefix(1): 1, request(2): 2}),
        ([request(1), CacheKey(77, 1)], {request(1): 1}),
    ],
)
def test_the_last_of_equal_keys_is_bound(
    world: World, make: Make, keys: list[CacheKey], slots: dict[CacheKey, int]
) -> None:
    """api §3.2: the same key twice: the **last** position is bound, the earlier become unkeyed (seed §11, D1)."""
    node = world.node(1)
    make(node, keys)
    assert bound(node, list(slots)) == list(slots.values())
    assert node.live_keys() == len(slots)


@both
def test_a_key_bound_to_another_live_cache(world: World, make: Make) -> None:
    """api §3.2: a key already bound to another live cache: LX, nothing is allocated (seed §7)."""
    node = world.node(1)
    first = allocate(node, [request(1)])
    registered = register(node, [request(2)])
    before = node.usage()
    for taken in (request(1), request(2)):
        with refused("LLM_PARAM_INVALID", "already bound"):
            make(node, [request(8), taken, request(9)])
    assert (node.usage(), node.live_keys()) == (before, 2)
    assert bound(node, [request(8), request(9)]) == [None, None]
    assert node.lookup(request(1)) == by_id(first)
    assert node.lookup(request(2)) == by_id(registered)


@both
def test_a_key_that_was_dropped_can_be_bound_again(world: World, make: Make) -> None:
    """api §3.2: only *live* bindings are in the way."""
    node = world.node(1)
    make(node, [request(1)])
    node.remove_cache_key(request(1))
    second = make(node, [placeholder(), request(1)])
    assert node.lookup(request(1)) == by_id(second, 1)


@both
def test_different_keys(world: World, make: Make) -> None:
    """api §3.2: same req_id with another model, or the same number as request and prefix: different (D5, D6)."""
    node = world.node(1)
    keys = [request(1, 0), request(1, 1), prefix(1, 0)]
    make(node, keys)
    assert bound(node, keys) == [0, 1, 2]
    assert node.live_keys() == 3
