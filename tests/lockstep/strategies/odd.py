"""Odd arguments, and how often calls are given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from llmdd.spec.values import INV, BlocksCacheKey, CacheDesc, CacheKey, ClusterInfo, MemInfo

BOTH_IDS = CacheKey(1, 1, 0, 1)
PLACEHOLDERS = [CacheKey(1, INV), CacheKey(77, INV, 5)]

#: Beside it, what a machine takes of the clock does not count.
LEASE_MS = 10_000_000

#: Where nothing is mapped, on either side.
NOWHERE = 1 << 43

LEASES = ("1", 1.5, -1, 2**31)
UINT32 = (None, "1", 1.0, -1, 2**32, np.int64(1), True)
UINT64 = (None, "1", 1.0, -1, 2**64, np.int64(1), True)
INT64 = (None, "1", 1.0, 2**63, -(2**63) - 1, np.int64(1), True, 0, -1, 99)
SIZES = (None, "1", 0, -2, 2**63, -(2**63) - 1, 1.5, True)
TIMEOUTS = (None, "1", 0, -1, 2**31, 1.5)
CACHES = (None, 1, "cache", CacheKey(1, 1))
KEYS = (None, 1, "key", (1, 1), BOTH_IDS, BlocksCacheKey(1, 0), *PLACEHOLDERS)
KEY_LISTS: tuple[Any, ...] = (
    None,
    1,
    "keys",
    CacheKey(1, 1),
    {CacheKey(1, 1)},
    [None],
    (CacheKey(1, 1), 1),
    {},
    [BlocksCacheKey(1, 0)],
)
BLOCKS_KEYS: tuple[Any, ...] = (1, "key", CacheKey(1, 1), [BlocksCacheKey(1, 0)])
RANGES = (3, "0", (0, 1), range(0), range(2, 1), range(0, 4, 2), range(-1, 1), range(2**33), range(40, 41))
TENSORS_PER_LAYER = (None, "1", 0, -1, 1.0, 2**32, 5, 1000)
FLAGS = (None, 1, "yes")
CLUSTERS: tuple[Any, ...] = (None, 1, {}, (), [None], ClusterInfo(1), [ClusterInfo(None)], [ClusterInfo(2)] * 17)
BLOCK_LISTS: tuple[Any, ...] = (
    None,
    1,
    "0",
    {0},
    (),
    [],
    [None],
    [1.0],
    [-1],
    [2**63],
    [2**64],
    [2**64 - 1],
    [0, 1, 99],
    (True,),
)
ADDRESS_LISTS: tuple[Any, ...] = (
    None,
    1,
    "1",
    (NOWHERE,),
    [],
    [None],
    [1.0],
    [NOWHERE],
    [NOWHERE, NOWHERE],
    [0, NOWHERE],
    [2**64, NOWHERE],
    [-1, NOWHERE],
    [2**64 - 1, 2**64 - 1],
)
MEMORY_INFOS: tuple[Any, ...] = (
    None,
    1,
    [],
    (),
    [None],
    MemInfo("MEM_TYPE_HOST", NOWHERE, 1),
    MemInfo("MEM_TYPE_DEVICE", 0, 1),
    [MemInfo("MEM_TYPE_DEVICE", NOWHERE, 4096), MemInfo("MEM_TYPE_DEVICE", NOWHERE, 0)],
    MemInfo("MEM_TYPE_DEVICE", NOWHERE, -1),
)
DESCS = (
    None,
    1,
    "desc",
    CacheDesc(0, (1, 8), "DT_INT8"),
    CacheDesc(1, (1, 0), "DT_INT8"),
    CacheDesc(1, (-1, 8), "DT_INT8"),
    CacheDesc(1, (2, 2, 8), "DT_INT8", batch_dim_index=1),
    CacheDesc(1, (1,) * 33, "DT_INT8"),
    CacheDesc(1, (1,) * 32, "DT_INT8"),
    CacheDesc(1, (1, 2**60), "DT_DOUBLE"),
    CacheDesc(1, (1, 2**62, 2), "DT_INT8"),
    CacheDesc(2**32 - 1, (1, 2**40), "DT_INT8"),
    CacheDesc(1, (2**40,), "DT_INT8"),
)


def chance(draw: DrawFn, one_in: int) -> bool:
    """True once in so many times, and never in the simplest example."""
    return draw(_die(one_in)) == one_in - 1


@cache
def _die(sides: int) -> SearchStrategy[int]:
    return st.integers(0, sides - 1)


def mixed_in(
    draw: DrawFn, arguments: Mapping[str, Any], odd: Mapping[str, Sequence[Any]], one_in: int = 6
) -> dict[str, Any]:
    """The arguments, now and then with one or two of them replaced by odd ones."""
    arguments = dict(arguments)
    if chance(draw, one_in):
        for name in draw(st.lists(st.sampled_from(sorted(odd)), min_size=1, max_size=2, unique=True)):
            arguments[name] = draw(st.sampled_from(odd[name]))
    return arguments
