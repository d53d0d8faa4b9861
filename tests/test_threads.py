"""Public calls from many threads at once: every invariant holds, every reference is dropped once, nothing stays."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmdd import (
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    CacheManager,
    DataType,
    LLMClusterInfo,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
)

THREADS = 8
ROUNDS = 4000
PATIENCE_MS = 60_000
NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
FINALIZED = LLMStatusCode.LLM_ENGINE_FINALIZED


@pytest.fixture(autouse=True)
def threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def make_pair(make_datadist: Any, link: Any) -> Callable[..., tuple[LLMDataDist, LLMDataDist]]:
    """Two linked instances, clusters 1 and 2."""

    def make(**settings: Any) -> tuple[LLMDataDist, LLMDataDist]:
        settings = {"timeout_ms": PATIENCE_MS, "device_bytes": 8 << 20, **settings}
        one, two = make_datadist(1, **settings), make_datadist(2, **settings)
        link(two, one)
        return one, two

    return make


def all_at_once(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """What ``work(number)`` returns in each thread; they begin together."""
    start = threading.Barrier(threads)

    def run(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(run, number) for number in range(threads)]]


def outcome(call: Callable[..., object], *arguments: Any, **named: Any) -> LLMStatusCode:
    try:
        call(*arguments, **named)
    except LLMException as refused:
        return refused.status_code
    return LLMStatusCode.LLM_SUCCESS


def assert_entirely_free(manager: CacheManager) -> None:
    manager.check()
    usage = manager.pool_usage()
    assert (usage.free_bytes, manager.live_caches, manager.live_keys) == (usage.total_bytes, 0, 0)


def two_slots_like(cache: Cache) -> CacheDesc:
    """A description of two batch slots as large as the cache's."""
    desc = cache.cache_desc
    return CacheDesc(desc.num_tensors, (2, desc.shape[1]), DataType.DT_UINT8)


