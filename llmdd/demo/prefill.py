"""The prefill process: reads prompts in batches and offers each request's KV cache under a key of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmdd import Cache, CacheKey, CacheManager, LLMConfig, LLMDataDist, LLMException, LLMRole, LLMStatusCode

from .channel import Channel
from .messages import (
    AllServed,
    DecodeDied,
    Finish,
    Listening,
    Message,
    Prefilled,
    Pulled,
    Request,
    UnexpectedMessage,
)
from .process import GivenUp
from .released import PoolState, PrefillReleased, Recovery
from .settings import ANY_FREE_PORT, PREFILL_CLUSTER_ID, Settings
from .transformer import SequenceCache, greedy

NO_REQUEST = 2**64 - 1
"""The ``req_id`` of a placeholder, for a batch slot without a request (seed §10)."""

RECOVERY_LIMIT_SECONDS = 10.0
RECOVERY_LOOK_SECONDS = 0.002


def request_key(req_id: int) -> CacheKey:
    """The key under which prefill offers a request, and decode pulls it."""
    return CacheKey(PREFILL_CLUSTER_ID, req_id=req_id)


def run(channel: Channel, settings: Settings, requests: Sequence[Request], listen_at: str = ANY_FREE_PORT) -> None:
    """Listen for decode at ``listen_at``, serve ``requests``, then let go of everything."""
    with LLMDataDist(LLMRole.PROMPT, PREFILL_CLUSTER_ID) as datadist:
        initialise(datadist, settings.prefill_config(listen_at))
        if datadist.listen_address is None:
            raise RuntimeError("prefill was told to listen and does not")
        worker = PrefillWorker(channel, settings, datadist.cache_manager)
        channel.send(Listening(datadist.listen_address))
        worker.serve(requests)
        channel.send(worker.wait_until_released())
        farewell = channel.receive()
        if not isinstance(farewell, Finish):
            raise UnexpectedMessage(farewell)


def initialise(datadist: LLMDataDist, config: LLMConfig) -> None:
    """Initialise an instance of llmdd; :class:`GivenUp` with its reason if it refuses."""
    try:
        datadist.init(config.generate_options())
    except LLMException as refusal:
        raise GivenUp(str(refusal)) from refusal


class PrefillWorker:
    """Prompts in, KV caches out, in a pool that holds far fewer than there are requests.

    Parameters
    ----------
    channel
        To the orchestrator.
    settings
        Of the run.
    manager
        Of prefill's own, initialised cluster.
    """

    def __init__(self, channel: Channel, settings: Settings, manager: CacheManager) -> None:
        self._channel = channel
        self._settings = settings
        self._manager = manager
        self._transformer = settings.transformer()
        self._offered: set[int] = set()
        self._decode_died = False
        self._all_served = False
        self._waits = 0

    def serve(self, requests: Sequence[Request]) -> None:
        """Offer every request's KV cache, as soon as there is memory for it, while there is somebody to pull it."""
        for start in range(0, len(requests), self._settings.batch):
            self._hear_what_has_arrived()
            batch = requests[start : start + self._settings.batch]
            cache = self._allocate(batch)
            if cache is None:
                return
            prefilled = self._read_prompts(batch, cache)
            # From here on the keys alone keep the cache: its memory comes back with the last pull (seed §1).
            self._manager.deallocate_cache(cache)
            for message in prefilled:
                self._offered.add(message.req_id)
                self._channel.send(message)

    def _allocate(self, batch: Sequence[Request]) -> Cache | None:
        """A cache with one key for each request, waiting for memory if need be; None once nobody is left to pull it."""
        size = self._settings.batch
        keys = [request_key(request.req_id) for request in batch]
        keys += [request_key(NO_REQUEST)] * (size - len(keys))
        while not self._decode_died:
            try:
                return self._manager.allocate_cache(self._settings.cache_desc(size), keys)
            except LLMException as refusal:
                # With nothing on offer no pull will bring memory back, so that waiting would never end.
                if refusal.status_code != LLMStatusCode.LLM_OUT_OF_MEMORY or not self._offered:
                    raise
            self._waits += 1
            self._hear(self._channel.receive())
        return None

    def _read_prompts(self, batch: Sequence[Request], cache: Cache) -> list[Prefilled]:
        """Compute each request's keys and values straight into its batch slot.

        The NumPy views of the cache end with this method; each would keep its memory from going back.
        """
        tensors = cache.tensors
        for tensor in tensors:
            tensor.fill(0)  # a pull moves the whole slot: behind the prompt there must be nothing of an earlier request
        prefilled = []
        for slot, request in enumerate(batch):
            logits = self._transformer.forward(list(request.prompt), 0, SequenceCache.of_slot(tensors, slot))
            prefilled.append(Prefilled(request.req_id, len(request.prompt), greedy(logits)))
        return prefilled

    def wait_until_released(self) -> PrefillReleased:
        """Wait for the end of the run, or for decode's death, and tell what is free when all references are gone."""
        while not (self._all_served or self._decode_died):
            self._hear(self._channel.receive())
        recovery = self._recover() if self._decode_died else None
        self._manager.check()
        return PrefillReleased(self._pool_state(), self._waits, recovery)

    def _recover(self) -> Recovery:
        """Take back what was meant for a decode process that has died."""
        started = time.monotonic()
        orphaned_bytes = self._pool_state().taken_bytes
        orphaned_keys = [key for key in map(request_key, self._offered) if self._manager.lookup(key) is not None]
        for key in orphaned_keys:
            self._manager.remove_cache_key(key)
        # A transfer that the dead process had under way pins its cache until llmdd hears of the death as well.
        while self._pool_state().taken_bytes and time.monotonic() < started + RECOVERY_LIMIT_SECONDS:
            unexpected = self._channel.receive_within(RECOVERY_LOOK_SECONDS)
            if unexpected is not None:
                raise UnexpectedMessage(unexpected)
        return Recovery(orphaned_bytes, len(orphaned_keys), time.monotonic() - started)

    def _pool_state(self) -> PoolState:
        usage = self._manager.pool_usage()
        return PoolState(usage.total_bytes, usage.free_bytes)

    def _hear_what_has_arrived(self) -> None:
        while (message := self._channel.receive_within(0)) is not None:
            self._hear(message)

    def _hear(self, message: Message) -> None:
        match message:
            case Pulled():
                self._offered.remove(message.req_id)
            case DecodeDied():
                self._decode_died = True
            case AllServed():
                self._all_served = True
            case _:
                raise UnexpectedMessage(message)
