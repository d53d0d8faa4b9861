"""What is left in the pools when the processes of a run have let go of everything."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class PoolState(Struct, frozen=True):
    """How much of a pool is free."""

    total_bytes: Count
    free_bytes: Count

    @property
    def taken_bytes(self) -> int:
        return self.total_bytes - self.free_bytes


class Recovery(Struct, frozen=True):
    """What prefill took back after decode's death.

    ``orphaned_bytes`` were taken, and ``orphaned_keys`` bound, for nobody; ``seconds`` later nothing was, or prefill
    stopped waiting.
    """

    orphaned_bytes: Count
    orphaned_keys: Count
    seconds: float


class PrefillReleased(Struct, frozen=True, tag="prefill released"):
    """Prefill has let go of everything. ``waits`` is how often it had to wait for memory before."""

    pool: PoolState
    waits: Count
    recovery: Recovery | None


class DecodeReleased(Struct, frozen=True, tag="decode released"):
    """Decode has let go of everything."""

    pool: PoolState
