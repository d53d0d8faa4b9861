"""api §3.8: copy_cache, copy_blocks, swap_blocks."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc

from conformance.scene import Scene
from conformance.world import Node, World, refused, request

LX, NOT_EXIST = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST"
DEVICE_B = CacheDesc(2, (4, 32), "DT_UINT8")
HOST_B = CacheDesc(2, (6, 32), "DT_UINT8", "HOST")


def c_desc(slots: int = 2, slot_bytes: int = 64, tensors: int = 2) -> CacheDesc:
    return CacheDesc(tensors, (slots, slot_bytes), "DT_UINT8")


def two_caches(world: World, there: int = 64, here: int = 64) -> tuple[Node, Any, Any]:
    """A destination and a source with slots of so many bytes."""
    node = world.node(1)
    return node, node.fill(node.allocate_cache(c_desc(2, there)), 1), node.fill(node.allocate_cache(c_desc(3, here)), 2)


@pytest.mark.parametrize(
    ("arguments", "at", "origin", "length"),
    [
        ((), 0, 0, 64),
        ((1, 2), 64, 128, 64),
        ((1, 2, 10), 74, 138, 54),
        ((0, 1, 0, 5), 0, 64, 5),
        ((0, 1, 63, 1), 63, 127, 1),
        ((1, 0, 8, 8), 72, 8, 8),
    ],
)
def test_copy_cache(world: World, arguments: tuple[int, ...], at: int, origin: int, length: int) -> None:
    """api §3.8: copy_cache: ``size`` -1 = source slot bytes - offset; the same ``offset`` applies to both sides."""
    node, dst, src = two_caches(world)
    before, source = node.contents(dst), node.contents(src)
    node.copy_cache(dst, src, *arguments)
    expected = [
        then[:at] + there[origin : origin + length] + then[at + length :]
        for then, there in zip(before, source, strict=True)
    ]
    assert node.contents(dst) == expected
    assert node.contents(src) == source


def test_copy_cache_within_one_cache(world: World) -> None:
    """api §3.8: both caches may be the same."""
    node, dst, _ = two_caches(world)
    node.copy_cache(dst, dst, 1, 0)
    assert all(tensor[:64] == tensor[64:] for tensor in node.contents(dst))


def test_copy_cache_into_a_larger_slot(world: World) -> None:
    """api §3.8: ``size`` -1 is the source slot's bytes, the rest of a larger destination slot is unchanged."""
    node, dst, src = two_caches(world, 80, 64)
    before = node.contents(dst)
    node.copy_cache(dst, src)
    assert [tensor[64:] for tensor in node.contents(dst)] == [tensor[64:] for tensor in before]


@pytest.mark.parametrize(
    ("there", "here", "arguments"),
    [
        (64, 64, (2, 0)),
        (64, 64, (0, 3)),
        (64, 64, (0, 0, 64)),
        (64, 64, (0, 0, 64, 1)),
        (32, 64, (0, 0, 32, 1)),
        (64, 32, (0, 0, 32, 1)),
        (64, 64, (0, 0, 2**64 - 1, 1)),
        (64, 64, (0, 0, 0, 65)),
        (64, 64, (0, 0, 60, 5)),
        (64, 64, (0, 0, 1, 2**63 - 1)),
        (32, 64, ()),
        (32, 64, (0, 0, 1)),
        (64, 32, (0, 0, 0, 33)),
    ],
)
def test_copy_cache_that_does_not_fit(world: World, there: int, here: int, arguments: tuple[int, ...]) -> None:
    """api §3.8: slots in range; offset < both slot bytes; size + offset ≤ both slot bytes; else LX."""
    node, dst, src = two_caches(world, there, here)
    before = node.contents(dst)
    with refused(LX):
        node.copy_cache(dst, src, *arguments)
    assert node.contents(dst) == before


def test_copy_cache_needs_equal_num_tensors(world: World) -> None:
    """api §3.8: equal num_tensors, else LX."""
    node = world.node(1)
    one, two = (node.allocate_cache(c_desc(tensors=tensors)) for tensors in (1, 2))
    for dst, src in ((one, two), (two, one)):
        with refused(LX):
            node.copy_cache(dst, src)


