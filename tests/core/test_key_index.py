"""The key index, through the store that owns it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmdd import CacheDesc, CacheKey, DataType, LLMException

INV = 2**64 - 1
LIVE_KEYS = 100_000
BATCH = 40


def bind(store: Any, keys: list[CacheKey]) -> None:
    """Bind keys to a cache that lives as long as they do."""
    desc = CacheDesc(1, (len(keys), 1), DataType.DT_INT8)
    store.deallocate_cache(store.allocate_cache(desc, keys))


@pytest.fixture
def store(make_store: Any) -> Any:
    return make_store(device_pool=(1 << 27, 10), slot_capacity=1 << 16, key_capacity=1 << 18)


def random_key(source: random.Random) -> CacheKey:
    number, model_id = source.getrandbits(64), source.getrandbits(2)
    number = min(number, INV - 1)
    return CacheKey(1, number, model_id) if source.random() < 0.5 else CacheKey(1, INV, model_id, number)


def test_a_hundred_thousand_keys_come_and_go(store: Any) -> None:
    source = random.Random(20)
    bound: dict[CacheKey, int] = {}

    def insert(count: int) -> None:
        for _ in range(count // BATCH):
            keys = [random_key(source) for _ in range(BATCH)]
            bind(store, keys)
            bound.update((key, index) for index, key in enumerate(keys))

    def delete(count: int) -> None:
        for key in source.sample(list(bound), count):
            store.remove_cache_key(key)
            del bound[key]

    def verify() -> None:
        store.check()
        assert store.live_keys == len(bound)
        for key in source.sample(list(bound), min(2000, len(bound))):
            assert store.lookup(key).batch_index == bound[key]
            assert store.lookup(CacheKey(1, key.req_id, key.model_id + 4, key.prefix_id)) is None
            assert store.lookup(random_key(source)) is None

    insert(LIVE_KEYS)
    verify()
    for _ in range(5):
        delete(20_000)
        verify()
        insert(20_000)
        verify()
    for key, index in bound.items():
        assert store.lookup(key).batch_index == index
    delete(len(bound))
    verify()
    assert store.live_caches == 0
    assert store.pool_usage().free_bytes == store.pool_usage().total_bytes


def test_keys_are_found_at_every_size_while_the_index_grows(store: Any) -> None:
    for count in range(1, 5001):
        bind(store, [CacheKey(1, count)])
        assert store.lookup(CacheKey(1, count)) is not None
        if count & (count - 1) == 0:
            store.check()
            assert all(store.lookup(CacheKey(1, earlier)) is not None for earlier in range(1, count))
    store.check()
    assert store.live_keys == 5000


def test_a_removed_key_is_found_no_more_and_its_neighbours_are(store: Any) -> None:
    keys = [CacheKey(1, number) for number in range(3000)]
    for key in keys:
        bind(store, [key])
    for key in keys[::2]:
        store.remove_cache_key(key)
    store.check()
    assert [store.lookup(key) is not None for key in keys] == [False, True] * 1500


def test_request_prefix_and_model_are_told_apart(store: Any) -> None:
    keys = [
        CacheKey(1, number, model) if request else CacheKey(1, INV, model, number)
        for number in range(20)
        for model in range(20)
        for request in (True, False)
    ]
    for key in keys:
        bind(store, [key])
    ids = [store.lookup(key).cache_id for key in keys]
    assert ids == list(range(1, len(keys) + 1))
    store.check()


CHOSEN_IDS: dict[str, list[int]] = {
    "a sequence": list(range(20_000)),
    "multiples of 2**32": [number << 32 for number in range(20_000)],
    "multiples of 2**44": [number << 44 for number in range(20_000)],
    "multiples of the golden ratio": [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(20_000)],
    "from the upper end": list(range(INV - 20_000, INV)),
    "one bit or two": sorted({1 << i | 1 << j for i in range(64) for j in range(64)}),
}


@pytest.mark.parametrize("chosen", CHOSEN_IDS)
@pytest.mark.parametrize("in_the_model", [False, True])
def test_chosen_ids_do_not_crowd(
    store: Any, index_displacements: Callable[[Any], list[int]], chosen: str, in_the_model: bool
) -> None:
    keys = [CacheKey(1, 7, number) if in_the_model else CacheKey(1, number) for number in CHOSEN_IDS[chosen]]
    for begin in range(0, len(keys), BATCH):
        bind(store, keys[begin : begin + BATCH])
    store.check()
    displacements = index_displacements(store)
    # Entries in random homes, three quarters of them full, stand 1.5 from home on average.
    assert sum(displacements) / len(displacements) < 4
    assert max(displacements) < 200


def test_two_stores_order_the_same_keys_differently(
    make_store: Any, index_displacements: Callable[[Any], list[int]]
) -> None:
    stores = [make_store(slot_capacity=2048, key_capacity=4096) for _ in range(2)]
    for store in stores:
        for number in range(200):
            bind(store, [CacheKey(1, number)])
    first, second = (index_displacements(store) for store in stores)
    assert len(first) == len(second)
    assert first != second


def test_an_index_as_full_as_it_gets_still_finds_everything(
    make_store: Any, index_displacements: Callable[[Any], list[int]]
) -> None:
    store = make_store(device_pool=(1 << 24, 10), slot_capacity=8192, key_capacity=8192)
    keys: list[CacheKey] = []
    try:
        while True:
            bind(store, [CacheKey(1, len(keys))])
            keys.append(CacheKey(1, len(keys)))
    except LLMException as refused:
        assert "capacity" in str(refused)
    # Each takes an entry for the key and one for the id; a sixteenth stays empty.
    assert len(keys) == 8192 * 15 // 16 // 2
    store.check()
    assert all(store.lookup(key) is not None for key in keys)
    assert store.lookup(CacheKey(1, len(keys))) is None
    assert max(index_displacements(store)) < 256
    for key in keys:
        store.remove_cache_key(key)
    store.check()
    assert store.live_caches == 0
