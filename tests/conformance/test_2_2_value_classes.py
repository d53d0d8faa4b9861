"""api §2.2: the checks of the constructors, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmdd import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

INT8 = DataType.DT_INT8
HOST = Placement.HOST
HOST_DESC = CacheDesc(2, (3, 8), INT8, HOST)
BY_ID = CacheKeyByIdAndIndex(1, 2)

LX, TE, VE, AE = LLMException, TypeError, ValueError, AttributeError

Build = Callable[[], object]

# Every row is one check; where it stands before others, those fail too.
ROWS: dict[str, list[tuple[Build, type[Exception], str]]] = {
    "CacheDesc": [
        (lambda: CacheDesc("1", None, None), TE, "num_tensors only support"),
        (lambda: CacheDesc(None, None, None), TE, "num_tensors only support"),
        (lambda: CacheDesc(-1, None, None), VE, "num_tensors's value is out of range"),
        (lambda: CacheDesc(2**32, None, None), VE, "is not a uint32 value."),
        (lambda: CacheDesc(1, None, None), TE, "shape only support"),
        (lambda: CacheDesc(1, {1, 2}, None), TE, "shape only support"),
        (lambda: CacheDesc(1, [1, "2"], None), TE, "shape inner type only support"),
        (lambda: CacheDesc(1, [1, 2], None, None), TE, "data_type only support"),
        (lambda: CacheDesc(1, [1, 2], 2, None), TE, "data_type only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, None, None), TE, "placement only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, 1, None), TE, "placement only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, HOST, None, None), TE, "batch_dim_index only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, HOST, "0", None), TE, "batch_dim_index only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, HOST, 9, None, 1), TE, "seq_len_dim_index only support"),
        (lambda: CacheDesc(1, [1, 2], INT8, HOST, 9, 2**31, 1), VE, "is not a int32 value."),
        (lambda: CacheDesc(1, [1, 2], INT8, HOST, 9, 9, 1), TE, "kv_tensor_format only support"),
        (lambda: CacheDesc(1, [1, 2**63], INT8, HOST, 2, 9), LX, "batch_dim_index"),
        (lambda: CacheDesc(1, [1, 2**63], INT8, HOST, -1, 9), LX, "batch_dim_index"),
        (lambda: CacheDesc(1, [1, 2**63], INT8, HOST, 0, 2), LX, "seq_len_dim_index"),
        (lambda: CacheDesc(1, [1, 2**63], INT8, HOST, 0, -2), LX, "seq_len_dim_index"),
        (lambda: CacheDesc(1, [1, 2**63], INT8), VE, "is not a int64 value."),
        (lambda: CacheDesc(1, [], INT8), LX, ""),
    ],
    "CacheKey": [
        (lambda: CacheKey("1", 2, 3, 4, 5, other=1), LX, "Param num is over limit"),
        (lambda: CacheKey(req_id="1", other=1), LX, "prompt_cluster_id or cluster_id is required"),
        (lambda: CacheKey("1", other=1), LX, "Param req_id is required"),
        (lambda: CacheKey("1", "2", other=1), LX, "Unsupported param:other"),
        (lambda: CacheKey("1", "2"), TE, "cluster_id only support"),
        (lambda: CacheKey(-1, "2"), VE, "cluster_id's value is out of range"),
        (lambda: CacheKey(1, None, "3"), TE, "req_id only support"),
        (lambda: CacheKey(1, 2**64, "3"), VE, "is not a uint64 value."),
        (lambda: CacheKey(1, 2, "3", "4"), TE, "model_id only support"),
        (lambda: CacheKey(1, 2, -3, "4"), VE, "model_id's value is out of range"),
        (lambda: CacheKey(1, 2, 3, np.uint64(4)), TE, "prefix_id only support"),
        (lambda: CacheKey(1, 2, 3, 2**64), VE, "prefix_id's value is out of range"),
    ],
    "BlocksCacheKey": [
        (lambda: BlocksCacheKey("1", 2, 3, other=1), LX, "Param num is over limit"),
        (lambda: BlocksCacheKey(model_id="1", other=1), LX, "cluster_id is required"),
        (lambda: BlocksCacheKey("1", other=1), LX, "Unsupported param:"),
        (lambda: BlocksCacheKey("1", "2"), TE, "The first param cluster_id only support"),
        (lambda: BlocksCacheKey(None), TE, "The first param cluster_id only support"),
        (lambda: BlocksCacheKey(1, "2"), TE, "The second param model_id only support"),
        (lambda: BlocksCacheKey(-1), VE, "is not a uint64 value."),
        (lambda: BlocksCacheKey(1, 2**64), VE, "is not a uint64 value."),
    ],
    "CacheKeyByIdAndIndex": [
        (lambda: CacheKeyByIdAndIndex("1", "2", "3"), TE, "cluster_id only support"),
        (lambda: CacheKeyByIdAndIndex(-1, "2", "3"), VE, "cluster_id's value is out of range"),
        (lambda: CacheKeyByIdAndIndex(1, "2", "3"), TE, "cache_id only support"),
        (lambda: CacheKeyByIdAndIndex(1, 2**63, "3"), VE, "is not a int64 value."),
        (lambda: CacheKeyByIdAndIndex(1, 2, "3"), TE, "batch_index only support"),
        (lambda: CacheKeyByIdAndIndex(1, 2, 2**32), VE, "is not a uint32 value."),
    ],
    "MemInfo": [
        (lambda: MemInfo(0, "1", "2"), TE, "mem_type only support"),
        (lambda: MemInfo(None, 1, 2), TE, "mem_type only support"),
        (lambda: MemInfo(Memtype.MEM_TYPE_DEVICE, "1", "2"), TE, "addr only support"),
        (lambda: MemInfo(Memtype.MEM_TYPE_DEVICE, 1, "2"), TE, "size only support"),
    ],
    "create_cpu_cache": [
        (lambda: Cache.create_cpu_cache(None, None), AE, ""),
        (lambda: Cache.create_cpu_cache("desc", None), TE, "cache_desc only support"),
        (lambda: Cache.create_cpu_cache(HOST_DESC, None), AE, ""),
        (lambda: Cache.create_cpu_cache(HOST_DESC, (1, 2)), TE, "addrs only support"),
        (lambda: Cache.create_cpu_cache(HOST_DESC, [1, "2"]), TE, "addrs inner type only support"),
        (lambda: Cache.create_cpu_cache(CacheDesc(2, (3, 8), INT8), [1]), LX, "cache_desc placement must be HOST"),
        (lambda: Cache.create_cpu_cache(HOST_DESC, [4096]), LX, "not equal addrs num"),
    ],
    "TransferConfig": [
        (lambda: TransferConfig("1", None), TE, "dst_cluster_id only support"),
        (lambda: TransferConfig(2**64, None), VE, "is not a uint64 value."),
        (lambda: TransferConfig(1, None, "range"), TE, "dst_addrs only support"),
        (lambda: TransferConfig(1, {1}, "range"), TE, "dst_addrs only support"),
        (lambda: TransferConfig(1, [1, "2"], "range"), TE, "dst_addrs inner type only support"),
        (lambda: TransferConfig(1, [-1], "range"), VE, "is not a uint64 value."),
        (lambda: TransferConfig(1, [1], "range", "0"), TE, "src_layer_range only support"),
        (lambda: TransferConfig(1, [1], range(0, 4, 2), "0"), LX, ".step == 1 failed"),
        (lambda: TransferConfig(1, [1], range(3, 3), "0"), LX, "range.start < range.stop failed"),
        (lambda: TransferConfig(1, [1], range(-1, 3), "0"), LX, "range.start < range.stop failed"),
        (lambda: TransferConfig(1, [1], None, "0"), TE, "src_batch_index only support"),
        (lambda: TransferConfig(1, [1], None, 2**32), VE, "is not a uint32 value."),
    ],
    "TransferWithCacheKeyConfig": [
        (lambda: TransferWithCacheKeyConfig(None, None, None), TE, "cache_key only support"),
        (lambda: TransferWithCacheKeyConfig(CacheKey(1, 2), None, None), TE, "cache_key only support"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, None, "x"), TE, "src_layer_range only support"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(0, 4, 2), "x"), LX, ".step == 1 failed"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(2, 1), "x"), LX, "range.start < range.stop failed"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(1), None), TE, "dst_layer_range only support"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(1), range(-1, 0)), LX, "range.start < range.stop failed"),
        (
            lambda: TransferWithCacheKeyConfig(BY_ID, range(1), range(2), "0"),
            LX,
            "src_layer_range size should be equal to dst_layer_range size",
        ),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(1), range(1), "0"), TE, "src_batch_index only support"),
        (lambda: TransferWithCacheKeyConfig(BY_ID, range(1), range(1), -1), VE, "is not a uint32 value."),
        (
            lambda: TransferWithCacheKeyConfig(BlocksCacheKey(1), range(1), range(1), 1),
            LX,
            "src_batch_index should be 0",
        ),
    ],
    "LLMClusterInfo": [
        (lambda: LLMClusterInfo().append_local_ip_info(None, None), TE, "ip only support"),
        (lambda: LLMClusterInfo().append_remote_ip_info(None, None), TE, "ip only support"),
        (lambda: LLMClusterInfo().append_local_ip_info(b"1.2.3.4", None), TE, "ip only support"),
        (lambda: LLMClusterInfo().append_local_ip_info("1.2.3", None), TE, "port only support"),
        (lambda: LLMClusterInfo().append_local_ip_info("1.2.3", -1), VE, "is not a uint16 value."),
        (lambda: LLMClusterInfo().append_remote_ip_info("1.2.3", 2**16), VE, "is not a uint16 value."),
        (lambda: LLMClusterInfo().append_remote_ip_info("1.2.3", 1), VE, "Can not parse ip str:"),
        (lambda: LLMClusterInfo().append_local_ip_info("1.2.3.256", 1), VE, "Can not parse ip str:"),
        (lambda: LLMClusterInfo().append_local_ip_info("", 1), VE, "Can not parse ip str:"),
        (lambda: LLMClusterInfo().append_local_ip_info("localhost", 1), VE, "Can not parse ip str:"),
    ],
    "LLMDataDist": [
        (lambda: LLMDataDist(None, None), TE, "role only support"),
        (lambda: LLMDataDist(1, None), TE, "role only support"),
        (lambda: LLMDataDist("PROMPT", None), TE, "role only support"),
        (lambda: LLMDataDist(LLMRole.MIX, None), TE, "cluster_id only support"),
        (lambda: LLMDataDist(LLMRole.MIX, "1"), TE, "cluster_id only support"),
        (lambda: LLMDataDist(LLMRole.MIX, -1), VE, "is not a uint64 value."),
        (lambda: LLMDataDist(LLMRole.MIX, 2**64), VE, "is not a uint64 value."),
    ],
}


@pytest.mark.parametrize(
    ("build", "error", "fragment"),
    [pytest.param(*row, id=f"{name} {number}") for name, rows in ROWS.items() for number, row in enumerate(rows)],
)
def test_order_of_checks(build: Build, error: type[Exception], fragment: str) -> None:
    """api §2.2: the checks of each constructor in their order; a wrong type names what is supported."""
    with pytest.raises(error) as refused:
        build()
    assert fragment in str(refused.value)
    if error is LX:
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_dimensions_that_are_not_positive_are_accepted_here() -> None:
    """api §2.2: dims ≤ 0 are accepted here and refused at allocate/register."""
    assert CacheDesc(1, (0, -1), INT8).shape == (0, -1)


def test_only_what_is_documented_is_accepted_as_a_key() -> None:
    """api §2.2: TransferWithCacheKeyConfig takes a BlocksCacheKey or a CacheKeyByIdAndIndex."""
    for key in (BlocksCacheKey(1), BY_ID):
        assert TransferWithCacheKeyConfig(key, range(1), range(2, 3)).cache_key is key


def test_layer_ranges_are_left_as_they_are() -> None:
    """api §2.2: a layer range of step 1 with 0 ≤ start < stop is accepted."""
    assert TransferConfig(1, [1, 2], range(3, 2**40)).src_layer_range == range(3, 2**40)


@pytest.mark.parametrize("addrs", [[1, 2], (1, 2), []])
def test_destination_addresses_may_be_a_list_or_a_tuple(addrs: Any) -> None:
    """api §2.2: ``dst_addrs`` is a list or a tuple of int."""
    assert list(TransferConfig(1, addrs).dst_addrs) == list(addrs)
