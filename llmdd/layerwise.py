"""Layers sent while later ones are still being computed (api §3.7).

Every call of ``transfer_cache_async`` has a thread of its own. It walks the source's layers in ascending order, waits
for each that somebody wants, and sends it to everybody who wants it. What goes where was copied when the call was made:
what the caller does to its lists and configs afterwards has no effect.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from llmdd._core.cache import Cache
from llmdd._core.cache_keys import BlocksCacheKey, CacheKeyByIdAndIndex
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.store import CacheStore, SourcePin
from llmdd._core.validation import check_uint32
from llmdd.transfer_description import LayerSynchronizer

TENSORS_PER_LAYER = 2
"""Fixed for layer-wise transfers."""

BEYOND_EVERY_CACHE = 2**32
"""Layers: as good as any larger number, and one that the core can count to."""

_logger = logging.getLogger("llmdd")


@dataclass(frozen=True)
class Blocks:
    """Which blocks of the source go to which of the destination; none listed: whole slots, or every block."""

    source: tuple[int, ...] = ()
    destination: tuple[int, ...] = ()
    bytes: int = 0


@dataclass(frozen=True)
class ToAddresses:
    """Layers for raw addresses of a cluster, two for each layer."""

    cluster_id: int
    addresses: tuple[int, ...]
    layers: range
    src_batch_index: int

    def send(self, store: CacheStore, source: SourcePin, layer: int, blocks: Blocks) -> None:
        """Send one layer; LLMException if that failed."""
        first = (layer - self.layers.start) * TENSORS_PER_LAYER
        store.send_to_addresses(
            source,
            self.cluster_id,
            layer * TENSORS_PER_LAYER,
            self.addresses[first : first + TENSORS_PER_LAYER],
            self.src_batch_index,
            blocks.source,
            blocks.destination,
            blocks.bytes,
        )


@dataclass(frozen=True)
class ToCache:
    """Layers for layers of a cluster's cache."""

    key: BlocksCacheKey | CacheKeyByIdAndIndex
    layers: range
    first_destination_layer: int
    src_batch_index: int

    @property
    def cluster_id(self) -> int:
        return self.key.cluster_id

    def send(self, store: CacheStore, source: SourcePin, layer: int, blocks: Blocks) -> None:
        """Send one layer; LLMException if that failed."""
        destination = self.first_destination_layer + layer - self.layers.start
        store.send_to_cache(
            source,
            self.key,
            layer * TENSORS_PER_LAYER,
            min(destination, BEYOND_EVERY_CACHE) * TENSORS_PER_LAYER,
            self.src_batch_index,
            blocks.source,
            blocks.destination,
            blocks.bytes,
        )


Destination = ToAddresses | ToCache


class CacheTask:
    """A transfer under way; made by ``transfer_cache_async`` (api §3.7).

    Both methods may be called from any thread, any number of times.
    """

    _worker: threading.Thread
    _results: list[LLMStatusCode | None]

    def __init__(self) -> None:
        raise TypeError("a CacheTask is made by CacheManager.transfer_cache_async")

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Wait until everything was sent, or has failed.

        Parameters
        ----------
        timeout_in_millis : int, optional
            uint32; without it there is no limit.

        Returns
        -------
        LLMStatusCode
            ``LLM_TIMEOUT`` if the transfer is not finished in that time: it goes on, and may be waited for again. Else
            the code of the first config that failed, or ``LLM_SUCCESS``.

        Raises
        ------
        TypeError, ValueError
            A timeout that is no int, or no uint32.
        """
        if not self._finished(timeout_in_millis):
            return LLMStatusCode.LLM_TIMEOUT
        for code in self._results:
            if code is not LLMStatusCode.LLM_SUCCESS:
                return LLMStatusCode.LLM_FAILED if code is None else code
        return LLMStatusCode.LLM_SUCCESS

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Wait as :meth:`synchronize` does.

        Returns
        -------
        list of LLMStatusCode
            For each config in the order given: ``LLM_SUCCESS`` if all its layers were sent, else the code of the layer
            that was not, after which nothing more was sent for it. ``LLM_TIMEOUT`` for each if the transfer is not
            finished.
        """
        if not self._finished(timeout_in_millis):
            return [LLMStatusCode.LLM_TIMEOUT] * len(self._results)
        return list(self._results)

    def _finished(self, timeout_in_millis: int | None) -> bool:
        """Wait for the thread, not for a word of its: in a forked child it has ended, and left what it has left."""
        if timeout_in_millis is not None:
            check_uint32("timeout_in_millis", timeout_in_millis)
        self._worker.join(None if timeout_in_millis is None else timeout_in_millis / 1000)
        return not self._worker.is_alive()


