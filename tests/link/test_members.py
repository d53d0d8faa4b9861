"""A communicator and those who call on it, message by message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rank_tables import loopback_hosts, rank_table

from llmdd.link import LinkTarget, messages
from llmdd.link.communicator import Agreement

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

RANKS = {1: 0, 2: 1, 3: 2}


@pytest.fixture
def waiting(make_node: Callable, eventually: Callable):
    """A node that waits for clusters 2 and 3, where it is to be met, and what its communicator was told."""
    node, hosts = make_node(1), loopback_hosts(3)
    table = rank_table(3, hosts)
    assert node.service.make_communicator("pool", RANKS, table) == 1
    target = LinkTarget(1, hosts[0], 16666)
    return node, target, Agreement.of("pool", RANKS, table)


@pytest.fixture
def call_on(make_raw_end: Callable, waiting: tuple, eventually: Callable) -> Callable:
    """Make a member that calls on the node as soon as it listens."""
    _, target, agreement = waiting

    def make(cluster_id: int, number: int = 1, **changes: bytes):
        end = make_raw_end(cluster_id)

        def is_there() -> bool:
            try:
                end.connect(target)
            except ConnectionRefusedError:
                return False
            return True

        eventually(is_there, "the node listens at its address")
        digests = {"name": agreement.name_digest, "agreement": agreement.digest, **changes}
        return end, messages.CommunicatorTag(number=number, **digests)

    return make


def status(node) -> str:
    return node.service.communicator_status(1).name


def refusal(end, target: LinkTarget, tag: messages.CommunicatorTag) -> messages.Refusal:
    channel = end.connect(target)
    channel.send(messages.LinkRequest(end.identity, target.cluster_id, tag))
    answer = channel.receive()
    assert isinstance(answer, messages.Refusal)
    assert channel.receive() is None
    return answer


def test_all_members_call(waiting: tuple, call_on: Callable) -> None:
    node, target, _ = waiting
    channels = []
    for cluster_id in (2, 3):
        assert status(node) == "PREPARING"
        end, tag = call_on(cluster_id)
        channels.append(end.link(target, tag))
    assert status(node) == "OK"
    assert sorted(node.linked()) == [2, 3]
    node.service.drop_communicator(1)
    for channel in channels:
        assert [channel.receive(), channel.receive()] == [messages.Farewell(), messages.Detached()]


def test_a_stranger_is_told_to_come_again(waiting: tuple, call_on: Callable) -> None:
    node, target, _ = waiting
    for cluster_id, changes in ((2, {"name": bytes(32)}), (9, {}), (9, {"agreement": bytes(32)})):
        end, tag = call_on(cluster_id, **changes)
        assert refusal(end, target, tag).for_now
    assert status(node) == "PREPARING"


def test_a_member_that_was_told_otherwise_is_refused_for_good(waiting: tuple, call_on: Callable) -> None:
    node, target, _ = waiting
    end, tag = call_on(2, agreement=bytes(32))
    assert not refusal(end, target, tag).for_now
    assert status(node) == "FAILED"


def test_a_connected_member_cannot_be_spoiled_by_its_namesake(waiting: tuple, call_on: Callable) -> None:
    node, target, _ = waiting
    end, tag = call_on(2)
    end.link(target, tag)
    namesake, tag = call_on(2, agreement=bytes(32))
    assert refusal(namesake, target, tag).for_now
    other, tag = call_on(2)
    assert refusal(other, target, tag).for_now, "another incarnation has to wait until the first one is gone"
    assert status(node) == "PREPARING"
    end, tag = call_on(3)
    end.link(target, tag)
    assert status(node) == "OK"


def test_a_member_may_call_again(waiting: tuple, call_on: Callable) -> None:
    """Its end of the first session is gone, or it would not; that we have not noticed is no reason to refuse it."""
    node, target, _ = waiting
    end, tag = call_on(2)
    first, second = end.link(target, tag), end.link(target, tag)
    assert first.receive() == messages.Detached()
    end, tag = call_on(3)
    end.link(target, tag)
    assert status(node) == "OK"
    second.send(messages.Farewell())
    assert second.receive() == messages.Detached()
    assert node.linked() == [3]


def test_a_member_that_leaves_is_awaited_again(waiting: tuple, call_on: Callable, eventually: Callable) -> None:
    node, target, _ = waiting
    end, tag = call_on(2)
    channel = end.link(target, tag)
    channel.send(messages.Farewell())
    assert channel.receive() == messages.Detached()
    end, tag = call_on(3)
    end.link(target, tag)
    assert status(node) == "PREPARING"
    end, tag = call_on(2, number=2)
    end.link(target, tag)
    assert status(node) == "OK"


def test_a_commit_that_comes_too_late(waiting: tuple, call_on: Callable, eventually: Callable) -> None:
    node, target, _ = waiting
    end, tag = call_on(2)
    channel = end.prepare_link(target, tag)
    node.service.drop_communicator(1)
    channel.send(messages.Commit())
    assert [channel.receive(), channel.receive()] == [messages.Detached(), None]
    assert node.linked() == []
    eventually(lambda: node.bits_out() == 0, "the bit granted in the handshake is free again")


def test_of_two_members_only_the_one_with_the_higher_rank_calls(waiting: tuple, call_on: Callable) -> None:
    node, target, _ = waiting
    end, _ = call_on(2)
    ranks, table = {2: 0, 1: 1, 3: 2}, rank_table(3)
    assert node.service.make_communicator("other", ranks, table) == 2
    other = Agreement.of("other", ranks, table)
    assert refusal(end, target, messages.CommunicatorTag(other.name_digest, other.digest, 1)).for_now
