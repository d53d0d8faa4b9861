"""api §3.7: pushes, and asynchronous layer-wise transfers."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
from conformance.scene import BLOCK_BYTES, B, C, Scene
from conformance.world import Node, World, by_id, in_time, info_of, link, refused, request

SUCCESS, LX, NOT_EXIST, NOT_LINKED = "LLM_SUCCESS", "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST", "LLM_NOT_YET_LINK"
FAILED, TIMEOUT = "LLM_FAILED", "LLM_TIMEOUT"

# ------------------------------------------------------------------------------------------------------------- pushes


def test_push_local_id_unknown(remote_mode: Scene) -> None:
    """api §3.7: push: local id unknown: LX(KV_CACHE_NOT_EXIST), before the link."""
    scene = remote_mode
    for cache in (scene.ours.gone, scene.ours.unregistered, scene.theirs.c):
        with refused(NOT_EXIST):
            scene.here.push_cache(CacheKeyByIdAndIndex(9, 1), cache)
    for cache in (scene.ours.gone_b, scene.ours.cpu, scene.theirs.b):
        with refused(NOT_EXIST):
            scene.here.push_blocks(BlocksCacheKey(9), cache, [0], [0])


def test_push_not_linked(remote_mode: Scene) -> None:
    """api §3.7: push: not linked: LX(NOT_YET_LINK), before the remote id."""
    scene = remote_mode
    with refused(NOT_LINKED):
        scene.here.push_cache(CacheKeyByIdAndIndex(9, -1), scene.ours.c)
    with refused(NOT_LINKED):
        scene.here.push_blocks(BlocksCacheKey(9, 99), scene.ours.b, [0], [0])


@pytest.mark.parametrize("cache_id", [0, -1, 999, 2**63 - 1])
def test_push_remote_id_unknown(remote_mode: Scene, cache_id: int) -> None:
    """api §3.7: push: remote id or key unknown: LX(KV_CACHE_NOT_EXIST), before the bounds."""
    scene = remote_mode
    with refused(NOT_EXIST):
        scene.here.push_cache(CacheKeyByIdAndIndex(1, cache_id), scene.ours.c, 9)
    with refused(NOT_EXIST):
        scene.here.push_blocks(BlocksCacheKey(1, 99), scene.ours.b, [9], [9])
    with refused(NOT_EXIST):
        scene.here.push_cache(by_id(scene.theirs.gone), scene.ours.c)


def test_push_everything_else(remote_mode: Scene) -> None:
    """api §3.7: push: access, slots, layers, block indices, kinds, sizes: LX; nothing was written."""
    scene = remote_mode
    here = scene.here
    large = here.allocate_cache(CacheDesc(4, (1, 97), "DT_UINT8"))
    large_blocks = here.allocate_blocks_cache(CacheDesc(4, (1, 33), "DT_UINT8"))
    before = scene.picture()
    theirs, blocks = by_id(scene.theirs.c), BlocksCacheKey(1, 10)
    one, third = range(1), range(2, 3)
    for call in (
        lambda: here.push_cache(by_id(scene.theirs.closed), scene.ours.c),
        lambda: here.push_cache(theirs, scene.ours.closed),
        lambda: here.push_cache(theirs, scene.ours.c, 2),
        lambda: here.push_cache(by_id(scene.theirs.c, 2), scene.ours.c),
        lambda: here.push_cache(theirs, scene.ours.c, 0, third, one),
        lambda: here.push_cache(theirs, scene.ours.c, 0, one, third),
        lambda: here.push_cache(theirs, large),
        lambda: here.push_cache(by_id(scene.theirs.b), scene.ours.c),
        lambda: here.push_blocks(BlocksCacheKey(1, 13), scene.ours.b, [0], [0]),
        lambda: here.push_blocks(blocks, scene.ours.closed_b, [0], [0]),
        lambda: here.push_blocks(blocks, scene.ours.b, [4], [0]),
        lambda: here.push_blocks(blocks, scene.ours.b, [0], [4]),
        lambda: here.push_blocks(blocks, scene.ours.b, [0], [0], third, one),
        lambda: here.push_blocks(blocks, scene.ours.b, [0], [0], one, third),
        lambda: here.push_blocks(blocks, large_blocks, [0], [0]),
    ):
        with refused(LX):
            call()
    assert scene.picture() == before


def test_push_ranges_need_equal_length_not_equality(remote_mode: Scene) -> None:
    """api §3.7: source and destination ranges need equal length, not equality."""
    scene = remote_mode
    scene.here.push_cache(by_id(scene.theirs.c), scene.ours.c, 0, range(1), range(1, 2))
    ours, theirs = scene.here.contents(scene.ours.c), scene.there.contents(scene.theirs.c)
    assert [theirs[2][:96], theirs[3][:96]] == [ours[0][:96], ours[1][:96]]
    scene.here.push_blocks(BlocksCacheKey(1, 10), scene.ours.b, [0], [1], range(1, 2), range(1))
    ours, theirs = scene.here.contents(scene.ours.b), scene.there.contents(scene.theirs.b)
    assert [theirs[0][32:64], theirs[1][32:64]] == [ours[2][:32], ours[3][:32]]


def test_push_without_range_is_all_layers(remote_mode: Scene) -> None:
    """api §3.7: omitted range = all layers of the source."""
    scene = remote_mode
    scene.here.push_cache(by_id(scene.theirs.unkeyed, 1), scene.ours.c)
    ours, theirs = scene.here.contents(scene.ours.c), scene.there.contents(scene.theirs.unkeyed)
    assert [tensor[96:] for tensor in theirs] == [tensor[:96] for tensor in ours]


# --------------------------------------------------------------------------------------------- transfer_cache_async


class Layers:
    """A synchronizer that notes what it is asked, and answers as it is told."""

    def __init__(self, answers: dict[int, Any] | None = None) -> None:
        self.asked: list[tuple[int, Any]] = []
        self.answers = answers or {}

    def __call__(self, layer: int, timeout: Any) -> Any:
        self.asked.append((layer, timeout))
        answer = self.answers.get(layer, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def layers(self) -> list[int]:
        return [layer for layer, _ in self.asked]


def to(cache: Any, src: range, dst: range | None = None, batch_index: int = 0, src_batch_index: int = 0) -> Any:
    return TransferWithCacheKeyConfig(by_id(cache, batch_index), src, dst or src, src_batch_index)


ARGUMENTS: list[tuple[Callable[[Scene], tuple[Any, ...]], str, str, bool]] = [
    (lambda s: (s.ours.c, Layers(), None), "TypeError", "transfer_configs only support", True),
    (lambda s: (s.ours.c, Layers(), {1}), "TypeError", "transfer_configs only support", True),
    (lambda s: (s.ours.c, Layers(), [5]), "TypeError", "", True),
    (
        lambda s: (s.ours.c, Layers(), [TransferConfig(1, [1, 2, 3, 4])]),
        "TypeError",
        "While enable_remote_cache_accessible is True",
        True,
    ),
    (lambda s: (s.ours.c, Layers(), [to(s.theirs.c, range(1))]), "TypeError", "", False),
    (lambda s: (s.ours.c, Layers(), [], None, None, 32), LX, "", True),
    (lambda s: (s.here.allocate_cache(CacheDesc(3, (1, 8), "DT_UINT8")), Layers(), []), LX, "is not even", True),
    (lambda s: (s.ours.b, Layers(), [to(s.theirs.b, range(1), src_batch_index=1)], [0], [0]), LX, "", True),
    (lambda s: (s.ours.c, Layers(), [to(s.theirs.c, range(1), src_batch_index=2)]), LX, "", True),
    (lambda s: (s.ours.c, Layers(), [to(s.theirs.c, range(2, 3))]), LX, "out of range", True),
    (lambda s: (s.ours.c, Layers(), [to(s.theirs.c, range(3))]), LX, "out of range", True),
    (lambda s: (s.ours.c, Layers(), [TransferConfig(1, [1, 2])]), LX, "dst_addrs", False),
    (lambda s: (s.ours.c, Layers(), [TransferConfig(1, [1, 2, 3, 4], range(1))]), LX, "dst_addrs", False),
    (lambda s: (s.ours.c, Layers(), [TransferConfig(1, [1, 2], range(2, 3))]), LX, "out of range", False),
    (lambda s: (s.ours.c, Layers(), [TransferConfig(1, [1, 2, 3, 4], None, 2)]), LX, "", False),
    (lambda s: (s.ours.c, None, None, None, None, 32), "TypeError", "layer_synchronizer only support", True),
    (lambda s: (s.ours.c, Layers(), [5], None, None, 32), "TypeError", "", True),
    (
        lambda s: (s.here.allocate_cache(CacheDesc(3, (1, 8), "DT_UINT8")), Layers(), [to(s.theirs.c, range(9, 10))]),
        LX,
        "is not even",
        True,
    ),
    (
        lambda s: (s.ours.c, Layers(), [to(s.theirs.c, range(1)), to(s.theirs.c, range(5, 6))]),
        LX,
        "out of range",
        True,
    ),
]


@pytest.mark.parametrize("number", range(len(ARGUMENTS)))
def test_argument_errors_are_raised_at_once(world: World, number: int) -> None:
    """api §3.7, §2.5: argument errors are raised at once, in order; no layer is asked for."""
    arguments, error, fragment, remote = ARGUMENTS[number]
    scene = Scene(world, remote)
    given = arguments(scene)
    before = scene.picture()
    with refused(error, fragment):
        scene.here.transfer_cache_async(*given)
    assert scene.picture() == before
    assert given[1] is None or given[1].asked == []


def test_everything_later_is_reported_through_the_task(remote_mode: Scene) -> None:
    """api §3.7: everything later is reported through the task: no link, unknown caches, sizes."""
    scene = remote_mode
    large = scene.here.allocate_cache(CacheDesc(4, (1, 97), "DT_UINT8"))
    for source, config, code in (
        (scene.ours.c, TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(9, 1), range(1), range(1)), NOT_LINKED),
        (scene.ours.c, TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 999), range(1), range(1)), NOT_EXIST),
        (scene.ours.c, TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 0), range(1), range(1)), NOT_EXIST),
        (scene.ours.c, TransferWithCacheKeyConfig(BlocksCacheKey(1, 99), range(1), range(1)), NOT_EXIST),
        (scene.ours.c, to(scene.theirs.c, range(1), range(2, 3)), LX),
        (scene.ours.c, to(scene.theirs.c, range(1), batch_index=2), LX),
        (scene.ours.c, to(scene.theirs.closed, range(1)), LX),
        (scene.ours.closed, to(scene.theirs.c, range(1)), LX),
        (large, to(scene.theirs.c, range(1)), LX),
        (scene.ours.gone, to(scene.theirs.c, range(1)), NOT_EXIST),
    ):
        task = scene.here.transfer_cache_async(source, Layers(), [config])
        assert task.synchronize() == code, config
        assert task.get_results() == [code]


def test_layers_are_pairs_of_tensors(remote_mode: Scene) -> None:
    """api §3.7: tnpl is fixed at 2; layers = num_tensors / 2; destination slots and ranges."""
    scene = remote_mode
    before = scene.there.contents(scene.theirs.c)
    layers = Layers()
    config = to(scene.theirs.c, range(1, 2), range(1), batch_index=1)
    task = scene.here.transfer_cache_async(scene.ours.c, layers, [config])
    assert task.synchronize() == SUCCESS
    ours = scene.here.contents(scene.ours.c)
    expected = [before[0][:96] + ours[2][:96], before[1][:96] + ours[3][:96], before[2], before[3]]
    assert scene.there.contents(scene.theirs.c) == expected
    assert layers.asked == [(1, None)]


def test_each_layer_is_asked_for_once_in_ascending_order(remote_mode: Scene) -> None:
    """api §3.7: source layers in ascending order, once each, also when several configs want them; others never."""
    scene = remote_mode
    desc = CacheDesc(12, (1, 8), "DT_UINT8")
    ours = scene.here.fill(scene.here.allocate_cache(desc), 7)
    theirs = [scene.there.allocate_cache(desc) for _ in range(3)]
    layers = Layers()
    configs = [
        to(theirs[0], range(4, 6)),
        to(theirs[1], range(1, 3)),
        to(theirs[2], range(2, 5)),
    ]  # nobody wants layer 0
    task = scene.here.transfer_cache_async(ours, layers, configs)
    assert task.get_results() == [SUCCESS] * 3
    assert layers.layers == [1, 2, 3, 4, 5]
    source = scene.here.contents(ours)
    for cache, wanted in zip(theirs, (range(8, 12), range(2, 6), range(4, 10)), strict=True):
        content = scene.there.contents(cache)
        assert [content[tensor] for tensor in wanted] == [source[tensor] for tensor in wanted]


def test_destination_layer(remote_mode: Scene) -> None:
    """api §3.7: destination layer: ``dst_layer_range.start + (layer - src_layer_range.start)`` (D41)."""
    scene = remote_mode
    desc = CacheDesc(10, (1, 8), "DT_UINT8")
    ours = scene.here.fill(scene.here.allocate_cache(desc), 7)
    theirs = scene.there.fill(scene.there.allocate_cache(desc), 8)
    before = scene.there.contents(theirs)
    task = scene.here.transfer_cache_async(ours, Layers(), [to(theirs, range(2, 4), range(3, 5))])
    assert task.synchronize() == SUCCESS
    assert scene.there.contents(theirs) == before[:6] + scene.here.contents(ours)[4:8]


def test_addresses(two_sided: Scene) -> None:
    """api §3.7: TransferConfig: the layer's addresses are ``dst_addrs[2k], dst_addrs[2k+1]``, at the slot."""
    scene = two_sided
    before = scene.there.contents(scene.theirs.unkeyed)
    addrs = [address + 96 for address in scene.there.tensor_addrs(scene.theirs.unkeyed)]
    config = TransferConfig(1, [addrs[3], addrs[0]], range(1, 2), 1)
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [config])
    assert (task.synchronize(), task.get_results()) == (SUCCESS, [SUCCESS])
    ours = scene.here.contents(scene.ours.c)
    expected = [before[0][:96] + ours[3][96:], before[1], before[2], before[3][:96] + ours[2][96:]]
    assert scene.there.contents(scene.theirs.unkeyed) == expected


