"""The other end stands still, or is killed, in the middle of a transfer: whoever is left is not held up, and keeps
nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import MakePair, Node, Pair
from .test_slow_network import LARGE, SMALL_PIECES, assert_pulled_in_the_end, assert_pushed_in_the_end, begin
from .test_slow_network import nothing_is_left as nothing_is_left_at_both

TIMEOUT_MS = 1500
SUCCESS, TIMED_OUT, NOT_LINKED = "LLM_SUCCESS", "LLM_TIMEOUT", "LLM_NOT_YET_LINK"
NOT_EXIST = "LLM_KV_CACHE_NOT_EXIST"

KILLS = 4
LONGEST_DELAY_S = 0.3

afterwards = pytest.mark.parametrize("then", ["thaw", "kill"])
#: What is gathered and what goes directly, what goes on and what is dead: each, and not each with each.
pieces_and_afterwards = pytest.mark.parametrize(
    ("tensors", "slot_bytes", "then"), [(*LARGE, "thaw"), (*SMALL_PIECES, "kill")], ids=["large-thaw", "small-kill"]
)


def nothing_is_left(node: Node, eventually: Callable[..., None]) -> None:
    node.drop_all()
    eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


def link_is_lost(node: Node, cluster_id: int, eventually: Callable[..., None]) -> None:
    """Until it is noticed calls may run out of time."""
    ours = node.allocate(1, 100)
    eventually(lambda: node.pull_by_id(cluster_id, 1_000_000, 0, ours) == NOT_LINKED, "the death is noticed")
    node.drop(ours)


# --------------------------------------------------------------------------------------------------------------- frozen


@afterwards
def test_an_owner_that_stands_still_from_the_beginning(make_pair: MakePair, eventually: Any, then: str) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    for number in (7, 8):
        owner.bind(number, *LARGE)
    assert puller.fetch(1, 8, *LARGE) == "right"
    ours = puller.allocate(*LARGE)
    owner.process.freeze()
    assert puller.pull(1, 7, ours) == TIMED_OUT
    assert puller.is_filled(ours, 0xEE)
    getattr(owner.process, then)()
    if then == "kill":
        link_is_lost(puller, 1, eventually)
        nothing_is_left(puller, eventually)
        return
    assert owner.is_bound(7)
    assert puller.pull(1, 7, ours) == SUCCESS
    assert puller.holds(ours, 0, 7)
    nothing_is_left_at_both(pair, eventually)


@pieces_and_afterwards
def test_an_owner_that_stops_in_mid_transfer(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int, then: str
) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, tensors, slot_bytes)
    ours = puller.allocate(tensors, slot_bytes)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    owner.process.freeze()
    assert puller.answer() == TIMED_OUT
    getattr(owner.process, then)()
    pair.hosts[0].lift_limit()
    if then == "kill":
        link_is_lost(puller, 1, eventually)
        nothing_is_left(puller, eventually)
        return
    assert owner.is_bound(7)
    assert_pulled_in_the_end(puller, 1, 7, ours)
    nothing_is_left_at_both(pair, eventually)


@pieces_and_afterwards
def test_a_puller_that_stops_in_mid_transfer(
    make_pair: MakePair, eventually: Any, tensors: int, slot_bytes: int, then: str
) -> None:
    """What it reads is held for it, until the link is dropped by force, or it is gone."""
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, tensors, slot_bytes)
    ours = puller.allocate(tensors, slot_bytes)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    puller.process.freeze()
    owner.remove_key(7)
    assert owner.state()["caches"] == 1, "it is still being read"
    if then == "thaw":
        assert owner.unlink(2, "127.0.0.1", 1, force=True) == SUCCESS
        eventually(owner.is_empty, "a reader that stands still is evicted")
    getattr(puller.process, then)()
    eventually(owner.is_empty, "a reader that is gone holds nothing")
    if then == "kill":
        link_is_lost(owner, 2, eventually)
        nothing_is_left(owner, eventually)
        return
    assert puller.answer() in (TIMED_OUT, NOT_LINKED)
    pair.hosts[0].lift_limit()
    nothing_is_left_at_both(pair, eventually)


def test_a_puller_that_stands_still_beyond_its_deadline(make_pair: MakePair, eventually: Any) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, *LARGE)
    ours = puller.allocate(*LARGE)
    begin(pair, lambda: puller.begin("pull", 1, 7, ours), 0, eventually)
    puller.process.freeze()
    time.sleep(TIMEOUT_MS / 1000)
    puller.process.thaw()
    assert puller.answer() == TIMED_OUT
    assert owner.is_bound(7)
    pair.hosts[0].lift_limit()
    assert_pulled_in_the_end(puller, 1, 7, ours)
    nothing_is_left_at_both(pair, eventually)


@afterwards
@pytest.mark.parametrize("frozen", ["pusher", "owner"])
def test_a_push_of_which_one_end_stops(make_pair: MakePair, eventually: Any, frozen: str, then: str) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS, remote=True)
    owner, pusher = pair.owner, pair.puller
    theirs = owner.bind(7, *LARGE, kept=True)
    ours = pusher.bind(8, *LARGE, kept=True)
    begin(pair, lambda: pusher.begin("push", 1, theirs, 0, ours), 1, eventually)
    still, other = (pusher, owner) if frozen == "pusher" else (owner, pusher)
    still.process.freeze()
    if frozen == "owner":
        assert pusher.answer() == TIMED_OUT
    getattr(still.process, then)()
    pair.hosts[1].lift_limit()
    if then == "kill":
        link_is_lost(other, still.cluster_id, eventually)
        nothing_is_left(other, eventually)
        return
    if frozen == "pusher":
        assert pusher.answer() in (SUCCESS, TIMED_OUT)
    assert_pushed_in_the_end(pusher, theirs, ours)
    assert owner.holds(theirs, 0, 8)
    nothing_is_left_at_both(pair, eventually)


# --------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize(
    ("doing", "tensors", "slot_bytes"),
    [("fetch_for_ever", *SMALL_PIECES), ("push_for_ever", *LARGE), ("push_for_ever", *SMALL_PIECES)],
    ids=["small-fetch_for_ever", "large-push_for_ever", "small-push_for_ever"],
)
def test_a_peer_killed_at_any_moment_leaves_nothing(
    make_pair: MakePair, start_process: Any, eventually: Any, doing: str, tensors: int, slot_bytes: int
) -> None:
    moments = random.Random(doing + str(tensors))
    remote = doing == "push_for_ever"
    pair = make_pair(remote=remote)
    owner, peer, resources = pair.owner, pair.puller, {}
    for kill_number in range(KILLS):
        caches = [owner.bind(number, tensors, slot_bytes, kept=remote) for number in range(3)]
        peer.begin(doing, 1, caches if remote else [0, 1, 2], tensors, slot_bytes)
        time.sleep(moments.uniform(0, LONGEST_DELAY_S))
        peer.process.kill()
        left = [number for number in range(3) if owner.is_bound(number)]
        nothing_is_left(owner, eventually)
        link_is_lost(owner, 2, eventually)
        peer = start_process(pair.hosts[1]).open(2, remote=remote)
        assert peer.link_to(owner) == SUCCESS
        owner.bind(100 + kill_number, tensors, slot_bytes)
        if not remote:
            assert peer.fetch(1, 100 + kill_number, tensors, slot_bytes) == "right", left
        nothing_is_left(owner, eventually)
        resources[kill_number] = owner.process.call("resources")
    half_way = resources[KILLS // 2]
    eventually(lambda: owner.process.call("resources") == half_way, f"nothing is left of the dead: {resources}")


def test_a_key_that_a_killed_peer_did_not_finish_can_be_pulled_by_another(
    make_pair: MakePair, start_process: Any, eventually: Any
) -> None:
    tensors, slot_bytes = LARGE
    pair = make_pair()
    owner, peer, numbers = pair.owner, pair.puller, list(range(4))
    moments = random.Random(11)
    for _kill_number in range(KILLS):
        for number in numbers:
            owner.bind(number, tensors, slot_bytes)
        peer.begin("fetch_for_ever", 1, numbers, tensors, slot_bytes)
        time.sleep(moments.uniform(0, LONGEST_DELAY_S / 3))
        peer.process.kill()
        link_is_lost(owner, 2, eventually)
        left = [number for number in numbers if owner.is_bound(number)]
        peer = start_process(pair.hosts[1]).open(2)
        assert peer.link_to(owner) == SUCCESS
        for number in numbers:
            assert peer.fetch(1, number, tensors, slot_bytes) == ("right" if number in left else NOT_EXIST)
        nothing_is_left(owner, eventually)


def test_pulls_from_an_owner_killed_at_any_moment_end(make_pair: MakePair, start_process: Any, eventually: Any) -> None:
    """What was had before is right, what comes then is not had, and the owner's next life serves."""
    tensors, slot_bytes = LARGE
    pair = make_pair()
    owner, puller = pair.owner, pair.puller
    moments = random.Random(tensors)
    port = owner.address[1]
    for kill_number in range(KILLS):
        theirs = owner.bind(kill_number, tensors, slot_bytes, kept=True)
        ours = puller.allocate(tensors, slot_bytes)
        puller.begin("pull_to_the_end", 1, theirs, kill_number, ours)
        time.sleep(moments.uniform(0, LONGEST_DELAY_S))
        owner.process.kill()
        # The engine may have noticed it before the session has.
        assert puller.answer() in ([NOT_LINKED, True], ["LLM_FAILED", True])
        link_is_lost(puller, 1, eventually)
        puller.drop(ours)
        eventually(puller.is_empty, "nothing is held of the dead owner's")
        owner = start_process(pair.hosts[0]).open(1, port=port)
        assert puller.unlink(1, *owner.address, True) == SUCCESS
        assert puller.link_to(owner) == SUCCESS
        owner.bind(100, tensors, slot_bytes)
        assert puller.fetch(1, 100, tensors, slot_bytes) == "right"


