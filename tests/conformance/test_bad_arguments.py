"""Bad arguments of every call: the documented exception, and everything that can be seen is as it was (api §2.1).

For each call there are good arguments, with which it succeeds, and for each argument what is wrong in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from llmdd.spec.values import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
    MemInfo,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from rank_tables import rank_table

from conformance.scene import BLOCK_BYTES, BLOCKS, FREE, HOST_B, PAGE, SLOT_BYTES, SLOTS, TENSORS, B, C, Scene
from conformance.world import (
    DATADIST_METHODS,
    MANAGER_METHODS,
    Refusal,
    World,
    by_id,
    info_of,
    options_of,
    placeholder,
    prefix,
    request,
)

TE, VE, AE = "TypeError", "ValueError", "AttributeError"
LX, NOT_EXIST, NOT_LINKED = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST", "LLM_NOT_YET_LINK"
FULL = "LLM_OUT_OF_MEMORY"


@dataclass(frozen=True)
class Of:
    """A value that is of the scene."""

    choose: Callable[[Scene], Any]


@dataclass(frozen=True)
class Case:
    """A call with its good arguments, and what is wrong in the place of each: error → values."""

    method: str
    good: Callable[[Scene], dict[str, Any]]
    bad: dict[str, list[tuple[str, list[Any]]]]
    remote: bool = False
    name: str = ""


# ------------------------------------------------------------------------------------------- what is wrong everywhere

NOT_AN_INT = [None, "1", b"1", 1.0, [1], (1,), {1: 1}, object(), np.int64(1)]
NOT_A_CACHE = ["cache", 1, b"", [], {}, object(), request(10), by_id, Of(lambda s: [s.ours.c]), C]
NOT_A_DESC = ["desc", 1, [C], {}, object(), request(10)]
NOT_A_LIST_OF_KEYS = [None, request(FREE), {request(FREE)}, "keys", 5, {}, iter(())]
NOT_KEYS = [[None], [1], ["key"], [BlocksCacheKey(1)], [CacheKeyByIdAndIndex(1, 1)], [request(FREE), None]]
NOT_A_RANGE = [5, "range", (0, 1), [0, 1], slice(0, 1), {0: 1}]
NOT_A_LIST = ["01", 5, {0}, {0: 1}, iter([0])]

UINT32 = [(TE, NOT_AN_INT), (VE, [-1, 2**32, 2**63, 2**64, -(2**70)])]
UINT64 = [(TE, NOT_AN_INT), (VE, [-1, 2**64, -(2**70), 2**70])]
INT64 = [(TE, NOT_AN_INT), (VE, [2**63, 2**64, -(2**63) - 1, 2**70])]

#: Descriptions of no cache that can be.
IMPOSSIBLE = [
    CacheDesc(TENSORS, (0, SLOT_BYTES), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, 0), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, -SLOT_BYTES), "DT_UINT8"),
    CacheDesc(TENSORS, (-SLOTS, SLOT_BYTES), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, -(2**63)), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS,) + (1,) * 32, "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, 2**62), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, 2**59), "DT_STRING"),
    CacheDesc(TENSORS, (2**63 - 1, 2**63 - 1), "DT_UINT8"),
]
NO_TENSORS = CacheDesc(0, (SLOTS, SLOT_BYTES), "DT_UINT8")
SCATTERED = CacheDesc(TENSORS, (3, SLOTS, SLOT_BYTES), "DT_UINT8", "DEVICE", 1)
TOO_LARGE = [
    CacheDesc(1, (SLOTS, 1 << 40), "DT_UINT8"),
    CacheDesc(TENSORS, (SLOTS, 2**60), "DT_UINT8"),
    CacheDesc(2**32 - 1, (SLOTS, SLOT_BYTES), "DT_UINT8"),
    CacheDesc(1000, (SLOTS, SLOT_BYTES), "DT_UINT8"),
    CacheDesc(1, (SLOTS, 1 << 40), "DT_UINT8", "HOST"),
]
BOUND = [[request(30)], [request(FREE), request(31)], [prefix(30)], [request(32)], [CacheKey(77, 30)]]
TOO_MANY = [[request(FREE + number) for number in range(3)], [placeholder()] * 3, [request(FREE)] * 1000]
CACHE_KEYS = [(TE, NOT_A_LIST_OF_KEYS + NOT_KEYS), (LX, BOUND + TOO_MANY)]
BLOCKS_KEY = [
    (TE, ["key", 1, [BlocksCacheKey(1, FREE)], request(FREE), CacheKeyByIdAndIndex(1, 1), object()]),
    (LX, [BlocksCacheKey(1, 30), BlocksCacheKey(77, 30), BlocksCacheKey(1, 32)]),
]
ADDRS = [
    (AE, [None]),
    (TE, ["x", 5, (4096, 8192, 4096, 8192), {4096}, [None] * 4, ["4096"] * 4, [4096.0] * 4, [np.int64(4096)] * 4]),
    (
        LX,
        [
            [],
            Of(lambda s: s.ours.addrs[:3]),
            Of(lambda s: s.ours.addrs[:5]),
            Of(lambda s: s.ours.addrs * 100),
            Of(lambda s: [*s.ours.addrs[:3], 0]),
            Of(lambda s: [0, *s.ours.addrs[:3]]),
            Of(lambda s: [*s.ours.addrs[:3], 8]),
            Of(lambda s: [1 << 62, *s.ours.addrs[:3]]),
            Of(lambda s: [*s.ours.addrs[:3], 2**64 - 1]),
            Of(lambda s: [*s.ours.addrs[:3], 2**63]),
        ],
    ),
    (VE, [Of(lambda s: [*s.ours.addrs[:3], 2**64]), Of(lambda s: [-1, *s.ours.addrs[:3]])]),
]
ACCESSIBLE = [(TE, [1, 0, "True", [], object()])]

#: A cache in which a slot is meant, and one in which blocks are.
GONE_C = [Of(lambda s: s.ours.gone), Of(lambda s: s.ours.unregistered), Of(lambda s: s.theirs.c)]
GONE_B = [Of(lambda s: s.ours.gone_b), Of(lambda s: s.ours.cpu), Of(lambda s: s.theirs.b)]
ANY_B = [Of(lambda s: s.ours.b), Of(lambda s: s.ours.host_b), Of(lambda s: s.ours.registered_b)]
ANY_C = [Of(lambda s: s.ours.c), Of(lambda s: s.ours.host_c), Of(lambda s: s.ours.registered)]


def other_c(tensors: int, slot_bytes: int) -> Of:
    """A C cache of another shape, made before the picture is taken."""
    return Of(lambda s: s.made("allocate_cache", CacheDesc(tensors, (2, slot_bytes), "DT_UINT8")))


def other_b(tensors: int, block_bytes: int) -> Of:
    """A B cache of another shape."""
    return Of(lambda s: s.made("allocate_blocks_cache", CacheDesc(tensors, (4, block_bytes), "DT_UINT8")))


C_TO_USE = [
    (AE, [None]),
    (TE, NOT_A_CACHE),
    (LX, [*ANY_B, Of(lambda s: s.ours.cpu), Of(lambda s: s.ours.gone_b), Of(lambda s: s.theirs.b)]),
    (NOT_EXIST, GONE_C),
]
B_TO_USE = [
    (AE, [None]),
    (TE, NOT_A_CACHE),
    (LX, [*ANY_C, Of(lambda s: s.ours.gone), Of(lambda s: s.theirs.c)]),
    (NOT_EXIST, GONE_B),
]
PULL_RANGE = [
    (TE, NOT_A_RANGE),
    (
        LX,
        [
            range(0),
            range(1, 1),
            range(2, 1),
            range(5, 2),
            range(0, 2, 2),
            range(1, 0, -1),
            range(-1, 1),
            range(2, 3),
            range(1, 3),
            range(3),
            range(2**31, 2**32 - 1),
        ],
    ),
    (VE, [range(2**32), range(2**32, 2**33), range(2**63), range(2**64)]),
]
PUSH_RANGE = [
    (TE, NOT_A_RANGE),
    (
        LX,
        [
            range(0),
            range(1, 1),
            range(2, 1),
            range(0, 2, 2),
            range(1, 0, -1),
            range(-1, 1),
            range(2, 3),
            range(1, 3),
            range(3),
            range(2**32),
            range(2**63),
        ],
    ),
]
TNPL = [(TE, NOT_AN_INT), (VE, [-1, 2**32, 2**63, 2**64]), (LX, [0, 3, 5, 2**32 - 1])]
NO_SLOT_KEY = [
    (AE, [None]),
    (TE, ["key", 1, [request(10)], object(), C]),
    (
        LX,
        [
            placeholder(),
            placeholder(7),
            CacheKey(1, 10, 0, 10),
            CacheKey(2, 30),
            CacheKeyByIdAndIndex(2, 1),
            Of(lambda s: by_id(s.theirs.b)),
            Of(lambda s: by_id(s.theirs.registered_b)),
        ],
    ),
    (NOT_LINKED, [request(10, 0, 3), CacheKeyByIdAndIndex(2**64 - 1, 1)]),
    (
        NOT_EXIST,
        [
            request(FREE),
            request(10, 1),
            prefix(FREE),
            prefix(11),
            request(2**64 - 2),
            *(CacheKeyByIdAndIndex(1, cache_id) for cache_id in (0, -1, 999, 2**63 - 1, -(2**63))),
            Of(lambda s: by_id(s.theirs.c, 2)),
            Of(lambda s: by_id(s.theirs.c, 2**32 - 1)),
            Of(lambda s: by_id(s.theirs.registered, 2)),  # behind which the memory goes on
            Of(lambda s: by_id(s.theirs.gone)),
            Of(lambda s: by_id(s.theirs.unregistered)),
        ],
    ),
]
REMOTE_BLOCKS_KEY = [
    (AE, [None]),
    (LX, [BlocksCacheKey(2, 30)]),
    (NOT_LINKED, [BlocksCacheKey(3, 10)]),
    (NOT_EXIST, [BlocksCacheKey(1, FREE), BlocksCacheKey(1, 11), BlocksCacheKey(1, 2**64 - 1)]),
]
NOT_BLOCKS = [*NOT_A_LIST, [None], ["0"], [0.0], [np.int64(0)], [0, "1"]]
NO_BLOCKS = [(TE, NOT_BLOCKS), ((TE, VE), [[-1], [2**64], [0, -1]])]

CASES = [
    Case(
        "allocate_cache",
        lambda s: {"cache_desc": C, "cache_keys": [request(FREE)]},
        {
            "cache_desc": [
                (AE, [None]),
                (TE, NOT_A_DESC),
                (LX, [*IMPOSSIBLE, NO_TENSORS, SCATTERED]),
                (FULL, TOO_LARGE),
            ],
            "cache_keys": CACHE_KEYS,
        },
    ),
    Case(
        "allocate_blocks_cache",
        lambda s: {"cache_desc": B, "blocks_cache_key": BlocksCacheKey(1, FREE)},
        {
            "cache_desc": [(AE, [None]), (TE, NOT_A_DESC), (LX, [*IMPOSSIBLE, NO_TENSORS]), (FULL, TOO_LARGE)],
            "blocks_cache_key": BLOCKS_KEY,
        },
    ),
    Case(
        "register_cache",
        lambda s: {
            "cache_desc": C,
            "addrs": s.ours.addrs[:4],
            "cache_keys": [request(FREE)],
            "remote_accessible": True,
        },
        {
            "cache_desc": [(AE, [None]), (TE, NOT_A_DESC), (LX, [*IMPOSSIBLE, SCATTERED])],
            "addrs": ADDRS,
            "cache_keys": CACHE_KEYS,
            "remote_accessible": ACCESSIBLE,
        },
    ),
    Case(
        "register_blocks_cache",
        lambda s: {
            "cache_desc": B,
            "addrs": s.ours.addrs[:4],
            "blocks_cache_key": BlocksCacheKey(1, FREE),
            "remote_accessible": False,
        },
        {
            "cache_desc": [(AE, [None]), (TE, NOT_A_DESC), (LX, IMPOSSIBLE)],
            "addrs": ADDRS,
            "blocks_cache_key": BLOCKS_KEY,
            "remote_accessible": ACCESSIBLE,
        },
    ),
    Case(
        "unregister_cache",
        lambda s: {"cache_id": s.ours.registered.cache_id},
        {
            "cache_id": [
                *INT64,
                (TE, [Of(lambda s: s.ours.registered)]),
                (LX, [Of(lambda s: s.ours.c.cache_id), Of(lambda s: s.ours.b.cache_id)]),
            ]
        },
    ),
    Case(
        "deallocate_cache",
        lambda s: {"cache": s.ours.c},
        {
            "cache": [
                (AE, [None]),
                (TE, NOT_A_CACHE),
                (LX, [*ANY_B, *GONE_B]),
            ]
        },
    ),
    Case(
        "deallocate_blocks_cache",
        lambda s: {"cache": s.ours.b},
        {"cache": [(AE, [None]), (TE, NOT_A_CACHE), (LX, [*ANY_C, *GONE_C])]},
    ),
    Case(
        "remove_cache_key",
        lambda s: {"cache_key": request(30)},
        {
            "cache_key": [
                (AE, [None]),
                (TE, ["key", 1, [request(30)], BlocksCacheKey(1, 30), CacheKeyByIdAndIndex(2, 1)]),
            ]
        },
    ),
    Case(
        "pull_cache",
        lambda s: {"cache_key": request(10), "cache": s.ours.c},
        {
            "cache_key": [*NO_SLOT_KEY, (TE, [BlocksCacheKey(1, 10)])],
            "cache": [*C_TO_USE, (LX, [other_c(3, SLOT_BYTES), other_c(5, 8), other_c(TENSORS, SLOT_BYTES + 1)])],
            "batch_index": [*UINT32, (LX, [SLOTS, SLOTS + 1, 2**32 - 1])],
            "size": [*INT64, (LX, [0, -2, SLOT_BYTES + 1, SLOTS * SLOT_BYTES, 2**63 - 1, -(2**63)])],
            "src_layer_range": PULL_RANGE,
            "dst_layer_range": PULL_RANGE,
            "tensor_num_per_layer": [*TNPL[:2], (LX, [0, 5, 2**32 - 1])],
            "layer_range": [(TE, [range(1), None])],
            "timeout": [(TE, [5])],
        },
    ),
    Case(
        "pull_cache",
        lambda s: {
            "cache_key": by_id(s.theirs.c),
            "cache": s.ours.c,
            "src_layer_range": range(1),
            "dst_layer_range": range(1, 2),
        },
        {
            "cache_key": [*NO_SLOT_KEY[:1], (TE, [request(10), prefix(10), placeholder(), BlocksCacheKey(1, 10), 5])],
            "cache": [*C_TO_USE, (LX, [Of(lambda s: s.ours.closed), other_c(2, SLOT_BYTES), other_c(5, SLOT_BYTES)])],
            "src_layer_range": [*PULL_RANGE, (LX, [range(2)])],
            "dst_layer_range": [*PULL_RANGE, (LX, [range(2)])],
            "tensor_num_per_layer": TNPL,
        },
        remote=True,
        name="pull_cache by layers in remote mode",
    ),
    Case(
        "pull_blocks",
        lambda s: {"src_cache_key": request(10), "dst_cache": s.ours.b, "src_blocks": [], "dst_blocks": [2, 0, 1]},
        {
            "src_cache_key": [*NO_SLOT_KEY, (LX, [BlocksCacheKey(1, 10)])],
            "dst_cache": [*B_TO_USE, (LX, [other_b(3, BLOCK_BYTES), other_b(TENSORS, SLOT_BYTES)])],
            "src_blocks": [*NO_BLOCKS, (LX, [[0], [0, 1, 2]])],
            "dst_blocks": [
                *NO_BLOCKS,
                (TE, [None]),
                (LX, [[], (), [BLOCKS], [0, BLOCKS], [2**32], [2**63], [2**64 - 1], [0, 1, 2, 3], [0] * 1000]),
            ],
            "src_layer_range": PULL_RANGE,
            "dst_layer_range": PULL_RANGE,
            "tensor_num_per_layer": [*TNPL[:2], (LX, [0, 5, 2**32 - 1])],
            "blocks": [(TE, [[0]])],
        },
        name="pull_blocks of a slot",
    ),
    Case(
        "pull_blocks",
        lambda s: {
            "src_cache_key": BlocksCacheKey(1, 10),
            "dst_cache": s.ours.b,
            "src_blocks": [0, 1],
            "dst_blocks": [1, 0],
        },
        {
            "src_cache_key": [*REMOTE_BLOCKS_KEY, (LX, [request(10), prefix(10), Of(lambda s: by_id(s.theirs.c))])],
            "dst_cache": [*B_TO_USE, (LX, [other_b(3, BLOCK_BYTES), other_b(TENSORS, BLOCK_BYTES + 1)])],
            "src_blocks": [
                *NO_BLOCKS,
                (LX, [None, [], [0], [0, 1, 2], [0, BLOCKS], [2**32, 0], [0, 2**63], [0, 2**64 - 1]]),
            ],
            "dst_blocks": [
                *NO_BLOCKS,
                (TE, [None]),
                (LX, [[], [0], [0, 1, 2], [0, BLOCKS], [2**32, 0], [0, 2**63], [0, 2**64 - 1]]),
            ],
            "src_layer_range": PULL_RANGE,
            "dst_layer_range": PULL_RANGE,
            "tensor_num_per_layer": [*TNPL[:2], (LX, [0, 5, 2**32 - 1])],
        },
    ),
    Case(
        "push_cache",
        lambda s: {
            "dst_cache_key": by_id(s.theirs.c),
            "src_cache": s.ours.c,
            "src_batch_index": 1,
            "src_layer_range": range(1),
            "dst_layer_range": range(1, 2),
            "size": -1,
            "tensor_num_per_layer": 2,
        },
        {
            "dst_cache_key": [
                (TE, [None, "key", 1, request(10), BlocksCacheKey(1, 10), object()]),
                (NOT_LINKED, [CacheKeyByIdAndIndex(3, 1), CacheKeyByIdAndIndex(2, 1)]),
                (NOT_EXIST, [CacheKeyByIdAndIndex(1, number) for number in (0, -1, 999, 2**63 - 1, -(2**63))]),
                (NOT_EXIST, [Of(lambda s: by_id(s.theirs.gone)), Of(lambda s: by_id(s.theirs.unregistered))]),
                (
                    LX,
                    [
                        Of(lambda s: by_id(s.theirs.c, 2)),
                        Of(lambda s: by_id(s.theirs.c, 2**32 - 1)),
                        Of(lambda s: by_id(s.theirs.registered, 2)),  # behind which the memory goes on
                        Of(lambda s: by_id(s.theirs.b)),
                        Of(lambda s: by_id(s.theirs.closed)),
                    ],
                ),
            ],
            "src_cache": [
                (TE, [None, *NOT_A_CACHE]),
                (LX, [*ANY_B, Of(lambda s: s.ours.cpu), Of(lambda s: s.ours.closed)]),
                (LX, [other_c(3, SLOT_BYTES), other_c(TENSORS, SLOT_BYTES + 1)]),
                (NOT_EXIST, GONE_C),
            ],
            "src_batch_index": [*UINT32, (LX, [SLOTS, 2**32 - 1])],
            "src_layer_range": [*PUSH_RANGE, (LX, [range(2)])],
            "dst_layer_range": [*PUSH_RANGE, (LX, [range(2)])],
            "size": [*INT64, (LX, [0, -2, 1, SLOT_BYTES, SLOT_BYTES + 1, 2**63 - 1, -(2**63)])],
            "tensor_num_per_layer": TNPL,
        },
        remote=True,
    ),
    Case(
        "push_blocks",
        lambda s: {
            "dst_cache_key": BlocksCacheKey(1, 10),
            "src_cache": s.ours.b,
            "src_blocks": [0, 1],
            "dst_blocks": [1, 2],
            "src_layer_range": range(1),
            "dst_layer_range": range(1, 2),
            "tensor_num_per_layer": 2,
        },
        {
            "dst_cache_key": [
                (AE, [None]),
                (TE, ["key", 1, request(10), CacheKeyByIdAndIndex(1, 1), object()]),
                (NOT_LINKED, [BlocksCacheKey(3, 10), BlocksCacheKey(2, 30)]),
                (NOT_EXIST, [BlocksCacheKey(1, FREE), BlocksCacheKey(1, 11)]),
                (LX, [BlocksCacheKey(1, 13)]),
            ],
            "src_cache": [
                *B_TO_USE,
                (LX, [other_b(3, BLOCK_BYTES), other_b(TENSORS, BLOCK_BYTES + 1), Of(lambda s: s.ours.closed_b)]),
            ],
            "src_blocks": [*NO_BLOCKS, (LX, [[], [0], [0, 1, 2], [0, BLOCKS], [2**32, 0], [0, 2**63]])],
            "dst_blocks": [*NO_BLOCKS, (LX, [[], [0], [0, 1, 2], [0, BLOCKS], [2**32, 0], [0, 2**63]])],
            "src_layer_range": [*PUSH_RANGE, (LX, [range(2)])],
            "dst_layer_range": [*PUSH_RANGE, (LX, [range(2)])],
            "tensor_num_per_layer": TNPL,
        },
        remote=True,
    ),
    Case(
        "copy_cache",
        lambda s: {"dst": s.ours.unkeyed, "src": s.ours.c, "dst_batch_index": 1, "src_batch_index": 0, "req_id": 5},
        {
            "dst": [*C_TO_USE, (LX, [other_c(3, SLOT_BYTES), other_c(TENSORS, SLOT_BYTES - 1)])],
            "src": [*C_TO_USE, (LX, [other_c(3, SLOT_BYTES), other_c(TENSORS, SLOT_BYTES + 1)])],
            "dst_batch_index": [*UINT32, (LX, [SLOTS, 2**32 - 1])],
            "src_batch_index": [*UINT32, (LX, [SLOTS, 2**32 - 1])],
            "offset": [*UINT64, (LX, [SLOT_BYTES, SLOT_BYTES + 1, 2**32, 2**63, 2**64 - 1])],
            "size": [*INT64, (LX, [0, -2, SLOT_BYTES + 1, 2**63 - 1, -(2**63)])],
            "req_id": [(TE, NOT_AN_INT[1:]), (VE, [-1, 2**64])],
        },
    ),
    Case(
        "copy_blocks",
        lambda s: {"cache": s.ours.b, "copy_block_info": {0: [1, 2]}},
        {
            "cache": [(AE, [None]), (TE, NOT_A_CACHE), (LX, [*ANY_C, Of(lambda s: s.ours.gone)]), (NOT_EXIST, GONE_B)],
            "copy_block_info": [
                (AE, [None]),
                (TE, ["x", 5, [0, 1], [(0, [1])], {"0": [1]}, {None: [1]}, {0.0: [1]}, {0: 1}, {0: None}]),
                (TE, [{0: "1"}, {0: ["1"]}, {0: [None]}, {0: [1.0]}, {0: {1: 2}}, {0: [1], "1": [2]}]),
                ((TE, VE), [{-1: [0]}, {0: [-1]}, {0: [1, -(2**70)]}]),
                ((LX, VE), [{2**64: [0]}, {0: [2**64]}]),
                (LX, [{BLOCKS: [0]}, {0: [BLOCKS]}, {0: [1], 1: [2, BLOCKS]}, {2**32: [0]}, {0: [2**63]}]),
            ],
        },
    ),
    Case(
        "swap_blocks",
        lambda s: {"src_cache": s.ours.b, "dst_cache": s.ours.cpu, "src_to_dst": {0: 1, 3: 2}},
        {
            "src_cache": [
                (AE, [None]),
                (TE, NOT_A_CACHE),
                (LX, [*ANY_C, Of(lambda s: s.ours.gone_b), Of(lambda s: s.ours.host_b)]),
                (LX, [other_b(3, BLOCK_BYTES), other_b(TENSORS, BLOCK_BYTES + 1), Of(lambda s: s.ours.cpu)]),
            ],
            "dst_cache": [
                (AE, [None]),
                (TE, NOT_A_CACHE),
                (LX, [*ANY_C, Of(lambda s: s.ours.gone_b), Of(lambda s: s.ours.b), other_b(TENSORS, BLOCK_BYTES)]),
            ],
            "src_to_dst": [
                (AE, [None]),
                (
                    TE,
                    ["x", 5, [0, 1], [(0, 1)], {"0": 1}, {0: "1"}, {None: 1}, {0: None}, {0: [1]}, {0.0: 1}, {0: 1.0}],
                ),
                (LX, [{-1: 0}, {0: -1}, {BLOCKS: 0}, {0: BLOCKS}, {0: 1, 1: BLOCKS}, {2**32: 0}, {0: 2**63}]),
                ((LX, VE), [{2**64: 0}, {0: 2**70}]),
            ],
        },
    ),
    Case(
        "create_cpu_cache",
        lambda s: {"desc": HOST_B, "addrs": s.ours.addrs[:4]},
        {
            "desc": [(AE, [None]), (TE, NOT_A_DESC), (LX, [B, CacheDesc(3, (4, 8), "DT_UINT8", "HOST")])],
            "addrs": [
                (AE, [None]),
                (TE, ["x", 5, (4096,) * 4, {4096}, [None] * 4, ["4096"] * 4, [4096.0] * 4]),
                (LX, [[], [4096], Of(lambda s: s.ours.addrs[:3]), Of(lambda s: s.ours.addrs[:5])]),
            ],
        },
    ),
    Case(
        "remap_registered_memory",
        lambda s: {"mem_infos": [MemInfo("MEM_TYPE_DEVICE", 4096, 10)]},
        {
            "mem_infos": [
                (TE, [None, "x", 5, [None], [5], (MemInfo("MEM_TYPE_DEVICE", 4096, 10),), {}, object()]),
                (
                    LX,
                    [
                        [],
                        MemInfo("MEM_TYPE_HOST", 4096, 10),
                        MemInfo("MEM_TYPE_DEVICE", 0, 10),
                        MemInfo("MEM_TYPE_DEVICE", 4096, 0),
                        MemInfo("MEM_TYPE_DEVICE", 4096, -1),
                        [MemInfo("MEM_TYPE_DEVICE", 4096, 10), MemInfo("MEM_TYPE_DEVICE", 0, 10)],
                    ],
                ),
            ]
        },
    ),
    Case(
        "transfer_cache_async",
        lambda s: {
            "src_cache": s.ours.c,
            "layer_synchronizer": ready,
            "transfer_configs": [TransferWithCacheKeyConfig(by_id(s.theirs.c), range(2), range(2))],
        },
        {
            "src_cache": [
                (TE, [None, *NOT_A_CACHE]),
                (LX, [Of(lambda s: s.ours.host_c), Of(lambda s: s.ours.host_b), other_c(3, 8), other_c(2, 8)]),
            ],
            "layer_synchronizer": [(TE, [None, 5, "x", []])],
            "transfer_configs": [
                (TE, [None, "x", 5, {1}, {}, [None], [5], [TransferConfig(1, [1, 2], range(1))]]),
                (TE, [Of(lambda s: TransferWithCacheKeyConfig(by_id(s.theirs.c), range(1), range(1)))]),
                (
                    LX,
                    [
                        Of(lambda s, layers=layers: [TransferWithCacheKeyConfig(by_id(s.theirs.c), layers, layers)])
                        for layers in (range(2, 3), range(1, 3), range(2**32), range(2**63), range(2**64))
                    ],
                ),
                (LX, [Of(lambda s: [TransferWithCacheKeyConfig(by_id(s.theirs.c), range(1), range(1), SLOTS)])]),
            ],
            "src_block_indices": [(TE, NOT_BLOCKS), (VE, [[-1], [2**64]]), (LX, [[0], [0, 1]])],
            "dst_block_indices": [(TE, NOT_BLOCKS), (VE, [[-1], [2**64]]), (LX, [[0], [0, 1]])],
            "dst_block_memory_size": [(TE, NOT_AN_INT[1:]), (VE, [-1, 2**64, 2**70]), (LX, [BLOCK_BYTES])],
        },
        remote=True,
    ),
    Case(
        "transfer_cache_async",
        lambda s: {
            "src_cache": s.ours.b,
            "layer_synchronizer": ready,
            "transfer_configs": [TransferConfig(1, s.there.tensor_addrs(s.theirs.b)[:2], range(1))],
            "src_block_indices": [0, 1],
            "dst_block_indices": [2, 3],
        },
        {
            "transfer_configs": [
                (TE, [Of(lambda s: [TransferWithCacheKeyConfig(BlocksCacheKey(1, 10), range(1), range(1))])]),
                (LX, [[TransferConfig(1, [4096, 8192], range(1), 1)], [TransferConfig(1, [4096], range(1))]]),
                (LX, [[TransferConfig(1, [4096, 8192])], [TransferConfig(1, [], range(1))]]),
                (LX, [[TransferConfig(1, [4096, 8192], range(2, 3))]]),
            ],
            "src_block_indices": [(TE, NOT_BLOCKS), (VE, [[-1, 0], [0, 2**64]]), (LX, [[0], [0, 1, 2]])],
            "dst_block_indices": [(TE, NOT_BLOCKS), (VE, [[-1, 0], [0, 2**64]]), (LX, [None, [0], [0, 1, 2]])],
        },
        name="transfer_cache_async of blocks to addresses",
    ),
    Case(
        "link_clusters",
        lambda s: {"clusters": [info_of(s.there)], "timeout": 1000},
        {
            "clusters": [
                (TE, [None, "x", 5, {1}, {}, [None], [5], Of(lambda s: info_of(s.there))]),
                (TE, [[ClusterInfo(None, (("127.0.0.1", 0),), ())]]),
                (LX, [[ClusterInfo(1, (), ())]]),
            ],
            "timeout": [(TE, NOT_AN_INT), (VE, [2**31, 2**32, 2**63, 2**64, -(2**31) - 1]), (LX, [0, -1, -(2**31)])],
        },
    ),
    Case(
        "unlink_clusters",
        lambda s: {"clusters": [info_of(s.there)], "timeout": 60_000, "force": False},
        {
            "clusters": [
                (TE, [None, "x", 5, {1}, {}, [None], [5], Of(lambda s: info_of(s.there))]),
                (TE, [[ClusterInfo(None, (), ())]]),
            ],
            "timeout": [(TE, NOT_AN_INT), (VE, [2**31, 2**32, 2**63, 2**64, -(2**31) - 1]), (LX, [0, -1, -(2**31)])],
            "force": [(TE, [None, 0, 1, "True", []])],
        },
    ),
    Case(
        "link",
        lambda s: {"comm_name": "pool", "cluster_rank_info": {2: 0, 5: 1}, "rank_table": rank_table(2)},
        {
            "comm_name": [(TE, [None, 5, b"pool", ["pool"]]), (LX, ["", "x" * 128, "x" * 100_000])],
            "cluster_rank_info": [
                (AE, [None]),
                (TE, ["x", 5, [2, 5], [(2, 0)], {"2": 0}, {2: "0"}, {None: 0}, {2: None}, {2.0: 0}]),
                (VE, [{-1: 0, 2: 1}, {2**64: 0, 2: 1}, {2: -1, 5: 0}, {2: 0, 5: 2**32}, {2: 0, 5: 2**64}]),
                (LX, [{}, {2: 0}, {2: 1, 5: 0}, {2: 0, 5: 0}, {1: 0, 5: 1}, {2 + n: n for n in range(5)}]),
                ("LLM_LINK_FAILED", [{2: 0, 5: 7}]),
            ],
            "rank_table": [
                (TE, [None, 5, {}, b"{}"]),
                ("LLM_LINK_FAILED", ["", "x", "{}", "[]", "null", '{"server_list": 5}', '{"server_list": [5]}']),
            ],
        },
    ),
    Case(
        "unlink",
        lambda s: {"comm_id": s.communicator()},
        {"comm_id": [*UINT64, (NOT_LINKED, [0, 9, 2**64 - 1])]},
    ),
    Case(
        "query_register_mem_status",
        lambda s: {"comm_id": s.communicator()},
        {"comm_id": [*UINT64, (NOT_LINKED, [0, 9, 2**64 - 1])]},
    ),
    Case(
        "switch_role",
        lambda s: {"role": "MIX"},
        {
            "role": [(TE, [None, 1, 3, 5, [], object()]), ("LLM_EXIST_LINK", ["PROMPT"])],
            "switch_options": [
                (TE, ["x", 5, [("llm.listenIpInfo", "127.0.0.1:0")]]),
                (LX, [{"llm.listenIpInfo": text} for text in ("", "x", "127.0.0.1", "localhost:0", "::1:0")]),
                (VE, [{"llm.listenIpInfo": f"127.0.0.1:{port}"} for port in ("", "x", "-1", 65536, 2**32, 2**64)]),
                ("LLM_EXIST_LINK", [{}, {"llm.listenIpInfo": "127.0.0.1:0"}]),
            ],
        },
        name="switch_role while linked",
    ),
]


def ready(layer: int, timeout: Any) -> bool:
    return True


class Bench(Scene):
    """A scene in which more can be made, before its picture is taken."""

    def made(self, method: str, desc: CacheDesc) -> Any:
        return self.here.call(method, desc)

    def communicator(self) -> int:
        return self.here.link("of the test", {2: 0, 5: 1}, rank_table(2))


def parameters() -> Iterator[Any]:
    for case in CASES:
        for argument in case.bad:
            yield pytest.param(case, argument, id=f"{case.name or case.method}: {argument}")


@pytest.mark.parametrize(("case", "argument"), list(parameters()))
def test_bad_arguments(world: World, case: Case, argument: str) -> None:
    """api §2.1, §2.4, §2.5: each wrong value is answered with the documented exception, and nothing has changed."""
    scene = Bench(world, case.remote)
    good = case.good(scene)
    for errors, wrong_values in case.bad[argument]:
        for wrong in wrong_values:
            value = wrong.choose(scene) if isinstance(wrong, Of) else wrong
            before = scene.picture()
            refusal = scene.outcome(case.method, **{**good, argument: value})
            what = f"{argument}={value!r}"
            assert refusal is not None, f"{what} is not refused"
            expected = (errors,) if isinstance(errors, str) else errors
            assert any(refusal.matches(error) for error in expected), f"{what}: {refusal}, but {expected} is documented"
            assert scene.picture() == before, f"{what}: something has changed"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name or case.method)
def test_the_good_arguments_are_good(world: World, case: Case) -> None:
    """api §2.1: what each call is given besides the wrong value is right."""
    scene = Bench(world, case.remote)
    good = case.good(scene)
    if case.method == "switch_role":
        scene.here.unlink_clusters([info_of(scene.there)])
    assert scene.outcome(case.method, **good) is None


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.method in DATADIST_METHODS + MANAGER_METHODS],
    ids=lambda case: case.name or case.method,
)
def test_argument_counts(library: World, case: Case) -> None:
    """api §1.10, §1.11: too few and too many arguments, and unknown names, are a TE."""
    scene = Bench(library, case.remote)
    good = case.good(scene)
    before = scene.picture()
    for arguments, keywords in (
        ((), {}),
        ((1,) * 20, {}),
        ((), {**good, "no_such_parameter": 1}),
    ):
        try:
            scene.here.call(case.method, *arguments, **keywords)
        except Refusal as refusal:
            assert refusal.matches(TE), refusal
        else:
            raise AssertionError(f"{len(arguments)} arguments and {list(keywords)} are not refused")
    assert scene.picture() == before


INIT_OPTIONS: list[tuple[str, list[Any]]] = [
    (AE, [None]),
    (TE, ["x", 5, [], [("llm.EnableCacheManager", "1")], object()]),
    (TE, [{1: "x"}, {None: "x"}, {"x": 1}, {"x": None}, {"llm.MemPoolConfig": 5}, {"llm.SyncKvCacheWaitTime": 1000}]),
    ("LLM_FEATURE_NOT_ENABLED", [{"llm.EnableCacheManager": text} for text in ("0", "", "2", "true")]),
    (LX, [{"llm.EnableRemoteCacheAccessible": text} for text in ("", "2", "true")]),
    (LX, [{"llm.SyncKvCacheWaitTime": text} for text in ("", "0", "-1", "x", "1.0", str(2**31), str(2**64))]),
    (LX, [{"llm.LinkTotalTime": text} for text in ("", "-1", "x", str(2**32), str(2**64))]),
    (LX, [{"llm.LinkRetryCount": text} for text in ("", "0", "101", "-1", "x", str(2**64))]),
    (LX, [{"llm.MemPoolConfig": text} for text in ("", "x", "[]", "{}", '{"memory_size": -1}', "[" * 100_000)]),
    (LX, [{"llm.HostMemPoolConfig": text} for text in ('{"memory_size": 0}', '{"memory_size": 1}')]),
    (LX, [{"llm.listenIpInfo": text} for text in ("", "x", "127.0.0.1", "1:2:3", "localhost:0")]),
    (VE, [{"llm.listenIpInfo": f"127.0.0.1:{port}"} for port in ("", "x", "-1", 65536, 2**32, 2**64)]),
    (LX, [{"llm.TransferBackend": "x", "llm.EnableRemoteCacheAccessible": "1"}, {"llm.TransferBackend": "hixl"}]),
]


def test_bad_options(world: World) -> None:
    """api §2.3: bad options of ``init``: the documented exception; the instance can be initialised afterwards."""
    for error, wrong_values in INIT_OPTIONS:
        for wrong in wrong_values:
            options = options_of() | wrong if isinstance(wrong, dict) else wrong
            node = world.start(len(world.nodes) + 1)
            what = f"{wrong!r:.80}"
            try:
                node.init(options)
            except Refusal as refusal:
                assert refusal.matches(error), f"{what}: {refusal}, but {error} is documented"
            else:
                raise AssertionError(f"{what} is not refused")
            node.init(options_of())
            assert node.is_entirely_free()
            node.finalize()


#: Calls whose bad arguments stand above.
COVERED = {case.method for case in CASES} | {"init", "finalize"}


def test_every_call_is_covered() -> None:
    """api §1.10, §1.11: every call has a row, except ``finalize``, which takes no argument."""
    assert set(DATADIST_METHODS + MANAGER_METHODS) <= COVERED
    assert PAGE == 4096
