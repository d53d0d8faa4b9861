"""api §3.3: what keeps memory alive."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc

from conformance.world import Node, World, by_id, link, options_of, outcome, prefix, refused, request

C = CacheDesc(2, (2, 64), "DT_UINT8")
ONE_SLOT = CacheDesc(2, (1, 64), "DT_UINT8")
B = CacheDesc(2, (4, 32), "DT_UINT8")


def is_free(node: Node) -> bool:
    return node.usage()[0] == node.usage()[1]


@pytest.mark.parametrize("order", list(itertools.permutations(["id", "request", "prefix"])))
def test_an_allocated_c_cache(world: World, order: tuple[str, ...]) -> None:
    """api §3.3: allocated C: freed when the id **and** every bound key have been dropped (seed §1)."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(1), prefix(1)])
    drop = {
        "id": lambda: node.deallocate_cache(cache),
        "request": lambda: node.remove_cache_key(request(1)),
        "prefix": lambda: node.remove_cache_key(prefix(1)),
    }
    for reference in order:
        assert not is_free(node)
        drop[reference]()
    assert is_free(node)
    assert node.is_entirely_free()


def test_an_allocated_c_cache_by_pulls(world: World) -> None:
    """api §3.3: allocated C: the last pull frees a deallocated cache."""
    prompt, decoder = world.pair()
    prompt.deallocate_cache(prompt.allocate_cache(C, [request(1), request(2)]))
    ours = decoder.allocate_cache(ONE_SLOT)
    decoder.pull_cache(request(1), ours)
    assert not is_free(prompt)
    decoder.pull_cache(request(2), ours)
    assert prompt.is_entirely_free()


@pytest.mark.parametrize("key", [None, BlocksCacheKey(1, 5)])
def test_an_allocated_b_cache(world: World, key: BlocksCacheKey | None) -> None:
    """api §3.3: allocated B: freed by ``deallocate_blocks_cache``; its key is unbound at once."""
    node = world.node(1)
    blocks = node.allocate_blocks_cache(B, key)
    assert node.live_keys() == (key is not None)
    node.deallocate_blocks_cache(blocks)
    assert node.is_entirely_free()
    assert node.tensor_addrs(blocks) == []
    node.allocate_blocks_cache(B, key)


def test_a_registered_cache(world: World) -> None:
    """api §3.3: registered: never freed by llmdd; ``unregister_cache`` drops id and keys at once."""
    node = world.node(1)
    address = node.own_memory(1 << 13)
    addrs = [address, address + 4096]
    node.write(address, b"mine" * 2048)
    before = node.usage()
    cache = node.register_cache(C, addrs, [request(1), prefix(1)])
    blocks = node.register_blocks_cache(B, addrs, BlocksCacheKey(1, 5))
    assert (node.usage(), node.live_keys()) == (before, 3)
    node.unregister_cache(cache.cache_id)
    assert node.live_keys() == 1
    node.unregister_cache(blocks.cache_id)
    assert node.is_entirely_free()
    assert node.read(address, 1 << 13) == b"mine" * 2048


