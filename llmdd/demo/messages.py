"""Everything the processes of a run say to each other. The bytes of a KV cache are never among it: llmdd moves those.

==============  ==========================  ===========================================================================
from            to                          messages
==============  ==========================  ===========================================================================
prefill         orchestrator                Listening, Prefilled, PrefillReleased
orchestrator    prefill                     Pulled, AllServed, DecodeDied, Finish
orchestrator    decode                      Listening, Prefilled, Finish
decode          orchestrator                Pulled, Generated, DecodeReleased
orchestrator    reference                   Verify, Finish
reference       orchestrator                Generated
any             orchestrator                Failed
==============  ==========================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A prompt to answer. ``req_id`` is also the request's number in its cache key."""

    req_id: int
    prompt: bytes


@dataclass(frozen=True)
class Listening:
    """Prefill can be linked to at ``address``."""

    address: tuple[str, int]


@dataclass(frozen=True)
class Prefilled:
    """The KV cache of a request's ``length`` prompt tokens can be pulled by its key; ``token`` is to follow them."""

    req_id: int
    length: int
    token: int


@dataclass(frozen=True)
class Pulled:
    """Decode has pulled a request's KV cache, in ``nanoseconds``; prefill's key for it is gone."""

    req_id: int
    nanoseconds: int


@dataclass(frozen=True)
class Generated:
    """One more token for each of some requests, by ``req_id``, and how many requests stay in the running batch."""

    tokens: Mapping[int, int]
    running: int


@dataclass(frozen=True)
class AllServed:
    """Decode has pulled everything, answered every request and unlinked."""


@dataclass(frozen=True)
class DecodeDied:
    """The decode process has died: nobody will pull what is on offer."""


@dataclass(frozen=True)
class Verify:
    """Answer ``request`` with ``count`` tokens in a process that has everything to itself."""

    request: Request
    count: int


@dataclass(frozen=True)
class Finish:
    """Nothing more will be asked of this process: it may end."""


@dataclass(frozen=True)
class PoolState:
    """How much of a pool is free."""

    total_bytes: int
    free_bytes: int

    @property
    def taken_bytes(self) -> int:
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True)
class Recovery:
    """What prefill took back after decode's death.

    ``orphaned_bytes`` were taken, and ``orphaned_keys`` bound, for nobody; ``seconds`` later nothing was, or prefill
    stopped waiting.
    """

    orphaned_bytes: int
    orphaned_keys: int
    seconds: float


@dataclass(frozen=True)
class PrefillReleased:
    """Prefill has let go of everything. ``waits`` is how often it had to wait for memory before."""

    pool: PoolState
    waits: int
    recovery: Recovery | None


@dataclass(frozen=True)
class DecodeReleased:
    """Decode has let go of everything."""

    pool: PoolState


@dataclass(frozen=True)
class Failed:
    """The process ends because of an error, of which this is the traceback."""

    traceback: str


Message = (
    Listening
    | Prefilled
    | Pulled
    | Generated
    | AllServed
    | DecodeDied
    | Verify
    | Finish
    | PrefillReleased
    | DecodeReleased
    | Failed
)


class UnexpectedMessage(Exception):
    """A message that makes no sense where it arrived."""
