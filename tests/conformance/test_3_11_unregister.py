"""api §3.11: ``unregister_cache``."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc

from conformance.world import Node, World, by_id, link, outcome, prefix, refused, request

NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"
C = CacheDesc(2, (2, 64), "DT_UINT8")
ONE_SLOT = CacheDesc(2, (1, 64), "DT_UINT8")


def registered(node: Node, addrs: list[int] | None = None, **keys: Any) -> Any:
    if addrs is None:
        address = node.own_memory(1 << 13)
        addrs = [address, address + 4096]
    return node.register_cache(C, addrs, **keys)


def test_it_drops_id_and_keys_at_once(world: World) -> None:
    """api §3.11: drops id, keys and remote access of a registered cache at once."""
    prompt, decoder = world.pair()
    cache = registered(prompt, cache_keys=[request(1), prefix(1)])
    ours = decoder.allocate_cache(ONE_SLOT)
    decoder.pull_cache(request(1), ours)
    prompt.unregister_cache(cache.cache_id)
    assert (prompt.live_keys(), prompt.live_caches()) == (0, 0)
    for key in (request(1), prefix(1), by_id(cache)):
        with refused(NOT_EXIST):
            decoder.pull_cache(key, ours)
    with refused(NOT_EXIST):
        prompt.copy_cache(prompt.allocate_cache(C), cache)
    prompt.allocate_cache(C, [request(1), prefix(1)])


def test_it_drops_a_blocks_key(world: World) -> None:
    """api §3.11: the key of a registered blocks cache too."""
    node = world.node(1)
    address = node.own_memory(1 << 13)
    blocks = node.register_blocks_cache(C, [address, address + 4096], BlocksCacheKey(1, 5))
    node.unregister_cache(blocks.cache_id)
    node.allocate_blocks_cache(C, BlocksCacheKey(1, 5))


@pytest.mark.parametrize("unknown", [0, -1, 999, 2**63 - 1, -(2**63)])
def test_unknown_id(world: World, unknown: int) -> None:
    """api §3.11: unknown id: no-op; and so is a second time."""
    node = world.node(1)
    cache = registered(node, cache_keys=[request(1)])
    node.unregister_cache(unknown)
    assert node.live_keys() == 1
    for _ in range(2):
        node.unregister_cache(cache.cache_id)
    assert node.is_entirely_free()


def test_it_needs_neither_unlinking_nor_local_comm_res(world: World) -> None:
    """api §3.11: llmdd requires neither (D50)."""
    for remote in (False, True):
        prompt, decoder = world.node(1 + 2 * remote, remote=remote), world.node(2 + 2 * remote, remote=remote)
        link(decoder, prompt)
        cache = registered(prompt)
        ours = decoder.allocate_cache(ONE_SLOT)
        decoder.pull_cache(by_id(cache, cluster_id=prompt.cluster_id), ours)
        prompt.unregister_cache(cache.cache_id)
        with refused(NOT_EXIST):
            decoder.pull_cache(by_id(cache, cluster_id=prompt.cluster_id), ours)
        assert decoder.linked() == (prompt.cluster_id,)


def test_memory_registered_twice(world: World) -> None:
    """api §3.11: memory registered by two caches stays accessible until both are unregistered (D49)."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(1 << 13)
    prompt.write(address, b"x" * (1 << 13))
    addrs = [address, address + 4096]
    first, second = registered(prompt, addrs), registered(prompt, addrs)
    ours = decoder.allocate_cache(ONE_SLOT)
    prompt.unregister_cache(first.cache_id)
    decoder.pull_cache(by_id(second), ours)
    assert decoder.contents(ours) == [b"x" * 64] * 2
    prompt.unregister_cache(second.cache_id)
    for cache in (first, second):
        with refused(NOT_EXIST):
            decoder.pull_cache(by_id(cache), ours)


def test_the_memory_is_the_callers_again(world: World) -> None:
    """api §3.11: afterwards the memory may go: nothing of it is looked at any more."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(1 << 13)
    cache = registered(prompt, [address, address + 4096], cache_keys=[request(1)])
    prompt.unregister_cache(cache.cache_id)
    prompt.free_memory(address)
    prompt.check()
    with refused(NOT_EXIST):
        decoder.pull_cache(request(1), decoder.allocate_cache(ONE_SLOT))


def test_an_allocated_cache_is_not_unregistered(world: World) -> None:
    """api §3.11, §2.5: the id of an allocated cache: LX, nothing changes (D12)."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(1)])
    blocks = node.allocate_blocks_cache(C)
    for one in (cache, blocks):
        with refused("LLM_PARAM_INVALID"):
            node.unregister_cache(one.cache_id)
    assert (node.live_caches(), node.live_keys()) == (2, 1)


def test_a_transfer_in_flight_finishes_first(library: Any) -> None:
    """api §3.11: a transfer in flight is allowed to finish first: what is written afterwards is never pulled."""
    size = 32 << 20
    prompt, decoder = library.pair(device_bytes=size, host_bytes=None)
    desc = CacheDesc(1, (1, size), "DT_UINT8")
    ours = decoder.allocate_cache(desc)
    address = prompt.own_memory(size)
    for _ in range(5):
        prompt.write(address, b"\x11" * size)
        cache = prompt.register_cache(desc, [address])
        begun = threading.Event()
        answers: list[Any] = []

        def pull(begun: threading.Event = begun, answers: list[Any] = answers, cache: Any = cache) -> None:
            begun.set()
            answers.append(outcome(lambda: decoder.pull_cache(by_id(cache), ours)))

        puller = threading.Thread(target=pull)
        puller.start()
        begun.wait()
        prompt.unregister_cache(cache.cache_id)
        prompt.write(address, b"\x22" * size)
        puller.join()
        assert answers[0] in (None, NOT_EXIST)
        if answers[0] is None:
            assert decoder.contents(ours) == [b"\x11" * size]
