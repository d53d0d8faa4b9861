"""The connections on which the two ends of a link will ask each other for transfers, until the handshake has them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from .channel import Channel
from .connection import Connection
from .messages import Converse, ProtocolError


class Expectation:
    """What one handshake waits for: a connection on which the initiator asks, and one on which the acceptor asks."""

    def __init__(self, peer_fingerprint: str) -> None:
        self.peer_fingerprint = peer_fingerprint
        self._arrived: dict[str, Connection] = {}
        self._complete = asyncio.Event()

    def take(self, channel: Channel, asks: str) -> None:
        """A connection has come; :class:`ProtocolError` if it has come before."""
        if self._complete.is_set() or asks in self._arrived:
            raise ProtocolError(f"the connection on which the {asks} asks has come already")
        self._arrived[asks] = channel.release()
        if len(self._arrived) == 2:
            self._complete.set()

    async def both(self) -> tuple[Connection, Connection]:
        """The connections on which the initiator asks and the acceptor asks, from now on the caller's."""
        await self._complete.wait()
        return self._arrived.pop("initiator"), self._arrived.pop("acceptor")

    def close(self) -> None:
        """Close what has come and was not taken."""
        self._complete.set()
        for sock in self._arrived.values():
            sock.close()


class ExpectedConversations:
    """Leads connections that begin with ``Converse`` to the handshakes that wait for them. Lives on the event loop."""

    def __init__(self) -> None:
        self._expected: dict[bytes, Expectation] = {}

    @contextmanager
    def expect(self, token: bytes, peer_fingerprint: str) -> Iterator[Expectation]:
        """Let the peer in who has this key, and knows the token, until the end of the ``with`` statement."""
        expectation = self._expected[token] = Expectation(peer_fingerprint)
        try:
            yield expectation
        finally:
            del self._expected[token]
            expectation.close()

    def receive(self, channel: Channel, request: Converse) -> None:
        """Lead a connection to its handshake; :class:`ProtocolError` if none waits for it."""
        for token, expectation in self._expected.items():
            if secrets.compare_digest(token, request.token):
                if channel.peer_fingerprint != expectation.peer_fingerprint:
                    raise ProtocolError("it comes from another key than the link")
                expectation.take(channel, request.asks)
                return
        raise ProtocolError("no handshake waits for such a conversation")
