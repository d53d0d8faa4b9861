"""api §3.5: what may be transferred, and how many bytes of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from llmdd.spec.values import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex

from conformance.world import Node, World, by_id, pattern, refused, request

LX = "LLM_PARAM_INVALID"


def c_desc(slots: int = 1, slot_bytes: int = 64, tensors: int = 4, placement: str = "DEVICE") -> CacheDesc:
    return CacheDesc(tensors, (slots, slot_bytes), "DT_UINT8", placement)


def slot_of(node: Node, cache: Any, slot: int, slot_bytes: int) -> list[bytes]:
    return [tensor[slot * slot_bytes : (slot + 1) * slot_bytes] for tensor in node.contents(cache)]


def overlaid(under: bytes, over: bytes, at: int) -> bytes:
    return under[:at] + over + under[at + len(over) :]


# --------------------------------------------------------------------------------------------------------- the calls


@pytest.mark.parametrize("by_key", [True, False])
def test_pull_cache(world: World, by_key: bool) -> None:
    """api §3.5: pull_cache: remote C slot → own C slot, by CacheKey or CacheKeyByIdAndIndex."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(c_desc(3), [request(0), request(1)]), 1)
    ours = decoder.fill(decoder.allocate_cache(c_desc(2)), 2)
    before = slot_of(decoder, ours, 0, 64)
    decoder.pull_cache(request(1) if by_key else by_id(theirs, 1), ours, batch_index=1)
    assert slot_of(decoder, ours, 1, 64) == slot_of(prompt, theirs, 1, 64)
    assert slot_of(decoder, ours, 0, 64) == before


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("by_key", [True, False])
def test_pull_blocks_from_a_slot(world: World, remote: bool, by_key: bool) -> None:
    """api §3.5: pull_blocks, src_blocks empty: remote C slot → own blocks, by either key, in both modes."""
    prompt, decoder = world.pair(remote=remote)
    theirs = prompt.fill(prompt.allocate_cache(c_desc(2), [request(0), request(1)]), 1)
    blocks = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(4, (4, 32), "DT_UINT8")), 2)
    before = decoder.contents(blocks)
    decoder.pull_blocks(request(1) if by_key else by_id(theirs, 1), blocks, (), [3, 1])
    slot = slot_of(prompt, theirs, 1, 64)
    expected = [
        overlaid(overlaid(tensor, content[:32], 96), content[32:], 32)
        for tensor, content in zip(before, slot, strict=True)
    ]
    assert decoder.contents(blocks) == expected


@pytest.mark.parametrize("remote", [False, True])
def test_pull_blocks_from_blocks(world: World, remote: bool) -> None:
    """api §3.5: pull_blocks, src_blocks given: remote blocks → own blocks, by BlocksCacheKey, in both modes."""
    prompt, decoder = world.pair(remote=remote)
    desc = CacheDesc(4, (4, 32), "DT_UINT8")
    theirs = prompt.fill(prompt.allocate_blocks_cache(desc, BlocksCacheKey(1, 5)), 1)
    ours = decoder.fill(decoder.allocate_blocks_cache(desc), 2)
    before = decoder.contents(ours)
    decoder.pull_blocks(BlocksCacheKey(1, 5), ours, [0, 3, 2], [2, 0, 1])
    for ours_now, ours_then, there in zip(decoder.contents(ours), before, prompt.contents(theirs), strict=True):
        assert ours_now == there[96:] + there[64:96] + there[:32] + ours_then[96:]


def test_push_cache(world: World) -> None:
    """api §3.5: push_cache: own C slot → remote C slot, by CacheKeyByIdAndIndex, in remote mode."""
    prompt, decoder = world.pair(remote=True)
    theirs = decoder.fill(decoder.allocate_cache(c_desc(3)), 1)
    ours = prompt.fill(prompt.allocate_cache(c_desc(2)), 2)
    others = [slot_of(decoder, theirs, slot, 64) for slot in (0, 1)]
    prompt.push_cache(by_id(theirs, 2, cluster_id=2), ours, src_batch_index=1)
    assert slot_of(decoder, theirs, 2, 64) == slot_of(prompt, ours, 1, 64)
    assert [slot_of(decoder, theirs, slot, 64) for slot in (0, 1)] == others


