"""Nodes to link: in this process, and in processes of their own."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import instance_process
import msgspec
import pytest
from commanded_process import CommandedProcess
from conversing_nodes import ConversingNode, Line, conversing_nodes
from fork_server import fork_server
from instance_process import Instance
from programmable_engine import Course, Network
from still_engine import StillEngine

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey
from llmdd._core.enumerations import DataType
from llmdd._core.lease_calls import LeaseCalls
from llmdd._core.store import CacheStore
from llmdd.link import (
    LinkService,
    LinkTarget,
    attendance,
    conversation,
    handshake,
    listener,
    memory_handover,
    messages,
    reception,
    session,
)
from llmdd.link.complaints import Complaints
from llmdd.transport import local
from llmdd.transport.engines import ENGINES

LOCALHOST = "127.0.0.1"
PATIENCE_S = 20.0

COMPLAINING = (attendance, conversation, listener, memory_handover, reception, session)
DESC = CacheDesc(1, (1, 4096), DataType.DT_UINT8)


class Node:
    """A node in this process."""

    def __init__(self, cluster_id: int, *, remote_accessible: bool = False, **settings: Any) -> None:
        self.cluster_id = cluster_id
        self.store = LeaseCalls(
            cluster_id=cluster_id,
            device_pool=(1 << 20, 16),
            host_pool=None,
            remote_accessible=remote_accessible,
            timeout_ms=1000,
        )
        self.service = LinkService(
            cluster_id=cluster_id, store=self.store, remote_accessible=remote_accessible, **settings
        )

    def listen(self) -> LinkTarget:
        """Start listening; what others need in order to link to this node."""
        return LinkTarget(self.cluster_id, *self.service.listen(LOCALHOST, 0))

    def link(self, target: LinkTarget, timeout_ms: int = 5000) -> str:
        return self.service.link([target], timeout_ms)[0].name

    def unlink(self, target: LinkTarget, timeout_ms: int = 5000, force: bool = False) -> str:
        return self.service.unlink([target], timeout_ms, force)[0].name

    def linked(self) -> list[int]:
        return self.service.linked_clusters()

    def bits_out(self) -> int:
        """How many pin bits are with peers."""
        return self.store.admitted_peers

    def bind(self, req_id: int, fill: int) -> None:
        """A cache filled with one number, to be pulled by its key."""
        cache = self.store.allocate_cache(DESC, [CacheKey(self.cluster_id, req_id)])
        cache.tensors[0][:] = fill
        self.store.deallocate_cache(cache)

    def pull(self, cluster_id: int, req_id: int) -> int:
        """The number a peer's cache is filled with."""
        cache = self.store.allocate_cache(DESC)
        try:
            self.store.pull_cache(CacheKey(cluster_id, req_id), cache)
            return int(cache.tensors[0][0, -1])
        finally:
            self.store.deallocate_cache(cache)

    def close(self) -> None:
        self.service.close(5000)
        self.store.close()


@pytest.fixture(autouse=True)
def fresh_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have warned of does not count: each may see its warnings."""
    for module in COMPLAINING:
        monkeypatch.setattr(module, "_complaints", Complaints(logging.getLogger("llmdd.link")))


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(cluster_id: int, **settings: Any) -> Node:
        nodes.append(Node(cluster_id, **settings))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


class Peer(CommandedProcess):
    """A node in a process of its own (``peer_process.py``)."""

    def __init__(
        self, cluster_id: int, remote_accessible: bool = False, host: str | None = None, **handshake_constants: Any
    ) -> None:
        self.cluster_id = cluster_id
        super().__init__(
            Path(__file__).with_name("peer_process.py"),
            {
                "cluster_id": cluster_id,
                "remote_accessible": remote_accessible,
                "host": host,
                "handshake_constants": handshake_constants,
            },
        )

    def listen(self, port: int = 0) -> LinkTarget:
        return LinkTarget(self.cluster_id, *self.call("listen", LOCALHOST, port))

    def link(self, target: LinkTarget, timeout_ms: int = 5000) -> str:
        code: str = self.call("link", target.cluster_id, target.host, target.port, timeout_ms)
        return code

    def unlink(self, target: LinkTarget, timeout_ms: int = 5000, force: bool = False) -> str:
        code: str = self.call("unlink", target.cluster_id, target.host, target.port, timeout_ms, force)
        return code


@pytest.fixture
def make_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(cluster_id: int, **settings: Any) -> Peer:
        peers.append(Peer(cluster_id, **settings))
        return peers[-1]

    yield make
    for peer in peers:
        peer.end()


def options(*, ours: dict[str, str] | None = None, **given: str) -> dict[str, str]:
    """What ``LLMDataDist.init`` takes, with a small pool. ``ours``: options that only llmdd has."""
    pool = json.dumps({"memory_size": 1 << 20, "page_shift": 12})
    chosen = {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": pool, "llm.SyncKvCacheWaitTime": "5000"}
    own = {f"llmdd.{name}": value for name, value in (ours or {}).items()}
    return {**chosen, **{f"llm.{name}": value for name, value in given.items()}, **own}


@pytest.fixture
def make_instance() -> Iterator[Callable[..., Instance]]:
    """Makes initialised instances in this process, and finalizes them at the end."""
    made: list[Instance] = []

    def make(cluster_id: int, **given: Any) -> Instance:
        made.append(Instance(cluster_id, options(**given)))
        return made[-1]

    yield make
    for instance in made:
        instance.finalize()


class InstanceProcess(CommandedProcess):
    """An :class:`Instance` in a process of its own: its methods are called by name."""

    def __init__(self, cluster_id: int, chosen: dict[str, str], without_ptrace: bool) -> None:
        self.cluster_id = cluster_id
        settings = {"cluster_id": cluster_id, "options": chosen, "without_ptrace": without_ptrace}
        super().__init__(instance_process.__file__, settings)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: self.call(method, *arguments)


@pytest.fixture
def make_instance_process() -> Iterator[Callable[..., InstanceProcess]]:
    made: list[InstanceProcess] = []

    def make(cluster_id: int, *, without_ptrace: bool = False, **given: Any) -> InstanceProcess:
        made.append(InstanceProcess(cluster_id, options(**given), without_ptrace))
        return made[-1]

    yield make
    for process in made:
        process.end()


class RawChannel:
    """A connection on which anything at all can be said, at any moment."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self.socket = sock

    def send(self, *said: messages.Message | bytes) -> None:
        self.socket.sendall(b"".join(part if isinstance(part, bytes) else messages.frame(part) for part in said))

    def receive(self) -> messages.Message | None:
        """The next message; None at the end of the connection."""
        header = self._exactly(messages.HEADER.size)
        return None if header is None else messages.decode(self._exactly(messages.payload_length(header)) or b"")

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not part:
                return None
            data += part
        return data

    def close(self) -> None:
        self.socket.close()


