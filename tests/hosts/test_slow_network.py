"""A network that is slow, or away for a while: the deadline holds, the key is kept, and no memory is spoilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import MakePair, Node, Pair
from .network import LossUnavailable

MEGABITS = 20
#: Takes seconds at that rate, in a few large pieces, or in many small ones.
LARGE = (4, 2 << 20)
SMALL_PIECES = (512, 16 << 10)
#: So much has gone when a transfer is taken to be under way, with most of it still to come.
BEGUN_BYTES = 1 << 20

TIMEOUT_MS = 1500
SUCCESS, TIMED_OUT, NOT_LINKED = "LLM_SUCCESS", "LLM_TIMEOUT", "LLM_NOT_YET_LINK"
NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"

pieces = pytest.mark.parametrize(("tensors", "slot_bytes"), [LARGE, SMALL_PIECES], ids=["large", "small"])


def begin(pair: Pair, call: Callable[[], None], source: int, eventually: Any) -> None:
    """Begin a transfer that is to take long, and wait until it is under way."""
    host = pair.hosts[source]
    host.limit_rate(MEGABITS)
    before = host.bytes_sent()
    call()
    eventually(lambda: host.bytes_sent() - before > BEGUN_BYTES, "bytes of the transfer have been sent")


def nothing_is_left(pair: Pair, eventually: Any) -> None:
    for node in (pair.owner, pair.puller):
        node.drop_all()
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


@pieces
def test_a_pull_that_outlives_its_deadline(make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, tensors, slot_bytes)
    ours = puller.allocate(tensors, slot_bytes)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    assert puller.answer() == TIMED_OUT
    assert owner.is_bound(7)
    pair.hosts[0].lift_limit()
    assert_pulled_in_the_end(puller, 1, 7, ours)
    nothing_is_left(pair, eventually)


def assert_pulled_in_the_end(node: Node, cluster_id: int, number: int, cache_id: int) -> None:
    """Every byte arrives, though a call may still run out of time while the network recovers.

    If one has when its last word was said and not answered, the key is gone, and its bytes were all there before
    (``spec/conversation.py``, rules 8 and 10).
    """
    codes = []
    while len(codes) < 20:
        codes.append(node.pull(cluster_id, number, cache_id))
        if codes[-1] == SUCCESS or codes[-2:] == [TIMED_OUT, NOT_EXIST]:
            assert node.holds(cache_id, 0, number), codes
            return
        assert codes[-1] == TIMED_OUT, codes
    raise AssertionError(f"still not after {len(codes)} calls")


@pieces
def test_memory_that_is_given_back_after_the_deadline_is_let_be(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int
) -> None:
    """It is not had by another until nothing writes there any more."""
    pair = make_pair(timeout_ms=TIMEOUT_MS, pool_bytes=24 << 20)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, tensors, slot_bytes)
    ours = puller.allocate(tensors, slot_bytes)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    assert puller.answer() == TIMED_OUT
    puller.drop(ours)
    others = puller.allocate_all_there_is(1 << 20)
    for other in others:
        puller.fill(other, 0x55)
    pair.hosts[0].lift_limit()
    for other in others[:8]:
        puller.drop(other)
    assert_pulled_in_the_end(puller, 1, 7, puller.allocate(tensors, slot_bytes))
    assert all(puller.is_filled(other, 0x55) for other in others[8:])
    nothing_is_left(pair, eventually)


@pieces
def test_nothing_arrives_after_the_deadline(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int
) -> None:
    """Also where the memory is kept: what is written there since stays (api §3.6, 10)."""
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    for number in (7, 8):
        owner.bind(number, tensors, slot_bytes)
    ours, other = (puller.allocate(tensors, slot_bytes) for _ in range(2))
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    assert puller.answer() == TIMED_OUT
    puller.fill(ours, 0x55)
    pair.hosts[0].lift_limit()
    assert_pulled_in_the_end(puller, 1, 8, other)
    assert puller.is_filled(ours, 0x55)
    assert owner.is_bound(7)
    nothing_is_left(pair, eventually)


@pieces
def test_a_push_that_outlives_its_deadline(make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS, remote=True)
    owner, pusher = pair.owner, pair.puller
    theirs = owner.bind(7, tensors, slot_bytes, kept=True)
    ours = pusher.bind(8, tensors, slot_bytes, kept=True)
    begin(pair, lambda: pusher.begin("push", 1, theirs, 0, ours), 1, eventually)
    assert pusher.answer() == TIMED_OUT
    assert owner.is_bound(7), "the key of the destination is kept"
    owner.drop_all()
    pair.hosts[1].lift_limit()
    eventually(owner.is_empty, "the target's memory is back when nothing is written there any more")
    theirs = owner.bind(9, tensors, slot_bytes, kept=True)
    assert_pushed_in_the_end(pusher, theirs, ours)
    assert owner.holds(theirs, 0, 8)
    assert not owner.is_bound(9)
    nothing_is_left(pair, eventually)


def assert_pushed_in_the_end(pusher: Node, theirs: int, ours: int) -> None:
    codes = []
    while not codes or codes[-1] != SUCCESS:
        codes.append(pusher.push(1, theirs, 0, ours))
        assert codes[-1] in (SUCCESS, TIMED_OUT) and len(codes) < 20, codes


# ----------------------------------------------------------------------------------------------------- the cable is out


@pytest.mark.parametrize(
    ("tensors", "slot_bytes", "unplugged"),
    [(*LARGE, 0), (*SMALL_PIECES, 1)],
    ids=["large-owner's cable", "small-puller's cable"],
)
def test_a_cable_that_is_out_for_a_while(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int, unplugged: int
) -> None:
    """The call ends with its deadline; the link has not noticed, and serves when the cable is in again."""
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, tensors, slot_bytes)
    ours = puller.allocate(tensors, slot_bytes)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    pair.hosts[unplugged].unplug()
    assert puller.answer() == TIMED_OUT
    assert puller.pull(1, 7, puller.allocate(tensors, slot_bytes)) == TIMED_OUT
    assert owner.is_bound(7)
    pair.hosts[0].lift_limit()
    pair.hosts[unplugged].plug_in()
    assert_pulled_in_the_end(puller, 1, 7, ours)
    nothing_is_left(pair, eventually)


def test_a_cable_that_is_out_for_less_than_the_deadline_costs_nothing_but_time(
    make_pair: MakePair, eventually: Any
) -> None:
    pair = make_pair(timeout_ms=60_000)
    pair.owner.bind(7, *LARGE)
    ours = pair.puller.allocate(*LARGE)
    begin(pair, lambda: pair.puller.begin("pull", 1, 7, ours), 0, eventually)
    pair.hosts[1].unplug()
    assert not pair.puller.process.has_answered(0.5)
    pair.hosts[0].lift_limit()
    pair.hosts[1].plug_in()
    assert pair.puller.answer() == SUCCESS
    assert pair.puller.holds(ours, 0, 7)
    nothing_is_left(pair, eventually)


def test_a_push_under_which_the_cable_is_pulled(make_pair: MakePair, eventually: Any) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS, remote=True)
    owner, pusher = pair.owner, pair.puller
    theirs = owner.allocate(*LARGE)
    ours = pusher.bind(8, *LARGE, kept=True)
    begin(pair, lambda: pusher.begin("push", 1, theirs, 0, ours), 1, eventually)
    pair.hosts[0].unplug()
    assert pusher.answer() == TIMED_OUT
    pair.hosts[1].lift_limit()
    pair.hosts[0].plug_in()
    assert_pushed_in_the_end(pusher, theirs, ours)
    assert owner.holds(theirs, 0, 8)
    nothing_is_left(pair, eventually)


def test_a_host_that_is_gone_without_a_word(make_pair: MakePair, start_process: Any, eventually: Any) -> None:
    """Nothing tells that it is: both ends find out for themselves, and give back what they held for the other."""
    pair = make_pair(timeout_ms=500)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, *LARGE)
    puller.bind(8, *LARGE)
    ours = puller.allocate(*LARGE)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    pair.hosts[1].unplug()
    assert puller.answer() == TIMED_OUT
    owner.remove_key(7)
    codes = set()
    while (code := puller.pull(1, 7, ours)) != NOT_LINKED:
        codes.add(code)
    assert codes <= {TIMED_OUT}
    eventually(lambda: owner.pull(2, 8, owner.allocate(*LARGE)) == NOT_LINKED, "the other end has noticed it too")
    nothing_is_left(pair, eventually)
    pair.hosts[0].lift_limit()
    pair.hosts[1].plug_in()
    owner.bind(9, *LARGE)
    assert puller.unlink(1, *owner.address, True) == SUCCESS
    eventually(lambda: puller.link_to(owner) == SUCCESS, "linked again, when the way is known again")
    eventually(lambda: puller.fetch(1, 9, *LARGE) == "right", "pulled, when the engine has found the way again")


@pieces
def test_a_network_that_delays_reorders_and_loses(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int
) -> None:
    """Where the kernel can make one; elsewhere a proxy does so to the messages alone (``test_control_link.py``)."""
    pair = make_pair()
    try:
        for host in pair.hosts:
            host.lose(percent=1, delay_ms=4, spread_ms=3)
    except LossUnavailable as reason:
        pytest.skip(str(reason))
    pair.owner.bind(7, tensors, slot_bytes)
    pair.owner.bind(8, 1, 1000)
    assert pair.puller.fetch(1, 8, 1, 1000) == "right"
    assert pair.puller.fetch(1, 7, tensors, slot_bytes) == "right"
    nothing_is_left(pair, eventually)