def test_addresses_of_all_layers(two_sided: Scene) -> None:
    """api §3.7: TransferConfig without a range: all layers."""
    scene = two_sided
    config = TransferConfig(1, scene.there.tensor_addrs(scene.theirs.unkeyed))
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [config])
    assert task.synchronize() == SUCCESS
    ours, theirs = scene.here.contents(scene.ours.c), scene.there.contents(scene.theirs.unkeyed)
    assert [tensor[:96] for tensor in theirs] == [tensor[:96] for tensor in ours]


def test_addresses_of_a_registered_cache(two_sided: Scene) -> None:
    """api §3.7: raw addresses may lie inside a registered, remote accessible cache."""
    scene = two_sided
    scene.there.write(scene.theirs.memory, bytes(4 * 4096))
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [TransferConfig(1, scene.theirs.addrs[:4])])
    assert task.synchronize() == SUCCESS
    content = scene.here.contents(scene.ours.c)
    for address, tensor in zip(scene.theirs.addrs[:4], content, strict=True):
        assert scene.there.read(address, 97) == tensor[:96] + b"\0"


@pytest.mark.parametrize("what", ["nowhere", "beyond", "before", "null", "gone"])
def test_addresses_outside(two_sided: Scene, what: str) -> None:
    """api §3.7: the target range must lie inside one live, remote accessible cache: else LLM_PARAM_INVALID (D46)."""
    scene = two_sided
    good = scene.there.tensor_addrs(scene.theirs.unkeyed)
    bad = {
        "nowhere": 1 << 20,
        "beyond": good[0] + 97,
        "before": min(address for cache in scene.theirs.pooled for address in scene.there.tensor_addrs(cache)) - 1,
        "null": 0,
        "gone": scene.there.own_memory(4096),
    }[what]
    before = scene.picture()
    for addrs in ([bad, good[1]], [good[0], bad]):
        task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [TransferConfig(1, addrs, range(1))])
        assert task.get_results() == [LX]
    after = scene.picture()
    assert after[1] == before[1]
    if what != "beyond":
        assert [part for number, part in enumerate(after[0]) if number != 4] == [
            part for number, part in enumerate(before[0]) if number != 4
        ]


