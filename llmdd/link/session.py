"""One end of a link that was made, from the commit until nothing of it is left."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from llmdd._core.peer import PeerArena

from .channel import Channel, ConnectionEnded
from .grant import PinGrant
from .messages import Crossed, Detached, Farewell, Identity, Linked, Message, ProtocolError, Refusal

_logger = logging.getLogger("llmdd.link")

# A wait in a thread cannot be cancelled, so it is made of slices, between which it can.
_DETACH_SLICE_MS = 100


class SessionOwner(Protocol):
    """Who is told what happens to a session. Called on the event loop."""

    def peer_unlinked(self, session: Session) -> None:
        """The other end drops its end in good order."""

    def peer_gone(self, session: Session) -> None:
        """The other end has said its last word: it died, dropped its end by force, or has let go after all."""


class Session:
    """The connection to a peer, its memory (attached here) and the pin bit that it was granted (in our store).

    Three things end, each in its own time: the peer's last word is *heard*; our end has *let go* of the peer's memory
    and said so; the *grant* came back. :attr:`ended` is done when all three have.
    """

    def __init__(self, channel: Channel, peer: Identity, arena: PeerArena, grant: PinGrant) -> None:
        self.channel = channel
        self.peer = peer
        self.arena = arena
        self.grant = grant
        self.farewell = False
        self.heard = asyncio.Event()
        self.verdict: asyncio.Future[Linked | Crossed | Refusal] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None

    def discard(self) -> None:
        """Undo the preparation of a session that was not committed: neither end has transferred anything."""
        self.arena.detach(0)
        self.grant.withdraw()
        self.say(Detached())
        self.channel.close()

    def say(self, message: Message) -> None:
        """Tell the peer, if it is still there."""
        try:
            self.channel.send(message)
        except OSError as error:
            _logger.debug("cluster %d does not hear us any more: %s", self.peer.cluster_id, error)

    def start(self, owner: SessionOwner) -> asyncio.Task[None]:
        """Listen to the peer, and watch its process, from now on."""
        self.grant.watch(self.channel.hang_up)
        self.ended = asyncio.create_task(self._run(owner), name=f"session with cluster {self.peer.cluster_id}")
        return self.ended

    def let_go(self) -> asyncio.Task[None]:
        """Refuse further transfers; when the one in progress has ended, unmap the peer's memory and say so.

        The task returned is done then. Asked again, it is the same one.
        """
        if self._letting_go is None:
            self._letting_go = asyncio.create_task(self._detach())
        return self._letting_go

    def break_off(self) -> None:
        """Let go of a peer that is gone: the transfer in progress ends too, unfinished."""
        self.arena.break_off()
        self.let_go()

    async def _detach(self) -> None:
        while not await asyncio.to_thread(self.arena.detach, _DETACH_SLICE_MS):
            _logger.debug("waiting for a transfer with cluster %d to end", self.peer.cluster_id)
        self.say(Detached())
        self.channel.finish()

    async def _run(self, owner: SessionOwner) -> None:
        try:
            await self._hear(owner)
        except ConnectionEnded as error:
            _logger.debug("session with cluster %d: %s", self.peer.cluster_id, error)
        except ProtocolError as error:
            _logger.warning("session with cluster %d dropped: %s", self.peer.cluster_id, error)
        try:
            self.heard.set()
            if not self.verdict.done():
                self.verdict.set_exception(ConnectionEnded("the other end left before the link stood"))
                self.verdict.exception()  # nobody waits for it at the acceptor
            owner.peer_gone(self)
            await asyncio.shield(self.let_go())
            self.channel.close()
            await self.grant.returned.wait()
        finally:
            self.channel.close()
            self.grant.close()

    async def _hear(self, owner: SessionOwner) -> None:
        """Listen until the peer has said its last word."""
        while True:
            message = await self.channel.receive(Linked, Crossed, Refusal, Farewell, Detached)
            if isinstance(message, Detached):
                await asyncio.shield(self.grant.give_back())
                return
            if isinstance(message, Farewell):
                if self.farewell:
                    raise ProtocolError("a second farewell")
                self.farewell = True
                owner.peer_unlinked(self)
            elif self.verdict.done():
                raise ProtocolError(f"unexpected message {type(message).__name__}")
            else:
                self.verdict.set_result(message)