def test_deallocated_but_still_pullable(world: World) -> None:
    """api §3.3: with keys bound the cache stays: pullable by key and by id+index, addressable by id locally."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(C, [request(1)]), 1)
    content = prompt.contents(theirs)
    prompt.deallocate_cache(theirs)
    ours = decoder.allocate_cache(ONE_SLOT)
    decoder.pull_cache(by_id(theirs, 1), ours)
    assert decoder.contents(ours) == [tensor[64:] for tensor in content]
    other = prompt.allocate_cache(C)
    prompt.copy_cache(other, theirs)
    assert [tensor[:64] for tensor in prompt.contents(other)] == [tensor[:64] for tensor in content]
    decoder.pull_cache(request(1), ours)
    assert decoder.contents(ours) == [tensor[:64] for tensor in content]
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        prompt.copy_cache(other, theirs)
    with refused("LLM_KV_CACHE_NOT_EXIST"):
        decoder.pull_cache(by_id(theirs), ours)


def test_deallocating_again_is_a_no_op(world: World) -> None:
    """api §3.3: repeated: no-op."""
    node = world.node(1)
    cache = node.allocate_cache(C, [request(1)])
    blocks = node.allocate_blocks_cache(B)
    for _ in range(3):
        node.deallocate_cache(cache)
        node.deallocate_blocks_cache(blocks)
        assert (node.live_caches(), node.live_keys()) == (1, 1)


def test_deallocating_what_is_unknown_is_a_no_op(world: World) -> None:
    """api §3.3: unknown: no-op, also a cache of another instance or of an earlier ``init``."""
    node, other = world.node(1), world.node(2)
    former = node.allocate_cache(C)
    former_blocks = node.allocate_blocks_cache(B)
    node.finalize()
    node.init(options_of())
    node.allocate_cache(C)
    node.allocate_blocks_cache(B)
    node.deallocate_cache(former)
    node.deallocate_blocks_cache(former_blocks)
    node.deallocate_cache(other.allocate_cache(C))
    assert node.live_caches() == 2
    assert other.live_caches() == 1


def test_deallocating_empties_tensor_addrs(world: World) -> None:
    """api §3.3: in every case the Python object's ``tensor_addrs`` becomes ``[]``."""
    node = world.node(1)
    address = node.own_memory(1 << 13)
    addrs = [address, address + 4096]
    plain = [node.allocate_cache(C), node.allocate_cache(C, [request(1)]), node.register_cache(C, addrs)]
    blocks = [node.allocate_blocks_cache(B), node.register_blocks_cache(B, addrs)]
    blocks.append(node.create_cpu_cache(CacheDesc(2, (4, 32), "DT_UINT8", "HOST"), addrs))
    for cache in plain:
        assert len(node.tensor_addrs(cache)) == 2
        node.deallocate_cache(cache)
        assert node.tensor_addrs(cache) == []
    for cache in blocks:
        assert len(node.tensor_addrs(cache)) == 2
        node.deallocate_blocks_cache(cache)
        assert node.tensor_addrs(cache) == []


