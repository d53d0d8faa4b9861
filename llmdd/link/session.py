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

# How soon to look whether a transfer in progress has ended. Transfers take turns without the event loop's knowledge.
_LOOK_AGAIN_S = 0.002


class SessionOwner(Protocol):
    """Who is told what happens to a session. Called on the event loop."""

    def peer_unlinked(self, session: Session) -> None:
        """The other end drops its end in good order."""

    def peer_gone(self, session: Session) -> None:
        """The other end has said its last word: it died, dropped its end by force, or has let go after all."""


class Session:
    """The connection to a peer, its memory (attached here) and the pin bit that it was granted (in our store).

    Three things come about, each in its own time: the peer is *gone*, having said its last word or not; our end has
    *let go* of the peer's memory and said so; the *grant* came back. :attr:`ended` is done when all three have.

    Attributes
    ----------
    farewell, promised, gone
        Whether the peer has dropped its end in good order; has promised to transfer no more; is heard no more.
    parted
        Set when the peer is gone and, if it has promised, its pins are dropped.
    """

    def __init__(self, channel: Channel, peer: Identity, arena: PeerArena, grant: PinGrant) -> None:
        self.channel = channel
        self.peer = peer
        self.arena = arena
        self.grant = grant
        self.farewell = self.promised = self.gone = False
        self.parted = asyncio.Event()
        self.verdict: asyncio.Future[Linked | Crossed | Refusal] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the session is left."""
        return self.ended is not None and self.ended.done()

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

    def start(self, owner: SessionOwner, *, initiator: bool) -> asyncio.Task[None]:
        """Listen to the peer, and watch its process, from now on. Only the initiator hears a :attr:`verdict`."""
        if not initiator:
            self.verdict.cancel()
        self.channel.owned = True
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
        while not self.arena.detach(0):
            await asyncio.sleep(_LOOK_AGAIN_S)
        self.say(Detached())
        self.channel.finish()

    async def _run(self, owner: SessionOwner) -> None:
        try:
            await self._hear(owner)
            self.gone = True
            owner.peer_gone(self)
            letting_go = self.let_go()
            if self.promised:
                self.grant.give_back()
                await self.grant.returned.wait()
            self.parted.set()
            await asyncio.shield(letting_go)
            self.channel.close()
            await self.grant.returned.wait()
        finally:
            self.channel.close()
            self.grant.close()

    async def _hear(self, owner: SessionOwner) -> None:
        """Listen until the peer has said its last word, or is not there to say one."""
        try:
            while not self.promised:
                self._take(await self.channel.receive(), owner)
        except ConnectionEnded as error:
            _logger.debug("session with cluster %d: %s", self.peer.cluster_id, error)
        except ProtocolError as error:
            _logger.warning("session with cluster %d dropped: %s", self.peer.cluster_id, error)
        if not self.verdict.done():
            self.verdict.set_exception(ConnectionEnded("the other end left before the link stood"))
            self.verdict.exception()  # so that nobody need ask: a call whose time was up does not

    def _take(self, message: Message, owner: SessionOwner) -> None:
        if isinstance(message, Detached):
            self.promised = True
        elif isinstance(message, Farewell) and not self.farewell:
            self.farewell = True
            owner.peer_unlinked(self)
        elif isinstance(message, (Linked, Crossed, Refusal)) and not self.verdict.done():
            self.verdict.set_result(message)
        else:
            raise ProtocolError(f"unexpected message {type(message).__name__}")