def test_push_blocks(world: World) -> None:
    """api §3.5: push_blocks: own blocks → remote blocks, by BlocksCacheKey, in remote mode."""
    prompt, decoder = world.pair(remote=True)
    desc = CacheDesc(4, (4, 32), "DT_UINT8")
    theirs = decoder.fill(decoder.allocate_blocks_cache(desc, BlocksCacheKey(2, 5)), 1)
    ours = prompt.fill(prompt.allocate_blocks_cache(desc), 2)
    before = decoder.contents(theirs)
    prompt.push_blocks(BlocksCacheKey(2, 5), ours, [1, 2], [3, 0])
    for now, then, mine in zip(decoder.contents(theirs), before, prompt.contents(ours), strict=True):
        assert now == mine[64:96] + then[32:96] + mine[32:64]


def test_from_blocks_to_a_cache_is_refused(world: World) -> None:
    """api §3.5: B → C in any form: refused, LX."""
    prompt, decoder = world.pair(remote=True)
    blocks_there = prompt.allocate_blocks_cache(CacheDesc(4, (2, 32), "DT_UINT8"), BlocksCacheKey(1))
    slot_here = decoder.allocate_cache(c_desc(1, 32))
    slot_there = prompt.allocate_cache(c_desc(1, 32))
    blocks_here = decoder.allocate_blocks_cache(CacheDesc(4, (2, 32), "DT_UINT8"))
    for call in (
        lambda: decoder.pull_cache(by_id(blocks_there), slot_here),
        lambda: decoder.pull_blocks(BlocksCacheKey(1), slot_here, [0], [0]),
        lambda: decoder.push_cache(by_id(slot_there), blocks_here),
        lambda: decoder.push_cache(by_id(blocks_there), slot_here),  # nor a slot to blocks in a push
    ):
        with refused(LX):
            call()


def test_a_blocks_cache_cannot_be_addressed_by_id_and_index(world: World) -> None:
    """api §3.5: a B cache cannot be addressed by id+index in a pull (LX)."""
    prompt, decoder = world.pair()
    blocks_there = prompt.allocate_blocks_cache(CacheDesc(4, (2, 32), "DT_UINT8"), BlocksCacheKey(1))
    blocks_here = decoder.allocate_blocks_cache(CacheDesc(4, (2, 32), "DT_UINT8"))
    with refused(LX):
        decoder.pull_blocks(by_id(blocks_there), blocks_here, (), [0])
    with refused(LX):
        decoder.pull_cache(by_id(blocks_there), decoder.allocate_cache(c_desc(1, 32)))


def test_a_cache_is_no_destination_of_push_blocks(world: World) -> None:
    """api §3.5: push_blocks reaches blocks alone: the id of a C cache is no key it takes."""
    prompt, decoder = world.pair(remote=True)
    theirs = decoder.allocate_cache(c_desc())
    blocks = prompt.allocate_blocks_cache(CacheDesc(4, (2, 32), "DT_UINT8"))
    with refused("TypeError"):
        prompt.push_blocks(by_id(theirs, cluster_id=2), blocks, [0], [0])


