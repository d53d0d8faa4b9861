"""What passes on the connections that control a link: how many round trips, and what becomes of a call whose messages
are held up, or lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmdd.transport.staging import PARTS, STRETCH_BYTES

from .conftest import LastingHosts, Node
from .control_link import ControlLink

SUCCESS, TIMED_OUT, NOT_LINKED = "LLM_SUCCESS", "LLM_TIMEOUT", "LLM_NOT_YET_LINK"
NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"

TIMEOUT_MS = 1500
HANDSHAKE_TIMEOUT_MS = 1000
DELAY_S = 0.02

#: Tensors and bytes of a slot of what travels with the messages, of what goes directly from pool to pool, and of what
#: is gathered from many places.
WITH_MESSAGES, DIRECTLY, GATHERED = (2, 1000), (4, 256 << 10), (64, 4096)
ways = pytest.mark.parametrize(
    ("tensors", "slot_bytes"), [WITH_MESSAGES, DIRECTLY, GATHERED], ids=["with messages", "directly", "gathered"]
)

#: A pull's turns: what it wants, what it gets and how, that it has it, that its key is dropped.
BEGIN, BEGUN, FINISH, FINISHED = 1, 2, 3, 4


class Controlled:
    """Two linked nodes with the way between them in the test's hand. Each connection has been used before."""

    def __init__(self, hosts: LastingHosts, open_control_link: Any, delay_s: float = 0.0, **settings: Any) -> None:
        self.remote = settings.get("remote", False)
        self.owner, self.puller = hosts.open(**settings)
        assert self.owner.address is not None
        self.link: ControlLink = open_control_link(hosts.network, self.owner.address, delay_s)
        self.relink()
        for near, far in ((self.puller, self.owner), (self.owner, self.puller)):
            # What the engine does at its first use of a connection is done.
            far.bind(999, *DIRECTLY)
            theirs = far.allocate(*DIRECTLY) if self.remote else 0
            if self.remote:
                ours = near.bind(998, *DIRECTLY, kept=True)
                assert near.push(far.cluster_id, theirs, 0, ours) == SUCCESS
            else:
                assert near.fetch(far.cluster_id, 999, *DIRECTLY) == "right"
            for node in (near, far):
                node.drop_all()

    def relink(self) -> None:
        assert self.puller.unlink(1, *self.link.address, True) == SUCCESS
        assert self.puller.link_to(self.owner, self.link.address) == SUCCESS

    def fetch(self, number: int, tensors: int, slot_bytes: int) -> str:
        answer: str = self.puller.fetch(1, number, tensors, slot_bytes)
        return answer

    def nothing_is_left(self, eventually: Callable[..., None]) -> None:
        for node in (self.owner, self.puller):
            node.drop_all()
            eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


@pytest.fixture
def control(nixl: None, lasting_hosts: LastingHosts, open_control_link: Any) -> Callable[..., Controlled]:
    return lambda **settings: Controlled(lasting_hosts, open_control_link, **settings)


# ---------------------------------------------------------------------------------------------------------- round trips


def trips_of_a_pull(near: Node, far: Node, link: ControlLink, number: int, size: tuple[int, int]) -> float:
    far.bind(number, *size)
    answers: list[str] = []
    trips = link.round_trips(lambda: answers.append(near.fetch(far.cluster_id, number, *size)))
    assert answers == ["right"]
    return trips


def test_a_small_pull_takes_two_round_trips(control: Any) -> None:
    """And a larger one takes as many here, besides the engine's own, unless its stretches must wait for room."""
    nodes = control(delay_s=DELAY_S)
    for near, far in ((nodes.puller, nodes.owner), (nodes.owner, nodes.puller)):
        for number, size in enumerate([(1, 1), WITH_MESSAGES, DIRECTLY, GATHERED]):
            assert trips_of_a_pull(near, far, nodes.link, number, size) == 2, size
        trips = trips_of_a_pull(near, far, nodes.link, 9, (2, PARTS * STRETCH_BYTES))
        assert trips <= 2 + 2, "one for room"


