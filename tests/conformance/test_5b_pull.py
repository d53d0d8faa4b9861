"""api §5B: departures from the original, D25 to D37: pulls and copies."""

from __future__ import annotations

from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex

from conformance.world import Node, World, by_id, in_time, info_of, link, pattern, refused, request

LX, NOT_EXIST = "LLM_PARAM_INVALID", "LLM_KV_CACHE_NOT_EXIST"
C = CacheDesc(4, (2, 16), "DT_UINT8")
ONE = CacheDesc(4, (1, 16), "DT_UINT8")

modes = pytest.mark.parametrize("remote", [False, True])


def test_d25_a_change_after_the_first_pull_is_seen(world: World) -> None:
    """api D25: always the owner's current state: new caches are visible, freed ones are gone."""
    prompt, decoder = world.pair(remote=True)
    ours = decoder.allocate_cache(ONE)
    first = prompt.allocate_cache(C)
    decoder.pull_cache(by_id(first), ours)
    prompt.deallocate_cache(first)
    second = prompt.fill(prompt.allocate_cache(C), 2)
    with refused(NOT_EXIST):
        decoder.pull_cache(by_id(first), ours)
    decoder.pull_cache(by_id(second), ours)
    assert decoder.contents(ours) == [tensor[:16] for tensor in prompt.contents(second)]


def test_d26_a_pull_that_failed_can_be_tried_again(world: World) -> None:
    """api D26: not applicable: no failure is permanent."""
    prompt, decoder = world.pair(remote=True)
    ours = decoder.allocate_cache(ONE)
    with refused(NOT_EXIST):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, 1), ours)
    theirs = prompt.allocate_cache(C)
    decoder.pull_cache(by_id(theirs), ours)


@modes
def test_d27_everything_is_checked_in_both_modes(world: World, remote: bool) -> None:
    """api D27: remote batch_index, source layer range, the end of a run; offsets by the *remote* slot size."""
    prompt, decoder = world.pair(remote=remote)
    theirs = prompt.fill(prompt.allocate_cache(C), 1)
    prompt.allocate_blocks_cache(CacheDesc(4, (4, 8), "DT_UINT8"), BlocksCacheKey(1))
    small = decoder.allocate_cache(CacheDesc(4, (1, 5), "DT_UINT8"))
    blocks = decoder.allocate_blocks_cache(CacheDesc(4, (8, 8), "DT_UINT8"))
    with refused(NOT_EXIST):
        decoder.pull_cache(by_id(theirs, 2), small)
    with refused(LX):
        decoder.pull_cache(by_id(theirs), small, src_layer_range=range(2, 3), dst_layer_range=range(1))
    with refused(LX):
        decoder.pull_blocks(BlocksCacheKey(1), blocks, [2, 3, 4], [2, 3, 4])
    decoder.pull_cache(by_id(theirs, 1), small)
    assert decoder.contents(small) == [tensor[16:21] for tensor in prompt.contents(theirs)]


@modes
@pytest.mark.parametrize("cache_id", [0, -1, -(2**63)])
def test_d28_ids_that_are_none(world: World, remote: bool, cache_id: int) -> None:
    """api D28: cache_id 0 and negative ids: KV_CACHE_NOT_EXIST; no blocks cache or request 0 of model 0 is met."""
    prompt, decoder = world.pair(remote=remote)
    prompt.allocate_blocks_cache(C, BlocksCacheKey(1, 0))
    theirs = prompt.fill(prompt.allocate_cache(C, [request(0)]), 1)
    before = prompt.contents(theirs)
    ours = decoder.allocate_cache(ONE)
    with refused(NOT_EXIST):
        decoder.pull_cache(CacheKeyByIdAndIndex(1, cache_id), ours)
    if remote:
        with refused(NOT_EXIST):
            decoder.push_cache(CacheKeyByIdAndIndex(1, cache_id), ours)
    assert (prompt.contents(theirs), prompt.live_keys()) == (before, 2)


@modes
@pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
def test_d29_the_tail_of_a_slot(world: World, remote: bool, placement: str) -> None:
    """api D29: 96-byte slot, 64-byte blocks: one block listed takes 64 bytes, the second 32, the rest is unchanged."""
    prompt, decoder = world.pair(remote=remote)
    theirs = prompt.fill(prompt.allocate_cache(CacheDesc(2, (3, 96), "DT_UINT8", placement)), 1)
    ours = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(2, (4, 64), "DT_UINT8", placement)), 2)
    before = decoder.contents(ours)
    decoder.pull_blocks(by_id(theirs, 1), ours, (), [2])
    decoder.pull_blocks(by_id(theirs, 1), ours, (), [0, 1])
    slot = [tensor[96:192] for tensor in prompt.contents(theirs)]
    expected = [s[:64] + s[64:] + b[96:128] + s[:64] + b[192:] for s, b in zip(slot, before, strict=True)]
    assert decoder.contents(ours) == expected
    larger = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(2, (1, 200), "DT_UINT8", placement)), 3)
    decoder.pull_blocks(by_id(theirs, 1), larger, (), [0])
    assert [tensor[:96] for tensor in decoder.contents(larger)] == slot
    assert [tensor[96:] for tensor in decoder.contents(larger)] == [pattern(3, t, 200)[96:] for t in range(2)]


@modes
@pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
def test_d30_block_sizes_that_differ(world: World, remote: bool, placement: str) -> None:
    """api D30: B→B with different block sizes: LX, whatever the placement."""
    prompt, decoder = world.pair(remote=remote)
    prompt.allocate_blocks_cache(CacheDesc(2, (4, 64), "DT_UINT8"), BlocksCacheKey(1))
    ours = decoder.allocate_blocks_cache(CacheDesc(2, (8, 32), "DT_UINT8", placement))
    with refused(LX):
        decoder.pull_blocks(BlocksCacheKey(1), ours, [0], [0])


