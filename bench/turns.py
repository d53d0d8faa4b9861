"""Who is looked up next: everybody, in an order that neither caches nor prefetchers of a processor foresee."""

from __future__ import annotations

import random
from itertools import cycle, islice


class Turns:
    """The numbers below `count` in the random order of `seed`, again and again.

    A taker goes on where it left off, so that among a million it always comes upon cold ones.
    """

    def __init__(self, count: int, seed: int) -> None:
        order = list(range(count))
        random.Random(seed).shuffle(order)
        self._numbers = cycle(order)

    def next(self, count: int) -> list[int]:
        return list(islice(self._numbers, count))
