"""Stores without links, and a look at the bytes of their segments."""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from typing import Any

import pytest
from arena_layout import ArenaHeader, IndexEntry

from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore

# From <linux/fcntl.h>.
F_ADD_SEALS = 1033
F_SEAL_SHRINK = 0x0002


@dataclass
class Segments:
    """An arena's segments, copied, so that they can be made worse than any store would make them."""

    description: dict[str, int]
    contents: list[bytearray]
    sealed: bool = True
    _fds: list[int] = field(default_factory=list)

    @property
    def header(self) -> ArenaHeader:
        """The header at the start of the copied control segment: writing to it writes the copy."""
        return ArenaHeader.from_buffer(self.contents[0])

    def fds(self) -> list[int]:
        """Descriptors of segments with the contents as they are now."""
        self.close()
        for content in self.contents:
            fd = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self._fds.append(fd)
            os.ftruncate(fd, len(content))
            os.pwrite(fd, content, 0)
            if self.sealed:
                fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)
        return self._fds

    def attach(self, peer_bit: int = 0) -> PeerArena:
        return PeerArena(self.description, self.fds(), peer_bit, os.getpid())

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


@pytest.fixture
def make_store() -> Iterator[Callable[..., CacheStore]]:
    stores: list[CacheStore] = []

    def make(cluster_id: int = 1, **settings: Any) -> CacheStore:
        settings = {"device_pool": (1 << 20, 12), "timeout_ms": 5000, **settings}
        stores.append(CacheStore(cluster_id=cluster_id, **settings))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def attach() -> Callable[[CacheStore, CacheStore], PeerArena]:
    """Lets one store transfer from and to another, as a link would."""

    def attach(store: CacheStore, owner: CacheStore) -> PeerArena:
        arena = PeerArena(*owner.export(), owner.admit_peer(), os.getpid())
        store.peers = {**store.peers, owner.cluster_id: arena}
        return arena

    return attach


@pytest.fixture
def copy_segments() -> Iterator[Callable[[CacheStore], Segments]]:
    copies: list[Segments] = []

    def copy(store: CacheStore) -> Segments:
        description, fds = store.export()
        contents = [bytearray(os.pread(fd, os.fstat(fd).st_size, 0)) for fd in fds]
        copies.append(Segments(dict(description), contents))
        return copies[-1]

    yield copy
    for segments in copies:
        segments.close()


@pytest.fixture
def index_displacements() -> Callable[[CacheStore], list[int]]:
    """How far from its home each entry of a store's key index stands."""

    def displacements(store: CacheStore) -> list[int]:
        control = store.export()[1][0]
        with mmap(control, 0, access=ACCESS_READ) as memory:
            header = ArenaHeader.from_buffer_copy(memory[: ctypes.sizeof(ArenaHeader)])
            homes = 1 << header.index_bits
            size = (homes + 256) * ctypes.sizeof(IndexEntry)
            entries = (IndexEntry * (homes + 256)).from_buffer_copy(
                memory[header.index_offset : header.index_offset + size]
            )
        found = [
            position - (entry.tag >> (32 - header.index_bits)) for position, entry in enumerate(entries) if entry.tag
        ]
        assert len(found) == header.index_count
        return found

    return displacements


@pytest.fixture
def header_offset() -> Callable[[str], int]:
    """Where a field of the header stands."""
    return lambda name: getattr(ArenaHeader, name).offset
