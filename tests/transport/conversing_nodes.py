"""Nodes of one process with engines in memory, and the lines on which they ask each other for transfers.

A `Line` stands between a real conversation and a real attendance. Every message passes it, is noted, and may be altered
or held there, so that either end can be made to seem hostile, slow or silent.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
from programmable_engine import Network

from llmdd._core.cache import Cache
from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey
from llmdd._core.distant_peer import DistantPeer
from llmdd._core.enumerations import DataType
from llmdd._core.lease_calls import LeaseCalls
from llmdd.link import transfer_messages
from llmdd.link.conversation import Conversation
from llmdd.link.node_engines import RunningEngine
from llmdd.link.transfer_messages import Answer, Frames, Request
from llmdd.transport.engines import ENGINES

PATIENCE_S = 20.0

Alter = Callable[[Any], Iterable[Any]]


class ConversingNode:
    """A node as a link leaves it: its caches, its engine, and who serves its peers."""

    def __init__(self, network: Network, cluster_id: int, **settings: Any) -> None:
        settings = {"device_pool": (48 << 20, 12), "timeout_ms": 5000, **settings}
        self.cluster_id = cluster_id
        self.store = LeaseCalls(cluster_id=cluster_id, **settings)
        with mock.patch.dict(ENGINES, {"nixl": network.open}):
            self.running = RunningEngine("nixl", f"node {cluster_id}", self.store)
        self.engine = self.running.engine
        self.attendance = self.running.attendance
        self.lines: list[Line] = []

    def cache(self, row_bytes: int, *req_ids: int, tensors: int = 1, rows: int | None = None, seed: int = 0) -> Cache:
        """A cache with noise in it, or zeros without a seed; a row for each key, or as many as are asked for."""
        shape = (rows if rows is not None else max(1, len(req_ids)), row_bytes)
        desc = CacheDesc(tensors, shape, DataType.DT_UINT8)
        cache = self.store.allocate_cache(desc, [CacheKey(self.cluster_id, req_id) for req_id in req_ids])
        fill(cache, seed)
        return cache

    def blocks(self, count: int, block_bytes: int, tensors: int = 1, seed: int = 0, key: Any = None) -> Cache:
        """A blocks cache, filled likewise."""
        desc = CacheDesc(tensors, (count, block_bytes), DataType.DT_UINT8)
        cache = self.store.allocate_blocks_cache(desc, key)
        fill(cache, seed)
        return cache

    def is_served_by_nobody(self) -> bool:
        """Whether nothing that a peer asks for is open here."""
        return all(guest.open is None and guest.beginning is None for guest in self.attendance._guests.values())

    @property
    def used_bytes(self) -> int:
        """Of the pool."""
        usage = self.store.pool_usage()
        return usage.total_bytes - usage.free_bytes

    @property
    def free_areas(self) -> int:
        """Areas of staging memory that nobody uses."""
        return len(self.attendance.areas._free)

    @property
    def areas(self) -> int:
        """Areas of staging memory that there are."""
        return self.attendance.areas._serial

    def close(self) -> None:
        for line in self.lines:
            line.close()
        self.store.peers = {}
        self.running.close()
        if not self.store.closed:
            self.store.check()
        self.store.close()


@contextmanager
def conversing_nodes(eventually: Callable) -> Iterator[Callable[..., ConversingNode]]:
    """Makes nodes that converse. In the end every invariant of theirs holds, and nothing of them is left."""
    descriptors = open_descriptors()
    threads = set(threading.enumerate())
    nodes: list[ConversingNode] = []

    def make(cluster_id: int, network: Network, **settings: Any) -> ConversingNode:
        nodes.append(ConversingNode(network, cluster_id, **settings))
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()
    eventually(lambda: not set(threading.enumerate()) - threads, "every thread has ended")
    eventually(lambda: open_descriptors() <= descriptors, f"{descriptors} descriptors were open before")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fill(cache: Cache, seed: int) -> None:
    tensors = cache.tensors
    for number, tensor in enumerate(tensors):
        tensor[:] = noise(seed, number, tensor.shape) if seed else 0


@lru_cache(maxsize=8)
def noise(seed: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """What a tensor with that number has in it; made once, as many tests have the same."""
    return np.random.default_rng((seed, number)).integers(1, 256, shape, np.uint8)


def contents(cache: Cache) -> list[bytes]:
    """The bytes of each tensor."""
    return [bytes(tensor) for tensor in cache.tensors]


def acquaint(one: ConversingNode, other: ConversingNode) -> None:
    """What a handshake does with the two engines; again is nothing."""
    for here, there in ((one, other), (other, one)):
        if there.engine.own_name not in here.engine.peers:
            here.engine.connect(there.engine.metadata())


class Line:
    """One node's line to another, on which it asks.

    Attributes
    ----------
    requests, answers
        What has been said, as it came.
    alter_request, alter_answer
        What is said instead: messages, or bytes.
    dropped
        Set when the owner's attendance has ended the visit.
    """

    def __init__(self, asker: ConversingNode, owner: ConversingNode) -> None:
        acquaint(asker, owner)
        self.asker, self.owner = asker, owner
        self.requests: list[Request] = []
        self.answers: list[Answer] = []
        self.alter_request: Alter = lambda request: [request]
        self.alter_answer: Alter = lambda answer: [answer]
        self.dropped = threading.Event()
        asking, self._from_asker = socket.socketpair()
        asked, self._from_owner = socket.socketpair()
        self._threads = [
            threading.Thread(target=self._pass_requests, daemon=True),
            threading.Thread(target=self._pass_answers, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.guest = owner.attendance.admit(asked, asker.engine.own_name, self.dropped.set)
        self.conversation = Conversation(
            asking, asker.engine, owner.engine.own_name, asker.attendance.areas, asker.attendance.receive_late
        )
        self.peer = DistantPeer(self.conversation, owner.store.remote_accessible)
        asker.store.peers = {**asker.store.peers, owner.cluster_id: self.peer}
        asker.lines.append(self)

    @property
    def said(self) -> list[str]:
        """The kinds of requests so far."""
        return [type(request).__name__ for request in self.requests]

    def say_to_owner(self, *said: Any) -> None:
        """Say something on the asker's behalf."""
        _say(self._from_owner, said)

    def close(self) -> None:
        self.peer.break_off()
        self.conversation.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for sock in (self._from_asker, self._from_owner):
            sock.close()

    def hang_up(self) -> None:
        """End the connection at both ends."""
        for sock in (self._from_asker, self._from_owner):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it had ended already

    def _pass_requests(self) -> None:
        self._pass(self._from_asker, self._from_owner, Frames.next_request, self.requests, lambda: self.alter_request)

    def _pass_answers(self) -> None:
        self._pass(self._from_owner, self._from_asker, Frames.next_answer, self.answers, lambda: self.alter_answer)

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        next_message: Callable[[Frames], Any],
        noted: list[Any],
        alter: Callable[[], Alter],
    ) -> None:
        frames = Frames()
        try:
            while data := source.recv(1 << 20):
                frames.feed(data)
                while (message := next_message(frames)) is not None:
                    noted.append(message)
                    _say(target, alter()(message))
        except OSError:
            pass  # who is spoken to has hung up
        self.hang_up()


class RawAsker:
    """A guest of an attendance that says anything at all."""

    def __init__(self, owner: ConversingNode, engine_peer: str = "nobody") -> None:
        asked, self.socket = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        self.dropped = threading.Event()
        self._frames = Frames()
        self.guest = owner.attendance.admit(asked, engine_peer, self.dropped.set)

    def say(self, *said: Any) -> None:
        """Say messages, or bytes; an owner that has hung up hears nothing."""
        try:
            _say(self.socket, said)
        except OSError:
            return

    def hear(self) -> Answer | None:
        """The next answer; None at the end of the connection."""
        while (answer := self._frames.next_answer()) is None:
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionError:
                return None
            if not data:
                return None
            self._frames.feed(data)
        return answer

    def close(self) -> None:
        self.socket.close()


def _say(sock: socket.socket, said: Iterable[Any]) -> None:
    for message in said:
        sock.sendall(message if isinstance(message, bytes) else transfer_messages.frame(message))
