"""Readers that are evicted while they stand still: their memory goes back, and what they may still touch does not."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from arena_layout import StillPeer
from closed_memory import forbid_process_memory

from llmdd import CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType, LLMException, LLMStatusCode
from llmdd._core.peer import PeerArena

PAGE = 4096
DESC = CacheDesc(2, (1, PAGE), DataType.DT_INT8)
KEY = CacheKey(1, 5)

# So many keys of so many tensors that their bits lie outside of the slot.
BATCH, TENSORS = 100, 40
BATCHED = CacheDesc(TENSORS, (BATCH, 8), DataType.DT_INT8)
WORDS = (BATCH + 31) // 32 + BATCH * ((TENSORS + 31) // 32)
SLOT_CAPACITY, KEY_CAPACITY = 64, 1024


@pytest.fixture
def owner(make_store: Any) -> Any:
    return make_store(1, slot_capacity=SLOT_CAPACITY, key_capacity=KEY_CAPACITY)


@pytest.fixture
def make_peer(owner: Any) -> Iterator[Callable[..., StillPeer]]:
    """Peers of the owner, each with the next free pin bit."""
    peers: list[StillPeer] = []

    def make() -> StillPeer:
        peers.append(StillPeer(owner, owner.admit_peer()))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def drop(owner: Any, cache: Any, *keys: CacheKey) -> None:
    owner.deallocate_cache(cache)
    for key in keys:
        owner.remove_cache_key(key)


def is_free(owner: Any) -> bool:
    owner.check()
    usage = owner.pool_usage()
    return usage.free_bytes == usage.total_bytes and owner.live_caches == owner.live_keys == 0


def allocate_all(owner: Any) -> int:
    """In how many slots a cache can live now."""
    caches = []
    while True:
        try:
            caches.append(owner.allocate_cache(DESC))
        except LLMException as refused:
            assert refused.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
            break
    for cache in caches:
        owner.deallocate_cache(cache)
    return len(caches)


@pytest.mark.parametrize("end", ["the reader goes on", "the reader dies"])
def test_memory_returns_at_once_and_the_slot_when_nobody_reads(owner: Any, make_peer: Any, end: str) -> None:
    reader = make_peer()
    cache = owner.allocate_cache(DESC, [KEY])
    reader.pin(0)
    drop(owner, cache, KEY)
    assert owner.live_caches == 1, "a reader holds what it reads"
    assert owner.evict_peer(reader.peer_bit) == 1
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 1, "the slot is kept from others"
    owner.check()
    if end == "the reader goes on":
        assert reader.has_pinned(0), "its bit is its own"
        reader.unpin(0)
    else:
        owner.dismiss_peer(reader.peer_bit)
        assert not reader.has_pinned(0)
    assert owner.admitted_peers == (end == "the reader goes on")
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY
    owner.check()


def test_a_mark_while_the_reader_reads_ends_no_quarantine(owner: Any, make_peer: Any) -> None:
    reader, other = make_peer(), make_peer()
    cache = owner.allocate_cache(DESC)
    reader.pin(0)
    owner.deallocate_cache(cache)
    owner.evict_peer(reader.peer_bit)
    other.pin(0)  # one who comes by a stale hint, and goes at once
    other.unpin(0)
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 1
    reader.unpin(0)
    assert allocate_all(owner) == SLOT_CAPACITY


def test_a_writer_holds_what_it_writes_to_until_it_is_dismissed(owner: Any, make_peer: Any) -> None:
    writer = make_peer()
    cache = owner.allocate_cache(DESC, [KEY])
    writer.pin(0, writing=True)
    drop(owner, cache, KEY)
    assert owner.evict_peer(writer.peer_bit) == 0
    usage = owner.pool_usage()
    assert owner.live_caches == 1 and usage.total_bytes - usage.free_bytes == 2 * PAGE
    owner.check()
    owner.dismiss_peer(writer.peer_bit)
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY


def test_a_writer_that_is_evicted_and_ends(owner: Any, make_peer: Any) -> None:
    writer = make_peer()
    cache = owner.allocate_cache(DESC)
    writer.pin(0, writing=True)
    owner.deallocate_cache(cache)
    owner.evict_peer(writer.peer_bit)
    assert owner.live_caches == 1
    writer.unpin(0, writing=True)
    assert is_free(owner)


def test_other_readers_and_views_hold_on(owner: Any, make_peer: Any) -> None:
    frozen, slow = make_peer(), make_peer()
    cache = owner.allocate_cache(DESC)
    for reader in (frozen, slow):
        reader.pin(0)
    tensors = cache.tensors
    owner.deallocate_cache(cache)
    assert owner.evict_peer(frozen.peer_bit) == 1
    assert owner.live_caches == 1
    slow.unpin(0)
    assert owner.live_caches == 1
    owner.check()
    del tensors
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 1


def test_an_evicted_reader_that_goes_on_holds_nothing(owner: Any, make_peer: Any) -> None:
    """It has not noticed yet that its link is down, and begins to read what is there."""
    reader = make_peer()
    assert owner.evict_peer(reader.peer_bit) == 0
    cache = owner.allocate_cache(DESC, [KEY])
    reader.pin(0)
    assert owner.evict_peer(reader.peer_bit) == 1, "it reads, and evicting it again changes nothing"
    assert owner.lookup(KEY) is not None
    drop(owner, cache, KEY)
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 1


def test_whoever_has_the_bit_next_holds_what_it_reads(owner: Any, make_peer: Any) -> None:
    reader = make_peer()
    owner.evict_peer(reader.peer_bit)
    assert owner.admit_peer() != reader.peer_bit, "an evicted peer's bit is given to nobody"
    owner.dismiss_peer(reader.peer_bit)
    assert owner.admit_peer() == reader.peer_bit
    cache = owner.allocate_cache(DESC)
    reader.pin(0)
    owner.deallocate_cache(cache)
    assert owner.live_caches == 1
    reader.unpin(0)
    assert is_free(owner)


def test_only_who_was_admitted_can_be_evicted(owner: Any) -> None:
    for peer_bit in (0, 1024):
        with pytest.raises(ValueError, match="given to nobody"):
            owner.evict_peer(peer_bit)
    reader = owner.admit_peer()
    owner.close()
    assert owner.evict_peer(reader) == 0


@pytest.mark.parametrize("peer_bit", [63, 64, 1023])
def test_every_peer_can_be_evicted(owner: Any, make_peer: Any, peer_bit: int) -> None:
    before = [owner.admit_peer() for _ in range(peer_bit)]
    peer = make_peer()
    cache = owner.allocate_cache(DESC)
    peer.pin(0)
    owner.deallocate_cache(cache)
    assert owner.live_caches == 1
    assert [owner.evict_peer(other) for other in before] == [0] * peer_bit
    assert owner.live_caches == 1
    assert owner.evict_peer(peer_bit) == 1
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 1
    owner.dismiss_peer(peer_bit)
    assert allocate_all(owner) == SLOT_CAPACITY


def test_a_key_all_of_whose_tensors_were_transferred_goes_with_the_reader(owner: Any, make_peer: Any) -> None:
    """It stands still between the last tensor's bit and the key's."""
    reader = make_peer()
    cache = owner.allocate_cache(DESC, [KEY])
    owner.deallocate_cache(cache)
    reader.pin(0)
    reader.transfer_every_tensor(0, 1, 2)
    assert owner.lookup(KEY) is not None
    assert owner.evict_peer(reader.peer_bit) == 1
    assert owner.lookup(KEY) is None
    assert is_free(owner)


def test_a_key_that_was_not_transferred_stays(owner: Any, make_peer: Any) -> None:
    reader = make_peer()
    cache = owner.allocate_cache(DESC, [KEY])
    cache.tensors[0][:] = 7
    owner.deallocate_cache(cache)
    reader.pin(0)
    assert owner.evict_peer(reader.peer_bit) == 1
    assert (owner.live_caches, owner.live_keys) == (1, 1)
    owner.check()
    reader.unpin(0)
    owner.remove_cache_key(KEY)
    assert is_free(owner)


def test_words_outside_the_slot_are_kept_from_others(owner: Any, make_peer: Any) -> None:
    """Another tenant's words there might have the same generation: the reader would take its keys."""
    keys = [CacheKey(1, number) for number in range(BATCH)]
    reader = make_peer()
    cache = owner.allocate_cache(BATCHED, keys)
    before = reader.words_offset(0)
    reader.pin(0)
    drop(owner, cache, *keys)
    owner.evict_peer(reader.peer_bit)
    assert is_free(owner)
    left = reader.words(0, WORDS)
    other_keys = [[CacheKey(1, 1000 * number + i) for i in range(BATCH)] for number in (1, 2)]
    others = [owner.allocate_cache(BATCHED, its_keys) for its_keys in other_keys]
    owner.check()
    assert reader.words(0, WORDS) == left, "nobody has written there"
    assert all(abs(reader.words_offset(slot) - before) >= 8 * WORDS for slot in (1, 2))
    assert {word >> 32 for word in left} == {0}, "and slot 1 is in the same generation"
    for other, its_keys in zip(others, other_keys, strict=True):
        drop(owner, other, *its_keys)
    reader.unpin(0)
    assert is_free(owner)
    again = owner.allocate_cache(BATCHED, keys)
    assert reader.words_offset(0) == before
    drop(owner, again, *keys)
    assert is_free(owner)


