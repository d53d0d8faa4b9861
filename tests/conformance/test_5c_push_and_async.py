"""api §5C: departures from the original, D38 to D47: pushes and asynchronous transfers."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

import llmdd
from conformance.scene import Scene
from conformance.world import Task, World, by_id, refused

SUCCESS, LX = "LLM_SUCCESS", "LLM_PARAM_INVALID"
LAYERS = CacheDesc(8, (1, 16), "DT_UINT8")


def ready(layer: int, timeout: Any) -> bool:
    return True


def send(scene: Scene, source: Any, configs: list[Any], synchronize: Any = ready, *lists: Any) -> Task:
    return scene.here.transfer_cache_async(source, synchronize, configs, *lists)


@pytest.mark.parametrize("tensors", [1, 3])
def test_d38_fewer_tensors_than_a_layer(world: World, tensors: int) -> None:
    """api D38: push of a cache with 1 or 3 tensors, no range: all tensors are sent."""
    prompt, decoder = world.pair(remote=True)
    desc = CacheDesc(tensors, (1, 16), "DT_UINT8")
    theirs, ours = prompt.allocate_cache(desc), decoder.fill(decoder.allocate_cache(desc), 1)
    decoder.push_cache(by_id(theirs), ours)
    assert prompt.contents(theirs) == decoder.contents(ours)


def test_d39_push_cache_compares_sizes(remote_mode: Scene) -> None:
    """api D39: push_cache: local slot bytes are compared with the remote slot's; into a blocks cache: LX."""
    scene = remote_mode
    large = scene.here.allocate_cache(CacheDesc(4, (1, 97), "DT_UINT8"))
    before = scene.picture()
    for key in (by_id(scene.theirs.c, 1), by_id(scene.theirs.b)):
        with refused(LX):
            scene.here.push_cache(key, large)
    assert scene.picture() == before


def test_d40_push_blocks(remote_mode: Scene) -> None:
    """api D40: push_blocks: empty src_blocks and other block sizes: LX; ranges of equal length suffice."""
    scene = remote_mode
    large = scene.here.allocate_blocks_cache(CacheDesc(4, (4, 33), "DT_UINT8"))
    before = scene.picture()
    for blocks, src in ((scene.ours.b, []), (scene.ours.b, [0, 1]), (large, [0])):
        with refused(LX):
            scene.here.push_blocks(BlocksCacheKey(1, 10), blocks, src, [0])
    assert scene.picture() == before
    scene.here.push_blocks(BlocksCacheKey(1, 10), scene.ours.b, [0], [0], range(1), range(1, 2))


def test_d41_the_destination_index_is_relative(remote_mode: Scene) -> None:
    """api D41: ``range(2,4)`` → ``range(2,4)`` and ``range(0,2)`` move what they say."""
    scene = remote_mode
    ours = scene.here.fill(scene.here.allocate_cache(LAYERS), 1)
    theirs = scene.there.fill(scene.there.allocate_cache(LAYERS), 2)
    before, source = scene.there.contents(theirs), scene.here.contents(ours)
    configs = [TransferWithCacheKeyConfig(by_id(theirs), range(2, 4), to) for to in (range(2, 4), range(2))]
    assert send(scene, ours, configs).synchronize() == SUCCESS
    assert before != source
    assert scene.there.contents(theirs) == source[4:] + source[4:]


def test_d42_exceptions_in_the_worker(remote_mode: Scene) -> None:
    """api D42: an exception in synchronize_layer: LLM_FAILED."""
    scene = remote_mode

    def fails(layer: int, timeout: Any) -> bool:
        raise IndexError(layer)

    task = send(scene, scene.ours.c, [TransferWithCacheKeyConfig(by_id(scene.theirs.c), range(1), range(1))], fails)
    assert (task.synchronize(), task.get_results()) == ("LLM_FAILED", ["LLM_FAILED"])


def test_d43_results_are_kept_per_config(remote_mode: Scene) -> None:
    """api D43: two configs for one cluster have results of their own."""
    scene = remote_mode
    good = TransferWithCacheKeyConfig(by_id(scene.theirs.c), range(1), range(1))
    bad = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 999), range(1), range(1))
    assert send(scene, scene.ours.c, [good, bad, good]).get_results() == [SUCCESS, "LLM_KV_CACHE_NOT_EXIST", SUCCESS]


def test_d43_the_cluster_follows_the_key() -> None:
    """api D43: setting ``cache_key`` on a config updates its cluster."""
    config = llmdd.TransferWithCacheKeyConfig(llmdd.CacheKeyByIdAndIndex(1, 1), range(1), range(1))
    config.cache_key = llmdd.BlocksCacheKey(5)
    assert config.dst_cluster_id == 5


def test_d44_others_go_on(remote_mode: Scene) -> None:
    """api D44: one failure does not stop the other configs."""
    scene = remote_mode
    bad = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(9, 1), range(1), range(1))
    good = TransferWithCacheKeyConfig(by_id(scene.theirs.unkeyed), range(2), range(2))
    assert send(scene, scene.ours.c, [bad, good]).get_results() == ["LLM_NOT_YET_LINK", SUCCESS]
    ours, theirs = scene.here.contents(scene.ours.c), scene.there.contents(scene.theirs.unkeyed)
    assert [tensor[:96] for tensor in theirs] == [tensor[:96] for tensor in ours]


def test_d45_configs_are_not_modified(library: Any) -> None:
    """api D45: a missing src_layer_range is not filled into the caller's object."""
    scene = Scene(library, False)

    class Ready(llmdd.LayerSynchronizer):
        def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
            return True

    config = llmdd.TransferConfig(1, scene.there.tensor_addrs(scene.theirs.unkeyed))
    task = scene.here.manager.transfer_cache_async(scene.ours.c, Ready(), [config])
    assert task.synchronize() is llmdd.LLMStatusCode.LLM_SUCCESS
    assert config.src_layer_range is None


def test_d46_addresses_and_batch_index_are_checked(two_sided: Scene) -> None:
    """api D46: raw destination addresses, destination block indices and src_batch_index are checked."""
    scene = two_sided
    before = scene.picture()
    addrs = scene.there.tensor_addrs(scene.theirs.unkeyed)
    blocks = scene.there.tensor_addrs(scene.theirs.unkeyed_b)
    with refused(LX):
        send(scene, scene.ours.c, [TransferConfig(1, addrs[:2], range(1), 2)])
    for config, lists in (
        (TransferConfig(1, [1 << 30, addrs[1]], range(1)), ()),
        (TransferConfig(1, [addrs[0] + 192 - 95, addrs[1]], range(1)), ()),
        (TransferConfig(1, blocks[:2], range(1)), (None, [4], 32)),
        (TransferConfig(1, blocks[:2], range(1)), (None, [2**60], 32)),
    ):
        assert send(scene, scene.ours.c, [config], ready, *lists).get_results() == [LX]
    assert scene.picture() == before


@pytest.mark.parametrize(("shape", "code"), [((4, 32), SUCCESS), ((5, 32), LX), ((4, 31), LX)])
def test_d47_blocks_caches_without_lists(remote_mode: Scene, shape: tuple[int, int], code: str) -> None:
    """api D47: all blocks if counts and sizes match, else LX."""
    scene = remote_mode
    ours = scene.here.fill(scene.here.allocate_blocks_cache(CacheDesc(4, shape, "DT_UINT8")), 9)
    before = scene.there.contents(scene.theirs.b)
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(2), range(2))
    assert send(scene, ours, [config]).synchronize() == code
    assert scene.there.contents(scene.theirs.b) == (scene.here.contents(ours) if code == SUCCESS else before)
