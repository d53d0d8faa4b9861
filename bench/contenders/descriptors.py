"""Lists of descriptors, as NIXL takes them: a row each, of an address, a length in bytes and a device."""

from __future__ import annotations

from typing import Any

import numpy as np


def merged(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """The same bytes in as few descriptors as their order allows."""
    joined = np.ones(len(ours), bool)
    joined[0] = False
    for descriptors in (ours, theirs):
        joined[1:] &= descriptors[1:, 0] == descriptors[:-1, 0] + descriptors[:-1, 1]
    firsts = np.flatnonzero(~joined)
    lengths = np.add.reduceat(ours[:, 1], firsts)
    found = []
    for descriptors in (ours, theirs):
        found.append(descriptors[firsts])
        found[-1][:, 1] = lengths
    return found[0], found[1]