@pytest.mark.parametrize("answer", [False, 0, None])
def test_synchronize_layer_returns_false(remote_mode: Scene, answer: Any) -> None:
    """api §3.7: it returns false: every config wanting this layer ends with LLM_PARAM_INVALID; others go on."""
    scene = remote_mode
    desc = CacheDesc(6, (1, 8), "DT_UINT8")
    ours = scene.here.fill(scene.here.allocate_cache(desc), 7)
    theirs = [scene.there.allocate_cache(desc) for _ in range(3)]
    configs = [to(theirs[0], range(2)), to(theirs[1], range(1, 3)), to(theirs[2], range(2, 3))]
    layers = Layers({1: answer})
    task = scene.here.transfer_cache_async(ours, layers, configs)
    assert task.synchronize() == LX
    assert task.get_results() == [LX, LX, SUCCESS]
    assert layers.layers == [0, 1, 2]
    assert scene.there.contents(theirs[2])[4:] == scene.here.contents(ours)[4:]
    assert scene.there.contents(theirs[0])[:2] == scene.here.contents(ours)[:2]


def test_synchronize_layer_raises(remote_mode: Scene) -> None:
    """api §3.7: it raises: LLM_FAILED for those configs (D42); others go on."""
    scene = remote_mode
    layers = Layers({0: ValueError("computing failed")})
    configs = [to(scene.theirs.c, range(1)), to(scene.theirs.c, range(1, 2))]
    task = scene.here.transfer_cache_async(scene.ours.c, layers, configs)
    assert task.synchronize() == FAILED
    assert task.get_results() == [FAILED, SUCCESS]


