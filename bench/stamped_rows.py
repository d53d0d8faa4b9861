"""Rows of bytes that say whose they are, and carry a checksum of that and of all their content.

Whoever receives a row can tell that every byte of it is right, and of one that is not, whose bytes arrived instead.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

#: What a row begins with: the five of its stamp, then the checksum.
HEADER = struct.Struct("<QQIIQI")
CHECKSUM = struct.Struct("<I")
SMALLEST_ROW = 64

#: What stands where nothing was written.
UNTOUCHED = 0xEE

#: What content is taken from: random, and larger than the largest row.
SOURCE_BYTES = 4 << 20


class Stamp(NamedTuple):
    """Whose a row is: one of a tensor of a request's cache, made by one incarnation of an instance."""

    incarnation: int
    request: int
    tensor: int
    row: int

    def header(self, size: int) -> bytes:
        return HEADER.pack(*self, size, 0)[: -CHECKSUM.size]


class Stamper:
    """Writes rows."""

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._source = np.frombuffer(np.random.default_rng(incarnation).bytes(SOURCE_BYTES), np.uint8)

    def write(self, row: Bytes, request: int, tensor: int, place: int) -> None:
        """Make `row` that row of a request's cache."""
        stamp = Stamp(self._incarnation, request, tensor, place)
        header = stamp.header(row.size)
        begin = (request * 7919 + tensor * 104729 + place * 611953) % (SOURCE_BYTES - row.size)
        row[HEADER.size :] = self._source[begin : begin + row.size - HEADER.size]
        checksum = zlib.crc32(row[HEADER.size :].data, zlib.crc32(header))
        row[: HEADER.size] = np.frombuffer(header + CHECKSUM.pack(checksum), np.uint8)


def flaw(row: Bytes, expected: Stamp) -> str | None:
    """What is wrong with a row, or None."""
    *found, size, checksum = HEADER.unpack(row[: HEADER.size].tobytes())
    stamp = Stamp(*found)
    if stamp != expected or size != row.size:
        if (row == UNTOUCHED).all():
            return f"instead of {expected} nothing has arrived"
        return f"instead of {expected}, {row.size} bytes, there is {stamp}, {size} bytes"
    if zlib.crc32(row[HEADER.size :].data, zlib.crc32(stamp.header(size))) != checksum:
        return f"bytes of {expected} are not those that its checksum is of"
    return None


def touched(row: Bytes) -> bool:
    """Whether anything was written where nothing should have been."""
    return not bool((row == UNTOUCHED).all())