class Introduced(NamedTuple):
    """The three connections of a link that an engine serves: the session, where this end asks, where it is asked."""

    session: RawChannel
    asking: RawChannel
    asked: RawChannel

    def close(self) -> None:
        for channel in self:
            channel.close()


class RawEnd:
    """One end of links, made step by step by the test instead of by a LinkService."""

    def __init__(self, cluster_id: int) -> None:
        self.cluster_id = cluster_id
        self.identity = handshake.new_identity(cluster_id, remote_accessible=False)
        self.store = CacheStore(cluster_id=cluster_id, device_pool=(1 << 20, 16), timeout_ms=1000)
        self._server = socket.create_server((LOCALHOST, 0))
        self._server.settimeout(PATIENCE_S)
        self.target = LinkTarget(cluster_id, *self._server.getsockname())
        self._channels: list[RawChannel] = []

    def connect(self, target: LinkTarget) -> RawChannel:
        assert target.host is not None and target.port is not None
        return self._opened(socket.create_connection((target.host, target.port)))

    def accept(self) -> RawChannel:
        return self._opened(self._server.accept()[0])

    def _opened(self, sock: socket.socket) -> RawChannel:
        self._channels.append(RawChannel(sock))
        return self._channels[-1]

    def request_link(
        self, target: LinkTarget, communicator: messages.CommunicatorTag | None = None
    ) -> tuple[RawChannel, messages.Welcome]:
        channel = self.connect(target)
        channel.send(messages.LinkRequest(self.identity, target.cluster_id, communicator))
        welcome = channel.receive()
        assert isinstance(welcome, messages.Welcome), welcome
        return channel, welcome

    def segments(self, token: bytes, /, **changes: Any) -> messages.Segments:
        return msgspec.structs.replace(messages.Segments(token, self.store.export()[0], 0), **changes)

    def hand_over(
        self, welcome: messages.Welcome, payload: bytes | None = None, fds: list[int] | None = None, takes: bool = True
    ) -> bool:
        """Come to the rendezvous with what is given (this end's memory otherwise); whether memory came in return.

        Unless this end ``takes`` what comes, the other cannot even send it.
        """
        payload = messages.encode(self.segments(welcome.token)) if payload is None else payload
        fds = self.store.export()[1] if fds is None else fds
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix:
            unix.settimeout(PATIENCE_S)
            unix.connect(f"\0llmdd-{welcome.rendezvous}")
            if not takes:
                unix.shutdown(socket.SHUT_RD)
            try:
                socket.send_fds(unix, [payload], fds)
                received = socket.recv_fds(unix, messages.MAX_PAYLOAD, 8)[1]
            except (BrokenPipeError, ConnectionResetError):
                return False
            for fd in received:
                os.close(fd)
            return bool(received)

    def offer(self) -> messages.EngineOffer:
        return messages.EngineOffer(f"still:end-{self.identity.incarnation}".encode())

    def request_introduction(self, target: LinkTarget) -> tuple[RawChannel, messages.Welcome]:
        """Ask a node on another host for a link; what it answers."""
        self.identity = msgspec.structs.replace(self.identity, host="the host of a raw end")
        channel, welcome = self.request_link(target)
        assert welcome.rendezvous == ""
        return channel, welcome

    def converse(self, target: LinkTarget, token: bytes, asks: Any) -> RawChannel:
        channel = self.connect(target)
        channel.send(messages.Converse(token, asks))
        return channel

    def introduce(self, target: LinkTarget) -> Introduced:
        """A handshake with a node on another host, as its initiator, up to the commit."""
        channel, welcome = self.request_introduction(target)
        channel.send(self.offer())
        offer = channel.receive()
        assert isinstance(offer, messages.EngineOffer), offer
        asking, asked = (self.converse(target, welcome.token, asks) for asks in ("initiator", "acceptor"))
        return Introduced(channel, asking, asked)

    def accept_introduction(self) -> Introduced:
        """Answer a node's request for a link, from another host, up to its commit (which is received)."""
        channel = self.accept()
        assert isinstance(channel.receive(), messages.LinkRequest)
        self.identity = msgspec.structs.replace(self.identity, host="the host of a raw end")
        token = secrets.token_bytes(16)
        channel.send(messages.Welcome(self.identity, "", token))
        assert isinstance(channel.receive(), messages.EngineOffer)
        channel.send(self.offer())
        asked, asking = self.accept(), self.accept()
        assert asked.receive() == messages.Converse(token, "initiator")
        assert asking.receive() == messages.Converse(token, "acceptor")
        assert channel.receive() == messages.Commit()
        return Introduced(channel, asking, asked)

    def prepare_link(self, target: LinkTarget, communicator: messages.CommunicatorTag | None = None) -> RawChannel:
        """A handshake with a node, as its initiator, up to the commit."""
        channel, welcome = self.request_link(target, communicator)
        assert self.hand_over(welcome)
        return channel

    def link(self, target: LinkTarget, communicator: messages.CommunicatorTag | None = None) -> RawChannel:
        channel = self.prepare_link(target, communicator)
        channel.send(messages.Commit())
        assert channel.receive() == messages.Linked()
        return channel

    def welcome(self, channel: RawChannel, **changes: Any) -> None:
        """Answer a node's request for a link, then its handover, up to its commit (which is received)."""
        assert isinstance(channel.receive(), messages.LinkRequest)
        name, token = secrets.token_hex(8), secrets.token_bytes(16)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix:
            unix.settimeout(PATIENCE_S)
            unix.bind(f"\0llmdd-{name}")
            unix.listen(1)
            channel.send(messages.Welcome(self.identity, name, token))
            with unix.accept()[0] as connection:
                for fd in socket.recv_fds(connection, messages.MAX_PAYLOAD, 8)[1]:
                    os.close(fd)
                socket.send_fds(connection, [messages.encode(self.segments(token, **changes))], self.store.export()[1])

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._server.close()
        self.store.close()


