"""api §5D: departures from the original, D48 to D55: registration and pools."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc
from rank_tables import rank_table

import llmdd
from conformance.world import World, by_id, link, options_of, refused, request

LX, NOT_EXIST = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST"
C = CacheDesc(2, (1, 16), "DT_UINT8")


def test_d48_no_limit_of_240_addresses(world: World) -> None:
    """api D48: register_cache plus register_blocks_cache: no limit on the number of addresses."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(4096)
    caches = [prompt.register_cache(C, [address, address + 16]) for _ in range(200)]
    caches += [prompt.register_blocks_cache(C, [address, address + 16]) for _ in range(200)]
    assert prompt.live_caches() == 400
    decoder.pull_cache(by_id(caches[199]), decoder.allocate_cache(C))


def test_d49_same_memory_registered_twice(world: World) -> None:
    """api D49: counted: unregistering the first leaves the access of the second."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(4096)
    first, second = (prompt.register_cache(C, [address, address + 16]) for _ in range(2))
    ours = decoder.allocate_cache(C)
    prompt.unregister_cache(first.cache_id)
    decoder.pull_cache(by_id(second), ours)
    with refused(NOT_EXIST):
        decoder.pull_cache(by_id(first), ours)


def test_d50_unregistering_is_always_allowed(world: World) -> None:
    """api D50: without local_comm_res and under a live link."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(4096)
    cache = prompt.register_cache(C, [address, address + 16], [request(1)])
    prompt.unregister_cache(cache.cache_id)
    prompt.free_memory(address)
    with refused(NOT_EXIST):
        decoder.pull_cache(request(1), decoder.allocate_cache(C))


def test_d51_registering_after_linking(world: World) -> None:
    """api D51: after link_clusters registration works; the rule applies while a ``link()`` communicator lives."""
    prompt, decoder = world.pair(remote=True)
    address = prompt.own_memory(4096)
    addrs = [address, address + 16]
    cache = prompt.register_cache(C, addrs, remote_accessible=True)
    decoder.pull_cache(by_id(cache), decoder.allocate_cache(C))
    number = prompt.link("pool", {1: 0, 9: 1}, rank_table(2))
    with refused(LX, "register remote accessible cache after link"):
        prompt.register_cache(C, addrs, remote_accessible=True)
    prompt.unlink(number)
    cache = prompt.register_cache(C, addrs, remote_accessible=True)
    decoder.pull_cache(by_id(cache), decoder.allocate_cache(C))


@pytest.mark.parametrize("text", ['[{"memory_size": 65536}]', "[65536]"])
def test_d52_a_pool_is_an_object(world: World, text: str) -> None:
    """api D52: the pool's JSON is an object, not an array."""
    node = world.start(1)
    with refused(LX):
        node.init({"llm.EnableCacheManager": "1", "llm.MemPoolConfig": text})
    node.init({"llm.EnableCacheManager": "1", "llm.MemPoolConfig": '{"memory_size": 65536}'})


@pytest.mark.parametrize("shift", [1, 7, 13])
def test_d53_no_alignment_demand(world: World, shift: int) -> None:
    """api D53: no 2 MB alignment, nor any other: memory is registered wherever it lies."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(4096) + shift
    prompt.write(address, b"not aligned here" * 2)
    cache = prompt.register_cache(C, [address, address + 16])
    ours = decoder.allocate_cache(C)
    decoder.pull_cache(by_id(cache), ours)
    assert decoder.contents(ours) == [b"not aligned here"] * 2


@pytest.mark.parametrize(("dimensions", "good"), [(1, True), (31, True), (32, True), (33, False)])
def test_d54_rank_of_a_shape(world: World, dimensions: int, good: bool) -> None:
    """api D54: 1..32 dimensions, when allocating and when registering."""
    node = world.node(1)
    address = node.own_memory(4096)
    desc = CacheDesc(1, (2,) + (1,) * (dimensions - 1), "DT_UINT8")
    calls = (
        lambda: node.allocate_cache(desc),
        lambda: node.allocate_blocks_cache(desc),
        lambda: node.register_cache(desc, [address]),
        lambda: node.register_blocks_cache(desc, [address]),
    )
    for call in calls:
        if good:
            call()
        else:
            with refused(LX):
                call()


def test_d55_option_ranges(library: Any) -> None:
    """api D55: rdma_* any uint32; device_id defaults to 0, several fail at init; link_total_time up to 2**32 - 1."""
    config = llmdd.LLMConfig()
    config.enable_cache_manager = True
    config.rdma_traffic_class = 257
    config.rdma_service_level = 2**32 - 1
    config.link_total_time = 2**32 - 1
    library.start(1).init(config.generate_options())
    config.device_id = [0, 1]
    with refused(LX):
        library.start(2).init(config.generate_options())
    config.device_id = [3]
    library.start(3).init(config.generate_options())


def test_5d_registered_and_allocated_side_by_side(world: World) -> None:
    """api §5D: registering takes nothing from the pools, with or without one."""
    node = world.start(1)
    node.init(options_of(device_bytes=None, host_bytes=None))
    address = node.own_memory(4096)
    node.register_cache(C, [address, address + 16], [request(1)])
    node.register_blocks_cache(C, [address, address + 16], BlocksCacheKey(1))
    assert (node.live_caches(), node.live_keys(), node.usage()) == (2, 2, (0, 0, 0))
    link(world.node(2), node)
