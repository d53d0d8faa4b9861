"""More than two: hosts that all pull from each other, communicators across hosts, a hundred clusters linked to one."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from rank_tables import rank_table

from .conftest import HostProcess, MakePair, Node
from .network import Network

SUCCESS = "LLM_SUCCESS"
MANY = 100
MOST_PER_CALL = 16
SMALL_POOL = 1 << 20
TIMEOUT_MS = 5_000


@pytest.fixture
def three(nixl: None, make_network: Any, start_process: Any) -> list[Node]:
    """A node on each of three hosts. To part from one that is gone without a word takes as long as a transfer may."""
    hosts = make_network(3).hosts
    return [start_process(host).open(number, timeout_ms=TIMEOUT_MS) for number, host in enumerate(hosts, start=1)]


def test_three_hosts_pull_from_each_other(three: list[Node], eventually: Any) -> None:
    for near, far in permutations(three, 2):
        if near.cluster_id < far.cluster_id:
            assert near.link_to(far) == SUCCESS
    for size in ((1, 100), (2, 1 << 20), (100, 4096)):
        for near, far in permutations(three, 2):
            far.bind(10 * near.cluster_id, *size)
            near.begin("fetch", far.cluster_id, 10 * near.cluster_id, *size)
            assert near.answer() == "right"
        # Each from its neighbour, all at the same time.
        for near, far in zip(three, [*three[1:], three[0]], strict=True):
            far.bind(10 * near.cluster_id, *size)
        for near, far in zip(three, [*three[1:], three[0]], strict=True):
            near.begin("fetch", far.cluster_id, 10 * near.cluster_id, *size)
        assert [node.answer() for node in three] == ["right"] * 3
    for node in three:
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


def test_the_others_go_on_when_one_host_is_gone(three: list[Node], eventually: Any) -> None:
    owner, first, second = three
    for puller in (first, second):
        assert puller.link_to(owner) == SUCCESS
    for number in range(4):
        owner.bind(number, 2, 1 << 20)
    assert first.fetch(1, 0, 2, 1 << 20) == "right"
    first.process.kill()
    assert second.fetch(1, 1, 2, 1 << 20) == "right"
    second.process.host.unplug()
    second.process.kill()
    third = HostProcess(first.process.host)
    try:
        again = third.open(2)
        assert again.link_to(owner) == SUCCESS
        assert again.fetch(1, 2, 2, 1 << 20) == "right"
        owner.drop_all()
        eventually(owner.is_empty, "nothing is held for the dead")
    finally:
        third.end()


def test_a_communicator_of_three_hosts(three: list[Node], eventually: Any) -> None:
    table = rank_table(3, [node.process.host.address for node in three])
    joined = [node.join("all", [1, 2, 3], table) for node in three]
    assert [node.membership(number) for node, number in zip(three, joined, strict=True)] == ["OK"] * 3
    for near, far in permutations(three, 2):
        far.bind(10 * near.cluster_id, 2, 100_000)
        assert near.fetch(far.cluster_id, 10 * near.cluster_id, 2, 100_000) == "right"
    for node, number in zip(three, joined, strict=True):
        node.leave(number)
    assert three[0].fetch(2, 10, 2, 100_000) == "LLM_NOT_YET_LINK"
    for node in three:
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


def test_a_listener_at_an_address_of_version_six(nixl: None, network: Network, start_process: Any) -> None:
    server, client = (
        start_process(host).open(cluster_id, listen=f"[{host.six}]:0")
        for cluster_id, host in enumerate(network.hosts, start=1)
    )
    server.bind(7, 2, 1 << 20)
    assert client.link_to(server) == SUCCESS
    assert client.fetch(1, 7, 2, 1 << 20) == "right"


def test_links_that_come_and_go_leave_nothing(make_pair: MakePair, eventually: Any) -> None:
    pair = make_pair()
    owner, puller = pair.owner, pair.puller
    resources: list[list[dict[str, int]]] = []
    for turn in range(12):
        owner.bind(turn, 2, 300_000)
        assert puller.fetch(1, turn, 2, 300_000) == "right"
        assert puller.unlink(1, *owner.address, turn % 3 == 0) == SUCCESS
        eventually(lambda: puller.link_to(owner) == SUCCESS, "linked again")
        resources.append([node.process.call("resources") for node in (owner, puller)])
    for node, first in zip((owner, puller), resources[1], strict=True):
        eventually(lambda node=node, first=first: node.process.call("resources") == first, f"all is back: {resources}")
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


def test_several_nodes_of_one_process(nixl: None, network: Network, start_process: Any) -> None:
    """Each has pools and an engine of its own; those of one host are linked by its memory."""
    here, there = (start_process(host) for host in network.hosts)
    ours, theirs = [here.open(number) for number in (1, 2)], [there.open(number) for number in (3, 4)]
    for near in (*ours, theirs[0]):
        for far in theirs:
            if near is not far:
                far.bind(near.cluster_id, 2, 200_000)
                assert near.link_to(far) == SUCCESS
                assert near.fetch(far.cluster_id, near.cluster_id, 2, 200_000) == "right"
                near.bind(far.cluster_id, 2, 200_000)
                assert far.fetch(near.cluster_id, far.cluster_id, 2, 200_000) == "right"


def test_a_hundred_clusters_are_linked_to_one(
    nixl: None, network: Network, start_process: Any, eventually: Any
) -> None:
    hub_host, others_host = network.hosts
    hub = start_process(hub_host).open(1000)
    processes = [start_process(others_host) for _ in range(2)]
    others = [
        processes[number % 2].open(number, listens=number > MANY // 2, pool_bytes=SMALL_POOL)
        for number in range(1, MANY + 1)
    ]
    for other in others[: MANY // 2]:
        assert other.link_to(hub) == SUCCESS
    listening = [(other.cluster_id, *other.address) for other in others[MANY // 2 :]]
    for first in range(0, len(listening), MOST_PER_CALL):
        some = listening[first : first + MOST_PER_CALL]
        assert hub.link_all(some) == [SUCCESS] * len(some)
    for other in others:
        other.bind(7, 4, 10_000)
        hub.bind(other.cluster_id, 4, 10_000)
    for other in others:
        assert hub.fetch(other.cluster_id, 7, 4, 10_000) == "right"
        assert other.fetch(1000, other.cluster_id, 4, 10_000) == "right"
    for other in others[:10]:
        processes[other.cluster_id % 2].call("close", other.cluster_id)
    for other in others[10:]:
        hub.bind(other.cluster_id, 1, 100)
        assert other.fetch(1000, other.cluster_id, 1, 100) == "right", "whoever leaves disturbs nobody"
    eventually(hub.is_empty, "nothing is held")
