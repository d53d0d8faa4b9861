"""Every transfer, in both directions of a link: between two hosts as on one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from .conftest import HostProcess, Node, opened_network

#: Tensors, and bytes of a slot of each: a byte; what travels with the messages, to its last byte and one more; many
#: small pieces; few large ones.
SIZES = [(1, 1), (2, 1000), (4, 4096), (1, 16385), (80, 4096), (3, 300_001), (2, 1 << 20), (4, 8 << 20)]
LINK_DIRECTIONS = ["initiator", "acceptor"]

numbers = count(100, 10_000)


@dataclass(frozen=True)
class Linked:
    """Two nodes that are linked, each knowing nothing of who linked."""

    near: Node
    far: Node


@pytest.fixture(scope="module", params=["one host", "two hosts"])
def places(request: pytest.FixtureRequest) -> Iterator[tuple[HostProcess, HostProcess]]:
    """Two processes, on one host or on two."""
    if request.param == "two hosts":
        request.getfixturevalue("nixl")
    network = opened_network(2)
    processes = [HostProcess(network.hosts[0]), HostProcess(network.hosts[-1 if request.param == "two hosts" else 0])]
    yield processes[0], processes[1]
    for process in processes:
        process.end()
    network.close()


def linked_nodes(places: tuple[HostProcess, HostProcess], first: int, remote: bool) -> tuple[Node, Node]:
    initiator, acceptor = (
        process.open(first + place, remote=remote, pool_bytes=80 << 20) for place, process in enumerate(places)
    )
    assert initiator.link_to(acceptor) == "LLM_SUCCESS"
    return initiator, acceptor


@pytest.fixture(scope="module")
def two_sided(places: tuple[HostProcess, HostProcess]) -> tuple[Node, Node]:
    return linked_nodes(places, 1, remote=False)


@pytest.fixture(scope="module")
def remote(places: tuple[HostProcess, HostProcess]) -> tuple[Node, Node]:
    return linked_nodes(places, 11, remote=True)


def chosen(nodes: tuple[Node, Node], near: str) -> Linked:
    return Linked(*nodes) if near == "initiator" else Linked(*reversed(nodes))


def nothing_is_left(nodes: Linked, eventually: Callable[..., None]) -> None:
    for node in (nodes.near, nodes.far):
        node.drop_all()
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


@pytest.fixture(params=LINK_DIRECTIONS)
def pulling(request: Any, two_sided: tuple[Node, Node], eventually: Any) -> Iterator[Linked]:
    """The near node pulls."""
    nodes = chosen(two_sided, request.param)
    yield nodes
    nothing_is_left(nodes, eventually)


@pytest.fixture(params=LINK_DIRECTIONS)
def pushing(request: Any, remote: tuple[Node, Node], eventually: Any) -> Iterator[Linked]:
    """The near node pushes."""
    nodes = chosen(remote, request.param)
    yield nodes
    nothing_is_left(nodes, eventually)


# ---------------------------------------------------------------------------------------------------------------- pulls


@pytest.mark.parametrize(("tensors", "slot_bytes"), SIZES)
def test_a_pull_by_key(pulling: Linked, tensors: int, slot_bytes: int) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, tensors, slot_bytes)
    assert near.fetch(far.cluster_id, number, tensors, slot_bytes) == "right"
    assert not far.is_bound(number), "the key has been released before the pull returned"
    assert far.is_empty(), "and so the memory"
    assert near.fetch(far.cluster_id, number, tensors, slot_bytes) == "LLM_KV_CACHE_NOT_EXIST"


@pytest.mark.parametrize(("tensors", "slot_bytes"), [(2, 1000), (4, 100_000), (2, 4 << 20)])
@pytest.mark.parametrize("registered", ["source", "destination", "both"])
def test_a_pull_of_registered_memory(pulling: Linked, registered: str, tensors: int, slot_bytes: int) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, tensors, slot_bytes, kept=True, registered=registered in ("source", "both"))
    cache_id = near.allocate(tensors, slot_bytes, registered=registered in ("destination", "both"))
    assert near.pull(far.cluster_id, number, cache_id) == "LLM_SUCCESS"
    assert near.holds(cache_id, 0, number)
    assert far.is_bound(number) == (registered != "destination"), "registered memory keeps its keys"


def test_a_pull_of_one_slot_by_id_into_one_slot(pulling: Linked) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    theirs = far.bind(number, 4, 5000, batch=3, kept=True)
    ours = near.allocate(4, 5000, batch=3)
    assert near.pull_by_id(far.cluster_id, theirs, 1, ours, 2) == "LLM_SUCCESS"
    assert near.holds(ours, 2, number + 1)
    assert near.holds(ours, 0, 0, 0) and near.holds(ours, 1, 0, 0), "nothing is written beside the slot"
    assert [far.is_bound(number + slot) for slot in range(3)] == [True, False, True]


@pytest.mark.parametrize("size", [1, 100, 99_999])
def test_a_pull_of_a_part(pulling: Linked, size: int) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, 4, 100_000)
    ours = near.allocate(4, 200_000)
    assert near.pull(far.cluster_id, number, ours, 0, size) == "LLM_SUCCESS"
    assert near.holds(ours, 0, number, size)


def test_a_pull_layer_by_layer(pulling: Linked) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, 6, 50_000)
    ours = near.allocate(6, 50_000)
    for layer in (2, 0):
        assert near.pull_layer(far.cluster_id, number, ours, layer) == "LLM_SUCCESS"
        assert far.is_bound(number), "not all layers have been pulled"
    assert near.pull_layer(far.cluster_id, number, ours, 1) == "LLM_SUCCESS"
    assert not far.is_bound(number)
    assert near.holds(ours, 0, number)


@pytest.mark.parametrize(("tensors", "blocks", "block_bytes"), [(1, 4, 64), (8, 256, 4096), (2, 64, 65536)])
def test_a_pull_of_scattered_blocks(pulling: Linked, tensors: int, blocks: int, block_bytes: int) -> None:
    near, far, number, model = pulling.near, pulling.far, next(numbers), next(numbers)
    order = random.Random(blocks)
    sources, targets = (order.sample(range(blocks), 3 * blocks // 4) for _ in range(2))
    far.blocks(tensors, blocks, block_bytes, model, number)
    ours = near.blocks(tensors, blocks, block_bytes)
    assert near.pull_blocks(far.cluster_id, model, sources, ours, targets) == "LLM_SUCCESS"
    arrived = {target: number + source for source, target in zip(sources, targets, strict=True)}
    assert near.holds_blocks(ours, arrived)


def test_a_pull_of_blocks_that_follow_each_other(pulling: Linked) -> None:
    near, far, number, model = pulling.near, pulling.far, next(numbers), next(numbers)
    far.blocks(4, 100, 8192, model, number)
    ours = near.blocks(4, 100, 8192)
    assert near.pull_blocks(far.cluster_id, model, list(range(10, 90)), ours, list(range(80))) == "LLM_SUCCESS"
    assert near.holds_blocks(ours, {block: number + 10 + block for block in range(80)})


def test_a_pull_of_a_slot_into_blocks(pulling: Linked) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, 2, 4 * 4096)
    ours = near.blocks(2, 8, 4096)
    assert near.pull_slot_into_blocks(far.cluster_id, number, ours, [6, 1, 3, 2]) == "LLM_SUCCESS"
    assert not far.is_bound(number)
    assert near.pull_blocks(near.cluster_id, number, [0], ours, [1]) == "LLM_PARAM_INVALID", "our own cluster"
    assert near.holds(ours, 0, 0, 0)


@pytest.mark.parametrize("slot_bytes", [100, 4096, 70_000])
def test_many_keys_at_once(pulling: Linked, slot_bytes: int) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    far.bind(number, 2, slot_bytes, batch=64)
    wanted = [number + slot for slot in range(0, 64, 2)]
    codes, right = near.fetch_many(far.cluster_id, wanted, 2, slot_bytes)
    assert codes == [0] * 32 and right
    assert [far.is_bound(number + slot) for slot in range(4)] == [False, True, False, True]
    codes, right = near.fetch_many(far.cluster_id, [number + slot for slot in range(64)], 2, slot_bytes)
    assert codes[1::2] == [0] * 32 and 0 not in codes[::2] and right
    assert far.is_empty()


def test_what_cannot_be_pulled_is_said_and_changes_nothing(pulling: Linked) -> None:
    near, far, number = pulling.near, pulling.far, next(numbers)
    theirs = far.bind(number, 2, 5000, batch=2, kept=True)
    ours, small, other = near.allocate(2, 5000), near.allocate(2, 100), near.allocate(4, 5000)
    there = far.cluster_id
    assert near.pull(there, number + 2, ours) == "LLM_KV_CACHE_NOT_EXIST"
    assert near.pull_by_id(there, theirs + 1000, 0, ours) == "LLM_KV_CACHE_NOT_EXIST"
    assert near.pull_by_id(there, theirs, 2, ours) == "LLM_KV_CACHE_NOT_EXIST"
    assert near.pull(there, number, ours, 0, 5001) == "LLM_PARAM_INVALID"
    assert near.pull(there, number, other) == "LLM_PARAM_INVALID"
    assert near.pull(99, number, ours) == "LLM_NOT_YET_LINK"
    assert all(near.is_filled(cache_id, 0xEE) for cache_id in (ours, small, other))
    assert near.pull(there, number, small) == "LLM_SUCCESS", "so much of it as there is room for"
    assert far.is_bound(number + 1)


# --------------------------------------------------------------------------------------------------------------- pushes


@pytest.mark.parametrize(("tensors", "slot_bytes"), SIZES)
def test_a_push(pushing: Linked, tensors: int, slot_bytes: int) -> None:
    near, far, number = pushing.near, pushing.far, next(numbers)
    theirs = far.bind(number, tensors, slot_bytes, kept=True)
    ours = near.bind(number + 1, tensors, slot_bytes, kept=True)
    assert near.push(far.cluster_id, theirs, 0, ours) == "LLM_SUCCESS"
    assert far.holds(theirs, 0, number + 1)
    assert not far.is_bound(number), "a push releases the key of the slot"
    assert near.is_bound(number + 1)


@pytest.mark.parametrize("registered", ["source", "destination", "both"])
def test_a_push_of_registered_memory(pushing: Linked, registered: str) -> None:
    near, far, number = pushing.near, pushing.far, next(numbers)
    theirs = far.allocate(4, 100_000, registered=registered in ("destination", "both"))
    ours = near.bind(number, 4, 100_000, kept=True, registered=registered in ("source", "both"))
    assert near.push(far.cluster_id, theirs, 0, ours) == "LLM_SUCCESS"
    assert far.holds(theirs, 0, number)


def test_a_push_into_one_slot(pushing: Linked) -> None:
    near, far, number = pushing.near, pushing.far, next(numbers)
    theirs = far.allocate(2, 30_000, batch=3)
    ours = near.bind(number, 2, 20_000, batch=2, kept=True)
    assert near.push(far.cluster_id, theirs, 1, ours, 1) == "LLM_SUCCESS"
    assert far.holds(theirs, 1, number + 1, 20_000)
    assert far.holds(theirs, 0, 0, 0) and far.holds(theirs, 2, 0, 0)


@pytest.mark.parametrize(("tensors", "blocks", "block_bytes"), [(1, 4, 64), (8, 256, 4096), (2, 64, 65536)])
def test_a_push_of_scattered_blocks(pushing: Linked, tensors: int, blocks: int, block_bytes: int) -> None:
    near, far, number, model = pushing.near, pushing.far, next(numbers), next(numbers)
    order = random.Random(blocks)
    sources, targets = (order.sample(range(blocks), blocks // 2) for _ in range(2))
    theirs = far.blocks(tensors, blocks, block_bytes, model)
    ours = near.blocks(tensors, blocks, block_bytes, number=number)
    assert near.push_blocks(far.cluster_id, model, ours, sources, targets) == "LLM_SUCCESS"
    assert far.holds_blocks(theirs, {target: number + at for at, target in zip(sources, targets, strict=True)})


def test_what_cannot_be_pushed_is_said_and_changes_nothing(pushing: Linked) -> None:
    near, far, number = pushing.near, pushing.far, next(numbers)
    theirs, ours = far.allocate(2, 4000), near.bind(number, 2, 5000, kept=True)
    assert near.push(far.cluster_id, theirs, 0, ours) == "LLM_PARAM_INVALID"
    assert near.push(far.cluster_id, theirs + 1000, 0, ours) == "LLM_KV_CACHE_NOT_EXIST"
    assert near.push_blocks(far.cluster_id, number, near.blocks(1, 1, 64), [0], [0]) == "LLM_KV_CACHE_NOT_EXIST"
    assert far.is_filled(theirs, 0xEE)


# ------------------------------------------------------------------------------------------------------- layer by layer


@pytest.mark.parametrize("slot_bytes", [100, 50_000, 1 << 20])
@pytest.mark.parametrize("mode", ["two_sided", "remote"])
@pytest.mark.parametrize("sender", LINK_DIRECTIONS)
def test_a_cache_sent_layer_by_layer(
    request: pytest.FixtureRequest, places: object, eventually: Any, mode: str, sender: str, slot_bytes: int
) -> None:
    nodes = chosen(request.getfixturevalue(mode), sender)
    near, far, number = nodes.near, nodes.far, next(numbers)
    theirs = far.allocate(6, slot_bytes)
    ours = near.bind(number, 6, slot_bytes, kept=True)
    assert near.send(ours, far.cluster_id, theirs, far.addresses(theirs)) == ["LLM_SUCCESS"]
    assert far.holds(theirs, 0, number)
    assert near.is_bound(number), "nothing is released"
    nothing_is_left(nodes, eventually)


def test_an_address_of_nobody_is_refused(pulling: Linked) -> None:
    near, far = pulling.near, pulling.far
    ours = near.bind(next(numbers), 2, 1000, kept=True)
    assert near.send(ours, far.cluster_id, 0, [4096, 8192]) == ["LLM_PARAM_INVALID"]
