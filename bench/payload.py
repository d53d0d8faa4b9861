"""Bytes that differ for every request and at every place, made quickly and alike in both processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .contender import Incorrect

BLOCK_WORDS = 4096

_BASE = np.arange(BLOCK_WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _blocks(memory: npt.NDArray[Any], seed: int) -> list[tuple[npt.NDArray[np.uint64], np.uint64]]:
    words = memory.reshape(-1).view(np.uint64)
    return [
        (words[begin : begin + BLOCK_WORDS], np.uint64((seed << 32) + begin))
        for begin in range(0, words.size, BLOCK_WORDS)
    ]


def fill(memory: npt.NDArray[Any], seed: int) -> None:
    """Fill `memory`, a multiple of 8 bytes, with the payload of `seed`."""
    for block, number in _blocks(memory, seed):
        np.add(_BASE[: block.size], number, out=block)


def require(memory: npt.NDArray[Any], seed: int, what: str) -> None:
    """:class:`~.contender.Incorrect` unless `memory` holds the payload of `seed`, byte for byte."""
    expected = np.empty_like(_BASE)
    for block, number in _blocks(memory, seed):
        np.add(_BASE[: block.size], number, out=expected[: block.size])
        if not np.array_equal(block, expected[: block.size]):
            raise Incorrect(f"{what}: wrong bytes of payload {seed}")
