"""api §5E: departures from the original, D56 to D65: linking."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc, ClusterInfo
from rank_tables import rank_table

from conformance.reference_world import ReferenceWorld
from conformance.world import Node, World, by_id, in_time, info_of, link, outcome, refused

SUCCESS, LX, NOT_LINKED = "LLM_SUCCESS", "LLM_PARAM_INVALID", "LLM_NOT_YET_LINK"
C = CacheDesc(1, (1, 16), "DT_UINT8")
LOCAL = (("127.0.0.1", 0),)


def can_pull(puller: Node, owner: Node) -> Any:
    theirs, ours = in_time(lambda: owner.allocate_cache(C)), in_time(lambda: puller.allocate_cache(C))
    answer = outcome(lambda: puller.pull_cache(by_id(theirs, cluster_id=owner.cluster_id), ours))
    in_time(lambda: owner.deallocate_cache(theirs))
    in_time(lambda: puller.deallocate_cache(ours))
    return answer


def test_d56_more_than_16_clusters(world: World) -> None:
    """api D56: more than 16 clusters: LLM_CLUSTER_NUM_EXCEED_LIMIT, nothing attempted."""
    server, client = world.node(1), world.node(2)
    infos = [info_of(server)] + [ClusterInfo(number, LOCAL, (("127.0.0.1", 1),)) for number in range(10, 26)]
    assert client.link_clusters(infos) == ("LLM_CLUSTER_NUM_EXCEED_LIMIT", [])
    assert client.linked() == ()
    assert client.link_clusters(infos[:16])[1] == [SUCCESS] + ["LLM_LINK_FAILED"] * 15


def test_d57_deadline_everywhere(library: Any) -> None:
    """api D57: the timeout bounds the call against a silent peer; silent connections stop no server from accepting."""
    server, client = library.node(1), library.node(2)
    silent = [socket.create_connection(server.listen_address) for _ in range(40)]
    link(client, server)
    for connection in silent:
        connection.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        info = ClusterInfo(7, LOCAL, (listener.getsockname(),))
        assert client.link_clusters([info], timeout=50) == ("LLM_TIMEOUT", ["LLM_TIMEOUT"])


def test_d58_wrong_remote_cluster_id(world: World) -> None:
    """api D58: wrong remote_cluster_id: LLM_PARAM_INVALID, and there is no link at either end."""
    server, client = world.node(1), world.node(2)
    assert client.link_clusters([info_of(server, 5)]) == (LX, [LX])
    assert (client.linked(), server.linked()) == ((), ())
    link(client, server)


def test_d59_entries_are_removed_by_identity(world: World) -> None:
    """api D59: re-linking after a client restart: what goes of the old link takes nothing from the new one."""
    server, client = world.pair()
    for _ in range(10):
        client.unlink_clusters([info_of(server)], force=True)
        link(client, server)
        assert can_pull(client, server) is None
        assert can_pull(server, client) is None


def test_d60_conflicting_calls_wait(library: Any) -> None:
    """api D60: conflicting calls wait; LINK_BUSY or TIMEOUT at the deadline; the other three codes never."""
    server, client = library.pair()
    theirs, ours = server.allocate_cache(C), [client.allocate_cache(C) for _ in range(4)]
    answers: list[Any] = []

    def pull(number: int) -> None:
        answers.extend(outcome(lambda: client.pull_cache(by_id(theirs), ours[number])) for _ in range(50))

    def relink() -> None:
        for _ in range(20):
            answers.extend(client.unlink_clusters([info_of(server)])[1])
            answers.extend(client.link_clusters([info_of(server)])[1])

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=relink))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {None, SUCCESS, NOT_LINKED}
    assert answers.count(SUCCESS) == 40
    assert can_pull(client, server) is None


def test_d60_busy(library: Any) -> None:
    """api D60: LLM_LINK_BUSY when the deadline passes before the link became free; the link is sound."""
    size = 256 << 20
    settings = {"device_bytes": size + (1 << 20), "host_bytes": None, "page_shift": 20}
    server, client = library.node(1, **settings), library.node(2, **settings, SyncKvCacheWaitTime="5")
    large = CacheDesc(1, (1, size), "DT_UINT8")
    small = CacheDesc(1, (1, 16), "DT_UINT8")
    assert client.link_clusters([info_of(server)])[0] == SUCCESS
    theirs, ours = server.allocate_cache(large), in_time(lambda: client.allocate_cache(large))
    theirs_small, ours_small = server.allocate_cache(small), in_time(lambda: client.allocate_cache(small))
    seen: set[Any] = set()
    for _ in range(20):
        begun = threading.Event()

        def pull(begun: threading.Event = begun) -> None:
            begun.set()
            seen.add(outcome(lambda: client.pull_cache(by_id(theirs), ours)))

        puller = threading.Thread(target=pull)
        puller.start()
        begun.wait()
        seen.add(outcome(lambda: client.pull_cache(by_id(theirs_small), ours_small)))
        puller.join()
    assert seen <= {None, "LLM_TIMEOUT", "LLM_LINK_BUSY"}
    assert client.linked() == (1,)
    library.until(lambda: outcome(lambda: client.pull_cache(by_id(theirs_small), ours_small)) is None, "it is sound")


def test_d61_enable_switch_role_is_ignored(world: World) -> None:
    """api D61: without enable_switch_role, or with it off, switch_role works."""
    for number, options in enumerate(({}, {"EnableSwitchRole": "0"}, {"EnableSwitchRole": "1"})):
        world.node(1 + number, "PROMPT", **options).switch_role("DECODER")


def test_d62_ports(world: World) -> None:
    """api D62: a new ip with the same port counts; ports > 65535 are refused; a failed re-listen keeps the old one."""
    node, other = world.node(1), world.node(2)
    address = node.listen_address
    with refused("ValueError"):
        node.switch_role("MIX", {"llm.listenIpInfo": f"127.0.0.1:{address[1] + 65536}"})
    with refused("LLM_FAILED"):
        node.switch_role("MIX", {"llm.listenIpInfo": f"127.0.0.1:{other.listen_address[1]}"})
    assert node.listen_address == address
    node.switch_role("MIX", {"llm.listenIpInfo": f"127.0.0.3:{address[1]}"})
    assert node.listen_address == ("127.0.0.3", address[1])


def test_d63_a_timeout_does_not_damage_the_link(library: Any) -> None:
    """api D63: after a timeout the link works on; a dead peer is reported as NOT_YET_LINK."""
    size = 128 << 20
    settings = {"device_bytes": size + (1 << 20), "host_bytes": None, "page_shift": 20}
    server, client = library.node(1, **settings), library.node(2, **settings, SyncKvCacheWaitTime="2")
    assert client.link_clusters([info_of(server)])[0] == SUCCESS
    large = CacheDesc(1, (1, size), "DT_UINT8")
    theirs, ours = server.allocate_cache(large), in_time(lambda: client.allocate_cache(large))
    with refused("LLM_TIMEOUT"):
        client.pull_cache(by_id(theirs), ours)
    library.until(lambda: can_pull(client, server) is None, "a small pull over the same link")
    server.unlink_clusters([ClusterInfo(2, (), ())], force=True)
    library.until(lambda: can_pull(client, server) == NOT_LINKED, "the client notices")


@pytest.mark.parametrize("timeout", [0, -1])
def test_d64_what_link_clusters_raises(world: World, timeout: int) -> None:
    """api D64: LX for timeout ≤ 0 and a missing local ip, as the original."""
    server, client = world.node(1), world.node(2)
    for call in (client.link_clusters, client.unlink_clusters):
        with refused(LX):
            call([info_of(server)], timeout)
    with refused(LX, "local_ip_info_list is empty"):
        client.link_clusters([ClusterInfo(1, (), (server.listen_address,))])


def test_d65_512_links() -> None:
    """api D65: ``link_clusters``: 512 in two-sided mode, then FAILED."""
    world = ReferenceWorld()
    server = world.node(1)
    for number in range(512):
        link(world.node(2 + number, listen=None), server)
    assert world.node(999).link_clusters([info_of(server)]) == ("LLM_FAILED", ["LLM_FAILED"])
    world.nodes[1].unlink_clusters([ClusterInfo(1, (), ())], force=True)
    server.unlink_clusters([ClusterInfo(2, (), ())], force=True)
    assert world.nodes[-1].link_clusters([info_of(server)])[0] == SUCCESS


@pytest.mark.xfail(strict=True, reason="an owner has pin bits for 64 peers on its host")
def test_d65_512_links_of_the_library(library: Any) -> None:
    """api D65: ``link_clusters``: 512 in two-sided mode, then FAILED: asked of the library."""
    server = library.node(1, device_bytes=None, host_bytes=None)
    for number in range(512):
        link(library.node(2 + number, listen=None, device_bytes=None, host_bytes=None), server)
    client = library.node(999, device_bytes=None, host_bytes=None)
    assert client.link_clusters([info_of(server)]) == ("LLM_FAILED", ["LLM_FAILED"])


def test_d65_512_communicators(world: World) -> None:
    """api D65: ``link``: 512, then PARAM_INVALID; unlinking one makes room."""
    node = world.node(1)
    table = rank_table(2)
    for number in range(1, 513):
        assert node.link(f"pool {number}", {1: 0, 2: 1}, table) == number
    with refused(LX):
        node.link("one more", {1: 0, 2: 1}, table)
    node.unlink(7)
    assert node.link("one more", {1: 0, 2: 1}, table) >= 513
    for number in [*range(1, 7), *range(8, 513)]:
        node.unlink(number)
