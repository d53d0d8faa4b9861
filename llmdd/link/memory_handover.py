"""How two ends on one host hand each other their memory, in the course of a handshake."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from llmdd._core.peer import PeerArena
from llmdd._core.store import CacheStore
from llmdd.transport import local

from .channel import Channel
from .complaints import Complaints
from .grant import PinGrant
from .local_end import LocalEnd
from .local_session import LocalSession
from .messages import Identity, ProtocolError, Refusal, Segments, Welcome
from .refused import Refused
from .segments import Handover, Rendezvous, SegmentSocket, come_to

_complaints = Complaints(logging.getLogger("llmdd.link"))


async def initiate(channel: Channel, end: LocalEnd, welcome: Welcome) -> LocalSession:
    """The initiator's part; raises as :func:`llmdd.link.handshake.initiate` does."""
    with await come_to(welcome.rendezvous) as connection:
        _require_process(connection, welcome.identity)
        with _granted(end, connection.peer_pid) as grant:
            _hand_over(end.store, grant, connection, welcome.token)
            try:
                handover = await connection.receive()
            except ProtocolError:
                # The acceptor gives its reason on TCP; if it gives none, it has closed that connection too.
                raise Refused.by_peer(await channel.receive(Refusal)) from None
            with closing(handover):
                return LocalSession(channel, welcome.identity, _attach(handover, connection), grant)


async def answer(channel: Channel, end: LocalEnd, theirs: Identity) -> LocalSession:
    """The acceptor's part, from the welcome on; raises as :func:`initiate` does."""
    token = secrets.token_bytes(16)
    with Rendezvous() as rendezvous:
        channel.send(Welcome(end.identity, rendezvous.name, token))
        with channel.while_it_stands():
            connection, handover = await _meet(rendezvous, theirs, token)
    with connection, closing(handover), _granted(end, connection.peer_pid) as grant:
        arena = _attach(handover, connection)
        try:
            _hand_over(end.store, grant, connection, token)
        except BaseException:
            # Now, and not when the error that keeps it is collected: it holds a descriptor of the peer's process.
            arena.detach(0)
            raise
        return LocalSession(channel, theirs, arena, grant)


async def _meet(rendezvous: Rendezvous, theirs: Identity, token: bytes) -> tuple[SegmentSocket, Handover]:
    """Wait for the peer. Anybody else who comes is sent away, and cannot spoil the handshake."""
    while True:
        # Whoever comes again and again is sent away without a wait: others have their turn in between.
        await asyncio.sleep(0)
        connection = await rendezvous.accept()
        with ExitStack() as undo:
            undo.callback(connection.close)
            try:
                _require_process(connection, theirs)
                handover = undo.enter_context(closing(await connection.receive()))
            except ProtocolError as error:
                _complaints.warn("sent away from a rendezvous: %s", error)
                continue
            if secrets.compare_digest(handover.segments.token, token):
                undo.pop_all()
                return connection, handover
            _complaints.warn("sent away from a rendezvous: wrong token")


@contextmanager
def _granted(end: LocalEnd, pid: int) -> Iterator[PinGrant]:
    """A pin bit for the process ``pid``, withdrawn if the handshake fails (nobody has used it then)."""
    grant = PinGrant(end.store, end.reaper, pid, end.counts)
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


def _require_process(connection: SegmentSocket, theirs: Identity) -> None:
    connection.require_same_user()
    if connection.peer_pid != theirs.pid:
        raise ProtocolError(f"process {connection.peer_pid} came in place of process {theirs.pid}")
