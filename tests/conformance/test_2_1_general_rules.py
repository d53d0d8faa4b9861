"""api §2.1: rules for the arguments of every call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKey, CacheKeyByIdAndIndex

import llmdd
from conformance.world import Node, World, by_id, options_of, placeholder, refused, request

DESC = CacheDesc(2, (2, 8), "DT_UINT8")


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [((True,), {}), ((), {"batch_index": True, "size": True}), ((True, True), {"tensor_num_per_layer": True})],
)
def test_bool_passes_as_int(world: World, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """api §2.1: type checks use ``isinstance``: ``bool`` passes as int."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(DESC), 1)
    ours = decoder.allocate_cache(DESC)
    decoder.pull_cache(by_id(theirs), ours, *arguments, **keywords)


@pytest.mark.parametrize("wrong", [np.int64(0), np.uint32(0), np.bool_(False), 0.0, "0", b"0", [0]], ids=repr)
def test_numpy_integers_do_not_pass_as_int(world: World, wrong: Any) -> None:
    """api §2.1: NumPy integers are no int: TE, ``{arg} only support``."""
    prompt, decoder = world.pair()
    theirs, ours = prompt.allocate_cache(DESC), decoder.allocate_cache(DESC)
    with refused("TypeError", "batch_index only support"):
        decoder.pull_cache(by_id(theirs), ours, batch_index=wrong)


def test_message_of_a_wrong_type(library: World) -> None:
    """api §2.1: ``{arg} only support [<names>], but got <class ..>``, inner types, keys and values of a dict."""
    node = library.node(1)
    blocks = node.allocate_blocks_cache(DESC)
    with refused("TypeError", "cache_desc only support [CacheDesc], but got <class 'int'>"):
        node.allocate_cache(5)
    with refused("TypeError", "cache_keys only support ["):
        node.allocate_cache(DESC, {request(1)})
    with refused("TypeError", "but got <class 'set'>"):
        node.allocate_cache(DESC, {request(1)})
    with refused("TypeError", "cache_keys inner type only support"):
        node.allocate_cache(DESC, [request(1), 7])
    with refused("TypeError", "copy_block_info dict key only support"):
        node.copy_blocks(blocks, {"0": [1]})
    with refused("TypeError", "src_to_dst dict value only support"):
        node.swap_blocks(blocks, blocks, {0: "1"})


@pytest.mark.parametrize(
    ("name", "wrong", "kind"),
    [("batch_index", -1, "uint32"), ("batch_index", 2**32, "uint32"), ("size", 2**63, "int64")],
)
def test_message_of_a_value_out_of_range(world: World, name: str, wrong: int, kind: str) -> None:
    """api §2.1: VE ``{arg}'s value is out of range,{v} is not a uint64 value.``"""
    prompt, decoder = world.pair()
    theirs, ours = prompt.allocate_cache(DESC), decoder.allocate_cache(DESC)
    with refused("ValueError", f"{name}'s value is out of range,{wrong} is not a {kind} value."):
        decoder.pull_cache(by_id(theirs), ours, **{name: wrong})


@pytest.mark.parametrize("name", ["batch_index", "size", "tensor_num_per_layer"])
def test_none_for_an_integer_is_a_type_error(world: World, name: str) -> None:
    """api §2.1: integer ranges: TE for a non-int or None."""
    prompt, decoder = world.pair()
    theirs, ours = prompt.allocate_cache(DESC), decoder.allocate_cache(DESC)
    with refused("TypeError", f"{name} only support"):
        decoder.pull_cache(by_id(theirs), ours, **{name: None})