@pytest.mark.parametrize(("there", "here"), list(itertools.product(("DEVICE", "HOST"), repeat=2)))
def test_every_placement(world: World, there: str, here: str) -> None:
    """api §3.5, D77: placement is a label: every combination of HOST and DEVICE works, for C and for B."""
    prompt, decoder = world.pair(remote=True)
    theirs = prompt.fill(prompt.allocate_cache(c_desc(placement=there)), 1)
    ours = decoder.allocate_cache(c_desc(placement=here))
    decoder.pull_cache(by_id(theirs), ours)
    assert decoder.contents(ours) == prompt.contents(theirs)
    decoder.fill(ours, 2)
    decoder.push_cache(by_id(theirs), ours)
    assert decoder.contents(ours) == prompt.contents(theirs)
    blocks_there = prompt.fill(
        prompt.allocate_blocks_cache(CacheDesc(4, (2, 64), "DT_UINT8", there), BlocksCacheKey(1)), 3
    )
    blocks_here = decoder.allocate_blocks_cache(CacheDesc(4, (2, 64), "DT_UINT8", here))
    decoder.pull_blocks(BlocksCacheKey(1), blocks_here, [0, 1], [0, 1])
    assert decoder.contents(blocks_here) == prompt.contents(blocks_there)
    decoder.pull_blocks(by_id(theirs), blocks_here, (), [1])
    assert slot_of(decoder, blocks_here, 1, 64) == prompt.contents(theirs)


# -------------------------------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize(("there", "here"), [(4, 2), (2, 4), (4, 3), (1, 2)])
def test_tensor_counts_must_be_equal(world: World, there: int, here: int) -> None:
    """api §3.5: selected source tensors must equal selected destination tensors in number."""
    prompt, decoder = world.pair(remote=True)
    theirs = prompt.allocate_cache(c_desc(tensors=there))
    ours = decoder.allocate_cache(c_desc(tensors=here))
    blocks_there = prompt.allocate_blocks_cache(CacheDesc(there, (2, 64), "DT_UINT8"), BlocksCacheKey(1))
    blocks_here = decoder.allocate_blocks_cache(CacheDesc(here, (2, 64), "DT_UINT8"))
    assert blocks_there.cache_id
    for call in (
        lambda: decoder.pull_cache(by_id(theirs), ours),
        lambda: decoder.push_cache(by_id(theirs), ours),
        lambda: decoder.pull_blocks(by_id(theirs), blocks_here, (), [0]),
        lambda: decoder.pull_blocks(BlocksCacheKey(1), blocks_here, [0], [0]),
        lambda: decoder.push_blocks(BlocksCacheKey(1), blocks_here, [0], [0]),
    ):
        with refused(LX):
            call()


def test_only_bytes_count(world: World) -> None:
    """api §3.5: shapes, dtypes and totals need not match; only the byte rules count."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(CacheDesc(2, (3, 2, 4, 2), "DT_FLOAT")), 1)
    ours = decoder.allocate_cache(CacheDesc(2, (1, 64), "DT_INT8"))
    decoder.pull_cache(by_id(theirs, 2), ours)
    assert decoder.contents(ours) == [tensor[128:] for tensor in prompt.contents(theirs)]


# --------------------------------------------------------------------------------------------------------- the sizes


@pytest.mark.parametrize("size", [1, 63, 64])
def test_pull_size(world: World, size: int) -> None:
    """api §3.5: C→C pull: ``size`` bytes; copying starts at the slot's first byte; the rest is unchanged."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(c_desc(2, 64)), 1)
    ours = decoder.fill(decoder.allocate_cache(c_desc(2, 64)), 2)
    before = decoder.contents(ours)
    decoder.pull_cache(by_id(theirs, 1), ours, 1, size)
    expected = [
        overlaid(then, there[64 : 64 + size], 64) for then, there in zip(before, prompt.contents(theirs), strict=True)
    ]
    assert decoder.contents(ours) == expected


