"""How two ends that an engine connects make their engines known to each other, in the course of a handshake.

The acceptor begins to open its engine before the initiator can know that one is needed, so that the two are opened at
the same time. An end that has none tells the other why, so that both refuse the link at once.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import ExitStack
from typing import Literal

from llmdd._core.distant_peer import DistantPeer
from llmdd._core.status import LLMStatusCode
from llmdd.transport.engine import EngineFailed, EngineUnavailable

from .channel import Channel, watch_for_a_dead_host
from .conversation import Conversation
from .distant_session import DistantSession
from .guest_grant import GuestGrant
from .local_end import LocalEnd
from .messages import Converse, EngineOffer, Identity, Refusal, Welcome
from .node_engines import RunningEngine
from .refused import Refused


async def initiate(channel: Channel, end: LocalEnd, welcome: Welcome, kind: str) -> DistantSession:
    """The initiator's part, with an engine of that kind; raises as :func:`llmdd.link.handshake.initiate` does."""
    theirs = welcome.identity
    channel.watch_for_a_dead_host()
    try:
        running, ours = await _opened(end, theirs, kind)
    except Refused as refused:
        channel.send(refused.message)
        raise
    channel.send(ours)
    offer = await _offer_of_peer(channel)
    with ExitStack() as undo:
        engine_peer = await _acquaint(running, theirs, offer)
        undo.callback(running.forget, theirs, False)
        asking = await _converse(channel, welcome.token, "initiator")
        undo.callback(asking.close)
        asked = await _converse(channel, welcome.token, "acceptor")
        undo.callback(asked.close)
        session = _session(channel, end, theirs, running, engine_peer, asking, asked)
        undo.pop_all()
        return session


async def answer(channel: Channel, end: LocalEnd, theirs: Identity, kind: str) -> DistantSession:
    """The acceptor's part, from the welcome on; raises as :func:`initiate` does."""
    token = secrets.token_bytes(16)
    channel.watch_for_a_dead_host()
    end.engines.prepare(kind)
    channel.send(Welcome(end.identity, "", token))
    offer = await _offer_of_peer(channel)
    running, ours = await _opened(end, theirs, kind)
    with ExitStack() as undo:
        engine_peer = await _acquaint(running, theirs, offer)
        undo.callback(running.forget, theirs, False)
        with end.conversations.expect(token) as expectation:
            channel.send(ours)
            asked, asking = await expectation.both()
        undo.callback(asked.close)
        undo.callback(asking.close)
        session = _session(channel, end, theirs, running, engine_peer, asking, asked)
        undo.pop_all()
        return session


async def _opened(end: LocalEnd, theirs: Identity, kind: str) -> tuple[RunningEngine, EngineOffer]:
    """Our engine, and what the peer's must know of it."""
    mine = end.identity
    try:
        running = await end.engines.open(kind)
        metadata = await asyncio.get_running_loop().run_in_executor(None, running.engine.metadata)
    except (EngineUnavailable, EngineFailed) as error:
        raise Refused(
            LLMStatusCode.LLM_LINK_FAILED,
            f"{_need(mine, theirs)}, and cluster {mine.cluster_id} cannot use {kind}: {error}",
        ) from error
    return running, EngineOffer(metadata)


def _need(mine: Identity, theirs: Identity) -> str:
    """Why there has to be an engine."""
    for identity in (mine, theirs):
        if identity.transport:
            return f"transfer_backend is {identity.transport!r} in cluster {identity.cluster_id}"
    return (
        f"clusters {mine.cluster_id} and {theirs.cluster_id} share no memory: they run on different hosts, "
        "or in containers with network or process namespaces of their own"
    )


async def _offer_of_peer(channel: Channel) -> EngineOffer:
    offer = await channel.receive(EngineOffer, Refusal)
    if isinstance(offer, Refusal):
        raise Refused.by_peer(offer)
    return offer


async def _acquaint(running: RunningEngine, theirs: Identity, offer: EngineOffer) -> str:
    """The peer's name in our engine, which is to forget it when it is needed no more."""
    acquainting = asyncio.get_running_loop().run_in_executor(None, running.acquaint, theirs, offer.metadata)
    try:
        return await asyncio.shield(acquainting)
    except asyncio.CancelledError:
        acquainting.add_done_callback(lambda done: running.forget(theirs, False) if done.exception() is None else None)
        raise
    except EngineFailed as error:
        raise Refused(
            LLMStatusCode.LLM_LINK_FAILED,
            f"the {running.engine.name} engine cannot use what cluster {theirs.cluster_id} offers: {error}",
        ) from error


async def _converse(channel: Channel, token: bytes, asks: Literal["initiator", "acceptor"]) -> socket.socket:
    """A connection of its own, to the address that the channel leads to."""
    conversation = await channel.connect_again()
    try:
        conversation.send(Converse(token, asks))
        await conversation.flush()
    except BaseException:
        conversation.close()
        raise
    return conversation.release()


def _session(
    channel: Channel,
    end: LocalEnd,
    theirs: Identity,
    running: RunningEngine,
    engine_peer: str,
    asking: socket.socket,
    asked: socket.socket,
) -> DistantSession:
    """The session of an end that asks on the one connection, and is asked on the other."""
    watch_for_a_dead_host(asking)
    watch_for_a_dead_host(asked)
    attendance = running.attendance
    conversation = Conversation(asking, running.engine, engine_peer, attendance.areas, attendance.receive_late)
    memory = DistantPeer(conversation, theirs.remote_accessible)
    grant = GuestGrant(running.attendance, asked, engine_peer)
    return DistantSession(
        channel, theirs, memory, grant, end.store, conversation, asking, lambda linked: running.forget(theirs, linked)
    )
