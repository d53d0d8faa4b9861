"""Layers sent while later ones are still being computed: ``transfer_cache_async`` (api §2.5, §3.7)."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import cluster_process
import numpy as np
import pytest

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    CacheTask,
    DataType,
    LayerSynchronizer,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

PATIENCE_S = 30.0
LAYERS, SLOTS, SLOT_BYTES = 3, 2, 64
DESC = CacheDesc(2 * LAYERS, (SLOTS, SLOT_BYTES), DataType.DT_UINT8)
BLOCKS = CacheDesc(2 * LAYERS, (8, 16), DataType.DT_UINT8)

SUCCESS = LLMStatusCode.LLM_SUCCESS
FAILED = LLMStatusCode.LLM_FAILED
INVALID = LLMStatusCode.LLM_PARAM_INVALID
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK

Config = TransferConfig | TransferWithCacheKeyConfig


@dataclass
class Steps(LayerSynchronizer):
    """A computation of layers, which notes what it is asked for and may wait at, refuse or break at some of them."""

    gated: tuple[int, ...] = ()
    outcomes: dict[int, Any] = field(default_factory=dict)
    asked: list[tuple[int, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reached = {layer: threading.Event() for layer in range(LAYERS)}
        self.gates = {layer: threading.Event() for layer in self.gated}

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.asked.append((layer_index, timeout_in_millis))
        self.reached[layer_index].set()
        if layer_index in self.gates:
            assert self.gates[layer_index].wait(PATIENCE_S)
        outcome = self.outcomes.get(layer_index, True)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    @property
    def layers(self) -> list[int]:
        return [layer for layer, _ in self.asked]

    def wait_until_at(self, layer: int) -> None:
        assert self.reached[layer].wait(PATIENCE_S), f"layer {layer} was never asked for"

    def let_through(self, *layers: int) -> None:
        for layer in layers or self.gates:
            self.gates[layer].set()


def ready(**outcomes: Any) -> Steps:
    return Steps(outcomes={int(name.removeprefix("layer_")): outcome for name, outcome in outcomes.items()})


class Scene:
    """A sender, cluster 1, and receivers linked to it, in either mode."""

    def __init__(self, remote_mode: bool, make_datadist: Any, link: Any) -> None:
        self.remote_mode = remote_mode
        self._make, self._link = make_datadist, link
        self.sender = make_datadist(1, remote_accessible=remote_mode, timeout_ms=10_000)
        self.manager: CacheManager = self.sender.cache_manager
        self.receivers: dict[int, LLMDataDist] = {}

    def receiver(self, cluster_id: int = 2, linked: bool = True, **settings: Any) -> CacheManager:
        datadist = self._make(cluster_id, remote_accessible=self.remote_mode, **settings)
        self.receivers[cluster_id] = datadist
        if linked:
            self._link(self.sender, datadist)
        return datadist.cache_manager

    def source(self, desc: CacheDesc = DESC, keys: list[CacheKey] | None = None) -> Cache:
        cache = self.manager.allocate_cache(desc, keys or [])
        fill(cache)
        return cache

    def config(
        self,
        target: Cache,
        layers: range | None = None,
        onto: range | None = None,
        *,
        cluster_id: int = 2,
        src_slot: int = 0,
        dst_slot: int = 0,
    ) -> Config:
        """Layers for a slot of a receiver's cache: by its key, or by its addresses."""
        if self.remote_mode:
            layers = range(LAYERS) if layers is None else layers
            key = CacheKeyByIdAndIndex(cluster_id, target.cache_id, dst_slot)
            return TransferWithCacheKeyConfig(key, layers, onto or layers, src_slot)
        wanted = onto or layers or range(LAYERS)
        addresses = target.tensor_addrs[2 * wanted.start : 2 * wanted.stop]
        offset = 0 if target.is_blocks_cache else dst_slot * target.cache_desc.size // target.cache_desc.batch_size
        return TransferConfig(cluster_id, [address + offset for address in addresses], layers, src_slot)

    def send(self, source: Cache, steps: LayerSynchronizer, *configs: Config, **lists: Any) -> CacheTask:
        return self.manager.transfer_cache_async(source, steps, list(configs), **lists)


@pytest.fixture(params=[False, True], ids=["addresses", "keys"])
def remote_mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def scene(remote_mode: bool, make_datadist: Any, link: Any) -> Scene:
    return Scene(remote_mode, make_datadist, link)


@pytest.fixture
def remote_scene(make_datadist: Any, link: Any) -> Scene:
    return Scene(True, make_datadist, link)


def mark(tensor: int, row: int) -> int:
    return 1 + 20 * tensor + row


def fill(cache: Cache, value: int | None = None) -> None:
    """Every row gets a number of its own, or all get the same."""
    for number, tensor in enumerate(cache.tensors):
        for row in range(len(tensor)):
            tensor[row] = mark(number, row) if value is None else value


def empty(manager: CacheManager, desc: CacheDesc = DESC) -> Cache:
    cache = manager.allocate_cache(desc)
    fill(cache, 0)
    return cache


def empty_blocks(manager: CacheManager, desc: CacheDesc = BLOCKS, key: BlocksCacheKey | None = None) -> Cache:
    cache = manager.allocate_blocks_cache(desc, key)
    fill(cache, 0)
    return cache


def row(cache: Cache, number: int = 0) -> list[int]:
    """What one row of each tensor is filled with."""
    seen = []
    for tensor in cache.tensors:
        (value,) = set(tensor[number].tolist())
        seen.append(value)
    return seen


def slot(number: int, *tensors: int) -> list[int]:
    """What a row holds that got these tensors of slot ``number``; -1 for one that got nothing."""
    return [0 if tensor < 0 else mark(tensor, number) for tensor in tensors]


def results(task: CacheTask) -> list[LLMStatusCode | None]:
    assert task.synchronize(int(PATIENCE_S * 1000)) is not TIMEOUT
    return task.get_results()


# a layer is on its way while the next one is being computed


