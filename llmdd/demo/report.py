"""What a run has shown."""

from __future__ import annotations

from typing import Annotated, TypedDict

import numpy as np
from msgspec import Meta, Struct

from .prompts import MAX_PROMPTS
from .released import Count, DecodeReleased, PrefillReleased

Host = Annotated[str, Meta(max_length=64)]


class PullLatency(TypedDict):
    """Microseconds around ``pull_cache``, in the decode process."""

    median: float
    p99: float


class ReportObject(TypedDict):
    """The report as ``llmdd demo --json`` prints it."""

    identical: bool
    requests: int
    tokens: int
    bytes_moved: int
    transport: str
    seconds: float
    pull_latency_us: PullLatency
    rate_gb_s: float
    leaked_bytes: int


class Report(Struct, frozen=True, tag="report"):
    """The outcome of a run.

    Parameters
    ----------
    requests
        Whose KV cache decode has pulled.
    tokens
        That decode has generated for them, the first of each computed by prefill.
    different
        The requests, by ``req_id``, whose tokens are not those of the single process.
    slot_bytes
        What one pull has moved.
    pull_nanoseconds
        How long each pull took.
    prefill, decode
        What was left in the pools after the last reference was dropped. A killed decode process leaves no pool.
    transport
        What the KV caches travelled by.
    seconds
        From the moment when prefill could be linked to until it had let go of everything.
    hosts
        Where prefill and decode ran, if not in processes started by one command.
    """

    requests: Count
    tokens: Count
    different: Annotated[tuple[Count, ...], Meta(max_length=MAX_PROMPTS)]
    slot_bytes: Count
    pull_nanoseconds: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=MAX_PROMPTS)]
    prefill: PrefillReleased
    decode: DecodeReleased | None
    transport: Annotated[str, Meta(max_length=64)]
    seconds: float
    hosts: tuple[Host, Host] | None = None

    @property
    def identical(self) -> bool:
        """Whether every token is the one that the single process generates."""
        return not self.different

    @property
    def leaked_bytes(self) -> int:
        """Memory that no reference holds and no pool has got back."""
        return sum(released.pool.taken_bytes for released in (self.prefill, self.decode) if released is not None)

    @property
    def passed(self) -> bool:
        return self.identical and self.leaked_bytes == 0

    @property
    def bytes_moved(self) -> int:
        return self.slot_bytes * len(self.pull_nanoseconds)

    @property
    def rate_gb_s(self) -> float:
        """Gigabytes (1e9 bytes) moved for each second spent pulling."""
        return self.bytes_moved / sum(self.pull_nanoseconds)

    def pull_latency_us(self, percentile: float) -> float:
        """The time within which ``percentile`` percent of the pulls were done, in microseconds."""
        return float(np.percentile(self.pull_nanoseconds, percentile)) / 1000

    def as_object(self) -> ReportObject:
        return ReportObject(
            identical=self.identical,
            requests=self.requests,
            tokens=self.tokens,
            bytes_moved=self.bytes_moved,
            transport=self.transport,
            seconds=round(self.seconds, 3),
            pull_latency_us=PullLatency(
                median=round(self.pull_latency_us(50), 1), p99=round(self.pull_latency_us(99), 1)
            ),
            rate_gb_s=round(self.rate_gb_s, 3),
            leaked_bytes=self.leaked_bytes,
        )
