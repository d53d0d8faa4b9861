"""How many transfers that a node has asked for have failed."""

from __future__ import annotations

import threading
from collections import Counter

from llmdd._core.status import LLMStatusCode


class FailedTransfers:
    """Counts them by the status code that the caller was told. Any thread may note one."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._by_status: Counter[LLMStatusCode] = Counter()

    def note(self, status_code: LLMStatusCode) -> None:
        """One more has failed."""
        with self._counting:
            self._by_status[status_code] += 1

    def by_status(self) -> dict[LLMStatusCode, int]:
        """What was counted until now, without what never came about."""
        with self._counting:
            return dict(self._by_status)