def test_a_failed_transfer_ends_its_config_alone(remote_mode: Scene) -> None:
    """api §3.7: a failed transfer ends that config with its own code; other configs go on (D44)."""
    scene = remote_mode
    configs = [
        to(scene.theirs.c, range(2)),
        TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 999), range(2), range(2)),
        to(scene.theirs.unkeyed, range(2)),
    ]
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), configs)
    assert task.synchronize() == NOT_EXIST
    assert task.get_results() == [SUCCESS, NOT_EXIST, SUCCESS]


def test_results_are_kept_per_config(remote_mode: Scene) -> None:
    """api §3.7: results are kept per config (D43), not per cluster; the first failure in config order counts."""
    scene = remote_mode
    bad = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 999), range(1), range(1))
    worse = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(9, 1), range(1), range(1))
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [to(scene.theirs.c, range(1)), worse, bad])
    assert task.synchronize() == NOT_LINKED
    assert task.get_results() == [SUCCESS, NOT_LINKED, NOT_EXIST]


def test_an_empty_list(remote_mode: Scene) -> None:
    """api §3.7: empty config list: SUCCESS, ``[]``."""
    layers = Layers()
    task = remote_mode.here.transfer_cache_async(remote_mode.ours.c, layers, [])
    assert (task.synchronize(), task.get_results(), layers.asked) == (SUCCESS, [], [])


