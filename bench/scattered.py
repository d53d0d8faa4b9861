"""Many pieces of memory, read in one random order and written in another, and whether each arrived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .contender import require
from .payload import fill

#: Filled and looked at in one go: a good deal more would count as memory that a contender takes.
RUN = 256


class Scattered:
    """Which piece goes where.

    Parameters
    ----------
    count : int
    seed : int, optional
        Of both orders; without it piece `i` goes to place `i`, one after the other.

    Attributes
    ----------
    sources, targets : list of int
        Piece ``sources[i]`` goes to place ``targets[i]``.
    """

    def __init__(self, count: int, seed: int | None) -> None:
        self.sources = self.targets = list(range(count))
        if seed is not None:
            order = np.random.default_rng(seed)
            self.sources, self.targets = order.permutation(count).tolist(), order.permutation(count).tolist()
        self._places = np.empty(count, np.int64)
        self._places[self.sources] = self.targets

    def require_arrived(self, places: npt.NDArray[Any], number: int) -> None:
        """Incorrect unless every piece of payload `number` is in its place; `places` is of shape (count, bytes)."""
        for run, seed in runs(len(places), number):
            expected = np.empty((run.stop - run.start, *places.shape[1:]), places.dtype)
            fill(expected, seed)
            arrived = (places[self._places[run]] == expected).all(axis=1)
            wrong = run.start + int(np.argmin(arrived))
            require(bool(arrived.all()), f"place {self._places[wrong]} does not have the bytes of piece {wrong}")


def write(pieces: npt.NDArray[Any], number: int) -> None:
    """Fill pieces, of shape (count, bytes), with payload `number`."""
    for run, seed in runs(len(pieces), number):
        fill(pieces[run], seed)


def runs(count: int, number: int) -> Iterator[tuple[slice, int]]:
    """Pieces that are filled at once, and the seed of what they hold as payload `number`."""
    for begin in range(0, count, RUN):
        yield slice(begin, min(begin + RUN, count)), number * -(-count // RUN) + begin // RUN
