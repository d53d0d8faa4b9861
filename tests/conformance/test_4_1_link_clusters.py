"""api §4.1: ``link_clusters`` and ``unlink_clusters``."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc, ClusterInfo

from conformance.world import Node, World, by_id, info_of, link, options_of, outcome, refused, request

SUCCESS, LX, NOT_LINKED = "LLM_SUCCESS", "LLM_PARAM_INVALID", "LLM_NOT_YET_LINK"
C = CacheDesc(2, (1, 64), "DT_UINT8")
LOCAL = (("127.0.0.1", 0),)
NOBODY = ("127.0.0.1", 1)


def code(answer: tuple[str, list[str]]) -> str:
    """The code of the one entry of a call."""
    overall, codes = answer
    assert codes == [overall]
    return overall


def can_pull(puller: Node, owner: Node) -> Any:
    """How a pull ends."""
    theirs = owner.allocate_cache(C)
    ours = puller.allocate_cache(C)
    answer = outcome(lambda: puller.pull_cache(by_id(theirs, cluster_id=owner.cluster_id), ours))
    owner.deallocate_cache(theirs)
    puller.deallocate_cache(ours)
    return answer


def info_of_client(client: Node) -> ClusterInfo:
    return ClusterInfo(client.cluster_id, LOCAL, ())


# ---------------------------------------------------------------------------------------------------------- in general


def test_a_link_is_usable_from_both_ends(world: World) -> None:
    """api §4.1: the client alone calls ``link_clusters``; the link is usable from both ends, to pull and to push."""
    server, client = world.node(1, listen="127.0.0.1:0", remote=True), world.node(2, listen=None, remote=True)
    link(client, server)
    assert can_pull(client, server) is None
    assert can_pull(server, client) is None
    theirs, ours = client.allocate_cache(C), server.fill(server.allocate_cache(C), 1)
    server.push_cache(by_id(theirs, cluster_id=2), ours)
    assert client.contents(theirs) == server.contents(ours)
    client.push_cache(by_id(ours), client.fill(theirs, 2))
    assert client.contents(theirs) == server.contents(ours)


@pytest.mark.parametrize(
    ("server_role", "client_role"), list(itertools.product(("PROMPT", "DECODER", "MIX"), repeat=2))
)
def test_roles_are_labels(world: World, server_role: str, client_role: str) -> None:
    """api §4.1: roles are labels without effect on transfers."""
    server, client = world.node(1, server_role), world.node(2, client_role)
    link(client, server)
    assert can_pull(client, server) is None
    assert can_pull(server, client) is None


def test_a_process_without_listener_is_no_server(world: World) -> None:
    """api §4.1: a process with ``listen_ip_info`` is a server."""
    world.node(1, listen=None)
    client = world.node(2)
    assert code(client.link_clusters([ClusterInfo(1, LOCAL, (NOBODY,))])) == "LLM_LINK_FAILED"


def test_results_in_input_order(world: World) -> None:
    """api §4.1: per_cluster in input order; overall is the code of the **last** failing entry."""
    one, two, client = world.node(1), world.node(2), world.node(9)
    nobody, wrong_id = ClusterInfo(7, LOCAL, (NOBODY,)), info_of(two, 8)
    answer = client.link_clusters([nobody, info_of(one), wrong_id, info_of(two)])
    assert answer == (LX, ["LLM_LINK_FAILED", SUCCESS, LX, SUCCESS])
    answer = client.link_clusters([info_of(one), nobody])
    assert answer == ("LLM_LINK_FAILED", ["LLM_ALREADY_LINK", "LLM_LINK_FAILED"])
    answer = client.unlink_clusters((info_of(one), info_of(two)))
    assert answer == (SUCCESS, [SUCCESS, SUCCESS])


@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("name", ["link_clusters", "unlink_clusters"])
def test_no_clusters(world: World, name: str, container: type) -> None:
    """api §4.1: no clusters: ``(LLM_PARAM_INVALID, [])``."""
    assert world.node(1).call(name, container()) == (LX, [])


@pytest.mark.parametrize("name", ["link_clusters", "unlink_clusters"])
def test_more_than_16(world: World, name: str) -> None:
    """api §4.1: more than 16: ``(LLM_CLUSTER_NUM_EXCEED_LIMIT, [])``, nothing attempted (D56)."""
    server, client = world.node(1), world.node(2)
    if name == "unlink_clusters":
        link(client, server)
    assert client.call(name, [info_of(server)] * 17) == ("LLM_CLUSTER_NUM_EXCEED_LIMIT", [])
    assert client.linked() == ((1,) if name == "unlink_clusters" else ())


def test_16_at_once(world: World) -> None:
    """api §4.1: up to 16 entries in one call."""
    servers = [world.node(number, device_bytes=None, host_bytes=None) for number in range(1, 17)]
    client = world.node(99)
    assert client.link_clusters([info_of(server) for server in servers]) == (SUCCESS, [SUCCESS] * 16)
    assert client.linked() == tuple(range(1, 17))
    assert client.unlink_clusters([info_of(server) for server in servers]) == (SUCCESS, [SUCCESS] * 16)
    assert client.linked() == ()


def test_entries_are_handled_concurrently(library: Any) -> None:
    """api §4.1: entries are handled concurrently: a silent server holds up nobody else."""
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    server, client = library.node(1), library.node(2)
    infos = [ClusterInfo(50 + number, LOCAL, (listener.getsockname(),)) for number, listener in enumerate(silent)]
    answers: list[Any] = []
    caller = threading.Thread(
        target=lambda: answers.append(client.link_clusters([*infos, info_of(server)], timeout=60_000))
    )
    caller.start()
    library.until(lambda: client.linked() == (1,), "the entry behind the silent ones")
    assert not answers
    for listener in silent:
        listener.close()
    caller.join()
    assert answers == [("LLM_FAILED", ["LLM_FAILED"] * 3 + [SUCCESS])]


# ------------------------------------------------------------------------------------------------- the table of links


@pytest.mark.parametrize("count", [0, 2])
def test_link_number_of_remote_addresses(world: World, count: int) -> None:
    """api §4.1: link: number of remote_ip_infos ≠ 1: LLM_PARAM_INVALID."""
    server, client = world.node(1), world.node(2)
    assert code(client.link_clusters([ClusterInfo(1, LOCAL, (server.listen_address,) * count)])) == LX
    assert client.linked() == ()


def test_link_number_of_local_addresses(world: World) -> None:
    """api §4.1: link: no local_comm_res and number of local_ip_infos ≠ 1: LLM_PARAM_INVALID."""
    server, client = world.node(1), world.node(2)
    assert code(client.link_clusters([ClusterInfo(1, LOCAL * 2, (server.listen_address,))])) == LX


def test_link_number_of_local_addresses_with_local_comm_res(world: World) -> None:
    """api §4.1: link: with local_comm_res the local addresses do not count."""
    server = world.node(1, remote=True)
    for number, addresses in enumerate(((), LOCAL, LOCAL * 2)):
        client = world.node(2 + number, remote=True, LocalCommRes="{}")
        assert code(client.link_clusters([ClusterInfo(1, addresses, (server.listen_address,))])) == SUCCESS


def test_link_refused(world: World) -> None:
    """api §4.1: link: TCP connect refused: LLM_LINK_FAILED."""
    assert code(world.node(2).link_clusters([ClusterInfo(1, LOCAL, (NOBODY,))])) == "LLM_LINK_FAILED"


def test_link_deadline(library: Any) -> None:
    """api §4.1: link: deadline passed while connecting or handshaking: LLM_TIMEOUT."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = library.node(2)
        info = ClusterInfo(1, LOCAL, (silent.getsockname(),))
        assert code(client.link_clusters([info], timeout=50)) == "LLM_TIMEOUT"
        assert client.linked() == ()


