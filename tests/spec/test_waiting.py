"""Waiting for memory: every state of a small node, every interleaving of who waits and who releases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llmdd.spec import queues, wakeups
from llmdd.spec.queues import Player, Violation, explore
from llmdd.spec.statecharts import Refused
from llmdd.spec.values import Cache, CacheDesc, CacheKey
from llmdd.spec.waiting import AllocationQueues, WaitingAllocation
from llmdd.spec.wakeups import MISTAKES, SITUATIONS, Interleavings, LostWakeup

from .nodes import options, refused
from .thorough import thorough_unless

WAITING = options(4) | {"llmdd.WaitForMemory": "1"}


def pages(count: int, placement: str = "DEVICE") -> CacheDesc:
    return CacheDesc(count, (1, 8), "DT_INT8", placement)


# -- the order in which calls are served -------------------------------------------------------------------------------


@pytest.mark.parametrize("most_waiting", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_every_rule_holds(most_waiting: int) -> None:
    assert explore(most_waiting) > 300


def serve_whoever_fits(self: AllocationQueues) -> None:
    for queue in self.queues.values():
        for waiting in list(queue):
            answer = self._try(waiting)
            if answer is not None:
                queue.remove(waiting)
                waiting.answer = answer


def serve_one(self: AllocationQueues) -> None:
    for queue in self.queues.values():
        if queue:
            self._serve_first(queue)


def join_in_front(
    self: AllocationQueues, desc: CacheDesc, is_blocks_cache: bool, keys: tuple[None, ...], lease: int
) -> WaitingAllocation:
    waiting = WaitingAllocation(self.next_number, desc, is_blocks_cache, tuple(keys), lease)
    self.next_number += 1
    self.queues[desc.placement].insert(0, waiting)
    return waiting


def forget_the_next(self: AllocationQueues, waiting: WaitingAllocation) -> None:
    self.queues[waiting.desc.placement].remove(waiting)
    waiting.answer = "LLM_TIMEOUT"


@pytest.mark.parametrize(
    ("method", "mistake"),
    [
        ("serve", serve_whoever_fits),
        ("serve", serve_one),
        ("serve", lambda self: None),
        ("join", join_in_front),
        ("give_up", forget_the_next),
        ("someone_waits_for", lambda self, placement: False),
    ],
)
def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch, method: str, mistake: object) -> None:
    monkeypatch.setattr(AllocationQueues, method, mistake)
    with pytest.raises(Violation):
        explore()


def test_calls_by_themselves_wait_for_all_of_their_time() -> None:
    node = Player().cluster.start("alone", 3)
    node.init(WAITING)
    node.allocate_cache(pages(3))
    refused("LLM_TIMEOUT", lambda: node.allocate_cache(pages(2)), node.cluster)
    refused("LLM_TIMEOUT", lambda: node.allocate_blocks_cache(pages(2)), node.cluster)
    refused("LLM_OUT_OF_MEMORY", lambda: node.allocate_cache(pages(5)), node.cluster)
    waiting = node.begin_allocate_cache(pages(2), [CacheKey(3, 1)])
    assert isinstance(waiting, WaitingAllocation)
    refused("LLM_TIMEOUT", lambda: node.allocate_cache(pages(1)), node.cluster)  # there is room, and somebody before it
    node.finalize()
    with pytest.raises(Refused, match="LLM_ENGINE_FINALIZED"):
        waiting.result()


def test_a_first_one_whose_key_is_bound_elsewhere_is_refused() -> None:
    node = Player().cluster.start("alone", 3)
    node.init(WAITING | {"llm.HostMemPoolConfig": '{"memory_size": 65536}'})
    node.allocate_cache(pages(4))
    waiting = node.begin_allocate_cache(pages(2), [CacheKey(3, 1)])
    behind = node.begin_allocate_cache(pages(2), [CacheKey(3, 1)])
    assert isinstance(node.allocate_cache(pages(1, "HOST"), [CacheKey(3, 1)]), Cache)
    for call in (waiting, behind):
        assert isinstance(call, WaitingAllocation)
        with pytest.raises(Refused, match="LLM_PARAM_INVALID"):
            call.result()


def test_without_the_option_nobody_waits() -> None:
    node = Player().cluster.start("alone", 3)
    node.init(options(4))
    node.allocate_cache(pages(3))
    refused("LLM_OUT_OF_MEMORY", lambda: node.begin_allocate_cache(pages(2)), node.cluster)


# -- how they are woken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", thorough_unless(lambda name: name != "deaths", SITUATIONS))
def test_nobody_sleeps_on(name: str) -> None:
    assert Interleavings(SITUATIONS[name]).run() > 1000


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_lost_wakeup_is_found(mistake: str) -> None:
    with pytest.raises(LostWakeup, match="sleeps on"):
        Interleavings(replace(SITUATIONS["one each"], mistake=mistake)).run()


def test_a_death_between_mark_and_call_costs_no_more_than_a_sleep() -> None:
    assert Interleavings(replace(SITUATIONS["both for one"], deaths=True)).run() > 1000


def test_the_commands_tell_how_much_there_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "SITUATIONS", {"both for one": SITUATIONS["both for one"]})
    wakeups.main([])
    queues.main(["1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["nobody sleeps on", "every rule holds"]
