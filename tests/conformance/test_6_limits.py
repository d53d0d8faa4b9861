"""api §6: numeric limits, at both sides of each."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import INV, BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex
from rank_tables import rank_table

from conformance.world import World, by_id, info_of, link, placeholder, refused, request

LX = "LLM_PARAM_INVALID"


def test_slots_and_keys(world: World) -> None:
    """api §6: slots, keys per allocate: ≤ batch size."""
    node = world.node(1)
    desc = CacheDesc(1, (100, 8), "DT_UINT8")
    node.allocate_cache(desc, [request(number) for number in range(100)])
    with refused(LX):
        node.allocate_cache(desc, [request(number) for number in range(200, 301)])


@pytest.mark.parametrize("shape", [(1,), (1,) * 32])
def test_dimensions_of_a_shape(world: World, shape: tuple[int, ...]) -> None:
    """api §6: dimensions of a shape: 1..32."""
    node = world.node(1)
    node.allocate_cache(CacheDesc(1, shape, "DT_UINT8"))
    with refused(LX):
        node.allocate_cache(CacheDesc(1, (1,) * 33, "DT_UINT8"))


@pytest.mark.parametrize("shape", [(1, 0), (0, 1), (1, -1), (1, -(2**63)), (1, 2**62, 2), (2**32, 2**31)])
def test_tensor_size(world: World, shape: tuple[int, ...]) -> None:
    """api §6: dimension, tensor size: > 0, fits int64."""
    node = world.node(1)
    with refused(LX):
        node.allocate_cache(CacheDesc(1, shape, "DT_UINT8"))
    with refused("LLM_OUT_OF_MEMORY"):
        node.allocate_cache(CacheDesc(1, (1, 2**63 - 1), "DT_UINT8"))


def test_ids(world: World) -> None:
    """api §6: cluster_id, req_id, model_id, prefix_id: uint64; INV reserved in req_id and prefix_id."""
    server = world.node(INV)
    client = world.node(0)
    link(client, server)
    desc = CacheDesc(1, (2, 8), "DT_UINT8")
    server.allocate_cache(desc, [CacheKey(INV, INV - 1, INV, INV), CacheKey(INV, INV, INV, INV - 1)])
    server.allocate_cache(desc, [placeholder(INV)])
    assert server.live_keys() == 2
    ours = client.allocate_cache(CacheDesc(1, (1, 8), "DT_UINT8"))
    client.pull_cache(CacheKey(INV, INV - 1, INV), ours)
    client.pull_cache(CacheKey(INV, INV, INV, INV - 1), ours)


@pytest.mark.parametrize("cache_id", [2**63 - 1, 2**32])
@pytest.mark.parametrize("batch_index", [0, 2**32 - 1])
def test_cache_ids_and_batch_indices(world: World, cache_id: int, batch_index: int) -> None:
    """api §6: cache_id int64 ≥ 1, batch_index uint32."""
    prompt, decoder = world.pair()
    ours = decoder.allocate_cache(CacheDesc(1, (1, 8), "DT_UINT8"))
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, cache_id, batch_index), ours)
    with refused(LX):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, cache_id, batch_index), ours, 2**32 - 1)
    with refused("ValueError"):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, cache_id, batch_index), ours, 2**32)
    assert prompt.linked() == (2,)


@pytest.mark.parametrize(("index", "error"), [(4, LX), (2**32, LX), (2**64 - 1, LX)])
def test_block_indices(world: World, index: int, error: str) -> None:
    """api §6: block index: uint64."""
    prompt, decoder = world.pair()
    desc = CacheDesc(1, (4, 8), "DT_UINT8")
    prompt.allocate_blocks_cache(desc, BlocksCacheKey(1))
    ours = decoder.allocate_blocks_cache(desc)
    for lists in (([index], [0]), ([0], [index])):
        with refused(error):
            decoder.pull_blocks(BlocksCacheKey(1), ours, *lists)


def test_clusters_per_call(world: World) -> None:
    """api §6: clusters per link_clusters/unlink_clusters: 16, enforced."""
    node = world.node(1)
    info = info_of(world.node(2))
    for call in (node.link_clusters, node.unlink_clusters):
        assert call([info] * 17) == ("LLM_CLUSTER_NUM_EXCEED_LIMIT", [])
        assert len(call([info] * 16)[1]) == 16


def test_members_of_a_link(world: World) -> None:
    """api §6: members of a ``link``: 2..4."""
    node = world.node(1)
    with refused(LX):
        node.link("pool", {1: 0}, rank_table(1))
    with refused(LX, "can not be greater than 4"):
        node.link("pool", {number: number for number in range(5)}, rank_table(5))
    for count in (2, 3, 4):
        number = node.link(f"pool {count}", {1 + rank: rank for rank in range(count)}, rank_table(count))
        node.unlink(number)


def test_comm_name(world: World) -> None:
    """api §6: comm_name: 1..127 characters."""
    node = world.node(1)
    for name in ("x", "x" * 127):
        node.unlink(node.link(name, {1: 0, 2: 1}, rank_table(2)))
    for name in ("", "x" * 128):
        with refused(LX):
            node.link(name, {1: 0, 2: 1}, rank_table(2))


@pytest.mark.parametrize(("timeout", "good"), [("1", True), (str(2**31 - 1), True), ("0", False), (str(2**31), False)])
def test_sync_kv_timeout(world: World, timeout: str, good: bool) -> None:
    """api §6: sync_kv_timeout: > 0, int32."""
    options = {"llm.EnableCacheManager": "1", "llm.SyncKvCacheWaitTime": timeout}
    if good:
        world.start(1).init(options)
    else:
        with refused(LX):
            world.start(1).init(options)


@pytest.mark.parametrize(
    ("timeout", "error"), [(1, None), (2**31 - 1, None), (0, LX), (-1, LX), (2**31, "ValueError"), (-(2**31), LX)]
)
def test_link_timeout(world: World, timeout: int, error: str | None) -> None:
    """api §6: link/unlink timeout: > 0, int32."""
    server, client = world.node(1), world.node(2)
    for call in (client.link_clusters, client.unlink_clusters):
        if error is None:
            assert call([info_of(server)], timeout)[0] in ("LLM_SUCCESS", "LLM_TIMEOUT")
        else:
            with refused(error):
                call([info_of(server)], timeout)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("LinkTotalTime", ["0", str(2**32 - 1)], ["-1", str(2**32)]),
        ("LinkRetryCount", ["1", "100"], ["0", "101"]),
    ],
)
def test_link_total_time_and_retries(world: World, key: str, good: list[str], bad: list[str]) -> None:
    """api §6: link_total_time / retry: 0..2**32-1 s / 1..100."""
    for text in good:
        world.node(len(world.nodes) + 1, **{key: text})
    for text in bad:
        with refused(LX):
            world.node(len(world.nodes) + 1, **{key: text})


@pytest.mark.parametrize(("shift", "good"), [(9, False), (10, True), (30, True), (31, False)])
def test_page_shift(world: World, shift: int, good: bool) -> None:
    """api §6: page_shift: 10..30; memory_size at least one page."""
    options: dict[str, Any] = {"device_bytes": 1 << 10 if shift == 10 else 1 << shift, "page_shift": shift}
    if good:
        assert world.node(1, host_bytes=None, **options).usage() == (1 << shift, 1 << shift, 1 << shift)
        with refused(LX):
            world.node(2, host_bytes=None, device_bytes=(1 << shift) - 1, page_shift=shift)
    else:
        with refused(LX):
            world.node(1, host_bytes=None, **options)


@pytest.mark.parametrize("tnpl", [1, 2, 3, 4])
def test_default_tnpl(world: World, tnpl: int) -> None:
    """api §6: default tnpl 2."""
    prompt, decoder = world.pair()
    desc = CacheDesc(12, (1, 8), "DT_UINT8")
    theirs, ours = prompt.fill(prompt.allocate_cache(desc), 1), decoder.fill(decoder.allocate_cache(desc), 2)
    before = decoder.contents(ours)
    keywords = {} if tnpl == 2 else {"tensor_num_per_layer": tnpl}
    decoder.pull_cache(by_id(theirs), ours, src_layer_range=range(1), dst_layer_range=range(1), **keywords)
    assert decoder.contents(ours) == prompt.contents(theirs)[:tnpl] + before[tnpl:]


def test_many_tensors_and_runs(library: Any) -> None:
    """api §6: the original's limits of tensors and runs are not reproduced."""
    prompt, decoder = library.pair(device_bytes=1 << 24, page_shift=10)
    desc = CacheDesc(2100, (1, 8), "DT_UINT8")
    theirs, ours = prompt.fill(prompt.allocate_cache(desc), 1), decoder.allocate_cache(desc)
    decoder.pull_cache(by_id(theirs), ours)
    assert decoder.contents(ours) == prompt.contents(theirs)
    blocks = CacheDesc(1, (10_000, 8), "DT_UINT8")
    there = prompt.fill(prompt.allocate_blocks_cache(blocks, BlocksCacheKey(1)), 2)
    here = decoder.allocate_blocks_cache(blocks)
    order = list(range(10_000))
    decoder.pull_blocks(BlocksCacheKey(1), here, order, order[::-1])
    content = prompt.contents(there)[0]
    reversed_blocks = b"".join(content[at : at + 8] for at in range(len(content) - 8, -8, -8))
    assert decoder.contents(here) == [reversed_blocks]
