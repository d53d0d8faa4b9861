"""The pin bit lent to a peer, and how it comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from llmdd._core.store import CacheStore

from .link_counts import LinkCounts
from .reaper import Reaper


class PinGrant:
    """A pin bit of our store that one peer process may set, until it promises to set it no more, or dies.

    A connection that ends is no promise: the process may still be copying. The kernel's word counts (a pidfd), or the
    peer's own (:class:`~llmdd.link.messages.Detached`). Until then a peer whose link is down can be evicted: what it
    reads is not held for it, while what it writes is.

    Parameters
    ----------
    store, reaper
        Ours, and who drops pins in it.
    pid
        Of the peer.
    counts
        Where reads that are evicted are counted.

    Raises
    ------
    LLMException
        ``LLM_FAILED`` if the store has no bit left.
    OSError
        If the process ``pid`` cannot be watched; it may have died already.
    """

    def __init__(self, store: CacheStore, reaper: Reaper, pid: int, counts: LinkCounts) -> None:
        self.store = store
        self.counts = counts
        self._reaper = reaper
        self._owner = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        try:
            self.peer_bit = store.admit_peer()
        except BaseException:
            os.close(self._pidfd)
            raise
        self.pins_lost = 0
        self.settled, self.returned = asyncio.Event(), asyncio.Event()
        self._given_back = self._evicted = self._lost = False

    def watch(self, on_death: Callable[[], None]) -> None:
        """Call ``on_death`` when the peer's process ends: it transfers no more."""

        def died() -> None:
            self._stop_watching()
            on_death()

        self._loop.add_reader(self._pidfd, died)

    def give_back(self) -> None:
        """The peer transfers no more: drop its pins and let the bit be granted anew. Once; again is nothing."""
        if not self._given_back:
            self._given_back = True
            self._reaper.take_back(self.peer_bit, self._arrived)

    def evict(self) -> None:
        """The link is down, and the peer may be standing still in a read: wait for that no longer. Again is nothing."""
        if not (self._given_back or self._evicted):
            self._evicted = True
            self._reaper.evict(self.peer_bit, self._evicted_are)

    def lose(self) -> None:
        """The peer is heard no more. If its process lives, it may read and write still."""
        self._lost = not self._evicted
        self.evict()

    def _evicted_are(self, reads: int) -> None:
        self._loop.call_soon_threadsafe(self._note_evicted, reads)

    def _note_evicted(self, reads: int) -> None:
        if self._lost:
            self.pins_lost += reads
        else:
            self.counts.reads_evicted += reads
        self.settled.set()

    def _arrived(self, pins: int) -> None:
        self._loop.call_soon_threadsafe(self._note_returned, pins)

    def _note_returned(self, pins: int) -> None:
        self.pins_lost += pins
        self.settled.set()
        self.returned.set()

    def withdraw(self) -> None:
        """End a grant that was never used."""
        if os.getpid() == self._owner:
            self.give_back()
            self.close()

    def close(self) -> None:
        """Watch no more. A bit not given back stays taken."""
        if self._pidfd >= 0 and os.getpid() == self._owner:
            self._stop_watching()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
