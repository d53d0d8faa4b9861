"""A session with a peer that an engine reaches: on another host, or where one of the two insists on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from llmdd._core.distant_peer import DistantPeer
from llmdd._core.lease_calls import LeaseCalls

from .channel import Channel
from .conversation import Conversation
from .guest_grant import GuestGrant
from .messages import Identity, Message, Renew, Renewed
from .renewals import Renewals, renewed
from .session import Session


class DistantSession(Session):
    """A session beside which two conversations are held: one on which we ask, and one on which we are asked.

    Both are open until the session's end, also where our end has let go and said so: what is said on one connection may
    overtake what was said on another before, and a conversation that ends first would look like a peer that has died.

    Parameters
    ----------
    store
        Our caches, the leases of whose keys the peer may renew.
    conversation, asking
        The one on which we ask, and its socket.
    forget
        Called when the session needs the peer's engine no more; told whether the link ever stood.
    """

    def __init__(
        self,
        channel: Channel,
        peer: Identity,
        memory: DistantPeer,
        grant: GuestGrant,
        store: LeaseCalls,
        conversation: Conversation,
        asking: socket.socket,
        forget: Callable[[bool], None],
    ) -> None:
        super().__init__(channel, peer, memory, grant)
        self._store = store
        self._renewals = memory.renewals = Renewals(self.say, asyncio.get_running_loop())
        self._guest_grant = grant
        self._conversation = conversation
        self._asking = asking
        self._forget = forget
        self._left = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        conversation.on_end = self._conversation_ended

    def discard(self) -> None:
        super().discard()
        self._leave()

    def abandon(self) -> None:
        super().abandon()
        self._asking.close()
        self._guest_grant.abandon()

    async def left(self) -> None:
        await self._left.wait()

    def _conversation_ended(self) -> None:
        """A call of ours has found its connection dead, of which the other end may know nothing. On any thread."""
        try:
            self._loop.call_soon_threadsafe(self._peer_died)
        except RuntimeError:
            return  # the loop has ended, and the session with it

    def break_off(self) -> None:
        super().break_off()
        self._renewals.break_off()

    def _take_request(self, message: Message) -> None:
        if isinstance(message, Renew) and self.verdict.done():
            self.say(renewed(self._store, message))
        else:
            self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        if isinstance(message, Renewed):
            self._renewals.deliver(message)
        else:
            super()._take_answer(message)

    def _peer_is_out_of_reach(self) -> None:
        self.memory.break_off()
        self._renewals.break_off()

    def _close(self) -> None:
        super()._close()
        self.memory.break_off()
        self._renewals.break_off()
        self.let_go().add_done_callback(lambda _: self._leave())

    def _leave(self) -> None:
        """Nobody asks any more: end the conversation, and let the engine forget the peer."""
        self._conversation.close()
        self._forget(self.ended is not None)
        self._left.set()