@pytest.mark.parametrize("container", [list, tuple])
def test_configs_may_be_a_list_or_a_tuple(remote_mode: Scene, container: type) -> None:
    """api §3.7, §2.5: ``transfer_configs`` is a list or a tuple."""
    scene = remote_mode
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), container([to(scene.theirs.c, range(1))]))
    assert task.synchronize() == SUCCESS


def test_no_keys_are_released(world: World) -> None:
    """api §3.7: no cache keys are released, by either config type."""
    for remote in (True, False):
        scene = Scene(type(world)() if remote else world, remote)
        config = to(scene.theirs.c, range(2)) if remote else TransferConfig(1, scene.there.tensor_addrs(scene.theirs.c))
        task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [config])
        assert task.synchronize() == SUCCESS
        assert scene.there.lookup(request(10)) is not None
        assert scene.here.lookup(request(30)) is not None
        if remote:
            scene.world.close()


def test_waiting(library: Any) -> None:
    """api §3.7: ``synchronize(t)`` not finished in t ms: LLM_TIMEOUT, work continues; ``get_results``: one for each."""
    scene = Scene(library, True)
    going_on = threading.Event()

    def wait(layer: int, timeout: Any) -> bool:
        return going_on.wait()

    configs = [to(scene.theirs.c, range(1)), to(scene.theirs.unkeyed, range(1))]
    task = scene.here.transfer_cache_async(scene.ours.c, wait, configs)
    assert task.synchronize(1) == TIMEOUT
    assert task.get_results(1) == [TIMEOUT, TIMEOUT]
    assert task.synchronize(0) == TIMEOUT
    going_on.set()
    assert task.synchronize(None) == SUCCESS
    assert task.get_results(60_000) == [SUCCESS, SUCCESS]
    assert task.synchronize(0) == SUCCESS


