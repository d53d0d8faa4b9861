"""When a link goes down while the other end's process lives: what it reads is held no longer, what it writes is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arena_layout import StillPeer
from rank_tables import loopback_hosts, rank_table

from llmdd._core.cache_keys import CacheKey
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkTarget, messages
from llmdd.link.communicator import Agreement
from llmdd.link.reaper import Reaper

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

READ, WRITTEN = 0, 1


@pytest.fixture
def still() -> Iterator[Callable[..., Any]]:
    """Makes the other end of a node's link stand still while it reads from one cache and writes to another."""
    peers: list[StillPeer] = []

    def stand_still(node: Any) -> StillPeer:
        peer = StillPeer(node.store, node.bits_out() - 1)
        peers.append(peer)
        for slot in (READ, WRITTEN):
            node.bind(slot, 1)
            peer.pin(slot, writing=slot == WRITTEN)
            node.store.remove_cache_key(CacheKey(node.cluster_id, slot))
        assert node.store.live_caches == 2
        return peer

    yield stand_still
    for peer in peers:
        peer.close()


def only_what_is_written_is_held(node: Any, eventually: Callable) -> None:
    eventually(lambda: node.store.live_caches == 1, "what is read has gone back")
    node.store.check()


def test_dropping_the_link_by_force(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    peer = still(node)
    assert node.unlink(end.target, force=True) == "LLM_SUCCESS"
    only_what_is_written_is_held(node, eventually)
    assert channel.receive() == messages.Detached()
    assert node.bits_out() == 1
    peer.unpin(WRITTEN, writing=True)
    eventually(lambda: node.store.live_caches == 0, "a writer that has ended holds nothing")
    peer.unpin(READ)
    channel.send(messages.Detached())
    eventually(lambda: node.bits_out() == 0, "and it has promised to transfer no more")
    node.store.check()


def test_a_connection_that_ends(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    still(node)
    channel.close()
    eventually(lambda: node.linked() == [], "the link is lost")
    only_what_is_written_is_held(node, eventually)
    assert node.bits_out() == 1, "its process lives, and may still transfer"
    assert end.link(node.listen()) is not None
    assert node.bits_out() == 2


def test_what_is_no_message(make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    still(node)
    channel.send(b"\xff" * 64)
    eventually(lambda: node.linked() == [], "the link is lost")
    only_what_is_written_is_held(node, eventually)


def test_a_link_that_another_replaces(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    """The cluster has been started anew, and its old process stands still."""
    node, end, again = make_node(1), make_raw_end(2), make_raw_end(2)
    target = node.listen()
    end.link(target)
    still(node)
    again.link(target)
    only_what_is_written_is_held(node, eventually)
    assert node.linked() == [2] and node.bits_out() == 2


def test_a_link_dropped_in_good_order_and_then_by_force(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    still(node)
    channel.send(messages.Farewell())
    assert channel.receive() == messages.Detached()
    assert node.linked() == [] and node.store.live_caches == 2, "its transfers may finish"
    assert node.unlink(end.target, force=True) == "LLM_SUCCESS"
    only_what_is_written_is_held(node, eventually)


def test_a_promise_ends_everything(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    still(node)
    channel.send(messages.Detached())
    eventually(lambda: (node.store.live_caches, node.bits_out()) == (0, 0), "it transfers no more")
    node.store.check()


def test_a_communicator_that_is_dropped(
    make_node: Callable, make_raw_end: Callable, still: Callable, eventually: Callable
) -> None:
    """The other members' transfers get a while to finish, and no longer."""
    node, end = make_node(1, parting_time_s=0.05), make_raw_end(2)
    hosts = loopback_hosts(2)
    table = rank_table(2, hosts)
    number = node.service.make_communicator("pool", {1: 0, 2: 1}, table)
    agreement = Agreement.of("pool", {1: 0, 2: 1}, table)

    def connected() -> bool:
        try:
            tag = messages.CommunicatorTag(agreement.name_digest, agreement.digest, 1)
            end.link(LinkTarget(1, hosts[0], 16666), tag)
        except ConnectionRefusedError:
            return False
        return True

    eventually(connected, "the node listens at its address")
    eventually(lambda: node.linked() == [2], "both are connected")
    still(node)
    node.service.drop_communicator(number)
    only_what_is_written_is_held(node, eventually)


class StubbornStore:
    """A store that somebody holds still until ``free`` is set. It notes what it was told to do."""

    cluster_id = 1
    leases_are_due = False

    def __init__(self) -> None:
        self.free = threading.Event()
        self.refused = threading.Event()
        self.done: list[tuple[str, int]] = []

    def _do(self, *what: Any) -> None:
        if not self.free.is_set():
            self.refused.set()
            raise LLMException("held", status_code=LLMStatusCode.LLM_TIMEOUT)
        self.done.append(what)

    def evict_peer(self, peer_bit: int) -> int:
        self._do("evict", peer_bit)
        return peer_bit

    def dismiss_peer(self, peer_bit: int) -> int:
        self._do("dismiss", peer_bit)
        return peer_bit

    def reap(self) -> int:
        if not self.free.is_set():
            self.refused.set()
        return 0


def test_evictions_and_returns_keep_their_order(eventually: Callable) -> None:
    """An eviction that comes after its bit has come back would be that of whoever has the bit next."""
    store = StubbornStore()
    reaper = Reaper(store)  # type: ignore[arg-type]
    arrived = threading.Event()
    told: list[int] = []
    reaper.evict(3, told.append)
    reaper.evict(4, told.append)
    assert store.refused.wait(20)
    reaper.take_back(3, lambda pins: arrived.set() if pins == 3 else None)
    store.free.set()
    assert arrived.wait(20)
    reaper.close()
    assert store.done == [("evict", 3), ("evict", 4), ("dismiss", 3)]
    assert told == [3, 4]
