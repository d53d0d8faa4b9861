"""Links that an engine serves come about, stand, and end as others do; nothing is left of them."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec
import pytest
from rank_tables import rank_table

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkTarget, handshake, introduction, listener, messages
from llmdd.link.conversation import Conversation
from llmdd.transport.engine import EngineFailed, EngineUnavailable
from llmdd.transport.engines import ENGINES

pytestmark = pytest.mark.usefixtures("engines", "no_descriptor_leaks")

TCP_REPAIR = 19
SO_ATTACH_FILTER = 26
BPF_RETURN = 0x06

HERE = messages.Identity(1, 1, "abc", 1, 1, "here", 1, False)
THERE = messages.Identity(1, 1, "abc", 2, 2, "there", 2, False)


def insisting(identity: messages.Identity, transport: str, host: str = "here") -> messages.Identity:
    return msgspec.structs.replace(identity, transport=transport, host=host)


# -- the way --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "engine"),
    [
        (HERE, insisting(THERE, ""), None),
        (HERE, THERE, "nixl"),
        (HERE, insisting(THERE, "nixl"), "nixl"),
        (insisting(HERE, "nixl"), insisting(THERE, ""), "nixl"),
        (insisting(HERE, "nixl"), insisting(THERE, "nixl"), "nixl"),
        (insisting(HERE, "nixl"), THERE, "nixl"),
    ],
)
def test_the_way_is_the_same_at_either_end(
    mine: messages.Identity, theirs: messages.Identity, engine: str | None
) -> None:
    assert handshake.engine_between(mine, theirs) == handshake.engine_between(theirs, mine) == engine
    assert handshake.objection(mine, theirs) is None


def test_two_ends_that_insist_on_different_ways() -> None:
    mine, theirs = insisting(HERE, "nixl"), insisting(THERE, "pigeons")
    for refused in (handshake.objection(mine, theirs), handshake.objection(theirs, mine)):
        assert refused is not None
        assert refused.status_code is LLMStatusCode.LLM_PARAM_INVALID
        assert "'nixl' in cluster 1" in str(refused)


def test_an_engine_that_nobody_knows() -> None:
    refused = handshake.objection(HERE, insisting(THERE, "pigeons"))
    assert refused is not None
    assert refused.status_code is LLMStatusCode.LLM_LINK_FAILED
    assert "'pigeons'" in str(refused)


def test_on_one_host_no_engine_is_opened(make_node: Callable, engines: list) -> None:
    one, two = make_node(1), make_node(2)
    assert one.link(two.listen()) == "LLM_SUCCESS"
    assert engines == []


@pytest.mark.parametrize("insisting_node", [0, 1])
def test_either_end_may_insist_on_an_engine(make_node: Callable, engines: list, insisting_node: int) -> None:
    settings: list[dict[str, str]] = [{}, {}]
    settings[insisting_node] = {"transport": "nixl"}
    one, two = (make_node(number + 1, **settings[number]) for number in range(2))
    assert one.link(two.listen()) == "LLM_SUCCESS"
    assert len(engines) == 2
    assert [engine.peers for engine in engines] == [[engine.own_name] for engine in reversed(engines)]


# -- links ----------------------------------------------------------------------------------------------------------


def test_a_link_is_made_and_dropped_at_both_ends(make_distant: Callable, engines: list, eventually: Callable) -> None:
    one, two = make_distant(1), make_distant(2)
    target, back = two.listen(), one.listen()
    for end, at in ((one, target), (two, back)) * 2:
        assert one.link(target) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([2], [1])
        assert one.link(target) == "LLM_ALREADY_LINK"
        assert end.unlink(at) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([], [])
    assert len(engines) == 2, "each node has opened its engine once"
    assert [list(engine.registered.elements()) for engine in engines] != [[], []], "the pools are registered"


def test_one_engine_serves_all_links(make_distant: Callable, engines: list, eventually: Callable) -> None:
    hub, others = make_distant(1), [make_distant(number) for number in range(2, 8)]
    targets = [other.listen() for other in others]
    with ThreadPoolExecutor(len(targets)) as all_at_once:
        assert list(all_at_once.map(hub.link, targets)) == ["LLM_SUCCESS"] * len(targets)
    assert len(engines) == 1 + len(others)
    (of_hub,) = (engine for engine in engines if engine.own_name.startswith("llmdd-1-"))
    assert len(set(of_hub.peers)) == len(others)
    assert hub.unlink(targets[0]) == "LLM_SUCCESS"
    assert len(of_hub.peers) == len(others), "one that has been linked may come again, and is known still"
    assert sorted(hub.linked()) == [target.cluster_id for target in targets[1:]]


def test_local_and_distant_peers_of_one_node(make_node: Callable, make_distant: Callable, eventually: Callable) -> None:
    one, neighbour, distant = make_node(1), make_node(2), make_distant(3)
    targets = [neighbour.listen(), distant.listen()]
    assert [one.link(target) for target in targets] == ["LLM_SUCCESS"] * 2
    neighbour.bind(req_id=7, fill=70)
    assert one.pull(cluster_id=2, req_id=7) == 70
    assert one.bits_out() == 1, "a distant peer is lent no pin bit"
    assert [one.unlink(target) for target in targets] == ["LLM_SUCCESS"] * 2
    assert one.linked() == []


def test_force_drops_one_end_and_the_other_finds_the_link_broken(
    make_distant: Callable, engines: list, eventually: Callable
) -> None:
    one, two = make_distant(1), make_distant(2)
    target, back = two.listen(), one.listen()
    assert one.link(target) == "LLM_SUCCESS"
    assert one.unlink(target, force=True) == "LLM_SUCCESS"
    assert one.linked() == []
    eventually(lambda: two.linked() == [], "the other end finds the link broken")
    assert two.link(back) == "LLM_ALREADY_LINK", "a broken link is to be dropped first"
    assert two.unlink(back, force=True) == "LLM_SUCCESS"
    assert two.link(back) == "LLM_SUCCESS"


def test_two_nodes_that_link_to_each_other_at_once(make_distant: Callable, engines: list, eventually: Callable) -> None:
    one, two = make_distant(1), make_distant(2)
    targets = {one: two.listen(), two: one.listen()}
    for _ in range(20):
        with ThreadPoolExecutor(2) as both:
            codes = both.map(lambda node: node.link(targets[node]), targets)
        assert sorted(codes) == ["LLM_ALREADY_LINK", "LLM_SUCCESS"]
        assert (one.linked(), two.linked()) == ([2], [1])
        eventually(lambda: [len(engine.peers) for engine in engines] == [1, 1], "the link that stands keeps its peer")
        assert one.unlink(targets[one]) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([], [])


def test_a_node_that_closes_parts_from_its_peers(make_distant: Callable, engines: list, eventually: Callable) -> None:
    one, two = make_distant(1), make_distant(2)
    back = one.listen()
    assert two.link(back) == "LLM_SUCCESS"
    one.close()
    eventually(lambda: two.linked() == [], "the farewell is heard")
    assert two.link(back) == "LLM_LINK_FAILED", "dropped in good order, it may be made again, were the other there"


def test_every_connection_of_a_link_notices_that_a_host_is_gone(make_distant: Callable) -> None:
    before = set(tcp_connections())
    one, two = (make_distant(number, peer_timeout_ms=5000) for number in (1, 2))
    assert one.link(two.listen()) == "LLM_SUCCESS"
    made = [inode for inode in tcp_connections() if inode not in before]
    assert len(made) == 6, "three connections, with both their ends in this process"
    for inode in made:
        with socket.socket(fileno=os.dup(tcp_connections()[inode])) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize("end", ["who asks", "who is asked"])
def test_a_conversation_that_has_died_at_one_end_ends_the_link_at_both(
    make_distant: Callable,
    asking: list[socket.socket],
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    one, two = make_distant(1, peer_timeout_ms=3000), make_distant(2, peer_timeout_ms=3000)
    target = two.listen()
    assert one.link(target) == "LLM_SUCCESS"
    of_asker, of_owner = conversation_of_initiator(target, asking)
    vanish(of_asker if end == "who asks" else of_owner)
    if end == "who is asked":
        with pytest.raises(LLMException, match="LLM_NOT_YET_LINK"):
            one.pull(2, 7)
    eventually(lambda: (one.linked(), two.linked()) == ([], []), "neither is linked any more")
    assert one.unlink(target, force=True) == "LLM_SUCCESS"


def test_a_conversation_through_which_nothing_comes_ends_the_link_at_both(
    make_distant: Callable, asking: list[socket.socket], eventually: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_distant(1, peer_timeout_ms=3000), make_distant(2, peer_timeout_ms=3000)
    target = two.listen()
    assert one.link(target) == "LLM_SUCCESS"
    for end in conversation_of_initiator(target, asking):
        deafen(end)
    eventually(lambda: (one.linked(), two.linked()) == ([], []), "neither is linked any more")


def test_who_finds_a_conversation_dead_does_not_wait_for_the_other_to_find_out(
    make_distant: Callable, asking: list[socket.socket], eventually: Callable
) -> None:
    one, two = make_distant(1), make_distant(2)
    target = two.listen()
    assert one.link(target) == "LLM_SUCCESS"
    _, of_owner = conversation_of_initiator(target, asking)
    vanish(of_owner)
    with pytest.raises(LLMException, match="LLM_NOT_YET_LINK"):
        one.pull(2, 7)
    eventually(lambda: (one.linked(), two.linked()) == ([], []), "neither is linked any more")


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets on which links ask, those of both ends."""
    made: list[socket.socket] = []

    def converse(sock: socket.socket, *rest: Any) -> Conversation:
        made.append(sock)
        return Conversation(sock, *rest)

    monkeypatch.setattr(introduction, "Conversation", converse)
    return made


