"""Where the arena ends: what no longer fits is refused, whole, and nothing of it stays."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import numpy as np
import pytest

from llmdd import CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType, LLMException, LLMStatusCode
from llmdd._core.peer import PeerArena

PAGE = 4096


def keys_from(first: int, count: int) -> list[CacheKey]:
    return [CacheKey(1, number) for number in range(first, first + count)]


def occupancy(store: Any) -> tuple[object, ...]:
    store.check()
    return store.pool_usage(), store.live_caches, store.live_keys


def assert_no_room(store: Any, desc: CacheDesc, keys: list[CacheKey], what: str) -> None:
    """The call is refused, and a refused call changes nothing."""
    before = occupancy(store)
    for _ in range(3):
        with pytest.raises(LLMException, match=what) as refused:
            store.allocate_cache(desc, keys)
        assert refused.value.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
        assert occupancy(store) == before
        assert [store.lookup(key) for key in keys] == [None] * len(keys)


def fill(cache: Any, value: Any) -> None:
    """Write ``value(tensor number)`` into every tensor, and keep no array: arrays are pins."""
    for number, tensor in enumerate(cache.tensors):
        tensor[:] = value(number)


def empty(store: Any) -> tuple[object, ...]:
    usage = store.pool_usage()
    return usage._replace(free_bytes=usage.total_bytes), 0, 0


def test_more_caches_than_slots(make_store: Any) -> None:
    store = make_store(slot_capacity=4, key_capacity=1024)
    desc = CacheDesc(1, (1, 8), DataType.DT_INT8)
    caches = [store.allocate_cache(desc, keys_from(number, 1)) for number in range(4)]
    assert_no_room(store, desc, keys_from(10, 1), "capacity")
    for number, cache in enumerate(caches):
        store.deallocate_cache(cache)
        assert_no_room(store, desc, [], "capacity")
        store.remove_cache_key(CacheKey(1, number))
        caches[number] = store.allocate_cache(desc, keys_from(10 + number, 1))
    assert_no_room(store, desc, [], "capacity")


def test_a_slot_serves_many_caches_one_after_another(make_store: Any) -> None:
    store = make_store(slot_capacity=1, key_capacity=1024)
    desc = CacheDesc(1, (1, 8), DataType.DT_INT8)
    for number in range(2000):
        cache = store.allocate_cache(desc, keys_from(number, 1))
        assert cache.cache_id == number + 1
        store.deallocate_cache(cache)
        store.remove_cache_key(CacheKey(1, number))
    assert occupancy(store) == empty(store)


def test_more_keys_than_the_index_holds(make_store: Any) -> None:
    store = make_store(slot_capacity=1000, key_capacity=1024)
    desc = CacheDesc(1, (32, 8), DataType.DT_INT8)
    caches = []
    while True:
        keys = keys_from(32 * len(caches), 32)
        try:
            caches.append(store.allocate_cache(desc, keys))
        except LLMException:
            break
    assert len(caches) == 960 // 33
    assert_no_room(store, desc, keys, "capacity")
    store.remove_cache_key(CacheKey(1, 0))
    assert_no_room(store, desc, keys, "capacity")
    store.deallocate_cache(caches[1])
    for key in keys_from(32, 32):
        store.remove_cache_key(key)
    store.allocate_cache(desc, keys)
    assert_no_room(store, desc, keys_from(5000, 32), "capacity")


@pytest.mark.parametrize(("batch", "tensors"), [(100, 1), (12, 80)])
def test_key_records_and_words_that_do_not_fit(make_store: Any, batch: int, tensors: int) -> None:
    store = make_store(device_pool=(1 << 22, 12), slot_capacity=4, key_capacity=1024)
    desc = CacheDesc(tensors, (batch, 8), DataType.DT_INT8)
    caches = []
    keys: list[CacheKey] = []
    for number in range(5):
        keys = keys_from(batch * number, batch)
        try:
            caches.append(store.allocate_cache(desc, keys))
        except LLMException:
            break
    assert len(caches) < 4, "the slots ran out first"
    assert_no_room(store, desc, keys, "capacity")
    # Without keys there is nothing to record.
    caches.append(store.allocate_cache(desc, [CacheKey(1, 2**64 - 1)] * batch))
    for cache in caches:
        store.deallocate_cache(cache)
    for key in keys_from(0, 1000):
        store.remove_cache_key(key)
    assert occupancy(store) == empty(store)


def test_a_pool_that_is_too_small(make_store: Any) -> None:
    store = make_store(device_pool=(8 * PAGE, 12))
    assert_no_room(store, CacheDesc(1, (1, 8 * PAGE + 1), DataType.DT_INT8), keys_from(0, 1), "no room")
    assert_no_room(store, CacheDesc(9, (1, 1), DataType.DT_INT8), keys_from(0, 1), "no room")
    assert_no_room(store, CacheDesc(2**32 - 1, (1, 1), DataType.DT_INT8), keys_from(0, 1), "no room")
    assert_no_room(store, CacheDesc(1, (1, 2**63 - 1), DataType.DT_INT8), [], "no room")
    assert_no_room(store, CacheDesc(2**32 - 1, (1, 2**63 - 1), DataType.DT_INT8), [], "no room")
    whole = store.allocate_cache(CacheDesc(8, (1, PAGE), DataType.DT_INT8), keys_from(0, 1))
    assert store.pool_usage().free_bytes == 0
    assert_no_room(store, CacheDesc(1, (1, 1), DataType.DT_INT8), keys_from(1, 1), "no room")
    store.deallocate_cache(whole)
    store.remove_cache_key(CacheKey(1, 0))
    assert occupancy(store) == empty(store)


def test_a_batch_of_a_hundred_keys_over_eighty_tensors(make_store: Any, attach: Any) -> None:
    owner = make_store(1, slot_capacity=64, key_capacity=1024)
    puller = make_store(2)
    attach(puller, owner)
    desc = CacheDesc(80, (100, 4), DataType.DT_INT16)
    keys = keys_from(0, 100)
    cache = owner.allocate_cache(desc, keys)
    fill(cache, lambda number: np.arange(100)[:, None] * 80 + number)
    owner.deallocate_cache(cache)
    ours = puller.allocate_cache(CacheDesc(80, (1, 4), DataType.DT_INT16))
    layers = list(range(40))
    order = random.Random(100)
    order.shuffle(keys)
    for key in keys:
        order.shuffle(layers)
        for layer in layers:
            assert repr(owner.lookup(key)) == repr(CacheKeyByIdAndIndex(1, cache.cache_id, key.req_id))
            only = range(layer, layer + 1)
            puller.pull_cache(key, ours, src_layer_range=only, dst_layer_range=only)
            if layer != layers[-1]:  # once more does no harm
                puller.pull_cache(key, ours, src_layer_range=only, dst_layer_range=only)
        assert owner.lookup(key) is None
        assert [set(tensor.ravel()) for tensor in ours.tensors] == [{key.req_id * 80 + t} for t in range(80)]
    assert occupancy(owner) == empty(owner)


def test_a_cache_in_many_pieces(make_store: Any, attach: Any) -> None:
    owner = make_store(1, device_pool=(64 * PAGE, 12))
    puller = make_store(2)
    attach(puller, owner)
    page = CacheDesc(1, (1, PAGE), DataType.DT_INT8)
    pages = [owner.allocate_cache(page) for _ in range(64)]
    for cache in pages[::2]:
        owner.deallocate_cache(cache)
    assert owner.pool_usage().free_bytes == 32 * PAGE
    # Two pages in a row are nowhere to be had.
    assert_no_room(owner, CacheDesc(1, (1, PAGE + 1), DataType.DT_INT8), keys_from(0, 1), "no room")
    assert_no_room(owner, CacheDesc(33, (1, PAGE), DataType.DT_INT8), keys_from(0, 1), "no room")

    desc = CacheDesc(32, (2, PAGE // 2), DataType.DT_INT8)
    pieces = owner.allocate_cache(desc, keys_from(0, 2))
    owner.check()
    addresses = pieces.tensor_addrs
    assert len(set(addresses)) == 32
    assert {later - earlier for earlier, later in itertools.pairwise(addresses)} == {2 * PAGE}
    fill(pieces, lambda number: [[number], [-number]])
    owner.copy_cache(pieces, pieces, dst_batch_index=0, src_batch_index=1, size=1)
    assert [tensor[0, 0] for tensor in pieces.tensors] == [-number for number in range(32)]
    ours = puller.allocate_cache(CacheDesc(32, (1, PAGE // 2), DataType.DT_INT8))
    for index in range(2):
        puller.pull_cache(CacheKey(1, index), ours)
        assert [tensor[0, 1] for tensor in ours.tensors] == [number * (1 - 2 * index) for number in range(32)]
    owner.deallocate_cache(pieces)
    assert owner.pool_usage().free_bytes == 32 * PAGE
    for cache in pages[1::2]:
        owner.deallocate_cache(cache)
    assert occupancy(owner) == empty(owner)
    owner.allocate_cache(CacheDesc(1, (1, 64 * PAGE), DataType.DT_INT8))


def test_a_cache_in_pieces_whose_last_piece_is_missing(make_store: Any) -> None:
    store = make_store(device_pool=(16 * PAGE, 12))
    blocks = [store.allocate_cache(CacheDesc(1, (1, PAGE), DataType.DT_INT8)) for _ in range(16)]
    for number in (0, 1, 3, 4, 6, 8, 10):
        store.deallocate_cache(blocks[number])
    # Seven pages are free, runs of two only twice.
    assert_no_room(store, CacheDesc(3, (1, 2 * PAGE), DataType.DT_INT8), keys_from(0, 1), "no room")
    store.allocate_cache(CacheDesc(2, (1, 2 * PAGE), DataType.DT_INT8), keys_from(0, 1))
    assert store.pool_usage().free_bytes == 3 * PAGE


def test_freed_neighbours_make_one_run_again(make_store: Any) -> None:
    order = random.Random(5)
    store = make_store(device_pool=(256 * PAGE, 12))
    for _ in range(5):
        caches = []
        while (left := store.pool_usage().free_bytes // PAGE) > 0:
            size = min(left, order.randint(1, 9)) * PAGE
            caches.append(store.allocate_cache(CacheDesc(1, (1, size), DataType.DT_INT8)))
        order.shuffle(caches)
        for cache in caches:
            store.deallocate_cache(cache)
        store.check()
        store.deallocate_cache(store.allocate_cache(CacheDesc(1, (1, 256 * PAGE), DataType.DT_INT8)))


def test_ten_thousand_caches(make_store: Any) -> None:
    order = random.Random(10_000)
    store = make_store(device_pool=(1 << 26, 12))
    live: dict[int, Any] = {}
    for number in range(10_000):
        desc = CacheDesc(order.choice([1, 1, 2]), (2, order.choice([8, 64])), DataType.DT_INT8)
        live[number] = store.allocate_cache(desc, [CacheKey(1, number), CacheKey(1, 2**64 - 1)])
    assert (store.live_caches, store.live_keys) == (10_000, 10_000)
    store.check()
    assert [cache.cache_id for cache in live.values()] == list(range(1, 10_001))
    for number in order.sample(range(10_000), 10_000):
        if number % 2:
            store.deallocate_cache(live[number])
            assert store.lookup(CacheKey(1, number)).cache_id == number + 1
            store.remove_cache_key(CacheKey(1, number))
        else:
            store.remove_cache_key(CacheKey(1, number))
            assert len(live[number].tensor_addrs) > 0
            store.deallocate_cache(live[number])
        if number % 2500 == 0:
            store.check()
    assert occupancy(store) == empty(store)


def test_a_thousand_peers_and_no_more(make_store: Any) -> None:
    store = make_store()
    bits = [store.admit_peer() for _ in range(1024)]
    assert sorted(bits) == list(range(1024))
    with pytest.raises(LLMException, match="1024") as refused:
        store.admit_peer()
    assert refused.value.status_code is LLMStatusCode.LLM_FAILED
    for bit in (17, 1000):
        store.dismiss_peer(bit)
        with pytest.raises(ValueError, match="given to nobody"):
            store.dismiss_peer(bit)
        assert store.admit_peer() == bit
    with pytest.raises(ValueError, match="given to nobody"):
        store.dismiss_peer(1024)


@pytest.mark.parametrize("peer_bit", [0, 63, 64, 700, 1023])
def test_every_peer_pins_with_a_bit_of_its_own(make_store: Any, peer_bit: int) -> None:
    """A transfer holds the memory, and dismissing its peer lets it go, whichever bit the peer was given."""
    owner, store = make_store(1), make_store(2)
    bits = [owner.admit_peer() for _ in range(1024)]
    for bit in bits:
        if bit != peer_bit:
            owner.dismiss_peer(bit)
    store.peers = {1: PeerArena(*owner.export(), peer_bit, os.getpid())}
    cache = owner.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8), keys_from(0, 1))
    cache.tensors[0][:] = 7
    owner.deallocate_cache(cache)
    ours = store.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8))
    store.pull_cache(*keys_from(0, 1), ours)
    assert (ours.tensors[0] == 7).all()
    assert owner.live_caches == 0
    owner.dismiss_peer(peer_bit)
    owner.check()


def test_private_memory_is_given_to_nobody(make_store: Any) -> None:
    store = make_store(shared=False)
    cache = store.allocate_cache(CacheDesc(1, (1, 8), DataType.DT_INT8), keys_from(0, 1))
    cache.tensors[0][:] = 7
    with pytest.raises(ValueError, match="private"):
        store.export()
    store.check()
