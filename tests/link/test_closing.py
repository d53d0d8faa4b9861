"""The end of a link waits for transfers in progress, and the end of a service leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_tables import rank_table

from llmdd._core.peer import PeerArena
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkService, LinkTarget, messages
from llmdd.transport import local

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class BusyArena:
    """A peer's memory with a transfer in progress until ``done`` is set."""

    def __init__(self, arena: PeerArena) -> None:
        self.arena = arena
        self.done = threading.Event()
        self.broken = False
        self.detached = False

    def break_off(self) -> None:
        self.broken = True
        self.arena.break_off()

    def detach(self, timeout_ms: int) -> bool:
        self.detached = self.done.wait(timeout_ms / 1000) and self.arena.detach(timeout_ms)
        return self.detached


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BusyArena]]:
    """Every memory attached during the test, with a transfer in progress."""
    arenas: list[BusyArena] = []
    attach = local.attach

    def attach_busy(*args: object) -> BusyArena:
        arenas.append(BusyArena(attach(*args)))
        return arenas[-1]

    monkeypatch.setattr(local, "attach", attach_busy)
    yield arenas
    for arena in arenas:
        arena.done.set()


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    result: list[object] = []

    def run() -> None:
        try:
            result.append(call())
        except LLMException as error:
            result.append(error.status_code)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


@pytest.mark.parametrize("force", [False, True])
def test_unlinking_waits_for_a_transfer_in_progress(
    make_node: Callable, make_raw_end: Callable, busy: list[BusyArena], eventually: Callable, force: bool
) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.link(node.listen())
    (arena,) = busy
    answering = threading.Thread(target=lambda: end.accept().send(messages.Unlinked()))
    if not force:
        answering.start()
    thread, result = in_background(lambda: node.unlink(end.target, force=force))
    eventually(lambda: node.linked() == [], "transfers are refused from now on")
    assert thread.is_alive() and not arena.broken and not arena.detached
    arena.done.set()
    assert channel.receive() == messages.Detached(), "only now has the node let go"
    assert arena.detached and not arena.broken
    channel.send(messages.Detached())
    thread.join()
    assert result == ["LLM_SUCCESS"]
    if not force:
        answering.join()


