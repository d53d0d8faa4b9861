"""Settling, in the background, what peers have released, and dropping keys whose leases are over.

A peer drops references and pins in this node's memory without a word, so the node has to look: at each of its own
operations, and here on a timer, because nobody may have to wait for its next operation. Pin bits that come back from
peers are taken here too, and readers are evicted whose link is down.

It has a thread of its own, beside the event loop's: a caller may hold the store still (``CacheManager.paused``), and
must not hold up the links with it. So a lease ends whatever else happens, or does not.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.store import CacheStore

_logger = logging.getLogger("llmdd.link")

#: How long what a peer has released, or a lease that is over, may wait while the node does nothing itself.
REAP_INTERVAL_S = 0.02


class Errand(NamedTuple):
    """What is to be done about a peer's pins, and whom to tell when it has been done."""

    work: Callable[[int], object]
    peer_bit: int
    done: Callable[[], None]


class Reaper:
    """Reaps a store until it is closed."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store
        self._errands: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"llmdd reaper {store.cluster_id}", daemon=True)
        self._thread.start()

    def take_back(self, peer_bit: int, arrived: Callable[[], None]) -> None:
        """Drop the pins of a peer that transfers no more, let its bit be granted anew, then call ``arrived``."""
        self._errands.put(Errand(self._store.dismiss_peer, peer_bit, arrived))

    def evict(self, peer_bit: int) -> None:
        """Let the reads of a peer hold nothing any more: its link is down, but its process lives."""
        self._errands.put(Errand(self._store.evict_peer, peer_bit, lambda: None))

    def close(self) -> None:
        """Run the errands there are, if the store lets us in, and end."""
        self._errands.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: deque[Errand] = deque()
        try:
            while self._next(waiting):
                # In their order: an eviction that came after the return of the bit would be of whoever has it next.
                while waiting and self._take(waiting[0]):
                    waiting.popleft()
                self._settle(self._store.reap)
                if self._store.leases_are_due:
                    self._settle(self._store.expire_leases)
        except Exception:
            _logger.exception("what peers release is not settled any more")

    def _next(self, waiting: deque[Errand]) -> bool:
        """Wait for the next errand, or until it is time to look; False when the reaper is closed."""
        try:
            errand = self._errands.get(timeout=REAP_INTERVAL_S)
        except queue.Empty:
            return True
        if errand is not None:
            waiting.append(errand)
        return errand is not None

    def _take(self, errand: Errand) -> bool:
        taken = self._settle(lambda: errand.work(errand.peer_bit))
        if taken:
            errand.done()
        return taken

    def _settle(self, call: Callable[[], object]) -> bool:
        """False if somebody holds the store still; a store that was closed has nothing left to settle."""
        try:
            call()
        except LLMException as error:
            if error.status_code is LLMStatusCode.LLM_TIMEOUT:
                return False
            if error.status_code is not LLMStatusCode.LLM_ENGINE_FINALIZED:
                raise
        return True
