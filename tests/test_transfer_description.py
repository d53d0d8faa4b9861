"""What a program says of a transfer, and of memory of its own (api §1.8, §1.9, §2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmdd import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheTask,
    DataType,
    KvCache,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

BLOCKS, SLOT = BlocksCacheKey(2, 1), CacheKeyByIdAndIndex(3, 1, 2)
HOST = CacheDesc(2, (1, 64), DataType.DT_INT8, Placement.HOST)


def refusal(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(LLMException) as refused:
        call(*arguments, **named)
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    return str(refused.value)


def set_to(config: object, name: str, value: Any) -> None:
    setattr(config, name, value)


def whole(config: TransferConfig | TransferWithCacheKeyConfig) -> dict[str, Any]:
    return dict(vars(config))


# raw addresses


def test_a_transfer_config_has_what_it_was_given() -> None:
    addresses = [1, 2, 3, 4]
    config = TransferConfig(7, addresses, range(2, 4), 5)
    assert (config.dst_cluster_id, config.dst_addrs, config.src_layer_range, config.src_batch_index) == (
        7,
        addresses,
        range(2, 4),
        5,
    )
    assert config.dst_addrs is addresses
    assert config.dst_layer_range is None
    named = TransferConfig(dst_cluster_id=7, dst_addrs=(1, 2))
    assert (named.dst_addrs, named.src_layer_range, named.src_batch_index) == ((1, 2), None, 0)


def test_each_property_of_a_transfer_config_can_be_set() -> None:
    config = TransferConfig(7, [1, 2])
    config.dst_cluster_id = 2**64 - 1
    config.dst_addrs = (2**64 - 1, 0)
    config.src_layer_range = range(3, 9)
    config.src_batch_index = 2**32 - 1
    assert whole(config) == whole(TransferConfig(2**64 - 1, (2**64 - 1, 0), range(3, 9), 2**32 - 1))
    config.src_layer_range = None
    assert config.src_layer_range is None


WRONG_TYPES = [
    *(("dst_cluster_id", wrong) for wrong in (None, "1", 1.0)),
    *(("dst_addrs", wrong) for wrong in (None, 1, {1, 2}, range(2), [1, None], [1, "2"])),
    *(("src_layer_range", wrong) for wrong in ([0, 1], 3, (0, 1), slice(0, 1))),
    *(("src_batch_index", wrong) for wrong in (None, "1", 1.0)),
]
OUT_OF_RANGE = [
    ("dst_cluster_id", -1),
    ("dst_cluster_id", 2**64),
    ("dst_addrs", [0, -1]),
    ("dst_addrs", (2**64,)),
    ("src_batch_index", -1),
    ("src_batch_index", 2**32),
]
BAD_RANGES = [
    (range(0, 4, 2), ".step == 1 failed"),
    (range(4, 0, -1), ".step == 1 failed"),
    (range(0), "range.start < range.stop failed"),
    (range(5, 2), "range.start < range.stop failed"),
    (range(-1, 2), "range.start < range.stop failed"),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_TYPES)
def test_a_wrong_type_is_refused_and_changes_nothing(name: str, wrong: Any) -> None:
    arguments: dict[str, Any] = {"dst_cluster_id": 7, "dst_addrs": [1, 2], "src_layer_range": range(1)}
    with pytest.raises(TypeError, match=f"{name}.*only support"):
        TransferConfig(**{**arguments, name: wrong})
    config = TransferConfig(**arguments)
    with pytest.raises(TypeError, match=f"{name}.*only support"):
        setattr(config, name, wrong)
    assert whole(config) == whole(TransferConfig(**arguments))


@pytest.mark.parametrize(("name", "wrong"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused(name: str, wrong: Any) -> None:
    arguments: dict[str, Any] = {"dst_cluster_id": 7, "dst_addrs": [1, 2]}
    with pytest.raises(ValueError, match=f"{name}'s value is out of range"):
        TransferConfig(**{**arguments, name: wrong})
    with pytest.raises(ValueError, match=f"{name}'s value is out of range"):
        setattr(TransferConfig(**arguments), name, wrong)


@pytest.mark.parametrize(("layers", "words"), BAD_RANGES)
def test_a_range_of_layers_ascends_by_one(layers: range, words: str) -> None:
    assert words in refusal(TransferConfig, 7, [1, 2], layers)
    assert words in refusal(set_to, TransferConfig(7, [1, 2]), "src_layer_range", layers)
    good = range(len(layers) or 1)
    for first, second in ((layers, good), (good, layers)):
        assert words in refusal(TransferWithCacheKeyConfig, SLOT, first, second)
    for name in ("src_layer_range", "dst_layer_range"):
        assert words in refusal(set_to, TransferWithCacheKeyConfig(SLOT, good, good), name, layers)


def test_the_first_wrong_argument_of_a_transfer_config_decides() -> None:
    with pytest.raises(ValueError, match="dst_cluster_id"):
        TransferConfig(-1, None, 3, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dst_addrs"):
        TransferConfig(1, None, 3, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="src_layer_range"):
        TransferConfig(1, [], 3, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="src_batch_index"):
        TransferConfig(1, [], None, None)  # type: ignore[arg-type]


# keys


def test_a_config_with_a_key_has_what_it_was_given() -> None:
    config = TransferWithCacheKeyConfig(SLOT, range(2), range(4, 6), 1)
    assert config.cache_key is SLOT
    assert (config.src_layer_range, config.dst_layer_range, config.src_batch_index) == (range(2), range(4, 6), 1)
    assert config.dst_cluster_id == 3
    named = TransferWithCacheKeyConfig(cache_key=BLOCKS, src_layer_range=range(1), dst_layer_range=range(1))
    assert (named.dst_cluster_id, named.src_batch_index) == (2, 0)


def test_the_cluster_follows_the_key() -> None:
    config = TransferWithCacheKeyConfig(SLOT, range(1), range(1))
    config.cache_key = BLOCKS
    assert (config.cache_key, config.dst_cluster_id) == (BLOCKS, 2)
    with pytest.raises(AttributeError):
        config.dst_cluster_id = 5  # type: ignore[misc]


def test_ranges_can_be_set_one_after_the_other() -> None:
    config = TransferWithCacheKeyConfig(SLOT, range(1), range(1))
    config.src_layer_range = range(3)
    config.dst_layer_range = range(5, 8)
    config.src_batch_index = 4
    assert whole(config) == whole(TransferWithCacheKeyConfig(SLOT, range(3), range(5, 8), 4))


def test_both_ranges_are_required_and_equally_long() -> None:
    for missing in ({}, {"src_layer_range": range(1)}, {"dst_layer_range": range(1)}):
        with pytest.raises(TypeError, match="layer_range only support"):
            TransferWithCacheKeyConfig(SLOT, **missing)
    words = "src_layer_range size should be equal to dst_layer_range size"
    assert words in refusal(TransferWithCacheKeyConfig, SLOT, range(1), range(2))


def test_a_blocks_key_takes_no_batch_slot() -> None:
    assert "src_batch_index should be 0" in refusal(TransferWithCacheKeyConfig, BLOCKS, range(1), range(1), 1)
    config = TransferWithCacheKeyConfig(BLOCKS, range(1), range(1))
    assert "src_batch_index should be 0" in refusal(set_to, config, "src_batch_index", 1)
    config.cache_key = SLOT
    config.src_batch_index = 1
    assert "src_batch_index should be 0" in refusal(set_to, config, "cache_key", BLOCKS)
    assert (config.cache_key, config.src_batch_index) == (SLOT, 1)


@pytest.mark.parametrize("wrong", [None, 1, CacheKey(1, 2), "key"])
def test_another_key_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="cache_key only support"):
        TransferWithCacheKeyConfig(wrong, range(1), range(1))
    config = TransferWithCacheKeyConfig(SLOT, range(1), range(1))
    with pytest.raises(TypeError, match="cache_key only support"):
        config.cache_key = wrong
    assert config.cache_key is SLOT


def test_the_first_wrong_argument_of_a_config_with_a_key_decides() -> None:
    make: Any = TransferWithCacheKeyConfig
    with pytest.raises(TypeError, match="cache_key"):
        make(None, None, None, None)
    with pytest.raises(TypeError, match="src_layer_range"):
        make(BLOCKS, None, None, None)
    with pytest.raises(TypeError, match="dst_layer_range"):
        make(BLOCKS, range(2), None, None)
    assert "size should be equal" in refusal(make, BLOCKS, range(2), range(1), None)
    with pytest.raises(TypeError, match="src_batch_index"):
        make(BLOCKS, range(2), range(2), None)
    with pytest.raises(ValueError, match="src_batch_index"):
        make(BLOCKS, range(2), range(2), 2**32)


# the rest


def test_a_synchronizer_is_to_be_subclassed() -> None:
    with pytest.raises(TypeError):
        LayerSynchronizer()  # type: ignore[abstract]

    class Ready(LayerSynchronizer):
        def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
            return True

    assert Ready().synchronize_layer(0, None)


def test_a_task_is_made_by_a_transfer_alone() -> None:
    with pytest.raises(TypeError, match="transfer_cache_async"):
        CacheTask()


def test_memory_info() -> None:
    info = MemInfo(mem_type=Memtype.MEM_TYPE_HOST, addr=4096, size=64)
    assert (info.mem_type, info.addr, info.size) == (Memtype.MEM_TYPE_HOST, 4096, 64)
    assert str(info) == "MemInfo(mem_type=Memtype.MEM_TYPE_HOST, addr=4096, size=64)"
    for name in ("mem_type", "addr", "size"):
        with pytest.raises(AttributeError):
            setattr(info, name, 1)


@pytest.mark.parametrize(
    "wrong", [(None, 1, 1), (0, 1, 1), (Memtype.MEM_TYPE_HOST, "1", 1), (Memtype.MEM_TYPE_HOST, 1, None)]
)
def test_memory_info_of_wrong_types(wrong: tuple[Any, Any, Any]) -> None:
    with pytest.raises(TypeError, match="only support"):
        MemInfo(*wrong)


def test_the_cache_of_the_older_api_wraps_addresses() -> None:
    addresses = [4096, 8192]
    cache = KvCache.create_cpu_cache(HOST, addresses)
    assert (cache.cache_id, cache.cache_desc, cache.per_device_tensor_addrs) == (-1, HOST, [addresses])
    assert KvCache.create_cpu_cache(HOST, [[1, 2], [3, 4]]).per_device_tensor_addrs == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="create_cpu_cache"):
        KvCache()


@pytest.mark.parametrize("addresses", [(1, 2), 1, [1, "2"], [1, None], [[1, 2], 3], [[1, 2], (3, 4)], [[1, "2"]]])
def test_the_cache_of_the_older_api_refuses_wrong_types(addresses: Any) -> None:
    with pytest.raises(TypeError, match="addrs"):
        KvCache.create_cpu_cache(HOST, addresses)


def test_the_cache_of_the_older_api_refuses_what_does_not_fit() -> None:
    for arguments in ((None, [1, 2]), (HOST, None)):
        with pytest.raises(AttributeError):
            KvCache.create_cpu_cache(*arguments)  # type: ignore[arg-type]
    device = CacheDesc(2, (1, 64), DataType.DT_INT8)
    assert "cache_desc placement must be HOST" in refusal(KvCache.create_cpu_cache, device, [1])
    for addresses in ([], [1], [1, 2, 3], [[1, 2], [3]]):
        assert "not equal addrs num" in refusal(KvCache.create_cpu_cache, HOST, addresses)
