"""api §3.10: memory pools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc

from conformance.world import Node, World, outcome, refused, request

LX, FULL = "LLM_PARAM_INVALID", "LLM_OUT_OF_MEMORY"
PAGE = 4096


def with_pool(world: World, pool: Any, key: str = "llm.MemPoolConfig") -> Node:
    node = world.start(1)
    node.init({"llm.EnableCacheManager": "1", key: pool if isinstance(pool, str) else json.dumps(pool)})
    return node


def pages(count: int, tensors: int = 1, placement: str = "DEVICE") -> CacheDesc:
    return CacheDesc(tensors, (1, count * PAGE), "DT_UINT8", placement)


@pytest.mark.parametrize(
    ("pool", "usage"),
    [
        ({"memory_size": 1 << 20}, (1 << 20, 1 << 20, 1 << 16)),
        ({"memory_size": 1 << 16}, (1 << 16, 1 << 16, 1 << 16)),
        ({"memory_size": 1 << 20, "page_shift": 10}, (1 << 20, 1 << 20, 1 << 10)),
        ({"memory_size": 1 << 30, "page_shift": 30}, (1 << 30, 1 << 30, 1 << 30)),
        ({"memory_size": (1 << 16) + 4095, "page_shift": 12}, (1 << 16, 1 << 16, 1 << 12)),
        ({"memory_size": 1 << 16, "unknown": [1], "other": None}, (1 << 16, 1 << 16, 1 << 16)),
    ],
)
@pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
def test_size_and_pages(world: World, pool: dict[str, Any], usage: tuple[int, int, int], placement: str) -> None:
    """api §3.10: ``memory_size``, ``page_shift`` (default 16); capacity in whole pages; unknown members ignored."""
    key = "llm.MemPoolConfig" if placement == "DEVICE" else "llm.HostMemPoolConfig"
    assert with_pool(world, pool, key).usage(placement) == usage


@pytest.mark.parametrize(
    "pool",
    [
        "",
        "x",
        "[]",
        "5",
        '"text"',
        "null",
        "{}",
        '{"memory_size": 1048576',
        {"page_shift": 16},
        {"memory_size": 0},
        {"memory_size": -1},
        {"memory_size": 1048576.0},
        {"memory_size": True},
        {"memory_size": "1048576"},
        {"memory_size": None},
        {"memory_size": [1048576]},
        {"memory_size": 1 << 20, "page_shift": 9},
        {"memory_size": 1 << 32, "page_shift": 31},
        {"memory_size": 1 << 20, "page_shift": -1},
        {"memory_size": 1 << 20, "page_shift": 16.0},
        {"memory_size": 1 << 20, "page_shift": "16"},
        {"memory_size": 1 << 20, "page_shift": None},
        {"memory_size": 1 << 20, "page_shift": True},
        {"memory_size": (1 << 16) - 1},
        {"memory_size": 1023, "page_shift": 10},
        {"memory_size": (2**32 - 1) << 10, "page_shift": 10},
        {"memory_size": 2**64},
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["llm.MemPoolConfig", "llm.HostMemPoolConfig"])
def test_anything_else(world: World, key: str, pool: Any) -> None:
    """api §3.10: anything else is LX at init; too few or too many pages too (D52)."""
    with refused(LX):
        with_pool(world, pool, key)


def test_each_placement_has_its_pool(world: World) -> None:
    """api §3.10: ``mem_pool_cfg`` serves DEVICE, ``host_mem_pool_cfg`` HOST caches; no fallback between them."""
    node = world.node(1, device_bytes=PAGE, host_bytes=2 * PAGE)
    node.allocate_cache(pages(1))
    with refused(FULL):
        node.allocate_cache(pages(1))
    node.allocate_cache(pages(2, placement="HOST"))
    with refused(FULL):
        node.allocate_cache(pages(1, placement="HOST"))
    assert (node.usage("DEVICE")[1], node.usage("HOST")[1]) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "placement"), [({"device_bytes": None}, "DEVICE"), ({"host_bytes": None}, "HOST")]
)
def test_without_a_pool(world: World, settings: dict[str, Any], placement: str) -> None:
    """api §3.10, seed §12: no pool for that placement: LX, for C and for B caches."""
    node = world.node(1, **settings)
    desc = pages(1, placement=placement)
    with refused(LX, "you should config memory pool firstly"):
        node.allocate_cache(desc)
    with refused(LX, "you should config memory pool firstly"):
        node.allocate_blocks_cache(desc)
    assert node.usage(placement) == (0, 0, 0)


@pytest.mark.parametrize(("tensor_bytes", "taken"), [(1, 1), (PAGE - 1, 1), (PAGE, 1), (PAGE + 1, 2)])
def test_tensors_are_rounded_up_to_pages(world: World, tensor_bytes: int, taken: int) -> None:
    """api §3.10: each tensor is one allocation, rounded up to whole pages (at least one)."""
    node = world.node(1)
    total = node.usage()[1]
    node.allocate_cache(CacheDesc(3, (1, tensor_bytes), "DT_UINT8"))
    assert node.usage()[1] == total - 3 * taken * PAGE


def test_the_whole_capacity_can_be_used(world: World) -> None:
    """api §3.10: usable capacity is ``floor(memory_size / page)`` pages."""
    node = world.node(1, device_bytes=5 * PAGE + 100)
    node.allocate_cache(pages(1, 5))
    with refused(FULL):
        node.allocate_cache(CacheDesc(1, (1, 1), "DT_UINT8"))


def test_fragments(world: World) -> None:
    """api §3.10: one contiguous run of pages for a tensor: OUT_OF_MEMORY in a fragmented pool; neighbours merge."""
    node = world.node(1, device_bytes=6 * PAGE)
    caches = [node.allocate_cache(pages(1)) for _ in range(6)]
    for cache in caches[::2]:
        node.deallocate_cache(cache)
    with refused(FULL):
        node.allocate_cache(pages(2))
    assert node.usage()[1] == 3 * PAGE
    node.allocate_cache(pages(1, 3))
    for cache in caches[1:4:2]:
        node.deallocate_cache(cache)
    assert outcome(lambda: node.allocate_cache(pages(3))) == FULL
    node.deallocate_cache(caches[5])
    with refused(FULL):
        node.allocate_cache(pages(2))


def test_neighbours_are_merged(world: World) -> None:
    """api §3.10: freed neighbours are merged."""
    node = world.node(1, device_bytes=4 * PAGE)
    caches = [node.allocate_cache(pages(1)) for _ in range(4)]
    for number in (2, 0, 3, 1):
        node.deallocate_cache(caches[number])
    node.allocate_cache(pages(4))


def test_a_failed_allocation_returns_every_page(world: World) -> None:
    """api §3.10: a failed allocate returns every page it took."""
    node = world.node(1, device_bytes=5 * PAGE)
    node.allocate_cache(pages(1))
    for desc in (pages(1, 5), pages(3, 2), pages(2, 3)):
        with refused(FULL):
            node.allocate_cache(desc, [request(1)])
        with refused(FULL):
            node.allocate_blocks_cache(desc)
        assert (node.usage()[1], node.live_caches(), node.live_keys()) == (4 * PAGE, 1, 0)
    node.allocate_cache(pages(1, 4), [request(1)])


def test_memory_is_reusable_at_once(world: World) -> None:
    """api §3.10: memory of a drained cache is reusable as soon as its last reference and transfer are gone."""
    prompt, decoder = world.pair(device_bytes=2 * PAGE, host_bytes=2 * PAGE)
    ours = decoder.allocate_cache(pages(1, 2, "HOST"))
    for number in range(10):
        cache = prompt.allocate_cache(pages(1, 2), [request(number)])
        prompt.deallocate_cache(cache)
        with refused(FULL):
            prompt.allocate_cache(pages(1, 2))
        decoder.pull_cache(request(number), ours)