@pytest.mark.parametrize(("here", "there"), [(32, 64), (64, 64), (1, 64)])
def test_pull_size_minus_one_is_the_local_slot(world: World, here: int, there: int) -> None:
    """api §3.5: C→C pull, -1: the **local** (destination) slot bytes."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(c_desc(2, there)), 1)
    ours = decoder.fill(decoder.allocate_cache(c_desc(2, here)), 2)
    decoder.pull_cache(by_id(theirs, 1), ours)
    assert slot_of(decoder, ours, 0, here) == [content[:here] for content in slot_of(prompt, theirs, 1, there)]


@pytest.mark.parametrize(("here", "there", "size"), [(64, 32, -1), (32, 64, 33), (64, 32, 33), (64, 64, 65)])
def test_pull_that_does_not_fit(world: World, here: int, there: int, size: int) -> None:
    """api §3.5: C→C pull: ≤ local slot bytes and ≤ remote slot bytes, else LX."""
    prompt, decoder = world.pair()
    theirs = prompt.allocate_cache(c_desc(2, there))
    ours = decoder.fill(decoder.allocate_cache(c_desc(2, here)), 2)
    before = decoder.contents(ours)
    with refused(LX):
        decoder.pull_cache(by_id(theirs), ours, 0, size)
    assert decoder.contents(ours) == before


@pytest.mark.parametrize(("here", "there"), [(32, 64), (64, 64), (65, 64)])
def test_push_size(world: World, here: int, there: int) -> None:
    """api §3.5: C→C push: the local (source) slot bytes, ≤ the remote slot bytes, else LX (D39)."""
    prompt, decoder = world.pair(remote=True)
    theirs = prompt.fill(prompt.allocate_cache(c_desc(2, there)), 1)
    ours = decoder.fill(decoder.allocate_cache(c_desc(2, here)), 2)
    before = prompt.contents(theirs)
    if here > there:
        with refused(LX):
            decoder.push_cache(by_id(theirs), ours)
        assert prompt.contents(theirs) == before
        return
    decoder.push_cache(by_id(theirs, 1), ours, 1)
    expected = [overlaid(then, mine, there) for then, mine in zip(before, slot_of(decoder, ours, 1, here), strict=True)]
    assert prompt.contents(theirs) == expected


@pytest.mark.parametrize(
    ("slot_bytes", "block_bytes", "blocks"),
    [
        (96, 64, [2]),
        (96, 64, [2, 0]),
        (96, 32, [0, 1, 2]),
        (96, 32, [3]),
        (32, 64, [1]),
        (64, 64, [3]),
        (65, 64, [3, 0]),
        (1, 64, [0]),
    ],
)
def test_slot_to_blocks(world: World, slot_bytes: int, block_bytes: int, blocks: list[int]) -> None:
    """api §3.5: C→B: source bytes ``[i*b, min((i+1)*b, s))`` go to the start of listed block i; the rest unchanged."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(c_desc(3, slot_bytes)), 1)
    ours = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(4, (4, block_bytes), "DT_UINT8")), 2)
    expected = decoder.contents(ours)
    for tensor, content in enumerate(slot_of(prompt, theirs, 1, slot_bytes)):
        for number, block in enumerate(blocks):
            part = content[number * block_bytes : (number + 1) * block_bytes]
            expected[tensor] = overlaid(expected[tensor], part, block * block_bytes)
    decoder.pull_blocks(by_id(theirs, 1), ours, (), blocks)
    assert decoder.contents(ours) == expected


@pytest.mark.parametrize(
    ("slot_bytes", "blocks"), [(96, [0, 1, 2]), (64, [0, 1]), (1, [0, 1]), (96, [4]), (96, [0, 2**32]), (96, [2**63])]
)
def test_slot_to_blocks_that_do_not_fit(world: World, slot_bytes: int, blocks: list[int]) -> None:
    """api §3.5: C→B: ``n ≤ ceil(s/b)``; indices in range, else LX (D29)."""
    prompt, decoder = world.pair()
    theirs = prompt.allocate_cache(c_desc(2, slot_bytes), [request(1)])
    ours = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(4, (4, 64), "DT_UINT8")), 2)
    before = decoder.contents(ours)
    with refused(LX):
        decoder.pull_blocks(by_id(theirs), ours, (), blocks)
    assert decoder.contents(ours) == before
    assert prompt.live_keys() == 1


