"""Waiting awake for what comes soon.

To wake a thread takes a processor that has gone idle, in a virtual machine above all, longer than an answer takes on a
good network: a wait that begins awake ends sooner, and takes less of the processor in all. Where answers take long, or
others want the processor, it is waste. So it is tried, and left out for a while where it was.
"""

from __future__ import annotations

import os
import time

#: How long a wait stays awake.
AWAKE_S = 0.00025

#: How many waits in a row may be left out.
MOST_LEFT_OUT = 7


class Wakefulness:
    """Of the waits of one connection, by turns begun and ended."""

    def __init__(self) -> None:
        self._awake_until = 0.0
        self._penalty = 0
        self._left_out = 0

    def begin(self) -> None:
        """A wait begins."""
        if self._left_out:
            self._left_out -= 1
            self._awake_until = 0.0
        else:
            self._awake_until = time.monotonic() + AWAKE_S

    @property
    def is_awake(self) -> bool:
        """Whether to look again at once, and not to sleep."""
        return time.monotonic() < self._awake_until

    def rest(self) -> None:
        """Between two looks: let others have the processor if they want it."""
        os.sched_yield()

    def end(self) -> None:
        """What was waited for has come."""
        if not self._awake_until:
            return
        if self.is_awake:
            self._penalty //= 2
        else:
            self._penalty = min(2 * self._penalty + 1, MOST_LEFT_OUT)
            self._left_out = self._penalty
        self._awake_until = 0.0
