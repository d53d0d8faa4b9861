"""NIXL: an engine that others keep, with UCX below it (TCP; RDMA where there is any).

What was found out about it, and is built upon here:

- A transfer that is *released* while it is under way counts as ended and goes on writing; so does one whose peer is
  removed. So nothing is released and no peer is removed before the last of the writings to it has ended. Only the end
  of the whole agent ends its writing at once.
- Over TCP a READ is answered by the process that is read from, which UCX aborts if the reader has died meanwhile. So
  nothing is read: the agent writes, which in no case ended either process, and is faster.
- Over TCP what is written is received by the process that is written to: it has arrived only when that one has
  proceeded, and the writer is told so only then.
- An agent that is left to the end of the interpreter, or to a forked child, crashes there or disturbs its parent. So it
  is destroyed by :meth:`NixlEngine.close` and by nothing else.
- The progress thread that NIXL offers takes a whole core for ever. The agent has none: it proceeds when it is polled.
- NIXL's package rearranges the logging of the whole program when it is imported: only its compiled part is loaded.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import logging
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from .engine import MAX_METADATA, Descriptors, EngineFailed, EngineUnavailable, TransferEngine, Writing
from .peer_timeout import DEFAULT_PEER_TIMEOUT_MS, probing
from .ucx_ports import require_a_free_port

_logger = logging.getLogger("llmdd.transport")

#: The packages that NIXL comes in, one for each kind of accelerator; any of them serves the memory of a host.
PACKAGES = ("nixl_cu12", "nixl_cu13", "nixl_rocm")

#: What the user types who has none of them. The second command is for machines without a GPU: NIXL's package asks for
#: PyTorch, with which come gigabytes of CUDA, and llmdd does without.
HOW_TO_INSTALL = "pip install 'llmdd[nixl]', or without a GPU: pip install --no-deps nixl-cu12"

#: How UCX is set where the user has not set it.
UCX_SETTINGS = {
    "UCX_TCP_CONN_NB": "y",  # else an address that nobody answers at holds the whole process up for minutes
    "UCX_LOG_LEVEL": "fatal",  # what goes wrong is raised; UCX would write it to the standard output as well
    "NIXL_LOG_LEVEL": "FATAL",
}

#: Where the kernel lists RDMA devices, with the driver of each. UCX's part for those of Amazon (EFA) takes the system's
#: libibverbs, beside the one that NIXL brings along; the two crash when the process exits.
RDMA_DEVICES = Path("/sys/class/infiniband")
EFA_DRIVER = "efa"
WITHOUT_EFA = {"UCX_MODULES": "^efa"}

_VERSION = 2
ShortText = Annotated[str, Meta(max_length=200)]
_NOTHING: list[Any] = []

_Region = tuple[int, int]


class _Introduction(msgspec.Struct, array_like=True):
    """What an engine's metadata is: NIXL's own, and what tells damaged or foreign bytes before NIXL reads them."""

    engine: ShortText
    version: int
    name: ShortText
    digest: Annotated[bytes, Meta(max_length=64)]
    blob: bytes


# Made now, because msgspec is not safe from threads that are the first, all at once, to decode a type.
_introductions = msgspec.msgpack.Decoder(_Introduction)


@dataclass
class _Peer:
    """A connected peer: its newest metadata, how many writings to it are under way, whether it is to be gone, and
    whether a writing has failed since it was reached last."""

    metadata: bytes
    writings: int = 0
    leaving: bool = False
    has_failed: bool = False


class NixlEngine(TransferEngine):
    """One NIXL agent with the UCX backend.

    Parameters
    ----------
    name
        What the agent is called; no peer of it may be called the same.
    peer_timeout_ms
        How long a peer's host may answer nothing, over TCP, before what is written there has failed.

    Raises
    ------
    EngineUnavailable
        If NIXL is not installed, or finds no network to use, or no port that it may use.
    """

    name = "nixl"

    def __init__(self, name: str, peer_timeout_ms: int = DEFAULT_PEER_TIMEOUT_MS) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._agent: Any = None
        self._why_closed = "it is closed"
        self._registered: Counter[_Region] = Counter()
        self._writable: set[_Region] = set()
        self._peers: dict[str, _Peer] = {}
        with _starting, _settings(peer_timeout_ms):
            self._nixl = _bindings()
            require_a_free_port()
            self._agent = self._open()
        _open_engines.add(self)

    def _open(self) -> Any:
        nixl = self._nixl
        configuration = nixl.nixlAgentConfig()
        configuration.useProgThread = False
        configuration.useListenThread = False
        try:
            agent = nixl.nixlAgent(self._name, configuration)
            agent.createBackend("UCX", {})
        except Exception as error:
            raise EngineUnavailable(
                f"NIXL cannot use the network of this machine: {_said(error)}; "
                "set UCX_LOG_LEVEL=info and NIXL_LOG_LEVEL=INFO to see what UCX says"
            ) from error
        # So that neither the end of the interpreter nor a forked child destroys it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(agent))
        return agent

    def register(self, address: int, size: int, *, writable: bool) -> None:
        with self._lock:
            agent = self._opened()
            if not self._registered[address, size]:
                self._ask("register memory", agent.registerMem, self._regions([(address, size)]), _NOTHING)
            self._registered[address, size] += 1
            if writable:
                self._writable.add((address, size))

    def deregister(self, address: int, size: int) -> None:
        with self._lock:
            if not self._registered[address, size]:
                raise KeyError(f"no memory is registered as {size} bytes at {address:#x}")
            agent = self._opened()
            self._registered[address, size] -= 1
            if not self._registered[address, size]:
                del self._registered[address, size]
                self._writable.discard((address, size))
                self._ask("deregister memory", agent.deregisterMem, self._regions([(address, size)]), _NOTHING)

    def metadata(self) -> bytes:
        with self._lock:
            # Even with no region at all it tells how to reach this engine, and with that the later ones are added.
            regions, with_the_way_here = self._regions(sorted(self._writable)), True
            describe = self._opened().getLocalPartialMD
            blob: bytes = self._ask("describe itself", describe, regions, with_the_way_here, _NOTHING)
        metadata = msgspec.msgpack.encode(_Introduction(self.name, _VERSION, self._name, _digest(blob), blob))
        if len(metadata) > MAX_METADATA:
            raise EngineFailed(f"the metadata would have {len(metadata)} bytes, more than {MAX_METADATA}")
        return metadata

    def connect(self, metadata: bytes) -> str:
        introduction = _decoded(metadata)
        peer = introduction.name
        with self._lock:
            agent = self._opened()
            if peer == self._name:
                raise EngineFailed(f"the peer's engine has the name of this one, {peer!r}")
            known = self._peers.get(peer)
            if known is not None and known.leaving:
                # What is being written to it keeps it known, and it has come back meanwhile.
                self._learn(peer, known, introduction.blob)
                known.leaving = False
                return peer
            if known is not None:
                raise EngineFailed(f"the engine is connected to {peer!r} already")
            self._load(peer, introduction.blob)
            self._peers[peer] = _Peer(introduction.blob)
            try:
                self._ask(f"reach {peer!r}", agent.makeConnection, peer, _NOTHING)
            except EngineFailed:
                self._forget(peer)
                raise
        return peer

    def refresh(self, peer: str, metadata: bytes) -> None:
        introduction = _decoded(metadata)
        with self._lock:
            known = self._known(peer)
            if introduction.name != peer:
                raise EngineFailed(f"the metadata is of {introduction.name!r}, not of {peer!r}")
            self._learn(peer, known, introduction.blob)

    def reconnect(self, peer: str) -> bool:
        with self._lock:
            return self._reach(peer, self._known(peer))

    def disconnect(self, peer: str) -> None:
        with self._lock:
            known = self._peers.get(peer)
            if self._agent is None or known is None:
                return
            known.leaving = True
            if not known.writings:
                self._forget(peer)

    def write(self, peer: str, local: Descriptors, remote: Descriptors) -> Writing:
        nixl = self._nixl
        _require_pairs(local, remote)
        with self._lock:
            known = self._known(peer)
            try:
                handle, state = self._begin_to_write(peer, local, remote)
            except EngineFailed:
                known.has_failed = True
                raise
            known.writings += 1
            writing = _NixlWriting(self, peer, handle)
            if state != nixl.NIXL_IN_PROG:
                writing.end(arrived=True)
            return writing

    def _begin_to_write(self, peer: str, local: Descriptors, remote: Descriptors) -> tuple[int, Any]:
        """NIXL's handle of a transfer, and what has become of it already."""
        nixl, agent = self._nixl, self._agent
        handle: int = self._ask(
            f"write to {peer!r}",
            agent.createXferReq,
            nixl.NIXL_WRITE,
            nixl.nixlXferDList(nixl.DRAM_SEG, local),
            nixl.nixlXferDList(nixl.DRAM_SEG, remote),
            peer,
            "",
            _NOTHING,
        )
        try:
            return handle, self._ask(f"write to {peer!r}", agent.postXferReq, handle)
        except EngineFailed:
            agent.releaseXferReq(handle)
            raise

    def progress(self) -> None:
        with self._lock:
            # Nobody sends notifications; to ask for them is what lets an agent proceed.
            self._ask("proceed", self._opened().getNotifs, {}, _NOTHING)

    def close(self) -> None:
        with self._lock:
            agent, self._agent = self._agent, None
            self._peers.clear()
            self._registered.clear()
            self._writable.clear()
            if agent is not None:
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(agent))

    def state_of(self, handle: int, peer: str) -> bool:
        """Whether a transfer is done; the lock is held."""
        state = self._ask(f"write to {peer!r}", self._opened().getXferStatus, handle)
        return bool(state == self._nixl.NIXL_SUCCESS)

    def ended(self, handle: int, peer: str, arrived: bool) -> None:
        """Give back the handle of a transfer that has ended; the lock is held."""
        self._agent.releaseXferReq(handle)
        known = self._peers[peer]
        known.writings -= 1
        known.has_failed = known.has_failed or not arrived
        if known.leaving and not known.writings:
            self._forget(peer)

    @property
    def lock(self) -> threading.RLock:
        """Held around every use of the agent."""
        return self._lock

    @property
    def is_open(self) -> bool:
        """Whether the agent is there."""
        return self._agent is not None

    def disown(self) -> None:
        """In a forked child: the agent is the parent's, and nothing here touches it any more."""
        self._lock = threading.RLock()
        self._agent = None
        self._why_closed = "it belongs to the process that this one was forked from"

    def _opened(self) -> Any:
        if self._agent is None:
            raise EngineFailed(f"the engine cannot be used: {self._why_closed}")
        return self._agent

    def _known(self, peer: str) -> _Peer:
        self._opened()
        known = self._peers.get(peer)
        if known is None or known.leaving:
            raise EngineFailed(f"the engine is not connected to {peer!r}")
        return known

    def _load(self, peer: str, blob: bytes) -> None:
        name = self._ask(f"take the metadata of {peer!r}", self._agent.loadRemoteMD, blob)
        if name != peer.encode():
            self._agent.invalidateRemoteMD(name.decode())
            raise EngineFailed(f"the metadata names {name!r}, and is said to be of {peer!r}")

    def _learn(self, peer: str, known: _Peer, blob: bytes) -> None:
        """Take newer metadata, or put it off until the peer is reached again; the lock is held.

        Of a peer whose connection has failed NIXL takes none, and having been asked to it never takes any more.
        """
        known.has_failed = known.has_failed or not self._is_connected(peer)
        if not known.has_failed:
            self._load(peer, blob)
        known.metadata = blob
        self._reach(peer, known)

    def _is_connected(self, peer: str) -> bool:
        """Whether the connection has not failed, as far as is known. A notification tells, and nobody reads those."""
        try:
            self._agent.genNotif(peer, "", _NOTHING)
        except Exception as error:
            _logger.debug("the connection to %r has failed: %s", peer, _said(error))
            return False
        return True

    def _reach(self, peer: str, known: _Peer) -> bool:
        """Reach a peer anew if its connection has failed and nothing is under way on it; whether it is reached."""
        if not known.has_failed:
            return True
        if known.writings:
            return False
        self._ask(f"leave {peer!r}", self._agent.invalidateRemoteMD, peer)
        self._load(peer, known.metadata)
        self._ask(f"reach {peer!r}", self._agent.makeConnection, peer, _NOTHING)
        known.has_failed = False
        return True

    def _forget(self, peer: str) -> None:
        del self._peers[peer]
        self._ask(f"leave {peer!r}", self._agent.invalidateRemoteMD, peer)

    def _regions(self, regions: list[_Region]) -> Any:
        return self._nixl.nixlRegDList(self._nixl.DRAM_SEG, [(address, size, 0, "") for address, size in regions])

    def _ask(self, what: str, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise EngineFailed(f"NIXL could not {what}: {_said(error)}") from error


class _NixlWriting(Writing):
    """One WRITE of NIXL, by its handle."""

    def __init__(self, engine: NixlEngine, peer: str, handle: int) -> None:
        self._engine = engine
        self._peer = peer
        self._handle = handle
        self._arrived = False
        self._failure: str | None = None

    def poll(self) -> bool:
        if self._arrived:
            return True
        with self._engine.lock:
            if self._failure is None and not self._arrived:
                try:
                    if self._engine.state_of(self._handle, self._peer):
                        self.end(arrived=True)
                except EngineFailed as failure:
                    # Not the exception: it has the frames of whoever is told, with all that these hold.
                    self._failure = str(failure)
                    self.end(arrived=False)
            if self._failure is not None:
                raise EngineFailed(self._failure)
            return self._arrived

    def end(self, arrived: bool) -> None:
        """Note how it ended; the lock is held."""
        self._arrived = arrived
        if self._engine.is_open:
            self._engine.ended(self._handle, self._peer, arrived)

    def release(self) -> None:
        if not self._arrived and self._failure is None:
            raise RuntimeError("the writing is under way: poll it until it has ended")


# NIXL's compiled part may be loaded once, and the environment is everybody's.
_starting = threading.Lock()

_open_engines: weakref.WeakSet[NixlEngine] = weakref.WeakSet()


def _disown_all() -> None:
    for engine in _open_engines:
        engine.disown()


os.register_at_fork(after_in_child=_disown_all)


def _bindings() -> ModuleType:
    """NIXL's compiled part, of the first package that is installed."""
    for package in PACKAGES:
        name = f"{package}._bindings"
        if name in sys.modules:
            return sys.modules[name]
        found = importlib.util.find_spec(package)
        if found is None or found.submodule_search_locations is None:
            continue
        specification = importlib.machinery.PathFinder.find_spec(name, found.submodule_search_locations)
        if specification is None or specification.loader is None:
            continue
        try:
            module = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(module)
        except ImportError as error:
            raise EngineUnavailable(
                f"NIXL is installed ({package}) but cannot be loaded: {error}; try: {HOW_TO_INSTALL}"
            ) from error
        sys.modules[name] = module
        return module
    raise EngineUnavailable(f"NIXL is not installed: {HOW_TO_INSTALL}")


@contextmanager
def _settings(peer_timeout_ms: int) -> Iterator[None]:
    """What UCX and NIXL read from the environment when they start, and children of this process need not inherit."""
    wanted = UCX_SETTINGS | _noticing_within(peer_timeout_ms) | ({} if _has_efa() else WITHOUT_EFA)
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _noticing_within(peer_timeout_ms: int) -> dict[str, str]:
    """What lets UCX notice over TCP that a host is gone."""
    wanted = probing(peer_timeout_ms)
    return {
        "UCX_TCP_KEEPIDLE": f"{wanted.idle_s}s",
        "UCX_TCP_KEEPINTVL": f"{wanted.interval_s}s",
        "UCX_TCP_KEEPCNT": str(wanted.probes),
        "UCX_TCP_USER_TIMEOUT": f"{wanted.total_s}s",  # without it a link that is cut in mid-transfer is not noticed
    }


def _has_efa() -> bool:
    drivers = RDMA_DEVICES.glob("*/device/driver")
    return any(driver.resolve().name == EFA_DRIVER for driver in drivers)


def _digest(blob: bytes) -> bytes:
    return blake2b(blob, digest_size=16).digest()


def _decoded(metadata: bytes) -> _Introduction:
    if len(metadata) > MAX_METADATA:
        raise EngineFailed(f"the peer's metadata has {len(metadata)} bytes, more than {MAX_METADATA}")
    try:
        introduction = _introductions.decode(metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFailed(f"the peer's metadata is damaged: {error}") from error
    if (introduction.engine, introduction.version) != (NixlEngine.name, _VERSION):
        raise EngineFailed(
            f"the peer's metadata is of {introduction.engine!r}, version {introduction.version}; "
            f"this is {NixlEngine.name!r}, version {_VERSION}"
        )
    if introduction.digest != _digest(introduction.blob):
        raise EngineFailed("the peer's metadata is damaged: its digest is another")
    return introduction


def _require_pairs(local: Descriptors, remote: Descriptors) -> None:
    if local.ndim != 2 or local.shape[1] != 3 or local.shape != remote.shape or not len(local):
        raise ValueError(f"descriptors must be equal numbers of rows of 3, not {local.shape} and {remote.shape}")
    if not np.array_equal(local[:, 1], remote[:, 1]):
        raise ValueError("the pieces here and at the peer must have equal numbers of bytes, row by row")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
