"""A transfer that takes longer than its caller waits, or whose engine gives up, leaves nothing behind but its key."""

from __future__ import annotations

import mmap
import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conversing_nodes import ConversingNode, Line, contents
from programmable_engine import Course, Network

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import DataType
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import stretches
from llmdd.transport.engine import EngineFailed, Writing
from llmdd.transport.staging import PARTS, STRETCH_BYTES

SHORT_MS = 300
LARGE = PARTS * STRETCH_BYTES + 1


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Keeps what the engine moves, until it is set."""
    event = threading.Event()
    yield event
    event.set()


class Pulled:
    """A large cache of the owner's, and where it goes."""

    def __init__(self, line: Line, req_id: int, seed: int) -> None:
        self.line = line
        self.req_id = req_id
        self.source = line.owner.cache(LARGE, req_id, seed=seed)
        self.target = line.asker.cache(LARGE)

    def move(self) -> None:
        self.line.asker.store.pull_cache(CacheKey(2, self.req_id), self.target)


class Pushed:
    """A large cache of ours, and where it goes at the owner's."""

    def __init__(self, line: Line, req_id: int, seed: int) -> None:
        self.line = line
        self.req_id = req_id
        self.source = line.asker.cache(LARGE, seed=seed)
        self.target = line.owner.cache(LARGE, req_id)

    def move(self) -> None:
        key = CacheKeyByIdAndIndex(2, self.target.cache_id, 0)
        self.line.asker.store.push_cache(key, self.source)


@pytest.fixture
def impatient_line(make_conversing: Callable[..., ConversingNode]) -> Line:
    """A line between nodes whose calls do not wait long."""
    settings = {"remote_accessible": True, "timeout_ms": SHORT_MS}
    return Line(make_conversing(1, **settings), make_conversing(2, **settings))


@pytest.fixture
def patient_line(make_conversing: Callable[..., ConversingNode]) -> Line:
    """A line between nodes whose calls wait as long as it takes."""
    settings = {"remote_accessible": True, "timeout_ms": 20_000}
    return Line(make_conversing(1, **settings), make_conversing(2, **settings))


@pytest.fixture(params=["pull", "push"])
def moved(request: pytest.FixtureRequest) -> Callable[..., Pulled | Pushed]:
    """What is moved, either way. Where it is pulled the key goes with it."""

    def make(line: Line, req_id: int = 7, seed: int = 1) -> Pulled | Pushed:
        return PulledById(line, req_id, seed) if request.param == "pull" else Pushed(line, req_id, seed)

    return make


class PulledById(Pulled):
    """The same in remote mode, where a slot is named by its cache's id."""

    def move(self) -> None:
        key = CacheKeyByIdAndIndex(2, self.source.cache_id, 0)
        self.line.asker.store.pull_cache(key, self.target)


def refusal(call: Callable[[], object]) -> LLMStatusCode:
    with pytest.raises(LLMException) as refused:
        call()
    return refused.value.status_code


def deliver_the_rest(line: Line, network: Network, eventually: Callable) -> None:
    """Let everything arrive that is under way, whoever waits for it."""

    def has_arrived() -> bool:
        for node in (line.asker, line.owner):
            node.engine.progress()
        network.deliver()
        return not network.under_way

    eventually(has_arrived, "everything has arrived, or failed")


# -- time runs out --------------------------------------------------------------------------------------------------


def test_at_the_deadline_the_call_ends_and_the_key_is_kept(
    impatient_line: Line, network: Network, gate: threading.Event, moved: Callable, eventually: Callable
) -> None:
    thing = moved(impatient_line)
    network.usual = Course(gate=gate)
    assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    assert impatient_line.owner.store.live_keys == 1
    gate.set()
    deliver_the_rest(impatient_line, network, eventually)
    thing.move()
    assert contents(thing.target) == contents(thing.source)
    assert not impatient_line.dropped.is_set()


@pytest.mark.parametrize("polls", [1, 4, 50])
def test_no_byte_comes_after_the_call_has_ended(
    impatient_line: Line, network: Network, gate: threading.Event, moved: Callable, eventually: Callable, polls: int
) -> None:
    thing = moved(impatient_line)
    network.follow([Course(polls=polls), Course(polls=polls, gate=gate), Course(polls=polls, gate=gate)])
    assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    if isinstance(thing, Pulled):
        then = contents(thing.target)
    else:
        eventually(lambda: impatient_line.owner.is_served_by_nobody(), "the owner has heard that it is given up")
        then = contents(thing.target)
    thing.line.asker.store.check()
    gate.set()
    deliver_the_rest(impatient_line, network, eventually)
    assert contents(thing.target) == then


