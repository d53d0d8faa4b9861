"""A live node with healthy peers, and what must be so whatever a stranger has said to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from programmable_engine import Course, Network

from llmdd._core.cache import Cache
from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey, CacheKeyByIdAndIndex
from llmdd._core.enumerations import DataType
from llmdd._core.lease_calls import LeaseCalls
from llmdd.link import LinkService, LinkTarget, grant, transfer_messages
from llmdd.transport import local
from llmdd.transport.engines import ENGINES

PATIENCE_S = 20.0
SMALL, LARGE = 3000, 5 << 20
SERVER, NEIGHBOUR, DISTANT = 1, 2, 3

_hosts = itertools.count()


class Log(logging.Handler):
    """What is logged. A reason is one line, not long; nothing is an error."""

    LONGEST = 1500

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.told = 0
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told += 1
        text = record.getMessage()
        if record.levelno >= logging.ERROR or record.exc_info:
            self.wrong.append(self.format(record))
        elif len(text) > self.LONGEST or not text.isprintable():
            self.wrong.append(f"not a line for a log: {text[:300]!r}")


class Node:
    """A node of this process, with caches of a known content."""

    def __init__(self, cluster_id: int, network: Network, remote_accessible: bool, host: str) -> None:
        self.cluster_id = cluster_id
        self.store = LeaseCalls(
            cluster_id=cluster_id, device_pool=(24 << 20, 12), remote_accessible=remote_accessible, timeout_ms=5000
        )
        with mock.patch.object(local, "host_identity", lambda: host):
            self.service = LinkService(cluster_id=cluster_id, store=self.store, remote_accessible=remote_accessible)
        self.target = LinkTarget(cluster_id, *self.service.listen("127.0.0.1", 0))

    def cache(self, row_bytes: int, *req_ids: int) -> Cache:
        desc = CacheDesc(1, (max(1, len(req_ids)), row_bytes), DataType.DT_UINT8)
        return self.store.allocate_cache(desc, [CacheKey(self.cluster_id, req_id) for req_id in req_ids])

    def close(self) -> None:
        self.service.close(2000)
        self.store.check()
        self.store.close()


class Deaths:
    """Tells a node that the processes of those who have shaken hands with it have died."""

    def __init__(self) -> None:
        self._alive: list[socket.socket] = []

    def pidfd_open(self, pid: int) -> int:
        watched, kept = socket.socketpair()
        self._alive.append(kept)
        return watched.detach()

    def happen(self) -> None:
        for kept in self._alive:
            kept.close()
        self._alive.clear()


class Besieged:
    """A node, a neighbour that shares memory with it, and a peer that an engine reaches.

    Attributes
    ----------
    templates
        What honest peers say first when they ask the node for transfers.
    """

    def __init__(self, network: Network, remote_accessible: bool, deaths: Deaths) -> None:
        self.network = network
        self.deaths = deaths
        self.remote_accessible = remote_accessible
        self.host = f"host {next(_hosts)}"
        self.server = Node(SERVER, network, remote_accessible, self.host)
        self.neighbour = Node(NEIGHBOUR, network, remote_accessible, self.host)
        self.distant = Node(DISTANT, network, remote_accessible, f"host {next(_hosts)}")
        self.small, self.large = self.server.cache(SMALL, 100, 101), self.server.cache(LARGE, 102)
        self.untouched = self.server.cache(SMALL)
        rng = np.random.default_rng(1)
        for cache in (self.small, self.large, self.untouched):
            cache.tensors[0][:] = rng.integers(1, 256, cache.tensors[0].shape, np.uint8)
        self._kept = [bytes(cache.tensors[0]) for cache in (self.small, self.large, self.untouched)]
        self._targets = {
            node: {size: node.cache(size) for size in (SMALL, LARGE)} for node in (self.neighbour, self.distant)
        }
        for node in self._targets:
            (code,) = node.service.link([self.server.target], 5000)
            assert code.name == "LLM_SUCCESS", code
        self.templates = self._templates()
        self._settled: dict[str, int] = {}
        self._attacks = itertools.count()

    def settle(self) -> None:
        """From now on nothing more is to be held than now, when nobody asks for anything."""
        time.sleep(0.2)
        self._settled = self._what_is_held()

    def _templates(self) -> list[transfer_messages.Begin]:
        said: list[Any] = []
        add = transfer_messages.Unsent.add

        def noted(unsent: transfer_messages.Unsent, message: Any) -> None:
            said.append(message)
            add(unsent, message)

        with mock.patch.object(transfer_messages.Unsent, "add", noted):
            for size in (SMALL, LARGE):
                self._require_pull(self.distant, size)
                if self.remote_accessible:
                    key = CacheKeyByIdAndIndex(SERVER, self._source(size).cache_id, 0)
                    self.distant.store.push_cache(key, self._targets[self.distant][size])
        return [message for message in said if isinstance(message, transfer_messages.Begin)]

    def _source(self, size: int) -> Cache:
        return self.small if size == SMALL else self.large

    def _require_pull(self, node: Node, size: int) -> None:
        target = self._targets[node][size]
        target.tensors[0][:] = 0
        node.store.pull_cache(CacheKeyByIdAndIndex(SERVER, self._source(size).cache_id, 0), target)
        # A linked peer may push, where that is on; then what is pulled is what is there.
        assert (target.tensors[0][0] == self._source(size).tensors[0][0]).all(), f"wrong bytes were pulled, {size}"

    def _what_is_held(self) -> dict[str, int]:
        """What an attack must not leave behind."""
        service = self.server.service
        running = service._engines._opening["nixl"].result()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "sessions": len(service._sessions),
            "tasks": len(asyncio.all_tasks(service._loop)),
            "pin bits": self.server.store.admitted_peers,
            "guests": len(running.attendance._guests),
            "busy guests": len(running.attendance._busy),
            "conversations": len(service._endpoint._end.conversations._expected),
            "broken links": max(0, len(service._endpoint.links.held()) - 8),
        }

    def require_unharmed(self) -> None:
        """Everything of an attack is gone, and everybody else is as before."""
        self.deaths.happen()
        deadline = time.monotonic() + PATIENCE_S
        while left := {what: held for what, held in self._what_is_held().items() if held > self._settled[what]}:
            assert time.monotonic() < deadline, f"held before: {self._settled}, now: {left}"
            time.sleep(0.001)
        self.server.store.check()
        caches = (self.small, self.large, self.untouched)
        if not self.remote_accessible:
            assert [bytes(cache.tensors[0]) for cache in caches] == self._kept, "a cache was changed"
        for node in self._targets:
            assert SERVER in node.service.linked_clusters(), f"cluster {node.cluster_id} has lost its link"
            assert node.cluster_id in self.server.service.linked_clusters(), f"the link to {node.cluster_id} is lost"
            # Large ones take longer than an attack.
            for size in (SMALL, LARGE) if next(self._attacks) % 8 == 0 else (SMALL,):
                self._require_pull(node, size)
        scratch = self.server.cache(SMALL)
        scratch.tensors[0][:] = 7
        self.server.store.deallocate_cache(scratch)
        self.network.writings[:] = self.network.under_way

    def close(self) -> None:
        for node in (self.distant, self.neighbour, self.server):
            node.close()


@contextmanager
def besieged() -> Iterator[tuple[list[Besieged], Network, Log]]:
    """Two nodes to attack, one of which lets linked peers push, the network, and the log."""
    network = Network(usual=Course(polls=2), target_proceeds=True)
    log = Log()
    logger = logging.getLogger()
    deaths = Deaths()
    threads = set(threading.enumerate())
    with ExitStack() as undo:
        undo.enter_context(mock.patch.dict(ENGINES, {"nixl": network.open}))
        handlers, level = logger.handlers[:], logger.level
        logger.handlers[:] = [log]
        logger.setLevel(logging.DEBUG)
        undo.callback(logger.setLevel, level)
        undo.callback(logger.handlers.__setitem__, slice(None), handlers)
        made: list[Besieged] = []
        undo.callback(lambda: [each.close() for each in made])
        for remote_accessible in (False, True):
            made.append(Besieged(network, remote_accessible, deaths))
        # From now on whoever links is taken to be a process of its own, which dies when its attack is over.
        undo.enter_context(
            mock.patch.object(grant, "os", SimpleNamespace(**{**vars(os), "pidfd_open": deaths.pidfd_open}))
        )
        yield made, network, log
        deaths.happen()
    assert not set(threading.enumerate()) - threads, "a thread goes on"
