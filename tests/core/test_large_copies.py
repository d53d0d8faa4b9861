"""Copies that are streamed, shared between threads and merged across tensors move exactly the bytes they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmdd import BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType

MIB = 1 << 20
POOL = (160 * MIB, 12)

# Every sixteenth copy is shared by another number of threads than the best so far.
REPETITIONS = 40


def fill(cache: Cache, seed: int) -> list[np.ndarray]:
    """Random bytes; a copy of them."""
    random = np.random.default_rng(seed)
    contents = []
    for tensor in cache.tensors:
        content = random.integers(0, 256, tensor.shape, np.uint8)
        tensor[...] = content
        contents.append(content)
    return contents


@pytest.fixture
def pair(make_store: Any, attach: Any) -> Any:
    owner, puller = make_store(1, device_pool=POOL, remote_accessible=True), make_store(2, device_pool=POOL)
    attach(puller, owner)
    return owner, puller


@pytest.mark.parametrize(
    ("num_tensors", "slot_bytes"), [(1, 17 * MIB + 13), (3, 6 * MIB + 1), (40, MIB // 2), (80, 300_001), (2, 65 * 1000)]
)
def test_a_batch_slot(pair: Any, num_tensors: int, slot_bytes: int) -> None:
    owner, puller = pair
    desc = CacheDesc(num_tensors, (2, slot_bytes), DataType.DT_UINT8)
    source, target = owner.allocate_cache(desc), puller.allocate_cache(desc)
    contents = fill(source, 1)
    for repetition in range(REPETITIONS if num_tensors == 3 else 4):
        for tensor in target.tensors:
            tensor[...] = 0
        puller.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id, 1), target, repetition % 2)
        for tensor, content in zip(target.tensors, contents, strict=True):
            assert np.array_equal(tensor[repetition % 2], content[1])
            assert not tensor[1 - repetition % 2].any(), "the neighbouring slot was written to"


@pytest.mark.parametrize("size", [1, 63, 64, 255, 4097, 700_001])
def test_any_size_of_a_slot(pair: Any, size: int) -> None:
    owner, puller = pair
    desc = CacheDesc(3, (2, 700_001), DataType.DT_UINT8)
    source, target = owner.allocate_cache(desc), puller.allocate_cache(desc)
    contents = fill(source, 2)
    before = fill(target, 3)
    puller.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id, 0), target, 1, size=size)
    for tensor, content, old in zip(target.tensors, contents, before, strict=True):
        old[1, :size] = content[0, :size]
        assert np.array_equal(tensor, old)


def test_blocks_listed_twice_hold_what_was_listed_last(pair: Any) -> None:
    """Also where threads share the copy (api §3.5)."""
    owner, puller = pair
    desc = CacheDesc(9, (640, 4096), DataType.DT_UINT8)
    source = owner.allocate_blocks_cache(desc, BlocksCacheKey(1))
    target = puller.allocate_blocks_cache(desc)
    contents = fill(source, 4)
    random = np.random.default_rng(5)
    for _ in range(REPETITIONS):
        sources, targets = random.integers(0, 640, 600).tolist(), random.integers(0, 100, 600).tolist()
        expected = fill(target, 6)
        puller.pull_blocks(BlocksCacheKey(1), target, sources, targets)
        for tensor, content, block in zip(target.tensors, contents, expected, strict=True):
            for origin, to in zip(sources, targets, strict=True):
                block[to] = content[origin]
            assert np.array_equal(tensor, block)


def test_neighbouring_blocks_and_tensors_are_merged_rightly(pair: Any) -> None:
    """Whole tensors of whole pages lie side by side in both pools: one run, cut where a list leaves a block out."""
    owner, puller = pair
    desc = CacheDesc(7, (16, 4096), DataType.DT_UINT8)
    source = owner.allocate_blocks_cache(desc, BlocksCacheKey(1))
    target = puller.allocate_blocks_cache(desc)
    contents = fill(source, 7)
    for blocks in (range(16), range(1, 16), range(15), [0, 1, 2, 14, 15], [15, *range(15)]):
        expected = fill(target, 8)
        puller.pull_blocks(BlocksCacheKey(1), target, list(blocks), list(blocks))
        for tensor, content, block in zip(target.tensors, contents, expected, strict=True):
            block[list(blocks)] = content[list(blocks)]
            assert np.array_equal(tensor, block)


def test_a_fragmented_cache(make_store: Any, attach: Any) -> None:
    """Tensors that lie apart are found one by one (design: one extent if there is room, several if not)."""
    owner, puller = make_store(1, device_pool=(64 * MIB, 12)), make_store(2, device_pool=(64 * MIB, 12))
    attach(puller, owner)
    megabyte = CacheDesc(1, (1, MIB), DataType.DT_UINT8)
    for store in (owner, puller):
        filling = [store.allocate_cache(megabyte) for _ in range(64)]
        for cache in filling[::2]:
            store.deallocate_cache(cache)
    desc = CacheDesc(20, (1, MIB), DataType.DT_UINT8)
    source, target = owner.allocate_cache(desc, [CacheKey(1, 1)]), puller.allocate_cache(desc)
    assert source.tensor_addrs[1] - source.tensor_addrs[0] == 2 * MIB
    contents = fill(source, 9)
    puller.pull_cache(CacheKey(1, 1), target)
    assert all(np.array_equal(*both) for both in zip(target.tensors, contents, strict=True))
