"""The place of a peer on another host at our attendance, and how it comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from .attendance import Attendance, Guest
from .connection import Connection
from .link_counts import LinkCounts


class GuestGrant:
    """Lets one peer ask for transfers, from the commit of the link on, until it is dismissed.

    It has the methods of :class:`~llmdd.link.grant.PinGrant`. What differs: a peer on another host touches nothing of
    ours. Its pins are ours, set in its name, and can be dropped whatever it does; what is being written here when it
    is dismissed, our own engine writes, and ``returned`` waits for that.

    Parameters
    ----------
    attendance
        Who will serve the peer.
    sock
        The connection on which the peer asks; owned.
    engine_peer
        The peer's name in our engine.
    counts
        Where reads that are evicted are counted.
    """

    def __init__(self, attendance: Attendance, sock: Connection, engine_peer: str, counts: LinkCounts) -> None:
        self.counts = counts
        self._attendance = attendance
        self._socket = sock
        self._engine_peer = engine_peer
        self._owner = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._guest: Guest | None = None
        self.pins_lost = 0
        self.settled, self.returned = asyncio.Event(), asyncio.Event()
        self._given_back = self._evicted = False

    def watch(self, on_death: Callable[[], None]) -> None:
        """Serve the peer from now on, and call ``on_death`` when it hangs up, or breaks the rules."""
        self._guest = self._attendance.admit(self._socket, self._engine_peer, lambda: self._in_loop(on_death))

    def give_back(self) -> None:
        """Serve the peer no more. Once; again is nothing."""
        if self._given_back:
            return
        self._given_back = True
        if self._guest is None:
            self._socket.close()
            self._note_returned(0)
        else:
            self._guest.dismiss(lambda pins: self._in_loop(lambda: self._note_returned(pins)))

    def _note_returned(self, pins: int) -> None:
        if self._evicted:
            self.counts.reads_evicted += pins
        else:
            self.pins_lost = pins
        self.settled.set()
        self.returned.set()

    def evict(self) -> None:
        """The link is down: nothing that the peer has asked for is waited for."""
        self._evicted = self._evicted or not self._given_back
        self.give_back()

    def lose(self) -> None:
        """The peer is gone."""
        self.give_back()

    def withdraw(self) -> None:
        """End a grant that was never used."""
        self.close()

    def close(self) -> None:
        """Serve the peer no more, whatever has become of the link."""
        if os.getpid() == self._owner:
            self.give_back()

    def abandon(self) -> None:
        """In a forked child: leave the connection to the parent."""
        self._socket.close()

    def _in_loop(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)
