"""``switch_role``: another role, another address (api §2.4, §4.3, D61, D62, D76)."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from instance_process import cluster, code_of
from rank_tables import loopback_hosts, rank_table

from llmdd import LLMDataDist, LLMException, LLMRole, LLMStatusCode

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

Make = Callable[..., object]


def listen_at(host: str, port: int) -> dict[str, str]:
    return {"llm.listenIpInfo": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}


def link(client: object, server: object, address: tuple[str, int] | None = None) -> str:
    return client.link_cluster(server.cluster_id, *(address or server.address()))


@pytest.fixture
def server(make_instance: Make):
    return make_instance(1, listenIpInfo="127.0.0.1:0", ours={"OpenLinks": "1"})


@pytest.fixture
def client(make_instance: Make):
    return make_instance(2)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize("role", list(LLMRole))
def test_the_role_is_a_label(server, client, role: LLMRole) -> None:
    server.datadist.switch_role(role, listen_at(*server.address()))
    assert f"role={role}" in repr(server.datadist)
    assert link(client, server) == "LLM_SUCCESS"
    server.bind(7, 70)
    assert client.pull(1, 7) == 70


def test_the_same_address_keeps_the_listener(server, client) -> None:
    before = server.address()
    waiting = socket.create_connection(before)  # in the backlog, or accepted: gone with the listener, if it went
    server.datadist.switch_role(LLMRole.DECODER, listen_at(*before))
    assert server.address() == before
    waiting.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.recv(1)
    waiting.close()
    assert link(client, server) == "LLM_SUCCESS"


def test_port_0_again_means_the_port_that_was_found(server) -> None:
    before = server.address()
    server.datadist.switch_role(LLMRole.DECODER, listen_at("127.0.0.1", 0))
    assert server.address() == before


def test_another_port(server, client) -> None:
    before, port = server.address(), free_port()
    server.datadist.switch_role(LLMRole.DECODER, listen_at("127.0.0.1", port))
    assert server.address() == ("127.0.0.1", port)
    assert link(client, server, before) == "LLM_LINK_FAILED"
    assert link(client, server) == "LLM_SUCCESS"


@pytest.mark.parametrize("again", ["127.0.0.3", "0.0.0.0"])
def test_another_ip_and_the_same_port(server, client, again: str) -> None:
    port = server.address()[1]
    server.datadist.switch_role(LLMRole.DECODER, listen_at("127.0.0.2", port))
    assert server.address() == ("127.0.0.2", port)
    assert link(client, server, ("127.0.0.1", port)) == "LLM_LINK_FAILED"
    server.datadist.switch_role(LLMRole.DECODER, listen_at(again, port))
    assert server.address() == (again, port)
    server.datadist.switch_role(LLMRole.DECODER, listen_at("127.0.0.1", port))
    assert link(client, server) == "LLM_SUCCESS"


def test_to_ipv6_and_back(server, client) -> None:
    before = server.address()
    server.datadist.switch_role(LLMRole.DECODER, listen_at("::1", 0))
    assert server.address()[0] == "::1"
    assert link(client, server) == "LLM_SUCCESS"
    assert client.unlink_cluster(1, *server.address(), False) == "LLM_SUCCESS"
    server.datadist.switch_role(LLMRole.DECODER, listen_at(*before))
    assert link(client, server) == "LLM_SUCCESS"


@pytest.mark.parametrize("options", [None, {}, {"llm.EnableSwitchRole": "0", "llm.SyncKvCacheWaitTime": 7, 8: None}])
def test_without_an_address_it_stops_listening(server, client, options: dict | None) -> None:
    before = server.address()
    server.datadist.switch_role(LLMRole.DECODER, options)
    assert server.address() is None
    assert link(client, server, before) == "LLM_LINK_FAILED"
    socket.create_server(before).close()
    server.datadist.switch_role(LLMRole.PROMPT, listen_at(*before))
    assert link(client, server) == "LLM_SUCCESS"


def test_a_client_becomes_a_server(server, client) -> None:
    client.datadist.switch_role(LLMRole.PROMPT, listen_at("127.0.0.1", 0))
    server.datadist.switch_role(LLMRole.DECODER)
    assert link(server, client) == "LLM_SUCCESS"
    client.bind(7, 70)
    assert server.pull(2, 7) == 70


def refused(server, code: str, *arguments: object) -> None:
    """The switch is refused with this code, and neither role nor listener changes."""
    before, address = repr(server.datadist), server.address()
    assert code_of(lambda: server.datadist.switch_role(*arguments)) == code
    assert (repr(server.datadist), server.address()) == (before, address)


@pytest.mark.parametrize("same_port", [False, True])
def test_an_address_in_use_leaves_everything_as_it_was(server, client, same_port: bool) -> None:
    host, port = server.address()
    taken = ("127.0.0.2", port) if same_port else (host, 0)
    with socket.create_server(taken) as in_use:
        refused(server, "LLM_FAILED", LLMRole.DECODER, listen_at(*in_use.getsockname()))
        if same_port:  # the old listener had to go before the new one could be tried, and came back
            refused(server, "LLM_FAILED", LLMRole.DECODER, listen_at("0.0.0.0", port))
    assert link(client, server) == "LLM_SUCCESS"


def test_an_address_that_is_not_of_this_host(server) -> None:
    refused(server, "LLM_FAILED", LLMRole.DECODER, listen_at("192.0.2.1", 5000))


def test_links_are_an_obstacle_at_either_end(server, client) -> None:
    assert link(client, server) == "LLM_SUCCESS"
    for instance in (server, client):
        refused(instance, "LLM_EXIST_LINK", LLMRole.DECODER)
        refused(instance, "LLM_EXIST_LINK", LLMRole.DECODER, listen_at("127.0.0.1", 0))
    assert client.unlink_cluster(1, *server.address(), False) == "LLM_SUCCESS"
    for instance in (server, client):
        instance.datadist.switch_role(LLMRole.DECODER)


def test_a_link_to_a_dead_cluster_is_held_until_it_is_unlinked(
    server, make_instance_process: Make, eventually: Callable
) -> None:
    process = make_instance_process(2)
    assert process.link_cluster(1, *server.address()) == "LLM_SUCCESS"
    process.kill()
    eventually(lambda: server.pull(2, 7) == "LLM_NOT_YET_LINK", "the death is noticed")
    refused(server, "LLM_EXIST_LINK", LLMRole.DECODER)
    assert server.unlink_cluster(2, "127.0.0.1", 1, True) == "LLM_SUCCESS"
    server.datadist.switch_role(LLMRole.DECODER)


def test_communicators_are_an_obstacle(make_instance: Make) -> None:
    member = make_instance(1)
    number = member.link("pool", [1, 2], rank_table(2))
    refused(member, "LLM_EXIST_LINK", LLMRole.DECODER)
    assert member.unlink(number) == "LLM_SUCCESS"
    member.datadist.switch_role(LLMRole.DECODER)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None,), TypeError),
        ((1,), TypeError),
        (("PROMPT",), TypeError),
        ((LLMRole.MIX, "llm.listenIpInfo"), TypeError),
        ((LLMRole.MIX, [("llm.listenIpInfo", "127.0.0.1:0")]), TypeError),
        ((LLMRole.MIX, {"llm.listenIpInfo": None}), TypeError),
        ((LLMRole.MIX, {"llm.listenIpInfo": 5000}), TypeError),
        ((LLMRole.MIX, {"llm.listenIpInfo": "127.0.0.1:x"}), ValueError),
        ((LLMRole.MIX, {"llm.listenIpInfo": "127.0.0.1:65536"}), ValueError),
    ],
    ids=str,
)
def test_wrong_arguments(server, arguments: tuple, error: type) -> None:
    before = (repr(server.datadist), server.address())
    with pytest.raises(error):
        server.datadist.switch_role(*arguments)
    assert (repr(server.datadist), server.address()) == before


@pytest.mark.parametrize("text", ["", "127.0.0.1", "localhost:5000", "::1:5000", "1.2.3.4:5:6"])
def test_an_address_that_is_none(server, client, text: str) -> None:
    assert link(client, server) == "LLM_SUCCESS"
    refused(server, "LLM_PARAM_INVALID", LLMRole.DECODER, {"llm.listenIpInfo": text})


def test_before_init_and_after_finalize(server) -> None:
    with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
        LLMDataDist(LLMRole.MIX, 3).switch_role(None)
    server.finalize()
    with pytest.raises(LLMException) as refusal:
        server.datadist.switch_role(LLMRole.MIX)
    assert refusal.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED


def test_the_hixl_backend_keeps_its_address_and_minds_no_links(make_instance: Make) -> None:
    host = loopback_hosts(1)[0]
    servers = [make_instance(number, TransferBackend="hixl", listenIpInfo=f"{host}:0") for number in (1, 2)]
    assert link(servers[1], servers[0]) == "LLM_SUCCESS"
    for server in servers:
        refused(server, "LLM_FEATURE_NOT_ENABLED", LLMRole.DECODER, listen_at(host, 5000))
        for same in (listen_at(host, 0), listen_at(*server.address())):
            server.datadist.switch_role(LLMRole.DECODER, same)
        assert "DECODER" in repr(server.datadist)
    assert servers[1].datadist.unlink_clusters([cluster(1, host, 0)]) == (
        LLMStatusCode.LLM_SUCCESS,
        [LLMStatusCode.LLM_SUCCESS],
    )


@pytest.mark.parametrize(
    "call",
    [lambda datadist: datadist.kv_cache_manager, lambda datadist: datadist.check_link_status(2)],
    ids=["kv_cache_manager", "check_link_status"],
)
def test_names_of_the_older_api(server, call: Callable[[LLMDataDist], object]) -> None:
    with pytest.raises(LLMException, match=r"is not supported when llm\.EnableCacheManager is configured\.") as refusal:
        call(server.datadist)
    assert refusal.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    with pytest.raises(RuntimeError, match="llm datadist is not initialized"):
        call(LLMDataDist(LLMRole.MIX, 3))