def test_link_twice(world: World) -> None:
    """api §4.1: link: already linked to that cluster: LLM_ALREADY_LINK; the link stands, from either end."""
    server, client = world.pair()
    assert code(client.link_clusters([info_of(server)])) == "LLM_ALREADY_LINK"
    assert code(server.link_clusters([info_of(client)])) == "LLM_ALREADY_LINK"
    assert can_pull(client, server) is None


def test_link_of_a_client_that_restarted(world: World) -> None:
    """api §4.1: link: the server still holds a link of a client that has none: the old one is replaced, SUCCESS."""
    server, client = world.pair()
    client.unlink_clusters([info_of(server)], force=True)
    assert code(client.link_clusters([info_of(server)])) == SUCCESS
    assert can_pull(client, server) is None
    assert can_pull(server, client) is None
    client.finalize()
    client.init(options_of())
    assert code(client.link_clusters([info_of(server)])) == SUCCESS
    assert can_pull(server, client) is None


def test_link_to_a_server_that_lost_it(world: World) -> None:
    """api §4.1: link: the client still holds a link that the server lost: LLM_ALREADY_LINK; unlink by force first."""
    server, client = world.pair()
    server.unlink_clusters([info_of_client(client)], force=True)
    world.until(lambda: can_pull(client, server) == NOT_LINKED, "the client notices")
    assert code(client.link_clusters([info_of(server)])) == "LLM_ALREADY_LINK"
    assert code(client.unlink_clusters([info_of(server)], force=True)) == SUCCESS
    assert code(client.link_clusters([info_of(server)])) == SUCCESS
    assert can_pull(client, server) is None