def test_a_layer_has_arrived_while_the_next_is_still_being_computed(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = Steps(gated=(0, 1, 2))
    source = scene.source()
    fill(source, 0)
    task = scene.send(source, steps, scene.config(target))
    for layer in range(LAYERS):
        steps.wait_until_at(layer)
        before = [7 * (tensor // 2 + 1) if tensor < 2 * layer else 0 for tensor in range(2 * LAYERS)]
        assert row(target) == before
        assert task.synchronize(0) is TIMEOUT
        for tensor in source.tensors[2 * layer : 2 * layer + 2]:
            tensor[0] = 7 * (layer + 1)  # this layer is computed now, after the one before has been sent
        steps.let_through(layer)
    assert results(task) == [SUCCESS]
    assert row(target) == [7, 7, 14, 14, 21, 21]


def test_the_same_between_two_processes(remote_scene: Scene) -> None:
    processes = multiprocessing.get_context("forkserver")
    connection, theirs = processes.Pipe()
    config = LLMConfig()
    config.local_comm_res = ""
    config.mem_pool_cfg = '{"memory_size": 1048576, "page_shift": 12}'
    config.listen_ip_info = "127.0.0.1:0"
    process = processes.Process(target=cluster_process.run, args=(theirs, 2, config.generate_options()), daemon=True)
    process.start()
    theirs.close()

    def ask(name: str, *arguments: Any) -> Any:
        connection.send((name, arguments))
        return answer()

    def answer() -> Any:
        assert connection.poll(PATIENCE_S), "the other process does not answer"
        return connection.recv()

    assert answer() == "ready"
    cluster = cluster_process.cluster_info(2, ask("listen_address"))
    assert remote_scene.sender.link_clusters([cluster], timeout=int(PATIENCE_S * 1000))[0] is SUCCESS
    [cache_id] = ask("bind", DESC, 0, 1)
    steps = Steps(gated=(0, 1, 2))
    config_of_all = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, cache_id, 1), range(LAYERS), range(LAYERS))
    task = remote_scene.send(remote_scene.source(), steps, config_of_all)
    for layer in range(LAYERS):
        steps.wait_until_at(layer)
        assert ask("seen", 0, 1) == [mark(tensor, 0) if tensor < 2 * layer else 0 for tensor in range(2 * LAYERS)]
        steps.let_through(layer)
    assert results(task) == [SUCCESS]
    assert ask("seen", 0, 1) == slot(0, 0, 1, 2, 3, 4, 5)
    assert ask("seen", 0, 0) == [0] * 2 * LAYERS
    connection.close()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


# the walk


def test_layers_are_asked_for_once_in_ascending_order_and_only_where_wanted(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = ready()
    layers = [range(2, 3), range(2, 3), range(1)]
    task = scene.send(scene.source(), steps, *(scene.config(target, each) for each in layers))
    assert results(task) == [SUCCESS] * 3
    assert steps.asked == [(0, None), (2, None)]
    assert row(target) == slot(0, 0, 1, -1, -1, 4, 5)


def test_a_layer_is_sent_in_the_order_of_the_configs(scene: Scene) -> None:
    target = empty(scene.receiver())
    first, second = (scene.config(target, src_slot=number) for number in range(2))
    assert results(scene.send(scene.source(), ready(), first, second)) == [SUCCESS] * 2
    assert row(target) == slot(1, *range(6))
    assert results(scene.send(scene.source(), ready(), second, first)) == [SUCCESS] * 2
    assert row(target) == slot(0, *range(6))


def test_layers_go_to_the_layers_named_counted_from_the_begin_of_the_range(scene: Scene) -> None:
    target = empty(scene.receiver())
    task = scene.send(scene.source(), ready(), scene.config(target, range(1, 3), range(2), src_slot=1, dst_slot=1))
    assert results(task) == [SUCCESS]
    assert row(target, 1) == slot(1, 2, 3, 4, 5, -1, -1)
    assert row(target, 0) == [0] * 6


def test_without_a_range_raw_addresses_take_all_layers(make_datadist: Any, link: Any) -> None:
    scene = Scene(False, make_datadist, link)
    target = empty(scene.receiver())
    config = scene.config(target)
    assert config.src_layer_range is None
    assert results(scene.send(scene.source(), ready(), config)) == [SUCCESS]
    assert row(target) == slot(0, *range(6))
    assert config.src_layer_range is None


def test_several_clusters_each_get_what_they_want(scene: Scene) -> None:
    targets = {cluster_id: empty(scene.receiver(cluster_id)) for cluster_id in (2, 3, 4)}
    wanted = {2: range(3), 3: range(1), 4: range(1, 3)}
    configs = [scene.config(targets[each], wanted[each], cluster_id=each) for each in (2, 3, 4)]
    assert results(scene.send(scene.source(), ready(), *configs)) == [SUCCESS] * 3
    assert row(targets[2]) == slot(0, *range(6))
    assert row(targets[3]) == slot(0, 0, 1, -1, -1, -1, -1)
    assert row(targets[4]) == slot(0, -1, -1, 2, 3, 4, 5)


def test_a_cache_of_another_placement_receives(scene: Scene) -> None:
    receiver = scene.receiver(host_bytes=1 << 20)
    target = empty(receiver, CacheDesc(2 * LAYERS, (SLOTS, SLOT_BYTES), DataType.DT_UINT8, Placement.HOST))
    assert results(scene.send(scene.source(), ready(), scene.config(target))) == [SUCCESS]
    assert row(target) == slot(0, *range(6))


def test_memory_of_the_programs_own_is_sent_and_receives(scene: Scene) -> None:
    receiver = scene.receiver()
    ours, theirs = (np.zeros((2 * LAYERS, SLOTS, SLOT_BYTES), np.uint8) for _ in range(2))
    ours[:] = np.arange(2 * LAYERS, dtype=np.uint8).reshape(-1, 1, 1) + 1
    source = scene.manager.register_cache(DESC, [tensor.ctypes.data for tensor in ours])
    target = receiver.register_cache(DESC, [tensor.ctypes.data for tensor in theirs])
    assert results(scene.send(source, ready(), scene.config(target, dst_slot=1))) == [SUCCESS]
    assert theirs[:, 1, -1].tolist() == [1, 2, 3, 4, 5, 6] and not theirs[:, 0].any()


# what a synchronizer says


def test_false_ends_the_configs_that_want_this_layer(scene: Scene) -> None:
    targets = [empty(scene.receiver(cluster_id)) for cluster_id in (2, 3)]
    steps = ready(layer_1=False)
    configs = (scene.config(targets[0]), scene.config(targets[1], range(1), cluster_id=3))
    assert results(scene.send(scene.source(), steps, *configs)) == [INVALID, SUCCESS]
    assert steps.layers == [0, 1]  # nobody wants layer 2 any more
    assert row(targets[0]) == slot(0, 0, 1, -1, -1, -1, -1)
    assert row(targets[1]) == slot(0, 0, 1, -1, -1, -1, -1)


def test_other_configs_go_on_after_false(scene: Scene) -> None:
    targets = [empty(scene.receiver(cluster_id)) for cluster_id in (2, 3, 4)]
    steps = ready(layer_0=False)
    wanted = [range(1), range(3), range(1, 3)]
    configs = [
        scene.config(target, layers, cluster_id=cluster_id)
        for cluster_id, target, layers in zip((2, 3, 4), targets, wanted, strict=True)
    ]
    task = scene.send(scene.source(), steps, *configs)
    assert results(task) == [INVALID, INVALID, SUCCESS]
    assert steps.layers == [0, 1, 2]
    assert row(targets[1]) == [0] * 6
    assert row(targets[2]) == slot(0, -1, -1, 2, 3, 4, 5)


@pytest.mark.parametrize("answer", [None, 0, []])
def test_what_is_as_good_as_false(answer: Any, scene: Scene) -> None:
    target = empty(scene.receiver())
    assert results(scene.send(scene.source(), ready(layer_0=answer), scene.config(target))) == [INVALID]


@pytest.mark.parametrize(
    "error",
    [LookupError("no such layer"), LLMException("inside", status_code=NOT_LINKED), SystemExit(3), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_ends_the_configs_that_want_this_layer_and_is_logged(
    error: BaseException, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    target = empty(scene.receiver())
    steps = ready(layer_1=error)
    wanted = [range(3), range(1), range(2, 3), range(1, 2)]
    with caplog.at_level(logging.ERROR, logger="llmdd"):
        task = scene.send(scene.source(), steps, *(scene.config(target, each) for each in wanted))
        assert results(task) == [FAILED, SUCCESS, SUCCESS, FAILED]
    assert task.synchronize() is FAILED
    assert steps.layers == [0, 1, 2]
    assert row(target) == slot(0, 0, 1, -1, -1, 4, 5)
    [record] = [record for record in caplog.records if "synchronize_layer(1, None)" in record.getMessage()]
    assert record.exc_info is not None and record.exc_info[1] is error
    assert "synchronize_layer" in logging.Formatter().formatException(record.exc_info)


def test_an_answer_that_cannot_be_judged_is_an_exception(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = ready(layer_0=np.array([True, False]))
    assert results(scene.send(scene.source(), steps, scene.config(target))) == [FAILED]


# failed transfers


def test_a_failed_transfer_ends_its_config_with_its_own_code(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    target = empty(scene.receiver())
    steps = ready()
    nowhere, lost, good = (scene.config(target, cluster_id=9), scene.config(target, range(1, 3)), scene.config(target))
    if isinstance(lost, TransferWithCacheKeyConfig):
        lost.cache_key = CacheKeyByIdAndIndex(2, target.cache_id + 1)
    else:
        assert isinstance(lost, TransferConfig)
        lost.dst_addrs = [4096] * 4
    with caplog.at_level(logging.ERROR, logger="llmdd"):
        task = scene.send(scene.source(), steps, nowhere, lost, good)
        assert results(task) == [NOT_LINKED, NOT_EXIST if scene.remote_mode else INVALID, SUCCESS]
    assert task.synchronize() is NOT_LINKED
    assert steps.layers == [0, 1, 2]
    assert row(target) == slot(0, *range(6))
    logged = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in logged] == [
        "layer 0 was not sent to cluster 9",
        "layer 1 was not sent to cluster 2",
    ]


def test_a_layer_that_takes_too_long_ends_its_config_and_the_next_one_has_its_own_time(
    remote_mode: bool, make_datadist: Any, link: Any
) -> None:
    """A sender whose calls may take a millisecond: one layer is larger than any machine copies in that time."""
    sender, receiver = (
        make_datadist(cluster, device_bytes=160 << 20, page_shift=20, remote_accessible=remote_mode, timeout_ms=timeout)
        for cluster, timeout in ((1, 1), (2, 5000))
    )
    link(sender, receiver)
    large = CacheDesc(2, (1, 64 << 20), DataType.DT_UINT8)
    small = CacheDesc(2, (1, 64), DataType.DT_UINT8)
    codes = []
    for desc in (large, small):
        source, target = (each.cache_manager.allocate_cache(desc) for each in (sender, receiver))
        config: Config = TransferConfig(2, target.tensor_addrs)
        if remote_mode:
            config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, target.cache_id), range(1), range(1))
        codes += sender.cache_manager.transfer_cache_async(source, ready(), [config]).get_results()
    assert codes == [TIMEOUT, SUCCESS]


def test_layers_that_nobody_wants_any_more_are_not_asked_for(scene: Scene) -> None:
    target = empty(scene.receiver(linked=False))
    steps = ready()
    task = scene.send(scene.source(), steps, scene.config(target), scene.config(target, range(1)))
    assert results(task) == [NOT_LINKED, NOT_LINKED]
    assert steps.layers == [0]


def test_our_own_cluster_is_not_linked(scene: Scene) -> None:
    target = empty(scene.manager)
    assert results(scene.send(scene.source(), ready(), scene.config(target, cluster_id=1))) == [NOT_LINKED]


def test_a_link_that_goes_while_a_layer_is_computed(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = Steps(gated=(1,))
    task = scene.send(scene.source(), steps, scene.config(target), scene.config(target, range(1)))
    steps.wait_until_at(1)
    cluster = cluster_process.cluster_info(2, scene.receivers[2].listen_address or ("", 0))
    assert scene.sender.unlink_clusters([cluster])[0] is SUCCESS
    steps.let_through()
    assert results(task) == [NOT_LINKED, SUCCESS]
    assert row(target) == slot(0, 0, 1, -1, -1, -1, -1)


@pytest.mark.parametrize(
    "places",
    [
        ["first", "nowhere"],
        ["first", "one byte too far"],
        ["before", "first"],
        ["zero", "zero"],
        ["gone", "gone"],
    ],
    ids="-".join,
)
def test_raw_addresses_must_lie_in_one_live_cache_of_the_cluster(
    places: list[str], make_datadist: Any, link: Any
) -> None:
    scene = Scene(False, make_datadist, link)
    receiver = scene.receiver()
    target, gone = empty(receiver), empty(receiver)
    inside, was = target.tensor_addrs[0], gone.tensor_addrs[0]
    receiver.deallocate_cache(gone)
    size = SLOTS * SLOT_BYTES
    where = {
        "first": inside,
        "nowhere": 1 << 60,
        "before": inside - 1,
        "zero": 0,
        "gone": was,
        "one byte too far": inside + size - SLOT_BYTES + 1,
    }
    config = TransferConfig(2, [where[place] for place in places], range(1))
    assert results(scene.send(scene.source(), ready(), config)) == [INVALID]


def test_a_layer_beyond_the_destination_is_refused(remote_scene: Scene) -> None:
    target = empty(remote_scene.receiver(), CacheDesc(4, (SLOTS, SLOT_BYTES), DataType.DT_UINT8))
    for first in (1, 2, 2**32, 2**63, 2**70):
        config = remote_scene.config(target, range(2), range(first, first + 2))
        assert results(remote_scene.send(remote_scene.source(), ready(), config)) == [INVALID]
    assert row(target) == slot(0, -1, -1, 0, 1)  # of the first of them one layer fitted


def test_a_slot_too_small_and_a_slot_beyond_the_batch_are_refused(remote_scene: Scene) -> None:
    receiver = remote_scene.receiver()
    small = empty(receiver, CacheDesc(2 * LAYERS, (4, SLOT_BYTES // 2), DataType.DT_UINT8))
    assert results(remote_scene.send(remote_scene.source(), ready(), remote_scene.config(small))) == [INVALID]
    beyond = remote_scene.config(empty(receiver), dst_slot=SLOTS)
    [code] = results(remote_scene.send(remote_scene.source(), ready(), beyond))
    assert code in (INVALID, NOT_EXIST)
    assert [row(small, number) for number in range(4)] == [[0] * 6] * 4


# results


def test_results_are_kept_for_each_config_also_of_one_cluster(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = Steps(outcomes={0: False}, gated=(2,))
    task = scene.send(scene.source(), steps, scene.config(target, range(1)), scene.config(target, range(1, 3)))
    steps.wait_until_at(2)
    assert task.get_results(0) == [TIMEOUT, TIMEOUT]
    steps.let_through()
    assert results(task) == [INVALID, SUCCESS]
    assert task.synchronize() is INVALID


def test_the_first_failure_in_the_order_of_the_configs_is_what_synchronize_says(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = ready(layer_1=False)
    ordered = [scene.config(target, range(1)), scene.config(target, range(1, 2)), scene.config(target, cluster_id=9)]
    task = scene.send(scene.source(), steps, *ordered)
    assert results(task) == [SUCCESS, INVALID, NOT_LINKED]
    assert task.synchronize() is INVALID  # although the other failed earlier


def test_what_get_results_gives_is_the_callers(scene: Scene) -> None:
    task = scene.send(scene.source(), ready(), scene.config(empty(scene.receiver())))
    results(task).clear()
    assert task.get_results() == [SUCCESS]


def test_waiting_can_end_early_and_begin_again(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = Steps(gated=(1,))
    task = scene.send(scene.source(), steps, scene.config(target), scene.config(target, range(1)))
    for timeout in (0, 1):
        assert task.synchronize(timeout) is TIMEOUT
        assert task.get_results(timeout_in_millis=timeout) == [TIMEOUT, TIMEOUT]
    outcomes: list[LLMStatusCode] = []
    waiting = [threading.Thread(target=lambda: outcomes.append(task.synchronize())) for _ in range(3)]
    for thread in waiting:
        thread.start()
    steps.let_through()
    for thread in waiting:
        thread.join(PATIENCE_S)
    assert outcomes == [SUCCESS] * 3
    assert task.synchronize(timeout_in_millis=0) is SUCCESS
    assert task.get_results(0) == [SUCCESS, SUCCESS]
    assert row(target) == slot(0, *range(6))


@pytest.mark.parametrize("wrong", ["1", 1.0, [], -1, 2**32])
def test_a_timeout_is_a_uint32(wrong: Any, scene: Scene) -> None:
    task = scene.send(scene.source(), ready(), scene.config(empty(scene.receiver())))
    for wait in (task.synchronize, task.get_results):
        with pytest.raises(ValueError if isinstance(wrong, int) else TypeError, match="timeout_in_millis"):
            wait(wrong)
    assert task.synchronize(2**32 - 1) is SUCCESS


@pytest.mark.parametrize("nothing", [[], ()])
def test_nothing_to_send_is_a_success(nothing: Any, scene: Scene) -> None:
    steps = ready()
    task = scene.manager.transfer_cache_async(scene.source(), steps, nothing)
    assert (task.synchronize(), task.get_results(), steps.asked) == (SUCCESS, [], [])


# what the caller does meanwhile


def test_configs_are_not_modified(scene: Scene) -> None:
    target = empty(scene.receiver())
    config = scene.config(target)
    before = dict(vars(config))
    given = [config]
    assert results(scene.manager.transfer_cache_async(scene.source(), ready(), given)) == [SUCCESS]
    assert vars(config) == before and given == [config]


def test_what_becomes_of_lists_and_configs_afterwards_has_no_effect(scene: Scene) -> None:
    target = empty(scene.receiver())
    steps = Steps(gated=(0,))
    config = scene.config(target, range(2))
    configs = [config]
    task = scene.manager.transfer_cache_async(scene.source(), steps, configs)
    steps.wait_until_at(0)
    configs.clear()
    config.src_layer_range = range(2, 3)
    config.src_batch_index = 1
    if isinstance(config, TransferConfig):
        assert isinstance(config.dst_addrs, list)
        config.dst_addrs[:] = [0] * 4
        config.dst_cluster_id = 9
    else:
        config.cache_key = CacheKeyByIdAndIndex(9, 1)
        config.dst_layer_range = range(5, 6)
    steps.let_through()
    assert results(task) == [SUCCESS]
    assert steps.layers == [0, 1]
    assert row(target) == slot(0, 0, 1, 2, 3, -1, -1)


def test_what_becomes_of_block_lists_afterwards_has_no_effect(scene: Scene) -> None:
    target = empty_blocks(scene.receiver())
    source = scene.manager.allocate_blocks_cache(BLOCKS)
    fill(source)
    steps = Steps(gated=(0,))
    ours, theirs = [1], [2]
    task = scene.send(source, steps, scene.config(target, range(1)), src_block_indices=ours, dst_block_indices=theirs)
    steps.wait_until_at(0)
    ours[0], theirs[0] = 3, 4
    steps.let_through()
    assert results(task) == [SUCCESS]
    assert row(target, 2)[:2] == [mark(0, 1), mark(1, 1)]
    assert row(target, 4) == [0] * 6


def test_the_cluster_of_a_config_follows_its_key(remote_scene: Scene) -> None:
    targets = [empty(remote_scene.receiver(cluster_id)) for cluster_id in (2, 3)]
    config = remote_scene.config(targets[0])
    assert isinstance(config, TransferWithCacheKeyConfig)
    config.cache_key = CacheKeyByIdAndIndex(3, targets[1].cache_id)
    assert results(remote_scene.send(remote_scene.source(), ready(), config)) == [SUCCESS]
    assert [row(target) for target in targets] == [[0] * 6, slot(0, *range(6))]


def test_tasks_overlap(scene: Scene) -> None:
    """Two tasks on one source and one more on another: none waits for what another one computes."""
    receiver = scene.receiver()
    targets = [empty(receiver) for _ in range(3)]
    source = scene.source()
    sources = [source, source, scene.source()]
    stages = [Steps(gated=(0, 1, 2)) for _ in targets]
    tasks = [
        scene.send(each, steps, scene.config(target, src_slot=index % 2))
        for index, (each, steps, target) in enumerate(zip(sources, stages, targets, strict=True))
    ]
    for layer in range(LAYERS):
        for steps in reversed(stages):
            steps.wait_until_at(layer)
            steps.let_through(layer)
    assert [results(task) for task in tasks] == [[SUCCESS]] * 3
    assert [row(target) for target in targets] == [slot(index % 2, *range(6)) for index in range(3)]


def test_one_task_ends_while_another_is_still_waiting(scene: Scene) -> None:
    receiver = scene.receiver()
    slow = Steps(gated=(0,))
    source = scene.source()
    waiting = scene.send(source, slow, scene.config(empty(receiver)))
    slow.wait_until_at(0)
    assert results(scene.send(source, ready(), scene.config(empty(receiver)))) == [SUCCESS]
    assert waiting.synchronize(0) is TIMEOUT
    slow.let_through()
    assert results(waiting) == [SUCCESS]


def test_a_source_that_is_deallocated_meanwhile_is_sent_to_the_end_and_then_freed(scene: Scene) -> None:
    target = empty(scene.receiver())
    free = scene.manager.pool_usage().free_bytes
    steps = Steps(gated=(1,))
    source = scene.source()
    task = scene.send(source, steps, scene.config(target))
    steps.wait_until_at(1)
    scene.manager.deallocate_cache(source)
    assert scene.manager.pool_usage().free_bytes < free
    others = [scene.manager.allocate_cache(DESC) for _ in range(8)]
    for other in others:
        fill(other, 255)
    steps.let_through()
    assert results(task) == [SUCCESS]
    assert row(target) == slot(0, *range(6))
    for other in others:
        scene.manager.deallocate_cache(other)
    gc.collect()
    assert scene.manager.pool_usage().free_bytes == free
    scene.manager.check()


def test_a_source_deallocated_before_has_nothing_to_send(scene: Scene) -> None:
    target = empty(scene.receiver())
    source = scene.source()
    scene.manager.deallocate_cache(source)
    steps = ready()
    task = scene.send(source, steps, scene.config(target, range(1)), scene.config(target, range(1, 3)))
    assert results(task) == [NOT_EXIST, NOT_EXIST]
    assert steps.layers == [0, 1]


def test_a_cache_of_another_instance_is_unknown(scene: Scene) -> None:
    receiver = scene.receiver()
    theirs = empty(receiver)
    assert results(scene.send(theirs, ready(), scene.config(theirs))) == [NOT_EXIST]


def test_a_destination_that_goes_meanwhile(scene: Scene) -> None:
    receiver = scene.receiver()
    target, other = empty(receiver), empty(receiver)
    steps = Steps(gated=(1,))
    task = scene.send(scene.source(), steps, scene.config(target), scene.config(other))
    steps.wait_until_at(1)
    receiver.deallocate_cache(target)
    steps.let_through()
    assert results(task) == [NOT_EXIST if scene.remote_mode else INVALID, SUCCESS]
    assert row(other) == slot(0, *range(6))


def test_no_key_is_released_on_either_side(scene: Scene) -> None:
    receiver = scene.receiver()
    target = receiver.allocate_cache(DESC, [CacheKey(2, 5), CacheKey(2, 6)])
    source = scene.source(keys=[CacheKey(1, 7), CacheKey(1, 8)])
    assert results(scene.send(source, ready(), scene.config(target))) == [SUCCESS]
    for manager, numbers in ((receiver, (5, 6)), (scene.manager, (7, 8))):
        assert all(manager.lookup(CacheKey(1, number)) is not None for number in numbers)


def test_unregistering_a_source_waits_for_the_task(make_datadist: Any) -> None:
    manager = make_datadist(1, timeout_ms=20).cache_manager
    memory = np.zeros((2 * LAYERS, SLOTS, SLOT_BYTES), np.uint8)
    source = manager.register_cache(DESC, [tensor.ctypes.data for tensor in memory])
    steps = Steps(gated=(0,))
    task = manager.transfer_cache_async(source, steps, [TransferConfig(9, [1, 2], range(1))])
    steps.wait_until_at(0)
    with pytest.raises(LLMException) as refused:
        manager.unregister_cache(source.cache_id)
    assert refused.value.status_code is TIMEOUT
    steps.let_through()
    assert results(task) == [NOT_LINKED]
    manager.unregister_cache(source.cache_id)
    assert manager.live_caches == 0


# blocks


def test_a_slot_goes_to_listed_blocks(scene: Scene) -> None:
    target = empty_blocks(scene.receiver())
    source = scene.manager.allocate_cache(DESC)
    for number, tensor in enumerate(source.tensors):
        tensor[1] = np.arange(SLOT_BYTES) // 16 + 10 * number
    task = scene.send(
        source,
        ready(),
        scene.config(target, src_slot=1),
        dst_block_indices=(5, 0, 7),
        dst_block_memory_size=16,
    )
    assert results(task) == [SUCCESS]
    for index, block in enumerate((5, 0, 7)):
        assert row(target, block) == [10 * number + index for number in range(6)]
    assert row(target, 1) == [0] * 6


def test_listed_blocks_go_to_listed_blocks(scene: Scene) -> None:
    target = empty_blocks(scene.receiver())
    source = scene.manager.allocate_blocks_cache(BLOCKS)
    fill(source)
    for size in (None, 0, 16):
        task = scene.send(
            source,
            ready(),
            scene.config(target),
            src_block_indices=[3, 4],
            dst_block_indices=[1, 7],
            dst_block_memory_size=size,
        )
        assert results(task) == [SUCCESS]
    assert row(target, 1) == [mark(tensor, 3) for tensor in range(6)]
    assert row(target, 7) == [mark(tensor, 4) for tensor in range(6)]
    assert row(target, 3) == [0] * 6


def test_without_lists_every_block_goes(scene: Scene) -> None:
    target = empty_blocks(scene.receiver())
    source = scene.manager.allocate_blocks_cache(BLOCKS)
    fill(source)
    assert results(scene.send(source, ready(), scene.config(target))) == [SUCCESS]
    assert [row(target, block) for block in range(8)] == [
        [mark(tensor, block) for tensor in range(6)] for block in range(8)
    ]


def test_blocks_by_the_key_of_a_model(remote_scene: Scene) -> None:
    target = empty_blocks(remote_scene.receiver(), key=BlocksCacheKey(2, 4))
    source = remote_scene.manager.allocate_blocks_cache(BLOCKS)
    fill(source)
    config = TransferWithCacheKeyConfig(BlocksCacheKey(2, 4), range(1), range(2, 3))
    assert results(remote_scene.send(source, ready(), config)) == [SUCCESS]
    assert row(target, 6) == [0, 0, 0, 0, mark(0, 6), mark(1, 6)]
    other_model = TransferWithCacheKeyConfig(BlocksCacheKey(2, 5), range(1), range(1))
    assert results(remote_scene.send(source, ready(), other_model)) == [NOT_EXIST]


@pytest.mark.parametrize(
    "lists",
    [
        {"dst_block_indices": [0], "dst_block_memory_size": 32},
        {"dst_block_indices": [8], "dst_block_memory_size": 16},
        {"dst_block_indices": [0, 1, 2, 3, 4], "dst_block_memory_size": 16},
        {"dst_block_indices": [0], "src_block_indices": [0]},
        {},
    ],
    ids=str,
)
def test_slots_that_do_not_fit_blocks(lists: dict[str, Any], remote_scene: Scene) -> None:
    """Another block size, a block too far, more blocks than a slot fills, blocks of a cache of slots, no list."""
    target = empty_blocks(remote_scene.receiver())
    task = remote_scene.send(remote_scene.source(), ready(), remote_scene.config(target), **lists)
    assert results(task) == [INVALID]
    assert [row(target, block) for block in range(8)] == [[0] * 6] * 8


@pytest.mark.parametrize(
    "lists",
    [
        {"src_block_indices": [8], "dst_block_indices": [0]},
        {"src_block_indices": [0], "dst_block_indices": [8]},
        {"src_block_indices": [0], "dst_block_indices": [0], "dst_block_memory_size": 8},
        {"dst_block_indices": [0], "dst_block_memory_size": 16},
    ],
    ids=str,
)
def test_blocks_that_do_not_fit_blocks(lists: dict[str, Any], scene: Scene) -> None:
    target = empty_blocks(scene.receiver())
    source = scene.manager.allocate_blocks_cache(BLOCKS)
    assert results(scene.send(source, ready(), scene.config(target), **lists)) == [INVALID]
    assert [row(target, block) for block in range(8)] == [[0] * 6] * 8


# arguments


@dataclass
class Call:
    """The arguments of a call that succeeds, to be spoilt."""

    src_cache: Any
    layer_synchronizer: Any
    transfer_configs: Any
    src_block_indices: Any = None
    dst_block_indices: Any = None
    dst_block_memory_size: Any = None


@pytest.fixture
def call(scene: Scene) -> Call:
    target = empty(scene.receiver())
    return Call(scene.source(), ready(), [scene.config(target)])


def refused(scene: Scene, call: Call, error: type[Exception], words: str, **changes: Any) -> None:
    observed = scene.manager.live_caches, scene.manager.pool_usage(), threading.active_count()
    with pytest.raises(error) as raised:
        scene.manager.transfer_cache_async(**{**vars(call), **changes})
    assert words in str(raised.value)
    if isinstance(raised.value, LLMException):
        assert raised.value.status_code is INVALID
    assert (scene.manager.live_caches, scene.manager.pool_usage(), threading.active_count()) == observed
    assert isinstance(call.layer_synchronizer, Steps) and not call.layer_synchronizer.asked


# Each with the arguments after it wrong too, as far as one call can have it: the first wrong one decides.
REST_WRONG: dict[str, Any] = {"layer_synchronizer": None, "transfer_configs": None}
REFUSALS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    *((TypeError, "src_cache only support", {"src_cache": wrong} | REST_WRONG) for wrong in (None, 1, DESC)),
    *(
        (TypeError, "dst_block_indices", {"dst_block_indices": wrong, "src_block_indices": 1} | REST_WRONG)
        for wrong in (1, {1}, "1", ["1"], [None], (1.0,))
    ),
    (ValueError, "dst_block_indices", {"dst_block_indices": [-1], "src_block_indices": 1} | REST_WRONG),
    (ValueError, "dst_block_indices", {"dst_block_indices": [2**64], "src_block_indices": 1} | REST_WRONG),
    (TypeError, "src_block_indices", {"src_block_indices": [None], "dst_block_memory_size": "1"} | REST_WRONG),
    (ValueError, "src_block_indices", {"src_block_indices": (2**64,), "dst_block_memory_size": "1"} | REST_WRONG),
    (TypeError, "dst_block_memory_size", {"dst_block_memory_size": "1", "src_block_indices": [1]} | REST_WRONG),
    (ValueError, "dst_block_memory_size", {"dst_block_memory_size": -1, "src_block_indices": [1]} | REST_WRONG),
    (ValueError, "dst_block_memory_size", {"dst_block_memory_size": 2**64, "src_block_indices": [1]} | REST_WRONG),
    (LLMException, "transfer from blocks to cache is not supported", {"src_block_indices": [1]} | REST_WRONG),
    (
        LLMException,
        "num_block_indices mismatches",
        {"src_block_indices": [1, 2], "dst_block_indices": [1]} | REST_WRONG,
    ),
    *(
        (
            LLMException,
            "dst_block_memory_size must be set",
            {"dst_block_indices": [1], "dst_block_memory_size": size} | REST_WRONG,
        )
        for size in (None, 0)
    ),
    *(
        (TypeError, "layer_synchronizer only support", {"layer_synchronizer": wrong, "transfer_configs": None})
        for wrong in (None, 1, lambda layer, timeout: True, LayerSynchronizer)
    ),
    *(
        (TypeError, "transfer_configs", {"transfer_configs": wrong, "dst_block_memory_size": 1})
        for wrong in (None, 1, {}, "config", [None], [1], iter(()))
    ),
    (LLMException, "dst_block_memory_size", {"dst_block_memory_size": 1}),
]


@pytest.mark.parametrize(("error", "words", "changes"), REFUSALS)
def test_wrong_arguments(error: type[Exception], words: str, changes: dict[str, Any], scene: Scene, call: Call) -> None:
    refused(scene, call, error, words, **changes)


def test_a_source_on_the_host_is_refused(make_datadist: Any) -> None:
    manager = make_datadist(1, host_bytes=1 << 20).cache_manager
    for source in (
        manager.allocate_cache(CacheDesc(3, (1, 64), DataType.DT_INT8, Placement.HOST)),
        Cache.create_cpu_cache(CacheDesc(2, (1, 64), DataType.DT_INT8, Placement.HOST), [4096, 8192]),
    ):
        with pytest.raises(LLMException, match="src cache not support placement HOST"):
            manager.transfer_cache_async(source, None, None, 1, 2, "3")


def test_configs_of_the_other_mode_are_refused(scene: Scene, call: Call) -> None:
    other: Config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, 1), range(1), range(1))
    if scene.remote_mode:
        other = TransferConfig(2, [1, 2], range(1))
    words = f"While enable_remote_cache_accessible is {scene.remote_mode}"
    refused(scene, call, TypeError, words, transfer_configs=[*call.transfer_configs, other])


def test_an_odd_number_of_tensors_is_refused(scene: Scene, call: Call) -> None:
    odd = scene.manager.allocate_cache(CacheDesc(3, (1, 64), DataType.DT_INT8))
    call.transfer_configs[0].src_batch_index = 5
    refused(scene, call, LLMException, "is not even", src_cache=odd)


def test_the_slot_of_the_source_is_checked(scene: Scene, call: Call) -> None:
    config = call.transfer_configs[0]
    config.src_batch_index = SLOTS
    config.src_layer_range = range(LAYERS + 5)
    refused(scene, call, LLMException, "src_batch_index")
    config.src_batch_index = 1
    blocks = scene.manager.allocate_blocks_cache(BLOCKS)
    refused(scene, call, LLMException, "src_batch_index", src_cache=blocks)


def test_the_layers_of_the_source_are_checked(scene: Scene, call: Call) -> None:
    for layers in (range(LAYERS + 1), range(LAYERS, LAYERS + 1), range(2**70)):
        call.transfer_configs[0].src_layer_range = layers
        refused(scene, call, LLMException, "out of range")


def test_every_config_is_checked_before_anything_begins(scene: Scene, call: Call) -> None:
    bad = scene.config(scene.source(), range(1))
    bad.src_batch_index = SLOTS
    refused(scene, call, LLMException, "src_batch_index", transfer_configs=[*call.transfer_configs, bad])


def test_the_number_and_values_of_addresses_are_checked(make_datadist: Any) -> None:
    manager = make_datadist(1).cache_manager
    source = manager.allocate_cache(DESC)
    for addresses, layers in (
        ([1] * 5, None),
        ([1] * 7, None),
        ([], None),
        ([1, 2], range(2)),
        ([1, 2, 3, 4], range(1)),
    ):
        with pytest.raises(LLMException, match="dst_addrs") as raised:
            manager.transfer_cache_async(source, ready(), [TransferConfig(2, addresses, layers)])
        assert raised.value.status_code is INVALID
    addresses = [1, 2]
    config = TransferConfig(2, addresses, range(1))
    addresses[1] = 2**64
    with pytest.raises(ValueError, match="dst_addrs"):
        manager.transfer_cache_async(source, ready(), [config])
    addresses[1] = None  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="dst_addrs"):
        manager.transfer_cache_async(source, ready(), [config])


def test_ranges_set_to_different_lengths_are_refused(remote_scene: Scene) -> None:
    config = remote_scene.config(empty(remote_scene.receiver()), range(1))
    config.src_layer_range = range(2)
    with pytest.raises(LLMException, match="src_layer_range size should be equal to dst_layer_range size"):
        remote_scene.send(remote_scene.source(), ready(), config)


def test_arguments_have_the_names_of_the_contract(scene: Scene, call: Call) -> None:
    assert results(scene.manager.transfer_cache_async(**vars(call))) == [SUCCESS]
    assert results(scene.manager.transfer_cache_async(*vars(call).values())) == [SUCCESS]
    call.transfer_configs = tuple(call.transfer_configs)
    call.src_block_indices, call.dst_block_indices, call.dst_block_memory_size = (), [], 0
    assert results(scene.manager.transfer_cache_async(**vars(call))) == [SUCCESS]


# threads and processes


def test_a_task_has_one_thread_of_its_own_also_when_a_daemon_asks(scene: Scene) -> None:
    target = empty(scene.receiver())
    source = scene.source()
    seen: list[threading.Thread] = []

    class Watching(LayerSynchronizer):
        def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
            seen.append(threading.current_thread())
            return True

    tasks: list[CacheTask] = []

    def ask() -> None:
        tasks.append(scene.send(source, Watching(), scene.config(target), scene.config(target)))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    ask()
    assert [results(task) for task in tasks] == [[SUCCESS, SUCCESS]] * 2
    assert len(seen) == 2 * LAYERS and len(set(seen)) == 2
    for thread in set(seen):
        assert not thread.daemon and not thread.is_alive()
        assert thread.name == f"llmdd layers of cache {source.cache_id}"


def test_finalize_while_a_layer_is_computed(scene: Scene) -> None:
    target = empty(scene.receiver())
    source = scene.source()
    steps = Steps(gated=(1,))
    task = scene.send(source, steps, scene.config(target), scene.config(target, range(1)))
    steps.wait_until_at(1)
    scene.sender.finalize()
    steps.let_through()
    assert results(task) == [LLMStatusCode.LLM_ENGINE_FINALIZED, SUCCESS]
    assert row(target) == slot(0, 0, 1, -1, -1, -1, -1)
    with pytest.raises(LLMException) as raised:
        scene.manager.transfer_cache_async(None, None, None)  # type: ignore[arg-type]
    assert raised.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED


AT_EXIT = """
import threading
from llmdd import *
from llmdd import CacheManager

class Slow(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        threading.main_thread().join()  # until the program has ended
        print("layer", layer_index, receiver.cache_manager.live_caches, target.tensors[0][0, 0], flush=True)
        return True

config = LLMConfig()
config.enable_cache_manager = True
config.mem_pool_cfg = '{"memory_size": 1048576}'
config.listen_ip_info = "127.0.0.1:0"
sender, receiver = LLMDataDist(LLMRole.PROMPT, 1), LLMDataDist(LLMRole.DECODER, 2)
sender.init(config.generate_options()), receiver.init(config.generate_options())
cluster = LLMClusterInfo()
cluster.remote_cluster_id = 2
cluster.append_local_ip_info("127.0.0.1", 0)
cluster.append_remote_ip_info(*receiver.listen_address)
assert sender.link_clusters([cluster], timeout=20000)[0] == LLMStatusCode.LLM_SUCCESS
desc = CacheDesc(4, (1, 64), DataType.DT_INT8)
source, target = sender.cache_manager.allocate_cache(desc), receiver.cache_manager.allocate_cache(desc)
for tensor in (*source.tensors, *target.tensors):
    tensor[:] = 0
source.tensors[0][:] = 7
sender.cache_manager.transfer_cache_async(source, Slow(), [TransferConfig(2, target.tensor_addrs)])
print("the end")
"""


def test_a_task_ends_before_the_instances_of_an_ending_program_do() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["the end", "layer 0 1 0", "layer 1 1 7"]


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not(scene: Scene) -> None:
    steps = Steps(gated=(0,))
    task = scene.send(scene.source(), steps, scene.config(empty(scene.receiver())))
    steps.wait_until_at(0)
    child = os.fork()
    if child == 0:
        answers = task.synchronize(), task.get_results()
        os._exit(0 if answers == (FAILED, [None]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    steps.let_through()
    assert results(task) == [SUCCESS]


def test_many_tasks_at_once(scene: Scene) -> None:
    """Every task sends numbers of its own into a slot of its own; nothing is mixed up, and all memory comes back."""
    receiver = scene.receiver()
    free = scene.manager.pool_usage().free_bytes
    targets = [empty(receiver) for _ in range(12)]
    tasks = []
    for number, target in enumerate(targets):
        source = scene.manager.allocate_cache(DESC)
        fill(source, number + 1)
        tasks.append(scene.send(source, ready(), scene.config(target, dst_slot=number % 2)))
        scene.manager.deallocate_cache(source)
    assert [results(task) for task in tasks] == [[SUCCESS]] * len(tasks)
    assert [row(target, number % 2) for number, target in enumerate(targets)] == [
        [number + 1] * 6 for number in range(len(targets))
    ]
    gc.collect()
    assert scene.manager.pool_usage().free_bytes == free


def test_a_thread_that_cannot_start_leaves_nothing_pinned(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    free = scene.manager.pool_usage().free_bytes
    source = scene.source()
    config = scene.config(source)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            scene.send(source, ready(), config)
    scene.manager.deallocate_cache(source)
    gc.collect()
    assert scene.manager.pool_usage().free_bytes == free