def test_unlinking_waits_for_the_other_ends_transfer_too(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    servers, clients = busy
    thread, result = in_background(lambda: client.unlink(target))
    eventually(lambda: (client.linked(), server.linked()) == ([], []), "both ends have dropped the link")
    clients.done.set()
    eventually(lambda: clients.detached, "the client's transfer has ended")
    assert thread.is_alive(), "the server's has not"
    servers.done.set()
    thread.join()
    assert result == ["LLM_SUCCESS"]
    assert not (clients.broken or servers.broken)


def test_a_transfer_that_outlasts_the_deadline(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    assert client.unlink(target, timeout_ms=100) == "LLM_TIMEOUT"
    assert client.linked() == [], "the link takes no more transfers"
    for arena in busy:
        arena.done.set()
    eventually(lambda: (client.bits_out(), server.bits_out()) == (0, 0), "both have let go in the end")


def test_calls_for_one_cluster_wait_for_each_other(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    client, server = make_node(1), make_node(2)
    target = server.listen()
    assert client.link(target) == "LLM_SUCCESS"
    thread, result = in_background(lambda: client.unlink(target, force=True))
    eventually(lambda: client.linked() == [], "the unlinking has begun")
    assert client.link(target, timeout_ms=50) == "LLM_LINK_BUSY"
    for arena in busy:
        arena.done.set()
    thread.join()
    assert result == ["LLM_SUCCESS"]
    assert client.link(target) == "LLM_SUCCESS"


def test_the_transfer_from_a_dead_peer_is_broken_off(
    make_node: Callable, make_peer: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    node, peer = make_node(1), make_peer(2)
    assert node.link(peer.listen()) == "LLM_SUCCESS"
    (arena,) = busy
    peer.kill()
    eventually(lambda: arena.broken, "the transfer in progress is told to end")
    assert not arena.detached, "it has not ended yet"
    arena.done.set()
    eventually(lambda: arena.detached, "the dead peer's memory is unmapped, without an unlink")


def test_unlinking_a_communicator_waits_for_a_transfer_in_progress(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    nodes, table = [make_node(1), make_node(2)], rank_table(2)
    for node in nodes:
        assert node.service.make_communicator("pool", {1: 0, 2: 1}, table) == 1
    eventually(lambda: [node.linked() for node in nodes] == [[2], [1]], "both are connected")
    first, second = busy  # the acceptor, which is rank 0, attaches first
    thread, result = in_background(lambda: nodes[0].service.drop_communicator(1))
    eventually(lambda: [node.linked() for node in nodes] == [[], []], "transfers are refused from now on, at both ends")
    assert thread.is_alive() and not first.broken and not second.broken
    first.done.set()
    second.done.set()
    thread.join()
    assert result == [None] and first.detached
    eventually(lambda: [node.bits_out() for node in nodes] == [0, 0], "both have let go")
    assert nodes[1].service.communicator_status(1).name == "OK", "the other end has not unlinked"


def test_a_communicator_that_failed_has_let_go_of_its_members(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    hasty, patient = make_node(1, link_total_time_s=0.5), make_node(2)
    table = rank_table(3)
    for node in (hasty, patient):
        node.service.make_communicator("pool", {1: 0, 2: 1, 3: 2}, table)
    eventually(lambda: hasty.bits_out() == 1, "the two are connecting, the third is missing")
    eventually(lambda: hasty.service.communicator_status(1).name == "FAILED", "the deadline has passed")

    def both_have_let_go() -> bool:
        for arena in busy:  # an end attaches when it has been granted its bit: perhaps only now
            arena.done.set()
        return (hasty.bits_out(), patient.bits_out()) == (0, 0)

    eventually(both_have_let_go, "both have let go")
    assert patient.service.communicator_status(1).name == "PREPARING"


def test_closing_parts_from_every_peer_in_good_order(make_node: Callable, eventually: Callable) -> None:
    hub, spokes = make_node(1), [make_node(2), make_node(3)]
    for spoke in spokes:
        assert hub.link(spoke.listen()) == "LLM_SUCCESS"
    address = hub.listen()
    hub.service.close(5000)
    assert hub.linked() == [] and hub.service.address is None
    assert hub.bits_out() == 0, "each peer has promised to transfer no more"
    for spoke in spokes:
        eventually(lambda spoke=spoke: (spoke.linked(), spoke.bits_out()) == ([], 0), "the spoke has let go")
        assert spoke.link(address) == "LLM_LINK_FAILED", "no end of the link is left to be unlinked by force"


def test_closing_twice(make_node: Callable) -> None:
    node = make_node(1)
    assert make_node(2).link(node.listen()) == "LLM_SUCCESS"
    threads = [threading.Thread(target=node.service.close, args=(5000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    node.service.close(5000)
    assert node.linked() == []


def test_closing_while_a_peer_is_frozen(make_node: Callable, make_peer: Callable) -> None:
    node, peer = make_node(1), make_peer(2)
    assert node.link(peer.listen()) == "LLM_SUCCESS"
    peer.freeze()
    node.service.close(100)
    assert node.linked() == []


def test_closing_waits_for_a_transfer_in_progress(
    make_node: Callable, busy: list[BusyArena], eventually: Callable
) -> None:
    client, server = make_node(1), make_node(2)
    assert client.link(server.listen()) == "LLM_SUCCESS"
    thread, _ = in_background(lambda: client.service.close(20_000))
    eventually(lambda: (client.linked(), server.linked()) == ([], []), "both ends have dropped the link")
    assert thread.is_alive()
    for arena in busy:
        arena.done.set()
    thread.join()
    assert [arena.detached for arena in busy] == [True, True]


def test_closing_ends_calls_in_progress(make_node: Callable, make_raw_end: Callable) -> None:
    node, silent = make_node(1), make_raw_end(2)
    thread, result = in_background(lambda: node.link(silent.target, timeout_ms=60_000))
    silent.accept()
    node.service.close(5000)
    thread.join()
    assert result == [LLMStatusCode.LLM_ENGINE_FINALIZED]


def test_closing_in_the_middle_of_a_handshake(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    channel = end.prepare_link(node.listen())
    node.service.close(5000)
    assert channel.receive() == messages.Detached()
    assert channel.receive() is None
    assert node.bits_out() == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda service: service.link([LinkTarget(2, "127.0.0.1", 1)], 1000),
        lambda service: service.unlink([LinkTarget(2, None, None)], 1000, True),
        lambda service: service.listen("127.0.0.1", 0),
        lambda service: service.stop_listening(),
        lambda service: service.make_communicator("pool", {1: 0, 2: 1}, "{}"),
        lambda service: service.drop_communicator(1),
        lambda service: service.switch_listener(None, lambda linked: None),
    ],
    ids=["link", "unlink", "listen", "stop_listening", "make_communicator", "drop_communicator", "switch_listener"],
)
def test_calls_after_closing(make_node: Callable, call: Callable[[LinkService], object]) -> None:
    node = make_node(1)
    node.service.close(5000)
    with pytest.raises(LLMException) as refused:
        call(node.service)
    assert refused.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED


def test_a_service_leaves_no_thread(make_node: Callable) -> None:
    before = set(threading.enumerate())
    one, two = make_node(1), make_node(2)
    assert one.link(two.listen()) == "LLM_SUCCESS"
    one.close()
    two.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("closing", ["", "atexit.register(node.close, 5000)", "node.close(5000)"])
def test_a_program_may_end_with_or_without_closing(
    make_node: Callable, eventually: Callable, tmp_path: Path, closing: str
) -> None:
    peer = make_node(2)
    target = peer.listen()
    program = f"""
import atexit
from llmdd._core.store import CacheStore
from llmdd.link import LinkService, LinkTarget
node = LinkService(cluster_id=1, store=CacheStore(cluster_id=1), remote_accessible=False)
assert node.link([LinkTarget(2, {target.host!r}, {target.port})], 5000) == [0]
{closing}
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    ended = subprocess.run([sys.executable, "-X", "dev", str(script)], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    eventually(lambda: (peer.linked(), peer.bits_out()) == ([], 0), "the peer has noticed")


class HeldStore:
    """A store that a caller holds still: it answers LLM_TIMEOUT for as long as ``held`` is set."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.peers: dict[int, object] = {}
        self.communicators = 0
        self.held = threading.Event()
        self.refused = threading.Event()
        self.reaped = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def _answer(self, call: Callable[[], object]) -> object:
        if self.held.is_set():
            self.refused.set()
            raise LLMException("held", status_code=LLMStatusCode.LLM_TIMEOUT)
        return call()

    def reap(self) -> object:
        self.reaped.set()
        return self._answer(self._store.reap)

    def dismiss_peer(self, peer_bit: int) -> object:
        return self._answer(lambda: self._store.dismiss_peer(peer_bit))


def test_what_a_store_held_still_cannot_settle_is_settled_later(make_node: Callable, eventually: Callable) -> None:
    node, peer = make_node(1), make_node(2)
    store = HeldStore(node.store)
    service = LinkService(cluster_id=3, store=store, remote_accessible=False)
    try:
        target = peer.listen()
        assert [code.name for code in service.link([LinkTarget(2, target.host, target.port)], 5000)] == ["LLM_SUCCESS"]
        store.held.set()
        assert store.refused.wait(20)
        assert peer.unlink(LinkTarget(3, None, None), force=True) == "LLM_SUCCESS"
        eventually(lambda: service.linked_clusters() == [], "the peer has gone")
        assert node.bits_out() == 1
        store.held.clear()
        eventually(lambda: node.bits_out() == 0, "its pins are dropped once the store lets go")
        store.reaped.clear()
        assert store.reaped.wait(20), "the timer goes on"
    finally:
        service.close(5000)
