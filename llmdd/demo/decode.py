"""The decode process: pulls each request's KV cache into a slot of its running batch and generates."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from llmdd import Cache, CacheManager, LLMClusterInfo, LLMDataDist, LLMRole, LLMStatusCode

from .channel import Channel
from .messages import Finish, Generated, Linked, Listening, Prefilled, Pulled, UnexpectedMessage
from .prefill import initialise, request_key
from .process import GivenUp
from .released import DecodeReleased, PoolState
from .settings import DECODE_CLUSTER_ID, PREFILL_CLUSTER_ID, Settings
from .transformer import SequenceCache, greedy

LINK_TIMEOUT_MS = 20_000


def run(channel: Channel, settings: Settings, requests: int) -> None:
    """Link to prefill, generate for as many ``requests`` as there will be, then let go of everything."""
    with LLMDataDist(LLMRole.DECODER, DECODE_CLUSTER_ID) as datadist:
        initialise(datadist, settings.decode_config())
        manager = datadist.cache_manager
        cache = manager.allocate_cache(settings.cache_desc(settings.slots))
        listening = channel.receive()
        if not isinstance(listening, Listening):
            raise UnexpectedMessage(listening)
        prefill = prefill_cluster(listening)

        with LinkLog() as log:
            log.expect_success(datadist.link_clusters([prefill], timeout=LINK_TIMEOUT_MS))
        channel.send(Linked(datadist.transports[PREFILL_CLUSTER_ID]))
        RunningBatch(channel, settings, manager, cache).serve(requests)
        with LinkLog() as log:
            log.expect_success(datadist.unlink_clusters([prefill], timeout=LINK_TIMEOUT_MS))

        manager.deallocate_cache(cache)
        manager.check()
        usage = manager.pool_usage()
        channel.send(DecodeReleased(PoolState(usage.total_bytes, usage.free_bytes)))
        farewell = channel.receive()
        if not isinstance(farewell, Finish):
            raise UnexpectedMessage(farewell)


def prefill_cluster(listening: Listening) -> LLMClusterInfo:
    """Prefill's cluster, as a client describes it to ``link_clusters``."""
    host, port = listening.address
    cluster = LLMClusterInfo()
    cluster.remote_cluster_id = PREFILL_CLUSTER_ID
    cluster.append_local_ip_info(listening.local_host, 0)
    cluster.append_remote_ip_info(host, port)
    return cluster


class LinkLog(logging.Handler):
    """What llmdd says of links while the context lasts: the calls return codes, and their reasons are in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._reasons.append(record.getMessage())

    def __enter__(self) -> LinkLog:
        logging.getLogger("llmdd.link").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("llmdd.link").removeHandler(self)

    def expect_success(self, result: tuple[LLMStatusCode, list[LLMStatusCode]]) -> None:
        """:class:`GivenUp` if a call that links or unlinks has not succeeded."""
        code, _ = result
        if code != LLMStatusCode.LLM_SUCCESS:
            raise GivenUp("\n".join(self._reasons) or code.name)


@dataclass
class RunningSequence:
    """A request in the running batch: ``length`` tokens stand in its slot, ``token`` is to follow them."""

    req_id: int
    length: int
    token: int
    remaining: int


class RunningBatch:
    """Continuous batching: sequences join at any step, in any free slot, and leave when they are done.

    Parameters
    ----------
    channel
        To the orchestrator.
    settings
        Of the run.
    manager
        Of decode's own cluster, linked to prefill's.
    cache
        With one batch slot for each slot of the running batch.
    """

    def __init__(self, channel: Channel, settings: Settings, manager: CacheManager, cache: Cache) -> None:
        self._channel = channel
        self._settings = settings
        self._manager = manager
        self._cache = cache
        self._transformer = settings.transformer()
        tensors = cache.tensors
        for tensor in tensors:
            tensor.fill(0)  # so that a first touch of the memory is not counted among the pulls
        self._slot_caches = [SequenceCache.of_slot(tensors, slot) for slot in range(settings.slots)]
        self._running: dict[int, RunningSequence] = {}
        self._free_slots = deque(range(settings.slots))
        self._waiting: deque[Prefilled] = deque()

    def serve(self, requests: int) -> None:
        """Generate until ``requests`` of them are done."""
        unfinished = requests
        while unfinished:
            self._hear_of_requests()
            tokens = self._step()
            tokens.update(self._join())
            unfinished -= self._leave()
            self._channel.send(Generated(tokens, running=len(self._running)))

    def _hear_of_requests(self) -> None:
        """Note what can be pulled; wait for something only when there is nothing else to do."""
        if not self._running and not self._waiting:
            self._note(self._channel.receive())
        while (message := self._channel.receive_within(0)) is not None:
            self._note(message)

    def _note(self, message: object) -> None:
        if not isinstance(message, Prefilled):
            raise UnexpectedMessage(message)
        self._waiting.append(message)

    def _step(self) -> dict[int, int]:
        """One more token for every running sequence, by request."""
        tokens = {}
        for slot, sequence in self._running.items():
            logits = self._transformer.forward([sequence.token], sequence.length, self._slot_caches[slot])
            sequence.length += 1
            sequence.token = tokens[sequence.req_id] = greedy(logits)
            sequence.remaining -= 1
        return tokens

    def _join(self) -> dict[int, int]:
        """Pull waiting requests into free slots. Each brings its first token, which prefill has computed."""
        tokens = {}
        while self._waiting and self._free_slots:
            prefilled = self._waiting.popleft()
            slot = self._free_slots.popleft()
            started = time.perf_counter_ns()
            self._manager.pull_cache(request_key(prefilled.req_id), self._cache, batch_index=slot)
            self._channel.send(Pulled(prefilled.req_id, time.perf_counter_ns() - started))
            self._running[slot] = RunningSequence(
                prefilled.req_id, prefilled.length, prefilled.token, self._settings.tokens - 1
            )
            tokens[prefilled.req_id] = prefilled.token
        return tokens

    def _leave(self) -> int:
        """Free the slots of finished sequences and tell how many finished."""
        finished = [slot for slot, sequence in self._running.items() if sequence.remaining == 0]
        for slot in finished:
            del self._running[slot]
        self._free_slots.extend(finished)
        return len(finished)
