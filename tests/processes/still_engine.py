"""A transfer engine that knows who its peers are, and moves nothing: for tests of how links come about and end."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from llmdd.transport.engine import Descriptors, EngineFailed, TransferEngine, Writing

_PREFIX = b"still:"


class StillEngine(TransferEngine):
    """Its metadata is its name.

    Attributes
    ----------
    opened
        Every engine there was since the list was cleared.
    peer_timeout_ms, registered, writable, peers, is_closed
        What has been made of it.
    """

    name: ClassVar[str] = "nixl"
    opened: ClassVar[list[StillEngine]] = []

    def __init__(self, own_name: str, peer_timeout_ms: int) -> None:
        self.own_name = own_name
        self.peer_timeout_ms = peer_timeout_ms
        self.registered: Counter[tuple[int, int]] = Counter()
        self.writable: set[tuple[int, int]] = set()
        self.peers: list[str] = []
        self.is_closed = False
        self.opened.append(self)

    def register(self, address: int, size: int, *, writable: bool) -> None:
        self.registered[address, size] += 1
        if writable:
            self.writable.add((address, size))

    def deregister(self, address: int, size: int) -> None:
        if self.registered[address, size] == 0:
            raise KeyError((address, size))
        self.registered[address, size] -= 1
        if self.registered[address, size] == 0:
            self.writable.discard((address, size))

    def metadata(self) -> bytes:
        return _PREFIX + self.own_name.encode()

    def connect(self, metadata: bytes) -> str:
        peer = self._peer_of(metadata)
        if peer in self.peers:
            raise EngineFailed(f"{peer} is connected already")
        self.peers.append(peer)
        return peer

    def refresh(self, peer: str, metadata: bytes) -> None:
        if peer not in self.peers or self._peer_of(metadata) != peer:
            raise EngineFailed(f"this is not the metadata of {peer}")

    def reconnect(self, peer: str) -> bool:
        self._require_open()
        return True

    def disconnect(self, peer: str) -> None:
        self._require_open()
        self.peers.remove(peer)

    def write(self, peer: str, local: Descriptors, remote: Descriptors) -> Writing:
        raise EngineFailed("this engine moves nothing")

    def progress(self) -> None:
        self._require_open()

    def close(self) -> None:
        self.is_closed = True

    def _require_open(self) -> None:
        if self.is_closed:
            raise EngineFailed("the engine is closed")

    def _peer_of(self, metadata: bytes) -> str:
        self._require_open()
        if not metadata.startswith(_PREFIX):
            raise EngineFailed("this is no metadata")
        return metadata.removeprefix(_PREFIX).decode()