@pytest.mark.parametrize(
    ("src", "dst"), [([0], [1, 2]), ([0, 1], [2]), ([4], [0]), ([0], [4]), ([0, 2**63], [0, 1]), ([0, 1], [1, 2**63])]
)
def test_blocks_that_do_not_fit(world: World, src: list[int], dst: list[int]) -> None:
    """api §3.5: B→B: equal list lengths, indices in range on both sides, else LX."""
    prompt, decoder = world.pair(remote=True)
    desc = CacheDesc(2, (4, 32), "DT_UINT8")
    theirs = prompt.fill(prompt.allocate_blocks_cache(desc, BlocksCacheKey(1)), 1)
    ours = decoder.fill(decoder.allocate_blocks_cache(desc), 2)
    before = prompt.contents(theirs), decoder.contents(ours)
    for call in (decoder.pull_blocks, decoder.push_blocks):
        with refused(LX):
            call(BlocksCacheKey(1), ours, src, dst)
    assert (prompt.contents(theirs), decoder.contents(ours)) == before


@pytest.mark.parametrize(("here", "there"), [(32, 64), (64, 32)])
def test_block_bytes_must_be_equal(world: World, here: int, there: int) -> None:
    """api §3.5: B→B: equal block bytes, else LX (D30)."""
    prompt, decoder = world.pair(remote=True)
    theirs = prompt.fill(prompt.allocate_blocks_cache(CacheDesc(2, (4, there), "DT_UINT8"), BlocksCacheKey(1)), 1)
    ours = decoder.fill(decoder.allocate_blocks_cache(CacheDesc(2, (4, here), "DT_UINT8")), 2)
    before = prompt.contents(theirs), decoder.contents(ours)
    for call in (decoder.pull_blocks, decoder.push_blocks):
        with refused(LX):
            call(BlocksCacheKey(1), ours, [0], [0])
    assert (prompt.contents(theirs), decoder.contents(ours)) == before