def test_what_comes_late_does_not_spoil_the_next_transfer_into_the_same_cache(
    impatient_line: Line, network: Network, gate: threading.Event, moved: Callable, eventually: Callable
) -> None:
    first = moved(impatient_line, 7, seed=1)
    second = moved(impatient_line, 8, seed=2)
    second.target = first.target
    network.follow([Course(polls=3, gate=gate)] * 2)
    assert refusal(first.move) is LLMStatusCode.LLM_TIMEOUT
    assert refusal(second.move) is LLMStatusCode.LLM_TIMEOUT, "what was begun before must end first"
    gate.set()
    second.move()
    assert contents(first.target) == contents(second.source)
    deliver_the_rest(impatient_line, network, eventually)
    assert contents(first.target) == contents(second.source)
    first.move()
    assert contents(first.target) == contents(first.source)


def test_a_line_outlives_any_number_of_timeouts(
    impatient_line: Line, network: Network, gate: threading.Event, moved: Callable, eventually: Callable
) -> None:
    thing = moved(impatient_line)
    network.usual = Course(gate=gate)
    for _ in range(4):
        assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    network.usual = Course(polls=2)
    gate.set()
    thing.move()
    deliver_the_rest(impatient_line, network, eventually)
    assert contents(thing.target) == contents(thing.source)
    assert impatient_line.asker.areas <= 1
    assert impatient_line.owner.areas <= 1


def test_what_comes_late_is_received_to_its_end(impatient_line: Line, network: Network, eventually: Callable) -> None:
    thing = PulledById(impatient_line, 7, seed=1)
    network.frozen.update(("node 1", "node 2"))
    network.follow([Course(polls=200)] * 2)
    assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    network.frozen.clear()
    eventually(lambda: not network.under_way, "nobody waits for it, and it comes")


@pytest.mark.parametrize("fails", [None, 0])
def test_what_is_left_of_a_push_needs_no_other_call_to_end(
    impatient_line: Line,
    network: Network,
    gate: threading.Event,
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    fails: int | None,
) -> None:
    monkeypatch.setattr(stretches, "GATHERED_BELOW", 1 << 62)
    line = impatient_line
    thing = Pushed(line, 7, seed=1)
    network.usual = Course(polls=9, gate=gate, fails=fails)
    assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    assert network.under_way
    assert (line.asker.areas, line.asker.free_areas) == (1, 0)
    gate.set()
    eventually(lambda: not network.under_way, "nobody asks for anything, and it ends")
    eventually(lambda: line.asker.free_areas == 1, "what it was gathered into can be used by others")
    assert all(writing.released for writing in network.writings)
    eventually(lambda: not line.asker.attendance.areas.has_left_over, "nothing is left to look after")
    network.usual = Course(polls=2)
    thing.move()
    assert contents(thing.target) == contents(thing.source)


def test_what_is_left_of_a_push_is_left_alone_by_others_when_the_next_one_begins(
    impatient_line: Line, network: Network, gate: threading.Event, eventually: Callable
) -> None:
    first, second = Pushed(impatient_line, 7, seed=1), Pushed(impatient_line, 8, seed=2)
    for _ in range(5):
        network.usual = Course(gate=gate)
        assert refusal(first.move) is LLMStatusCode.LLM_TIMEOUT
        network.usual = Course(polls=2)
        gate.set()
        second.move()
        assert contents(second.target) == contents(second.source)
        gate.clear()
    assert impatient_line.asker.areas <= 1


@pytest.mark.parametrize("course", [Course(fails=0), Course(fails=1), Course(polls=3, fails=2), Course(refused=True)])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_an_engine_that_gives_up_costs_that_call_only(
    patient_line: Line, network: Network, moved: Callable, eventually: Callable, course: Course, nth: int
) -> None:
    thing = moved(patient_line)
    network.follow([Course(polls=2)] * nth)
    network.usual = course
    assert refusal(thing.move) is LLMStatusCode.LLM_FAILED
    network.usual = Course(polls=3)
    assert patient_line.owner.store.live_keys == 1
    deliver_the_rest(patient_line, network, eventually)
    thing.move()
    assert contents(thing.target) == contents(thing.source)
    assert not patient_line.dropped.is_set()


