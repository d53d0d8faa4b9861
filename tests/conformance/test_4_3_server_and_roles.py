"""api §4.3: the server, ``switch_role``, backends."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc, ClusterInfo
from rank_tables import rank_table

from conformance.world import Node, World, by_id, info_of, link, options_of, outcome, refused

C = CacheDesc(2, (1, 64), "DT_UINT8")


def unused_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def listen_at(port: int) -> dict[str, str]:
    return {"llm.listenIpInfo": f"127.0.0.1:{port}"}


def accepts(node: Node, client: Node) -> bool:
    """Whether the node can be linked to; unlinks again."""
    info = ClusterInfo(node.cluster_id, (("127.0.0.1", 0),), (node.listen_address,))
    linked = client.link_clusters([info])[0] == "LLM_SUCCESS"
    return linked and client.unlink_clusters([info])[0] == "LLM_SUCCESS"


def test_listening_starts_during_init(world: World) -> None:
    """api §4.3: ``listen_ip_info`` starts listening during init."""
    server, client = world.node(1), world.node(2)
    assert accepts(server, client)


def test_a_new_address_replaces_the_listener(world: World) -> None:
    """api §4.3: switch_role with ``llm.listenIpInfo``: listen there; a new address replaces the listener."""
    server, client = world.node(1, "PROMPT"), world.node(2)
    before, port = server.listen_address, unused_port()
    server.switch_role("DECODER", listen_at(port))
    assert server.listen_address == ("127.0.0.1", port)
    assert accepts(server, client)
    gone = ClusterInfo(1, (("127.0.0.1", 0),), (before,))
    assert client.link_clusters([gone])[0] == "LLM_LINK_FAILED"


def test_an_unchanged_address_keeps_the_listener(world: World) -> None:
    """api §4.3: ip **and** port compared; unchanged address keeps the listener."""
    server, client = world.node(1), world.node(2)
    address = server.listen_address
    server.switch_role("DECODER", listen_at(address[1]))
    assert server.listen_address == address
    assert accepts(server, client)


def test_another_ip_with_the_same_port(world: World) -> None:
    """api §4.3, D62: ip **and** port are compared: another ip with the same port is another address."""
    server, client = world.node(1), world.node(2)
    port = server.listen_address[1]
    server.switch_role("PROMPT", {"llm.listenIpInfo": f"127.0.0.2:{port}"})
    assert server.listen_address == ("127.0.0.2", port)
    assert accepts(server, client)


@pytest.mark.parametrize("options", [None, {}, {"llm.other": "x"}])
def test_without_an_address_it_stops_listening(world: World, options: dict[str, str] | None) -> None:
    """api §4.3: without ``llm.listenIpInfo``: stop listening; other option keys are ignored."""
    server, client = world.node(1), world.node(2)
    before = server.listen_address
    server.switch_role("DECODER", options)
    assert server.listen_address is None
    gone = ClusterInfo(1, (("127.0.0.1", 0),), (before,))
    assert client.link_clusters([gone])[0] == "LLM_LINK_FAILED"
    server.switch_role("PROMPT", listen_at(0))
    assert accepts(server, client)


def test_options_are_optional(world: World) -> None:
    """api §4.3: ``switch_options`` may be left out."""
    node = world.node(1)
    assert node.switch_role("DECODER") is None


def test_with_links_alive(world: World) -> None:
    """api §4.3: links alive: LX(EXIST_LINK), at both ends."""
    server, client = world.pair()
    address = server.listen_address
    for node in (server, client):
        with refused("LLM_EXIST_LINK"):
            node.switch_role("MIX", listen_at(unused_port()))
    assert server.listen_address == address
    client.unlink_clusters([info_of(server)])
    for node in (server, client):
        node.switch_role("MIX", listen_at(0))
    link(client, server)


def test_with_a_communicator_alive(world: World) -> None:
    """api §4.3: a communicator is a link that is alive, too."""
    node, table = world.node(1), rank_table(2)
    number = node.link("pool", {1: 0, 2: 1}, table)
    with refused("LLM_EXIST_LINK"):
        node.switch_role("DECODER")
    node.unlink(number)
    node.switch_role("DECODER")


@pytest.mark.parametrize("role", ["PROMPT", "DECODER", "MIX"])
def test_any_role(world: World, role: str) -> None:
    """api §4.3: switching to the current role is allowed; ``enable_switch_role`` is not needed (D61)."""
    for number, start in enumerate(("PROMPT", "DECODER", "MIX")):
        node = world.node(1 + number, start)
        node.switch_role(role, listen_at(0))
        node.switch_role(role, listen_at(0))


def test_an_address_that_cannot_be_bound(world: World) -> None:
    """api §4.3: the role changes only if the call succeeds; else the old listener stays."""
    server, other, client = world.node(1, "PROMPT"), world.node(2), world.node(3)
    address = server.listen_address
    with refused("LLM_FAILED"):
        server.switch_role("DECODER", listen_at(other.listen_address[1]))
    assert server.listen_address == address
    assert accepts(server, client)


def test_the_role_changes_only_if_the_call_succeeds(library: Any) -> None:
    """api §4.3: the role changes only if the call succeeds."""
    server, other = library.node(1, "PROMPT"), library.node(2)
    with refused("LLM_FAILED"):
        server.switch_role("DECODER", listen_at(other.listen_address[1]))
    assert "PROMPT" in repr(server.datadist)
    server.switch_role("DECODER", listen_at(0))
    assert "DECODER" in repr(server.datadist)


def test_caches_survive(world: World) -> None:
    """api §4.3: switching the role touches no cache."""
    node = world.node(1)
    cache = node.fill(node.allocate_cache(C), 1)
    before = node.contents(cache)
    node.switch_role("DECODER", listen_at(0))
    assert (node.contents(cache), node.live_caches()) == (before, 1)


# ------------------------------------------------------------------------------------------------------------- backends


def hixl(world: World, cluster_id: int) -> Node:
    return world.node(cluster_id, remote=True, TransferBackend="hixl")


def test_hixl_refuses_communicators(world: World) -> None:
    """api §4.3: hixl: ``link``, ``unlink``, ``query_register_mem_status`` are LX(FEATURE_NOT_ENABLED)."""
    node = hixl(world, 1)
    for name, arguments in (
        ("link", ("pool", {1: 0, 2: 1}, rank_table(2))),
        ("unlink", (1,)),
        ("query_register_mem_status", (1,)),
    ):
        with refused("LLM_FEATURE_NOT_ENABLED"):
            node.call(name, *arguments)


def test_hixl_links_are_usable_from_both_ends(world: World) -> None:
    """api §4.3: hixl: links stay usable from both ends."""
    server, client = hixl(world, 1), hixl(world, 2)
    link(client, server)
    for puller, owner in ((client, server), (server, client)):
        cache, ours = owner.allocate_cache(C), puller.allocate_cache(C)
        puller.pull_cache(by_id(cache, cluster_id=owner.cluster_id), ours)


def test_hixl_unlinks_without_addresses(world: World) -> None:
    """api §4.3: hixl: ``unlink_clusters`` is always local and needs no addresses."""
    server, client = hixl(world, 1), hixl(world, 2)
    link(client, server)
    assert client.unlink_clusters([ClusterInfo(1, (), ())])[0] == "LLM_SUCCESS"
    assert client.linked() == ()


def test_hixl_switch_role(world: World) -> None:
    """api §4.3: hixl: a different address is LX(FEATURE_NOT_ENABLED); live links are no obstacle."""
    server, client = hixl(world, 1), hixl(world, 2)
    link(client, server)
    address = server.listen_address
    server.switch_role("DECODER", listen_at(address[1]))
    assert server.listen_address == address
    with refused("LLM_FEATURE_NOT_ENABLED"):
        server.switch_role("PROMPT", listen_at(unused_port()))
    assert server.listen_address == address
    assert outcome(lambda: client.pull_cache(by_id(server.allocate_cache(C)), client.allocate_cache(C))) is None


def test_hixl_needs_a_listener(world: World) -> None:
    """api §4.3: hixl: the option checks (§2.3) are kept."""
    options = options_of(remote=True, listen=None, TransferBackend="hixl")
    with refused("LLM_PARAM_INVALID", "listenIpInfo"):
        world.start(1).init(options)


def test_nixl_needs_nothing_of_what_hixl_needs(world: World) -> None:
    """api §4.3: hixl needs a listener and remote mode; nixl only says how bytes travel."""
    node = world.start(1)
    node.init(options_of(listen=None, TransferBackend="nixl"))
    assert node.listen_address is None
    with refused("LLM_PARAM_INVALID"):
        node.call("push_cache", by_id(node.allocate_cache(C), cluster_id=2), node.allocate_cache(C))


def test_nixl_leaves_every_call_as_it_is(world: World) -> None:
    """api §4.3: what is refused or different with hixl is as without a backend."""
    node = world.node(1, TransferBackend="nixl")
    number = node.link("pool", {1: 0, 2: 1}, rank_table(2))
    assert node.query_register_mem_status(number) == "PREPARING"
    node.unlink(number)
    assert node.unlink_clusters([ClusterInfo(2, (), ())])[1] == ["LLM_PARAM_INVALID"]
    node.switch_role("DECODER", listen_at(unused_port()))
