"""Every row of the two tables of api §4.1."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

import pytest

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.tables import LAYOUT_VERSION, PEER_LIMIT, SPEC_CHECKSUM
from llmdd.link import LinkService, LinkTarget, endpoint, messages
from llmdd.transport import local
from llmdd.transport.engine import EngineUnavailable
from llmdd.transport.engines import ENGINES

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@contextmanager
def stranger(reply: bytes | None) -> Iterator[LinkTarget]:
    """Something that listens and is no node: says ``reply`` and hangs up, or says nothing and stays (None)."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                if reply is None:
                    while connection.recv(4096):
                        pass
                else:
                    connection.recv(4096)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield LinkTarget(2, *server.getsockname())
        thread.join()


@contextmanager
def nobody() -> Iterator[LinkTarget]:
    """An address at which nobody listens, kept from others by a socket bound to it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield LinkTarget(2, *sock.getsockname())


# -- link_clusters --------------------------------------------------------------------------------------------------


def test_a_link_serves_both_ends(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    assert (client.linked(), server.linked()) == ([2], [1])
    server.bind(req_id=7, fill=70)
    client.bind(req_id=8, fill=80)
    assert client.pull(cluster_id=2, req_id=7) == 70
    assert server.pull(cluster_id=1, req_id=8) == 80


def test_a_link_across_processes_serves_both_ends(make_node: Callable, make_peer: Callable) -> None:
    client, server = make_node(1), make_peer(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    server.call("allocate", 7, 70)
    client.bind(req_id=8, fill=80)
    assert client.pull(cluster_id=2, req_id=7) == 70
    assert server.call("pull", 1, 8) == 80


def test_ipv6(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    try:
        address = server.service.listen("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert client.link(LinkTarget(2, *address)) == "LLM_SUCCESS"


def test_several_targets_are_answered_in_order(make_node: Callable) -> None:
    client, second, third = make_node(1), make_node(2), make_node(3)
    with nobody() as absent:
        targets = [third.listen(), absent, second.listen()]
        codes = client.service.link(targets, 5000)
    assert [code.name for code in codes] == ["LLM_SUCCESS", "LLM_LINK_FAILED", "LLM_SUCCESS"]
    assert sorted(client.linked()) == [2, 3]


def test_nobody_at_the_address(make_node: Callable) -> None:
    with nobody() as absent:
        assert make_node(1).link(absent) == "LLM_LINK_FAILED"


def test_no_such_host(make_node: Callable) -> None:
    node = make_node(1)
    assert node.link(LinkTarget(2, "x" * 300, 1)) == "LLM_LINK_FAILED"
    assert node.link(LinkTarget(2, None, None)) == "LLM_LINK_FAILED"


def test_a_silent_server(make_node: Callable) -> None:
    with stranger(None) as silent:
        assert make_node(1).link(silent, timeout_ms=200) == "LLM_TIMEOUT"


def test_a_frozen_server(make_node: Callable, make_peer: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    server.freeze()
    assert client.link(target, timeout_ms=200) == "LLM_TIMEOUT"
    assert client.linked() == []
    server.thaw()
    assert client.link(target) == "LLM_SUCCESS"
    eventually(lambda: client.bits_out() == 1, "only the link that stands holds a pin bit")


def test_already_linked(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert [code.name for code in client.service.link([target, target], 5000)] == ["LLM_SUCCESS", "LLM_ALREADY_LINK"]
    assert client.link(target) == "LLM_ALREADY_LINK"
    assert server.link(LinkTarget(1, "127.0.0.1", 1)) == "LLM_ALREADY_LINK"
    assert (client.linked(), server.linked()) == ([2], [1])


@pytest.mark.parametrize("clients_mode", [False, True])
def test_different_remote_modes(make_node: Callable, clients_mode: bool) -> None:
    client, server = make_node(1, remote_accessible=clients_mode), make_node(2, remote_accessible=not clients_mode)
    assert client.link(server.listen()) == "LLM_PARAM_INVALID"
    assert (client.linked(), server.linked()) == ([], [])


def test_remote_mode_at_both_ends(make_node: Callable) -> None:
    client, server = make_node(1, remote_accessible=True), make_node(2, remote_accessible=True)
    assert client.link(server.listen()) == "LLM_SUCCESS"


def test_wrong_cluster_id(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(LinkTarget(3, target.host, target.port)) == "LLM_PARAM_INVALID"
    assert (client.linked(), server.linked()) == ([], [])


def test_the_same_cluster_id_at_both_ends(make_node: Callable) -> None:
    assert make_node(1).link(make_node(1).listen()) == "LLM_PARAM_INVALID"


@pytest.mark.parametrize(
    "reply",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\0\0\x04\xc1\xc1\xc1\xc1", b"\0\0\0\0"],
    ids=["hangs up", "HTTP", "SSH", "no message", "empty frame"],
)
def test_a_foreign_server(make_node: Callable, reply: bytes) -> None:
    with stranger(reply) as foreign:
        assert make_node(1).link(foreign) == "LLM_FAILED"


def test_no_pin_bit_left(make_node: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_node(2)
    for _ in range(PEER_LIMIT):
        server.store.admit_peer()
    target = server.listen()
    assert client.link(target) == "LLM_FAILED"
    assert server.service.link([LinkTarget(1, *client.service.listen("127.0.0.1", 0))], 5000)[0].name == "LLM_FAILED"
    assert (client.linked(), server.linked()) == ([], [])
    eventually(lambda: client.bits_out() == 0, "the bit granted in the handshake is free again")


@pytest.mark.parametrize("remote", [False, True])
def test_too_many_links(make_node: Callable, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    """In two-sided mode the number of links is limited, at either end; in remote mode it is not (D65)."""
    monkeypatch.setattr(endpoint, "MAX_LINKS", 2)
    server = make_node(1, remote_accessible=remote)
    target = server.listen()
    clients = [make_node(number, remote_accessible=remote) for number in (2, 3, 4)]
    codes = [client.link(target) for client in clients]
    assert codes == ["LLM_SUCCESS", "LLM_SUCCESS", "LLM_SUCCESS" if remote else "LLM_FAILED"]
    others = [LinkTarget(client.cluster_id, *client.service.listen("127.0.0.1", 0)) for client in clients[2:]]
    assert server.service.link(others, 5000)[0].name == ("LLM_ALREADY_LINK" if remote else "LLM_FAILED")
    assert server.service.unlink([LinkTarget(2, None, None)], 5000, True)[0].name == "LLM_SUCCESS"
    if not remote:
        assert clients[2].link(target) == "LLM_SUCCESS"


def test_a_peer_that_shares_no_memory(
    make_node: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(name: str, peer_timeout_ms: int) -> NoReturn:
        raise EngineUnavailable("it is not installed")

    monkeypatch.setitem(ENGINES, "nixl", unavailable)
    client = make_node(1)
    monkeypatch.setattr(local, "host_identity", lambda: "another host")
    server = make_node(2)
    assert client.link(server.listen()) == "LLM_LINK_FAILED"
    assert "share no memory" in caplog.text


@pytest.mark.parametrize(
    ("constant", "value", "mine"),
    [
        ("LAYOUT_VERSION", 4711, f"layout {LAYOUT_VERSION}"),
        ("SPEC_CHECKSUM", "4711", f"spec '{SPEC_CHECKSUM[:16]}'"),
        ("PROTOCOL_VERSION", 4711, f"protocol {messages.PROTOCOL_VERSION}"),
    ],
)
def test_a_peer_of_another_version(
    make_node: Callable,
    make_peer: Callable,
    caplog: pytest.LogCaptureFixture,
    constant: str,
    value: object,
    mine: str,
) -> None:
    node, other = make_node(1), make_peer(2, **{constant: value})
    assert node.link(other.listen()) == "LLM_FAILED"
    assert "4711" in caplog.text and mine in caplog.text
    caplog.clear()
    assert other.link(node.listen()) == "LLM_FAILED"
    assert "4711" in caplog.text and mine in caplog.text


# -- unlink_clusters ------------------------------------------------------------------------------------------------


def test_unlinking_drops_both_ends(make_node: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    for _ in range(3):
        assert client.link(target) == "LLM_SUCCESS"
        assert client.unlink(target) == "LLM_SUCCESS"
        assert (client.linked(), server.linked()) == ([], [])
        assert client.bits_out() == 0
    eventually(lambda: server.bits_out() == 0, "the client's bit is free again")
    server.bind(req_id=7, fill=70)
    with pytest.raises(LLMException) as refused:
        client.pull(cluster_id=2, req_id=7)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK


def test_either_end_may_unlink(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    assert server.unlink(client.listen()) == "LLM_SUCCESS"
    assert (client.linked(), server.linked()) == ([], [])


def test_both_ends_may_unlink_at_once(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    targets = {client: server.listen(), server: client.listen()}
    for _ in range(10):
        assert client.link(targets[client]) == "LLM_SUCCESS"
        with ThreadPoolExecutor(2) as both:
            codes = both.map(lambda node: node.unlink(targets[node]), targets)
        assert list(codes) == ["LLM_SUCCESS", "LLM_SUCCESS"]
        assert (client.linked(), server.linked()) == ([], [])


@pytest.mark.parametrize("force", [False, True])
def test_unlinking_where_no_link_exists(make_node: Callable, force: bool) -> None:
    assert make_node(1).unlink(make_node(2).listen(), force=force) == "LLM_SUCCESS"


def test_unlinking_from_nobody_keeps_the_link(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    with nobody() as absent:
        assert client.unlink(absent) == "LLM_UNLINK_FAILED"
    assert client.unlink(LinkTarget(2, None, None)) == "LLM_UNLINK_FAILED"
    assert (client.linked(), server.linked()) == ([2], [1])
    server.bind(req_id=7, fill=70)
    assert client.pull(cluster_id=2, req_id=7) == 70


def test_unlinking_at_the_address_of_another_cluster_keeps_the_link(make_node: Callable) -> None:
    client, server, third = make_node(1), make_node(2), make_node(3)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    wrong = third.listen()
    assert client.unlink(LinkTarget(2, wrong.host, wrong.port)) == "LLM_UNLINK_FAILED"
    assert client.linked() == [2]


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_unlinking_from_a_foreign_server(make_node: Callable, reply: bytes) -> None:
    with stranger(reply) as foreign:
        assert make_node(1).unlink(foreign) == "LLM_UNLINK_FAILED"


def test_unlinking_from_a_frozen_peer_keeps_the_link(make_node: Callable, make_peer: Callable) -> None:
    client, server = make_node(1), make_peer(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    server.freeze()
    assert client.unlink(target, timeout_ms=200) == "LLM_TIMEOUT"
    assert client.linked() == [2]
    server.thaw()


def test_unlinking_by_force_leaves_the_other_end_alone(make_node: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    assert client.unlink(LinkTarget(2, None, None), force=True) == "LLM_SUCCESS"
    assert client.linked() == []
    eventually(lambda: server.linked() == [], "the server learns that the client has gone")
    # The server still holds its end, which is of no use to it.
    assert server.link(client.listen()) == "LLM_ALREADY_LINK"
    assert client.link(target) == "LLM_SUCCESS"
    assert (client.linked(), server.linked()) == ([2], [1])


def test_links_dropped_by_force_use_up_no_pin_bits(make_node: Callable, eventually: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    for _ in range(70):
        assert client.link(target) == "LLM_SUCCESS"
        assert client.unlink(target, force=True) == "LLM_SUCCESS"
    eventually(lambda: (client.bits_out(), server.bits_out()) == (0, 0), "every bit has come back")


def test_unlinking_by_force_from_a_frozen_peer(make_node: Callable, make_peer: Callable) -> None:
    client, server = make_node(1), make_peer(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    server.freeze()
    assert client.unlink(LinkTarget(2, None, None), force=True) == "LLM_SUCCESS"
    assert client.bits_out() == 1, "a frozen process may go on copying when it is thawed"
    server.kill()


# -- listening ------------------------------------------------------------------------------------------------------


def test_an_address_in_use(make_node: Callable) -> None:
    taken = make_node(1).service.listen("127.0.0.1", 0)
    service: LinkService = make_node(2).service
    before = service.listen("127.0.0.1", 0)
    with pytest.raises(OSError):
        service.listen(*taken)
    assert service.address == before


def test_a_new_listener_replaces_the_old_one(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    old = server.listen()
    new = server.listen()
    assert client.link(old) == "LLM_LINK_FAILED"
    assert client.link(new) == "LLM_SUCCESS"


def test_links_outlive_the_listener(make_node: Callable) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    server.service.stop_listening()
    assert server.service.address is None
    assert make_node(3).link(target) == "LLM_LINK_FAILED"
    server.bind(req_id=7, fill=70)
    assert client.pull(cluster_id=2, req_id=7) == 70