def test_copy_cache_of_unknown_ids(two_sided: Scene) -> None:
    """api §3.8: both ids known, else LX(KV_CACHE_NOT_EXIST)."""
    ours = two_sided.ours
    for unknown in (ours.gone, ours.unregistered, two_sided.theirs.c):
        for pair in ((unknown, ours.c), (ours.c, unknown)):
            with refused(NOT_EXIST):
                two_sided.here.copy_cache(*pair, 99)


@pytest.mark.parametrize("req_id", [None, 0, 5, 2**64 - 1])
def test_req_id_is_only_for_logs(world: World, req_id: int | None) -> None:
    """api §3.8: ``req_id`` is only for logs."""
    node, dst, src = two_caches(world)
    node.copy_cache(dst, src, req_id=req_id)
    assert node.live_keys() == 0


def test_copy_cache_of_every_kind(two_sided: Scene) -> None:
    """api §3.8: allocated and registered caches, HOST and DEVICE, keyed or not; keys are unaffected."""
    node, ours = two_sided.here, two_sided.ours
    keys = node.live_keys()
    for src in (ours.c, ours.host_c, ours.registered):
        for dst in (ours.unkeyed, ours.host_c, ours.registered, ours.closed):
            node.copy_cache(dst, src, 1, 0)
    assert node.live_keys() == keys
    assert node.read(ours.addrs[0] + 96, 96) == node.read(ours.addrs[0], 96)


# --------------------------------------------------------------------------------------------------------- copy_blocks


def blocks_of(node: Node, cache: Any, block_bytes: int = 32) -> list[list[bytes]]:
    return [
        [tensor[at : at + block_bytes] for at in range(0, len(tensor), block_bytes)] for tensor in node.contents(cache)
    ]


def test_copy_blocks(world: World) -> None:
    """api §3.8: copy_blocks: within one B cache, ``{src: [dst, ...]}``."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(CacheDesc(2, (6, 32), "DT_UINT8"), BlocksCacheKey(1)), 1)
    before = blocks_of(node, cache)
    node.copy_blocks(cache, {0: [3, 5], 2: [1], 4: []})
    assert blocks_of(node, cache) == [[b[0], b[2], b[2], b[0], b[4], b[0]] for b in before]
    assert node.live_keys() == 1


def test_copy_blocks_in_dict_order(world: World) -> None:
    """api §3.8: pairs are applied in dict order."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(DEVICE_B), 1)
    before = blocks_of(node, cache)
    node.copy_blocks(cache, {1: [0], 2: [0, 0]})
    assert blocks_of(node, cache) == [[b[2], b[1], b[2], b[3]] for b in before]


def test_copy_blocks_empty(world: World) -> None:
    """api §3.8: empty dict: no-op."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(DEVICE_B), 1)
    before = node.contents(cache)
    node.copy_blocks(cache, {})
    node.copy_blocks(cache, {0: []})
    node.copy_blocks(cache, {2: [2]})
    assert node.contents(cache) == before


@pytest.mark.parametrize("info", [{0: [1], 4: [2]}, {0: [1, 4]}, {0: [1], 2**63: [1]}, {0: [2**64]}, {4: []}])
def test_copy_blocks_out_of_range(world: World, info: dict[int, list[int]]) -> None:
    """api §3.8: all indices < number of blocks, else LX, checked before any copy (D35)."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(DEVICE_B), 1)
    before = node.contents(cache)
    try:
        with refused(LX):
            node.copy_blocks(cache, info)
    except AssertionError:
        with refused("ValueError"):  # no block index at all (§2.5)
            node.copy_blocks(cache, info)
        assert max(max([key, *value]) for key, value in info.items()) >= 2**64
    assert node.contents(cache) == before


@pytest.mark.parametrize("info", [{-1: [0]}, {0: [-1]}])
def test_copy_blocks_negative(world: World, info: dict[int, list[int]]) -> None:
    """api §3.8, §2.5: a negative index: TE or VE."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(DEVICE_B), 1)
    before = node.contents(cache)
    try:
        with refused("ValueError"):
            node.copy_blocks(cache, info)
    except AssertionError:
        with refused("TypeError"):
            node.copy_blocks(cache, info)
    assert node.contents(cache) == before


# --------------------------------------------------------------------------------------------------------- swap_blocks


def swapping(world: World) -> tuple[Node, Any, Any]:
    """Blocks in a pool, and the caller's own host memory."""
    node = world.node(1)
    device = node.fill(node.allocate_blocks_cache(DEVICE_B, BlocksCacheKey(1)), 1)
    address = node.own_memory(1 << 13)
    node.write(address, b"host" * 2048)
    return node, device, node.create_cpu_cache(HOST_B, [address, address + 4096])