@pytest.mark.parametrize("server_mode", [False, True])
def test_link_of_different_modes(world: World, server_mode: bool) -> None:
    """api §4.1: link: the two ends differ in remote mode: LLM_PARAM_INVALID."""
    server, client = world.node(1, remote=server_mode), world.node(2, remote=not server_mode)
    assert code(client.link_clusters([info_of(server)])) == LX
    assert (client.linked(), server.linked()) == ((), ())


def test_link_with_a_wrong_id(world: World) -> None:
    """api §4.1: link: the server's cluster id is not ``remote_cluster_id``: LLM_PARAM_INVALID (D58)."""
    server, client = world.node(1), world.node(2)
    assert code(client.link_clusters([info_of(server, 3)])) == LX
    assert (client.linked(), server.linked()) == ((), ())


ANSWERS: dict[str, Callable[[socket.socket], None]] = {
    "closed": lambda connection: None,
    "garbage": lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10),
    "zeros": lambda connection: connection.sendall(bytes(4096)),
    "ones": lambda connection: connection.sendall(b"\xff" * 4096),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_link_with_a_foreign_answer(library: Any, kind: str) -> None:
    """api §4.1: link: malformed or foreign answer, peer closed the connection: LLM_FAILED."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                ANSWERS[kind](connection)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        client = library.node(2)
        answer = client.link_clusters([ClusterInfo(1, LOCAL, (listener.getsockname(),))], timeout=30_000)
        assert code(answer) == "LLM_FAILED"
        server.join()
    assert client.linked() == ()


def test_too_many_links() -> None:
    """api §4.1: link: too many links (512, two-sided mode): LLM_FAILED; in remote mode there is no such limit."""
    from conformance.reference_world import ReferenceWorld

    for remote, expected in ((False, "LLM_FAILED"), (True, SUCCESS)):
        world = ReferenceWorld()
        server = world.node(1, remote=remote)
        for number in range(512):
            link(world.node(2 + number, listen=None, remote=remote), server)
        client = world.node(999, remote=remote)
        assert code(client.link_clusters([info_of(server)])) == expected


# ----------------------------------------------------------------------------------------------- the table of unlinks


@pytest.mark.parametrize("count", [0, 2])
def test_unlink_number_of_remote_addresses(world: World, count: int) -> None:
    """api §4.1: unlink, force=False and number of remote_ip_infos ≠ 1: LLM_PARAM_INVALID; the link stands."""
    server, client = world.pair()
    info = ClusterInfo(1, LOCAL, (server.listen_address,) * count)
    assert code(client.unlink_clusters([info])) == LX
    assert can_pull(client, server) is None


def test_unlink_not_reachable(world: World) -> None:
    """api §4.1: unlink, force=False, peer not reachable: LLM_UNLINK_FAILED; the local link is **kept**."""
    server, client = world.pair()
    assert code(client.unlink_clusters([ClusterInfo(1, LOCAL, (NOBODY,))])) == "LLM_UNLINK_FAILED"
    assert can_pull(client, server) is None
    assert code(client.link_clusters([info_of(server)])) == "LLM_ALREADY_LINK"


def test_unlink_deadline(library: Any) -> None:
    """api §4.1: unlink, force=False: LLM_TIMEOUT if the deadline passed; the local link is kept."""
    server, client = library.pair()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        info = ClusterInfo(1, LOCAL, (silent.getsockname(),))
        assert code(client.unlink_clusters([info], timeout=50)) == "LLM_TIMEOUT"
    assert can_pull(client, server) is None


def test_unlink(world: World) -> None:
    """api §4.1: unlink, force=False, reachable: both ends drop the link."""
    server, client = world.pair()
    assert code(client.unlink_clusters([info_of(server)])) == SUCCESS
    assert (client.linked(), server.linked()) == ((), ())
    assert can_pull(client, server) == NOT_LINKED
    assert can_pull(server, client) == NOT_LINKED
    link(client, server)


def test_unlink_by_the_server(world: World) -> None:
    """api §4.1: either end may unlink."""
    server, client = world.pair()
    assert code(server.unlink_clusters([info_of(client)])) == SUCCESS
    assert (client.linked(), server.linked()) == ((), ())
    link(client, server)


def test_unlink_without_link(world: World) -> None:
    """api §4.1: unlink, reachable: SUCCESS also when no link existed."""
    server, client = world.node(1), world.node(2)
    for _ in range(2):
        assert code(client.unlink_clusters([info_of(server)])) == SUCCESS


def test_unlink_by_force(world: World) -> None:
    """api §4.1: force=True: only the local end is dropped, peer not contacted, addresses not needed."""
    server, client = world.pair()
    assert code(client.unlink_clusters([ClusterInfo(1, (), ())], force=True)) == SUCCESS
    assert client.linked() == ()
    assert can_pull(client, server) == NOT_LINKED
    world.until(lambda: can_pull(server, client) == NOT_LINKED, "the server notices")


def test_unlink_by_force_without_link(world: World) -> None:
    """api §4.1: force=True: SUCCESS also when no link existed."""
    assert code(world.node(2).unlink_clusters([ClusterInfo(1, (), ())], force=True)) == SUCCESS


def test_a_dropped_link(world: World) -> None:
    """api §4.1: a dropped link makes later transfers LX(NOT_YET_LINK)."""
    server, client = world.pair(remote=True)
    theirs, ours = server.allocate_cache(C, [request(1)]), client.allocate_cache(C)
    client.unlink_clusters([info_of(server)])
    for call in (client.pull_cache, client.push_cache):
        with refused(NOT_LINKED):
            call(by_id(theirs), ours)
    assert server.live_keys() == 1


def test_unlinking_waits_for_a_pull(library: Any) -> None:
    """api §4.1: unlinking waits for a pull in progress on that link: none that had begun is broken off."""
    size = 32 << 20
    server, client = library.pair(device_bytes=size, host_bytes=None)
    desc = CacheDesc(1, (1, size), "DT_UINT8")
    theirs, ours = server.fill(server.allocate_cache(desc), 1), client.allocate_cache(desc)
    for _ in range(10):
        begun = threading.Event()
        answers: list[Any] = []

        def pull(begun: threading.Event = begun, answers: list[Any] = answers) -> None:
            begun.set()
            answers.append(outcome(lambda: client.pull_cache(by_id(theirs), ours)))

        puller = threading.Thread(target=pull)
        puller.start()
        begun.wait()
        assert code(client.unlink_clusters([info_of(server)], timeout=60_000)) == SUCCESS
        puller.join()
        assert answers[0] in (None, NOT_LINKED)
        if answers[0] is None:
            assert client.contents(ours) == server.contents(theirs)
        link(client, server)


def test_the_server_may_be_told(world: World) -> None:
    """api §4.1: after a client died, the server may be told ``unlink_clusters(..., force=True)``."""
    server, client = world.pair()
    client.unlink_clusters([info_of(server)], force=True)
    assert code(server.unlink_clusters([info_of_client(client)], force=True)) == SUCCESS
    assert server.linked() == ()
    link(client, server)


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_the_local_port_is_not_bound(world: World, port: int) -> None:
    """api §4.1: local port in ``append_local_ip_info`` is not bound; ``0`` is fine."""
    server = world.node(1)
    for number in (2, 3):
        client = world.node(number)
        info = ClusterInfo(1, (("127.0.0.1", port),), (server.listen_address,))
        assert code(client.link_clusters([info])) == SUCCESS