def test_deallocating_a_registered_cache_leaves_the_registration(world: World) -> None:
    """api §3.3: ``deallocate_*`` on a registered cache leaves the registration."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(1 << 13)
    prompt.write(address, b"x" * (1 << 13))
    cache = prompt.register_cache(C, [address, address + 4096], [request(1)])
    prompt.deallocate_cache(cache)
    ours = decoder.allocate_cache(ONE_SLOT)
    decoder.pull_cache(request(1), ours)
    decoder.pull_cache(by_id(cache, 1), ours)
    assert decoder.contents(ours) == [b"x" * 64] * 2
    assert prompt.live_keys() == 1


def test_deallocating_a_cpu_cache_only_clears_its_addresses(world: World) -> None:
    """api §3.3: on a ``create_cpu_cache`` object it only clears ``tensor_addrs``."""
    node = world.node(1)
    address = node.own_memory(1 << 13)
    node.write(address, b"mine" * 2048)
    cpu = node.create_cpu_cache(CacheDesc(2, (4, 32), "DT_UINT8", "HOST"), [address, address + 4096])
    blocks = node.allocate_blocks_cache(B)
    node.deallocate_blocks_cache(cpu)
    assert node.live_caches() == 1
    assert node.read(address, 1 << 13) == b"mine" * 2048
    with refused("LLM_PARAM_INVALID"):
        node.swap_blocks(blocks, cpu, {0: 0})


def test_memory_is_never_returned_under_a_view(library: Any) -> None:
    """api §3.3: what is in use pins the cache: memory is never returned to the pool under it."""
    node = library.node(1)
    cache = node.allocate_cache(C)
    views = cache.tensors
    node.deallocate_cache(cache)
    assert not is_free(node)
    views[0][:] = 7
    del views
    assert node.is_entirely_free()


def test_finalize_drops_everything(world: World) -> None:
    """api §3.3: ``finalize`` drops everything."""
    prompt, decoder = world.pair()
    address = prompt.own_memory(1 << 13)
    prompt.allocate_cache(C, [request(1), prefix(1)])
    prompt.allocate_blocks_cache(B, BlocksCacheKey(1))
    prompt.register_cache(C, [address, address + 4096], [request(2)])
    prompt.finalize()
    prompt.init(options_of())
    assert prompt.is_entirely_free()
    assert prompt.linked() == ()
    with refused("LLM_NOT_YET_LINK"):
        decoder.pull_cache(request(1), decoder.allocate_cache(C))


def test_a_link_holds_nothing(world: World) -> None:
    """api §3.3: neither a link nor a finished transfer is a reference."""
    prompt, decoder = world.pair()
    cache = prompt.allocate_cache(C)
    ours = decoder.allocate_cache(C)
    decoder.pull_cache(by_id(cache), ours)
    prompt.deallocate_cache(cache)
    decoder.deallocate_cache(ours)
    assert prompt.is_entirely_free() and decoder.is_entirely_free()
    third = world.node(3)
    link(third, prompt)
    assert third.is_entirely_free()


def pull_while(library: Any, make: Callable[[Node], Any], let_go: Callable[[Node, Any], None], blocks: bool) -> None:
    """Have a cache pulled and let go of it meanwhile; use its memory for something else as soon as it is free."""
    prompt, decoder = library.pair(device_bytes=LARGE_BYTES, host_bytes=None)
    ours = decoder.allocate_blocks_cache(LARGE) if blocks else decoder.allocate_cache(LARGE)
    for _ in range(5):
        theirs = make(prompt)
        begun = threading.Event()
        answers: list[Any] = []

        def pull(begun: threading.Event = begun, answers: list[Any] = answers, theirs: Any = theirs) -> None:
            begun.set()
            if blocks:
                answers.append(outcome(lambda: decoder.pull_blocks(BlocksCacheKey(1), ours, [0], [0])))
            else:
                answers.append(outcome(lambda: decoder.pull_cache(by_id(theirs), ours)))

        puller = threading.Thread(target=pull)
        puller.start()
        begun.wait()
        let_go(prompt, theirs)
        library.until(lambda: outcome(lambda: prompt.deallocate_cache(reuse(prompt))) is None, "the memory is free")
        puller.join()
        assert answers[0] in (None, "LLM_KV_CACHE_NOT_EXIST")
        if answers[0] is None:
            assert decoder.contents(ours) == [b"\x11" * LARGE_BYTES]
        assert prompt.is_entirely_free()


LARGE_BYTES = 32 << 20
LARGE = CacheDesc(1, (1, LARGE_BYTES), "DT_UINT8")


def reuse(node: Node) -> Any:
    """All of the pool, overwritten at once."""
    cache = node.allocate_cache(LARGE)
    node.write_tensor(cache, 0, b"\x22" * LARGE_BYTES)
    return cache


def test_memory_is_never_returned_under_a_transfer(library: Any) -> None:
    """api §3.3: a transfer in flight pins the cache: memory is never returned to the pool under a transfer."""

    def make(prompt: Node) -> Any:
        cache = prompt.allocate_cache(LARGE)
        prompt.write_tensor(cache, 0, b"\x11" * LARGE_BYTES)
        return cache

    pull_while(library, make, lambda prompt, cache: prompt.deallocate_cache(cache), blocks=False)


def test_transfers_of_blocks_finish_first(library: Any) -> None:
    """api §3.3: allocated B: in-flight transfers finish first."""

    def make(prompt: Node) -> Any:
        cache = prompt.allocate_blocks_cache(LARGE, BlocksCacheKey(1))
        prompt.write_tensor(cache, 0, b"\x11" * LARGE_BYTES)
        return cache

    pull_while(library, make, lambda prompt, cache: prompt.deallocate_blocks_cache(cache), blocks=True)
