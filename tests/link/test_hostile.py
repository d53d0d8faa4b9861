"""Whoever connects and is no node, or a malicious one, touches nothing: no link, no descriptor, no pin bit."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from llmdd.link import listener, messages, reception

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def linked(make_node: Callable):
    """Two nodes with a sound link: (client, server, where the server listens)."""
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    return client, server, target


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def assert_sound(client, server, make_node: Callable) -> None:
    """The link still works, and the server still takes new ones."""
    server.bind(req_id=7, fill=70)
    assert client.pull(cluster_id=2, req_id=7) == 70
    newcomer = make_node(9)
    assert newcomer.link(server.listen()) == "LLM_SUCCESS"
    assert newcomer.unlink(server.listen()) == "LLM_SUCCESS"


def test_thirty_connections_of_garbage(linked, make_node: Callable, eventually: Callable) -> None:
    client, server, target = linked
    chance = random.Random(4711)
    connections = []
    for number in range(30):
        connection = socket.create_connection((target.host, target.port))
        connections.append(connection)
        kind = number % 5
        if kind == 0:
            connection.sendall(chance.randbytes(2000))
        elif kind == 1:
            connection.sendall(b"\xff\xff\xff\xff" + chance.randbytes(100))
        elif kind == 2:
            connection.sendall(messages.HEADER.pack(500) + chance.randbytes(100))
            connection.close()
        elif kind == 3:
            connection.sendall(messages.HEADER.pack(500) + chance.randbytes(500))
    assert_sound(client, server, make_node)
    for connection in connections:
        connection.close()
    eventually(lambda: (client.bits_out(), server.bits_out()) == (1, 1), "only the sound link holds pin bits")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        messages.HEADER.pack(messages.MAX_PAYLOAD + 1),
        messages.HEADER.pack(0),
        messages.HEADER.pack(3) + b"\x81\xa1x",
        messages.HEADER.pack(1000) + b"\x91" * 1000,
        messages.HEADER.pack(1000) + b"\xdd\xff\xff\xff\xff" + b"\x00" * 995,
        messages.frame(messages.Commit()),
        messages.frame(messages.Detached()),
    ],
    ids=["HTTP", "oversize", "empty", "truncated map", "nested", "huge array", "commit", "detached"],
)
def test_what_is_no_request_ends_the_connection(
    linked, make_raw_end: Callable, make_node: Callable, said: bytes
) -> None:
    client, server, target = linked
    channel = make_raw_end(3).connect(target)
    channel.send(said)
    assert channel.receive() is None
    assert_sound(client, server, make_node)


def test_a_silent_connection_is_dropped(linked, make_raw_end: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "REQUEST_TIMEOUT_S", 0.05)
    silent, halting = make_raw_end(3).connect(linked[2]), make_raw_end(4).connect(linked[2])
    halting.send(b"\0\0")
    assert silent.receive() is None
    assert halting.receive() is None


def test_silence_keeps_nobody_out(linked, make_raw_end: Callable, make_node: Callable) -> None:
    client, server, target = linked
    end = make_raw_end(3)
    silent = [end.connect(target) for _ in range(listener.MAX_SILENT + 5)]
    assert make_node(4).link(target) == "LLM_SUCCESS"
    assert silent[0].receive() is None, "the oldest had to go"
    assert_sound(client, server, make_node)


def test_a_handshake_that_stops_half_way(
    linked, make_raw_end: Callable, eventually: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "HANDSHAKE_TIMEOUT_S", 0.5)
    _, server, target = linked
    before_handover, _ = make_raw_end(3).request_link(target)
    assert isinstance(before_handover.receive(), messages.Refusal)
    assert before_handover.receive() is None
    before_commit = make_raw_end(4).prepare_link(target)
    assert before_commit.receive() == messages.Detached()
    eventually(lambda: server.bits_out() == 1, "the bit granted in the handshake is free again")


def test_a_handshake_that_is_cut_off(linked, make_raw_end: Callable, eventually: Callable) -> None:
    _, server, target = linked
    make_raw_end(3).prepare_link(target).close()
    eventually(lambda: server.bits_out() == 1, "the bit granted in the handshake is free again")
    assert server.linked() == [1]


def test_a_stranger_at_the_rendezvous_cannot_spoil_the_handshake(linked, make_raw_end: Callable) -> None:
    end = make_raw_end(3)
    channel, welcome = end.request_link(linked[2])
    pipe = os.pipe()
    try:
        assert not end.hand_over(welcome, b"")
        assert not end.hand_over(welcome, b"garbage", list(pipe))
        assert not end.hand_over(welcome, messages.encode(messages.Farewell()), list(pipe))
        assert not end.hand_over(welcome, messages.encode(end.segments(bytes(16))))
        assert not end.hand_over(welcome, b"x" * (messages.MAX_PAYLOAD + 1), list(pipe))
        assert not end.hand_over(welcome, messages.encode(end.segments(welcome.token)), list(pipe) * 20)
    finally:
        for fd in pipe:
            os.close(fd)
    assert end.hand_over(welcome)
    channel.send(messages.Commit())
    assert channel.receive() == messages.Linked()


def test_an_end_that_gives_its_memory_and_takes_none(
    linked, make_raw_end: Callable, eventually: Callable, without_collector: None
) -> None:
    """What it gave is let go of at once, and not when the collector comes to the error."""
    end, channels = make_raw_end(3), []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        channel, welcome = end.request_link(linked[2])
        channels.append(channel)
        assert not end.hand_over(welcome, takes=False)
        assert isinstance(channel.receive(), messages.Refusal)
    for channel in channels:
        channel.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "nothing of it is held")
    eventually(lambda: linked[1].bits_out() == 1, "the bits granted in the handshakes are free again")


def segments_of_another_kind(kind: str, honest: list[int]) -> list[int]:
    """New descriptors, which are no segments of a node."""
    if kind == "none":
        return []
    if kind == "pipes":
        return [*os.pipe(), *os.pipe()]
    copies = []
    for fd in honest:
        copies.append(os.memfd_create("unsealed" if kind == "unsealed" else "empty"))
        if kind == "unsealed":
            os.ftruncate(copies[-1], os.fstat(fd).st_size)
    return copies


@pytest.mark.parametrize("kind", ["none", "unsealed", "empty", "pipes"])
def test_memory_that_cannot_be_attached(linked, make_raw_end: Callable, eventually: Callable, kind: str) -> None:
    end = make_raw_end(3)
    channel, welcome = end.request_link(linked[2])
    fds = segments_of_another_kind(kind, end.store.export()[1])
    try:
        assert not end.hand_over(welcome, messages.encode(end.segments(welcome.token)), fds)
    finally:
        for fd in fds:
            os.close(fd)
    assert isinstance(channel.receive(), messages.Refusal)
    eventually(lambda: linked[1].bits_out() == 1, "the bit granted in the handshake is free again")


@pytest.mark.parametrize(
    "description",
    [{}, {"control_bytes": -1}, {"control_bytes": 2**63, "references_bytes": 2**64 - 1}, {"control_bytes": 1}],
    ids=str,
)
def test_a_description_of_no_memory(
    linked, make_raw_end: Callable, eventually: Callable, description: dict[str, int]
) -> None:
    end = make_raw_end(3)
    channel, welcome = end.request_link(linked[2])
    end.hand_over(welcome, messages.encode(end.segments(welcome.token, description=description)))
    assert isinstance(channel.receive(), messages.Refusal)
    eventually(lambda: linked[1].bits_out() == 1, "the bit granted in the handshake is free again")


def test_a_process_other_than_the_one_that_asked(linked, make_raw_end: Callable) -> None:
    end = make_raw_end(3)
    end.identity = msgspec.structs.replace(end.identity, pid=os.getppid())
    channel, welcome = end.request_link(linked[2])
    assert not end.hand_over(welcome)
    channel.close()
    assert linked[1].linked() == [1]


def test_another_user_gets_no_memory(make_node: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert client.link(target) == "LLM_FAILED"


def test_garbage_in_a_session_breaks_that_link_only(
    linked, make_raw_end: Callable, make_node: Callable, eventually: Callable
) -> None:
    client, server, target = linked
    garbage, verdict, half = (make_raw_end(number).link(target) for number in (10, 11, 12))
    assert sorted(server.linked()) == [1, 10, 11, 12]
    garbage.send(b"garbage!")
    verdict.send(messages.Linked())
    half.send(b"\0\0")
    half.close()
    eventually(lambda: server.linked() == [1], "the links with the vandals are broken")
    assert verdict.receive() == messages.Detached()
    assert_sound(client, server, make_node)


def test_a_second_farewell(linked, make_raw_end: Callable) -> None:
    channel = make_raw_end(3).link(linked[2])
    channel.send(messages.Farewell(), messages.Farewell())
    assert [channel.receive(), channel.receive()] == [messages.Detached(), None]


def test_a_namesake_cannot_unlink_a_sound_link(linked, make_raw_end: Callable) -> None:
    client, server, target = linked
    channel = make_raw_end(1).connect(target)
    channel.send(messages.UnlinkRequest(make_raw_end(1).identity, 2))
    assert channel.receive() == messages.Unlinked()
    assert (client.linked(), server.linked()) == ([2], [1])


# -- a node that links to somebody malicious ------------------------------------------------------------------------


def linking(node, end, play: Callable, timeout_ms: int = 5000) -> str:
    """The code of a link to ``end``, which plays its part on the connection it accepts."""
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(node.link(end.target, timeout_ms)))
    thread.start()
    play(end.accept())
    thread.join()
    return result[0]


def test_a_server_that_leads_to_nowhere(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    assert (
        linking(node, end, lambda channel: channel.send(messages.Welcome(end.identity, "x", bytes(16)))) == "LLM_FAILED"
    )
    assert linking(node, end, lambda channel: channel.send(messages.Welcome(end.identity, "x" * 150, bytes(16)))) == (
        "LLM_FAILED"
    )


def test_a_server_that_is_somebody_else(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    other = msgspec.structs.replace(end.identity, cluster_id=3)
    code = linking(node, end, lambda channel: channel.send(messages.Welcome(other, "x", bytes(16))))
    assert code == "LLM_PARAM_INVALID"


@pytest.mark.parametrize("code", [0, -1, 2**63, 1343270912 + 26], ids=str)
def test_a_refusal_with_a_code_of_its_own(make_node: Callable, make_raw_end: Callable, code: int) -> None:
    node, end = make_node(1), make_raw_end(2)
    assert linking(node, end, lambda channel: channel.send(messages.Refusal(code, "\n" * 1000))) == "LLM_FAILED"


def test_a_verdict_before_its_time(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    assert linking(node, end, lambda channel: channel.send(messages.Linked())) == "LLM_FAILED"


def test_a_server_whose_memory_cannot_be_attached(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    assert linking(node, end, lambda channel: end.welcome(channel, description={"control_bytes": 1})) == "LLM_FAILED"
    eventually(lambda: node.bits_out() == 0, "the bit granted in the handshake is free again")


def test_a_server_that_hangs_up_after_the_commit(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)

    def hang_up(channel) -> None:
        end.welcome(channel)
        assert channel.receive() == messages.Commit()
        channel.close()

    assert linking(node, end, hang_up) == "LLM_FAILED"
    assert node.linked() == []
    assert node.bits_out() == 1, "the other end may believe in the link"


def test_a_server_that_falls_silent_after_the_commit(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channels = []

    def fall_silent(channel) -> None:
        end.welcome(channel)
        channels.append(channel)

    assert linking(node, end, fall_silent, timeout_ms=300) == "LLM_TIMEOUT"
    (channel,) = channels
    assert [channel.receive(), channel.receive()] == [messages.Commit(), messages.Detached()]
    channel.send(messages.Linked(), messages.Detached())
    eventually(lambda: node.bits_out() == 0, "a late verdict changes nothing")
    assert node.linked() == []