def conversation_of_initiator(target: LinkTarget, asking: list[socket.socket]) -> tuple[int, int]:
    """The descriptors of the connection on which the initiator of the only link asks, at its end and the other."""
    (sock,) = (each for each in asking if each.getpeername()[1] == target.port)
    for descriptor in tcp_connections().values():
        with socket.socket(fileno=os.dup(descriptor)) as other:
            if other.getpeername() == sock.getsockname():
                return sock.fileno(), descriptor
    raise AssertionError("it has no other end")


def vanish(descriptor: int) -> None:
    """Let one end of a connection be gone, and the other not hear of it, as if something between the two had failed."""
    one, other = socket.socketpair()
    with one, other, socket.socket(fileno=os.dup(descriptor)) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except PermissionError:
            pytest.skip("who may not set TCP_REPAIR cannot have a connection end without a word")
        os.dup2(one.fileno(), descriptor)


def deafen(descriptor: int) -> None:
    """Let whatever comes to one end of a connection be lost."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(nothing)))


def tcp_connections() -> dict[int, int]:
    """The connected TCP sockets of this process: inode → descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(int(name))
            with socket.socket(fileno=os.dup(int(name))) if stat.S_ISSOCK(status.st_mode) else open(os.devnull) as sock:
                if isinstance(sock, socket.socket) and sock.family == socket.AF_INET and sock.getpeername():
                    found[status.st_ino] = int(name)
        except OSError:
            continue  # it was closed meanwhile, or listens
    return found


