"""api §5A: departures from the original, D1 to D24: keys and lifetime."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
from llmdd.spec.values import INV, BlocksCacheKey, CacheDesc, CacheKey

import llmdd
from conformance.world import World, by_id, outcome, placeholder, prefix, refused, request

LX, NOT_EXIST = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST"
C = CacheDesc(4, (2, 16), "DT_UINT8")
ONE = CacheDesc(4, (1, 16), "DT_UINT8")
B = CacheDesc(4, (2, 16), "DT_UINT8")


def slots(world_node: Any, cache: Any, slot: int) -> list[bytes]:
    return [tensor[16 * slot : 16 * slot + 16] for tensor in world_node.contents(cache)]


def test_d1_the_last_of_duplicate_keys_wins(world: World) -> None:
    """api D1: duplicate keys in one call: the last wins."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(1), request(1)])
    assert node.lookup(request(1)) == by_id(cache, 1)


def test_d2_placeholders_are_never_compared(world: World) -> None:
    """api D2: two placeholders with the same model_id are no duplicates."""
    node = world.node(1)
    node.allocate_cache(C, [placeholder(3), placeholder(3)])
    node.allocate_cache(C, [placeholder(3), request(1)])
    assert node.live_keys() == 1


def test_d3_a_placeholder_is_no_blocks_key(world: World) -> None:
    """api D3: separate namespaces: a placeholder does not collide with the blocks key of its model."""
    node = world.node(1)
    node.allocate_blocks_cache(B, BlocksCacheKey(1, 3))
    node.allocate_cache(C, [placeholder(3), request(1)])
    assert node.live_keys() == 2


def test_d4_the_set_of_tensors_is_kept_per_key(world: World) -> None:
    """api D4: K0 pulls only layer 0, K1 only layer 1: neither is released; nor by a complete pull of the other."""
    prompt, decoder = world.pair()
    prompt.allocate_cache(C, [request(0), request(1)])
    ours = decoder.allocate_cache(ONE)
    for number in (0, 1):
        layer = range(number, number + 1)
        decoder.pull_cache(request(number), ours, src_layer_range=layer, dst_layer_range=layer)
    assert prompt.live_keys() == 2
    decoder.pull_cache(request(0), ours)
    decoder.pull_cache(request(1), ours, src_layer_range=range(1, 2), dst_layer_range=range(1, 2))
    assert prompt.lookup(request(1)) is not None


def test_d5_slots_are_known_by_the_full_identity(world: World) -> None:
    """api D5: ``[CacheKey(c,5,0), CacheKey(c,5,1)]``: each pulls its own slot and is released alone."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(C, [request(5, 0), request(5, 1)]), 1)
    content = [slots(prompt, theirs, slot) for slot in (0, 1)]
    prompt.deallocate_cache(theirs)
    ours = decoder.allocate_cache(ONE)
    for model in (0, 1):
        assert prompt.live_caches() == 1
        decoder.pull_cache(request(5, model), ours)
        assert decoder.contents(ours) == content[model]
    assert prompt.is_entirely_free()


def test_d6_request_and_prefix_key_with_the_same_number(world: World) -> None:
    """api D6: request and prefix key with the same number and model in one call: different keys."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(5), prefix(5)])
    assert (node.lookup(request(5)), node.lookup(prefix(5))) == (by_id(cache, 0), by_id(cache, 1))


def test_d7_the_slot_addressed_is_the_slot_read(world: World) -> None:
    """api D7: id+index of a prefix-keyed slot: the slot addressed is the slot read; no other key is released."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(C, [prefix(5), request(6)]), 1)
    other = prompt.fill(prompt.allocate_cache(C, [request(5)]), 2)
    ours = decoder.allocate_cache(ONE)
    decoder.pull_cache(by_id(theirs, 0), ours)
    assert decoder.contents(ours) == slots(prompt, theirs, 0)
    assert (prompt.live_keys(), prompt.lookup(request(5))) == (3, by_id(other))


def test_d8_registering_checks_keys_as_allocating_does(world: World) -> None:
    """api D8: register_*: too many, duplicate and already bound keys: the same checks as allocation."""
    node = world.node(1)
    address = node.own_memory(4 * 4096)
    addrs = [address + number * 4096 for number in range(4)]
    first = node.allocate_cache(C, [request(1)])
    blocks = node.allocate_blocks_cache(B, BlocksCacheKey(1, 3))
    with refused(LX):
        node.register_cache(C, addrs, [request(7), request(8), request(9)])
    with refused(LX, "already bound"):
        node.register_cache(C, addrs, [request(1)])
    with refused(LX, "already bound"):
        node.register_blocks_cache(B, addrs, BlocksCacheKey(1, 3))
    again = node.register_cache(C, addrs, [request(2), request(2)])
    assert (node.lookup(request(1)), node.lookup(request(2))) == (by_id(first), by_id(again, 1))
    node.deallocate_blocks_cache(blocks)
    assert node.live_keys() == 2


def test_d9_remove_cache_key_on_a_registered_cache(world: World) -> None:
    """api D9: remove_cache_key on a registered cache unbinds."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(4 * 4096)
    prompt.register_cache(C, [address + number * 4096 for number in range(4)], [request(1)])
    prompt.remove_cache_key(request(1))
    with refused(NOT_EXIST):
        decoder.pull_cache(request(1), decoder.allocate_cache(ONE))