@pytest.mark.parametrize(
    ("wrong", "error"), [("1", "TypeError"), (1.0, "TypeError"), (-1, "ValueError"), (2**32, "ValueError")]
)
def test_timeouts_are_checked(remote_mode: Scene, wrong: Any, error: str) -> None:
    """api §3.7: t: None = wait for ever; uint32 (TE/VE)."""
    scene = remote_mode
    task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [])
    for method in (task.synchronize, task.get_results):
        with refused(error):
            method(wrong)


def test_layer_i_is_on_its_way_while_the_next_is_computed(library: Any) -> None:
    """api §3.7: one worker thread walks the layers: layer 0 has arrived before layer 1 is ready."""
    scene = Scene(library, True)
    computed, may_compute = threading.Event(), threading.Event()
    expected = [tensor[:96] for tensor in scene.here.contents(scene.ours.c)[:2]]
    seen: list[list[bytes]] = []

    def synchronize(layer: int, timeout: Any) -> bool:
        if layer == 1:
            seen.append([tensor[:96] for tensor in scene.there.contents(scene.theirs.unkeyed)[:2]])
            computed.set()
            may_compute.wait()
        return True

    task = scene.here.transfer_cache_async(scene.ours.c, synchronize, [to(scene.theirs.unkeyed, range(2))])
    computed.wait()
    assert seen == [expected]
    assert task.synchronize(1) == TIMEOUT
    may_compute.set()
    assert task.synchronize() == SUCCESS


class Ready(llmdd.LayerSynchronizer):
    """Every layer is ready."""

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


def test_configs_are_never_modified(library: Any) -> None:
    """api §3.7: config objects are never modified (D45)."""
    scene = Scene(library, False)
    config = llmdd.TransferConfig(1, scene.there.tensor_addrs(scene.theirs.unkeyed))
    task = scene.here.manager.transfer_cache_async(scene.ours.c, Ready(), [config])
    assert task.synchronize() is llmdd.LLMStatusCode.LLM_SUCCESS
    assert config.src_layer_range is None
    assert list(config.dst_addrs) == scene.there.tensor_addrs(scene.theirs.unkeyed)


# --------------------------------------------------------------------------------------------------------- block lists


def layer_of_blocks(node: Node, cache: Any, first: int) -> list[list[bytes]]:
    """The blocks of two tensors."""
    return [
        [tensor[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] for number in range(4)]
        for tensor in node.contents(cache)[first : first + 2]
    ]


def test_cache_to_blocks(world: World) -> None:
    """api §3.7: source C with dst blocks: C→B with ``dst_block_memory_size`` as block bytes; in both modes."""
    for remote in (True, False):
        scene = Scene(type(world)() if remote else world, remote)
        before = layer_of_blocks(scene.there, scene.theirs.b, 2)
        if remote:
            config: Any = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1, 2))
        else:
            config = TransferConfig(1, scene.there.tensor_addrs(scene.theirs.b)[2:], range(1))
        task = scene.here.transfer_cache_async(scene.ours.c, Layers(), [config], None, [3, 0, 2], BLOCK_BYTES)
        assert task.synchronize() == SUCCESS
        after = layer_of_blocks(scene.there, scene.theirs.b, 2)
        for now, then, tensor in zip(after, before, scene.here.contents(scene.ours.c)[:2], strict=True):
            assert now == [tensor[32:64], then[1], tensor[64:96], tensor[:32]]
        if remote:
            scene.world.close()


def test_blocks_to_blocks(world: World) -> None:
    """api §3.7: both lists: B→B; a non-zero ``dst_block_memory_size`` must equal the source block bytes."""
    for remote in (True, False):
        scene = Scene(type(world)() if remote else world, remote)
        if remote:
            config: Any = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1))
        else:
            config = TransferConfig(1, scene.there.tensor_addrs(scene.theirs.b)[:2], range(1))
        before = layer_of_blocks(scene.there, scene.theirs.b, 0)
        wrong = scene.here.transfer_cache_async(scene.ours.b, Layers(), [config], [0], [0], BLOCK_BYTES + 1)
        assert wrong.synchronize() == LX
        assert layer_of_blocks(scene.there, scene.theirs.b, 0) == before
        for size in (None, 0, BLOCK_BYTES):
            task = scene.here.transfer_cache_async(scene.ours.b, Layers(), [config], [1, 2], [3, 0], size)
            assert task.synchronize() == SUCCESS
        after = layer_of_blocks(scene.there, scene.theirs.b, 0)
        ours = layer_of_blocks(scene.here, scene.ours.b, 0)
        for now, then, mine in zip(after, before, ours, strict=True):
            assert now == [mine[2], then[1], then[2], mine[1]]
        if remote:
            scene.world.close()


