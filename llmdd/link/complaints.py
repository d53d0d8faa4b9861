"""Warnings that peers can cause, so many at a time: what a peer does wrong is logged, and no peer fills the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

#: So many warnings of one kind in :data:`PERIOD_S`. Further ones are told at debug level, and counted.
MAX_COMPLAINTS = 50

PERIOD_S = 10.0


class Complaints:
    """The warnings of one kind. From any thread.

    Parameters
    ----------
    logger
        Where they are told.
    clock
        Seconds that pass, whatever the date is.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._counting = threading.Lock()
        self._period_ends = 0.0
        self._told = 0

    def warn(self, text: str, *arguments: object) -> None:
        """Tell a warning, as ``Logger.warning`` does, unless there were too many."""
        number, withheld = self._number_in_period()
        if withheld:
            self._logger.warning("%d warnings like the next were told at debug level", withheld)
        level = logging.WARNING if number <= MAX_COMPLAINTS else logging.DEBUG
        self._logger.log(level, text, *arguments)
        if number == MAX_COMPLAINTS:
            self._logger.warning("further warnings like this one are told at debug level for up to %s s", PERIOD_S)

    def _number_in_period(self) -> tuple[int, int]:
        """Which warning of its period this is, and how many were too many in the one before, if this is the first."""
        now = self._clock()
        with self._counting:
            withheld = 0
            if now >= self._period_ends:
                withheld = max(0, self._told - MAX_COMPLAINTS)
                self._period_ends, self._told = now + PERIOD_S, 0
            self._told += 1
            return self._told, withheld
