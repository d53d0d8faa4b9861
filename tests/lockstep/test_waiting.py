"""The library beside the model: calls that wait for memory are served, refused, and numbered alike."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from llmdd.spec import values
from llmdd.spec.reference import Cluster
from llmdd.spec.statecharts import Refused
from llmdd.spec.waiting import WaitingAllocation

from llmdd import BlocksCacheKey, Cache, CacheDesc, CacheKey, DataType, LLMDataDist, LLMException, LLMRole, Placement

OPTIONS = {
    "llm.EnableCacheManager": "1",
    "llm.SyncKvCacheWaitTime": "60000",
    "llm.MemPoolConfig": '{"memory_size": 4096, "page_shift": 10}',
    "llm.HostMemPoolConfig": '{"memory_size": 2048, "page_shift": 10}',
    "llmdd.WaitForMemory": "1",
}
PATIENCE_S = 30.0
MOST_WAITING = 6

counts = st.integers(1, 5)
placements = st.sampled_from(("DEVICE", "DEVICE", "HOST"))
keys = st.lists(st.integers(1, 4), max_size=1)


def answer_of(outcome: Any) -> int | str:
    """The id of a cache that was made, or the error."""
    return outcome if isinstance(outcome, str) else int(outcome.cache_id)


class Waiting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Cluster().start("only", 1)
        self.model.init(OPTIONS)
        self.library = LLMDataDist(LLMRole.MIX, 1)
        self.library.init(OPTIONS)
        self.manager = self.library.cache_manager
        self.threads = ThreadPoolExecutor(MOST_WAITING)
        self.calls: list[tuple[WaitingAllocation, Future[Cache]]] = []
        self.caches: list[tuple[values.Cache, Cache]] = []
        self.views: list[tuple[values.View, list[Any]]] = []

    @precondition(lambda self: len(self.calls) < MOST_WAITING)
    @rule(count=counts, placement=placements, bound=keys, blocks=st.booleans())
    def allocate(self, count: int, placement: str, bound: list[int], blocks: bool) -> None:
        desc = values.CacheDesc(count, (1, 1000), "DT_UINT8", placement)
        made: Any
        try:
            if blocks:
                made = self.model.begin_allocate_blocks_cache(desc, *(values.BlocksCacheKey(1, n) for n in bound))
            else:
                made = self.model.begin_allocate_cache(desc, [values.CacheKey(1, n) for n in bound])
        except Refused as refused:
            made = refused.error
        call = self.threads.submit(self.library_allocate, count, placement, bound, blocks)
        if isinstance(made, WaitingAllocation):
            self.calls.append((made, call))
        else:
            self.compare(made, call)
        self.settle()

    def library_allocate(self, count: int, placement: str, bound: list[int], blocks: bool) -> Cache:
        desc = CacheDesc(count, (1, 1000), DataType.DT_UINT8, Placement[placement])
        if blocks:
            return self.manager.allocate_blocks_cache(desc, *(BlocksCacheKey(1, n) for n in bound))
        return self.manager.allocate_cache(desc, [CacheKey(1, n) for n in bound])

    @precondition(lambda self: self.caches)
    @rule(which=st.integers(0, 100))
    def deallocate(self, which: int) -> None:
        model, library = self.caches.pop(which % len(self.caches))
        if model.is_blocks_cache:
            self.model.deallocate_blocks_cache(model)
            self.manager.deallocate_blocks_cache(library)
        else:
            self.model.deallocate_cache(model)
            self.manager.deallocate_cache(library)
        self.settle()

    @rule(number=st.integers(1, 4))
    def remove_key(self, number: int) -> None:
        self.model.remove_cache_key(values.CacheKey(1, number))
        self.manager.remove_cache_key(CacheKey(1, number))
        self.settle()

    @precondition(lambda self: self.caches)
    @rule(which=st.integers(0, 100))
    def look(self, which: int) -> None:
        model, library = self.caches[which % len(self.caches)]
        self.views.append((self.model.open_view(model), library.tensors))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 100))
    def look_away(self, which: int) -> None:
        model, arrays = self.views.pop(which % len(self.views))
        arrays.clear()
        self.model.close_view(model)
        self.settle()

    def settle(self) -> None:
        """Whoever the model has answered, the library answers so; the others wait in both."""
        for waiting, call in list(self.calls):
            if waiting.answer is not None:
                self.calls.remove((waiting, call))
                self.compare(waiting.answer, call)
        deadline = time.monotonic() + PATIENCE_S
        while self.manager.waiting_allocations != len(self.calls):
            assert time.monotonic() < deadline, f"{self.manager.waiting_allocations} wait, not {len(self.calls)}"
            time.sleep(0.0002)

    def compare(self, expected: Any, call: Future[Cache]) -> None:
        made: Any
        try:
            made = call.result(PATIENCE_S)
        except LLMException as refused:
            made = refused.status_code.name
        assert answer_of(made) == answer_of(expected)
        if not isinstance(made, str):
            self.caches.append((expected, made))

    @invariant()
    def both_hold_the_same(self) -> None:
        assert self.manager.waiting_allocations == len(self.calls)
        assert self.manager.live_caches == self.model.live_caches
        for placement in Placement:
            assert self.manager.pool_usage(placement) == self.model.pool_usage(placement.name)
        self.manager.check()
        self.model.check()

    def teardown(self) -> None:
        self.model.finalize()
        self.library.finalize()
        for waiting, call in self.calls:
            self.compare(waiting.answer, call)
        self.threads.shutdown()


def test_waiting_calls_in_lockstep() -> None:
    run_state_machine_as_test(
        Waiting,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