def test_an_engine_that_gives_up_because_the_owner_is_gone(patient_line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = Pushed(patient_line, 7, seed=1)

    def write(*arguments: object) -> Writing:
        patient_line.hang_up()
        raise EngineFailed("the owner is gone")

    monkeypatch.setattr(patient_line.asker.engine, "write", write)
    assert refusal(thing.move) is LLMStatusCode.LLM_NOT_YET_LINK


class BothWays:
    """A large push of one node, and a small pull of the other: the first node's engine writes for both."""

    def __init__(self, make_conversing: Callable[..., ConversingNode], timeout_ms: int) -> None:
        settings = {"remote_accessible": True, "timeout_ms": timeout_ms}
        here, there = make_conversing(2, **settings), make_conversing(1, **settings)
        self.push = PushedTo(Line(here, there), 7, seed=1)
        self.pull = PulledById(Line(there, here), 7, seed=2)
        self.outcomes: dict[str, str] = {}

    def begin(self, name: str) -> threading.Thread:
        thing = getattr(self, name)

        def move() -> None:
            try:
                thing.move()
                self.outcomes[name] = "arrived" if contents(thing.target) == contents(thing.source) else "spoiled"
            except LLMException as refused:
                self.outcomes[name] = refused.status_code.name

        thread = threading.Thread(target=move)
        thread.start()
        return thread


class PushedTo(Pushed):
    """To node 1."""

    def move(self) -> None:
        self.line.asker.store.push_cache(CacheKeyByIdAndIndex(1, self.target.cache_id, 0), self.source)


@pytest.mark.parametrize("push_fails", [None, 0])
def test_a_pull_whose_connection_failed_waits_for_the_push_in_the_other_direction(
    make_conversing: Callable[..., ConversingNode],
    network: Network,
    gate: threading.Event,
    eventually: Callable,
    push_fails: int | None,
) -> None:
    both = BothWays(make_conversing, timeout_ms=20_000)
    network.follow([Course(gate=gate, fails=push_fails)] * PARTS)
    pushing = both.begin("push")
    eventually(lambda: len(network.writings) == PARTS, "the push is under way")
    network.follow([Course(fails=0)] * PARTS)
    pulling = both.begin("pull")
    eventually(lambda: any(writing.failure for writing in network.writings), "the connection has failed")
    pulling.join(0.2)
    assert pulling.is_alive(), "what is under way ends first"
    gate.set()
    for thread in (pushing, pulling):
        thread.join()
    assert both.outcomes == {"push": "arrived", "pull": "arrived"}


def test_a_pull_whose_connection_cannot_be_reached_anew_ends_at_its_deadline(
    make_conversing: Callable[..., ConversingNode], network: Network, gate: threading.Event, eventually: Callable
) -> None:
    both = BothWays(make_conversing, timeout_ms=SHORT_MS)
    network.follow([Course(gate=gate)] * PARTS)
    pushing = both.begin("push")
    eventually(lambda: len(network.writings) == PARTS, "the push is under way")
    network.follow([Course(fails=0)] * PARTS)
    both.begin("pull").join()
    pushing.join()
    assert both.outcomes == {"push": "LLM_TIMEOUT", "pull": "LLM_TIMEOUT"}
    network.programme.clear()
    gate.set()
    eventually(lambda: not network.under_way, "nobody waits for it, and it ends")
    both.begin("pull").join()
    assert both.outcomes["pull"] == "arrived"


def test_a_connection_that_died_unnoticed_costs_no_push(patient_line: Line, network: Network, moved: Callable) -> None:
    thing = moved(patient_line)
    network.follow([Course(fails=0)] * PARTS)
    thing.move()
    assert contents(thing.target) == contents(thing.source)


def test_an_engine_that_gives_up_after_the_deadline(
    impatient_line: Line, network: Network, gate: threading.Event, moved: Callable, eventually: Callable
) -> None:
    thing = moved(impatient_line)
    network.follow([Course(gate=gate, fails=0)] * 2)
    assert refusal(thing.move) is LLMStatusCode.LLM_TIMEOUT
    gate.set()
    deliver_the_rest(impatient_line, network, eventually)
    thing.move()
    assert contents(thing.target) == contents(thing.source)


def test_pieces_in_any_order_that_stop_half_way(
    patient_line: Line, network: Network, moved: Callable, eventually: Callable
) -> None:
    thing = moved(patient_line)
    chance = random.Random(1)
    for number in range(12):
        network.usual = Course(polls=chance.randrange(1, 5), fails=chance.randrange(3), order=chance)
        assert refusal(thing.move) is LLMStatusCode.LLM_FAILED, number
        network.usual = Course(polls=3, order=chance)
        deliver_the_rest(patient_line, network, eventually)
    thing.move()
    assert contents(thing.target) == contents(thing.source)


# -- the peer is silent, or slow to answer --------------------------------------------------------------------------


@pytest.mark.parametrize("row_bytes", [100, LARGE])
@pytest.mark.parametrize("silent_at", range(4))
def test_an_owner_that_falls_silent(impatient_line: Line, eventually: Callable, row_bytes: int, silent_at: int) -> None:
    line = impatient_line
    source, target = line.owner.cache(row_bytes, 7, seed=1), line.asker.cache(row_bytes)
    answers = 0

    def say_so_many(answer: object) -> list[object]:
        nonlocal answers
        answers += 1
        return [answer] if answers <= silent_at else []

    line.alter_answer = say_so_many
    key = CacheKeyByIdAndIndex(2, source.cache_id, 0)
    try:
        line.asker.store.pull_cache(key, target)
        assert answers <= silent_at, "it was silent after the end"
    except LLMException as refused:
        assert refused.status_code is LLMStatusCode.LLM_TIMEOUT
    line.alter_answer = lambda answer: [answer]
    line.asker.store.pull_cache(key, target)
    assert contents(target) == contents(source)
    assert not line.dropped.is_set()


@pytest.mark.parametrize("row_bytes", [100, LARGE])
def test_answers_that_come_when_nobody_waits_for_them(
    impatient_line: Line, eventually: Callable, row_bytes: int
) -> None:
    line = impatient_line
    source, target = line.owner.cache(row_bytes, 7, seed=1), line.asker.cache(row_bytes)
    key = CacheKeyByIdAndIndex(2, source.cache_id, 0)
    held: list[object] = []
    line.alter_answer = lambda answer: held.append(answer) or []
    for _ in range(3):
        assert refusal(lambda: line.asker.store.pull_cache(key, target)) is LLMStatusCode.LLM_TIMEOUT

    def late(answer: object) -> list[object]:
        told, held[:] = [*held, answer], []
        return told

    line.alter_answer = late
    line.asker.store.pull_cache(key, target)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("row_bytes", [100, 40_000, LARGE])
def test_requests_that_the_owner_hears_late(impatient_line: Line, eventually: Callable, row_bytes: int) -> None:
    line = impatient_line
    source, target = line.owner.cache(row_bytes, 7, seed=1), line.asker.cache(row_bytes)
    key = CacheKeyByIdAndIndex(2, source.cache_id, 0)
    thawed = threading.Event()

    def wait(request: object) -> list[object]:
        assert thawed.wait(20)
        return [request]

    line.alter_request = wait
    for _ in range(3):
        assert refusal(lambda: line.asker.store.pull_cache(key, target)) is LLMStatusCode.LLM_TIMEOUT
    thawed.set()
    eventually(lambda: len(line.requests) >= 2, "they have been heard")
    line.asker.store.pull_cache(key, target)
    assert contents(target) == contents(source)
    assert not line.dropped.is_set()


def test_what_a_silent_asker_has_begun_ends_by_itself(impatient_line: Line, eventually: Callable) -> None:
    line = impatient_line
    source, target = line.owner.cache(LARGE, 7, seed=1), line.asker.cache(LARGE)
    line.alter_request = lambda request: [request] if type(request).__name__ == "Begin" else []
    key = CacheKeyByIdAndIndex(2, source.cache_id, 0)
    assert refusal(lambda: line.asker.store.pull_cache(key, target)) is LLMStatusCode.LLM_TIMEOUT
    line.owner.store.remove_cache_key(CacheKey(2, 7))
    line.owner.store.deallocate_cache(source)
    eventually(lambda: line.owner.used_bytes == 0, "its pin is dropped")


def test_calls_to_a_peer_that_hears_nothing_take_no_memory(make_conversing: Callable[..., ConversingNode]) -> None:
    settings = {"remote_accessible": True, "timeout_ms": 5}
    line = Line(make_conversing(1, **settings), make_conversing(2, **settings))
    source, target = line.asker.cache(60_000, seed=1), line.owner.cache(60_000)
    heard = threading.Event()

    def wait(request: object) -> list[object]:
        assert heard.wait(20)
        return [request]

    line.alter_request = wait
    key = CacheKeyByIdAndIndex(2, target.cache_id, 0)
    for _ in range(200):
        assert refusal(lambda: line.asker.store.push_cache(key, source)) is LLMStatusCode.LLM_TIMEOUT
    before = len(line.requests)
    heard.set()
    line.close()
    assert len(line.requests) - before < 60, "what was never begun to be said was taken back"


# -- the end of the line --------------------------------------------------------------------------------------------


def test_a_line_that_ends_ends_the_call(line: Line, network: Network, gate: threading.Event) -> None:
    source, target = line.owner.cache(LARGE, 7, seed=1), line.asker.cache(LARGE)
    network.usual = Course(gate=gate)
    codes: list[LLMStatusCode] = []
    calling = threading.Thread(
        target=lambda: codes.append(refusal(lambda: line.asker.store.pull_cache(CacheKey(2, 7), target)))
    )
    calling.start()
    while not network.under_way:
        assert calling.is_alive()
    line.peer.break_off()
    calling.join(5)
    assert not calling.is_alive(), "the call ends long before its time is up"
    assert codes == [LLMStatusCode.LLM_NOT_YET_LINK]
    assert line.owner.store.live_keys == 1
    assert line.owner.store.lookup(CacheKey(2, 7)).cache_id == source.cache_id


def test_pins_go_with_the_guest(line: Line, network: Network, gate: threading.Event, eventually: Callable) -> None:
    source, target = line.owner.cache(LARGE, 7, seed=1), line.asker.cache(LARGE)
    network.usual = Course(gate=gate)
    calling = threading.Thread(target=lambda: refusal(lambda: line.asker.store.pull_cache(CacheKey(2, 7), target)))
    calling.start()
    eventually(lambda: network.under_way, "it is being read")
    gone = threading.Event()
    line.guest.dismiss(lambda _: gone.set())
    assert gone.wait(20)
    line.owner.store.remove_cache_key(CacheKey(2, 7))
    line.owner.store.deallocate_cache(source)
    assert line.owner.used_bytes == 0
    calling.join()


def test_a_carried_pull_into_memory_that_is_gone(line: Line) -> None:
    memory = mmap.mmap(-1, 1 << 16)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    line.owner.cache(1 << 16, 7, seed=1)
    target = line.asker.store.register_cache(CacheDesc(1, (1, 1 << 16), DataType.DT_UINT8), [address])
    memory.close()
    code = refusal(lambda: line.asker.store.pull_cache(CacheKey(2, 7), target))
    assert code is LLMStatusCode.LLM_PARAM_INVALID
    assert line.owner.store.live_keys == 1


def test_one_blocks_cache_is_not_held_up_by_another_peers_reading(
    make_conversing: Callable[..., ConversingNode], network: Network, gate: threading.Event
) -> None:
    owner = make_conversing(1)
    slow, quick = (Line(make_conversing(number), owner) for number in (2, 3))
    owner.blocks(100, STRETCH_BYTES // 20, seed=1, key=BlocksCacheKey(1, 3))
    target = slow.asker.blocks(100, STRETCH_BYTES // 20)
    network.follow([Course(gate=gate)] * 2)
    calling = threading.Thread(
        target=lambda: slow.asker.store.pull_blocks(BlocksCacheKey(1, 3), target, list(range(100)), list(range(100)))
    )
    calling.start()
    while len(network.writings) < 1:
        assert calling.is_alive()
    other = quick.asker.blocks(100, STRETCH_BYTES // 20)
    quick.asker.store.pull_blocks(BlocksCacheKey(1, 3), other, list(range(100)), list(range(100)))
    gate.set()
    calling.join()
    assert contents(other) == contents(target)
