"""pull_many against links that are busy, owners that never rest, and links that go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from llmdd import CacheDesc, CacheKey, DataType, LLMException, LLMStatusCode
from llmdd._core.bulk_calls import BulkCalls

DESC = CacheDesc(1, (4, 8), DataType.DT_INT8)
OK = LLMStatusCode.LLM_SUCCESS
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
BUSY = LLMStatusCode.LLM_LINK_BUSY
NOT_LINKED = LLMStatusCode.LLM_NOT_YET_LINK
KEYS = [CacheKey(1, number) for number in (1, 2, 3)]
UNKNOWN = CacheKey(1, 99)


@pytest.fixture
def make_puller() -> Iterator[Callable[..., BulkCalls]]:
    pullers: list[BulkCalls] = []

    def make(timeout_ms: int, **peers: Any) -> BulkCalls:
        puller = BulkCalls(cluster_id=9, device_pool=(1 << 20, 12), timeout_ms=timeout_ms)
        puller.peers = {int(name[1:]): arena for name, arena in peers.items()}
        pullers.append(puller)
        return puller

    yield make
    for puller in pullers:
        puller.check()
        puller.close()


@pytest.fixture
def restless(make_store: Any, copy_segments: Any) -> Any:
    """The arena of an owner that died while it changed its index: who does not find a key waits for it to rest."""
    owner = make_store(1, slot_capacity=64, key_capacity=1024)
    owner.allocate_cache(DESC, KEYS)
    segments = copy_segments(owner)
    segments.header.index_version = 1
    return segments.attach()


def codes(answer: Any) -> list[LLMStatusCode]:
    return [LLMStatusCode(code) for code in answer.tolist()]


def refusal(puller: BulkCalls, keys: list[CacheKey]) -> tuple[LLMStatusCode, str]:
    cache = puller.allocate_cache(DESC)
    with pytest.raises(LLMException) as refused:
        puller.pull_many(keys, cache, all_or_nothing=True)
    return refused.value.status_code, str(refused.value).partition(":")[0]


def test_the_call_has_one_deadline(make_puller: Any, restless: Any) -> None:
    puller = make_puller(20, _1=restless)
    cache = puller.allocate_cache(DESC)
    assert codes(puller.pull_many([KEYS[0], UNKNOWN, KEYS[1]], cache)) == [OK, TIMEOUT, TIMEOUT]
    assert codes(puller.pull_many(KEYS[1:], cache)) == [OK, OK]


def test_a_deadline_that_passes_refuses_all(make_puller: Any, restless: Any) -> None:
    puller = make_puller(20, _1=restless)
    assert refusal(puller, [KEYS[0], UNKNOWN, KEYS[1]]) == (TIMEOUT, "item 1")
    assert codes(puller.pull_many(KEYS, puller.allocate_cache(DESC), all_or_nothing=True)) == [OK] * 3


@pytest.fixture
def until_busy(make_puller: Any, restless: Any, eventually: Any) -> Callable[[], None]:
    """Waits until somebody uses the link."""
    probe = make_puller(1, _1=restless)
    ours = probe.allocate_cache(DESC)
    return lambda: eventually(lambda: codes(probe.pull_many([UNKNOWN], ours)) == [BUSY], "the link is busy")


@pytest.fixture
def hold(make_puller: Any, restless: Any, until_busy: Any) -> Iterator[Callable[[], Future[Any]]]:
    """Keeps the link in use by a pull that waits, until the link is broken off."""
    with ThreadPoolExecutor(1) as threads:

        def begin() -> Future[Any]:
            puller = make_puller(60_000, _1=restless)
            cache = puller.allocate_cache(DESC)
            waiting = threads.submit(puller.pull_many, [UNKNOWN], cache)
            until_busy()
            return waiting

        yield begin
        restless.break_off()


def test_a_link_that_stays_busy(make_puller: Any, restless: Any, hold: Any, make_store: Any, attach: Any) -> None:
    waiting = hold()
    other = make_store(2)
    puller = make_puller(1, _1=restless)
    attach(puller, other)
    other.allocate_cache(DESC, [CacheKey(2, 1)])
    keys = [CacheKey(2, 404), KEYS[0], KEYS[1], CacheKey(2, 1)]
    answer = codes(puller.pull_many(keys, puller.allocate_cache(DESC)))
    assert answer[0] is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert answer[1:] == [BUSY, BUSY, TIMEOUT]
    assert refusal(puller, [CacheKey(2, 1), KEYS[0], KEYS[1]]) == (BUSY, "item 1")
    assert other.lookup(CacheKey(2, 1)) is not None
    # Whoever waited in vain for one link has let go of the others.
    patient = make_puller(5000, _2=puller.peers[2])
    assert codes(patient.pull_many([CacheKey(2, 1)], patient.allocate_cache(DESC))) == [OK]
    restless.break_off()
    assert codes(waiting.result()) == [NOT_LINKED]


def test_a_link_that_is_broken_off_ends_every_item(make_puller: Any, restless: Any, until_busy: Any) -> None:
    puller = make_puller(60_000, _1=restless)
    cache = puller.allocate_cache(DESC)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(puller.pull_many, [KEYS[0], UNKNOWN, KEYS[1], KEYS[2]], cache)
        until_busy()
        restless.break_off()
        assert codes(waiting.result()) == [OK, NOT_LINKED, NOT_LINKED, NOT_LINKED]
    assert codes(puller.pull_many(KEYS[1:], cache)) == [NOT_LINKED] * 2
    assert refusal(puller, KEYS[1:]) == (NOT_LINKED, "item 0")


def test_a_link_that_was_taken_down(make_store: Any, attach: Any, make_puller: Any) -> None:
    owner, puller = make_store(1), make_puller(5000)
    owner.allocate_cache(DESC, KEYS)
    attach(puller, owner).detach(1000)
    cache = puller.allocate_cache(DESC)
    assert codes(puller.pull_many(KEYS, cache)) == [NOT_LINKED] * 3
    assert refusal(puller, KEYS) == (NOT_LINKED, "item 0")
    attach(puller, owner)
    assert codes(puller.pull_many(KEYS, cache, all_or_nothing=True)) == [OK] * 3