@pytest.mark.parametrize("slot_bytes", [60, 8192])
def test_many_keys_take_no_more_round_trips_than_one(control: Any, slot_bytes: int) -> None:
    nodes = control(delay_s=DELAY_S)
    one = trips_of_a_pull(nodes.puller, nodes.owner, nodes.link, 7, (2, slot_bytes))
    nodes.owner.bind(100, 2, slot_bytes, batch=64)
    answers: list[Any] = []
    numbers = list(range(100, 164))
    assert nodes.link.round_trips(lambda: answers.append(nodes.puller.fetch_many(1, numbers, 2, slot_bytes))) <= one
    assert answers == [[[0] * 64, True]]
    assert nodes.owner.is_empty()


def test_scattered_blocks_take_no_more_round_trips_than_one(control: Any) -> None:
    nodes = control(delay_s=DELAY_S)
    nodes.owner.blocks(8, 64, 2048, 5, 500)
    ours = nodes.puller.blocks(8, 64, 2048)
    odd = list(range(1, 64, 2))
    answers: list[str] = []
    trips = nodes.link.round_trips(lambda: answers.append(nodes.puller.pull_blocks(1, 5, odd, ours, odd[::-1])))
    assert answers == [SUCCESS]
    assert trips == 2
    assert nodes.puller.holds_blocks(ours, {block: 500 + 64 - block for block in odd})


def test_a_small_push_takes_one_round_trip(control: Any) -> None:
    """The bytes go with the question. Of more, the first says where they may go, and the second that they are there."""
    nodes = control(delay_s=DELAY_S, remote=True)
    for size, most in ((WITH_MESSAGES, 1), (DIRECTLY, 2), (GATHERED, 2)):
        theirs, ours = nodes.owner.allocate(*size), nodes.puller.bind(7, *size, kept=True)
        answers: list[str] = []

        def push(theirs: int = theirs, ours: int = ours, answers: list[str] = answers) -> None:
            answers.append(nodes.puller.push(1, theirs, 0, ours))

        assert nodes.link.round_trips(push) <= most, size
        assert answers == [SUCCESS]
        assert nodes.owner.holds(theirs, 0, 7)
        nodes.puller.drop_all()


def test_what_is_refused_takes_one(control: Any) -> None:
    nodes = control(delay_s=DELAY_S)
    answers: list[str] = []
    assert nodes.link.round_trips(lambda: answers.append(nodes.fetch(7, *WITH_MESSAGES))) <= 2
    assert answers == [NOT_EXIST]


# ------------------------------------------------------------------------------------------------- held up, and lost


@ways
@pytest.mark.parametrize("turn", [BEGIN, BEGUN, FINISH, FINISHED])
def test_a_message_that_comes_after_the_deadline(
    control: Any, eventually: Any, turn: int, tensors: int, slot_bytes: int
) -> None:
    """It changes nothing any more: neither for what it belonged to nor for what comes after it."""
    nodes = control(timeout_ms=TIMEOUT_MS)
    for number in (7, 8):
        nodes.owner.bind(number, tensors, slot_bytes)
    nodes.link.stop_at(turn, "hold")
    assert nodes.fetch(7, tensors, slot_bytes) == TIMED_OUT
    assert nodes.link.stopped.is_set()
    # Whether the other end has heard the last word is the one thing that is not known.
    assert nodes.owner.is_bound(7) == (turn != FINISHED)
    nodes.link.release()
    assert nodes.fetch(8, tensors, slot_bytes) == "right"
    again = nodes.fetch(7, tensors, slot_bytes)
    assert again == ("right" if turn in (BEGIN, BEGUN) else NOT_EXIST) or turn == FINISH
    nodes.nothing_is_left(eventually)


@ways
@pytest.mark.parametrize("turn", [BEGIN, BEGUN, FINISH, FINISHED])
def test_a_message_that_comes_late_but_in_time(control: Any, turn: int, tensors: int, slot_bytes: int) -> None:
    nodes = control(timeout_ms=60_000)
    nodes.owner.bind(7, tensors, slot_bytes)
    nodes.link.stop_at(turn, "hold")
    nodes.puller.begin("fetch", 1, 7, tensors, slot_bytes)
    assert nodes.link.stopped.wait(60)
    assert not nodes.puller.process.has_answered(0.2)
    nodes.link.release()
    assert nodes.puller.answer() == "right"
    assert nodes.owner.is_empty()


