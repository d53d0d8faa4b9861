"""``transfer_cache_async`` in the reference model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from llmdd.spec.layerwise import LayerTask
from llmdd.spec.reference import Node, WouldWait
from llmdd.spec.statecharts import Refused
from llmdd.spec.values import (
    Cache,
    CacheDesc,
    CacheKeyByIdAndIndex,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

from .nodes import (
    SLOT_BYTES,
    TO_OWNER,
    block,
    blocks_key,
    by_id,
    fill,
    key,
    own_tensors,
    refused,
    slot,
    two_nodes,
    with_host_pool,
)

LAYERS = CacheDesc(6, (2, 8), "DT_FLOAT16")  # three layers of two tensors, two slots of 16 bytes
BLOCKS = CacheDesc(6, (4, 4), "DT_FLOAT16")  # blocks of 8 bytes
ALL = range(3)


def computed(layer: int) -> bool:
    """A synchronizer for what is there already."""
    return True


class Computed:
    """A synchronizer that notes what it is asked."""

    def __init__(self, *answers: Callable[[], bool]) -> None:
        self.asked: list[int] = []
        self.answers = list(answers)

    def __call__(self, layer: int) -> bool:
        self.asked.append(layer)
        return self.answers.pop(0)() if self.answers else True


def fail() -> bool:
    raise RuntimeError("the computation failed")


def remote_mode() -> tuple[Node, Node]:
    """The owner of the destination and the sender, in remote mode; pools for eight such caches."""
    return two_nodes(pages=64, EnableRemoteCacheAccessible="1")


def two_sided() -> tuple[Node, Node]:
    return two_nodes(pages=64)


def to_cache(
    cache: Cache, index: int = 0, source: range = ALL, target: range | None = None, batch_index: int = 0
) -> TransferWithCacheKeyConfig:
    return TransferWithCacheKeyConfig(by_id(cache, index), source, source if target is None else target, batch_index)


def to_blocks(source: range = ALL, target: range = ALL) -> TransferWithCacheKeyConfig:
    return TransferWithCacheKeyConfig(blocks_key(), source, target)


def slots(node: Node, cache: Cache, index: int) -> list[bytes]:
    """A slot, in every tensor."""
    return [slot(node, cache, index, tensor) for tensor in range(cache.cache_desc.num_tensors)]


# -- the walk --------------------------------------------------------------------------------------------------------


def test_each_layer_is_synchronized_once_and_sent_to_everybody_who_wants_it() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS, [key(1), key(2)]), sender.allocate_cache(LAYERS)
    fill(sender, source, 9)
    synchronizer = Computed()
    configs = [to_cache(target, 0, range(1, 3), range(2)), to_cache(target, 1, range(2), batch_index=1)]
    task = sender.begin_transfer_async(source, synchronizer, configs)
    assert (synchronizer.asked, task.results) == ([], [None, None])
    task.step()
    assert slot(owner, target, 1, 1) == slot(sender, source, 1, 1)
    assert (synchronizer.asked, task.results) == ([0], [None, None])
    task.step()
    assert (synchronizer.asked, task.results) == ([0, 1], [None, "LLM_SUCCESS"])
    task.step()
    assert (synchronizer.asked, task.ended) == ([0, 1, 2], True)
    assert slots(owner, target, 0) == [*slots(sender, source, 0)[2:], bytes(16), bytes(16)]  # api D41
    assert slots(owner, target, 1) == [*slots(sender, source, 1)[:4], bytes(16), bytes(16)]
    assert (task.synchronize(), task.get_results(0)) == ("LLM_SUCCESS", ["LLM_SUCCESS"] * 2)
    assert len(owner.key_index) == 2  # no key is released
    owner.cluster.check()


def test_layers_that_nobody_wants_are_not_looked_at() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    synchronizer = Computed()
    configs = [to_cache(target, 0, range(1)), to_cache(target, 0, range(2, 3))]
    assert sender.transfer_cache_async(source, synchronizer, configs).synchronize() == "LLM_SUCCESS"
    assert synchronizer.asked == [0, 2]


def test_no_configs() -> None:
    _, sender = remote_mode()
    source = sender.allocate_cache(LAYERS)
    task = sender.begin_transfer_async(source, computed, [])
    assert (task.ended, task.synchronize(), task.get_results()) == (True, "LLM_SUCCESS", [])
    sender.deallocate_cache(source)
    assert (sender.live_caches, sender.tasks) == (0, set())


def test_api_d42_what_was_not_computed_ends_those_who_want_it() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    synchronizer = Computed(lambda: False, fail)
    configs = [to_cache(target, 0, range(1)), to_cache(target, 1, range(1, 3)), to_cache(target, 1, range(2, 3))]
    task = sender.transfer_cache_async(source, synchronizer, configs)
    assert task.get_results() == ["LLM_PARAM_INVALID", "LLM_FAILED", "LLM_SUCCESS"]
    assert task.synchronize() == "LLM_PARAM_INVALID"  # the first in the configs' order
    assert synchronizer.asked == [0, 1, 2]


def test_api_d44_others_go_on_when_one_has_failed() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    fill(sender, source, 9)
    unknown = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 9), ALL, ALL)
    unlinked = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(3, 1), ALL, ALL)
    own = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, 1), ALL, ALL)
    too_far = to_cache(target, 0, range(2), range(2, 4))
    synchronizer = Computed()
    task = sender.transfer_cache_async(source, synchronizer, [unknown, to_cache(target), unlinked, own, too_far])
    assert task.get_results() == [
        "LLM_KV_CACHE_NOT_EXIST",
        "LLM_SUCCESS",
        "LLM_NOT_YET_LINK",
        "LLM_NOT_YET_LINK",
        "LLM_PARAM_INVALID",
    ]
    assert slots(owner, target, 0)[:4] == slots(sender, source, 0)[:4]
    assert synchronizer.asked == [0, 1, 2]


def test_a_layer_that_nobody_wants_any_more_is_not_synchronized() -> None:
    _, sender = remote_mode()
    source = sender.allocate_cache(LAYERS)
    synchronizer = Computed()
    unknown = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 9), ALL, ALL)
    assert sender.transfer_cache_async(source, synchronizer, [unknown]).synchronize() == "LLM_KV_CACHE_NOT_EXIST"
    assert synchronizer.asked == [0]


def test_a_task_keeps_its_source() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    fill(sender, source, 9)
    content = slots(sender, source, 0)
    task = sender.begin_transfer_async(source, computed, [to_cache(target)])
    sender.deallocate_cache(source)
    task.step()
    owner.cluster.check()
    assert sender.live_caches == 1
    task.run()
    assert (task.synchronize(), sender.live_caches) == ("LLM_SUCCESS", 0)
    assert slots(owner, target, 0) == content
    owner.cluster.check()


def test_a_source_that_has_gone_is_told_layer_by_layer() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    sender.deallocate_cache(source)
    synchronizer = Computed(lambda: False)
    configs = [to_cache(target, 0, range(1)), to_cache(target, 0, range(1, 3))]
    task = sender.transfer_cache_async(source, synchronizer, configs)
    assert task.get_results() == ["LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST"]
    assert (synchronizer.asked, sender.tasks) == ([0, 1], set())


def test_unregistering_the_source_waits_for_the_task() -> None:
    owner, sender = remote_mode()
    target = owner.allocate_cache(LAYERS)
    source = sender.register_cache(LAYERS, own_tensors(sender, LAYERS))
    task = sender.begin_transfer_async(source, computed, [to_cache(target)])
    with pytest.raises(Refused, match="LLM_TIMEOUT"):
        sender.unregister_cache(source.cache_id)
    task.run()
    assert (task.synchronize(), sender.live_caches) == ("LLM_SUCCESS", 0)


def test_what_happens_on_the_way_ends_a_config_with_the_layer_that_meets_it() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    registered = owner.register_cache(LAYERS, own_tensors(owner, LAYERS))
    task = sender.begin_transfer_async(source, computed, [to_cache(target), to_cache(registered)])
    task.step()
    owner.deallocate_cache(target)
    owner.free_memory(owner.tensor_addrs(registered)[2])
    task.run()
    assert task.get_results() == ["LLM_KV_CACHE_NOT_EXIST", "LLM_PARAM_INVALID"]


def test_waiting_for_a_task() -> None:
    owner, sender = remote_mode()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    task = sender.begin_transfer_async(source, computed, [to_cache(target), to_cache(target, 1)])
    assert (task.synchronize(0), task.get_results(10)) == ("LLM_TIMEOUT", ["LLM_TIMEOUT"] * 2)
    for wait in (task.synchronize, task.get_results):
        refused("TypeError", lambda wait=wait: wait("now"), owner.cluster)
        refused("ValueError", lambda wait=wait: wait(-1), owner.cluster)
        refused("ValueError", lambda wait=wait: wait(2**32), owner.cluster)
        with pytest.raises(WouldWait):
            wait()
    with pytest.raises(WouldWait):
        sender.finalize()
    task.run()
    sender.finalize()
    assert task.synchronize() == "LLM_SUCCESS"


def test_a_config_without_a_result_counts_as_failed() -> None:
    _, sender = remote_mode()
    task: LayerTask = sender.transfer_cache_async(sender.allocate_cache(LAYERS), computed, [])
    task.results = ["LLM_SUCCESS", None, "LLM_PARAM_INVALID"]
    assert (task.synchronize(), task.get_results()) == ("LLM_FAILED", ["LLM_SUCCESS", None, "LLM_PARAM_INVALID"])


# -- what goes where, by keys ----------------------------------------------------------------------------------------


def send(sender: Node, source: Cache, config: object, *blocks: Any) -> str | None:
    """What becomes of one config."""
    (result,) = sender.transfer_cache_async(source, computed, [config], *blocks).get_results()
    return result


def test_a_slot_goes_to_a_slot_that_is_as_large() -> None:
    owner, sender = remote_mode()
    source = sender.allocate_cache(LAYERS)
    wide = owner.allocate_cache(replace(LAYERS, shape=(2, 9)))
    narrow = owner.allocate_cache(replace(LAYERS, shape=(2, 7)))
    assert send(sender, source, to_cache(wide)) == "LLM_SUCCESS"
    assert send(sender, source, to_cache(narrow)) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_cache(wide, 2)) == "LLM_PARAM_INVALID"


def test_a_slot_goes_to_listed_blocks() -> None:
    owner, sender = remote_mode()
    source, target = sender.allocate_cache(LAYERS), owner.allocate_blocks_cache(BLOCKS, blocks_key())
    fill(sender, source, 9)
    assert send(sender, source, to_blocks(), None, [3, 0], 8) == "LLM_SUCCESS"
    assert block(owner, target, 3, 5) + block(owner, target, 0, 5) == slot(sender, source, 0, 5)
    assert send(sender, source, to_cache(target), None, (1,), 8) == "LLM_SUCCESS"  # named by its id
    assert block(owner, target, 1, 4) == slot(sender, source, 0, 4)[:8]
    slots_there = owner.allocate_cache(LAYERS)
    for config, *blocks in (
        (to_blocks(), None, [4], 8),
        (to_blocks(), None, [0], 16),
        (to_blocks(), None, [0, 1, 2], 8),
        (to_blocks(), [0], [0]),
        (to_blocks(),),
        (to_cache(target, 1), None, [0], 8),
        (to_cache(slots_there), None, [0], 8),
    ):
        assert send(sender, source, config, *blocks) == "LLM_PARAM_INVALID"


def test_blocks_go_to_blocks() -> None:
    owner, sender = remote_mode()
    source, target = sender.allocate_blocks_cache(BLOCKS), owner.allocate_blocks_cache(BLOCKS, blocks_key())
    fill(sender, source, 9)
    assert send(sender, source, to_blocks(range(1), range(2, 3)), [1, 0], [0, 3], 8) == "LLM_SUCCESS"
    assert [block(owner, target, index, 5) for index in (0, 3)] == [block(sender, source, index, 1) for index in (1, 0)]
    slots_there = owner.allocate_cache(LAYERS)
    for config, *blocks in (
        (to_blocks(), [4], [0]),
        (to_blocks(), [0], [4]),
        (to_blocks(), [0], [0], 16),
        (to_blocks(), None, [0], 8),
        (to_cache(slots_there), [0], [0]),
        (to_cache(slots_there),),
    ):
        assert send(sender, source, config, *blocks) == "LLM_PARAM_INVALID"


def test_api_d47_without_lists_every_block_goes() -> None:
    owner, sender = remote_mode()
    source, target = sender.allocate_blocks_cache(BLOCKS), owner.allocate_blocks_cache(BLOCKS, blocks_key())
    fill(sender, source, 9)
    assert send(sender, source, to_blocks()) == "LLM_SUCCESS"
    assert owner.contents(target) == sender.contents(source)
    owner.deallocate_blocks_cache(target)
    for other in (replace(BLOCKS, shape=(5, 4)), replace(BLOCKS, shape=(4, 5))):
        target = owner.allocate_blocks_cache(other, blocks_key())
        assert send(sender, source, to_blocks()) == "LLM_PARAM_INVALID"
        owner.deallocate_blocks_cache(target)


def test_what_is_not_remote_accessible_ends_a_config() -> None:
    owner, sender = remote_mode()
    hidden = owner.register_cache(LAYERS, own_tensors(owner, LAYERS), (), False)
    target, source = owner.allocate_cache(LAYERS), sender.register_cache(LAYERS, own_tensors(sender, LAYERS), (), False)
    assert send(sender, sender.allocate_cache(LAYERS), to_cache(hidden)) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_cache(target)) == "LLM_PARAM_INVALID"


# -- what goes where, by addresses -----------------------------------------------------------------------------------


def to_addresses(addresses: list[int], source: range | None = range(1), batch_index: int = 0) -> TransferConfig:
    return TransferConfig(1, addresses, source, batch_index)


def test_layers_go_to_the_addresses_of_slots() -> None:
    owner, sender = two_sided()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    fill(sender, source, 9)
    places = [address + SLOT_BYTES for address in owner.tensor_addrs(target)]
    assert send(sender, source, to_addresses(places, None)) == "LLM_SUCCESS"
    assert slots(owner, target, 1) == slots(sender, source, 0)
    assert slots(owner, target, 0) == [bytes(16)] * 6
    assert send(sender, source, to_addresses(places[:4], range(1, 3), 1)) == "LLM_SUCCESS"
    assert slots(owner, target, 1) == [*slots(sender, source, 1)[2:], *slots(sender, source, 0)[4:]]


def test_the_two_addresses_of_a_layer_may_lie_in_two_caches() -> None:
    owner, sender = two_sided()
    source = sender.allocate_cache(LAYERS)
    fill(sender, source, 9)
    memory = own_tensors(owner, LAYERS)
    registered, allocated = owner.register_cache(LAYERS, memory), owner.allocate_cache(LAYERS)
    places = [owner.tensor_addrs(allocated)[3], memory[5] + 7]
    assert send(sender, source, to_addresses(places)) == "LLM_SUCCESS"
    assert slot(owner, allocated, 0, 3) == slot(sender, source, 0, 0)
    assert owner.read(memory[5] + 7, 16) == slot(sender, source, 0, 1)
    owner.unregister_cache(registered.cache_id)
    assert send(sender, source, to_addresses(places)) == "LLM_PARAM_INVALID"


def test_api_d46_a_range_must_lie_in_a_tensor_that_may_be_written() -> None:
    owner, sender = two_sided()
    target, source = owner.allocate_cache(LAYERS), sender.allocate_cache(LAYERS)
    first, second = owner.tensor_addrs(target)[:2]
    hidden = own_tensors(owner, LAYERS)
    owner.register_cache(LAYERS, hidden, (), False)
    blocks = owner.tensor_addrs(owner.allocate_blocks_cache(BLOCKS))[0]
    nowhere = owner.own_memory(64)
    for bad in (first + 17, first - 1, first + LAYERS.size, 1, 2**64 - 1, hidden[0], blocks, nowhere):
        assert send(sender, source, to_addresses([second, bad])) == "LLM_PARAM_INVALID"
    assert owner.contents(target) == [bytes(LAYERS.size)] * 6
    assert send(sender, source, to_addresses([first, second])) == "LLM_SUCCESS"
    owner.deallocate_cache(target)
    assert send(sender, source, to_addresses([first, second])) == "LLM_PARAM_INVALID"


def test_api_d49_memory_registered_twice_is_accessible_until_both_are_unregistered() -> None:
    owner, sender = two_sided()
    source, memory = sender.allocate_cache(LAYERS), own_tensors(owner, LAYERS)
    for cache in [owner.register_cache(LAYERS, memory) for _ in range(2)]:
        assert send(sender, source, to_addresses(memory[:2])) == "LLM_SUCCESS"
        owner.unregister_cache(cache.cache_id)
    assert send(sender, source, to_addresses(memory[:2])) == "LLM_PARAM_INVALID"


def test_a_slot_goes_to_listed_blocks_from_an_address_on() -> None:
    owner, sender = two_sided()
    source, target = sender.allocate_cache(LAYERS), owner.allocate_blocks_cache(BLOCKS)
    fill(sender, source, 9)
    first, second = owner.tensor_addrs(target)[:2]
    assert send(sender, source, to_addresses([first, second]), None, [3, 1], 8) == "LLM_SUCCESS"
    assert block(owner, target, 3, 1) + block(owner, target, 1, 1) == slot(sender, source, 0, 1)
    assert send(sender, source, to_addresses([first, second]), None, [4], 8) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_addresses([first + 8, second]), None, [3], 8) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_addresses([first, second]), None, [0, 1, 2], 8) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_addresses([first, second]), None, [0], 32) == "LLM_SUCCESS"


def test_blocks_go_to_blocks_from_an_address_on() -> None:
    owner, sender = two_sided()
    source, target = sender.allocate_blocks_cache(BLOCKS), owner.allocate_blocks_cache(BLOCKS)
    fill(sender, source, 9)
    first, second = owner.tensor_addrs(target)[:2]
    assert send(sender, source, to_addresses([first, second]), [2], [3]) == "LLM_SUCCESS"
    assert block(owner, target, 3, 1) == block(sender, source, 2, 1)
    assert send(sender, source, to_addresses([first, second])) == "LLM_SUCCESS"
    assert owner.contents(target)[:2] == sender.contents(source)[:2]
    assert send(sender, source, to_addresses([first, second + 8])) == "LLM_PARAM_INVALID"
    slots_there = owner.tensor_addrs(owner.allocate_cache(LAYERS))[:2]
    assert send(sender, source, to_addresses(slots_there)) == "LLM_PARAM_INVALID"
    assert send(sender, source, to_addresses(slots_there), [0], [0]) == "LLM_PARAM_INVALID"
    other = owner.tensor_addrs(owner.allocate_blocks_cache(replace(BLOCKS, shape=(2, 8))))[:2]
    assert send(sender, source, to_addresses(other)) == "LLM_PARAM_INVALID"


# -- arguments -------------------------------------------------------------------------------------------------------


ADDRESSES = TransferConfig(1, [1, 2], range(1))
BY_KEY = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(1, 1), range(1), range(1))
HOST = Cache(9, replace(LAYERS, placement="HOST"), None)
ODD = Cache(9, replace(LAYERS, num_tensors=3), None)
BLOCKS_CACHE = Cache(9, BLOCKS, None, True)

BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("TypeError", {"src_cache": None, "dst_block_indices": 1}, "src_cache only support"),
    ("LLM_PARAM_INVALID", {"src_cache": HOST, "dst_block_indices": 1}, "src cache not support placement HOST"),
    ("TypeError", {"dst_block_indices": {1}, "src_block_indices": 1}, "dst_block_indices only support"),
    ("TypeError", {"src_block_indices": [None], "dst_block_memory_size": ""}, "src_block_indices inner type"),
    ("ValueError", {"dst_block_indices": [-1], "src_block_indices": 1}, "dst_block_indices"),
    ("TypeError", {"dst_block_memory_size": "8", "src_block_indices": [0]}, "dst_block_memory_size"),
    ("ValueError", {"dst_block_memory_size": -1}, "dst_block_memory_size"),
    ("LLM_PARAM_INVALID", {"src_block_indices": [0]}, "transfer from blocks to cache is not supported"),
    (
        "LLM_PARAM_INVALID",
        {"src_block_indices": [0], "dst_block_indices": [0, 1], "layer_synchronizer": None},
        "num_block_indices mismatches",
    ),
    ("LLM_PARAM_INVALID", {"dst_block_indices": [0], "layer_synchronizer": None}, "dst_block_memory_size must be set"),
    ("LLM_PARAM_INVALID", {"dst_block_indices": [0], "dst_block_memory_size": 0}, "must be set"),
    ("TypeError", {"layer_synchronizer": None, "transfer_configs": None}, "layer_synchronizer"),
    ("TypeError", {"transfer_configs": None, "dst_block_memory_size": 8}, "transfer_configs only support"),
    ("TypeError", {"transfer_configs": [1], "dst_block_memory_size": 8}, "transfer_configs inner type"),
    (
        "LLM_PARAM_INVALID",
        {"dst_block_memory_size": 8, "src_cache": Cache(9, replace(LAYERS, num_tensors=3), None)},
        "",
    ),
    ("LLM_PARAM_INVALID", {"src_cache": Cache(9, replace(LAYERS, num_tensors=3), None)}, "is not even"),
]


@pytest.mark.parametrize(("error", "arguments", "text"), BAD_ARGUMENTS)
@pytest.mark.parametrize("config", [ADDRESSES, BY_KEY], ids=["addresses", "keys"])
def test_bad_arguments_are_refused_at_once(config: Any, error: str, arguments: dict[str, Any], text: str) -> None:
    owner, sender = two_sided() if config is ADDRESSES else remote_mode()
    source = sender.allocate_cache(LAYERS)
    given = {"src_cache": source, "layer_synchronizer": computed, "transfer_configs": [config], **arguments}
    refused(error, lambda: sender.transfer_cache_async(**given), owner.cluster, text)


@pytest.mark.parametrize(
    ("source", "changes", "text"),
    [
        (None, {"src_batch_index": 2}, "src_batch_index 2 should be in [0, 2)"),
        (BLOCKS_CACHE, {"src_batch_index": 1, "src_layer_range": range(9)}, "src_batch_index 1 should be in [0, 1)"),
        (None, {"src_layer_range": range(4)}, "out of range"),
        (None, {"src_layer_range": range(3, 4)}, "out of range"),
        (None, {"src_layer_range": range(1, 1)}, "out of range"),
        (None, {"src_layer_range": range(-1, 1)}, "out of range"),
    ],
)
@pytest.mark.parametrize("config", [ADDRESSES, BY_KEY], ids=["addresses", "keys"])
def test_configs_that_contradict_the_source_are_refused_at_once(
    config: Any, source: Cache | None, changes: dict[str, Any], text: str
) -> None:
    owner, sender = two_sided() if config is ADDRESSES else remote_mode()
    source = source or sender.allocate_cache(LAYERS)
    configs = [config, replace(config, **changes)]
    refused("LLM_PARAM_INVALID", lambda: sender.transfer_cache_async(source, computed, configs), owner.cluster, text)


def test_there_are_two_addresses_for_each_layer() -> None:
    owner, sender = two_sided()
    source = sender.allocate_cache(LAYERS)
    for config in (TransferConfig(1, [1, 2, 3], range(1)), TransferConfig(1, [1, 2])):
        call = lambda config=config: sender.transfer_cache_async(source, computed, [config])  # noqa: E731
        refused("LLM_PARAM_INVALID", call, owner.cluster, "dst_addrs")


def test_api_3_9_each_mode_takes_configs_of_its_kind() -> None:
    owner, sender = remote_mode()
    source = sender.allocate_cache(LAYERS)
    text = "While enable_remote_cache_accessible is True"
    refused("TypeError", lambda: sender.transfer_cache_async(source, computed, (ADDRESSES,)), owner.cluster, text)
    owner, sender = two_sided()
    source = sender.allocate_cache(LAYERS)
    refused("TypeError", lambda: sender.transfer_cache_async(source, computed, [BY_KEY]), owner.cluster)


def test_a_host_target_is_as_good(node: Node) -> None:
    owner = with_host_pool(node.cluster.start("owner", 2), listenIpInfo="127.0.0.1:5001")
    assert node.link_clusters([replace(TO_OWNER, remote_cluster_id=2)])[0] == "LLM_SUCCESS"
    source = node.allocate_cache(LAYERS)
    fill(node, source, 3)
    target = owner.allocate_cache(replace(LAYERS, placement="HOST"))
    config = TransferConfig(2, owner.tensor_addrs(target))
    assert send(node, source, config) == "LLM_SUCCESS"
    assert slots(owner, target, 0) == slots(node, source, 0)
