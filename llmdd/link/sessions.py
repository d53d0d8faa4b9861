"""Every session of a node, from its start until nothing is left of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable
from typing import Any

from .session import Session, SessionOwner

_logger = logging.getLogger("llmdd.link")

# How long a transfer that was broken off may take to notice.
_LEAVING_TIME_S = 1.0


class Sessions:
    """The sessions that run, whoever they belong to. Lives on the event loop."""

    def __init__(self) -> None:
        self._running: set[Session] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, session: Session, owner: SessionOwner, *, initiator: bool) -> None:
        """Let a committed session run; ``owner`` is told what happens to it."""
        self._running.add(session)
        session.start(owner, initiator=initiator).add_done_callback(lambda task: self._ended(session, task))

    def _ended(self, session: Session, task: asyncio.Task[None]) -> None:
        self._running.discard(session)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("session with cluster %d failed", session.peer.cluster_id, exc_info=error)

    def evict(self, cluster_id: int) -> None:
        """Wait no longer for what a cluster reads here over links that are being dropped."""
        for session in self._running:
            if session.peer.cluster_id == cluster_id and session.is_parting:
                session.evict()

    async def close(self, timeout_s: float) -> None:
        """Part from every peer, in good order within ``timeout_s``, then without any."""
        await until(map(_part, self._running), timeout_s)
        late = list(self._running)
        await cancel([session.ended for session in late if session.ended is not None])
        await until((session.left() for session in late), _LEAVING_TIME_S)

    def abandon(self) -> None:
        """Close the sockets in a forked child, and leave the links to the parent."""
        for session in self._running:
            session.abandon()


async def part(sessions: Collection[Session], timeout_s: float) -> None:
    """Until the transfers here have ended; those of the other ends get ``timeout_s`` besides."""
    await asyncio.gather(*(asyncio.shield(session.let_go()) for session in sessions))
    await until((session.parted.wait() for session in sessions), timeout_s)


async def _part(session: Session) -> None:
    """Until both ends have let go of each other."""
    await asyncio.shield(session.let_go())
    await session.parted.wait()


async def until(events: Iterable[Coroutine[Any, Any, object]], timeout_s: float) -> None:
    """Until all that is waited for has come about, or ``timeout_s`` has passed."""
    tasks = [asyncio.create_task(event) for event in events]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        await cancel(late)


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; how they end is told where they were made."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