# ------------------------------------------------------------------------------------------------------------ restarted


def test_an_owner_that_comes_back_at_the_same_address(make_pair: MakePair, start_process: Any, eventually: Any) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    host, port = owner.address
    for life in range(2):
        owner.bind(7, 2, 100_000 + life)
        assert puller.fetch_persistently(1, 7, 2, 100_000 + life, host, port)[0] == "right"
        old = owner.bind(8, 2, 100_000, kept=True)
        owner.process.kill()
        puller.begin("fetch_persistently", 1, 7, 2, 100_001 + life, host, port)
        owner = start_process(pair.hosts[0]).open(1, port=port, timeout_ms=TIMEOUT_MS)
        owner.bind(7, 2, 100_001 + life)
        what, seen = puller.answer()
        assert what == "right"
        assert seen, "of its former life's link nothing could be had"
        ours = puller.allocate(2, 100_000)
        assert puller.pull_by_id(1, old, 0, ours) == NOT_EXIST, "its former life's caches are none of this one's"
        puller.drop(ours)
    nothing_is_left(puller, eventually)


def test_a_puller_that_comes_back(make_pair: MakePair, start_process: Any, eventually: Any) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    for life in range(2):
        owner.bind(life, *LARGE)
        assert puller.fetch(1, life, *LARGE) == "right"
        puller.process.kill()
        puller = start_process(pair.hosts[1]).open(2, timeout_ms=TIMEOUT_MS)
        assert puller.link_to(owner) == SUCCESS, "the link of its former life is replaced"
    nothing_is_left(owner, eventually)


def test_a_process_that_ends_in_good_order_in_mid_transfer(make_pair: MakePair, eventually: Any) -> None:
    """It finalizes its nodes while the other end pulls from it."""
    pair: Pair = make_pair(timeout_ms=TIMEOUT_MS)
    pair.owner.bind(7, *LARGE)
    ours = pair.puller.allocate(*LARGE)
    begin(pair, lambda: pair.puller.begin("pull", 1, 7, ours), 0, eventually)
    pair.owner.process.end()
    assert pair.puller.answer() in (TIMED_OUT, NOT_LINKED, SUCCESS)
    pair.hosts[0].lift_limit()
    link_is_lost(pair.puller, 1, eventually)
    nothing_is_left(pair.puller, eventually)
