"""api §2.5: the argument checks of every ``CacheManager`` method, in their order.

Each row fails at one check and, where it can, at those behind it too. Afterwards everything is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from llmdd.spec.values import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    MemInfo,
)

from conformance.scene import BLOCK_BYTES, FREE, SLOT_BYTES, B, C, Scene
from conformance.world import World, by_id, placeholder, prefix, refused, request

TE, VE, AE = "TypeError", "ValueError", "AttributeError"
LX, NOT_EXIST, NOT_LINKED = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST", "LLM_NOT_YET_LINK"
FAR = BlocksCacheKey(1, 10)
BOTH_IDS = CacheKey(1, FREE, 0, FREE)


class Row(NamedTuple):
    """A call that is refused."""

    arguments: Callable[[Scene], tuple[Any, ...]]
    error: str
    fragment: str = ""
    keywords: dict[str, Any] | None = None
    remote: bool = False


def given(*arguments: Any) -> Callable[[Scene], tuple[Any, ...]]:
    return lambda scene: arguments


ONE_LAYER = {"src_layer_range": range(1)}

ROWS: dict[str, list[Row]] = {
    "allocate_cache": [
        Row(given(None, None), AE),
        Row(given("desc", None), TE, "cache_desc only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), None), TE, "cache_keys only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), {request(FREE)}), TE, "cache_keys only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), request(FREE)), TE, "cache_keys only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), [BlocksCacheKey(1)]), TE, "cache_keys inner type only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), [request(FREE), None]), TE, "cache_keys inner type only support"),
        Row(given(CacheDesc(0, (0, 8), "DT_UINT8"), [request(30)] * 3), LX, "num_tensors should be bigger than zero"),
        Row(given(CacheDesc(1, (2, 0), "DT_UINT8"), [request(30)] * 3), LX),
        Row(given(CacheDesc(1, (2, -1), "DT_UINT8"), [request(30)] * 3), LX),
        Row(given(CacheDesc(1, (2,) + (1,) * 32, "DT_UINT8"), [request(30)] * 3), LX),
        Row(given(CacheDesc(1, (2, 2**62), "DT_INT32"), [request(30)] * 3), LX),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [request(30), request(FREE), request(FREE)]), LX),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [placeholder()] * 3), LX),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [request(FREE), request(30)]), LX, "already bound"),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [prefix(30)]), LX, "already bound"),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [request(32)]), LX, "already bound"),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), [request(FREE)]), "LLM_OUT_OF_MEMORY"),
    ],
    "allocate_blocks_cache": [
        Row(given(None, "key"), AE),
        Row(given("desc", "key"), TE, "cache_desc only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), "key"), TE, "blocks_cache_key only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), request(FREE)), TE, "blocks_cache_key only support"),
        Row(given(CacheDesc(0, (2, 8), "DT_UINT8"), [BlocksCacheKey(1)]), TE, "blocks_cache_key only support"),
        Row(given(CacheDesc(0, (0, 8), "DT_UINT8"), FAR), LX, "num_tensors should be bigger than zero"),
        Row(given(CacheDesc(1, (0, 8), "DT_UINT8"), BlocksCacheKey(1, 30)), LX),
        Row(given(CacheDesc(1, (2,) + (1,) * 32, "DT_UINT8"), BlocksCacheKey(1, 30)), LX),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), BlocksCacheKey(1, 30)), LX, "already bound"),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), BlocksCacheKey(9, 32)), LX, "already bound"),
        Row(given(CacheDesc(1, (2, 1 << 30), "DT_UINT8"), BlocksCacheKey(1, FREE)), "LLM_OUT_OF_MEMORY"),
    ],
    "register_cache": [
        Row(given(None, None, None, 5), AE),
        Row(given("desc", None, None, 5), TE, "cache_desc only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), None, None, 5), AE),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), (4096, 8192), None, 5), TE, "addrs only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), ["1"], None, 5), TE, "addrs inner type only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], None, 5), TE, "cache_keys only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], [FAR], 5), TE, "cache_keys inner type only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], [request(30)] * 3, 5), TE, "remote_accessible only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], [request(30)] * 3), LX, "addrs can not be empty"),
        Row(
            given(CacheDesc(2, (0, 8), "DT_UINT8"), [0], [request(30)] * 3),
            LX,
            "addrs length should be equal to num_tensors",
        ),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [4096, 0], [request(30)] * 3), LX, "addr can not be zero"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [4096, 8192], [request(30)] * 3), LX),
        Row(given(CacheDesc(2, (2,) + (1,) * 32, "DT_UINT8"), [4096, 8192], [request(30)] * 3), LX),
        Row(lambda scene: (C, scene.ours.addrs[:4], [request(FREE)] * 3), LX),
        Row(lambda scene: (C, scene.ours.addrs[:4], [request(FREE), request(30)]), LX, "already bound"),
        Row(lambda scene: (C, scene.ours.addrs[:4], [prefix(30)]), LX, "already bound"),
        Row(lambda scene: (C, scene.ours.addrs[:4], [request(32)]), LX, "already bound"),
    ],
    "register_blocks_cache": [
        Row(given(None, None, "key", 5), AE),
        Row(given("desc", None, "key", 5), TE, "cache_desc only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), None, "key", 5), AE),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), (1, 2), "key", 5), TE, "addrs only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), ["1"], "key", 5), TE, "addrs inner type only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], "key", 5), TE, "blocks_cache_key only support"),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], request(FREE), 5), TE, "blocks_cache_key only support"),
        Row(
            given(CacheDesc(2, (0, 8), "DT_UINT8"), [], BlocksCacheKey(1, 30), 5), TE, "remote_accessible only support"
        ),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [], BlocksCacheKey(1, 30)), LX),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [4096], BlocksCacheKey(1, 30)), LX),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [4096, 0], BlocksCacheKey(1, 30)), LX),
        Row(given(CacheDesc(2, (0, 8), "DT_UINT8"), [4096, 8192], BlocksCacheKey(1, 30)), LX),
        Row(lambda scene: (B, scene.ours.addrs[:4], BlocksCacheKey(1, 30)), LX, "already bound"),
    ],
    "unregister_cache": [
        Row(given(None), TE, "cache_id only support"),
        Row(given("1"), TE, "cache_id only support"),
        Row(lambda scene: (scene.ours.registered,), TE, "cache_id only support"),
        Row(given(2**63), VE, "is not a int64 value."),
        Row(given(-(2**63) - 1), VE, "is not a int64 value."),
        Row(lambda scene: (scene.ours.c.cache_id,), LX),
        Row(lambda scene: (scene.ours.b.cache_id,), LX),
    ],
    "deallocate_cache": [
        Row(given(None), AE),
        Row(given(1), TE, "cache only support"),
        Row(lambda scene: (scene.ours.b,), LX, "cache can not be blocks cache"),
        Row(lambda scene: (scene.ours.registered_b,), LX, "cache can not be blocks cache"),
        Row(lambda scene: (scene.ours.cpu,), LX, "cache can not be blocks cache"),
        Row(lambda scene: (scene.ours.gone_b,), LX, "cache can not be blocks cache"),
    ],
    "deallocate_blocks_cache": [
        Row(given(None), AE),
        Row(given(1), TE, "cache only support"),
        Row(lambda scene: (scene.ours.c,), LX, "cache should be blocks cache"),
        Row(lambda scene: (scene.ours.registered,), LX, "cache should be blocks cache"),
        Row(lambda scene: (scene.ours.gone,), LX, "cache should be blocks cache"),
    ],
    "remove_cache_key": [
        Row(given(None), AE),
        Row(given(1), TE, "cache_key only support"),
        Row(given(FAR), TE, "cache_key only support"),
        Row(given(CacheKeyByIdAndIndex(1, 1)), TE, "cache_key only support"),
        Row(given([request(30)]), TE, "cache_key only support"),
    ],
    "pull_cache": [
        Row(given(None, None, None, None), AE),
        Row(given(FAR, None, None, None), TE, "cache_key only support"),
        Row(given(1, None, None, None), TE, "cache_key only support"),
        Row(given(request(10), None, None, None), TE, "cache_key only support", remote=True),
        Row(given(request(10), None, None, None), TE, "", {"layers": 1}),
        Row(given(request(10), None, None, None), AE),
        Row(given(request(10), 1, None, None), TE, "cache only support"),
        Row(lambda scene: (request(10), scene.ours.b, None, None), TE, "batch_index only support"),
        Row(lambda scene: (request(10), scene.ours.b, -1, None), VE, "is not a uint32 value."),
        Row(lambda scene: (request(10), scene.ours.b, 0, None), TE, "size only support"),
        Row(lambda scene: (request(10), scene.ours.b, 0, 2**63), VE, "is not a int64 value."),
        Row(lambda scene: (request(10), scene.ours.b, 0, 0), LX, "cache can not be blocks cache"),
        Row(
            lambda scene: (request(10), scene.ours.c, 0, 0), LX, "should be = -1 or > 0", {"tensor_num_per_layer": "2"}
        ),
        Row(lambda scene: (request(10), scene.ours.c, 0, -2), LX, "should be = -1 or > 0"),
        Row(lambda scene: (placeholder(), scene.ours.c), TE, "tensor_num_per_layer", {"tensor_num_per_layer": "2"}),
        Row(lambda scene: (placeholder(), scene.ours.c), VE, "tensor_num_per_layer", {"tensor_num_per_layer": -1}),
        Row(lambda scene: (placeholder(), scene.ours.c), LX, "tensor_num_per_layer", {"tensor_num_per_layer": 0}),
        Row(
            lambda scene: (placeholder(), scene.ours.c),
            LX,
            "one of req id and prefix id should contain valid value",
            {"src_layer_range": 5},
        ),
        Row(lambda scene: (BOTH_IDS, scene.ours.c), LX, "only one of req id and prefix id", {"src_layer_range": 5}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), TE, "src_layer_range", {"src_layer_range": 5}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), TE, "dst_layer_range", {"dst_layer_range": (0, 1)}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), LX, "step must be 1", {"src_layer_range": range(-4, 4, 2)}),
        Row(
            lambda scene: (CacheKey(2, 10), scene.ours.c),
            LX,
            "is invalid, the start value",
            {"src_layer_range": range(-1, 2**32)},
        ),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), VE, "", {"src_layer_range": range(2**32, 2**32)}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), VE, "", {"dst_layer_range": range(2**32)}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), LX, "", {"src_layer_range": range(0)}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.c), LX, "", {"src_layer_range": range(5, 2)}),
        Row(lambda scene: (CacheKey(2, 10), scene.ours.gone), LX, "own cluster"),
    ],
    "pull_blocks": [
        Row(given(None, None, "x", None), AE),
        Row(given(1, None, "x", None), TE, "src_cache_key only support"),
        Row(given(FAR, None, "x", None), AE),
        Row(given(FAR, 1, "x", None), TE, "dst_cache only support"),
        Row(lambda scene: (FAR, scene.ours.c, "x", None), TE, "src_blocks only support"),
        Row(lambda scene: (FAR, scene.ours.c, ["0"], None), TE, "src_blocks"),
        Row(lambda scene: (FAR, scene.ours.c, [0], None), TE, "dst_blocks only support"),
        Row(lambda scene: (FAR, scene.ours.c, [0], {0}), TE, "dst_blocks only support"),
        Row(lambda scene: (FAR, scene.ours.c, [0], ["0"]), TE, "dst_blocks"),
        Row(lambda scene: (FAR, scene.ours.c, [], []), LX, "dst_cache should be blocks cache"),
        Row(lambda scene: (FAR, scene.ours.b, [], []), LX, "dst_blocks can not be empty", {"tensor_num_per_layer": 0}),
        Row(lambda scene: (FAR, scene.ours.b, None, []), LX, "dst_blocks can not be empty"),
        Row(lambda scene: (FAR, scene.ours.b, [], [0]), TE, "tensor_num_per_layer", {"tensor_num_per_layer": None}),
        Row(lambda scene: (FAR, scene.ours.b, [], [0]), VE, "tensor_num_per_layer", {"tensor_num_per_layer": 2**32}),
        Row(lambda scene: (FAR, scene.ours.b, [], [0]), LX, "tensor_num_per_layer", {"tensor_num_per_layer": 0}),
        Row(lambda scene: (FAR, scene.ours.b, [], [0]), LX, "src_blocks can not be empty", {"src_layer_range": 5}),
        Row(lambda scene: (FAR, scene.ours.b, None, [0]), LX, "src_blocks can not be empty", {"src_layer_range": 5}),
        Row(lambda scene: (placeholder(), scene.ours.b, [0], [0]), LX, "src_blocks should be empty"),
        Row(
            lambda scene: (by_id(scene.theirs.c), scene.ours.b, [0], [0]),
            LX,
            "src_blocks should be empty",
            {"src_layer_range": 5},
        ),
        Row(
            lambda scene: (placeholder(), scene.ours.b, [], [0]),
            LX,
            "one of req id and prefix id should contain valid value",
            {"src_layer_range": 5},
        ),
        Row(
            lambda scene: (BOTH_IDS, scene.ours.b, [], [0]),
            LX,
            "only one of req id and prefix id",
            {"src_layer_range": 5},
        ),
        Row(lambda scene: (BlocksCacheKey(2), scene.ours.b, [0], [0]), TE, "", {"src_layer_range": 5}),
        Row(
            lambda scene: (BlocksCacheKey(2), scene.ours.b, [0], [0]),
            LX,
            "step must be 1",
            {"dst_layer_range": range(0, 4, 2)},
        ),
        Row(
            lambda scene: (BlocksCacheKey(2), scene.ours.b, [0], [0]),
            LX,
            "is invalid, the start value",
            {"dst_layer_range": range(-1, 1)},
        ),
        Row(lambda scene: (BlocksCacheKey(2), scene.ours.b, [0], [0]), VE, "", {"src_layer_range": range(2**32)}),
        Row(lambda scene: (BlocksCacheKey(2), scene.ours.b, [0], [0]), LX, "", {"src_layer_range": range(0)}),
        Row(lambda scene: (BlocksCacheKey(2), scene.ours.gone_b, [0], [0]), LX, "own cluster"),
    ],
    "push_cache": [
        Row(given(None, None, None), LX, "only supported while enable_remote_cache_accessible is True"),
        Row(given(None, None, None), TE, "dst_cache_key only support", remote=True),
        Row(given(request(10), None, None), TE, "dst_cache_key only support", remote=True),
        Row(given(FAR, None, None), TE, "dst_cache_key only support", remote=True),
        Row(given(CacheKeyByIdAndIndex(1, 1), None, None), TE, "src_cache only support", remote=True),
        Row(given(CacheKeyByIdAndIndex(1, 1), 1, None), TE, "src_cache only support", remote=True),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.b, None),
            TE,
            "src_batch_index only support",
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.b, 2**32),
            VE,
            "is not a uint32 value.",
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.b),
            LX,
            "cache can not be blocks cache",
            {"tensor_num_per_layer": "2"},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            TE,
            "tensor_num_per_layer",
            {"tensor_num_per_layer": "2", "src_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            VE,
            "tensor_num_per_layer",
            {"tensor_num_per_layer": -1, "src_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            LX,
            "tensor_num_per_layer",
            {"tensor_num_per_layer": 0, "src_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            TE,
            "src_layer_range",
            {"src_layer_range": 5, "dst_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            LX,
            ".step == 1 failed",
            {"src_layer_range": range(4, 0, 2), "dst_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            LX,
            "range.start < range.stop failed",
            {"src_layer_range": range(1, 1), "dst_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            LX,
            "range.start < range.stop failed",
            {"src_layer_range": range(1), "dst_layer_range": range(-1, 5), "size": 5},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            LX,
            "src_layer_range size should be equal",
            {"src_layer_range": range(1), "dst_layer_range": range(2), "size": "x"},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c),
            TE,
            "size only support",
            {"size": "x"},
            remote=True,
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.c), VE, "is not a int64", {"size": 2**63}, remote=True
        ),
        Row(
            lambda scene: (CacheKeyByIdAndIndex(1, 1), scene.ours.gone),
            LX,
            "should be = -1.",
            {"size": SLOT_BYTES},
            remote=True,
        ),
    ],
    "push_blocks": [
        Row(given(None, None, None), LX, "only supported while enable_remote_cache_accessible is True"),
        Row(given(None, None, None), AE, remote=True),
        Row(given(CacheKeyByIdAndIndex(1, 1), None, None), TE, "dst_cache_key only support", remote=True),
        Row(given(request(10), None, None), TE, "dst_cache_key only support", remote=True),
        Row(given(FAR, None, None), AE, remote=True),
        Row(given(FAR, 1, None), TE, "src_cache only support", remote=True),
        Row(lambda scene: (FAR, scene.ours.c, "x", "x"), TE, "src_blocks", remote=True),
        Row(lambda scene: (FAR, scene.ours.c, [0], "x"), TE, "dst_blocks", remote=True),
        Row(lambda scene: (FAR, scene.ours.c, [0], ["0"]), TE, "dst_blocks", remote=True),
        Row(lambda scene: (FAR, scene.ours.c, [], []), LX, "cache should be blocks cache", remote=True),
        Row(lambda scene: (FAR, scene.ours.b, [0], []), LX, "", {"tensor_num_per_layer": "2"}, remote=True),
        Row(lambda scene: (FAR, scene.ours.b, [], [0]), LX, "", {"tensor_num_per_layer": "2"}, remote=True),
        Row(lambda scene: (FAR, scene.ours.b, [0, 1], [0]), LX, "", {"tensor_num_per_layer": "2"}, remote=True),
        Row(
            lambda scene: (FAR, scene.ours.b, [0], [0]),
            TE,
            "tensor_num_per_layer",
            {"tensor_num_per_layer": "2", "src_layer_range": 5},
            remote=True,
        ),
        Row(
            lambda scene: (FAR, scene.ours.b, [0], [0]),
            LX,
            "tensor_num_per_layer",
            {"tensor_num_per_layer": 0, "src_layer_range": 5},
            remote=True,
        ),
        Row(lambda scene: (FAR, scene.ours.b, [0], [0]), TE, "", {"src_layer_range": 5}, remote=True),
        Row(
            lambda scene: (FAR, scene.ours.b, [0], [0]),
            LX,
            ".step == 1 failed",
            {"dst_layer_range": range(0, 4, 2)},
            remote=True,
        ),
        Row(
            lambda scene: (FAR, scene.ours.gone_b, [0], [0]),
            LX,
            "size should be equal",
            {"src_layer_range": range(1), "dst_layer_range": range(2)},
            remote=True,
        ),
    ],
    "copy_cache": [
        Row(given(None, None, None), AE),
        Row(given(1, None, None), TE, "dst only support"),
        Row(lambda scene: (scene.ours.b, None, None), AE),
        Row(lambda scene: (scene.ours.b, 1, None), TE, "src only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, None, None), TE, "dst_batch_index only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, -1, None), VE, "is not a uint32 value."),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, None, None), TE, "src_batch_index only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, 2**32, None), VE, "is not a uint32 value."),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, 0, None, None), TE, "offset only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, 0, -1, None), VE, "is not a uint64 value."),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, 0, 0, None), TE, "size only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, 0, 0, 0, 2**63), VE, "is not a int64 value."),
        Row(lambda scene: (scene.ours.b, scene.ours.c, 0, 0, 0, 0), LX, "can not be blocks cache"),
        Row(lambda scene: (scene.ours.c, scene.ours.b, 0, 0, 0, 0), LX, "can not be blocks cache"),
        Row(lambda scene: (scene.ours.c, scene.ours.c, 0, 0, 0, 0, "x"), LX, "should be = -1 or > 0"),
        Row(lambda scene: (scene.ours.c, scene.ours.c, 0, 0, 0, -2, "x"), LX, "should be = -1 or > 0"),
        Row(lambda scene: (scene.ours.gone, scene.ours.c, 0, 0, 0, -1, "x"), TE, "req_id only support"),
        Row(lambda scene: (scene.ours.gone, scene.ours.c, 0, 0, 0, -1, -1), VE, "is not a uint64 value."),
        Row(lambda scene: (scene.ours.gone, scene.ours.c), NOT_EXIST),
        Row(lambda scene: (scene.ours.c, scene.ours.gone), NOT_EXIST),
        Row(lambda scene: (scene.ours.c, scene.theirs.c), NOT_EXIST),
        Row(lambda scene: (scene.theirs.c, scene.ours.c), NOT_EXIST),
    ],
    "copy_blocks": [
        Row(given(None, None), AE),
        Row(given(1, None), TE, "cache only support"),
        Row(lambda scene: (scene.ours.c, None), AE),
        Row(lambda scene: (scene.ours.c, [1]), TE, "copy_block_info only support"),
        Row(lambda scene: (scene.ours.c, {"0": [1]}), TE, "copy_block_info dict key only support"),
        Row(lambda scene: (scene.ours.c, {0: 1}), TE, "copy_block_info dict value only support"),
        Row(lambda scene: (scene.ours.c, {0: ["1"]}), TE),
        Row(lambda scene: (scene.ours.c, {0: [1]}), LX, "cache should be blocks cache"),
        Row(lambda scene: (scene.ours.gone_b, {0: [1]}), NOT_EXIST),
        Row(lambda scene: (scene.ours.b, {0: [1], 4: [2]}), LX),
        Row(lambda scene: (scene.ours.b, {0: [1, 4]}), LX),
    ],
    "swap_blocks": [
        Row(given(None, None, None), AE),
        Row(given(1, None, None), TE, "src_cache only support"),
        Row(lambda scene: (scene.ours.c, None, None), AE),
        Row(lambda scene: (scene.ours.c, 1, None), TE, "dst_cache only support"),
        Row(lambda scene: (scene.ours.c, scene.ours.host_b, None), LX),
        Row(lambda scene: (scene.ours.b, scene.ours.host_c, None), LX),
        Row(lambda scene: (scene.ours.b, scene.ours.b, None), AE),
        Row(lambda scene: (scene.ours.b, scene.ours.b, [0]), TE, "src_to_dst only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, {"0": 1}), TE, "src_to_dst dict key only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, {0: "1"}), TE, "src_to_dst dict value only support"),
        Row(lambda scene: (scene.ours.b, scene.ours.host_b, {4: 0}), LX, "must be in [0,"),
        Row(lambda scene: (scene.ours.b, scene.ours.host_b, {0: 4}), LX, "must be in [0,"),
        Row(lambda scene: (scene.ours.b, scene.ours.host_b, {-1: 0}), LX, "must be in [0,"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, {0: 4}), LX, "must be in [0,"),
        Row(lambda scene: (scene.ours.b, scene.ours.b, {0: 1}), LX, "is not support"),
        Row(lambda scene: (scene.ours.host_b, scene.ours.cpu, {0: 1}), LX, "is not support"),
        Row(lambda scene: (scene.ours.gone_b, scene.ours.cpu, {0: 1}), LX),
    ],
    "remap_registered_memory": [
        Row(given(None), TE),
        Row(given("x"), TE),
        Row(given(["x"]), TE),
        Row(given((MemInfo("MEM_TYPE_DEVICE", 4096, 1),)), TE),
        Row(given(MemInfo("MEM_TYPE_HOST", 0, 0)), LX, "only support Memtype.MEM_TYPE_DEVICE"),
        Row(given([MemInfo("MEM_TYPE_DEVICE", 4096, 1), MemInfo("MEM_TYPE_HOST", 0, 0)]), LX, "only support Memtype"),
        Row(given(MemInfo("MEM_TYPE_DEVICE", 0, 0)), LX),
        Row(given([MemInfo("MEM_TYPE_DEVICE", 4096, 0)]), LX),
        Row(given([]), LX),
    ],
    "transfer_cache_async": [
        Row(given(None, None, None, "x", "x", "x"), TE, "src_cache only support"),
        Row(given(1, None, None, "x", "x", "x"), TE, "src_cache only support"),
        Row(lambda s: (s.ours.host_c, None, None, "x", "x", "x"), LX, "src cache not support placement HOST"),
        Row(lambda s: (s.ours.b, None, None, "x", "x", "x"), TE, "dst_block_indices"),
        Row(lambda s: (s.ours.b, None, None, "x", ["0"], "x"), TE, "dst_block_indices"),
        Row(lambda s: (s.ours.b, None, None, "x", [-1], "x"), VE, "is not a uint64 value."),
        Row(lambda s: (s.ours.b, None, None, {0}, [0], "x"), TE, "src_block_indices"),
        Row(lambda s: (s.ours.b, None, None, [2**64], [0], "x"), VE, "is not a uint64 value."),
        Row(lambda s: (s.ours.b, None, None, [0], None, "x"), TE, "dst_block_memory_size"),
        Row(lambda s: (s.ours.b, None, None, [0], None, -1), VE, "is not a uint64 value."),
        Row(lambda s: (s.ours.b, None, None, [0], None), LX, "transfer from blocks to cache is not supported"),
        Row(lambda s: (s.ours.b, None, None, [0, 1], [0]), LX, "num_block_indices mismatches"),
        Row(lambda s: (s.ours.c, None, None, None, [0]), LX, "dst_block_memory_size must be set"),
        Row(lambda s: (s.ours.c, None, None, None, [0], 0), LX, "dst_block_memory_size must be set"),
        Row(lambda s: (s.ours.c, None, None, None, [0], BLOCK_BYTES), TE, "layer_synchronizer only support"),
        Row(lambda s: (s.ours.c, 5, None, None, [0], BLOCK_BYTES), TE, "layer_synchronizer only support"),
    ],
}


@pytest.mark.parametrize(
    ("method", "row"),
    [
        pytest.param(method, row, id=f"{method} {number}")
        for method, rows in ROWS.items()
        for number, row in enumerate(rows)
    ],
)
def test_order_of_checks(world: World, method: str, row: Row) -> None:
    """api §2.5: the first failing check decides; afterwards everything is as it was (api §2.1)."""
    scene = Scene(world, row.remote)
    arguments = row.arguments(scene)
    before = scene.picture()
    with refused(row.error, row.fragment):
        scene.here.call(method, *arguments, **(row.keywords or {}))
    assert scene.picture() == before


@pytest.mark.parametrize("method", ["allocate_cache", "allocate_blocks_cache"])
def test_the_pool_comes_after_num_tensors_and_before_the_shape(world: World, method: str) -> None:
    """api §2.5: num_tensors > 0, then the pool for that placement, then the dimensions and the keys."""
    node = world.node(1, device_bytes=None)
    call = getattr(node, method)
    with refused(LX, "num_tensors should be bigger than zero"):
        call(CacheDesc(0, (0, 8), "DT_UINT8"))
    with refused(LX, "you should config memory pool firstly"):
        call(CacheDesc(1, (0, 8), "DT_UINT8"))
    keys = [request(1)] * 3 if method == "allocate_cache" else BlocksCacheKey(1)
    with refused(LX, "you should config memory pool firstly"):
        call(CacheDesc(1, (2, 8), "DT_UINT8"), keys)
    call(CacheDesc(1, (2, 8), "DT_UINT8", "HOST"))


def test_swap_blocks_compares_before_it_looks_at_indices(world: World) -> None:
    """api §2.5: swap_blocks: equal block bytes, equal num_tensors, every index in range, placements, in this order."""
    node = world.node(1)
    device = node.allocate_blocks_cache(B)
    larger = node.allocate_blocks_cache(CacheDesc(3, (4, BLOCK_BYTES + 1), "DT_UINT8"))
    fewer = node.allocate_blocks_cache(CacheDesc(3, (4, BLOCK_BYTES), "DT_UINT8"))
    with refused(LX, "must be equal"):
        node.swap_blocks(device, larger, {9: 9})
    with refused(LX):
        node.swap_blocks(device, fewer, {9: 9})
    with refused(LX, "must be in [0,"):
        node.swap_blocks(device, device, {0: 9})
    with refused(LX, "is not support"):
        node.swap_blocks(device, device, {0: 1})
