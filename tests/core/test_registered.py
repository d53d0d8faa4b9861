"""Memory of the caller's own: transfers from and to it, and where it is not there (api §3.3, §3.9, §3.11)."""

from __future__ import annotations

import ctypes
import mmap
import os
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
    LLMException,
    LLMStatusCode,
    Placement,
)
from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore

DESC = CacheDesc(2, (3, 100), DataType.DT_FLOAT)
INVALID = LLMStatusCode.LLM_PARAM_INVALID
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def arrays(value: float = 0.0, rows: int = 3) -> list[np.ndarray]:
    return [np.full((rows, 100), value + number, np.float32) for number in range(2)]


def addresses(memory: list[np.ndarray]) -> list[int]:
    return [array.ctypes.data for array in memory]


def code_of(call: Callable[..., object], *arguments: Any, **named: Any) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        call(*arguments, **named)
    return refused.value.status_code


class Gone:
    """Memory that can be taken away under an address: one page between two that stay."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        self.address = np.frombuffer(self._pages, np.uint8).ctypes.data + mmap.PAGESIZE

    def vanish(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(mmap.PAGESIZE)) == 0


@pytest.fixture
def pair(make_store: Any, attach: Any) -> tuple[CacheStore, CacheStore, PeerArena]:
    """An owner, and a store that can transfer from and to it in remote mode."""
    owner = make_store(1, remote_accessible=True)
    store = make_store(2, remote_accessible=True)
    return owner, store, attach(store, owner)


@pytest.fixture
def two_sided(make_store: Any, attach: Any) -> tuple[CacheStore, CacheStore]:
    owner, store = make_store(1), make_store(2)
    attach(store, owner)
    return owner, store


def test_nothing_is_copied_before_a_transfer_asks(two_sided: Any) -> None:
    owner, store = two_sided
    theirs, ours = arrays(1.0), arrays()
    owner.register_cache(DESC, addresses(theirs), [CacheKey(1, 5), CacheKey(1, 6)])
    mine = store.register_cache(DESC, addresses(ours))
    theirs[1][1] = 42.0
    store.pull_cache(CacheKey(1, 6), mine, batch_index=2)
    assert [array[2, 0] for array in ours] == [1.0, 42.0]
    assert not ours[0][:2].any()


def test_a_transfer_leaves_the_keys_of_a_registered_cache(two_sided: Any) -> None:
    owner, store = two_sided
    theirs = arrays(1.0)
    registered = owner.register_cache(DESC, addresses(theirs), [CacheKey(1, 5)])
    cache = store.allocate_cache(DESC)
    for layers in (None, range(1), None):
        keywords = {} if layers is None else {"src_layer_range": layers, "dst_layer_range": layers}
        store.pull_cache(CacheKey(1, 5), cache, **keywords)
    assert owner.lookup(CacheKey(1, 5)) is not None
    owner.remove_cache_key(CacheKey(1, 5))
    assert owner.lookup(CacheKey(1, 5)) is None
    assert code_of(store.pull_cache, CacheKey(1, 5), cache) is NOT_EXIST
    store.pull_cache(CacheKeyByIdAndIndex(1, registered.cache_id), cache)


def test_unregistering_drops_id_and_keys_at_once(two_sided: Any) -> None:
    owner, store = two_sided
    theirs = arrays(1.0)
    registered = owner.register_cache(DESC, addresses(theirs), [CacheKey(1, 5), CacheKey(1, 6)])
    owner.unregister_cache(registered.cache_id)
    cache = store.allocate_cache(DESC)
    for key in (CacheKey(1, 5), CacheKeyByIdAndIndex(1, registered.cache_id)):
        assert code_of(store.pull_cache, key, cache) is NOT_EXIST
    assert (owner.live_caches, owner.live_keys, registered.tensor_addrs) == (0, 0, [])
    owner.unregister_cache(registered.cache_id)
    owner.register_cache(DESC, addresses(theirs), [CacheKey(1, 5)])


def test_unregistering_waits_for_who_uses_the_memory(make_store: Any, attach: Any) -> None:
    owner, store = make_store(1, timeout_ms=20), make_store(2)
    attach(store, owner)
    theirs = arrays(1.0)
    registered = owner.register_cache(DESC, addresses(theirs))
    pin = owner.pin_source(registered)
    assert code_of(owner.unregister_cache, registered.cache_id) is LLMStatusCode.LLM_TIMEOUT
    cache = store.allocate_cache(DESC)
    assert code_of(store.pull_cache, CacheKeyByIdAndIndex(1, registered.cache_id), cache) is NOT_EXIST
    assert code_of(owner.unregister_cache, registered.cache_id) is LLMStatusCode.LLM_TIMEOUT
    pin.release()
    owner.unregister_cache(registered.cache_id)
    assert owner.live_caches == 0
    owner.check()


def test_deallocating_leaves_the_registration(two_sided: Any) -> None:
    owner, store = two_sided
    theirs = arrays(1.0)
    registered = owner.register_cache(DESC, addresses(theirs), [CacheKey(1, 5)])
    owner.deallocate_cache(registered)
    assert registered.tensor_addrs == []
    store.pull_cache(CacheKey(1, 5), store.allocate_cache(DESC))
    assert owner.live_caches == 1


def test_an_allocated_cache_is_not_unregistered(make_store: Any) -> None:
    store = make_store(1)
    cache = store.allocate_cache(DESC)
    assert code_of(store.unregister_cache, cache.cache_id) is INVALID
    assert len(cache.tensor_addrs) == 2


@pytest.mark.parametrize("address", [1, 4096, 2**47, 2**63, 2**64 - 1])
def test_memory_that_is_not_there_is_not_registered(make_store: Any, address: int) -> None:
    store = make_store(1)
    memory = arrays()
    assert code_of(store.register_cache, DESC, [memory[0].ctypes.data, address], [CacheKey(1, 5)]) is INVALID
    assert (store.live_caches, store.live_keys) == (0, 0)


def test_a_bound_key_is_told_before_memory_that_is_not_there(make_store: Any) -> None:
    store = make_store(1)
    store.allocate_cache(DESC, [CacheKey(1, 5)])
    with pytest.raises(LLMException, match="already bound"):
        store.register_cache(DESC, [4096, 8192], [CacheKey(1, 5)])


def test_memory_that_has_gone_is_refused_wherever_it_is(pair: Any) -> None:
    owner, store, _ = pair
    desc = CacheDesc(1, (4, mmap.PAGESIZE // 4), DataType.DT_INT8)
    keys = [CacheKeyByIdAndIndex(1, number) for number in (1, 2)]
    gone_there, gone_here = Gone(), Gone()
    owner.register_cache(desc, [gone_there.address])
    there = owner.allocate_cache(desc)
    ours = store.register_cache(desc, [gone_here.address])
    here = store.allocate_cache(desc)
    store.pull_cache(keys[0], here)
    store.pull_cache(keys[1], ours)
    gone_there.vanish()
    gone_here.vanish()
    there.tensors[0][:] = 7
    assert code_of(store.pull_cache, keys[0], here) is INVALID
    assert code_of(store.pull_cache, keys[1], ours) is INVALID
    assert code_of(store.push_cache, keys[0], here) is INVALID
    assert code_of(store.push_cache, keys[1], ours) is INVALID
    assert code_of(store.copy_cache, here, ours) is INVALID
    assert code_of(store.copy_cache, ours, here) is INVALID
    assert (there.tensors[0] == 7).all()
    for each in (owner, store):
        each.check()


def test_what_is_not_accessible_stays_out_of_reach_in_remote_mode(pair: Any) -> None:
    owner, store, _ = pair
    theirs, ours = arrays(1.0), arrays(5.0)
    closed = owner.register_cache(DESC, addresses(theirs), remote_accessible=False)
    on_host = owner.register_cache(CacheDesc(2, (3, 100), DataType.DT_FLOAT, Placement.HOST), addresses(theirs))
    opened = owner.register_cache(DESC, addresses(theirs))
    mine = store.register_cache(DESC, addresses(ours), remote_accessible=False)
    cache = store.allocate_cache(DESC)
    for refused in (closed, on_host):
        for call in (store.pull_cache, store.push_cache):
            with pytest.raises(LLMException, match="not remote accessible"):
                call(CacheKeyByIdAndIndex(1, refused.cache_id), cache)
    with pytest.raises(LLMException, match="not remote accessible"):
        store.push_cache(CacheKeyByIdAndIndex(1, opened.cache_id), mine)
    store.pull_cache(CacheKeyByIdAndIndex(1, opened.cache_id), cache)


def test_while_a_communicator_lives_registrations_are_not_accessible(make_store: Any, attach: Any) -> None:
    owner, store = make_store(1, remote_accessible=True), make_store(2, remote_accessible=True)
    attach(store, owner)
    theirs = arrays(1.0)
    owner.communicators = 1
    with pytest.raises(LLMException, match="register remote accessible cache after link"):
        owner.register_cache(DESC, addresses(theirs), remote_accessible=True)
    closed = owner.register_cache(DESC, addresses(theirs))
    assert code_of(store.pull_cache, CacheKeyByIdAndIndex(1, closed.cache_id), store.allocate_cache(DESC)) is INVALID
    owner.communicators = 0
    opened = owner.register_cache(DESC, addresses(theirs))
    store.pull_cache(CacheKeyByIdAndIndex(1, opened.cache_id), store.allocate_cache(DESC))


class TestRawAddresses:
    """What an asynchronous transfer writes to, it finds by address (api D46)."""

    @pytest.fixture
    def source(self, two_sided: Any) -> Cache:
        _, store = two_sided
        cache: Cache = store.allocate_cache(DESC)
        for number, tensor in enumerate(cache.tensors):
            tensor[:] = 10.0 + number
        return cache

    def test_a_batch_slot_of_an_allocated_cache(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        target = owner.allocate_cache(DESC, [CacheKey(1, 5)])
        first, second = target.tensor_addrs
        store.send_to_addresses(source, 1, 0, [first + 400, second + 800])
        assert [tensor[:, 0].tolist() for tensor in target.tensors] == [[0, 10, 0], [0, 0, 11]]
        assert owner.lookup(CacheKey(1, 5)) is not None

    def test_a_cache_whose_tensors_lie_apart(self, make_store: Any, attach: Any) -> None:
        owner, store = make_store(1, device_pool=(16 << 12, 12)), make_store(2)
        attach(store, owner)
        small = CacheDesc(1, (1, 10), DataType.DT_FLOAT)
        pieces = [owner.allocate_cache(small) for _ in range(16)]
        for piece in pieces[::2]:
            owner.deallocate_cache(piece)
        target = owner.allocate_cache(DESC)
        assert target.tensor_addrs[1] - target.tensor_addrs[0] == 2 << 12
        source = store.allocate_cache(DESC)
        source.tensors[1][:] = 3.0
        store.send_to_addresses(source, 1, 0, target.tensor_addrs)
        assert target.tensors[1][0, 99] == 3.0

    def test_registered_memory(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        others = [owner.register_cache(DESC, addresses(memory)) for memory in (arrays(), arrays())]
        theirs = arrays()
        owner.register_cache(DESC, addresses(theirs))
        owner.unregister_cache(others[0].cache_id)
        store.send_to_addresses(source, 1, 0, [theirs[0].ctypes.data, theirs[1].ctypes.data + 800])
        assert theirs[0][0, 5] == 10.0 and theirs[1][2, 5] == 11.0
        assert (theirs[1][:2] == 1.0).all()

    def test_blocks(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        target = owner.allocate_blocks_cache(CacheDesc(2, (8, 50), DataType.DT_FLOAT))
        store.send_to_addresses(source, 1, 0, target.tensor_addrs, 1, (), (7, 2), 200)
        assert target.tensors[1][:, 0].tolist() == [0, 0, 11, 0, 0, 0, 0, 11]

    @pytest.mark.parametrize("offset", [-4, 4, 1200 - 396, 4096, 2**40])
    def test_bytes_outside_a_tensor_are_not_touched(self, two_sided: Any, source: Cache, offset: int) -> None:
        owner, store = two_sided
        beside = owner.allocate_cache(CacheDesc(1, (1, 1024), DataType.DT_FLOAT))
        theirs = arrays(2.0)
        registered = owner.register_cache(CacheDesc(2, (1, 100), DataType.DT_FLOAT), addresses(theirs))
        for good in (
            [owner.allocate_cache(CacheDesc(1, (1, 100), DataType.DT_FLOAT)).tensor_addrs[0]] * 2,
            registered.tensor_addrs,
        ):
            bad = [good[0] + offset, good[1]]
            assert code_of(store.send_to_addresses, source, 1, 0, bad) is INVALID
        assert not beside.tensors[0].any()
        assert (theirs[0] == 2.0).all()

    def test_nothing_is_sent_if_one_of_the_addresses_is_bad(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        target = owner.allocate_cache(DESC)
        theirs = arrays(2.0)
        owner.register_cache(DESC, addresses(theirs))
        for first in (target.tensor_addrs[0], theirs[0].ctypes.data):
            assert code_of(store.send_to_addresses, source, 1, 0, [first, 2**64 - 1]) is INVALID
        assert not target.tensors[0].any()
        assert (theirs[0] == 2.0).all()

    def test_a_cache_that_has_gone(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        target = owner.allocate_cache(DESC)
        places = target.tensor_addrs
        owner.deallocate_cache(target)
        assert code_of(store.send_to_addresses, source, 1, 0, places) is INVALID

    def test_a_cache_that_is_not_accessible(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        theirs = arrays()
        owner.register_cache(DESC, addresses(theirs), remote_accessible=False)
        assert code_of(store.send_to_addresses, source, 1, 0, addresses(theirs)) is INVALID
        assert not theirs[0].any()

    def test_no_block_list_for_a_blocks_cache(self, two_sided: Any, source: Cache) -> None:
        owner, store = two_sided
        target = owner.allocate_blocks_cache(CacheDesc(2, (8, 100), DataType.DT_FLOAT))
        assert code_of(store.send_to_addresses, source, 1, 0, target.tensor_addrs) is INVALID


def test_a_peer_without_a_pin_is_told_nothing(make_store: Any) -> None:
    owner = make_store(1)
    theirs = arrays(1.0)
    owner.register_cache(DESC, addresses(theirs))
    owner.allocate_cache(DESC)
    peer_bit = owner.admit_peer()
    for slot, generation, tensor, offset, size in [(0, 0, 0, 0, 4), (0, 7, 0, 0, 4), (1, 0, 0, 0, 4), (0, 0, 2, 0, 4)]:
        assert code_of(owner.read_registered, peer_bit, slot, generation, tensor, offset, size) is NOT_EXIST
        assert code_of(owner.write_registered, peer_bit, slot, generation, tensor, offset, bytes(size)) is NOT_EXIST
    for slot, size in [(99, 4), (2**40, 4), (0, 0)]:
        with pytest.raises(ValueError):
            owner.read_registered(peer_bit, slot, 0, 0, 0, size)
        with pytest.raises(ValueError):
            owner.write_registered(peer_bit, slot, 0, 0, 0, bytes(size))
    assert (theirs[0] == 1.0).all()


def test_many_blocks_of_many_pieces(two_sided: Any) -> None:
    """More pieces than the kernel takes in one call."""
    owner, store = two_sided
    desc = CacheDesc(2, (1000, 3), DataType.DT_INT32)
    theirs = [np.arange(3000, dtype=np.int32).reshape(1000, 3) + number for number in range(2)]
    ours = [np.zeros((1000, 3), np.int32) for _ in range(2)]
    owner.register_blocks_cache(desc, addresses(theirs), BlocksCacheKey(1, 3))
    mine = store.register_blocks_cache(desc, addresses(ours))
    order = np.random.default_rng(1).permutation(1000)
    store.pull_blocks(BlocksCacheKey(1, 3), mine, order.tolist(), list(range(1000)))
    for here, there in zip(ours, theirs, strict=True):
        assert (here == there[order]).all()


def test_large_registered_memory(two_sided: Any) -> None:
    """More bytes than are copied at once."""
    owner, store = two_sided
    size = (9 << 20) + 5
    desc = CacheDesc(1, (1, size), DataType.DT_UINT8)
    theirs = np.random.default_rng(2).integers(0, 256, size, np.uint8)
    ours = np.zeros(size, np.uint8)
    owner.register_cache(desc, [theirs.ctypes.data], [CacheKey(1, 5)])
    store.pull_cache(CacheKey(1, 5), store.register_cache(desc, [ours.ctypes.data]))
    assert (ours == theirs).all()


def test_no_descriptor_is_left_behind(make_store: Any, attach: Any) -> None:
    owner, store = make_store(1), make_store(2)
    before = len(os.listdir("/proc/self/fd"))
    arena = attach(store, owner)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert arena.detach(1000)
    assert len(os.listdir("/proc/self/fd")) == before