@pytest.mark.parametrize(("src", "dst"), [([4], [0]), ([0], [4]), ([0], [2**63])])
def test_blocks_out_of_range(remote_mode: Scene, src: list[int], dst: list[int]) -> None:
    """api §3.7: block indices out of range end the config with LLM_PARAM_INVALID."""
    scene = remote_mode
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1))
    before = scene.picture()
    assert scene.here.transfer_cache_async(scene.ours.b, Layers(), [config], src, dst).get_results() == [LX]
    assert scene.picture() == before


def test_whole_blocks_caches(remote_mode: Scene) -> None:
    """api §3.7: both caches B and no lists: every block (D47)."""
    scene = remote_mode
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(2), range(2))
    assert scene.here.transfer_cache_async(scene.ours.b, Layers(), [config]).synchronize() == SUCCESS
    assert scene.there.contents(scene.theirs.b) == scene.here.contents(scene.ours.b)


@pytest.mark.parametrize("shape", [(3, 32), (5, 32), (4, 31), (8, 16)])
def test_whole_blocks_caches_that_differ(remote_mode: Scene, shape: tuple[int, int]) -> None:
    """api §3.7, D47: if counts and sizes do not match: LLM_PARAM_INVALID."""
    scene = remote_mode
    ours = scene.here.allocate_blocks_cache(CacheDesc(4, shape, "DT_UINT8"))
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1))
    before = scene.there.contents(scene.theirs.b)
    assert scene.here.transfer_cache_async(ours, Layers(), [config]).synchronize() == LX
    assert scene.there.contents(scene.theirs.b) == before


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 96, 200])
def test_cache_to_blocks_without_a_list(remote_mode: Scene, block_bytes: int) -> None:
    """api §3.7: C source, B destination, no dst list: LLM_PARAM_INVALID, however large the blocks are."""
    scene = remote_mode
    scene.there.deallocate_blocks_cache(scene.theirs.b)
    scene.theirs.b = scene.there.allocate_blocks_cache(
        CacheDesc(4, (4, block_bytes), "DT_UINT8"), BlocksCacheKey(1, 10)
    )
    config = TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1))
    before = scene.there.contents(scene.theirs.b)
    assert scene.here.transfer_cache_async(scene.ours.c, Layers(), [config]).synchronize() == LX
    assert scene.there.contents(scene.theirs.b) == before


def test_blocks_to_cache(remote_mode: Scene) -> None:
    """api §3.5, §3.7: B → C in any form is refused, by an asynchronous transfer too."""
    scene = remote_mode
    ours = scene.here.allocate_blocks_cache(CacheDesc(4, (2, 96), "DT_UINT8"))
    before = scene.there.contents(scene.theirs.unkeyed)
    for lists in ((), ([0], [0])):
        task = scene.here.transfer_cache_async(ours, Layers(), [to(scene.theirs.unkeyed, range(1))], *lists)
        assert task.synchronize() == LX
    assert scene.there.contents(scene.theirs.unkeyed) == before


def test_a_link_that_was_dropped(remote_mode: Scene) -> None:
    """api §3.7: a config whose cluster is not linked when its layer comes up ends with LLM_NOT_YET_LINK."""
    scene = remote_mode
    scene.here.unlink_clusters([info_of(scene.there)])
    assert scene.here.transfer_cache_async(scene.ours.c, Layers(), [to(scene.theirs.c, range(1))]).synchronize() == (
        NOT_LINKED
    )
    assert (C.num_tensors, B.num_tensors) == (4, 4)


