"""The place of a peer on another host at our attendance, and how it comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from .attendance import Attendance, Guest
from .connection import Connection


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
    """

    def __init__(self, attendance: Attendance, sock: Connection, engine_peer: str) -> None:
        self._attendance = attendance
        self._socket = sock
        self._engine_peer = engine_peer
        self._owner = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._guest: Guest | None = None
        self.returned = asyncio.Event()
        self._given_back = False

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
            self.returned.set()
        else:
            self._guest.dismiss(lambda: self._in_loop(self.returned.set))

    def evict(self) -> None:
        """The link is down: nothing that the peer has asked for is waited for."""
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