def host_blocks(node: Node, cpu: Any) -> list[list[bytes]]:
    return [[node.read(address + 32 * block, 32) for block in range(6)] for address in node.tensor_addrs(cpu)]


def test_swap_out_and_in(world: World) -> None:
    """api §3.8: swap_blocks: a one-way copy of blocks src → dst, with a ``create_cpu_cache`` object as partner."""
    node, device, cpu = swapping(world)
    before, host = blocks_of(node, device), host_blocks(node, cpu)
    node.swap_blocks(device, cpu, {0: 5, 3: 1})
    assert blocks_of(node, device) == before
    after = [[h[0], b[3], h[2], h[3], h[4], b[0]] for h, b in zip(host, before, strict=True)]
    assert host_blocks(node, cpu) == after
    node.swap_blocks(cpu, device, {5: 1, 0: 2})
    assert host_blocks(node, cpu) == after
    assert blocks_of(node, device) == [[b[0], b[0], h[0], b[3]] for h, b in zip(host, before, strict=True)]
    assert node.live_keys() == 1


def test_swap_between_pools(world: World) -> None:
    """api §3.8: swap_blocks between a HOST and a DEVICE cache of the pools, and of registered memory."""
    node, device, _ = swapping(world)
    host = node.fill(node.allocate_blocks_cache(HOST_B), 2)
    address = node.own_memory(1 << 13)
    registered = node.register_blocks_cache(HOST_B, [address, address + 4096])
    expected = blocks_of(node, host)
    node.swap_blocks(host, device, {4: 0})
    node.swap_blocks(device, registered, {0: 2})
    assert [node.read(at + 64, 32) for at in (address, address + 4096)] == [blocks[4] for blocks in expected]


def test_swap_nothing(world: World) -> None:
    """api §3.8: an empty dict moves nothing."""
    node, device, cpu = swapping(world)
    before = node.contents(device), host_blocks(node, cpu)
    node.swap_blocks(device, cpu, {})
    assert (node.contents(device), host_blocks(node, cpu)) == before


def test_swap_of_a_deallocated_cache(world: World) -> None:
    """api §3.8: a deallocated cache (no addresses): LX."""
    node, device, cpu = swapping(world)
    host = host_blocks(node, cpu)
    node.deallocate_blocks_cache(device)
    for pair in ((device, cpu), (cpu, device)):
        with refused(LX):
            node.swap_blocks(*pair, {0: 0})
    assert host_blocks(node, cpu) == host


def test_swap_checks_before_it_copies(world: World) -> None:
    """api §3.8, §2.5: every index in range, equal block bytes and num_tensors; nothing moves otherwise."""
    node, device, cpu = swapping(world)
    address = node.own_memory(1 << 13)
    addrs = [address, address + 4096]
    larger = node.create_cpu_cache(CacheDesc(2, (4, 33), "DT_UINT8", "HOST"), addrs)
    fewer = node.create_cpu_cache(CacheDesc(1, (4, 32), "DT_UINT8", "HOST"), addrs[:1])
    before = node.contents(device), host_blocks(node, cpu), node.read(address, 1 << 13)
    with refused(LX, "must be equal"):
        node.swap_blocks(device, larger, {9: 9})
    with refused(LX):
        node.swap_blocks(device, fewer, {9: 9})
    with refused(LX, "must be in [0,"):
        node.swap_blocks(device, cpu, {0: 0, 4: 1})
    with refused(LX, "must be in [0,"):
        node.swap_blocks(device, cpu, {0: 0, 1: 6})
    assert (node.contents(device), host_blocks(node, cpu), node.read(address, 1 << 13)) == before


def test_swap_of_unmapped_memory(world: World) -> None:
    """api §3.8: memory that has gone gives LX and nothing else."""
    node, device, cpu = swapping(world)
    before = node.contents(device)
    node.free_memory(node.tensor_addrs(cpu)[0])
    for pair in ((device, cpu), (cpu, device)):
        with refused(LX):
            node.swap_blocks(*pair, {0: 0})
    assert node.contents(device) == before
    node.allocate_cache(c_desc(), [request(1)])