@pytest.mark.parametrize("empty", [range(0), range(5, 2), range(1, 1)])
def test_d31_an_empty_layer_range(world: World, empty: range) -> None:
    """api D31: an empty layer range in a pull: LX; the key is kept."""
    prompt, decoder = world.pair()
    prompt.allocate_cache(C, [request(1)])
    ours, blocks = decoder.allocate_cache(ONE), decoder.allocate_blocks_cache(C)
    for name in ("src_layer_range", "dst_layer_range"):
        with refused(LX):
            decoder.pull_cache(request(1), ours, **{name: empty})
        with refused(LX):
            decoder.pull_blocks(request(1), blocks, (), [0], **{name: empty})
    assert prompt.live_keys() == 1


@pytest.mark.parametrize("name", ["layer_range", "src_layers", "tensors_per_layer", "timeout"])
def test_d32_an_unknown_keyword(world: World, name: str) -> None:
    """api D32: an unknown keyword in pull_cache/pull_blocks: TE; the key is kept."""
    prompt, decoder = world.pair()
    prompt.allocate_cache(C, [request(1)])
    with refused("TypeError"):
        decoder.pull_cache(request(1), decoder.allocate_cache(ONE), **{name: range(1)})
    with refused("TypeError"):
        decoder.pull_blocks(request(1), decoder.allocate_blocks_cache(C), (), [0], **{name: range(1)})
    assert prompt.live_keys() == 1


def test_d33_tensor_num_per_layer(world: World) -> None:
    """api D33: within [1, num_tensors], as 3.5 says; divisibility only with ranges."""
    prompt, decoder = world.pair()
    theirs = prompt.allocate_cache(C)
    ours = decoder.allocate_cache(ONE)
    decoder.pull_cache(by_id(theirs), ours, tensor_num_per_layer=3)
    for too_many in (5, 2**32 - 1):
        with refused(LX):
            decoder.pull_cache(by_id(theirs), ours, tensor_num_per_layer=too_many)
    with refused(LX):
        decoder.pull_cache(
            by_id(theirs), ours, src_layer_range=range(1), dst_layer_range=range(1), tensor_num_per_layer=3
        )


def slow_pair(library: Any) -> tuple[Node, Node, CacheDesc]:
    """A decoder whose calls may take a millisecond, and a description of what no machine copies so fast."""
    size = 128 << 20
    settings = {"device_bytes": size, "host_bytes": None, "page_shift": 20}
    prompt, decoder = library.node(1, **settings), library.node(2, **settings, SyncKvCacheWaitTime="1")
    assert decoder.link_clusters([info_of(prompt)])[0] == "LLM_SUCCESS"
    return prompt, decoder, CacheDesc(1, (1, size), "DT_UINT8")


def test_d34_one_deadline_for_each_call(library: Any) -> None:
    """api D34: one deadline per call: a call longer than sync_kv_timeout raises."""
    prompt, decoder, desc = slow_pair(library)
    theirs = prompt.allocate_cache(desc)
    ours = in_time(lambda: decoder.allocate_cache(desc))
    with refused("LLM_TIMEOUT"):
        decoder.pull_cache(by_id(theirs), ours)


def test_d35_copy_blocks_checks_first(world: World) -> None:
    """api D35: copy_blocks: bounds are checked before any copy: no partial effect."""
    node = world.node(1)
    cache = node.fill(node.allocate_blocks_cache(CacheDesc(1, (4, 8), "DT_UINT8")), 1)
    before = node.contents(cache)
    with refused(LX):
        node.copy_blocks(cache, {0: [1], 1: [2], 2: [4]})
    assert node.contents(cache) == before


def test_d36_the_code_of_a_timeout(library: Any) -> None:
    """api D36: LLM_TIMEOUT, not LLM_WAIT_PROCESS_TIMEOUT; the key is kept."""
    prompt, decoder, desc = slow_pair(library)
    prompt.allocate_cache(desc, [request(1)])
    ours = in_time(lambda: decoder.allocate_cache(desc))
    with refused("LLM_TIMEOUT"):
        decoder.pull_cache(request(1), ours)
    assert prompt.live_keys() == 1


def test_d37_sizes_have_64_bits(library: Any) -> None:
    """api D37: nothing is truncated at 4 GiB: slots and blocks beyond it are the ones that are meant."""
    prompt, decoder = library.pair()
    slot_bytes = (1 << 32) + 64
    address = prompt.own_memory(2 * slot_bytes)  # of which two pages are touched
    prompt.write(address + slot_bytes, b"the second slot ")
    cache = prompt.register_cache(CacheDesc(1, (2, slot_bytes), "DT_UINT8"), [address])
    ours = decoder.allocate_cache(CacheDesc(1, (1, 16), "DT_UINT8"))
    decoder.pull_cache(by_id(cache, 1), ours)
    assert decoder.contents(ours) == [b"the second slot "]
    blocks = prompt.register_blocks_cache(CacheDesc(1, (slot_bytes // 32, 64), "DT_UINT8"), [address])
    far = slot_bytes // 64
    prompt.copy_blocks(blocks, {far: [far + 1]})
    assert prompt.read(address + slot_bytes + 64, 16) == b"the second slot "


def test_5b_linking_again_is_no_obstacle(world: World) -> None:
    """api §5B: after unlinking and linking again everything can be pulled as before."""
    prompt, decoder = world.pair()
    theirs, ours = prompt.allocate_cache(C), decoder.allocate_cache(ONE)
    for _ in range(3):
        decoder.pull_cache(by_id(theirs), ours)
        decoder.unlink_clusters([info_of(prompt)])
        link(decoder, prompt)