NONE_CALLS: dict[str, Callable[[Node, Any], object]] = {
    "allocate_cache": lambda node, cache: node.allocate_cache(None),
    "allocate_blocks_cache": lambda node, cache: node.allocate_blocks_cache(None),
    "deallocate_cache": lambda node, cache: node.deallocate_cache(None),
    "deallocate_blocks_cache": lambda node, cache: node.deallocate_blocks_cache(None),
    "register_cache desc": lambda node, cache: node.register_cache(None, [1]),
    "register_cache addrs": lambda node, cache: node.register_cache(DESC, None),
    "register_blocks_cache desc": lambda node, cache: node.register_blocks_cache(None, [1]),
    "register_blocks_cache addrs": lambda node, cache: node.register_blocks_cache(DESC, None),
    "remove_cache_key": lambda node, cache: node.remove_cache_key(None),
    "pull_cache key": lambda node, cache: node.pull_cache(None, cache),
    "pull_cache cache": lambda node, cache: node.pull_cache(CacheKeyByIdAndIndex(2, 1), None),
    "pull_blocks key": lambda node, cache: node.pull_blocks(None, cache, [0], [0]),
    "pull_blocks cache": lambda node, cache: node.pull_blocks(BlocksCacheKey(2), None, [0], [0]),
    "push_blocks key": lambda node, cache: node.push_blocks(None, cache, [0], [0]),
    "push_blocks cache": lambda node, cache: node.push_blocks(BlocksCacheKey(2), None, [0], [0]),
    "copy_cache dst": lambda node, cache: node.copy_cache(None, cache),
    "copy_cache src": lambda node, cache: node.copy_cache(cache, None),
    "copy_blocks cache": lambda node, cache: node.copy_blocks(None, {}),
    "copy_blocks info": lambda node, cache: node.copy_blocks(cache, None),
    "swap_blocks src": lambda node, cache: node.swap_blocks(None, cache, {}),
    "swap_blocks dst": lambda node, cache: node.swap_blocks(cache, None, {}),
    "swap_blocks blocks": lambda node, cache: node.swap_blocks(cache, cache, None),
}


@pytest.mark.parametrize("name", NONE_CALLS)
def test_none_where_a_value_is_required(world: World, name: str) -> None:
    """api §2.1, D68: None where a value is required: AE."""
    node = world.node(1, remote=True)
    cache = node.allocate_blocks_cache(DESC) if "blocks" in name else node.allocate_cache(DESC)
    with refused("AttributeError"):
        NONE_CALLS[name](node, cache)


LOCAL_CALLS: dict[str, Callable[[Any, Any, Any, int], object]] = {
    "allocate_cache": lambda manager, c, b, address: manager.allocate_cache(c.cache_desc, [llmdd.CacheKey(1, 5)]),
    "allocate_blocks_cache": lambda manager, c, b, address: manager.allocate_blocks_cache(b.cache_desc),
    "deallocate_cache": lambda manager, c, b, address: manager.deallocate_cache(c),
    "deallocate_blocks_cache": lambda manager, c, b, address: manager.deallocate_blocks_cache(b),
    "remove_cache_key": lambda manager, c, b, address: manager.remove_cache_key(llmdd.CacheKey(1, 1)),
    "register_cache": lambda manager, c, b, address: manager.register_cache(c.cache_desc, [address, address + 64]),
    "register_blocks_cache": lambda manager, c, b, address: manager.register_blocks_cache(
        b.cache_desc, [address, address + 64]
    ),
}


@pytest.mark.parametrize("name", LOCAL_CALLS)
def test_a_local_call_that_cannot_proceed_in_time(library: Any, name: str) -> None:
    """api §2.1, D20: local calls that cannot proceed within sync_kv_timeout: LX(TIMEOUT), no effect."""
    node = library.node(1, SyncKvCacheWaitTime="200")
    manager = node.manager
    cache = node.allocate_cache(DESC, [request(1)])
    blocks = node.allocate_blocks_cache(DESC)
    address = node.own_memory(4096)
    before = node.usage(), node.live_caches(), node.live_keys()
    holding, over = threading.Event(), threading.Event()

    def hold() -> None:
        with manager.paused():
            holding.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        holding.wait()
        with pytest.raises(llmdd.LLMException) as late:
            LOCAL_CALLS[name](manager, cache, blocks, address)
        assert late.value.status_code is llmdd.LLMStatusCode.LLM_TIMEOUT
    finally:
        over.set()
        holder.join()
    node.check()
    assert (node.usage(), node.live_caches(), node.live_keys()) == before
    LOCAL_CALLS[name](manager, cache, blocks, address)


def test_the_first_failing_check_decides(world: World) -> None:
    """api §2.1: the order in the tables is the order of the checks; the first failing check decides."""
    node = world.node(1)
    with refused("AttributeError"):
        node.allocate_cache(None, None)
    with refused("TypeError"):
        node.allocate_cache(CacheDesc(0, (0, 8), "DT_UINT8"), None)
    with refused("LLM_PARAM_INVALID", "num_tensors should be bigger than zero"):
        node.allocate_cache(CacheDesc(0, (0, 8), "DT_UINT8"), [request(1)] * 3)


