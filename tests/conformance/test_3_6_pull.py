"""api §3.6: the engine's checks of a pull, in their order."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex

from conformance.scene import B, C, Scene
from conformance.world import by_id, in_time, info_of, prefix, refused, request

LX, NOT_EXIST, NOT_LINKED = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST", "LLM_NOT_YET_LINK"
NOWHERE = CacheKeyByIdAndIndex(9, 1)


def test_1_own_cluster(two_sided: Scene) -> None:
    """api §3.6 (1): key.cluster_id == own cluster_id: LX ``own cluster``, before the local id."""
    scene = two_sided
    for key in (CacheKeyByIdAndIndex(2, 1), CacheKey(2, 30)):
        for cache in (scene.ours.c, scene.ours.gone):
            with refused(LX, "own cluster"):
                scene.here.pull_cache(key, cache)
        with refused(LX, "own cluster"):
            scene.here.pull_blocks(key, scene.ours.gone_b, (), [0])
    with refused(LX, "own cluster"):
        scene.here.pull_blocks(BlocksCacheKey(2, 30), scene.ours.gone_b, [0], [0])


def test_2_local_id_unknown(two_sided: Scene) -> None:
    """api §3.6 (2): local id unknown (deallocated, unregistered, -1): LX(KV_CACHE_NOT_EXIST), before the rest."""
    scene = two_sided
    for cache in (scene.ours.gone, scene.ours.unregistered, scene.theirs.c):
        with refused(NOT_EXIST):
            scene.here.pull_cache(NOWHERE, cache, batch_index=9, size=1 << 40)
    for cache in (scene.ours.gone_b, scene.ours.cpu, scene.theirs.b):
        with refused(NOT_EXIST):
            scene.here.pull_blocks(NOWHERE, cache, (), [99])


@pytest.mark.parametrize("arguments", [(2,), (2**32 - 1,), (0, 97), (0, 2**63 - 1)])
def test_3_local_bounds(two_sided: Scene, arguments: tuple[int, ...]) -> None:
    """api §3.6 (3): ``batch_index`` < local batch size; ``size`` ≤ local slot bytes; before the link."""
    scene = two_sided
    with refused(LX):
        scene.here.pull_cache(NOWHERE, scene.ours.c, *arguments)


@pytest.mark.parametrize(
    "ranges",
    [
        {"dst_layer_range": range(2, 3)},
        {"src_layer_range": range(1)},
        {"dst_layer_range": range(1), "src_layer_range": range(2)},
        {"tensor_num_per_layer": 5},
        {"dst_layer_range": range(1), "src_layer_range": range(1), "tensor_num_per_layer": 3},
    ],
)
def test_4_ranges_on_the_local_side(two_sided: Scene, ranges: dict[str, Any]) -> None:
    """api §3.6 (4): range rules of 3.5 on the local side: LX, before the link."""
    scene = two_sided
    if set(ranges) == {"src_layer_range"}:
        with refused(LX):  # the whole of 4 tensors against 2: on the local side too
            scene.here.pull_cache(NOWHERE, scene.ours.c, **ranges)
        return
    if set(ranges) == {"dst_layer_range"}:
        with refused(LX):
            scene.here.pull_blocks(NOWHERE, scene.ours.b, (), [0], **ranges)
    with refused(LX):
        scene.here.pull_cache(NOWHERE, scene.ours.c, **ranges)


def test_5_not_linked(two_sided: Scene) -> None:
    """api §3.6 (5): no link to that cluster: LX(NOT_YET_LINK), before block lists and anything remote."""
    scene = two_sided
    with refused(NOT_LINKED):
        scene.here.pull_cache(NOWHERE, scene.ours.c)
    with refused(NOT_LINKED):
        scene.here.pull_blocks(NOWHERE, scene.ours.b, (), [99, 0, 0, 0, 0])
    with refused(NOT_LINKED):
        scene.here.pull_blocks(BlocksCacheKey(9), scene.ours.b, [0, 1], [99])
    scene.here.unlink_clusters([info_of(scene.there)])
    with refused(NOT_LINKED):
        scene.here.pull_cache(by_id(scene.theirs.c), scene.ours.c)


@pytest.mark.parametrize(
    ("key", "src", "dst"),
    [
        (BlocksCacheKey(1, 99), [0, 1], [0]),
        (BlocksCacheKey(1, 99), [0], [4]),
        (request(99), [], [4]),
    ],
)
def test_6_block_lists(two_sided: Scene, key: Any, src: list[int], dst: list[int]) -> None:
    """api §3.6 (6): block list lengths and local block indices: LX, before anything remote."""
    scene = two_sided
    with refused(LX):
        scene.here.pull_blocks(key, scene.ours.b, src, dst)


@pytest.mark.parametrize(
    "key",
    [
        request(99),
        prefix(99),
        request(10, 1),
        CacheKeyByIdAndIndex(1, 0),
        CacheKeyByIdAndIndex(1, -1),
        CacheKeyByIdAndIndex(1, -(2**63)),
        CacheKeyByIdAndIndex(1, 999),
        CacheKeyByIdAndIndex(1, 2**63 - 1),
    ],
)
def test_7_unknown_remotely(two_sided: Scene, key: Any) -> None:
    """api §3.6 (7): remote cache or key unknown, ``cache_id`` < 1 (D28): LX(KV_CACHE_NOT_EXIST)."""
    scene = two_sided
    with refused(NOT_EXIST):
        scene.here.pull_cache(key, scene.ours.c)
    with refused(NOT_EXIST):
        scene.here.pull_blocks(key, scene.ours.b, (), [0, 1, 2])


def test_7_gone_remotely(two_sided: Scene) -> None:
    """api §3.6 (7): a remote cache that was deallocated or unregistered is unknown, and so are its keys."""
    scene = two_sided
    for key in (by_id(scene.theirs.gone), by_id(scene.theirs.unregistered), request(14)):
        with refused(NOT_EXIST):
            scene.here.pull_cache(key, scene.ours.c)
    for key in (BlocksCacheKey(1, 11), BlocksCacheKey(1, 99)):
        with refused(NOT_EXIST):
            scene.here.pull_blocks(key, scene.ours.b, [0], [0])


@pytest.mark.parametrize("index", [2, 3, 2**32 - 1])
def test_7_slot_index_beyond_the_remote_batch(two_sided: Scene, index: int) -> None:
    """api §3.6 (7): slot index ≥ remote batch size: LX(**KV_CACHE_NOT_EXIST**), not PARAM_INVALID."""
    scene = two_sided
    with refused(NOT_EXIST):
        scene.here.pull_cache(by_id(scene.theirs.c, index), scene.ours.c)
    with refused(NOT_EXIST):
        scene.here.pull_blocks(by_id(scene.theirs.c, index), scene.ours.b, (), [0])


def test_8_remote_sizes(two_sided: Scene) -> None:
    """api §3.6 (8): remote tensor count, kind, block indices, slot bytes, tensor range: LX."""
    scene = two_sided
    here = scene.here
    two_tensors = here.allocate_cache(CacheDesc(2, (1, 8), "DT_UINT8"))
    large = here.allocate_cache(CacheDesc(4, (1, 97), "DT_UINT8"))
    large_blocks = here.allocate_blocks_cache(CacheDesc(4, (4, 33), "DT_UINT8"))
    for call in (
        lambda: here.pull_cache(request(10), two_tensors),
        lambda: here.pull_cache(by_id(scene.theirs.b), scene.ours.c),
        lambda: here.pull_blocks(by_id(scene.theirs.b), scene.ours.b, (), [0]),
        lambda: here.pull_blocks(BlocksCacheKey(1, 10), scene.ours.b, [4], [0]),
        lambda: here.pull_blocks(BlocksCacheKey(1, 10), large_blocks, [0], [0]),
        lambda: here.pull_cache(request(10), large),
        lambda: here.pull_cache(request(10), scene.ours.c, src_layer_range=range(2, 3), dst_layer_range=range(1)),
        lambda: here.pull_blocks(
            request(10), scene.ours.b, (), [0], src_layer_range=range(2, 3), dst_layer_range=range(1)
        ),
    ):
        with refused(LX):
            call()
    assert scene.there.lookup(request(10)) is not None


def test_9_remote_accessible(remote_mode: Scene) -> None:
    """api §3.6 (9): remote mode: local or remote cache registered with ``remote_accessible=False``: LX."""
    scene = remote_mode
    here = scene.here
    for call in (
        lambda: here.pull_cache(by_id(scene.theirs.c), scene.ours.closed),
        lambda: here.pull_cache(by_id(scene.theirs.closed), scene.ours.c),
        lambda: here.pull_blocks(BlocksCacheKey(1, 13), scene.ours.b, [0], [0]),
        lambda: here.pull_blocks(BlocksCacheKey(1, 10), scene.ours.closed_b, [0], [0]),
        lambda: here.pull_blocks(request(13), scene.ours.b, (), [0]),
    ):
        with refused(LX, "not remote accessible"):
            call()
    here.pull_cache(by_id(scene.theirs.registered), scene.ours.registered)


def test_9_has_no_effect_in_two_sided_mode(two_sided: Scene) -> None:
    """api §3.6 (9): in two-sided mode ``remote_accessible`` is no obstacle to a pull."""
    scene = two_sided
    scene.here.pull_cache(request(13), scene.ours.closed)
    scene.here.pull_blocks(BlocksCacheKey(1, 13), scene.ours.closed_b, [0], [1])


def test_10_timeout(library: Any) -> None:
    """api §3.6 (10): longer than sync_kv_timeout: LX(TIMEOUT); nothing released, no byte arrives afterwards."""
    size = 128 << 20
    options = {"device_bytes": size, "host_bytes": None, "page_shift": 20}
    prompt = library.node(1, **options)
    decoder = library.node(2, **options, SyncKvCacheWaitTime="1")
    desc = CacheDesc(1, (1, size), "DT_UINT8")
    prompt.allocate_cache(desc, [request(1)])
    assert decoder.link_clusters([info_of(prompt)])[0] == "LLM_SUCCESS"
    ours = in_time(lambda: decoder.allocate_cache(desc))
    with refused("LLM_TIMEOUT"):  # no machine copies so much in a millisecond
        decoder.pull_cache(request(1), ours)
    arrived = decoder.contents(ours)
    assert prompt.lookup(request(1)) is not None
    decoder.finalize()  # waits for whatever were still in progress
    assert prompt.lookup(request(1)) is not None
    assert len(arrived[0]) == size


def test_concurrent_pulls_of_one_key(library: Any) -> None:
    """api §3.6: concurrent pulls of the same key: all that resolved it before its release succeed, at least one."""
    prompt, decoder = library.pair()
    desc = CacheDesc(4, (1, 4096), "DT_UINT8")
    destinations = [decoder.allocate_cache(desc) for _ in range(4)]
    for number in range(20):
        theirs = prompt.fill(prompt.allocate_cache(desc, [request(number)]), number)
        content = prompt.contents(theirs)
        prompt.deallocate_cache(theirs)
        outcomes: list[str | None] = [None] * 4

        def pull(thread: int, number: int = number, outcomes: list[str | None] = outcomes) -> None:
            try:
                decoder.pull_cache(request(number), destinations[thread])
                outcomes[thread] = "LLM_SUCCESS"
            except Exception as refusal:
                outcomes[thread] = getattr(refusal, "status", repr(refusal))

        threads = [threading.Thread(target=pull, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(outcomes) <= {"LLM_SUCCESS", NOT_EXIST}
        assert "LLM_SUCCESS" in outcomes
        for destination, how in zip(destinations, outcomes, strict=True):
            assert how != "LLM_SUCCESS" or decoder.contents(destination) == content
        assert prompt.is_entirely_free()


def test_same_descriptions_everywhere(two_sided: Scene) -> None:
    """api §3.6: when no check fails the pull succeeds, from every kind of cache into every kind."""
    scene = two_sided
    for key in (by_id(scene.theirs.c), by_id(scene.theirs.host_c), by_id(scene.theirs.registered), prefix(10)):
        for cache in (scene.ours.c, scene.ours.host_c, scene.ours.registered):
            scene.here.pull_cache(key, cache, 1)
    for model in (10, 12):
        for cache in (scene.ours.b, scene.ours.host_b, scene.ours.registered_b):
            scene.here.pull_blocks(BlocksCacheKey(1, model), cache, [0, 3], [1, 2])
    assert (C.num_tensors, B.num_tensors) == (4, 4)
