"""Pieces of registered memory that their owner is asked for over the session."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.link import LinkService, LinkTarget, messages
from llmdd.link.channel import Channel
from llmdd.transport import local

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

SIZE = 3 * messages.MAX_PIECE
NO_RIGHT, UNMAPPED = 98, 99


class OwnedMemory:
    """A store with registered memory: one tensor, of slot 5 in its third generation."""

    def __init__(self, store: Any, seed: int) -> None:
        self._store = store
        self.peers: dict[int, Any] = {}
        self.communicators = 0
        self.tensor = bytearray(random.Random(seed).randbytes(SIZE))
        self.copying = threading.Event()
        self.may_copy = threading.Event()
        self.may_copy.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _check(self, peer_bit: int, slot: int, generation: int, tensor: int) -> None:
        self.copying.set()
        assert self.may_copy.wait(20)
        assert 0 <= peer_bit < 1024
        if slot == NO_RIGHT:
            raise ValueError("the slot is not pinned")
        if slot == UNMAPPED:
            raise LLMException("not mapped", status_code=LLMStatusCode.LLM_PARAM_INVALID)
        assert (slot, generation, tensor) == (5, 3, 1)

    def read_registered(self, peer_bit: int, slot: int, generation: int, tensor: int, offset: int, size: int) -> bytes:
        self._check(peer_bit, slot, generation, tensor)
        return bytes(self.tensor[offset : offset + size])

    def write_registered(
        self, peer_bit: int, slot: int, generation: int, tensor: int, offset: int, data: bytes
    ) -> None:
        self._check(peer_bit, slot, generation, tensor)
        self.tensor[offset : offset + len(data)] = data


class End:
    """A node whose memory peers ask for."""

    def __init__(self, node: Any, seed: int) -> None:
        self.node = node
        node.service.close(1000)
        self.memory = OwnedMemory(node.store, seed)
        self.cluster_id = node.cluster_id
        node.service = self.service = LinkService(
            cluster_id=node.cluster_id, store=self.memory, remote_accessible=False
        )

    def courier(self, cluster_id: int) -> Any:
        return self.service.peers[cluster_id].courier


@pytest.fixture
def ends(make_node: Callable) -> tuple[End, End, LinkTarget]:
    """Two linked ends, and where the second one listens."""
    client, server = End(make_node(1), 1), End(make_node(2), 2)
    target = server.node.listen()
    assert client.node.link(target) == "LLM_SUCCESS"
    return client, server, target


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def code_of(future: Future[Any]) -> str:
    error = future.exception(timeout=20)
    assert isinstance(error, LLMException), error
    return error.status_code.name


@pytest.mark.parametrize("size", [1, 4096, messages.MAX_PAYLOAD, messages.MAX_PIECE])
def test_pieces_of_every_size_in_both_directions(ends: tuple, size: int) -> None:
    client, server, _ = ends
    for asker, owner in ((client, server), (server, client)):
        courier = asker.courier(owner.cluster_id)
        for offset in (0, 1, SIZE - size):
            assert courier.fetch(5, 3, 1, offset, size, 20.0) == owner.memory.tensor[offset : offset + size]
            data = random.Random(offset).randbytes(size)
            courier.store(5, 3, 1, offset, data, 20.0)
            assert owner.memory.tensor[offset : offset + size] == data


def test_both_ends_ask_from_many_threads_at_once(ends: tuple, caller: ThreadPoolExecutor) -> None:
    client, server, _ = ends
    begin = threading.Barrier(8)

    def move(asker: End, owner: End, thread: int) -> None:
        courier, piece = asker.courier(owner.cluster_id), SIZE // 4
        content = random.Random(thread).randbytes(piece)
        begin.wait(20)
        for _ in range(10):
            courier.store(5, 3, 1, thread * piece, content, 20.0)
            assert courier.fetch(5, 3, 1, thread * piece, piece, 20.0) == content

    moves = [
        caller.submit(move, asker, owner, thread)
        for asker, owner in ((client, server), (server, client))
        for thread in range(4)
    ]
    for moved in moves:
        moved.result(timeout=60)


def test_what_the_owner_refuses(ends: tuple) -> None:
    client, _, _ = ends
    courier = client.courier(2)
    for ask in (
        lambda: courier.fetch(UNMAPPED, 3, 1, 0, 10, 20.0),
        lambda: courier.store(UNMAPPED, 3, 1, 0, b"bytes", 20.0),
    ):
        with pytest.raises(LLMException) as refused:
            ask()
        assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    for ask in (
        lambda: courier.fetch(NO_RIGHT, 3, 1, 0, 10, 20.0),
        lambda: courier.store(NO_RIGHT, 3, 1, 0, b"bytes", 20.0),
    ):
        with pytest.raises(LLMException) as refused:
            ask()
        assert refused.value.status_code is LLMStatusCode.LLM_FAILED, "its pin has gone, perhaps with its patience"
    assert len(courier.fetch(5, 3, 1, 0, 10, 20.0)) == 10, "the link is none the worse"


def test_an_owner_whose_copying_fails_ends_the_link(
    ends: tuple, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, server, _ = ends

    def fail(*place: int) -> bytes:
        raise MemoryError(f"no room for {place}")

    monkeypatch.setattr(server.memory, "read_registered", fail)
    with pytest.raises(LLMException) as refused:
        client.courier(2).fetch(5, 3, 1, 0, 10, 600.0)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK
    assert "no room for" in caplog.text


def test_an_owner_that_takes_too_long(ends: tuple, caller: ThreadPoolExecutor) -> None:
    client, server, _ = ends
    courier = client.courier(2)
    server.memory.may_copy.clear()
    with pytest.raises(LLMException) as refused:
        courier.fetch(5, 3, 1, 0, 10, 0.05)
    assert refused.value.status_code is LLMStatusCode.LLM_TIMEOUT
    with pytest.raises(LLMException) as refused:
        courier.fetch(5, 3, 1, 0, 10, 0.05)
    assert refused.value.status_code is LLMStatusCode.LLM_TIMEOUT, "the first request is still under way"
    waiting = caller.submit(courier.fetch, 5, 3, 1, 7, 10, 20.0)
    server.memory.may_copy.set()
    assert waiting.result(timeout=20) == server.memory.tensor[7:17], "the late answer was not taken for this one's"


def test_a_store_held_still_does_not_hold_up_the_links(ends: tuple, caller: ThreadPoolExecutor, make_node) -> None:
    client, server, target = ends
    server.memory.may_copy.clear()
    waiting = caller.submit(client.courier(2).fetch, 5, 3, 1, 0, 10, 20.0)
    assert server.memory.copying.wait(20)
    assert make_node(3).link(target) == "LLM_SUCCESS"
    server.memory.may_copy.set()
    assert len(waiting.result(timeout=20)) == 10


@pytest.mark.parametrize("who", [0, 1])
def test_dropping_the_link_by_force_wakes_whoever_waits(ends: tuple, caller: ThreadPoolExecutor, who: int) -> None:
    client, server, _ = ends
    server.memory.may_copy.clear()
    waiting = caller.submit(client.courier(2).fetch, 5, 3, 1, 0, 10, 600.0)
    assert server.memory.copying.wait(20)
    dropping = (client, server)[who]
    other = (server, client)[who]
    assert dropping.node.unlink(LinkTarget(other.cluster_id, None, None), force=True) == "LLM_SUCCESS"
    if who == 0:  # its own transfer is waited for, which a courier alone is not; the answer still comes
        server.memory.may_copy.set()
        assert waiting.exception(timeout=20) is None or code_of(waiting) == "LLM_NOT_YET_LINK"
    else:
        assert code_of(waiting) == "LLM_NOT_YET_LINK"
        server.memory.may_copy.set()


def test_a_peer_that_dies_wakes_whoever_waits(make_node: Callable, make_peer: Callable, caller) -> None:
    node, peer = make_node(1), make_peer(2)
    assert node.link(peer.listen()) == "LLM_SUCCESS"
    courier = node.service.peers[2].courier
    peer.freeze()
    waiting = [caller.submit(courier.store, 5, 3, 1, 0, bytes(messages.MAX_PIECE), 600.0) for _ in range(3)]
    peer.kill()
    assert [code_of(each) for each in waiting] == ["LLM_NOT_YET_LINK"] * 3
    with pytest.raises(LLMException) as refused:
        courier.fetch(5, 3, 1, 0, 10, 600.0)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK


def test_closing_wakes_whoever_waits(ends: tuple, caller: ThreadPoolExecutor) -> None:
    client, server, _ = ends
    server.memory.may_copy.clear()
    courier = client.courier(2)
    waiting = caller.submit(courier.fetch, 5, 3, 1, 0, 10, 600.0)
    assert server.memory.copying.wait(20)
    closing = caller.submit(server.service.close, 100)
    assert code_of(waiting) == "LLM_NOT_YET_LINK"
    server.memory.may_copy.set()
    closing.result(timeout=20)
    client.service.close(100)
    with pytest.raises(LLMException) as refused:
        courier.fetch(5, 3, 1, 0, 10, 600.0)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK


class TransferInProgress:
    """A peer's memory over which a transfer runs until ``done`` is set."""

    def __init__(self, arena: Any) -> None:
        self._arena = arena
        self.courier: Any = None
        self.done = threading.Event()
        self.broken = False

    def break_off(self) -> None:
        self.broken = True
        self._arena.break_off()

    def detach(self, timeout_ms: int) -> bool:
        return self.done.wait(timeout_ms / 1000) and self._arena.detach(timeout_ms)


