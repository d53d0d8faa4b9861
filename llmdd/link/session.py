"""One end of a link that was made, from the commit until nothing of it is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from llmdd._core.peer import Peer

from .channel import Channel, ConnectionEnded
from .complaints import Complaints
from .link_counts import LinkCounts
from .messages import Crossed, Detached, Farewell, Identity, Linked, Message, ProtocolError, Refusal

_logger = logging.getLogger("llmdd.link")
_complaints = Complaints(_logger)

# How soon to look whether a transfer in progress has ended. Transfers take turns without the event loop's knowledge.
_LOOK_AGAIN_S = 0.002

# A process that dies closes its connections first. If the kernel has not told of its end for so long, it lives.
_DYING_TIME_S = 1.0


class SessionOwner(Protocol):
    """Who is told what happens to a session. Called on the event loop."""

    def peer_unlinked(self, session: Session) -> None:
        """The other end drops its end in good order."""

    def peer_gone(self, session: Session) -> None:
        """The other end has said its last word: it died, dropped its end by force, or has let go after all."""


class Grant(Protocol):
    """What a peer was granted here: a pin bit that it sets itself, or a place at our attendance.

    Attributes
    ----------
    counts
        What the links of this node have gone through.
    settled, returned
        Set when the pins that could be dropped have been; when nothing that the peer has asked for, or takes, holds
        memory any more.
    pins_lost
        How many pins hold nothing any more because the peer is gone, or heard no more, and not because it was evicted.
    """

    counts: LinkCounts
    settled: asyncio.Event
    returned: asyncio.Event
    pins_lost: int

    def watch(self, on_death: Callable[[], None], /) -> None:
        """The link is committed; ``on_death`` is to be called when the peer has died, or left without a word."""

    def give_back(self) -> None:
        """The peer transfers no more. Again is nothing."""

    def evict(self) -> None:
        """The link is down: what the peer reads is not held for it any more. Again is nothing."""

    def lose(self) -> None:
        """The peer is heard no more: what it has pinned is not held for it, as far as it touches nothing itself."""

    def withdraw(self) -> None:
        """End a grant that was never used."""

    def close(self) -> None:
        """The session has ended, in whatever way."""


class Session:
    """The connection to a peer, its memory (as transfers reach it from here) and what it was granted in ours.

    Three things come about, each in its own time: the peer is *gone*, having said its last word or not; our end has
    *let go* of the peer's memory and said so; the *grant* came back. :attr:`ended` is done when all three have.

    What depends on how the bytes travel is in :class:`~llmdd.link.local_session.LocalSession` and
    :class:`~llmdd.link.distant_session.DistantSession`.

    Attributes
    ----------
    farewell, promised, gone
        Whether the peer has dropped its end in good order; has promised to transfer no more; is heard no more.
    was_accepted
        Whether it was the peer that asked for the link.
    parted
        Set when the peer is gone and, if it has promised, its pins are dropped.
    """

    def __init__(self, channel: Channel, peer: Identity, memory: Peer, grant: Grant) -> None:
        self.channel = channel
        self.peer = peer
        self.memory = memory
        self.grant = grant
        self.farewell = self.promised = self.gone = False
        self.was_accepted = False
        self.parted = asyncio.Event()
        self.verdict: asyncio.Future[Linked | Crossed | Refusal] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None
        self._why_gone = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the session is left."""
        return self.ended is not None and self.ended.done()

    def discard(self) -> None:
        """Undo the preparation of a session that was not committed: neither end has transferred anything."""
        self.memory.detach(0)
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
        """Listen to the peer, and watch for its death, from now on. Only the initiator hears a :attr:`verdict`."""
        self.was_accepted = not initiator
        if not initiator:
            self.verdict.cancel()
        self.channel.owned = True
        self.grant.watch(self._peer_died)
        self.ended = asyncio.create_task(self._run(owner), name=f"session with cluster {self.peer.cluster_id}")
        # Here, and not in the task, because a task cancelled before its first step never runs.
        self.ended.add_done_callback(lambda _: self._close())
        return self.ended

    def note_peer(self) -> None:
        """Log whom the link has come to stand with."""
        if self.channel.peer_fingerprint:
            _logger.info("cluster %d has the key %s", self.peer.cluster_id, self.channel.peer_fingerprint)

    def let_go(self) -> asyncio.Task[None]:
        """Refuse further transfers; when the one in progress has ended, let go of the peer's memory and say so.

        The task returned is done then. Asked again, it is the same one.
        """
        if self._letting_go is None:
            self._letting_go = asyncio.create_task(self._detach())
        return self._letting_go

    def evict(self) -> None:
        """The link is down: the peer's reads hold our memory no longer, whether it has noticed or stands still.

        Its own writes do, until it has promised to transfer no more, or died; then its reads hold nothing anyway.
        """
        if not self.promised:
            self.grant.evict()

    @property
    def is_parting(self) -> bool:
        """Whether our end is letting go, or has let go, of the peer's memory."""
        return self._letting_go is not None

    def break_off(self) -> None:
        """Let go of a peer that is gone: the transfer in progress ends too, unfinished."""
        self.memory.break_off()
        self.let_go()

    def abandon(self) -> None:
        """In a forked child: close the sockets, and leave the link to the parent."""
        self.channel.abandon()

    async def left(self) -> None:
        """Until nothing of the session is left in other threads, after its end."""

    async def _detach(self) -> None:
        while not self.memory.detach(0):
            await asyncio.sleep(_LOOK_AGAIN_S)
        self.say(Detached())

    def _peer_died(self) -> None:
        self._why_gone = self._why_gone or self._sign_of_death()
        self._give_back()
        self.channel.hang_up()

    def _sign_of_death(self) -> str:
        """How the death of the peer shows, beside the end of the connection."""
        return "its process has ended"

    def _give_back(self) -> None:
        """The peer transfers no more."""
        self.grant.give_back()

    def _peer_is_out_of_reach(self) -> None:
        """The peer answers nothing any more that we may ask."""

    async def _run(self, owner: SessionOwner) -> None:
        await self._hear(owner)
        self.gone = True
        if not self.promised:
            self.grant.lose()  # before its link is taken down, which would evict it as a peer that lives
        owner.peer_gone(self)
        letting_go = self.let_go()
        if self.promised:
            answers = asyncio.create_task(self._hear_answers(letting_go))
            self._give_back()
            await self.grant.returned.wait()
            self.parted.set()
            await answers
        self.parted.set()
        await asyncio.shield(letting_go)
        await self.channel.flush()
        self.channel.close()
        if not self.promised:
            await self._tell_what_is_lost()
        await self.grant.returned.wait()

    async def _tell_what_is_lost(self) -> None:
        """Once what the peer has pinned is held no longer, as far as that can be."""
        grant, peer = self.grant, self.peer
        told = "cluster %d (incarnation %016x) is gone: %s; "
        try:
            await asyncio.wait_for(grant.returned.wait(), _DYING_TIME_S)
        except asyncio.TimeoutError:
            await grant.settled.wait()
            evicted = grant.pins_lost
            grant.counts.reads_evicted += evicted
            told += "%d reads were evicted, and what it writes to is held, because its process lives"
            _complaints.warn(told, peer.cluster_id, peer.incarnation, self._why_gone, evicted)
            await grant.returned.wait()
            grant.counts.pins_dropped += grant.pins_lost - evicted
        else:
            grant.counts.pins_dropped += grant.pins_lost
            told += "%d pins were dropped"
            _complaints.warn(told, peer.cluster_id, peer.incarnation, self._why_gone, grant.pins_lost)

    def _close(self) -> None:
        self.channel.close()
        self.grant.close()

    async def _hear(self, owner: SessionOwner) -> None:
        """Listen until the peer has said its last word, or is not there to say one."""
        try:
            while not self.promised:
                # What carries memory comes when the link stands, and not before.
                self._take(await self.channel.receive(bulk=self.verdict.done()), owner)
                await asyncio.sleep(0)  # a peer that always has more to say has its turn, as all have
        except ConnectionEnded as error:
            self._why_gone = self._why_gone or str(error)
        except ProtocolError as error:
            self._why_gone = self._why_gone or f"it has broken the rules: {error}"
        if not self.promised:
            self._peer_is_out_of_reach()
        if not self.verdict.done():
            self.verdict.set_exception(ConnectionEnded("the other end left before the link stood"))
            self.verdict.exception()  # so that nobody need ask: a call whose time was up does not

    async def _hear_answers(self, letting_go: asyncio.Task[None]) -> None:
        """A peer that will ask for nothing more still answers what the transfer in progress here asks for."""
        while not letting_go.done():
            answer = asyncio.create_task(self.channel.receive(bulk=True))
            await asyncio.wait((answer, letting_go), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                return
            try:
                self._take_answer(answer.result())
            except ProtocolError as error:
                tell = _logger.debug if isinstance(error, ConnectionEnded) else _complaints.warn
                tell("session with cluster %d ends: %s", self.peer.cluster_id, error)
                self._peer_is_out_of_reach()
                return

    def _take(self, message: Message, owner: SessionOwner) -> None:
        if isinstance(message, Detached):
            self.promised = True
        elif isinstance(message, Farewell) and not self.farewell:
            self.farewell = True
            owner.peer_unlinked(self)
        elif isinstance(message, (Linked, Crossed, Refusal)) and not self.verdict.done():
            self.verdict.set_result(message)
        else:
            self._take_request(message)

    def _take_request(self, message: Message) -> None:
        """What may be said only where it depends on how the bytes travel, before the promise."""
        self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        """Likewise, and also after the promise."""
        raise ProtocolError(f"unexpected message {type(message).__name__}")