def test_more_clusters_that_call_at_once_than_are_answered_at_a_time(
    make_distant: Callable, engines: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_REQUESTS", 2)
    hub, others = make_distant(1), [make_distant(number) for number in range(2, 14)]
    target = hub.listen()
    with ThreadPoolExecutor(len(others)) as all_at_once:
        codes = list(all_at_once.map(lambda other: other.link(target, timeout_ms=20_000), others))
    assert codes == ["LLM_SUCCESS"] * len(others)
    assert sorted(hub.linked()) == [other.cluster_id for other in others]


# -- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initiator", ["node", "peer"])
def test_a_killed_peer(
    make_distant: Callable, make_peer: Callable, engines: list, eventually: Callable, initiator: str
) -> None:
    node, peer = make_distant(1), make_peer(2, host="elsewhere")
    target, back = peer.listen(), node.listen()
    assert (node.link(target) if initiator == "node" else peer.link(back)) == "LLM_SUCCESS"
    assert (node.linked(), peer.call("linked")) == ([2], [1])
    peer.kill()
    eventually(lambda: node.linked() == [], "the death is noticed")
    assert node.unlink(target) == "LLM_UNLINK_FAILED"
    assert node.unlink(target, force=True) == "LLM_SUCCESS"


def test_a_restarted_peer(make_distant: Callable, make_peer: Callable, engines: list, eventually: Callable) -> None:
    node, peer = make_distant(1), make_peer(2, host="elsewhere")
    target = peer.listen()
    assert node.link(target) == "LLM_SUCCESS"
    (before,) = engines[0].peers
    peer.kill()
    restarted = make_peer(2, host="elsewhere")
    assert restarted.listen(target.port) == target
    eventually(lambda: node.linked() == [], "the death is noticed")
    assert node.unlink(target) == "LLM_SUCCESS"
    assert node.link(target) == "LLM_SUCCESS"
    (after,) = engines[0].peers
    assert after != before


def test_a_frozen_peer_can_be_dropped_by_force(
    make_distant: Callable, make_peer: Callable, engines: list, eventually: Callable
) -> None:
    node, peer = make_distant(1), make_peer(2, host="elsewhere")
    target = peer.listen()
    assert node.link(target) == "LLM_SUCCESS"
    peer.freeze()
    assert node.unlink(target, timeout_ms=200) == "LLM_TIMEOUT"
    assert node.unlink(target, force=True) == "LLM_SUCCESS"
    assert node.linked() == []
    peer.thaw()
    eventually(lambda: peer.call("linked") == [], "it finds the link broken")


def test_a_peer_that_dies_while_a_child_of_it_lives(
    make_distant: Callable, make_peer: Callable, engines: list, eventually: Callable
) -> None:
    node, peer = make_distant(1), make_peer(2, host="elsewhere")
    assert node.link(peer.listen()) == "LLM_SUCCESS"
    peer.fork()
    assert node.linked() == [2]
    peer.kill()
    eventually(lambda: node.linked() == [], "the child keeps no connection open")


def test_a_child_that_ends_as_programs_do_leaves_the_parent_its_link(
    make_distant: Callable, make_peer: Callable, engines: list, eventually: Callable
) -> None:
    node, peer = make_distant(1), make_peer(2, host="elsewhere")
    target = peer.listen()
    assert node.link(target) == "LLM_SUCCESS"
    assert peer.call("fork_and_finish") == 0
    assert (node.linked(), peer.call("linked")) == ([2], [1])
    assert node.unlink(target) == "LLM_SUCCESS"
    assert peer.call("linked") == []


# -- without the engine ---------------------------------------------------------------------------------------------


def engine_of_one(lacking: str) -> Callable[[str, int], object]:
    """What opens the engines of nodes whose name does not begin so."""
    opens = ENGINES["nixl"]

    def open_engine(name: str, peer_timeout_ms: int) -> object:
        if name.startswith(lacking):
            raise EngineUnavailable("nixl is not installed here: pip install 'llmdd[nixl]'")
        return opens(name, peer_timeout_ms)

    return open_engine


@pytest.mark.parametrize("lacking", [1, 2])
def test_an_end_without_the_engine(
    make_distant: Callable,
    engines: list,
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lacking: int,
) -> None:
    client, server = make_distant(1), make_distant(2)
    target = server.listen()
    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "nixl", engine_of_one(f"llmdd-{lacking}-"))
        assert client.link(target) == "LLM_LINK_FAILED"
        told = ("cannot link cluster 2", "refused cluster 1")
        eventually(lambda: all(text in caplog.text for text in told), "both ends have told why")
    for text in told:
        (line,) = (line for line in caplog.text.splitlines() if text in line)
        assert "share no memory" in line
        assert f"cluster {lacking} cannot use nixl: nixl is not installed here: pip install" in line
    assert (client.linked(), server.linked()) == ([], [])
    assert client.link(target) == "LLM_SUCCESS", "it has been installed since"


