"""Mooncake's Transfer Engine over TCP, the protocol it has for hosts without RDMA, with peer-to-peer handshakes.

Memory is ordinary memory of each process, registered once with the engine. Where a request's bytes are, the puller is
told before the round, untimed, as in the connectors that vLLM and SGLang have for it: nothing is looked up at the
owner, which favours Mooncake. They release through a channel of their own beside it, and so does this: through a
socket, which the owner reads after the round. Mooncake's own notifications (``transfer_sync`` with one) take several
times as long. Its pool of connections is on, which spares batches a connection for each block.
"""

from __future__ import annotations

import os
import socket
from importlib import import_module, metadata
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ..contender import Incorrect, Unavailable
from .pulls import BetweenProcesses, BlockPulls, Bytes, Owner, Pulls

DISTRIBUTIONS = ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")

#: How long after a round a release may take that was sent in it.
PATIENCE_S = 3.0

#: Blocks in one call of a batch: the engine's queue for a peer does not take tens of thousands.
BATCH = 512


def find() -> Any:
    """The engine's module."""
    try:
        return import_module("mooncake.engine")
    except ModuleNotFoundError as missing:
        raise Unavailable(
            f"Mooncake is not installed ({missing}): pip install mooncake-transfer-engine-non-cuda"
        ) from missing
    except ImportError as broken:
        if "libibverbs" in str(broken):
            raise Unavailable(f"Mooncake needs libibverbs: install Debian's libibverbs1 ({broken})") from broken
        raise Unavailable(f"Mooncake cannot be imported: {broken}") from broken


ENGINE = find()
os.environ.setdefault("MC_TCP_ENABLE_CONNECTION_POOL", "1")


def versions() -> dict[str, str]:
    for distribution in DISTRIBUTIONS:
        try:
            return {distribution: metadata.version(distribution)}
        except metadata.PackageNotFoundError:
            continue
    return {}


def touched(rows: int, size: int) -> Bytes:
    """Ordinary memory, every page of it touched."""
    memory = np.empty((rows, size), np.uint8)
    memory[:] = 0
    return memory


def engine_for(memory: Bytes, address: str) -> Any:
    """An engine that has `memory` registered, and can be reached at an address."""
    engine = ENGINE.TransferEngine()
    if engine.initialize(address, "P2PHANDSHAKE", "tcp", ""):
        raise Unavailable(f"Mooncake's engine cannot be initialised for TCP at {address}")
    if engine.register_memory(memory.ctypes.data, memory.nbytes):
        raise Unavailable(f"Mooncake does not register {memory.nbytes} bytes")
    return engine


class MooncakeOwner(Owner):
    """Registers its memory; threads of the engine serve it."""

    def __init__(self, rows: int, size: int, address: str, releases: socket.socket) -> None:
        super().__init__(touched(rows, size))
        self._address = address
        self._engine = engine_for(self.memory, address)
        self._releases = Connection(releases.detach())

    def introduce(self) -> tuple[str, int]:
        """The name that the engine is reached by, and where the memory begins."""
        return f"{self._address}:{self._engine.get_rpc_port()}", self.memory.ctypes.data

    def left(self) -> int:
        while self.keys and self._releases.poll(PATIENCE_S):
            for request_id in self._releases.recv_bytes().split():
                self.release(int(request_id))
        return len(self.keys)


class MooncakeTransfers(BetweenProcesses):
    """The engines of both ends, and what the releases go through."""

    def start_owner(self, rows: int, size: int) -> None:
        """Start the owner of so much memory: a fork, so before the engine has threads."""
        ours, theirs = self.hosts.connection()
        self.owner = self.start(MooncakeOwner, rows, size, self.hosts.far, theirs)
        theirs.close()
        self.releases = Connection(ours.detach())
        self.name, self.remote = self.owner.call("introduce")


class MooncakePulls(MooncakeTransfers, Pulls):
    """``transfer_sync_read`` for each request, and a message that releases it."""

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.start_owner(count, size)
        self.pulled = memory = touched(count, size)
        self.engine = engine_for(memory, self.hosts.near)
        self.local = memory.ctypes.data

    def run(self) -> None:
        read, name, size = self.engine.transfer_sync_read, self.name, self.size
        ours, theirs = self.local, self.remote
        for row, request_id in enumerate(self.requests):
            if read(name, ours + row * size, theirs + self.places[request_id] * size, size):
                raise Incorrect(f"the transfer for request {request_id} failed")
            self.release(request_id)

    def release(self, *request_ids: int) -> None:
        self.releases.send_bytes(b" ".join(b"%d" % request_id for request_id in request_ids))


class MooncakePullsAtOnce(MooncakePulls):
    """``batch_transfer_sync_read`` for all requests at once, which is one operation, and one message for all."""

    def __init__(self, size: int, count: int, **how: bool) -> None:
        super().__init__(size, count, **how)
        self.operations = 1

    def run(self) -> None:
        size, count = self.size, self.count
        ours = list(range(self.local, self.local + count * size, size))
        theirs = [self.remote + self.places[request_id] * size for request_id in self.requests]
        if self.engine.batch_transfer_sync_read(self.name, ours, theirs, [size] * count):
            raise Incorrect("a batch of transfers failed")
        self.release(*self.requests)


class MooncakeBlockPulls(MooncakeTransfers, BlockPulls):
    """``batch_transfer_sync_read`` of :data:`BATCH` blocks at a time."""

    def __init__(self, blocks: int, tensors: int, size: int, run: int = 1, apart: bool = False) -> None:
        super().__init__(blocks, tensors, size, run, apart)
        self.start_owner(tensors, blocks * size)
        memory = touched(tensors, blocks * size)
        self.pulled = memory.reshape(tensors, blocks, size)
        self.engine = engine_for(memory, self.hosts.near)
        self.transfers = [
            (memory.ctypes.data + (tensor * blocks + target) * size, self.remote + (tensor * blocks + source) * size)
            for tensor in range(tensors)
            for source, target in zip(self.sources, self.targets, strict=True)
        ]

    def run(self) -> None:
        for first in range(0, len(self.transfers), BATCH):
            ours, theirs = zip(*self.transfers[first : first + BATCH], strict=True)
            if self.engine.batch_transfer_sync_read(self.name, ours, theirs, [self.size] * len(ours)):
                raise Incorrect("a batch of transfers failed")