def test_numbers_of_blocks_may_differ(world: World) -> None:
    """api §3.5: B→B: only block bytes and the listed indices count, and shapes may differ."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_blocks_cache(CacheDesc(2, (3, 4, 2), "DT_FLOAT"), BlocksCacheKey(1)), 1)
    ours = decoder.allocate_blocks_cache(CacheDesc(2, (7, 32), "DT_UINT8"))
    decoder.pull_blocks(BlocksCacheKey(1), ours, [2, 0], [6, 3])
    for here, there in zip(decoder.contents(ours), prompt.contents(theirs), strict=True):
        assert (here[192:], here[96:128]) == (there[64:], there[:32])


def test_the_last_of_equal_destination_blocks_wins(world: World) -> None:
    """api §3.5: duplicate destination blocks: last listed wins."""
    prompt, decoder = world.pair(remote=True)
    desc = CacheDesc(2, (4, 32), "DT_UINT8")
    theirs = prompt.fill(prompt.allocate_blocks_cache(desc, BlocksCacheKey(1)), 1)
    ours = decoder.allocate_blocks_cache(desc)
    decoder.pull_blocks(BlocksCacheKey(1), ours, [0, 1, 2], [3, 3, 3])
    assert slot_of(decoder, ours, 3, 32) == slot_of(prompt, theirs, 2, 32)
    decoder.fill(ours, 5)
    decoder.push_blocks(BlocksCacheKey(1), ours, [2, 1], [0, 0])
    assert slot_of(prompt, theirs, 0, 32) == slot_of(decoder, ours, 1, 32)
    slot = prompt.fill(prompt.allocate_cache(CacheDesc(2, (1, 96), "DT_UINT8")), 3)
    decoder.pull_blocks(by_id(slot), ours, (), [1, 1, 1])
    assert slot_of(decoder, ours, 1, 32) == [content[64:] for content in prompt.contents(slot)]


# ------------------------------------------------------------------------------------------------- layers and tnpl


def moved(world: World, tensors: tuple[int, int], **ranges: Any) -> dict[int, int]:
    """Which tensor of ours a pull has filled from which of theirs."""
    prompt, decoder = world.pair()
    theirs = prompt.fill(prompt.allocate_cache(c_desc(tensors=tensors[0])), 1)
    ours = decoder.fill(decoder.allocate_cache(c_desc(tensors=tensors[1])), 2)
    before = decoder.contents(ours)
    decoder.pull_cache(by_id(theirs), ours, **ranges)
    origins = {content: number for number, content in enumerate(prompt.contents(theirs))}
    changes = enumerate(zip(before, decoder.contents(ours), strict=True))
    return {number: origins[now] for number, (then, now) in changes if now != then}


@pytest.mark.parametrize(
    ("tensors", "ranges", "expected"),
    [
        ((6, 6), {"src_layer_range": range(1, 2), "dst_layer_range": range(1, 2)}, {2: 2, 3: 3}),
        ((6, 6), {"src_layer_range": range(2), "dst_layer_range": range(1, 3)}, {2: 0, 3: 1, 4: 2, 5: 3}),
        ((8, 4), {"src_layer_range": range(2, 4)}, {0: 4, 1: 5, 2: 6, 3: 7}),
        ((2, 6), {"dst_layer_range": range(2, 3)}, {4: 0, 5: 1}),
        (
            (6, 6),
            {"src_layer_range": range(1), "dst_layer_range": range(1, 2), "tensor_num_per_layer": 3},
            {3: 0, 4: 1, 5: 2},
        ),
        (
            (3, 5),
            {"src_layer_range": range(2, 3), "dst_layer_range": range(4, 5), "tensor_num_per_layer": 1},
            {4: 2},
        ),
        ((7, 4), {"src_layer_range": range(1, 3), "dst_layer_range": range(2)}, {0: 2, 1: 3, 2: 4, 3: 5}),
        ((3, 3), {}, {0: 0, 1: 1, 2: 2}),
        ((3, 3), {"tensor_num_per_layer": 3}, {0: 0, 1: 1, 2: 2}),
        ((1, 1), {}, {0: 0}),
    ],
)
def test_layers(world: World, tensors: tuple[int, int], ranges: dict[str, Any], expected: dict[int, int]) -> None:
    """api §3.5: layer L is the tensors ``L*tnpl .. L*tnpl+tnpl-1``; without ranges all tensors are moved."""
    assert moved(world, tensors, **ranges) == expected


@pytest.mark.parametrize(
    ("tensors", "ranges"),
    [
        ((6, 5), {"src_layer_range": range(1), "dst_layer_range": range(1)}),
        ((4, 6), {"dst_layer_range": range(1), "src_layer_range": range(1), "tensor_num_per_layer": 4}),
        ((4, 4), {"dst_layer_range": range(2, 3), "src_layer_range": range(1)}),
        ((4, 4), {"dst_layer_range": range(1), "src_layer_range": range(2, 3)}),
        ((4, 4), {"dst_layer_range": range(1), "src_layer_range": range(2)}),
        ((8, 4), {"src_layer_range": range(1)}),
        ((8, 4), {"dst_layer_range": range(1)}),
        ((4, 4), {"tensor_num_per_layer": 5}),
        ((4, 4), {"tensor_num_per_layer": 2**32 - 1}),
        ((1, 1), {"src_layer_range": range(1)}),
        ((4, 4), {"dst_layer_range": range(2**31, 2**32 - 1)}),
    ],
)
def test_layers_that_do_not_fit(world: World, tensors: tuple[int, int], ranges: dict[str, Any]) -> None:
    """api §3.5: divisibility, existence, equal lengths and counts, tnpl ≤ ``num_tensors``, else LX (D33)."""
    with refused(LX):
        moved(world, tensors, **ranges)


def test_tnpl_two_may_exceed_the_tensors(world: World) -> None:
    """api §3.5: only a tnpl other than the default 2 that exceeds the local ``num_tensors`` is LX."""
    assert moved(world, (1, 1), tensor_num_per_layer=2) == {0: 0}
    with refused(LX):
        moved(type(world)(), (1, 1), tensor_num_per_layer=3)


@pytest.mark.parametrize("call", ["pull_blocks", "push_blocks", "push_cache"])
def test_the_same_rules_for_the_other_calls(world: World, call: str) -> None:
    """api §3.5: layers and tnpl mean the same in every call."""
    prompt, decoder = world.pair(remote=True)
    blocks = call != "push_cache"
    desc = CacheDesc(6, (2, 32), "DT_UINT8")
    if blocks:
        theirs = prompt.allocate_blocks_cache(desc, BlocksCacheKey(1))
        ours = decoder.allocate_blocks_cache(desc)
    else:
        theirs, ours = prompt.allocate_cache(desc), decoder.allocate_cache(desc)
    prompt.fill(theirs, 1)
    decoder.fill(ours, 2)
    target, origin = (
        ((decoder, ours), (prompt, theirs)) if call == "pull_blocks" else ((prompt, theirs), (decoder, ours))
    )
    before, source = target[0].contents(target[1]), origin[0].contents(origin[1])
    arguments: tuple[Any, ...] = (BlocksCacheKey(1), ours, [0], [0]) if blocks else (by_id(theirs), ours)
    decoder.call(call, *arguments, src_layer_range=range(1, 2), dst_layer_range=range(1), tensor_num_per_layer=3)
    expected = [source[number + 3][:32] + before[number][32:] for number in range(3)] + before[3:]
    assert target[0].contents(target[1]) == expected
    for ranges in (
        {"src_layer_range": range(3, 4), "dst_layer_range": range(1)},
        {"src_layer_range": range(1), "dst_layer_range": range(3, 4)},
        {"src_layer_range": range(1)},
        {"dst_layer_range": range(1)},
        {"tensor_num_per_layer": 7},
        {"src_layer_range": range(1), "dst_layer_range": range(1), "tensor_num_per_layer": 4},
    ):
        with refused(LX):
            decoder.call(call, *arguments, **ranges)
    assert target[0].contents(target[1]) == expected


def test_large_blocks_and_slots(world: World) -> None:
    """api §3.5: sizes that are no multiple of a page, and larger than one."""
    prompt, decoder = world.pair()
    size = 3 * 4096 + 17
    theirs = prompt.fill(prompt.allocate_cache(c_desc(3, size, 2)), 1)
    ours = decoder.allocate_cache(c_desc(2, size, 2))
    decoder.pull_cache(by_id(theirs, 2), ours, 1)
    expected = [pattern(1, tensor, 3 * size)[2 * size :] for tensor in range(2)]
    assert slot_of(decoder, ours, 1, size) == expected
    blocks = decoder.allocate_blocks_cache(CacheDesc(2, (20, 1000), "DT_UINT8"))
    order = [19, 3, 7, 0, 1, 2, 9, 8, 5, 18, 4, 6, 10]
    decoder.pull_blocks(by_id(theirs, 2), blocks, (), order)
    for content, slot in zip(decoder.contents(blocks), expected, strict=True):
        there = b"".join(content[1000 * block : 1000 * block + 1000] for block in order)
        assert there[:size] == slot


def test_an_id_that_is_a_bool_is_a_number(world: World) -> None:
    """api §3.5: ids are integers, and ``True`` is 1 (§2.1)."""
    prompt, decoder = world.pair()
    prompt.allocate_cache(c_desc())
    decoder.pull_cache(CacheKeyByIdAndIndex(True, True, False), decoder.allocate_cache(c_desc()))
