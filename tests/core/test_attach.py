"""Attaching a peer's segments: what is not exactly an arena of this version is refused, by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llmdd import LAYOUT_VERSION, SPEC_CHECKSUM, CacheDesc, CacheKey, DataType, LLMException, LLMStatusCode
from llmdd._core.peer import PeerArena

DESC = CacheDesc(1, (1, 64), DataType.DT_INT8)


@pytest.fixture
def owner(make_store: Any) -> Any:
    return make_store(1, device_pool=(1 << 16, 12), slot_capacity=64, key_capacity=1024)


@pytest.fixture
def segments(owner: Any, copy_segments: Any) -> Any:
    return copy_segments(owner)


def assert_refused(attach: Callable[[], object], *fragments: str) -> None:
    with pytest.raises(ValueError) as refused:
        attach()
    for fragment in fragments:
        assert fragment in str(refused.value)


def test_an_arena_left_as_it_was_is_attached(owner: Any, copy_segments: Any, make_store: Any) -> None:
    cache = owner.allocate_cache(DESC, [CacheKey(1, 5)])
    cache.tensors[0][:] = 5
    puller = make_store(2)
    arena = copy_segments(owner).attach()
    assert arena.remote_accessible is False
    puller.peers = {1: arena}
    ours = puller.allocate_cache(DESC)
    puller.pull_cache(CacheKey(1, 5), ours)
    assert (ours.tensors[0] == 5).all()
    # What was pulled was a copy: the owner knows nothing of it.
    assert owner.lookup(CacheKey(1, 5)) is not None


def test_another_layout_version_is_refused(segments: Any) -> None:
    segments.header.layout_version = LAYOUT_VERSION + 1
    assert_refused(segments.attach, "layout", f"version {LAYOUT_VERSION + 1}", f"this process has {LAYOUT_VERSION}")


def test_another_spec_is_refused(segments: Any) -> None:
    theirs = int(SPEC_CHECKSUM, 16) ^ 1
    segments.header.spec_checksum = theirs
    assert_refused(segments.attach, "spec", f"{theirs:016x}", SPEC_CHECKSUM)


def test_what_is_no_arena_is_refused(segments: Any) -> None:
    segments.header.magic = b"llmdd-kV"
    assert_refused(segments.attach, "does not begin like an llmdd arena")
    segments.contents[0][:] = bytes(len(segments.contents[0]))
    assert_refused(segments.attach, "does not begin like an llmdd arena")


def test_segments_that_can_shrink_are_refused(segments: Any) -> None:
    segments.sealed = False
    assert_refused(segments.attach, "control segment is not sealed against shrinking")


@pytest.mark.parametrize(("which", "name"), [(0, "control"), (1, "references"), (2, "pool")])
@pytest.mark.parametrize("change", [-4096, 4096])
def test_segments_of_another_size_are_refused(segments: Any, which: int, name: str, change: int) -> None:
    content = segments.contents[which]
    segments.contents[which] = content[:change] if change < 0 else content + bytes(change)
    assert_refused(segments.attach, name, str(len(content)), str(len(content) + change))


@pytest.mark.parametrize("name", ["control_bytes", "references_bytes"])
@pytest.mark.parametrize("size", [0, 1, 4096, 2**44 + 1, 2**63, 2**64 - 1])
def test_a_description_that_lies_is_refused(segments: Any, name: str, size: int) -> None:
    segments.description[name] = size
    assert_refused(segments.attach)


@pytest.mark.parametrize("name", ["control_bytes", "references_bytes"])
def test_a_description_and_a_segment_that_lie_alike_are_refused(segments: Any, name: str) -> None:
    segments.description[name] += 4096
    segments.contents[["control_bytes", "references_bytes"].index(name)] += bytes(4096)
    assert_refused(segments.attach, "not as large as its header says")


def test_missing_segments_are_refused(segments: Any) -> None:
    fds = segments.fds()
    for count, complaint in ((0, "0 segments"), (1, "1 segments"), (2, "0 pool segments")):
        assert_refused(lambda count=count: PeerArena(segments.description, fds[:count], 0, os.getpid()), complaint)
    assert_refused(lambda: PeerArena(segments.description, [*fds, fds[2]], 0, os.getpid()), "2 pool segments")


@pytest.mark.parametrize("peer_bit", [-1, 1024, 2**31, 2**40])
def test_a_pin_bit_that_cannot_be_is_refused(segments: Any, peer_bit: int) -> None:
    assert_refused(lambda: segments.attach(peer_bit), f"peer_bit is {peer_bit}")


@pytest.mark.parametrize(
    "name",
    [
        "slot_capacity",
        "index_capacity",
        "index_offset",
        "slots_offset",
        "registrations_offset",
        "records_offset",
        "record_capacity",
        "reference_slots_offset",
        "more_pins_offset",
        "words_offset",
        "word_capacity",
    ],
)
@pytest.mark.parametrize("value", [0, 1, 2**20, 2**32, 2**32 + 1, 2**62, 2**63, 2**64 - 1])
def test_a_header_that_points_elsewhere_is_refused(segments: Any, name: str, value: int) -> None:
    setattr(segments.header, name, value)
    assert_refused(segments.attach, "the peer's arena cannot be used")


@pytest.mark.parametrize("level", range(4))
def test_a_header_whose_bitmaps_lie_elsewhere_is_refused(segments: Any, level: int) -> None:
    segments.header.released_offsets[level] += 8
    assert_refused(segments.attach, "contradicts itself")


@pytest.mark.parametrize(
    ("configured", "size", "shift", "pages"),
    [
        (0, 1 << 16, 12, 16),
        (1, 0, 12, 16),
        (1, 2**64 - 1, 0, 16),
        (1, 2**64 - 1, 12, 2**64 - 1),
        (1, 2**63, 10, 16),
        (1, 1 << 16, 41, 16),
        (1, 1 << 16, 63, 16),
        (1, 1 << 16, 12, 2**63),
        (1, 1 << 20, 12, 256),
        (2**64 - 1, 2**44, 12, 2**32),
    ],
)
def test_a_header_with_another_pool_is_refused(
    segments: Any, configured: int, size: int, shift: int, pages: int
) -> None:
    pool = segments.header.pools[1]
    pool.configured, pool.bytes, pool.page_shift, pool.tree.pages = configured, size, shift, pages
    assert_refused(segments.attach)


def test_the_descriptors_may_be_closed_after_attaching(owner: Any, make_store: Any, copy_segments: Any) -> None:
    owner.allocate_cache(DESC, [CacheKey(1, 5)])
    segments = copy_segments(owner)
    puller = make_store(2)
    puller.peers = {1: segments.attach()}
    segments.close()
    puller.pull_cache(CacheKey(1, 5), puller.allocate_cache(DESC))


def test_transfers_through_an_arena_broken_off_or_detached_are_refused(
    owner: Any, make_store: Any, attach: Any
) -> None:
    puller = make_store(2)
    ours = puller.allocate_cache(DESC)
    owner.allocate_cache(DESC, [CacheKey(1, 5)])
    for end in (PeerArena.break_off, lambda arena: arena.detach(1000)):
        arena = attach(puller, owner)
        end(arena)
        with pytest.raises(LLMException) as refused:
            puller.pull_cache(CacheKey(1, 5), ours)
        assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
        assert owner.lookup(CacheKey(1, 5)) is not None
    assert arena.detach(0) is True


@pytest.mark.parametrize("size", [64, 1 << 20])
def test_a_transfer_that_waits_for_the_index_to_rest_can_be_broken_off(
    make_store: Any, copy_segments: Any, size: int
) -> None:
    """As after an owner that died in the middle of a change. Whoever breaks off must not be kept from it meanwhile."""
    segments = copy_segments(make_store(1, slot_capacity=64, key_capacity=1024))
    segments.header.index_version = 1
    arena = segments.attach()
    puller = make_store(2, device_pool=(1 << 21, 12), timeout_ms=20_000)
    other = make_store(3, timeout_ms=1)
    puller.peers = other.peers = {1: arena}
    ours = puller.allocate_cache(CacheDesc(1, (1, size), DataType.DT_INT8))
    refusals: list[LLMStatusCode] = []

    def pull(store: Any, cache: Any) -> LLMStatusCode:
        with pytest.raises(LLMException) as refused:
            store.pull_cache(CacheKey(1, 5), cache)
        return refused.value.status_code

    thread = threading.Thread(target=lambda: refusals.append(pull(puller, ours)))
    thread.start()
    others = other.allocate_cache(DESC)
    while pull(other, others) is not LLMStatusCode.LLM_LINK_BUSY:
        assert not refusals
    arena.break_off()
    thread.join()
    assert refusals == [LLMStatusCode.LLM_NOT_YET_LINK]
    assert arena.detach(0) is True