def test_an_end_that_insists_and_has_no_engine(
    make_node: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(ENGINES, "nixl", engine_of_one("llmdd-"))
    client, server = make_node(1, transport="nixl"), make_node(2)
    assert client.link(server.listen()) == "LLM_LINK_FAILED"
    assert "transfer_backend is 'nixl' in cluster 1" in caplog.text
    assert "share no memory" not in caplog.text


def test_an_engine_that_cannot_have_the_pools(
    make_distant: Callable, engines: list, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = make_distant(1), make_distant(2)
    opens = ENGINES["nixl"]

    def register(address: int, size: int, *, writable: bool) -> NoReturn:
        raise EngineFailed("the memory cannot be locked")

    def open_engine(name: str, peer_timeout_ms: int) -> object:
        engine = opens(name, peer_timeout_ms)
        if name.startswith("llmdd-2-"):
            engine.register = register
        return engine

    monkeypatch.setitem(ENGINES, "nixl", open_engine)
    assert client.link(server.listen()) == "LLM_LINK_FAILED"
    assert "cluster 2 cannot use nixl: the memory cannot be locked" in caplog.text
    assert [engine.is_closed for engine in engines] == [engine.own_name.startswith("llmdd-2-") for engine in engines]


def test_an_engine_that_takes_its_time_keeps_nobody_else_waiting(
    make_node: Callable, make_distant: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server, neighbour = make_distant(1), make_node(2), make_node(3)
    target = server.listen()
    asked, proceed = threading.Event(), threading.Event()
    opens = ENGINES["nixl"]

    def open_engine(name: str, peer_timeout_ms: int) -> object:
        if name.startswith("llmdd-2-"):
            asked.set()
            assert proceed.wait(20)
        return opens(name, peer_timeout_ms)

    monkeypatch.setitem(ENGINES, "nixl", open_engine)
    with ThreadPoolExecutor(1) as background:
        code = background.submit(client.link, target)
        assert asked.wait(20)
        assert neighbour.link(target) == "LLM_SUCCESS"
        assert client.service.link([LinkTarget(2, target.host, target.port)], 50)[0].name == "LLM_LINK_BUSY"
        proceed.set()
        assert code.result() == "LLM_SUCCESS"


def test_a_node_that_closes_while_its_engine_is_opened(
    make_distant: Callable, engines: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server = make_distant(1), make_distant(2)
    target = server.listen()
    asked, proceed = threading.Event(), threading.Event()
    opens = ENGINES["nixl"]

    def open_engine(name: str, peer_timeout_ms: int) -> object:
        if name.startswith("llmdd-1-"):
            asked.set()
            assert proceed.wait(20)
        return opens(name, peer_timeout_ms)

    monkeypatch.setitem(ENGINES, "nixl", open_engine)
    with ThreadPoolExecutor(2) as background:
        code = background.submit(client.link, target)
        assert asked.wait(20)
        closing = background.submit(client.close)
        with pytest.raises(Exception, match="the link service ended meanwhile"):
            code.result()
        proceed.set()
        closing.result()
    assert all(engine.is_closed for engine in engines if engine.own_name.startswith("llmdd-1-"))


# -- communicators --------------------------------------------------------------------------------------------------


def status(node: object, number: int = 1) -> str:
    return node.service.communicator_status(number).name  # type: ignore[attr-defined]


def test_a_communicator_across_hosts(make_distant: Callable, engines: list, eventually: Callable) -> None:
    members, table = [make_distant(number) for number in (1, 2, 3)], rank_table(3)
    for member in members:
        assert member.service.make_communicator("pool", {1: 0, 2: 1, 3: 2}, table) == 1
    eventually(lambda: [status(member) for member in members] == ["OK"] * 3, "the members are connected")
    assert [sorted(member.linked()) for member in members] == [[2, 3], [1, 3], [1, 2]]
    members[0].service.drop_communicator(1)
    eventually(lambda: [member.linked() for member in members] == [[], [3], [2]], "it is left, and the others stay")
    for member in members[1:]:
        member.service.drop_communicator(1)


def test_a_communicator_and_a_link_share_what_the_engine_knows(
    make_distant: Callable, engines: list, eventually: Callable
) -> None:
    one, two = members = [make_distant(1), make_distant(2)]
    target, table = two.listen(), rank_table(2)
    assert one.link(target) == "LLM_SUCCESS"
    for member in members:
        member.service.make_communicator("pool", {1: 0, 2: 1}, table)
    eventually(lambda: [status(member) for member in members] == ["OK"] * 2, "the members are connected")
    assert one.unlink(target) == "LLM_SUCCESS"
    assert (one.linked(), two.linked()) == ([2], [1])
    assert [len(engine.peers) for engine in engines] == [1, 1]
    for member in members:
        member.service.drop_communicator(1)


@pytest.mark.parametrize("lacking", [1, 2])
def test_a_communicator_that_lacks_the_engine_fails_at_every_member_at_once(
    make_distant: Callable, eventually: Callable, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    monkeypatch.setitem(ENGINES, "nixl", engine_of_one(f"llmdd-{lacking}-"))
    members, table = [make_distant(number) for number in (1, 2)], rank_table(2)
    for member in members:
        member.service.make_communicator("pool", {1: 0, 2: 1}, table)
    eventually(
        lambda: [status(member) for member in members] == ["FAILED"] * 2, "both know, long before the time is up"
    )
