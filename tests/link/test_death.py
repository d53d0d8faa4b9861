"""A peer that dies, or comes back as another (api §4.1, D63)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from arena_layout import StillPeer

from llmdd._core.cache_keys import CacheKey
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkTarget, messages

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor() as threads:
        yield threads.submit


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


# -- what was under way ---------------------------------------------------------------------------------------------

# Longer than the tests wait: what ends before was told of the death.
_LONG_MS = 200_000


def is_connected_to(port: int) -> bool:
    """Whether there is a connection to a port of this host, taken there or not."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


def test_a_link_in_the_making(
    make_node: Callable, make_peer: Callable, eventually: Callable, in_background: Callable
) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    server.freeze()
    code = in_background(client.link, target, _LONG_MS)
    eventually(lambda: is_connected_to(target.port), "it waits for the other end's welcome")
    server.kill()
    assert code.result() == "LLM_FAILED"
    assert client.linked() == [] and client.bits_out() == 0


def test_an_unlinking_under_way(
    make_node: Callable, make_peer: Callable, eventually: Callable, in_background: Callable
) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    server.freeze()
    code = in_background(client.unlink, target, _LONG_MS)
    eventually(lambda: 2 in client.service._endpoint._turns, "it has begun")
    server.kill()
    assert code.result() == "LLM_UNLINK_FAILED"
    eventually(lambda: client.linked() == [] and client.bits_out() == 0, "the death is noticed")
    assert client.unlink(target, force=True) == "LLM_SUCCESS"


# -- what is counted, and told --------------------------------------------------------------------------------------


def test_the_pins_of_the_dead_are_dropped_once_and_counted(
    make_node: Callable, make_peer: Callable, eventually: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    node, peer = make_node(1), make_peer(2)
    assert node.link(peer.listen()) == "LLM_SUCCESS"
    still = StillPeer(node.store, 0)
    for slot in (0, 1):
        node.bind(slot, 1)
        still.pin(slot, writing=slot == 1)
        node.store.remove_cache_key(CacheKey(1, slot))
    with caplog.at_level(logging.WARNING, "llmdd.link"):
        kill_and_notice(node, peer, eventually)
        eventually(lambda: node.service.counts.pins_dropped == 2, "both pins are counted")
    (line,) = (line for line in caplog.messages if "is gone" in line)
    assert line.startswith("cluster 2 (incarnation ")
    assert line.endswith("2 pins were dropped")
    assert node.store.live_caches == 0
    counts = node.service.counts
    assert (counts.links_lost, counts.pins_dropped, counts.reads_evicted) == (1, 2, 0)
    still.close()


def test_reads_that_are_evicted_are_counted_apart(
    make_node: Callable, make_peer: Callable, eventually: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """What is evicted is not dropped once more when its process dies at last."""
    node, peer = make_node(1), make_peer(2)
    target = peer.listen()
    assert node.link(target) == "LLM_SUCCESS"
    still = StillPeer(node.store, 0)
    node.bind(0, 1)
    still.pin(0)
    node.store.remove_cache_key(CacheKey(1, 0))
    peer.freeze()
    assert node.unlink(target, force=True) == "LLM_SUCCESS"
    counts = node.service.counts
    eventually(lambda: counts.reads_evicted == 1, "the read is evicted")
    assert node.store.live_caches == 0
    peer.kill()
    eventually(lambda: node.bits_out() == 0, "the death is noticed")
    eventually(lambda: "0 pins were dropped" in caplog.text, "and told")
    assert (counts.links_lost, counts.pins_dropped, counts.reads_evicted) == (0, 0, 1)
    still.close()
