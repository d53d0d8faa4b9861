"""What the soak asks of its processes: requests, each drawn from the seed and its number alone.

So the same seed gives the same requests whatever happens to them, and the one that failed can be looked at by itself.
"""

from __future__ import annotations

from enum import Enum
from random import Random

import msgspec

#: The most batch slots, or blocks, that a request has. A slot's id is the request's number times this, plus its row.
MOST_ROWS = 8

#: What one cache of a request takes at most, so that a pool holds those of several.
LARGEST_CACHE = 8 << 20


class Way(str, Enum):
    """How the bytes of a request come from prefill to decode."""

    PULL = "pull"
    PULL_LAYERS = "pull layer by layer"
    PULL_MANY = "pull many"
    PULL_INTO_BLOCKS = "pull a slot into blocks"
    PULL_BLOCKS = "pull blocks"
    PULL_PREFIX = "pull a prefix"
    SEND_LAYERS = "send layer by layer"
    PULL_BY_ID = "pull by id"
    PUSH = "push"
    PUSH_BLOCKS = "push blocks"
    SEND_LAYERS_BY_KEY = "send layer by layer, by key"

    @property
    def remote(self) -> bool:
        """Whether it is for clusters in remote mode."""
        return self in (Way.PULL_BY_ID, Way.PUSH, Way.PUSH_BLOCKS, Way.SEND_LAYERS_BY_KEY)

    @property
    def pushes(self) -> bool:
        """Whether the prefill side transfers, into room that the decode side has made."""
        return self in (Way.SEND_LAYERS, Way.PUSH, Way.PUSH_BLOCKS, Way.SEND_LAYERS_BY_KEY)

    @property
    def of_blocks(self) -> bool:
        """Whether the cache that is offered is one of blocks, found by its model."""
        return self in (Way.PULL_BLOCKS, Way.PUSH_BLOCKS)


class Fate(str, Enum):
    """What shall become of a request."""

    SERVED = "served"
    ABORTED = "aborted"
    """Before anything of it was transferred."""
    ABANDONED = "abandoned"
    """Its decoder never comes."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request; its cache has as many batch slots, or blocks, as rows."""

    number: int
    way: Way
    fate: Fate
    prefill: int
    decode: int
    tensors: int
    rows: int
    row_bytes: int
    unused: tuple[int, ...]
    """Rows whose keys are placeholders; nobody pulls them."""
    targets: tuple[int, ...]
    """For each row the one that it goes to; the cache there has one more."""
    registered: bool
    """Whether the prefill side's memory is its own, and not of the pool."""
    kept: bool
    """Whether the prefill side keeps its cache by its id too, until the request has ended."""
    leased: bool
    """Whether its keys are bound with a lease, which the decode side keeps; then they are all that keeps its cache."""

    @property
    def used(self) -> tuple[int, ...]:
        return tuple(row for row in range(self.rows) if row not in self.unused)

    def request_id(self, row: int) -> int:
        return self.number * MOST_ROWS + row


#: Most are small, as the rows of a model that is split over many devices are; some are under way when a fault comes.
ROW_BYTES = (256, 1 << 10, 4 << 10, 24 << 10, 64 << 10, 200_000, 512 << 10, 1 << 20)
LIKELIHOODS = (2, 2, 4, 3, 4, 2, 2, 2)


def draw(seed: int, number: int, prefill: int, decode: int) -> Request:
    """Request `number` of a run with so many prefill and decode processes."""
    source = Random(f"{seed}: request {number}")
    way = source.choice(list(Way))
    fate = source.choices(list(Fate), (88, 7, 5))[0]
    row_bytes = source.choices(ROW_BYTES, LIKELIHOODS)[0]
    tensors = source.choice((2, 4, 8))
    rows = min(source.randint(1, MOST_ROWS), max(LARGEST_CACHE // (row_bytes * tensors) - 1, 1))
    targets = source.sample(range(rows + 1), rows)
    registered = source.random() < 0.15
    leased = not (way.pushes or way.of_blocks or registered) and source.random() < 0.6
    may_have_gaps = way in (Way.PULL, Way.PULL_LAYERS, Way.PULL_MANY, Way.PULL_INTO_BLOCKS)
    unused = source.sample(range(rows), source.randint(0, rows - 1)) if may_have_gaps and source.random() < 0.3 else []
    return Request(
        number=number,
        way=way,
        fate=fate,
        prefill=source.randrange(prefill),
        decode=source.randrange(decode),
        tensors=tensors,
        rows=rows,
        row_bytes=row_bytes,
        unused=tuple(sorted(unused)),
        targets=tuple(targets),
        registered=registered,
        kept=way.pushes or way.of_blocks or (not leased and source.random() < 0.3),
        leased=leased,
    )