def test_d10_remove_cache_key_of_a_placeholder(world: World) -> None:
    """api D10: remove_cache_key of a placeholder (INV, model m): no-op; the blocks key of m stays."""
    node = world.node(1)
    node.allocate_blocks_cache(B, BlocksCacheKey(1, 3))
    node.remove_cache_key(placeholder(3))
    assert node.live_keys() == 1


def test_d11_without_a_pool(world: World) -> None:
    """api D11: no pool configured: deallocating or removing something unknown is a no-op."""
    node, other = world.node(1, device_bytes=None, host_bytes=None), world.node(2)
    node.deallocate_cache(other.allocate_cache(C))
    node.deallocate_blocks_cache(other.allocate_blocks_cache(B))
    node.remove_cache_key(request(1))
    node.unregister_cache(1)


def test_d12_unregister_cache_of_an_allocated_cache(world: World) -> None:
    """api D12: unregister_cache of an allocated cache: LX, nothing changes."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(1)])
    with refused(LX):
        node.unregister_cache(cache.cache_id)
    assert (node.live_caches(), node.live_keys(), len(node.tensor_addrs(cache))) == (1, 1, 4)


def test_d13_there_is_no_limit_of_the_index(library: Any) -> None:
    """api D13: remote mode: no limit of 1 MiB: more keys and tensors than would fit there; a failure is atomic."""
    node = library.node(1, remote=True, device_bytes=1 << 26, page_shift=10, host_bytes=None)
    for number in range(60):
        keys = [request(number * 1000 + slot) for slot in range(1000)]
        node.allocate_cache(CacheDesc(200, (1000, 1), "DT_UINT8"), keys)
    assert node.live_keys() == 60_000  # 24 bytes each, and 200 tensors of each cache
    before = node.usage(), node.live_caches()
    with refused(LX, "already bound"):
        node.allocate_cache(CacheDesc(200, (1000, 1), "DT_UINT8"), [request(10**9), request(5)])
    assert (node.usage(), node.live_caches(), node.lookup(request(10**9))) == (*before, None)


def test_d14_no_residue(library: Any) -> None:
    """api D14: a keyed cache that has gone leaves nothing: thousands come and go in the same memory."""
    node = library.node(1)
    for number in range(3000):
        cache = node.allocate_cache(C, [request(number), prefix(number)])
        node.deallocate_cache(cache)
        node.remove_cache_key(request(number))
        node.remove_cache_key(prefix(number))
    assert node.is_entirely_free()


def test_d15_a_release_is_tied_to_the_pullers_outcome(world: World) -> None:
    """api D15: re-using the key right after the pull returned never hits "already bound"."""
    prompt, decoder = world.pair()
    ours = decoder.allocate_cache(ONE)
    for _ in range(200):
        prompt.deallocate_cache(prompt.allocate_cache(C, [request(1)]))
        decoder.pull_cache(request(1), ours)
    assert prompt.is_entirely_free()


def test_d16_remote_mode_releases_keys(world: World) -> None:
    """api D16: remote mode releases keys as two-sided mode does."""
    prompt, decoder = world.pair(remote=True)
    theirs = prompt.allocate_cache(C, [request(1)])
    prompt.deallocate_cache(theirs)
    decoder.pull_cache(by_id(theirs), decoder.allocate_cache(ONE))
    assert prompt.is_entirely_free()


def test_d17_push_cache_releases_the_destination_slots_key(world: World) -> None:
    """api D17: push_cache releases the key bound to the destination slot; the source's keys are untouched."""
    prompt, decoder = world.pair(remote=True)
    theirs = decoder.allocate_cache(C, [request(1), request(2)])
    ours = prompt.allocate_cache(ONE, [request(1)])
    prompt.push_cache(by_id(theirs, 1, cluster_id=2), ours)
    assert [node.lookup(request(1)) is None for node in (prompt, decoder)] == [False, False]
    assert decoder.lookup(request(2)) is None


def test_d18_prefix_keys_are_kept(world: World) -> None:
    """api D18: pulls never release prefix keys, only remove_cache_key does."""
    prompt, decoder = world.pair()
    theirs = prompt.allocate_cache(C, [prefix(1)])
    ours = decoder.allocate_cache(ONE)
    for _ in range(3):
        decoder.pull_cache(prefix(1), ours)
    prompt.deallocate_cache(theirs)
    assert prompt.live_keys() == 1
    prompt.remove_cache_key(prefix(1))
    assert prompt.is_entirely_free()


