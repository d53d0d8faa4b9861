"""A session with a peer on this host, whose memory is mapped here and to which a pin bit is lent."""

from __future__ import annotations

import asyncio

from llmdd._core.peer import PeerArena

from .channel import Channel
from .courier import Attendant, Courier
from .grant import PinGrant
from .messages import Fetch, Fetched, Identity, Message, Store, Stored
from .session import Session


class LocalSession(Session):
    """A session that also carries pieces of registered memory (``courier``)."""

    def __init__(self, channel: Channel, peer: Identity, arena: PeerArena, grant: PinGrant) -> None:
        super().__init__(channel, peer, arena, grant)
        self.courier = arena.courier = Courier(self.say, asyncio.get_running_loop())
        self._attendant = Attendant(grant.store, grant.peer_bit, self.say, channel.hang_up)

    def break_off(self) -> None:
        super().break_off()
        self.courier.break_off()

    def _give_back(self) -> None:
        """The peer transfers no more, and will when what is being copied for it has been."""
        self._attendant.when_idle(self.grant.give_back)

    def _peer_is_out_of_reach(self) -> None:
        self.courier.break_off()

    def _close(self) -> None:
        super()._close()
        self.courier.break_off()

    def _take_request(self, message: Message) -> None:
        if isinstance(message, (Fetch, Store)) and self.verdict.done():
            self._attendant.serve(message)
        else:
            self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        if isinstance(message, (Fetched, Stored)):
            self.courier.deliver(message)
        else:
            super()._take_answer(message)
