"""What a user may choose about a run, and how the choices of two ends become one."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

MAX_TOKENS = 1024
MAX_BATCH = 64
MAX_SLOTS = 64
MAX_SEED = 2**63 - 1

DEFAULT_TOKENS = 48
DEFAULT_BATCH = 4
DEFAULT_SLOTS = 8
DEFAULT_SEED = 0

Transport = Literal["nixl"]


class Disagreement(ValueError):
    """The two ends of a run were told different things; the message says which."""


class Choices(Struct, frozen=True):
    """What the user has said; None where he has not.

    Parameters
    ----------
    tokens
        How many tokens each request is answered with.
    batch
        Requests in one prefill batch.
    slots
        Batch slots of decode's running batch.
    seed
        Of the model's weights.
    transport
        What KV caches must travel by, though the two processes may share memory.
    kill_decode
        Kill the decode process when it has pulled half of the requests.
    """

    tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    batch: Annotated[int, Meta(ge=1, le=MAX_BATCH)] | None = None
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    transport: Transport | None = None
    kill_decode: bool = False


def agree(prefill: Choices, decode: Choices) -> Choices:
    """What was said at either end.

    Raises
    ------
    Disagreement
        One and the same thing was said differently.

    Examples
    --------
    >>> agree(Choices(tokens=12), Choices(slots=3))
    Choices(tokens=12, batch=None, slots=3, seed=None, transport=None, kill_decode=False)
    """
    return Choices(
        tokens=_one_of("tokens", prefill.tokens, decode.tokens),
        batch=_one_of("batch", prefill.batch, decode.batch),
        slots=_one_of("slots", prefill.slots, decode.slots),
        seed=_one_of("seed", prefill.seed, decode.seed),
        transport=prefill.transport or decode.transport,
        kill_decode=prefill.kill_decode or decode.kill_decode,
    )


def _one_of(option: str, prefill: int | None, decode: int | None) -> int | None:
    if prefill is not None and decode is not None and prefill != decode:
        raise Disagreement(
            f"--{option} is {prefill} at the prefill end and {decode} at the decode end: say the same, or say it at one"
        )
    return decode if prefill is None else prefill