def test_a_quarantine_costs_no_page_and_ends_for_each_slot_by_itself(owner: Any, make_peer: Any) -> None:
    reader, other = make_peer(), make_peer()
    for slot in range(3):
        (reader if slot < 2 else other).pin(slot)
    caches = [owner.allocate_cache(DESC) for _ in range(3)]
    for cache in caches:
        owner.deallocate_cache(cache)
    assert owner.live_caches == 3
    assert owner.evict_peer(reader.peer_bit) == 2
    assert owner.live_caches == 1
    assert owner.evict_peer(other.peer_bit) == 1
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY - 3
    reader.unpin(1)
    assert allocate_all(owner) == SLOT_CAPACITY - 2
    owner.dismiss_peer(other.peer_bit)
    assert allocate_all(owner) == SLOT_CAPACITY - 1
    owner.dismiss_peer(reader.peer_bit)
    assert allocate_all(owner) == SLOT_CAPACITY
    owner.check()


# -------------------------------------------------------------------------------------- a reader in the midst of a copy


class SlowCourier:
    """Fetches for a transfer, which stands still meanwhile for as long as the test likes."""

    def __init__(self, fill: int) -> None:
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self._fill = fill

    def fetch(self, slot: int, generation: int, tensor: int, offset: int, size: int, timeout_s: float) -> bytes:
        self.asked.set()
        assert self.may_answer.wait(20)
        return bytes([self._fill]) * size

    def store(self, *arguments: object) -> None:
        self.fetch(*arguments[:4], 0, 0)  # type: ignore[arg-type]


