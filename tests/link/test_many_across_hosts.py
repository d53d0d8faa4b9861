"""pull_many with peers of other hosts, alone and beside peers of this one: each item as one pull, or all or none."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from conversing_nodes import ConversingNode, Line, contents
from programmable_engine import Course, Network

from llmdd._core.cache_keys import CacheKey
from llmdd._core.peer import PeerArena
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import attendance, conversation, transfer_messages

ROW = 2000
LARGE_ROW = 200_000

OK = int(LLMStatusCode.LLM_SUCCESS)
MISSING = int(LLMStatusCode.LLM_KV_CACHE_NOT_EXIST)
INVALID = int(LLMStatusCode.LLM_PARAM_INVALID)


class Cluster:
    """A node, a peer on its host (2), and two on hosts of their own (3, 4)."""

    def __init__(self, make_conversing: Callable[..., ConversingNode], row_bytes: int) -> None:
        self.node = make_conversing(1)
        self.peers = {number: make_conversing(number) for number in (2, 3, 4)}
        neighbour = self.peers[2].store
        arena = PeerArena(*neighbour.export(), neighbour.admit_peer(), os.getpid())
        self.lines = [Line(self.node, self.peers[number]) for number in (3, 4)]
        self.node.store.peers = {**self.node.store.peers, 2: arena}
        self.sources = {
            number: peer.cache(row_bytes, *range(10, 14), seed=number) for number, peer in self.peers.items()
        }
        self.target = self.node.cache(row_bytes, rows=8)

    def key(self, cluster_id: int, row: int) -> CacheKey:
        return CacheKey(cluster_id, 10 + row)

    def pull(self, *slots: tuple[int, int], all_or_nothing: bool = False) -> list[int]:
        keys = [self.key(*slot) for slot in slots]
        return self.node.store.pull_many(keys, self.target, all_or_nothing=all_or_nothing).tolist()

    def arrived(self, *slots: tuple[int, int]) -> bool:
        rows = np.asarray(self.target.tensors[0])
        return all(
            np.array_equal(rows[number], np.asarray(self.sources[cluster_id].tensors[0])[row])
            for number, (cluster_id, row) in enumerate(slots)
        )

    def bound(self) -> int:
        """How many keys there are at the peers."""
        return sum(peer.store.live_keys for peer in self.peers.values())


@pytest.fixture(params=["small", "large", "small, one at a time"])
def cluster(
    make_conversing: Callable[..., ConversingNode], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    if request.param == "small, one at a time":
        monkeypatch.setattr(attendance, "_ITEMS_AT_ONCE", 1)
        monkeypatch.setattr(transfer_messages, "LONG_PAYLOAD", 0)
    return Cluster(make_conversing, LARGE_ROW if request.param == "large" else ROW)


SEVERAL = [(3, 0), (2, 1), (4, 2), (3, 3), (2, 0), (4, 1)]


@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_every_item_arrives_and_drops_its_key(cluster: Cluster, all_or_nothing: bool) -> None:
    assert cluster.pull(*SEVERAL, all_or_nothing=all_or_nothing) == [OK] * 6
    assert cluster.arrived(*SEVERAL)
    assert cluster.bound() == 12 - 6


@pytest.mark.parametrize("cluster_id", [2, 3])
def test_each_item_has_its_own_result(cluster: Cluster, cluster_id: int) -> None:
    slots = [(cluster_id, 0), (cluster_id, 77), (cluster_id, 1), (cluster_id, 0), (9, 0), (cluster_id, 3)]
    codes = cluster.pull(*slots)
    assert codes == [OK, MISSING, OK, MISSING, int(LLMStatusCode.LLM_NOT_YET_LINK), OK]
    assert cluster.bound() == 12 - 3


@pytest.mark.parametrize("refused", range(6))
@pytest.mark.parametrize("cluster_id", [2, 3, 4])
def test_one_that_is_refused_keeps_the_keys_of_all(cluster: Cluster, refused: int, cluster_id: int) -> None:
    slots = list(SEVERAL)
    slots[refused] = (cluster_id, 77)
    with pytest.raises(LLMException, match=f"item {refused}") as caught:
        cluster.pull(*slots, all_or_nothing=True)
    assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert cluster.bound() == 12
    assert not any(any(tensor) for tensor in contents(cluster.target)), "nothing was written"
    assert cluster.pull(*SEVERAL, all_or_nothing=True) == [OK] * 6


@pytest.mark.parametrize("cluster_id", [2, 3, 4])
def test_a_key_that_is_named_twice_is_there_once(cluster: Cluster, cluster_id: int) -> None:
    slots = [(3, 0), (2, 1), (cluster_id, 2), (4, 3), (cluster_id, 2)]
    with pytest.raises(LLMException, match="item 4") as caught:
        cluster.pull(*slots, all_or_nothing=True)
    assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
    assert cluster.bound() == 12
    assert cluster.pull(*slots) == [OK, OK, OK, OK, MISSING]


def test_an_engine_that_gives_up_in_the_middle_keeps_the_keys_of_all(
    make_conversing: Callable[..., ConversingNode], network: Network
) -> None:
    cluster = Cluster(make_conversing, LARGE_ROW)
    for number in range(2):
        network.follow([Course(polls=2)] * number)
        network.usual = Course(fails=0)
        with pytest.raises(LLMException) as caught:
            cluster.pull(*SEVERAL, all_or_nothing=True)
        assert caught.value.status_code is LLMStatusCode.LLM_FAILED
        assert cluster.bound() == 12
        network.usual = Course(polls=3)
    assert cluster.pull(*SEVERAL, all_or_nothing=True) == [OK] * 6
    assert cluster.arrived(*SEVERAL)


def test_a_line_that_ends_in_the_middle_keeps_the_keys_of_all(
    make_conversing: Callable[..., ConversingNode], network: Network, eventually: Callable
) -> None:
    cluster = Cluster(make_conversing, LARGE_ROW)
    broken = cluster.lines[1]

    def hang_up(answer: object) -> list[object]:
        broken.hang_up()
        return []

    broken.alter_answer = hang_up
    with pytest.raises(LLMException) as caught:
        cluster.pull(*SEVERAL, all_or_nothing=True)
    assert caught.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
    assert cluster.bound() == 12
    for peer in (cluster.peers[3], cluster.peers[4]):
        eventually(peer.is_served_by_nobody, "every pin is dropped")
    broken.close()
    cluster.node.lines.remove(broken)
    cluster.lines[1] = Line(cluster.node, cluster.peers[4])
    assert cluster.pull(*SEVERAL, all_or_nothing=True) == [OK] * 6


def test_an_item_of_our_own_that_cannot_be_is_refused_before_a_byte(cluster: Cluster) -> None:
    keys = [cluster.key(3, 0), cluster.key(4, 1)]
    with pytest.raises(LLMException, match="item 1"):
        cluster.node.store.pull_many(keys, cluster.target, [0, 77], all_or_nothing=True)
    assert cluster.bound() == 12
    assert cluster.node.store.pull_many(keys, cluster.target, [0, 77]).tolist() == [OK, INVALID]


def test_more_keys_than_a_request_may_have(
    make_conversing: Callable[..., ConversingNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_ITEMS", 10)
    monkeypatch.setattr(conversation.Conversation, "MAX_ITEMS", 10)
    asker, owner = make_conversing(1), make_conversing(2)
    line = Line(asker, owner)
    source, target = owner.cache(100, *range(35), seed=1), asker.cache(100, rows=35)
    with pytest.raises(LLMException) as caught:
        asker.store.pull_many(np.arange(35), target, cluster_id=2, all_or_nothing=True)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert owner.store.live_keys == 35
    assert line.said == []
    assert not asker.store.pull_many(np.arange(35), target, cluster_id=2).any()
    assert contents(target) == contents(source)
    assert line.said == ["Begin", "Finish"] * 4
