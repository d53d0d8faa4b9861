"""A cluster's part in its links: making, serving and dropping them. Lives on the event loop.

Two clusters may link to each other at once, each as the initiator of its own handshake. Both handshakes run, and the
commit decides. An acceptor lets a link stand only if it still has the link, or the lack of one, that it had when the
handshake began. Of two commits that cross on the way, the one of the cluster with the smaller id counts: that cluster
refuses the other's. Whoever is told that a handshake was :class:`~llmdd.link.messages.Crossed` looks again, and finds
the link made. Nobody waits for anybody while holding something that the other waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from llmdd._core.peer import Peer
from llmdd._core.status import LLMException, LLMStatusCode

from .channel import Channel, connect
from .handshake import answer, initiate
from .keys import Credentials
from .link_table import LinkTable
from .local_end import LocalEnd
from .messages import (
    Commit,
    Crossed,
    Detached,
    Farewell,
    Linked,
    LinkRequest,
    ProtocolError,
    Refusal,
    Unlinked,
    UnlinkRequest,
)
from .refused import Refused
from .session import Session

_logger = logging.getLogger("llmdd.link")

#: How many links one cluster holds in two-sided mode (api §6).
MAX_LINKS = 512


@dataclass(frozen=True)
class LinkTarget:
    """A cluster and the numeric address where it listens, which is not needed to unlink by force."""

    cluster_id: int
    host: str | None
    port: int | None


class Endpoint:
    """One cluster's links.

    Parameters
    ----------
    end
        What this cluster brings to its links.
    publish
        As of :class:`~llmdd.link.link_table.LinkTable`.
    """

    def __init__(self, end: LocalEnd, publish: Callable[[dict[int, Peer]], None]) -> None:
        self._end = end
        self._identity = end.identity
        self._sessions = end.sessions
        self.links = LinkTable(publish, end.counts)
        self._committing: set[int] = set()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    # -- what this end wants --------------------------------------------------------------------------------------

    async def link(self, target: LinkTarget, timeout_s: float) -> LLMStatusCode:
        """Make a link; the codes of api §4.1."""
        return await self._in_turn(target, timeout_s, "link", self._link)

    async def unlink(self, target: LinkTarget, timeout_s: float, force: bool) -> LLMStatusCode:
        """Drop a link; the codes of api §4.1. It waits for a transfer in progress."""
        return await self._in_turn(target, timeout_s, "unlink", self._drop if force else self._unlink)

    async def _in_turn(
        self, target: LinkTarget, timeout_s: float, verb: str, work: Callable[[LinkTarget], Awaitable[None]]
    ) -> LLMStatusCode:
        """Calls that concern one cluster wait for each other; each is bounded from its start to its end (D57, D60)."""
        turn = self._turns.setdefault(target.cluster_id, asyncio.Lock())
        begun = False

        async def work_in_turn() -> None:
            nonlocal begun
            async with turn:
                begun = True
                await work(target)

        try:
            await asyncio.wait_for(work_in_turn(), timeout_s)
        except asyncio.TimeoutError:
            code = LLMStatusCode.LLM_TIMEOUT if begun else LLMStatusCode.LLM_LINK_BUSY
            reason: object = f"{timeout_s} s have passed"
        except (LLMException, Refused) as error:
            code, reason = error.status_code, error
        except (ProtocolError, OSError, ValueError) as error:
            code, reason = LLMStatusCode.LLM_FAILED, error
        else:
            return LLMStatusCode.LLM_SUCCESS
        _logger.warning("cannot %s cluster %d: %s: %s", verb, target.cluster_id, code.name, reason)
        return code

    async def _link(self, target: LinkTarget) -> None:
        while not await self._try_to_link(target):
            _logger.debug("link to cluster %d: crossed with one from there", target.cluster_id)

    async def _try_to_link(self, target: LinkTarget) -> bool:
        """False if the attempt crossed with one from the other end."""
        self.links.require(target.cluster_id, "link")
        channel = await self._reach(target)
        if channel is None:
            self.links.require(target.cluster_id, "link", peer_reachable=False)
            return False
        try:
            self._require_room(target.cluster_id)
            session = await initiate(channel, self._end, target.cluster_id)
        except BaseException:
            channel.close()
            raise
        return await self._commit(session)

    async def _commit(self, session: Session) -> bool:
        cluster_id = session.peer.cluster_id
        try:
            self.links.require(cluster_id, "link")  # it may have linked to us meanwhile
            session.channel.send(Commit())
        except BaseException:
            session.discard()
            raise
        self._sessions.start(session, self, initiator=True)
        self._committing.add(cluster_id)
        try:
            verdict = await asyncio.shield(session.verdict)
            if isinstance(verdict, Refusal):
                raise Refused.by_peer(verdict)
            if isinstance(verdict, Linked):
                self.links.take(cluster_id, "link", session)
        finally:
            self._committing.discard(cluster_id)
            if self.links[cluster_id].session is not session:
                session.let_go()
        # What the peer said right behind its verdict was heard before the link stood.
        if session.farewell:
            self.peer_unlinked(session)
        if session.gone:
            self.peer_gone(session)
        return isinstance(verdict, Linked)

    async def _unlink(self, target: LinkTarget) -> None:
        session = self.links[target.cluster_id].session
        told = await self._tell_to_unlink(target)
        self.links.require(target.cluster_id, "unlink", peer_reachable=told)
        if self.links[target.cluster_id].session is session:
            self.links.take(target.cluster_id, "unlink")
        # Otherwise the other end's farewell was quicker than its answer, or it has linked to us anew.
        if session is not None:
            await asyncio.shield(session.let_go())
            await session.parted.wait()

    async def _drop(self, target: LinkTarget) -> None:
        session = self.links.take(target.cluster_id, "force_unlink")
        # Also of links that were dropped in good order, and whose other end has not finished since.
        self._sessions.evict(target.cluster_id)
        if session is not None:
            await asyncio.shield(session.let_go())

    async def _reach(self, target: LinkTarget, like: Credentials | None = None) -> Channel | None:
        """A channel to the target, or None when it does not answer at its address. ``like``: as of ``connect``."""
        if target.host is None or target.port is None:
            _logger.warning("cluster %d: no address is given", target.cluster_id)
            return None
        try:
            return await connect(target.host, target.port, self._end.security.keys, like)
        except OSError as error:
            _logger.warning(
                "cluster %d does not answer at %s port %d: %s", target.cluster_id, target.host, target.port, error
            )
            return None

    async def _tell_to_unlink(self, target: LinkTarget) -> bool:
        """Whether the cluster was reached, and has dropped its end. The link here stays as it is."""
        session = self.links[target.cluster_id].session
        channel = await self._reach(target, None if session is None else session.channel.credentials)
        if channel is None:
            return False
        try:
            channel.send(UnlinkRequest(self._identity, target.cluster_id))
            reply = await channel.receive(Unlinked, Refusal)
        except (ProtocolError, OSError) as error:
            _logger.warning("unlinking from cluster %d: %s", target.cluster_id, error)
            return False
        finally:
            channel.close()
        if isinstance(reply, Refusal):
            _logger.warning("unlinking from cluster %d: %s", target.cluster_id, Refused.by_peer(reply))
        return isinstance(reply, Unlinked)

    # -- what other ends want -------------------------------------------------------------------------------------

    async def serve_link(self, channel: Channel, request: LinkRequest) -> None:
        """Make the link that another cluster asks for; raises what it is refused with."""
        cluster_id = request.identity.cluster_id
        self._require_room(cluster_id)
        link = self.links[cluster_id]
        before = link.session
        if link.state == "LINKED" and not _has_same_key(before, channel):
            raise Refused(
                LLMStatusCode.LLM_LINK_FAILED, f"cluster {cluster_id} is linked here, and has another key", for_now=True
            )
        session = await answer(channel, self._end, request)
        try:
            if isinstance(await channel.receive(Commit, Detached), Detached):
                session.discard()  # it has been linked to us by another handshake meanwhile
                return
            if self._crossed(cluster_id, before):
                channel.send(Crossed())
                session.discard()
                return
            self.links.take(cluster_id, "accept", session)
        except BaseException:
            session.discard()
            raise
        self._sessions.start(session, self, initiator=False)
        session.say(Linked())

    def _require_room(self, cluster_id: int) -> None:
        """In two-sided mode the number of links is limited (D65)."""
        self._forget_broken_links()
        held = self.links.held()
        if not self._identity.remote_accessible and cluster_id not in held and len(held) >= MAX_LINKS:
            raise Refused(
                LLMStatusCode.LLM_FAILED,
                f"cluster {self._identity.cluster_id} has {MAX_LINKS} links, that is the limit",
            )

    def _forget_broken_links(self) -> None:
        """Make room where nobody here has asked for a link: peers that come and go must not keep others out."""
        held = self.links.held()
        broken = [cluster_id for cluster_id in held if self._is_left_over(cluster_id)]
        for cluster_id in broken[: max(0, len(held) + 1 - MAX_LINKS)]:
            self.links.take(cluster_id, "force_unlink")

    def _is_left_over(self, cluster_id: int) -> bool:
        link = self.links[cluster_id]
        return link.state == "BROKEN" and link.session is not None and link.session.was_accepted

    def _crossed(self, cluster_id: int, before: Session | None) -> bool:
        ours_counts = cluster_id in self._committing and self._identity.cluster_id < cluster_id
        return ours_counts or self.links[cluster_id].session is not before

    async def serve_unlink(self, channel: Channel, request: UnlinkRequest) -> None:
        """Drop the link that another cluster has dropped, and say so."""
        mine, theirs = self._identity.cluster_id, request.identity
        if request.expected_cluster_id != mine:
            raise Refused(LLMStatusCode.LLM_PARAM_INVALID, f"this is cluster {mine}")
        link = self.links[theirs.cluster_id]
        if not _has_same_key(link.session, channel):
            raise Refused(
                LLMStatusCode.LLM_LINK_FAILED, f"the link to cluster {theirs.cluster_id} was made with another key"
            )
        # A namesake of the cluster that holds a sound link does not speak for it.
        speaks_for_it = link.session is None or link.session.peer.incarnation == theirs.incarnation
        if speaks_for_it or link.state == "BROKEN":
            session = self.links.take(theirs.cluster_id, "peer_unlinked")
            if session is not None:
                session.say(Farewell())
                await asyncio.shield(session.let_go())
        channel.send(Unlinked())

    def peer_unlinked(self, session: Session) -> None:
        if self.links[session.peer.cluster_id].session is session:
            self.links.take(session.peer.cluster_id, "peer_unlinked")

    def peer_gone(self, session: Session) -> None:
        if self.links[session.peer.cluster_id].session is session:
            self.links.take(session.peer.cluster_id, "peer_gone")

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Drop every link, in good order where it stands; the sessions are for the caller to close."""
        for cluster_id in self.links.held():
            link = self.links[cluster_id]
            if link.state == "LINKED" and link.session is not None:
                link.session.say(Farewell())
                self.links.take(cluster_id, "unlink")
            else:
                self.links.take(cluster_id, "force_unlink")


def _has_same_key(session: Session | None, channel: Channel) -> bool:
    """Whether it is the peer of a session, if there is one, that speaks on another connection."""
    return session is None or session.channel.peer_fingerprint == channel.peer_fingerprint
