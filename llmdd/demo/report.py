"""What a run has shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from .messages import DecodeReleased, PrefillReleased


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
    pull_latency_us: PullLatency
    rate_gb_s: float
    leaked_bytes: int


@dataclass(frozen=True)
class Report:
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
    """

    requests: int
    tokens: int
    different: tuple[int, ...]
    slot_bytes: int
    pull_nanoseconds: tuple[int, ...]
    prefill: PrefillReleased
    decode: DecodeReleased | None

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
            pull_latency_us=PullLatency(
                median=round(self.pull_latency_us(50), 1), p99=round(self.pull_latency_us(99), 1)
            ),
            rate_gb_s=round(self.rate_gb_s, 3),
            leaked_bytes=self.leaked_bytes,
        )
