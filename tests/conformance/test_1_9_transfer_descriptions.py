"""api §1.9: ``TransferConfig``, ``TransferWithCacheKeyConfig``, ``LayerSynchronizer``, ``CacheTask``."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from llmdd import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    CacheTask,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)


def test_transfer_config() -> None:
    """api §1.9: constructor of TransferConfig; ``dst_layer_range`` is None."""
    config = TransferConfig(dst_cluster_id=3, dst_addrs=[16, 32], src_layer_range=range(1), src_batch_index=2)
    assert (config.dst_cluster_id, list(config.dst_addrs)) == (3, [16, 32])
    assert (config.src_layer_range, config.src_batch_index) == (range(1), 2)
    defaults = TransferConfig(3, (16, 32))
    assert (defaults.src_layer_range, defaults.src_batch_index) == (None, 0)
    assert (config.dst_layer_range, defaults.dst_layer_range) == (None, None)


def test_transfer_config_can_be_changed() -> None:
    """api §1.9: all four are get/set properties."""
    config = TransferConfig(3, [16, 32])
    config.dst_cluster_id = 4
    config.dst_addrs = [48, 64]
    config.src_layer_range = range(1, 2)
    config.src_batch_index = 5
    assert (config.dst_cluster_id, list(config.dst_addrs)) == (4, [48, 64])
    assert (config.src_layer_range, config.src_batch_index) == (range(1, 2), 5)
    config.src_layer_range = None
    assert config.src_layer_range is None


@pytest.mark.parametrize(
    ("name", "wrong", "error"),
    [
        ("dst_cluster_id", "3", TypeError),
        ("dst_cluster_id", None, TypeError),
        ("dst_cluster_id", -1, ValueError),
        ("dst_cluster_id", 2**64, ValueError),
        ("dst_addrs", None, TypeError),
        ("dst_addrs", {1}, TypeError),
        ("dst_addrs", ["1"], TypeError),
        ("dst_addrs", [-1], ValueError),
        ("dst_addrs", [2**64], ValueError),
        ("src_layer_range", (0, 1), TypeError),
        ("src_layer_range", range(0, 4, 2), LLMException),
        ("src_layer_range", range(2, 2), LLMException),
        ("src_layer_range", range(-1, 2), LLMException),
        ("src_batch_index", "0", TypeError),
        ("src_batch_index", None, TypeError),
        ("src_batch_index", -1, ValueError),
        ("src_batch_index", 2**32, ValueError),
    ],
)
def test_transfer_config_checks_at_the_setters(name: str, wrong: Any, error: type[Exception]) -> None:
    """api §1.9: the properties are set with the constructor's checks."""
    good = {"dst_cluster_id": 3, "dst_addrs": [16, 32], "src_layer_range": range(1), "src_batch_index": 2}
    config = TransferConfig(**good)
    with pytest.raises(error):
        setattr(config, name, wrong)
    assert {field: getattr(config, field) for field in good} == good
    with pytest.raises(error):
        TransferConfig(**{**good, name: wrong})


@pytest.mark.parametrize("key", [BlocksCacheKey(3, 1), CacheKeyByIdAndIndex(3, 7, 1)])
def test_transfer_with_cache_key_config(key: Any) -> None:
    """api §1.9: constructor of TransferWithCacheKeyConfig; ``dst_cluster_id`` is the key's cluster."""
    config = TransferWithCacheKeyConfig(cache_key=key, src_layer_range=range(2), dst_layer_range=range(1, 3))
    assert config.cache_key is key
    assert (config.src_layer_range, config.dst_layer_range, config.src_batch_index) == (range(2), range(1, 3), 0)
    assert config.dst_cluster_id == 3


def test_both_ranges_are_required() -> None:
    """api §1.9: both ranges are in fact required."""
    key = CacheKeyByIdAndIndex(3, 7)
    for arguments in ((key,), (key, range(1)), (key, None, range(1))):
        with pytest.raises(TypeError):
            TransferWithCacheKeyConfig(*arguments)


def test_transfer_with_cache_key_config_can_be_changed() -> None:
    """api §1.9: four get/set properties; the cluster follows the key (D43)."""
    config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(3, 7), range(2), range(2))
    config.cache_key = CacheKeyByIdAndIndex(4, 8)
    assert config.dst_cluster_id == 4
    config.src_layer_range = range(1, 3)
    config.dst_layer_range = range(5, 7)
    config.src_batch_index = 6
    assert (config.src_layer_range, config.dst_layer_range, config.src_batch_index) == (range(1, 3), range(5, 7), 6)


def test_layer_synchronizer_is_abstract() -> None:
    """api §1.9: ``LayerSynchronizer`` is an ABC with the abstract method ``synchronize_layer``."""
    with pytest.raises(TypeError):
        LayerSynchronizer()  # type: ignore[abstract]
    assert inspect.isabstract(LayerSynchronizer)
    parameters = list(inspect.signature(LayerSynchronizer.synchronize_layer).parameters)
    assert parameters == ["self", "layer_index", "timeout_in_millis"]


class Synchronizer(LayerSynchronizer):
    def __init__(self) -> None:
        self.calls: list[tuple[int, int | None]] = []

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.calls.append((layer_index, timeout_in_millis))
        return True


def test_the_timeout_argument_is_none(make_datadist: Any, link: Any) -> None:
    """api §1.9: ``synchronize_layer`` is called by the worker; the timeout argument is always None."""
    ours, theirs = (make_datadist(cluster, remote_accessible=True) for cluster in (1, 2))
    link(ours, theirs)
    desc = CacheDesc(4, (1, 8), DataType.DT_INT8)
    destination = theirs.cache_manager.allocate_cache(desc)
    synchronizer = Synchronizer()
    key = CacheKeyByIdAndIndex(2, destination.cache_id)
    config = TransferWithCacheKeyConfig(key, range(2), range(2))
    source = ours.cache_manager.allocate_cache(desc)
    task = ours.cache_manager.transfer_cache_async(source, synchronizer, [config])
    assert isinstance(task, CacheTask)
    assert task.synchronize() is LLMStatusCode.LLM_SUCCESS
    assert task.get_results() == [LLMStatusCode.LLM_SUCCESS]
    assert synchronizer.calls == [(0, None), (1, None)]


@pytest.mark.parametrize("method", ["synchronize", "get_results"])
def test_cache_task_methods(method: str) -> None:
    """api §1.9: ``synchronize`` and ``get_results`` take ``timeout_in_millis=None``."""
    parameter = inspect.signature(getattr(CacheTask, method)).parameters["timeout_in_millis"]
    assert parameter.default is None
