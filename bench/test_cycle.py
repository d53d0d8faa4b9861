"""The life of a cache from Python: allocate and bind, let the key go, deallocate (seed §1-§4), beside plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
from comparison import Comparer, Target
from dictionary_manager import Descriptor, DictionaryCache, DictionaryManager, Key
from nodes import link, node

from llmdd import Cache, CacheDesc, CacheKey, CacheManager, DataType, LLMRole

OWNER, PULLER = 1, 2
PAGE_SHIFT = 10
ROUNDS = 31
FIRST_LIVE_REQ_ID = 1_000  # above the keys of the cycles
PULL_TARGET = Target(max_ns=3_000)
BATCH_TARGET = Target(max_ns=15_000)


@dataclass
class Shape:
    """What one cycle allocates; each batch slot has 1 KiB in each tensor."""

    num_tensors: int
    batch_size: int
    cycles_per_round: int

    @property
    def dimensions(self) -> tuple[int, int]:
        return self.batch_size, 1 << PAGE_SHIFT

    @property
    def bytes(self) -> int:
        return self.num_tensors * self.batch_size << PAGE_SHIFT


SMALL = Shape(num_tensors=1, batch_size=1, cycles_per_round=2_000)
LARGE = Shape(num_tensors=80, batch_size=64, cycles_per_round=4)


class Subject:
    """Two linked nodes of llmdd; the first holds `live` caches, each with a key."""

    def __init__(self, stack: ExitStack, shape: Shape, live: int) -> None:
        memory_size = (live << PAGE_SHIFT) + 2 * shape.bytes
        owner = stack.enter_context(node(LLMRole.PROMPT, OWNER, memory_size, PAGE_SHIFT))
        puller = stack.enter_context(node(LLMRole.DECODER, PULLER, shape.bytes, PAGE_SHIFT))
        assert owner.listen_address is not None
        link(puller, OWNER, owner.listen_address)
        self.shape = shape
        self.live = live
        self.owner: CacheManager = owner.cache_manager
        self.puller: CacheManager = puller.cache_manager
        live_desc = CacheDesc(1, (1, 1 << PAGE_SHIFT), DataType.DT_INT8)
        for number in range(live):
            self.owner.allocate_cache(live_desc, [CacheKey(OWNER, FIRST_LIVE_REQ_ID + number)])
        self.desc = CacheDesc(shape.num_tensors, shape.dimensions, DataType.DT_INT8)
        self.keys = [CacheKey(OWNER, req_id) for req_id in range(shape.batch_size)]
        self.target = self.puller.allocate_cache(self.desc)

    def pull_release_cycles(self) -> None:
        allocate, pull, deallocate = self.owner.allocate_cache, self.puller.pull_cache, self.owner.deallocate_cache
        desc, keys, target = self.desc, self.keys, self.target
        for _ in range(self.shape.cycles_per_round):
            cache = allocate(desc, keys)
            for batch_index, key in enumerate(keys):
                pull(key, target, batch_index)
            deallocate(cache)

    def remove_key_cycles(self) -> None:
        allocate, remove, deallocate = (
            self.owner.allocate_cache,
            self.owner.remove_cache_key,
            self.owner.deallocate_cache,
        )
        desc, keys = self.desc, self.keys
        for _ in range(self.shape.cycles_per_round):
            cache = allocate(desc, keys)
            for key in keys:
                remove(key)
            deallocate(cache)

    def verify(self, cycles: int) -> None:
        """Every cycle made a cache, none is left, and what a pull copies is what was there."""
        cache: Cache = self.owner.allocate_cache(self.desc, self.keys)
        assert cache.cache_id == self.live + cycles + 1, f"{cycles} cycles made {cache.cache_id - self.live - 1} caches"
        for number, tensor in enumerate(cache.tensors):
            tensor[:] = self._contents(number)
        del tensor  # it pins the cache
        for batch_index, key in enumerate(self.keys):
            assert self.owner.lookup(key) is not None
            self.puller.pull_cache(key, self.target, batch_index)
        for number, tensor in enumerate(self.target.tensors):
            assert np.array_equal(tensor, self._contents(number))
        self.owner.deallocate_cache(cache)
        assert self.owner.live_caches == self.owner.live_keys == self.live
        assert self.owner.pool_usage().free_bytes == 2 * self.shape.bytes
        self.owner.check()
        self.puller.check()

    def _contents(self, tensor: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
        batch_indices = np.arange(self.shape.batch_size)[:, None]
        return np.broadcast_to((batch_indices + tensor) % 127, self.shape.dimensions).astype(np.int8)


class Baseline:
    """Two dictionary managers with the same caches."""

    def __init__(self, shape: Shape, live: int) -> None:
        page_bytes = 1 << PAGE_SHIFT
        self.owner = DictionaryManager(OWNER, (live << PAGE_SHIFT) + 2 * shape.bytes, page_bytes)
        self.puller = DictionaryManager(PULLER, shape.bytes, page_bytes)
        self.puller.peers[OWNER] = self.owner
        self.shape = shape
        self.live = live
        live_descriptor = Descriptor(1, (1, page_bytes), 1)
        for number in range(live):
            self.owner.allocate_cache(live_descriptor, [Key(OWNER, FIRST_LIVE_REQ_ID + number)])
        self.descriptor = Descriptor(shape.num_tensors, shape.dimensions, 1)
        self.keys = [Key(OWNER, req_id) for req_id in range(shape.batch_size)]
        self.target = self.puller.allocate_cache(self.descriptor)

    def pull_release_cycles(self) -> None:
        allocate, pull, deallocate = self.owner.allocate_cache, self.puller.pull_cache, self.owner.deallocate_cache
        descriptor, keys, target = self.descriptor, self.keys, self.target
        for _ in range(self.shape.cycles_per_round):
            cache = allocate(descriptor, keys)
            for batch_index, key in enumerate(keys):
                pull(key, target, batch_index)
            deallocate(cache)

    def remove_key_cycles(self) -> None:
        allocate, remove, deallocate = (
            self.owner.allocate_cache,
            self.owner.remove_cache_key,
            self.owner.deallocate_cache,
        )
        descriptor, keys = self.descriptor, self.keys
        for _ in range(self.shape.cycles_per_round):
            cache = allocate(descriptor, keys)
            for key in keys:
                remove(key)
            deallocate(cache)

    def verify(self, cycles: int) -> None:
        cache = self.owner.allocate_cache(self.descriptor, self.keys)
        assert cache.cache_id == self.live + cycles + 1, f"{cycles} cycles made {cache.cache_id - self.live - 1} caches"
        for number in range(self.shape.num_tensors):
            for batch_index in range(self.shape.batch_size):
                self._slot(self.owner, cache, number, batch_index)[:] = (number + batch_index) % 251
        for batch_index, key in enumerate(self.keys):
            self.puller.pull_cache(key, self.target, batch_index)
        for number in range(self.shape.num_tensors):
            for batch_index in range(self.shape.batch_size):
                pulled = self._slot(self.puller, self.target, number, batch_index)
                assert np.all(pulled == (number + batch_index) % 251)
        self.owner.deallocate_cache(cache)
        assert self.owner.live_caches == self.live
        self.owner.check()
        self.puller.check()

    def _slot(
        self, manager: DictionaryManager, cache: DictionaryCache, tensor: int, batch_index: int
    ) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        begin = cache.places[tensor] + batch_index * cache.descriptor.slot_bytes
        return np.frombuffer(manager.memory[begin : begin + cache.descriptor.slot_bytes], np.uint8)


@dataclass
class Managers:
    subject: Subject
    baseline: Baseline
    description: str


@pytest.fixture(
    params=[(SMALL, 0), (SMALL, 1_000), (SMALL, 100_000), (LARGE, 0)],
    ids=["0_live", "1_000_live", "100_000_live", "64_keys_80_tensors"],
)
def managers(request: pytest.FixtureRequest) -> Iterator[Managers]:
    shape, live = request.param
    with ExitStack() as stack:
        subject, baseline = Subject(stack, shape, live), Baseline(shape, live)
        yield Managers(subject, baseline, f"{live:,} live" if shape is SMALL else "64 keys, 80 tensors")


@pytest.mark.parametrize("release", ["pull", "remove"])
def test_cycle(compare: Comparer, managers: Managers, release: str) -> None:
    subject, baseline = managers.subject, managers.baseline
    rounds_run = 0

    def count_round() -> None:
        nonlocal rounds_run
        rounds_run += 1

    def verify() -> None:
        cycles = rounds_run * subject.shape.cycles_per_round
        subject.verify(cycles)
        baseline.verify(cycles)

    small = subject.shape is SMALL
    compare(
        f"cycle with {release}, {managers.description}",
        subject.pull_release_cycles if release == "pull" else subject.remove_key_cycles,
        baseline.pull_release_cycles if release == "pull" else baseline.remove_key_cycles,
        baseline_name="dictionaries",
        prepare=count_round,
        verify=verify,
        operations=subject.shape.cycles_per_round,
        rounds=ROUNDS,
        bytes_moved=subject.shape.bytes if release == "pull" else 0,
        target={("pull", True): PULL_TARGET, ("remove", False): BATCH_TARGET}.get((release, small)),
    )
