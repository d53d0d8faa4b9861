"""The transfer engine of a node: opened when a link first needs it, and shared by all links."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from llmdd._core.store import CacheStore
from llmdd.transport.engine import EngineFailed, TransferEngine
from llmdd.transport.engines import ENGINES
from llmdd.transport.peer_timeout import DEFAULT_PEER_TIMEOUT_MS

from .attendance import Attendance
from .messages import Identity

#: Peers that the engine knows though no link to them stands. Beyond that it forgets them.
MAX_IDLE = 256

_of_a_parent: list[NodeEngines] = []


@dataclass
class _Acquaintance:
    """A peer that the engine knows, how many sessions and handshakes need it to, and whether it was ever linked."""

    engine_peer: str
    needed: int
    was_linked: bool = False


class RunningEngine:
    """An open engine, with the node's pools registered, the peers that it knows, and what is served to them.

    Any method may be called from any thread. To make one, and to acquaint it with a peer, may take its time.

    Raises
    ------
    EngineUnavailable
        If the engine cannot be had on this machine.
    EngineFailed
        If it cannot be opened, or cannot have the pools.
    """

    def __init__(self, kind: str, name: str, store: CacheStore, peer_timeout_ms: int = DEFAULT_PEER_TIMEOUT_MS) -> None:
        self.engine: TransferEngine = ENGINES[kind](name, peer_timeout_ms)
        self._acquaintances: dict[tuple[int, int], _Acquaintance] = {}
        self._changing = threading.Lock()
        self._closed = False
        try:
            for address, size in store.pool_regions():
                self.engine.register(address, size, writable=False)
            self.attendance = Attendance(store, self.engine)
        except BaseException:
            self.engine.close()
            raise

    def acquaint(self, theirs: Identity, metadata: bytes) -> str:
        """Make a peer known to the engine and say by which name; :meth:`forget` it as often.

        The engine goes on knowing one that was linked, until another incarnation of its cluster comes: an engine may
        need connections of its own each time that it is told of a peer, and give none back (NIXL does so).

        Raises
        ------
        EngineFailed
            If the metadata is of no use.
        """
        with self._changing:
            if self._closed:
                raise EngineFailed("the engine is closed")
            self._part_from_former(theirs)
            known = self._acquaintances.get(_incarnation(theirs))
            if known is None:
                known = _Acquaintance(self.engine.connect(metadata), 0)
                self._acquaintances[_incarnation(theirs)] = known
            else:
                self.engine.refresh(known.engine_peer, metadata)
            known.needed += 1
            return known.engine_peer

    def forget(self, theirs: Identity, linked: bool) -> None:
        """One session or handshake needs a peer no more; ``linked``: its link stood, and may come to stand again."""
        with self._changing:
            if self._closed:
                return
            known = self._acquaintances[_incarnation(theirs)]
            known.needed -= 1
            known.was_linked = known.was_linked or linked
            idle = [each for each, known in self._acquaintances.items() if known.needed == 0]
            for incarnation in idle:
                if not self._acquaintances[incarnation].was_linked or len(idle) > MAX_IDLE:
                    self._part_from(incarnation)

    def _part_from_former(self, theirs: Identity) -> None:
        """Have the engine forget what the cluster was before it was restarted, if nobody needs it any more."""
        former = [
            incarnation
            for incarnation, known in self._acquaintances.items()
            if incarnation[0] == theirs.cluster_id and incarnation != _incarnation(theirs) and known.needed == 0
        ]
        for incarnation in former:
            self._part_from(incarnation)

    def _part_from(self, incarnation: tuple[int, int]) -> None:
        self.engine.disconnect(self._acquaintances.pop(incarnation).engine_peer)

    def close(self) -> None:
        """Serve nobody any more, then end all that is under way."""
        with self._changing:
            self._closed = True
        self.attendance.close()
        self.engine.close()


class NodeEngines:
    """Opens a node's engine, once, when it is asked for. Lives on the event loop, beside which the engine is opened.

    Parameters
    ----------
    identity
        Whose engine it is: peers know it by a name that no other has.
    store
        The memory that peers may ask for.
    peer_timeout_ms
        How long a peer's host may answer nothing before what is written there has failed.
    """

    def __init__(self, identity: Identity, store: CacheStore, peer_timeout_ms: int) -> None:
        self._name = f"llmdd-{identity.cluster_id}-{identity.incarnation:016x}"
        self._store = store
        self._peer_timeout_ms = peer_timeout_ms
        self._opening: dict[str, asyncio.Future[RunningEngine]] = {}

    def prepare(self, kind: str) -> asyncio.Future[RunningEngine]:
        """Begin to open an engine, unless it is open; one that could not be opened is tried again."""
        opening = self._opening.get(kind)
        if opening is None or (opening.done() and opening.exception() is not None):
            loop = asyncio.get_running_loop()
            opening = loop.run_in_executor(None, RunningEngine, kind, self._name, self._store, self._peer_timeout_ms)
            opening.add_done_callback(_told_to_those_who_ask)
            self._opening[kind] = opening
        return opening

    async def open(self, kind: str) -> RunningEngine:
        """The engine, open. Raises as :class:`RunningEngine`."""
        return await asyncio.shield(self.prepare(kind))

    def abandon(self) -> None:
        """In a forked child: leave what is open to the parent, and never let the collector end it."""
        _of_a_parent.append(self)
        for opening in self._opening.values():
            if opening.done() and opening.exception() is None:
                opening.result().attendance.abandon()

    async def close(self) -> None:
        """Close what was opened; nobody asks for more."""
        for opening in self._opening.values():
            await asyncio.wait([opening])
            if opening.exception() is None:
                # Not by the executor: when the interpreter ends, and finalizes what lives, there is none any more.
                opening.result().close()


def _incarnation(identity: Identity) -> tuple[int, int]:
    return identity.cluster_id, identity.incarnation


def _told_to_those_who_ask(opening: asyncio.Future[RunningEngine]) -> None:
    """A failure that nobody has waited to hear of is no news of its own."""
    opening.exception()
