"""A peer that dies, or comes back as another (api §4.1, D63)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkTarget, messages

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def kill_and_notice(client, server, eventually: Callable) -> None:
    server.kill()
    eventually(lambda: client.linked() == [], "the death is noticed")
    eventually(lambda: client.bits_out() == 0, "the dead peer's pin bit is free again")


def test_a_killed_server(make_node: Callable, make_peer: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    kill_and_notice(client, server, eventually)
    with pytest.raises(LLMException) as refused:
        client.pull(cluster_id=2, req_id=7)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
    assert client.unlink(target) == "LLM_UNLINK_FAILED"
    assert client.link(target) == "LLM_ALREADY_LINK"
    assert client.unlink(target, force=True) == "LLM_SUCCESS"
    assert client.link(target) == "LLM_LINK_FAILED"


@pytest.mark.parametrize("force", [False, True])
def test_a_restarted_server(make_node: Callable, make_peer: Callable, eventually: Callable, force: bool) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    kill_and_notice(client, server, eventually)
    restarted = make_peer(2)
    assert restarted.listen(target.port) == target
    assert client.link(target) == "LLM_ALREADY_LINK"
    assert restarted.call("linked") == []
    assert client.unlink(target, force=force) == "LLM_SUCCESS"
    assert client.link(target) == "LLM_SUCCESS"
    restarted.call("allocate", 7, 70)
    assert client.pull(cluster_id=2, req_id=7) == 70


def test_a_restarted_client(make_node: Callable, make_peer: Callable, eventually: Callable) -> None:
    server, client = make_node(2), make_peer(1)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    client.kill()
    restarted = make_peer(1)
    assert restarted.link(target) == "LLM_SUCCESS"
    server.bind(req_id=7, fill=70)
    assert restarted.call("pull", 2, 7) == 70
    eventually(lambda: server.bits_out() == 1, "the dead client's pin bit is free again")
    assert server.linked() == [1]


def test_a_restarted_client_may_be_unlinked_by_the_server_first(
    make_node: Callable, make_peer: Callable, eventually: Callable
) -> None:
    server, client = make_node(2), make_peer(1)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    kill_and_notice(server, client, eventually)
    assert server.unlink(LinkTarget(1, None, None), force=True) == "LLM_SUCCESS"
    assert make_peer(1).link(target) == "LLM_SUCCESS"


def test_a_restarted_client_may_unlink(make_node: Callable, make_peer: Callable, eventually: Callable) -> None:
    server, client = make_node(2), make_peer(1)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    kill_and_notice(server, client, eventually)
    restarted = make_peer(1)
    assert restarted.unlink(target) == "LLM_SUCCESS"
    back = restarted.listen()
    assert server.link(back) == "LLM_SUCCESS", "the server holds no end of the old link any more"


def test_a_client_that_links_anew_before_its_old_link_is_known_to_be_dead(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    server, first, second = make_node(2), make_raw_end(1), make_raw_end(1)
    target = server.listen()
    old = first.link(target)
    arena = server.service.peers[1]
    new = second.link(target)
    assert server.linked() == [1]
    assert server.service.peers[1] is not arena
    assert old.receive() == messages.Detached()
    assert server.bits_out() == 2, "the process of the old link lives and has promised nothing"
    old.send(messages.Detached())
    assert old.receive() is None
    eventually(lambda: server.bits_out() == 1, "now it has")
    old.close()
    new.send(messages.Farewell())
    assert new.receive() == messages.Detached()
    assert server.linked() == []


def test_a_connection_that_ends_is_no_promise(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    server = make_node(2)
    make_raw_end(1).link(server.listen()).close()
    eventually(lambda: server.linked() == [], "the link is broken")
    assert server.bits_out() == 1, "the process lives: it may still be copying"


def test_death_is_noticed_though_a_child_holds_the_sockets(
    make_node: Callable, make_peer: Callable, eventually: Callable
) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    server.fork()
    kill_and_notice(client, server, eventually)
    restarted = make_peer(2)
    assert restarted.listen(target.port) == target, "the child does not keep the port"
    assert client.unlink(target) == "LLM_SUCCESS"


def test_a_child_can_do_nothing_to_its_parents_links(make_node: Callable, make_peer: Callable) -> None:
    node, parent = make_node(1), make_peer(2)
    target = parent.listen()
    assert node.link(target) == "LLM_SUCCESS"
    assert parent.call("fork_and_finish") == 0
    assert (node.linked(), parent.call("linked")) == ([2], [1])
    node.bind(req_id=7, fill=70)
    assert parent.call("pull", 1, 7) == 70
    assert node.unlink(target) == "LLM_SUCCESS"
    assert node.link(target) == "LLM_SUCCESS"


def test_a_child_does_not_delay_its_parents_farewell(
    make_node: Callable, make_peer: Callable, eventually: Callable
) -> None:
    node, parent = make_node(1), make_peer(2)
    assert node.link(parent.listen()) == "LLM_SUCCESS"
    parent.fork()
    parent.call("close")
    eventually(lambda: node.linked() == [], "the parent said farewell")
    eventually(lambda: node.bits_out() == 0, "and promised to transfer no more")