@pytest.fixture
def make_raw_end() -> Iterator[Callable[..., RawEnd]]:
    ends: list[RawEnd] = []

    def make(cluster_id: int) -> RawEnd:
        ends.append(RawEnd(cluster_id))
        return ends[-1]

    yield make
    for end in ends:
        end.close()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, eventually: Callable) -> Iterator[list[StillEngine]]:
    """Every engine that is opened: one that moves nothing. In the end all are closed, and their threads have ended.

    Ask for it before anything that makes nodes, so that it looks last.
    """
    monkeypatch.setitem(ENGINES, "nixl", StillEngine)
    StillEngine.opened.clear()
    before = set(threading.enumerate())
    yield StillEngine.opened
    assert all(engine.is_closed for engine in StillEngine.opened)
    left = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("llmdd")}
    eventually(lambda: not any(thread.is_alive() for thread in left), f"{left} have ended")


@pytest.fixture
def make_distant(make_node: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Node]:
    """Makes nodes in this process that take themselves to be on a host of their own."""

    def make(cluster_id: int, **settings: Any) -> Node:
        with monkeypatch.context() as patch:
            patch.setattr(local, "host_identity", lambda: f"the host of cluster {cluster_id}")
            return make_node(cluster_id, **settings)

    return make


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def no_descriptor_leaks(eventually: Callable) -> Iterator[None]:
    """Ask for it first, so that it looks last: after every node has been closed."""
    fork_server()  # whose descriptor is there to stay
    before = open_descriptors()
    yield
    eventually(lambda: open_descriptors() <= before, f"{before} descriptors were open before the test")


# -- conversations without links ------------------------------------------------------------------------------------


@pytest.fixture
def network() -> Network:
    """Engines in memory, which let a transfer proceed as over TCP: only while both ends see to theirs."""
    return Network(usual=Course(polls=3), target_proceeds=True)


@pytest.fixture
def make_conversing(network: Network, eventually: Callable) -> Iterator[Callable[..., ConversingNode]]:
    """Makes nodes that converse, of which nothing is left in the end."""
    with conversing_nodes(eventually) as make:
        yield lambda cluster_id, **settings: make(cluster_id, network, **settings)


@pytest.fixture
def line(make_conversing: Callable[..., ConversingNode]) -> Line:
    """The line of node 1 to node 2, whose caches it wants."""
    return Line(make_conversing(1), make_conversing(2))