def test_a_refused_call_changes_nothing(world: World) -> None:
    """api §2.1: a refused call: no id visible, no key bound, no byte moved, no pool memory held."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(DESC, [request(1)]), 1)
    ours = decoder.fill(decoder.allocate_cache(DESC), 2)
    before = prompt.usage(), prompt.live_caches(), prompt.live_keys(), decoder.contents(ours), prompt.contents(theirs)
    with refused("LLM_PARAM_INVALID", "already bound"):
        prompt.allocate_cache(DESC, [request(2), request(1)])
    with refused("LLM_PARAM_INVALID"):
        decoder.pull_cache(request(1), ours, size=9)
    assert (
        prompt.usage(),
        prompt.live_caches(),
        prompt.live_keys(),
        decoder.contents(ours),
        prompt.contents(theirs),
    ) == before
    assert prompt.lookup(request(2)) is None
    assert prompt.lookup(request(1)) == by_id(theirs)


AFTER_FINALIZE: dict[str, Callable[[Any, Any], object]] = {
    "allocate_cache": lambda call, cache: call("allocate_cache", DESC),
    "allocate_blocks_cache": lambda call, cache: call("allocate_blocks_cache", DESC),
    "deallocate_cache": lambda call, cache: call("deallocate_cache", cache),
    "deallocate_blocks_cache": lambda call, cache: call("deallocate_blocks_cache", cache),
    "register_cache": lambda call, cache: call("register_cache", DESC, [4096, 8192]),
    "register_blocks_cache": lambda call, cache: call("register_blocks_cache", DESC, [4096, 8192]),
    "unregister_cache": lambda call, cache: call("unregister_cache", 1),
    "remove_cache_key": lambda call, cache: call("remove_cache_key", request(1)),
    "pull_cache": lambda call, cache: call("pull_cache", request(1), cache),
    "pull_blocks": lambda call, cache: call("pull_blocks", request(1), cache, (), [0]),
    "push_cache": lambda call, cache: call("push_cache", CacheKeyByIdAndIndex(2, 1), cache),
    "push_blocks": lambda call, cache: call("push_blocks", BlocksCacheKey(2), cache, [0], [0]),
    "copy_cache": lambda call, cache: call("copy_cache", cache, cache),
    "copy_blocks": lambda call, cache: call("copy_blocks", cache, {0: [1]}),
    "swap_blocks": lambda call, cache: call("swap_blocks", cache, cache, {0: 1}),
    "remap_registered_memory": lambda call, cache: call("remap_registered_memory", []),
}


@pytest.mark.parametrize("name", AFTER_FINALIZE)
def test_after_finalize_every_method_is_refused(world: World, name: str) -> None:
    """api §2.1, D70: after ``finalize()``, or on a manager whose instance was finalized: LX(ENGINE_FINALIZED)."""
    node = world.node(1, remote=True)
    cache = node.allocate_blocks_cache(DESC) if "blocks" in name else node.allocate_cache(DESC)
    node.finalize()
    with refused("LLM_ENGINE_FINALIZED"):
        AFTER_FINALIZE[name](node.call, cache)
    with refused("LLM_ENGINE_FINALIZED"):
        AFTER_FINALIZE[name](node.call_former_manager, cache)
    node.init(options_of(remote=True))
    with refused("LLM_ENGINE_FINALIZED"):
        AFTER_FINALIZE[name](node.call_former_manager, cache)
    assert node.is_entirely_free()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("link_clusters", ([],)),
        ("unlink_clusters", ([],)),
        ("link", ("name", {1: 0, 2: 1}, "{}")),
        ("unlink", (1,)),
        ("query_register_mem_status", (1,)),
        ("switch_role", ("DECODER",)),
    ],
)
def test_after_finalize_the_instance_refuses_too(world: World, name: str, arguments: tuple[Any, ...]) -> None:
    """api §2.1: after ``finalize()`` every method is LX(ENGINE_FINALIZED)."""
    node = world.node(1)
    node.finalize()
    with refused("LLM_ENGINE_FINALIZED"):
        node.call(name, *arguments)


def test_placeholder_is_no_bad_argument(world: World) -> None:
    """api §2.1: what the tables do not refuse is accepted."""
    node = world.node(1)
    node.remove_cache_key(placeholder())
    node.remove_cache_key(CacheKey(2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1))
    assert node.is_entirely_free()