def start(
    store: CacheStore,
    cache: Cache,
    synchronizer: LayerSynchronizer,
    destinations: Sequence[Destination],
    blocks: Blocks,
) -> CacheTask:
    """Begin to send; the source keeps its memory until the task has ended."""
    walk = LayerWalk(store, cache, synchronizer, destinations, blocks)
    task = CacheTask.__new__(CacheTask)
    task._results = walk.results
    # No daemon, whatever thread this is: the interpreter waits for it before it finalizes the instance (api §4.4).
    task._worker = threading.Thread(target=walk.run, name=f"llmdd layers of cache {cache.cache_id}", daemon=False)
    try:
        task._worker.start()
    except BaseException:
        walk.release()
        raise
    return task


class LayerWalk:
    """What a task's thread does, and how far it is: ``results`` has a code for each destination that has ended."""

    def __init__(
        self,
        store: CacheStore,
        cache: Cache,
        synchronizer: LayerSynchronizer,
        destinations: Sequence[Destination],
        blocks: Blocks,
    ) -> None:
        self._store = store
        self._synchronizer = synchronizer
        self._destinations = destinations
        self._blocks = blocks
        self.results: list[LLMStatusCode | None] = [None] * len(destinations)
        self._pin: SourcePin | None = None
        self._lost = LLMStatusCode.LLM_SUCCESS
        try:
            self._pin = store.pin_source(cache)
        except LLMException as error:
            self._lost = error.status_code

    def run(self) -> None:
        """Walk the layers in ascending order until no destination wants any more."""
        try:
            layer = self._next_layer(0)
            while layer is not None:
                self._serve(layer)
                layer = self._next_layer(layer + 1)
        finally:
            self.release()

    def release(self) -> None:
        """Let the source's memory go."""
        if self._pin is not None:
            self._pin.release()

    def _next_layer(self, start: int) -> int | None:
        """The first layer from ``start`` on that somebody wants who has not ended."""
        waiting = [
            max(start, destination.layers.start)
            for destination, code in zip(self._destinations, self.results, strict=True)
            if code is None and start < destination.layers.stop
        ]
        return min(waiting, default=None)

    def _serve(self, layer: int) -> None:
        """Wait for a layer once, and send it to everybody who wants it, in their order."""
        wanting = [
            index
            for index, destination in enumerate(self._destinations)
            if self.results[index] is None and layer in destination.layers
        ]
        code = self._wait_for(layer)
        for index in wanting:
            outcome = self._send(index, layer) if code is LLMStatusCode.LLM_SUCCESS else code
            last = layer + 1 == self._destinations[index].layers.stop
            if last or outcome is not LLMStatusCode.LLM_SUCCESS:
                self.results[index] = outcome

    def _wait_for(self, layer: int) -> LLMStatusCode:
        try:
            computed = bool(self._synchronizer.synchronize_layer(layer, None))
        except BaseException:  # SystemExit too would end this thread, and leave everybody without a result
            _logger.exception("synchronize_layer(%d, None) of %r failed", layer, self._synchronizer)
            return LLMStatusCode.LLM_FAILED
        return LLMStatusCode.LLM_SUCCESS if computed else LLMStatusCode.LLM_PARAM_INVALID

    def _send(self, index: int, layer: int) -> LLMStatusCode:
        if self._pin is None:
            return self._lost
        destination = self._destinations[index]
        try:
            destination.send(self._store, self._pin, layer, self._blocks)
        except LLMException as error:
            _logger.error("layer %d was not sent to cluster %d: %s", layer, destination.cluster_id, error)
            return error.status_code
        except Exception:
            _logger.exception("layer %d was not sent to cluster %d", layer, destination.cluster_id)
            return LLMStatusCode.LLM_FAILED
        return LLMStatusCode.LLM_SUCCESS