class Storm:
    """What eight threads do to two linked nodes, and what they may rightly see."""

    def __init__(self, managers: dict[int, CacheManager], remote: bool) -> None:
        self.managers = managers
        self.remote = remote
        self.numbers = itertools.count(100)
        # Filled and then published, so that who pulls knows what must be there.
        self.published: dict[int, list[tuple[int, Cache]]] = {cluster: [] for cluster in managers}
        self.outcomes: Counter[tuple[str, LLMStatusCode]] = Counter()

    def run(self, number: int) -> Counter[tuple[str, LLMStatusCode]]:
        source = random.Random(number)
        mine: dict[int, list[Cache]] = {cluster: [] for cluster in self.managers}
        seen: Counter[tuple[str, LLMStatusCode]] = Counter()
        steps = [self.allocate, self.allocate, self.deallocate, self.remove, self.look, self.transfer, self.transfer]
        steps += [self.copy, self.collide]
        for _ in range(ROUNDS):
            cluster = source.choice(list(self.managers))
            step = source.choice(steps)
            seen[step.__name__, step(source, cluster, mine[cluster])] += 1
        for cluster, caches in mine.items():
            for cache in caches:
                self.managers[cluster].deallocate_cache(cache)
        return seen

    def allocate(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        # Small transfers keep the interpreter's lock, large ones give it up.
        batch, tensors, slot_bytes = source.randint(1, 4), source.choice([1, 2, 40]), source.choice([64, 4096])
        numbers = [next(self.numbers) for _ in range(source.randint(0, batch))]
        desc = CacheDesc(tensors, (batch, slot_bytes), DataType.DT_UINT8)
        keys = [CacheKey(cluster, number) for number in numbers]
        try:
            cache = self.managers[cluster].allocate_cache(desc, keys)
        except LLMException as refused:
            assert refused.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
            return refused.status_code
        for tensor in cache.tensors:
            for slot in range(batch):
                tensor[slot] = numbers[slot] % 251 if slot < len(numbers) else 252
        self.published[cluster] += [(number, cache) for number in numbers]
        mine.append(cache)
        return LLMStatusCode.LLM_SUCCESS

    def collide(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        """All threads want the same few keys."""
        keys = [CacheKey(cluster, source.randrange(5)) for _ in range(2)]
        manager = self.managers[cluster]
        try:
            cache = manager.allocate_cache(CacheDesc(1, (2, 64), DataType.DT_UINT8), keys)
        except LLMException as refused:
            return refused.status_code
        manager.deallocate_cache(cache)
        if source.random() < 0.5:
            manager.remove_cache_key(keys[1])
        return LLMStatusCode.LLM_SUCCESS

    def deallocate(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        if mine:
            cache = mine.pop(source.randrange(len(mine)))
            for _ in range(source.choice([1, 1, 2])):
                self.managers[cluster].deallocate_cache(cache)
        return LLMStatusCode.LLM_SUCCESS

    def some_key(self, source: random.Random, cluster: int) -> tuple[int, Cache] | None:
        """One of the latest keys; it may be gone by now."""
        published = self.published[cluster]
        return published[-source.randint(1, min(64, len(published)))] if published else None

    def remove(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        found = self.some_key(source, cluster)
        number = source.randrange(5) if found is None or source.random() < 0.3 else found[0]
        self.managers[cluster].remove_cache_key(CacheKey(cluster, number))
        return LLMStatusCode.LLM_SUCCESS

    def look(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        found = self.some_key(source, cluster)
        if found is None:
            return NOT_EXIST
        number, cache = found
        where = self.managers[cluster].lookup(CacheKey(cluster, number))
        assert where is None or where.cache_id == cache.cache_id
        return NOT_EXIST if where is None else LLMStatusCode.LLM_SUCCESS

    def transfer(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        """Pull by key, or, in remote mode, by id and index, into a cache made for it."""
        other = 3 - cluster
        found = self.some_key(source, other)
        if found is None:
            return NOT_EXIST
        number, theirs = found
        manager = self.managers[cluster]
        key: CacheKey | CacheKeyByIdAndIndex = CacheKey(other, number)
        if self.remote:
            where = self.managers[other].lookup(key)
            if where is None:
                return NOT_EXIST
            key = where
        try:
            cache = manager.allocate_cache(two_slots_like(theirs))
        except LLMException as refused:
            assert refused.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
            return refused.status_code
        push = self.remote and source.random() < 0.3
        if push:
            # The one slot into which nobody wrote anything else is the key's own: its bytes stay what they are.
            for tensor in cache.tensors:
                tensor[:] = number % 251
            code = outcome(manager.push_cache, key, cache, source.randrange(2))
        else:
            code = outcome(manager.pull_cache, key, cache, batch_index=1)
        if code is LLMStatusCode.LLM_SUCCESS and not push:
            assert all((tensor[1] == number % 251).all() for tensor in cache.tensors)
        assert code in (LLMStatusCode.LLM_SUCCESS, NOT_EXIST), code
        manager.deallocate_cache(cache)
        return code

    def copy(self, source: random.Random, cluster: int, mine: list[Cache]) -> LLMStatusCode:
        if not mine:
            return LLMStatusCode.LLM_SUCCESS
        one = source.choice(mine)
        try:
            spare = self.managers[cluster].allocate_cache(two_slots_like(one))
        except LLMException as refused:
            assert refused.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
            return refused.status_code
        code = outcome(self.managers[cluster].copy_cache, spare, one)
        self.managers[cluster].deallocate_cache(spare)
        assert code is LLMStatusCode.LLM_SUCCESS
        return code

    def clear_away(self) -> None:
        for cluster, manager in self.managers.items():
            for number in [*range(5), *range(100, next(self.numbers))]:
                manager.remove_cache_key(CacheKey(cluster, number))


@pytest.mark.parametrize("remote", [False, True])
def test_a_storm_on_two_linked_nodes(make_pair: Any, remote: bool) -> None:
    one, two = make_pair(remote_accessible=remote, device_bytes=64 << 20)
    storm = Storm({1: one.cache_manager, 2: two.cache_manager}, remote)
    seen: Counter[tuple[str, LLMStatusCode]] = sum(all_at_once(storm.run), Counter())
    for manager in storm.managers.values():
        manager.check()
    storm.clear_away()
    for manager in storm.managers.values():
        assert_entirely_free(manager)
    # It was a storm.
    for step, code in (
        ("allocate", LLMStatusCode.LLM_SUCCESS),
        ("collide", LLMStatusCode.LLM_SUCCESS),
        ("collide", LLMStatusCode.LLM_PARAM_INVALID),
        ("transfer", LLMStatusCode.LLM_SUCCESS),
        ("look", LLMStatusCode.LLM_SUCCESS),
        ("look", NOT_EXIST),
    ):
        assert seen[step, code] > 10, (step, code, seen)


def test_a_storm_on_a_pool_that_is_too_small(make_pair: Any) -> None:
    one, two = make_pair(device_bytes=1 << 18)
    desc = CacheDesc(3, (2, 8192), DataType.DT_UINT8)

    def work(number: int) -> int:
        manager = (one, two)[number % 2].cache_manager
        refused = 0
        for round_number in range(ROUNDS):
            key = CacheKey(1, number * ROUNDS + round_number)
            caches = []
            for _ in range(6):
                try:
                    caches.append(manager.allocate_cache(desc, [] if caches else [key]))
                except LLMException as full:
                    assert full.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
                    refused += 1
            for cache in caches:
                manager.deallocate_cache(cache)
            manager.remove_cache_key(key)
        return refused

    assert sum(all_at_once(work)) > 0
    for datadist in (one, two):
        assert_entirely_free(datadist.cache_manager)


# ------------------------------------------------------------------------------------------------ one key, many threads


def test_of_many_pulls_of_one_key_over_one_link_one_is_carried_out(make_pair: Any) -> None:
    one, two = make_pair()
    desc = CacheDesc(2, (1, 4096), DataType.DT_UINT8)
    caches = [two.cache_manager.allocate_cache(desc) for _ in range(THREADS)]
    for number in range(50):
        owned = one.cache_manager.allocate_cache(desc, [CacheKey(1, number)])
        one.cache_manager.deallocate_cache(owned)
        codes = all_at_once(
            lambda thread, number=number: outcome(two.cache_manager.pull_cache, CacheKey(1, number), caches[thread])
        )
        assert Counter(codes) == {LLMStatusCode.LLM_SUCCESS: 1, NOT_EXIST: THREADS - 1}
        assert_entirely_free(one.cache_manager)


def test_pulls_of_one_key_over_several_links_all_get_the_same_bytes(make_datadist: Any, link: Any) -> None:
    owner = make_datadist(1, device_bytes=8 << 20, timeout_ms=PATIENCE_MS)
    pullers = [make_datadist(cluster, device_bytes=8 << 20, timeout_ms=PATIENCE_MS) for cluster in range(2, 6)]
    desc = CacheDesc(1, (1, 1 << 20), DataType.DT_UINT8)
    for puller in pullers:
        link(puller, owner)
    caches = [puller.cache_manager.allocate_cache(desc) for puller in pullers]
    for number in range(30):
        owned = owner.cache_manager.allocate_cache(desc, [CacheKey(1, number)])
        owned.tensors[0][:] = number
        owner.cache_manager.deallocate_cache(owned)
        codes = all_at_once(
            lambda thread, number=number: outcome(
                pullers[thread].cache_manager.pull_cache, CacheKey(1, number), caches[thread]
            ),
            len(pullers),
        )
        assert set(codes) <= {LLMStatusCode.LLM_SUCCESS, NOT_EXIST}
        assert LLMStatusCode.LLM_SUCCESS in codes
        for code, cache in zip(codes, caches, strict=True):
            if code is LLMStatusCode.LLM_SUCCESS:
                assert (cache.tensors[0] == number).all()
        assert_entirely_free(owner.cache_manager)


def test_layers_of_one_key_pulled_by_many_threads_drop_it_once(make_pair: Any) -> None:
    one, two = make_pair()
    desc = CacheDesc(2 * THREADS, (1, 64), DataType.DT_UINT8)
    cache = two.cache_manager.allocate_cache(desc)
    for number in range(50):
        owned = one.cache_manager.allocate_cache(desc, [CacheKey(1, number)])
        for index, tensor in enumerate(owned.tensors):
            tensor[:] = number + index
        del tensor
        one.cache_manager.deallocate_cache(owned)

        def pull_layer(thread: int, number: int = number) -> None:
            only = range(thread, thread + 1)
            two.cache_manager.pull_cache(CacheKey(1, number), cache, src_layer_range=only, dst_layer_range=only)

        all_at_once(pull_layer)
        assert [int(tensor[0, 63]) for tensor in cache.tensors] == [number + i for i in range(2 * THREADS)]
        assert_entirely_free(one.cache_manager)


def test_a_key_is_removed_and_pulled_at_once(make_pair: Any) -> None:
    one, two = make_pair()
    desc = CacheDesc(1, (1, 64), DataType.DT_UINT8)
    ours = two.cache_manager.allocate_cache(desc)
    for number in range(200):
        key = CacheKey(1, number)
        cache = one.cache_manager.allocate_cache(desc, [key])

        def drop(thread: int, key: CacheKey = key, cache: Cache = cache) -> LLMStatusCode:
            if thread == 0:
                return outcome(two.cache_manager.pull_cache, key, ours)
            if thread == 1:
                return outcome(one.cache_manager.deallocate_cache, cache)
            return outcome(one.cache_manager.remove_cache_key, key)

        codes = all_at_once(drop, 4)
        assert codes[0] in (LLMStatusCode.LLM_SUCCESS, NOT_EXIST)
        assert set(codes[1:]) == {LLMStatusCode.LLM_SUCCESS}
        assert_entirely_free(one.cache_manager)


def test_one_cache_deallocated_by_many_threads_goes_once(make_datadist: Any) -> None:
    manager = make_datadist(1).cache_manager
    desc = CacheDesc(1, (1, 4096), DataType.DT_UINT8)
    for _ in range(100):
        cache, other = manager.allocate_cache(desc), manager.allocate_cache(desc)
        all_at_once(lambda thread, cache=cache: manager.deallocate_cache(cache))
        assert manager.live_caches == 1
        manager.deallocate_cache(other)
        assert_entirely_free(manager)


def test_one_key_is_bound_by_one_of_many_threads(make_datadist: Any) -> None:
    manager = make_datadist(1).cache_manager
    desc = CacheDesc(1, (1, 64), DataType.DT_UINT8)
    for number in range(100):
        codes = all_at_once(lambda thread, number=number: outcome(manager.allocate_cache, desc, [CacheKey(1, number)]))
        assert Counter(codes) == {LLMStatusCode.LLM_SUCCESS: 1, LLMStatusCode.LLM_PARAM_INVALID: THREADS - 1}
    assert (manager.live_caches, manager.live_keys) == (100, 100)
    manager.check()


def test_memory_is_not_given_away_under_a_transfer(make_pair: Any) -> None:
    """While a cache is pulled its last reference goes, and another cache waits for its memory, to write into it."""
    size = 16 << 20
    one, two = make_pair(device_bytes=size)
    desc = CacheDesc(1, (1, size), DataType.DT_UINT8)
    ours = two.cache_manager.allocate_cache(desc)
    succeeded = 0
    for number in range(40):
        cache = one.cache_manager.allocate_cache(desc)
        cache.tensors[0][:] = number

        def replace(cache: Cache, delay: int) -> Cache:
            for _ in range(delay):
                assert one.cache_manager.live_caches == 1
            one.cache_manager.deallocate_cache(cache)
            while True:
                try:
                    successor = one.cache_manager.allocate_cache(desc)
                except LLMException as full:
                    assert full.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
                else:
                    successor.tensors[0][:] = 255
                    return successor

        def work(thread: int, cache: Cache = cache, number: int = number) -> LLMStatusCode | Cache:
            if thread == 0:
                key = CacheKeyByIdAndIndex(1, cache.cache_id)
                return outcome(two.cache_manager.pull_cache, key, ours)
            return replace(cache, 20 * number)

        pulled, successor = all_at_once(work, 2)
        assert pulled in (LLMStatusCode.LLM_SUCCESS, NOT_EXIST)
        if pulled is LLMStatusCode.LLM_SUCCESS:
            succeeded += 1
            assert (ours.tensors[0] == number).all()
        one.cache_manager.deallocate_cache(successor)
        assert_entirely_free(one.cache_manager)
    assert succeeded


# ------------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("which", ["owner", "puller"])
def test_calls_while_their_instance_is_finalized(make_datadist: Any, link: Any, which: str) -> None:
    """Each call is carried out or refused; from some moment on all are refused with the same word."""
    desc = CacheDesc(2, (1, 4096), DataType.DT_UINT8)
    config = {"device_bytes": 8 << 20, "timeout_ms": PATIENCE_MS}
    owner, puller = make_datadist(1, **config), make_datadist(2, **config)
    options = dict.fromkeys(("llm.EnableCacheManager",), "1")
    options |= {"llm.MemPoolConfig": '{"memory_size": 8388608}', "llm.listenIpInfo": "127.0.0.1:0"}
    ending, staying = (owner, puller) if which == "owner" else (puller, owner)
    for round_number in range(15):
        link(puller, owner)
        manager = ending.cache_manager
        busy = threading.Barrier(THREADS + 1)

        def work(
            thread: int,
            owned: CacheManager = owner.cache_manager,
            pulling: CacheManager = puller.cache_manager,
            ending_one: CacheManager = manager,
            begin: Callable[[], int] = busy.wait,
        ) -> LLMStatusCode:
            numbers = itertools.count(thread * 1_000_000)
            begin()
            while True:
                key = CacheKey(1, next(numbers))
                try:
                    cache = owned.allocate_cache(desc, [key])
                    cache.tensors[0][:] = thread
                    owned.deallocate_cache(cache)
                    ours = pulling.allocate_cache(desc)
                    pulling.pull_cache(key, ours)
                    assert (ours.tensors[0] == thread).all()
                    pulling.copy_cache(ours, pulling.allocate_cache(desc))
                    pulling.lookup(key)
                    pulling.remove_cache_key(key)
                    pulling.deallocate_cache(ours)
                    owned.check()
                    assert len(owned.pool_usage()) == 3
                except LLMException as refused:
                    if refused.status_code in (LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_OUT_OF_MEMORY):
                        # The one that ends has let go of the other, or both have filled up; it is not over yet.
                        if outcome(ending_one.check) is FINALIZED:
                            return FINALIZED
                        continue
                    return refused.status_code

        with ThreadPoolExecutor(THREADS) as pool:
            workers = [pool.submit(work, thread) for thread in range(THREADS)]
            busy.wait()
            for _ in range(round_number):
                owner.cache_manager.lookup(CacheKey(1, 1))
            ending.finalize()
            assert {worker.result() for worker in workers} == {FINALIZED}
        assert outcome(manager.allocate_cache, desc) is FINALIZED
        assert outcome(lambda: ending.cache_manager) is FINALIZED
        staying.finalize()
        owner.init(options)
        puller.init(options)
        assert (owner.cache_manager.live_caches, puller.cache_manager.live_caches) == (0, 0)


def test_an_instance_is_finalized_under_its_own_calls(make_datadist: Any, link: Any) -> None:
    """Each is answered, or refused with one word, whatever of the instance has gone by then."""
    other = make_datadist(9)
    for _ in range(10):
        ending = make_datadist(1, device_bytes=1 << 16)
        link(ending, other)
        unknown = LLMClusterInfo()
        unknown.remote_cluster_id = 404
        calls: list[Callable[[], object]] = [
            lambda ending=ending: ending.listen_address,
            lambda ending=ending: ending.cache_manager.live_caches,
            lambda ending=ending, unknown=unknown: ending.unlink_clusters([unknown], force=True),
            lambda ending=ending: ending.unlink(404),
            lambda ending=ending: ending.query_register_mem_status(404),
            lambda ending=ending: ending.switch_role(LLMRole.DECODER),
        ]

        def work(
            thread: int, ending: LLMDataDist = ending, calls: list[Callable[[], object]] = calls
        ) -> set[LLMStatusCode]:
            if thread == 0:
                ending.finalize()
                return set()
            seen = set()
            while (code := outcome(calls[thread % len(calls)])) is not FINALIZED:
                seen.add(code)
            return seen

        seen = set().union(*all_at_once(work))
        assert seen <= {LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_EXIST_LINK}


def test_instances_come_and_go_in_many_threads() -> None:
    options = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": '{"memory_size": 65536}'}

    def work(thread: int) -> None:
        for _ in range(10):
            datadist = LLMDataDist(LLMRole.MIX, thread)
            datadist.init(options)
            datadist.finalize()

    all_at_once(work)
    assert LLMDataDist.llm_engine_instance is None


def test_one_instance_finalized_by_many_threads(make_pair: Any) -> None:
    for _ in range(10):
        one, two = make_pair(device_bytes=1 << 20)
        manager = one.cache_manager
        cache = manager.allocate_cache(CacheDesc(1, (1, 64), DataType.DT_UINT8), [CacheKey(1, 1)])
        all_at_once(lambda thread, one=one: one.finalize())
        assert outcome(manager.deallocate_cache, cache) is FINALIZED
        two.cache_manager.check()
        two.finalize()


def test_both_ends_of_a_link_finalized_at_once(make_pair: Any) -> None:
    for _ in range(10):
        pair = make_pair(device_bytes=1 << 20)
        managers = [datadist.cache_manager for datadist in pair]
        all_at_once(lambda thread, pair=pair: pair[thread].finalize(), 2)
        assert {outcome(manager.check) for manager in managers} == {FINALIZED}


def test_every_call_of_a_finalized_manager_is_refused(make_datadist: Any) -> None:
    datadist = make_datadist(1, remote_accessible=True)
    manager = datadist.cache_manager
    desc, key = CacheDesc(1, (1, 64), DataType.DT_UINT8), CacheKeyByIdAndIndex(2, 1)
    cache = manager.allocate_cache(desc)
    datadist.finalize()
    for call in (
        lambda: manager.allocate_cache(desc),
        lambda: manager.deallocate_cache(cache),
        lambda: manager.remove_cache_key(CacheKey(1, 1)),
        lambda: manager.lookup(CacheKey(1, 1)),
        lambda: manager.pull_cache(key, cache),
        lambda: manager.push_cache(key, cache),
        lambda: manager.copy_cache(cache, cache),
        lambda: manager.pool_usage(),
        lambda: manager.live_caches,
        lambda: manager.live_keys,
        lambda: manager.check(),
        lambda: manager.paused().__enter__(),
        lambda: cache.tensors,
        # Whatever else is wrong with it.
        lambda: manager.allocate_cache(None),
        lambda: manager.deallocate_cache("cache"),
        lambda: manager.pull_cache(None, None),
        lambda: manager.copy_cache(1, 2),
    ):
        assert outcome(call) is FINALIZED
    assert cache.tensor_addrs == []