class Standstill:
    """A transfer that stands still in the middle of its copy, until it is told to go on."""

    def __init__(self, arena: PeerArena, transfer: Callable[[], object]) -> None:
        self.courier = SlowCourier(7)
        arena.courier = self.courier
        self.code: LLMStatusCode | None = None
        self._transfer = transfer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.courier.asked.wait(20)

    def _run(self) -> None:
        forbid_process_memory()  # in this thread only: so the courier is asked
        try:
            self._transfer()
            self.code = LLMStatusCode.LLM_SUCCESS
        except LLMException as refused:
            self.code = refused.status_code

    def go_on(self) -> LLMStatusCode | None:
        self.courier.may_answer.set()
        self._thread.join()
        return self.code


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """A process that is not this one, for the owner's memory to be registered in."""
    process = subprocess.Popen(["sleep", "infinity"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def registered() -> np.ndarray:
    return np.full((1, 64), 3, np.int8)


@pytest.mark.parametrize("meanwhile", ["unregistered", "unregistered, slots asked for", "still there", "too late"])
def test_a_reader_that_goes_on_after_its_eviction(
    owner: Any, make_store: Any, elsewhere: int, registered: np.ndarray, meanwhile: str
) -> None:
    puller = make_store(2, timeout_ms=5000 if meanwhile != "too late" else 100)
    reader = owner.admit_peer()
    arena = PeerArena(*owner.export(), reader, elsewhere)
    puller.peers = {1: arena}
    desc = CacheDesc(1, (1, 64), DataType.DT_INT8)
    theirs = owner.register_cache(desc, [registered.ctypes.data], [KEY])
    ours = puller.allocate_cache(desc)
    reading = Standstill(arena, lambda: puller.pull_cache(KEY, ours))
    if meanwhile == "still there":
        assert owner.evict_peer(reader) == 1
        assert reading.go_on() is LLMStatusCode.LLM_SUCCESS, "nothing of the cache has changed"
        assert (ours.tensors[0] == 7).all()
        assert owner.lookup(KEY) is not None
        owner.unregister_cache(theirs.cache_id)
        assert is_free(owner)
        return
    owner.evict_peer(reader)
    owner.unregister_cache(theirs.cache_id)  # which does not wait for the reader
    assert is_free(owner)
    successors = []
    if meanwhile == "unregistered, slots asked for":
        successors = [owner.allocate_cache(DESC, [CacheKey(1, number)]) for number in range(SLOT_CAPACITY - 1)]
    # Also where its time is up: that the link is lost is what it must know.
    assert reading.go_on() is LLMStatusCode.LLM_NOT_YET_LINK
    for number, successor in enumerate(successors):
        assert owner.lookup(CacheKey(1, number)) is not None
        drop(owner, successor, CacheKey(1, number))
    assert is_free(owner)
    assert allocate_all(owner) == SLOT_CAPACITY, "it has let go of the slot"
    puller.deallocate_cache(ours)
    puller.check()


def test_a_writer_that_goes_on_after_its_eviction(make_store: Any, elsewhere: int, registered: np.ndarray) -> None:
    owner = make_store(1, remote_accessible=True, slot_capacity=SLOT_CAPACITY, key_capacity=KEY_CAPACITY, timeout_ms=50)
    pusher = make_store(2, remote_accessible=True)
    writer = owner.admit_peer()
    arena = PeerArena(*owner.export(), writer, elsewhere)
    pusher.peers = {1: arena}
    desc = CacheDesc(1, (1, 64), DataType.DT_INT8)
    theirs = owner.register_cache(desc, [registered.ctypes.data], remote_accessible=True)
    ours = pusher.allocate_cache(desc)
    key = CacheKeyByIdAndIndex(1, theirs.cache_id)
    writing = Standstill(arena, lambda: pusher.push_cache(key, ours))
    assert owner.evict_peer(writer) == 0
    with pytest.raises(LLMException) as refused:
        owner.unregister_cache(theirs.cache_id)
    assert refused.value.status_code is LLMStatusCode.LLM_TIMEOUT, "its memory is still written to"
    assert owner.live_caches == 1
    assert writing.go_on() is LLMStatusCode.LLM_SUCCESS
    owner.unregister_cache(theirs.cache_id)
    assert is_free(owner)
