"""How two ends check each other, and find the way by which bytes will travel between them.

Both ends apply the same checks (:func:`objection`) and come to the same way (:func:`engine_between`). What comes out,
at either end, is a prepared :class:`~llmdd.link.session.Session`: the peer's memory within reach, what the peer needs
granted, nothing published. Until the link is committed nobody transfers, so either end may
:meth:`~llmdd.link.session.Session.discard` it.
"""

from __future__ import annotations

import os
import secrets

from llmdd._core.status import LLMStatusCode
from llmdd._core.tables import LAYOUT_VERSION, SPEC_CHECKSUM
from llmdd.transport import local
from llmdd.transport.engines import ENGINES

from . import introduction, memory_handover
from .channel import Channel
from .local_end import LocalEnd
from .messages import PROTOCOL_VERSION, CommunicatorTag, Identity, LinkRequest, Refusal, Welcome
from .refused import Refused
from .session import Session

#: What moves the bytes between two hosts where nobody says otherwise.
ENGINE_BETWEEN_HOSTS = "nixl"

#: How many sessions a node has when it accepts no more: one for each of 512 links, and of each member of 512
#: communicators.
MAX_SESSIONS = 2048


def new_identity(cluster_id: int, remote_accessible: bool, transport: str = "") -> Identity:
    """Who a node is, from its initialisation to its end. ``transport``: the engine that it insists on, if any."""
    return Identity(
        protocol_version=PROTOCOL_VERSION,
        layout_version=LAYOUT_VERSION,
        spec_checksum=SPEC_CHECKSUM,
        cluster_id=cluster_id,
        incarnation=secrets.randbits(64),
        host=local.host_identity(),
        pid=os.getpid(),
        remote_accessible=remote_accessible,
        transport=transport,
    )


def objection(mine: Identity, theirs: Identity) -> Refused | None:
    """Why the two cannot be linked, or None when they can."""
    if _versions(mine) != _versions(theirs):
        return Refused(
            LLMStatusCode.LLM_FAILED,
            f"cluster {mine.cluster_id} has {_versions(mine)}, cluster {theirs.cluster_id} has {_versions(theirs)}; "
            "both ends must run the same version of llmdd",
        )
    if theirs.cluster_id == mine.cluster_id:
        return Refused(LLMStatusCode.LLM_PARAM_INVALID, f"both ends have the cluster id {mine.cluster_id}")
    if theirs.remote_accessible != mine.remote_accessible:
        return Refused(
            LLMStatusCode.LLM_PARAM_INVALID,
            f"enable_remote_cache_accessible is {mine.remote_accessible} in cluster {mine.cluster_id} and "
            f"{theirs.remote_accessible} in cluster {theirs.cluster_id}",
        )
    if theirs.transport and mine.transport and theirs.transport != mine.transport:
        return Refused(
            LLMStatusCode.LLM_PARAM_INVALID,
            f"transfer_backend is {mine.transport!r} in cluster {mine.cluster_id} and {theirs.transport!r} in cluster "
            f"{theirs.cluster_id}",
        )
    engine = engine_between(mine, theirs)
    if engine is not None and engine not in ENGINES:
        return Refused(
            LLMStatusCode.LLM_LINK_FAILED,
            f"cluster {theirs.cluster_id} insists on the transfer_backend {engine!r}, of which cluster "
            f"{mine.cluster_id} knows nothing",
        )
    return None


def engine_between(mine: Identity, theirs: Identity) -> str | None:
    """The engine that moves the bytes between two ends; None where they share memory.

    They do on one host, unless one of them insists on an engine.
    """
    insisted_on = mine.transport or theirs.transport
    if insisted_on:
        return insisted_on
    return None if mine.host == theirs.host else ENGINE_BETWEEN_HOSTS


def _versions(identity: Identity) -> str:
    return (
        f"protocol {identity.protocol_version}, layout {identity.layout_version}, spec {identity.spec_checksum[:16]!r}"
    )


async def initiate(
    channel: Channel, end: LocalEnd, expected_cluster_id: int, communicator: CommunicatorTag | None = None
) -> Session:
    """The initiator's part, up to the commit.

    Raises
    ------
    Refused
        By either end.
    ProtocolError, OSError, ValueError
        If the other end is not one of ours or goes away, or offers what cannot be attached.
    LLMException
        If the store has no pin bit left.
    """
    channel.send(LinkRequest(end.identity, expected_cluster_id, communicator))
    welcome = await channel.receive(Welcome, Refusal)
    if isinstance(welcome, Refusal):
        raise Refused.by_peer(welcome)
    theirs = welcome.identity
    if theirs.cluster_id != expected_cluster_id:
        raise _wrong_cluster(theirs.cluster_id, expected_cluster_id)
    _require_no_objection(end.identity, theirs)
    engine = engine_between(end.identity, theirs)
    if engine is None:
        return await memory_handover.initiate(channel, end, welcome)
    return await introduction.initiate(channel, end, welcome, engine)


async def answer(channel: Channel, end: LocalEnd, request: LinkRequest) -> Session:
    """The acceptor's part, up to the commit; raises as :func:`initiate` does."""
    theirs = request.identity
    require_cluster(request, end.identity)
    _require_no_objection(end.identity, theirs)
    if len(end.sessions) >= MAX_SESSIONS:
        raise Refused(
            LLMStatusCode.LLM_FAILED,
            f"cluster {end.identity.cluster_id} has {MAX_SESSIONS} sessions, that is the limit",
            for_now=True,
        )
    engine = engine_between(end.identity, theirs)
    if engine is None:
        return await memory_handover.answer(channel, end, theirs)
    return await introduction.answer(channel, end, theirs, engine)


def require_cluster(request: LinkRequest, mine: Identity) -> None:
    """:class:`Refused` if the request is meant for another cluster."""
    if request.expected_cluster_id != mine.cluster_id:
        raise _wrong_cluster(mine.cluster_id, request.expected_cluster_id)


def _require_no_objection(mine: Identity, theirs: Identity) -> None:
    refused = objection(mine, theirs)
    if refused is not None:
        raise refused


def _wrong_cluster(found: int, expected: int) -> Refused:
    return Refused(LLMStatusCode.LLM_PARAM_INVALID, f"this is cluster {found}, not cluster {expected}")