def test_d19_costs_do_not_grow_with_the_caches(library: Any) -> None:
    """api D19: many live caches and keys are no obstacle to freeing one: all go, in any order."""
    node = library.node(1, device_bytes=1 << 24, page_shift=10)
    desc = CacheDesc(1, (1, 1), "DT_UINT8")
    caches = [node.allocate_blocks_cache(desc, BlocksCacheKey(1, number)) for number in range(5000)]
    keyed = [node.allocate_cache(desc, [request(number)]) for number in range(5000)]
    for number in range(0, 5000, 2):
        node.deallocate_blocks_cache(caches[number])
        node.deallocate_cache(keyed[number])
        node.remove_cache_key(request(number))
    assert (node.live_caches(), node.live_keys()) == (5000, 5000)
    for number in range(1, 5000, 2):
        node.remove_cache_key(request(number))
        node.deallocate_cache(keyed[number])
        node.deallocate_blocks_cache(caches[number])
    assert node.is_entirely_free()


def test_d20_local_calls_are_bounded_in_time(library: Any) -> None:
    """api D20: waiting of local calls is bounded by sync_kv_timeout; on expiry LX(TIMEOUT) with no effect."""
    node = library.node(1, SyncKvCacheWaitTime="200")
    holding, over = threading.Event(), threading.Event()

    def hold() -> None:
        with node.manager.paused():
            holding.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    try:
        with refused("LLM_TIMEOUT"):
            node.allocate_cache(C, [request(1)])
    finally:
        over.set()
        holder.join()
    assert node.is_entirely_free()


def test_d21_keys_are_checked_before_memory(world: World) -> None:
    """api D21: OUT_OF_MEMORY does not hide a key error: keys first."""
    node = world.node(1)
    node.allocate_cache(C, [request(1)])
    with refused(LX, "already bound"):
        node.allocate_cache(CacheDesc(1, (1, 1 << 30), "DT_UINT8"), [request(1)])


def test_d22_arguments_are_never_written_to(library: Any) -> None:
    """api D22: a CacheDesc given to allocate_blocks_cache can be given to allocate_cache, and the lists stay."""
    manager = library.node(1).manager
    desc = llmdd.CacheDesc(1, [2, 8], llmdd.DataType.DT_INT8)
    before, keys = repr(desc), [llmdd.CacheKey(1, 1), llmdd.CacheKey(1, 1)]
    assert manager.allocate_blocks_cache(desc).is_blocks_cache
    cache = manager.allocate_cache(desc, keys)
    assert (cache.is_blocks_cache, repr(desc), len(keys)) == (False, before, 2)
    memory = library.nodes[0].own_memory(4096)
    addrs = [memory]
    assert manager.register_blocks_cache(desc, addrs).is_blocks_cache
    assert not manager.register_cache(desc, addrs).is_blocks_cache
    assert (addrs, repr(desc)) == ([memory], before)


def test_d23_batch_dim_index(world: World) -> None:
    """api D23: honoured when all dimensions before it are 1; otherwise LX at allocate/register of a C cache."""
    prompt, decoder = world.pair()
    desc = CacheDesc(4, (1, 1, 2, 16), "DT_UINT8", "DEVICE", 2)
    theirs = prompt.fill(prompt.allocate_cache(desc, [request(1), request(2)]), 1)
    ours = decoder.allocate_cache(ONE)
    decoder.pull_cache(request(2), ours)
    assert decoder.contents(ours) == slots(prompt, theirs, 1)
    scattered = CacheDesc(1, (2, 2, 16), "DT_UINT8", "DEVICE", 1)
    address = prompt.own_memory(4096)
    with refused(LX):
        prompt.allocate_cache(scattered)
    with refused(LX):
        prompt.register_cache(scattered, [address])
    prompt.allocate_blocks_cache(scattered)
    prompt.register_blocks_cache(scattered, [address])


@pytest.mark.parametrize("shape", [(4, 8), [4, 8]])
def test_d24_update_dim(shape: Any) -> None:
    """api D24: update_dim copies the shape to a list, checks index (LX) and int64 (VE), refreshes batch_size."""
    desc = llmdd.CacheDesc(1, shape, llmdd.DataType.DT_INT8)
    for wrong, error in (((2, 1), llmdd.LLMException), ((-1, 1), llmdd.LLMException), ((0, 2**63), ValueError)):
        with pytest.raises(error):
            desc.update_dim(*wrong)
    desc.update_dim(0, 6)
    assert (desc.shape, desc.batch_size, desc.size) == ([6, 8], 6, 48)
    assert list(shape) == [4, 8]
    gc.collect()


def test_5a_what_is_no_key_stays_none(world: World) -> None:
    """api §5A: the largest numbers are as good as any other."""
    node = world.node(1)
    node.allocate_cache(C, [CacheKey(INV, INV - 1, INV, INV), CacheKey(0, INV, INV, INV - 1)])
    assert node.live_keys() == 2
    assert outcome(lambda: node.allocate_cache(C, [CacheKey(1, INV - 1, INV)])) == LX
