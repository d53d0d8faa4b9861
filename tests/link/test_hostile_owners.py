"""An owner that answers nonsense ends the call in time, by a code of the contract, and touches no other slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from any_message import any_of, replaced
from conversing_nodes import PATIENCE_S, ConversingNode, Line, contents, conversing_nodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programmable_engine import Course, Network

from llmdd._core.cache_keys import CacheKeyByIdAndIndex
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link.messages import HEADER
from llmdd.link.transfer_messages import Answer, Begin, Begun, Copied, Finished, Found, Way, Written

TIMEOUT_MS = 500
#: Where it matters that a call ends, and not whether before its deadline.
SHORT_MS = 150
SIZES = {"small": 1000, "large": 5 << 20}
ANSWERS = [Begun, Written, Copied, Finished]

#: Results that are none, and all that there are but success.
RESULTS = [*range(1, 30), 255]

#: What a call between two hosts may be refused with because of its owner.
DOCUMENTED = {
    LLMStatusCode.LLM_FAILED,
    LLMStatusCode.LLM_TIMEOUT,
    LLMStatusCode.LLM_NOT_YET_LINK,
    LLMStatusCode.LLM_PARAM_INVALID,
    LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
}

several = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Victim:
    """A node that pulls into, or pushes from, the middle row of a cache; what lies around it is to stay as it is."""

    def __init__(self, make_conversing: Callable[..., ConversingNode], timeout_ms: int) -> None:
        network = Network(usual=Course(polls=3), target_proceeds=True)
        self.owner = make_conversing(2, network, remote_accessible=True)
        self.node = make_conversing(1, network, remote_accessible=True, timeout_ms=timeout_ms)
        self.sources = {name: self.owner.cache(size, rows=2, seed=1) for name, size in SIZES.items()}
        self.before = self.node.cache(4096, seed=7)
        self.targets = {name: self.node.cache(size, rows=3, seed=8) for name, size in SIZES.items()}
        self.behind = self.node.cache(4096, seed=9)
        self.around = self.what_is_around()
        self.line = Line(self.node, self.owner)

    def what_is_around(self) -> list[list[bytes]]:
        rows = [bytes(np.asarray(cache.tensors[0])[row]) for cache in self.targets.values() for row in (0, 2)]
        return [contents(self.before), contents(self.behind), rows]

    def pull(self, size: str) -> None:
        key = CacheKeyByIdAndIndex(2, self.sources[size].cache_id, 1)
        self.node.store.pull_cache(key, self.targets[size], 1)

    def push(self, size: str) -> None:
        key = CacheKeyByIdAndIndex(2, self.sources[size].cache_id, 1)
        self.node.store.push_cache(key, self.targets[size], 1)

    def move(self, way: str, size: str) -> LLMStatusCode:
        """The code of a call, which ends in its time."""
        began = time.monotonic()
        code = LLMStatusCode.LLM_SUCCESS
        try:
            (self.pull if way == "pull" else self.push)(size)
        except LLMException as refused:
            code = refused.status_code
            assert code in DOCUMENTED
        assert time.monotonic() - began < PATIENCE_S, "it does not hang"
        assert self.what_is_around() == self.around
        self.node.store.check()
        return code

    def take_another_line(self) -> None:
        """Leave the vandal, and link anew."""
        self.line.close()
        self.node.lines.remove(self.line)
        self.line = Line(self.node, self.owner)


class Victims(dict[int, Victim]):
    """Victims by how long their calls wait, in milliseconds; one that is missing is made."""

    def __init__(self, make_conversing: Callable[..., ConversingNode]) -> None:
        self._make_conversing = make_conversing

    def __missing__(self, timeout_ms: int) -> Victim:
        return Victim(self._make_conversing, timeout_ms)


@pytest.fixture(scope="module")
def victims(eventually: Callable) -> Iterator[Victims]:
    with conversing_nodes(eventually) as make_conversing:
        yield Victims(make_conversing)


@pytest.fixture
def victim(victims: Victims, eventually: Callable, request: pytest.FixtureRequest) -> Iterator[Victim]:
    """One that others have had before, as long as it is none the worse for it."""
    timeout_ms = getattr(request, "param", TIMEOUT_MS)
    made = victims[timeout_ms]
    victims.pop(timeout_ms, None)
    yield made
    made.take_another_line()
    for size in SIZES:
        eventually(
            lambda size=size: made.move("pull", size) is LLMStatusCode.LLM_SUCCESS, "it is none the worse for it"
        )
    victims[timeout_ms] = made


def instead_of(kind: type, *said: Any) -> Callable[[Answer], Iterable[Any]]:
    """Says something else where a kind of answer is due; functions are given the answer."""
    return lambda answer: (
        [each(answer) if callable(each) else each for each in said] if isinstance(answer, kind) else [answer]
    )


def with_changes(**changes: Any) -> Callable[[Any], Any]:
    return lambda answer: msgspec.structs.replace(answer, **changes)


def with_found(**changes: Any) -> Callable[[Any], Any]:
    return lambda answer: msgspec.structs.replace(
        answer, items=[msgspec.structs.replace(item, **changes) for item in answer.items]
    )


hasty = pytest.mark.parametrize("victim", [SHORT_MS], indirect=True)
both_ways = pytest.mark.parametrize("way", ["pull", "push"])
both_sizes = pytest.mark.parametrize("size", SIZES)


# -- what is no answer ----------------------------------------------------------------------------------------------


@both_ways
@both_sizes
@pytest.mark.parametrize("kind", [Begun, Finished])
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        HEADER.pack(0),
        b"\xff\xff\xff\xff",
        HEADER.pack(9) + b"\x91" * 9,
        Begin(1, 0, [], False, b"", 0, b""),
    ],
    ids=["HTTP", "empty", "huge", "nested", "a request"],
)
def test_what_is_no_answer(victim: Victim, way: str, size: str, kind: type, said: Any) -> None:
    victim.line.alter_answer = instead_of(kind, said)
    code = victim.move(way, size)
    assert code in (LLMStatusCode.LLM_FAILED, LLMStatusCode.LLM_SUCCESS)
    if kind is Begun:
        assert code is LLMStatusCode.LLM_FAILED


@both_ways
@both_sizes
def test_half_an_answer(victim: Victim, way: str, size: str) -> None:
    victim.line.alter_answer = lambda answer: [HEADER.pack(1000) + b"x"]
    assert victim.move(way, size) is LLMStatusCode.LLM_TIMEOUT


@both_ways
@both_sizes
def test_silence(victim: Victim, way: str, size: str) -> None:
    victim.line.alter_answer = lambda answer: []
    assert victim.move(way, size) is LLMStatusCode.LLM_TIMEOUT


@both_ways
@both_sizes
@pytest.mark.parametrize("kind", [Begun, Finished])
def test_an_owner_that_hangs_up(victim: Victim, way: str, size: str, kind: type) -> None:
    def hang_up(answer: Answer) -> Iterable[Answer]:
        if isinstance(answer, kind):
            victim.line.hang_up()
        return [answer]

    victim.line.alter_answer = hang_up
    code = victim.move(way, size)
    assert code in (LLMStatusCode.LLM_NOT_YET_LINK, LLMStatusCode.LLM_SUCCESS)


@pytest.mark.parametrize("kind", ANSWERS)
@both_ways
@both_sizes
def test_an_answer_that_was_not_asked_for(victim: Victim, way: str, size: str, kind: type) -> None:
    strange = {
        Begun: lambda number: Begun(number, [], Way.NONE, b"", 0, b""),
        Written: lambda number: Written(number, 0, True),
        Copied: lambda number: Copied(number, 0),
        Finished: lambda number: Finished(number, []),
    }[kind]
    victim.line.alter_answer = lambda answer: [strange(answer.number)]
    assert victim.move(way, size) is not LLMStatusCode.LLM_SUCCESS


@both_ways
@both_sizes
@pytest.mark.parametrize("step", [1, 2**40])
def test_an_answer_to_a_request_that_was_not_made(victim: Victim, way: str, size: str, step: int) -> None:
    victim.line.alter_answer = lambda answer: [msgspec.structs.replace(answer, number=answer.number + step)]
    assert victim.move(way, size) is LLMStatusCode.LLM_FAILED


@both_ways
@both_sizes
def test_a_flood_of_answers_that_nobody_waits_for(victim: Victim, way: str, size: str) -> None:
    victim.move(way, size)
    ended = time.monotonic() + 3 * TIMEOUT_MS / 1000

    def flood(answer: Answer) -> Iterator[Answer]:
        while time.monotonic() < ended:
            yield Written(0, 0, True)

    began = time.monotonic()
    victim.line.alter_answer = flood
    assert victim.move(way, size) is LLMStatusCode.LLM_TIMEOUT
    assert time.monotonic() < ended, f"the call waits {TIMEOUT_MS} ms, and took {time.monotonic() - began} s"


# -- answers that contradict ----------------------------------------------------------------------------------------


@both_ways
@both_sizes
def test_any_result_of_an_item(victim: Victim, way: str, size: str) -> None:
    for result in RESULTS:
        victim.line.alter_answer = instead_of(Begun, with_found(result=result))
        assert victim.move(way, size) is not LLMStatusCode.LLM_SUCCESS, result
        victim.take_another_line()


@both_sizes
def test_any_result_in_the_end(victim: Victim, size: str) -> None:
    for result in RESULTS:
        victim.line.alter_answer = instead_of(Finished, with_changes(results=[result]))
        assert victim.move("pull", size) is not LLMStatusCode.LLM_SUCCESS, result
        victim.take_another_line()


@pytest.mark.parametrize("way_said", list(Way))
@both_ways
@both_sizes
def test_bytes_that_travel_another_way(victim: Victim, way: str, size: str, way_said: Way) -> None:
    victim.line.alter_answer = instead_of(Begun, with_changes(way=way_said))
    honest = {("pull", "small"): Way.CARRIED, ("push", "small"): Way.CARRIED}.get((way, size), Way.WRITTEN)
    assert (victim.move(way, size) is LLMStatusCode.LLM_SUCCESS) == (way_said is honest)


@both_ways
@both_sizes
@pytest.mark.parametrize("way_said", list(Way))
@pytest.mark.parametrize("result", [9, 10, 20])
def test_an_item_that_was_not_begun_and_yet_goes_on(
    victim: Victim, way: str, size: str, way_said: Way, result: int
) -> None:
    def nonsense(answer: Answer) -> Iterable[Answer]:
        if isinstance(answer, Begun):
            answer = with_changes(way=way_said)(with_found(result=result)(answer))
        return [with_changes(results=[0])(answer) if isinstance(answer, Finished) else answer]

    victim.line.alter_answer = nonsense
    code = victim.move(way, size)
    carried_push = way == "push" and size == "small" and way_said is Way.CARRIED
    assert code is not LLMStatusCode.LLM_SUCCESS or carried_push


@both_ways
@both_sizes
@pytest.mark.parametrize("count", [0, 2, 1000])
def test_another_number_of_items(victim: Victim, way: str, size: str, count: int) -> None:
    victim.line.alter_answer = instead_of(Begun, lambda answer: with_changes(items=answer.items * count)(answer))
    assert victim.move(way, size) is LLMStatusCode.LLM_FAILED


@both_sizes
@pytest.mark.parametrize("count", [0, 2, 1000])
def test_another_number_of_results(victim: Victim, size: str, count: int) -> None:
    victim.line.alter_answer = instead_of(Finished, with_changes(results=[0] * count))
    assert victim.move("pull", size) is LLMStatusCode.LLM_FAILED


@pytest.mark.parametrize("data", [b"", b"x" * 999, b"x" * 1001, b"x" * 65536], ids=len)
def test_carried_bytes_of_another_length(victim: Victim, data: bytes) -> None:
    victim.line.alter_answer = instead_of(Begun, with_changes(data=data))
    assert victim.move("pull", "small") is LLMStatusCode.LLM_FAILED


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": 0},
        {"tensors": 2},
        {"tensors": 2**32 - 1},
        {"row_bytes": 0},
        {"row_bytes": 1},
        {"row_bytes": 2**64 - 1},
        {"rows": 0},
        {"rows": 2**64 - 1},
        {"rows": 2**64 - 1, "row_bytes": 2**64 - 1, "tensors": 2**32 - 1},
        {"blocks": True},
        {"accessible": False},
        {"batch_index": 2**64 - 1},
    ],
    ids=str,
)
@both_ways
@both_sizes
def test_a_cache_that_cannot_be(victim: Victim, way: str, size: str, changes: dict[str, Any]) -> None:
    victim.line.alter_answer = instead_of(Begun, with_found(**changes))
    victim.move(way, size)


@pytest.mark.parametrize("metadata", [b"x", b"\0" * 1000, b"[]", b'["node 9",[]]'])
@both_ways
@both_sizes
def test_metadata_that_is_useless(victim: Victim, way: str, size: str, metadata: bytes) -> None:
    victim.line.alter_answer = instead_of(Begun, with_changes(metadata=metadata))
    assert victim.move(way, size) is LLMStatusCode.LLM_FAILED


@pytest.mark.parametrize("staging", [0, 1, 2**63, 2**64 - 1])
def test_staging_memory_that_is_nowhere(victim: Victim, staging: int) -> None:
    victim.line.alter_answer = instead_of(Begun, with_changes(staging=staging))
    assert victim.move("push", "large") is LLMStatusCode.LLM_FAILED


@pytest.mark.parametrize("stretch", [1, 2, 3, 2**64 - 1])
def test_stretches_out_of_order(victim: Victim, stretch: int) -> None:
    victim.line.alter_answer = instead_of(Written, with_changes(stretch=stretch))
    assert victim.move("pull", "large") is LLMStatusCode.LLM_FAILED


def test_a_stretch_that_is_said_twice(victim: Victim) -> None:
    victim.line.alter_answer = instead_of(Written, lambda answer: answer, lambda answer: answer)
    assert victim.move("pull", "large") is LLMStatusCode.LLM_FAILED


def test_more_copies_than_there_were_stretches(victim: Victim) -> None:
    victim.line.alter_answer = lambda answer: [*[Copied(answer.number, number) for number in range(50)], answer]
    victim.move("push", "large")


# -- anything at all ------------------------------------------------------------------------------------------------


@hasty
@both_ways
def test_any_answers(victim: Victim, way: str) -> None:
    @several
    @given(st.data(), st.sampled_from(sorted(SIZES)))
    def nonsense(data: st.DataObject, size: str) -> None:
        changes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))

        def alter(answer: Answer) -> Iterable[Any]:
            kind = changes.pop(0) if changes else 0
            if kind == 1:
                return [replaced_by.pop(0)(answer)] if replaced_by else [answer]
            if kind == 2:
                return [msgspec.structs.replace(each, number=answer.number) for each in strange[:2]]
            return [answer] if kind == 0 else []

        strange = data.draw(st.lists(st.sampled_from(ANSWERS).flatmap(any_of), min_size=2, max_size=2))
        fields = data.draw(st.lists(replaced(Begun(1, [A_FOUND], Way.WRITTEN, b"", 0, b"")), min_size=3, max_size=3))
        replaced_by = [lambda answer, each=each: other_fields(answer, each) for each in fields]
        victim.line.alter_answer = alter
        victim.move(way, size)
        victim.line.alter_answer = lambda answer: [answer]
        victim.take_another_line()

    nonsense()


A_FOUND = Found(0, False, 1, 1000, 2, True, 0)


def other_fields(answer: Answer, of: Answer) -> Answer:
    """An answer with the fields of another that has them, but for its number."""
    names = set(answer.__struct_fields__) & set(of.__struct_fields__) - {"number"}
    return msgspec.structs.replace(answer, **{name: getattr(of, name) for name in names})


@both_sizes
def test_any_cache_that_is_found(victim: Victim, size: str) -> None:
    @several
    @given(any_of(Found), st.sampled_from(["pull", "push"]))
    def nonsense(found: Found, way: str) -> None:
        victim.line.alter_answer = instead_of(Begun, with_changes(items=[found]))
        victim.move(way, size)
        victim.take_another_line()

    nonsense()