def test_several_destinations(world: World) -> None:
    """api §3.7: one call may send to several clusters; each layer to all that want it, in list order."""
    ours, one, two = (world.node(number, remote=True) for number in (1, 2, 3))
    link(ours, one)
    link(ours, two)
    desc = CacheDesc(4, (1, 16), "DT_UINT8")
    source = ours.fill(ours.allocate_cache(desc), 1)
    targets = [one.allocate_cache(desc), two.fill(two.allocate_cache(desc), 2)]
    untouched = two.contents(targets[1])[:2]
    layers = Layers()
    configs = [
        TransferWithCacheKeyConfig(by_id(targets[0], cluster_id=2), range(2), range(2)),
        TransferWithCacheKeyConfig(by_id(targets[1], cluster_id=3), range(1, 2), range(1, 2)),
        TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(4, 1), range(1), range(1)),
    ]
    task = ours.transfer_cache_async(source, layers, configs)
    assert task.get_results() == [SUCCESS, SUCCESS, NOT_LINKED]
    assert layers.layers == [0, 1]
    assert one.contents(targets[0]) == ours.contents(source)
    assert two.contents(targets[1]) == untouched + ours.contents(source)[2:]


def test_overlapping_tasks(library: Any) -> None:
    """api §3.7: one worker thread per call: tasks overlap, also those of one source."""
    scene = Scene(library, True)
    arrived = threading.Barrier(3)

    def together(layer: int, timeout: Any) -> bool:
        arrived.wait(60)  # every task is at the same layer at the same time
        return True

    targets = [scene.there.allocate_cache(C) for _ in range(3)]
    tasks = [scene.here.transfer_cache_async(scene.ours.c, together, [to(target, range(2))]) for target in targets]
    assert [task.synchronize() for task in tasks] == [SUCCESS] * 3
    for target in targets:
        sent = [tensor[:96] for tensor in scene.here.contents(scene.ours.c)]
        assert [tensor[:96] for tensor in scene.there.contents(target)] == sent


def test_each_layer_has_its_deadline(library: Any) -> None:
    """api §3.7: each layer transfer is subject to sync_kv_timeout; the time to compute a layer does not count."""
    size = 128 << 20
    settings = {"device_bytes": 2 * size, "host_bytes": None, "page_shift": 20, "remote": True}
    ours, theirs = library.node(1, **settings, SyncKvCacheWaitTime="1"), library.node(2, **settings)
    link(ours, theirs)
    desc = CacheDesc(2, (1, size), "DT_UINT8")
    source, target = in_time(lambda: ours.allocate_cache(desc)), theirs.allocate_cache(desc)
    config = TransferWithCacheKeyConfig(by_id(target, cluster_id=2), range(1), range(1))
    assert ours.transfer_cache_async(source, Layers(), [config]).get_results() == [TIMEOUT]


def test_a_source_that_is_deallocated_meanwhile(library: Any) -> None:
    """api §3.7, §3.3: a task pins its source: its memory goes when the task has ended."""
    scene = Scene(library, True)
    going_on = threading.Event()
    source = scene.here.fill(scene.here.allocate_cache(C), 5)
    sent = [tensor[:96] for tensor in scene.here.contents(source)]
    free = scene.here.usage()

    def wait(layer: int, timeout: Any) -> bool:
        return going_on.wait()

    task = scene.here.transfer_cache_async(source, wait, [to(scene.theirs.unkeyed, range(2))])
    scene.here.deallocate_cache(source)
    assert scene.here.usage() == free
    going_on.set()
    assert task.synchronize() == SUCCESS
    assert [tensor[:96] for tensor in scene.there.contents(scene.theirs.unkeyed)] == sent
    library.until(lambda: scene.here.usage()[1] > free[1], "the memory of the source is free")


@pytest.mark.parametrize(("batch_index", "code"), [(0, SUCCESS), (1, LX), (2**32 - 1, LX)])
def test_blocks_by_id_and_index(remote_mode: Scene, batch_index: int, code: str) -> None:
    """api §3.7, §1.9: a config may name a B cache by id; its batch size is 1 (§3.1)."""
    scene = remote_mode
    key = by_id(scene.theirs.b, batch_index)
    config = TransferWithCacheKeyConfig(key, range(1), range(1))
    before = scene.there.contents(scene.theirs.b)
    task = scene.here.transfer_cache_async(scene.ours.b, Layers(), [config], [0], [3])
    assert task.get_results() == [code]
    sent = [tensor[:BLOCK_BYTES] for tensor in scene.here.contents(scene.ours.b)[:2]]
    arrived = [tensor[:96] + sent[number] if code == SUCCESS else tensor for number, tensor in enumerate(before[:2])]
    assert scene.there.contents(scene.theirs.b) == arrived + before[2:]
