"""Settling, in the background, what peers have released.

A peer drops references and pins in this node's memory without a word, so the node has to look: at each of its own
operations, and here on a timer, because nobody may have to wait for its next operation. Pin bits that come back from
peers are taken here too.

It has a thread of its own, beside the event loop's: a caller may hold the store still (``CacheManager.paused``), and
must not hold up the links with it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.store import CacheStore

_logger = logging.getLogger("llmdd.link")

#: How long what a peer has released may wait while the node does nothing itself.
REAP_INTERVAL_S = 0.02


class Return(NamedTuple):
    """A pin bit on its way back to the store, and whom to tell when it has arrived."""

    peer_bit: int
    arrived: Callable[[], None]


class Reaper:
    """Reaps a store until it is closed."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store
        self._returns: queue.SimpleQueue[Return | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"llmdd reaper {store.cluster_id}", daemon=True)
        self._thread.start()

    def take_back(self, peer_bit: int, arrived: Callable[[], None]) -> None:
        """Drop the pins of a peer that transfers no more, let its bit be granted anew, then call ``arrived``."""
        self._returns.put(Return(peer_bit, arrived))

    def close(self) -> None:
        """Take back what is on its way, if the store lets it in, and end."""
        self._returns.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[Return] = []
        try:
            while self._next(waiting):
                waiting = [bit for bit in waiting if not self._take(bit)]
                self._settle(self._store.reap)
        except Exception:
            _logger.exception("what peers release is not settled any more")

    def _next(self, waiting: list[Return]) -> bool:
        """Wait for the next pin bit, or until it is time to look; False when the reaper is closed."""
        try:
            item = self._returns.get(timeout=REAP_INTERVAL_S)
        except queue.Empty:
            return True
        if item is not None:
            waiting.append(item)
        return item is not None

    def _take(self, item: Return) -> bool:
        taken = self._settle(lambda: self._store.dismiss_peer(item.peer_bit))
        if taken:
            item.arrived()
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