@ways
@pytest.mark.parametrize("turn", [BEGIN, BEGUN, FINISH, FINISHED])
def test_a_link_that_is_lost_at_a_message(
    control: Any, eventually: Any, turn: int, tensors: int, slot_bytes: int
) -> None:
    nodes = control(timeout_ms=60_000)
    nodes.owner.bind(7, tensors, slot_bytes)
    nodes.link.stop_at(turn, "cut")
    assert nodes.fetch(7, tensors, slot_bytes) == NOT_LINKED
    assert nodes.owner.is_bound(7) == (turn != FINISHED), "what has not been finished has not been done"
    nodes.relink()
    assert nodes.fetch(7, tensors, slot_bytes) == (NOT_EXIST if turn == FINISHED else "right")
    nodes.owner.bind(8, tensors, slot_bytes)
    assert nodes.fetch(8, tensors, slot_bytes) == "right"
    nodes.nothing_is_left(eventually)


@pytest.mark.parametrize("turn", [BEGIN, BEGUN, FINISH, FINISHED])
def test_a_push_of_which_a_message_comes_after_the_deadline(control: Any, eventually: Any, turn: int) -> None:
    nodes = control(timeout_ms=TIMEOUT_MS, remote=True)
    theirs = nodes.owner.bind(7, *DIRECTLY, kept=True)
    ours = nodes.puller.bind(8, *DIRECTLY, kept=True)
    nodes.link.stop_at(turn, "hold")
    code = nodes.puller.push(1, theirs, 0, ours)
    if code == SUCCESS:
        assert not nodes.link.stopped.is_set(), "it has not so many turns"
        return
    assert code == TIMED_OUT
    nodes.link.release()
    assert nodes.puller.push(1, theirs, 0, ours) == SUCCESS
    assert nodes.owner.holds(theirs, 0, 8)
    nodes.nothing_is_left(eventually)


@pytest.mark.parametrize("turn", [BEGIN, BEGUN, FINISH, FINISHED])
def test_a_push_whose_link_is_lost_at_a_message(control: Any, eventually: Any, turn: int) -> None:
    nodes = control(timeout_ms=60_000, remote=True)
    theirs = nodes.owner.bind(7, *DIRECTLY, kept=True)
    ours = nodes.puller.bind(8, *DIRECTLY, kept=True)
    nodes.link.stop_at(turn, "cut")
    code = nodes.puller.push(1, theirs, 0, ours)
    if code == SUCCESS:
        assert not nodes.link.stopped.is_set(), "it has not so many turns"
        return
    assert code == NOT_LINKED
    nodes.owner.drop_all()
    eventually(nodes.owner.is_empty, "the target's memory is back")
    nodes.relink()
    theirs = nodes.owner.bind(9, *DIRECTLY, kept=True)
    assert nodes.puller.push(1, theirs, 0, ours) == SUCCESS
    assert nodes.owner.holds(theirs, 0, 8)
    nodes.nothing_is_left(eventually)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("how", ["hold", "cut"])
def test_a_handshake_that_comes_no_further(
    nixl: None, lasting_hosts: LastingHosts, open_control_link: Any, eventually: Any, turn: int, how: Any
) -> None:
    """Nothing is linked then, at either end, and nothing is left of it; the next one succeeds."""
    server, client = lasting_hosts.open()
    assert client.unlink(1, *server.address, True) == SUCCESS
    assert client.link_to(server) == SUCCESS, "the engines are open now, which takes its time"
    assert client.unlink(1, *server.address) == SUCCESS
    link = open_control_link(lasting_hosts.network, server.address)
    server.bind(7, *WITH_MESSAGES)
    link.stop_at(turn, how)
    code = client.link(1, *link.address, HANDSHAKE_TIMEOUT_MS)
    if not link.stopped.is_set():
        assert code == SUCCESS, "the handshake has not so many turns"
        return
    assert code == ("LLM_TIMEOUT" if how == "hold" else "LLM_FAILED")
    assert client.fetch(1, 7, *WITH_MESSAGES) == NOT_LINKED
    link.release()
    eventually(lambda: client.link_to(server, link.address) == SUCCESS, "they can be linked")
    assert client.fetch(1, 7, *WITH_MESSAGES) == "right"
    eventually(lambda: link.connections == 3, "the session and two conversations: no other connection is left")
