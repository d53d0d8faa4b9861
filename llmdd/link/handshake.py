"""How two ends check each other and exchange their memory.

Both ends apply the same checks (:func:`objection`). What comes out, at either end, is a prepared :class:`Session`:
memory attached, pin bit granted, nothing published. Until the link is committed nobody transfers, so either end may
:meth:`~llmdd.link.session.Session.discard` it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from llmdd._core.peer import PeerArena
from llmdd._core.status import LLMStatusCode
from llmdd._core.store import CacheStore
from llmdd._core.tables import LAYOUT_VERSION, SPEC_CHECKSUM
from llmdd.transport import local

from .channel import Channel
from .grant import PinGrant
from .messages import (
    PROTOCOL_VERSION,
    CommunicatorTag,
    Identity,
    LinkRequest,
    ProtocolError,
    Refusal,
    Segments,
    Welcome,
)
from .reaper import Reaper
from .segments import Handover, Rendezvous, SegmentSocket, come_to
from .session import Session

_logger = logging.getLogger("llmdd.link")

# What a peer's refusal may make of a link_clusters entry (api §4.1); any other number is a failure.
_REFUSAL_CODES = (LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_LINK_FAILED, LLMStatusCode.LLM_FAILED)


class Refused(Exception):
    """One of the two ends does not want the link."""

    def __init__(self, status_code: LLMStatusCode, reason: str, *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.status_code = status_code
        self.for_now = for_now

    @classmethod
    def by_peer(cls, refusal: Refusal) -> Refused:
        known = [code for code in _REFUSAL_CODES if code == refusal.status_code]
        code = known[0] if known else LLMStatusCode.LLM_FAILED
        return cls(code, f"the other end says: {refusal.reason!r}", for_now=refusal.for_now)

    @property
    def message(self) -> Refusal:
        return Refusal(int(self.status_code), str(self)[:1000], self.for_now)


def new_identity(cluster_id: int, remote_accessible: bool) -> Identity:
    """Who a node is, from its initialisation to its end."""
    return Identity(
        protocol_version=PROTOCOL_VERSION,
        layout_version=LAYOUT_VERSION,
        spec_checksum=SPEC_CHECKSUM,
        cluster_id=cluster_id,
        incarnation=secrets.randbits(64),
        host=local.host_identity(),
        pid=os.getpid(),
        remote_accessible=remote_accessible,
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
    if theirs.host != mine.host:
        return Refused(
            LLMStatusCode.LLM_LINK_FAILED,
            f"clusters {mine.cluster_id} and {theirs.cluster_id} share no memory: they run on different hosts, "
            "or in containers with network or process namespaces of their own",
        )
    return None


def _versions(identity: Identity) -> str:
    return (
        f"protocol {identity.protocol_version}, layout {identity.layout_version}, spec {identity.spec_checksum[:16]!r}"
    )


async def initiate(
    channel: Channel,
    mine: Identity,
    store: CacheStore,
    reaper: Reaper,
    expected_cluster_id: int,
    communicator: CommunicatorTag | None = None,
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
    channel.send(LinkRequest(mine, expected_cluster_id, communicator))
    welcome = await channel.receive(Welcome, Refusal)
    if isinstance(welcome, Refusal):
        raise Refused.by_peer(welcome)
    theirs = welcome.identity
    if theirs.cluster_id != expected_cluster_id:
        raise _wrong_cluster(theirs.cluster_id, expected_cluster_id)
    _require_no_objection(mine, theirs)
    with await come_to(welcome.rendezvous) as connection:
        _require_process(connection, theirs)
        with _granted(store, reaper, connection.peer_pid) as grant:
            _hand_over(store, grant, connection, welcome.token)
            try:
                handover = await connection.receive()
            except ProtocolError:
                # The acceptor gives its reason on TCP; if it gives none, it has closed that connection too.
                raise Refused.by_peer(await channel.receive(Refusal)) from None
            with closing(handover):
                return Session(channel, theirs, _attach(handover, connection), grant)


async def answer(channel: Channel, request: LinkRequest, mine: Identity, store: CacheStore, reaper: Reaper) -> Session:
    """The acceptor's part, up to the commit; raises as :func:`initiate` does."""
    theirs = request.identity
    require_cluster(request, mine)
    _require_no_objection(mine, theirs)
    token = secrets.token_bytes(16)
    with Rendezvous() as rendezvous:
        channel.send(Welcome(mine, rendezvous.name, token))
        connection, handover = await _meet(rendezvous, theirs, token)
    with connection, closing(handover), _granted(store, reaper, connection.peer_pid) as grant:
        arena = _attach(handover, connection)
        _hand_over(store, grant, connection, token)
        return Session(channel, theirs, arena, grant)


def require_cluster(request: LinkRequest, mine: Identity) -> None:
    """:class:`Refused` if the request is meant for another cluster."""
    if request.expected_cluster_id != mine.cluster_id:
        raise _wrong_cluster(mine.cluster_id, request.expected_cluster_id)


async def _meet(rendezvous: Rendezvous, theirs: Identity, token: bytes) -> tuple[SegmentSocket, Handover]:
    """Wait for the peer. Anybody else who comes is sent away, and cannot spoil the handshake."""
    while True:
        connection = await rendezvous.accept()
        with ExitStack() as undo:
            undo.callback(connection.close)
            try:
                _require_process(connection, theirs)
                handover = undo.enter_context(closing(await connection.receive()))
            except ProtocolError as error:
                _logger.debug("sent away from a rendezvous: %s", error)
                continue
            if secrets.compare_digest(handover.segments.token, token):
                undo.pop_all()
                return connection, handover
            _logger.debug("sent away from a rendezvous: wrong token")


@contextmanager
def _granted(store: CacheStore, reaper: Reaper, pid: int) -> Iterator[PinGrant]:
    """A pin bit for the process ``pid``, withdrawn if the handshake fails (nobody has used it then)."""
    grant = PinGrant(store, reaper, pid)
    try:
        yield grant
    except BaseException:
        grant.withdraw()
        raise


def _hand_over(store: CacheStore, grant: PinGrant, connection: SegmentSocket, token: bytes) -> None:
    offer = local.offer(store)
    connection.send(Segments(token, offer.description, grant.peer_bit), offer.fds)


def _attach(handover: Handover, connection: SegmentSocket) -> PeerArena:
    segments = handover.segments
    return local.attach(segments.description, handover.fds, segments.peer_bit, connection.peer_pid)


def _require_no_objection(mine: Identity, theirs: Identity) -> None:
    refused = objection(mine, theirs)
    if refused is not None:
        raise refused


def _require_process(connection: SegmentSocket, theirs: Identity) -> None:
    connection.require_same_user()
    if connection.peer_pid != theirs.pid:
        raise ProtocolError(f"process {connection.peer_pid} came in place of process {theirs.pid}")


def _wrong_cluster(found: int, expected: int) -> Refused:
    return Refused(LLMStatusCode.LLM_PARAM_INVALID, f"this is cluster {found}, not cluster {expected}")