def test_unlinking_lets_the_other_ends_transfer_finish(
    make_node: Callable, caller: ThreadPoolExecutor, eventually: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that unlinks has promised to ask for nothing more, and answers all the same."""
    attach = local.attach
    arenas: dict[int, TransferInProgress] = {}

    def attach_busy(*args: Any) -> TransferInProgress:
        arenas[len(arenas)] = TransferInProgress(attach(*args))
        return arenas[len(arenas) - 1]

    monkeypatch.setattr(local, "attach", attach_busy)
    client, server = End(make_node(1), 1), End(make_node(2), 2)
    assert client.node.link(server.node.listen()) == "LLM_SUCCESS"
    servers, clients = arenas[0], arenas[1]
    servers.done.set()
    unlinking = caller.submit(server.node.unlink, client.node.listen())
    eventually(lambda: (client.node.linked(), server.node.linked()) == ([], []), "no transfer can begin")
    for offset in (0, 1000, SIZE - messages.MAX_PIECE):
        piece = clients.courier.fetch(5, 3, 1, offset, messages.MAX_PIECE, 20.0)
        assert piece == server.memory.tensor[offset : offset + messages.MAX_PIECE]
    assert not unlinking.done() and not clients.broken
    clients.done.set()
    assert unlinking.result(timeout=20) == "LLM_SUCCESS"


def test_a_pin_bit_stays_out_while_something_is_copied_for_it(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    owner, peer = End(make_node(1), 1), make_raw_end(2)
    channel = peer.link(owner.node.listen())
    owner.memory.may_copy.clear()
    channel.send(messages.Store(1, 5, 3, 1, 0, b"bytes"), messages.Detached())
    assert owner.memory.copying.wait(20)
    assert channel.receive() == messages.Detached()
    assert owner.node.bits_out() == 1, "what is pinned by it is being written"
    owner.memory.may_copy.set()
    eventually(lambda: owner.node.bits_out() == 0, "it was written")
    assert owner.memory.tensor[:5] == b"bytes"


# -- peers that do not keep to the protocol ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        [messages.Fetched(1, 0, b"x")],
        [messages.Stored(1, 0)],
        [messages.HEADER.pack(messages.MAX_BULK_PAYLOAD + 1)],
        [messages.HEADER.pack(20_000) + messages.encode(messages.Farewell()) + bytes(20_000)],
    ],
    ids=["unasked Fetched", "unasked Stored", "oversize", "a large Farewell"],
)
def test_what_ends_the_link(make_node: Callable, make_raw_end: Callable, eventually: Callable, said: list) -> None:
    owner, peer = End(make_node(1), 1), make_raw_end(2)
    channel = peer.link(owner.node.listen())
    channel.send(*said)
    eventually(lambda: owner.node.linked() == [], "the link is broken")


def test_a_second_request_before_the_answer_ends_the_link(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    owner, peer = End(make_node(1), 1), make_raw_end(2)
    channel = peer.link(owner.node.listen())
    owner.memory.may_copy.clear()
    channel.send(messages.Fetch(1, 5, 3, 1, 0, 10), messages.Fetch(2, 5, 3, 1, 0, 10))
    eventually(lambda: owner.node.linked() == [], "the link is broken")
    owner.memory.may_copy.set()


@pytest.mark.parametrize(
    "answer",
    [
        messages.Fetched(2, 0, bytes(10)),
        messages.Fetched(1, 0, bytes(9)),
        messages.Fetched(1, int(LLMStatusCode.LLM_FAILED), bytes(10)),
        messages.Stored(1, 0),
    ],
    ids=["another number", "fewer bytes", "bytes with a failure", "another kind"],
)
def test_an_answer_to_something_else_ends_the_link(
    make_node: Callable, make_raw_end: Callable, caller: ThreadPoolExecutor, answer: messages.Message
) -> None:
    node, peer = make_node(1), make_raw_end(2)
    channel = peer.link(node.listen())
    waiting = caller.submit(node.service.peers[2].courier.fetch, 5, 3, 1, 0, 10, 600.0)
    assert channel.receive() == messages.Fetch(1, 5, 3, 1, 0, 10)
    channel.send(answer)
    assert code_of(waiting) == "LLM_NOT_YET_LINK"


def test_a_code_that_is_none_is_a_failure(make_node: Callable, make_raw_end: Callable, caller) -> None:
    node, peer = make_node(1), make_raw_end(2)
    channel = peer.link(node.listen())
    waiting = caller.submit(node.service.peers[2].courier.fetch, 5, 3, 1, 0, 10, 600.0)
    assert channel.receive() == messages.Fetch(1, 5, 3, 1, 0, 10)
    channel.send(messages.Fetched(1, 12345, b""))
    assert code_of(waiting) == "LLM_FAILED"


def test_requests_before_the_link_stands(make_node: Callable, make_raw_end: Callable, eventually: Callable) -> None:
    node, peer = End(make_node(1), 1), make_raw_end(2)
    result: list[str] = []
    linking = threading.Thread(target=lambda: result.append(node.node.link(peer.target)))
    linking.start()
    channel = peer.accept()
    peer.welcome(channel)
    assert channel.receive() == messages.Commit()
    channel.send(messages.Fetch(1, 5, 3, 1, 0, 10))
    linking.join()
    assert result == ["LLM_FAILED"]
    assert not node.memory.copying.is_set()


# -- processes whose memory the kernel keeps apart --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["two-sided", "remote"])
def test_registered_memory_that_the_kernel_forbids_to_read(make_instance_process: Callable, mode: str) -> None:
    given = {"EnableRemoteCacheAccessible": "1" if mode == "remote" else "0"}
    owner = make_instance_process(1, listenIpInfo="127.0.0.1:0", **given)
    peer = make_instance_process(2, without_ptrace=True, **given)
    owner.keep_memory_to_itself()
    assert peer.link_cluster(1, *owner.address()) == "LLM_SUCCESS"
    cache_id, address, _ = owner.register(7, 70)
    assert peer.read_memory(owner.pid(), address) == "EPERM"
    assert peer.pull_by_id(1, cache_id) == 70
    if mode == "remote":
        assert peer.push(1, cache_id, 99) == "LLM_SUCCESS"
        assert owner.registered(cache_id) == [99] * 4
    owner.kill()
    assert peer.pull_by_id(1, cache_id) == "LLM_NOT_YET_LINK"


# -- the channel under it ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_the_sockets_buffer_is_sent_in_order() -> None:
    async def talk() -> None:
        here, there = (Channel(sock) for sock in socket.socketpair())
        said = [messages.Store(number, 0, 0, 0, 0, bytes([number]) * messages.MAX_PIECE) for number in range(2)]
        for message in (*said, messages.Farewell()):
            here.send(message)
        heard = [await there.receive(bulk=True) for _ in range(3)]
        assert heard == [*said, messages.Farewell()]
        await here.flush()
        here.close()
        with pytest.raises(messages.ProtocolError):
            await there.receive()
        there.close()

    asyncio.run(talk())


def test_an_end_that_does_not_listen_is_not_talked_to_for_ever() -> None:
    async def talk() -> None:
        here, there = (Channel(sock) for sock in socket.socketpair())
        with pytest.raises(ConnectionAbortedError):
            for number in range(100):
                here.send(messages.Store(number, 0, 0, 0, 0, bytes(messages.MAX_PIECE)))
        await here.flush()
        with pytest.raises(OSError):
            here.send(messages.Farewell())
        here.close()
        there.close()

    asyncio.run(talk())


def test_what_waits_to_be_sent_when_the_other_end_goes() -> None:
    async def talk() -> None:
        here, there = (Channel(sock) for sock in socket.socketpair())
        for number in range(2):
            here.send(messages.Store(number, 0, 0, 0, 0, bytes(messages.MAX_PIECE)))
        there.close()
        await here.flush()
        here.close()

    asyncio.run(talk())
