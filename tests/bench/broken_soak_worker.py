"""Processes of the soak that do something wrong, each what its class says: the soak must find it."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from typing import Any

from llmdd.bench.soak_messages import Settings
from llmdd.bench.soak_worker import Instance, Worker, main
from llmdd.bench.stamped_rows import Bytes
from llmdd.bench.workload import Fate, Request, Way

from llmdd import Cache, LLMException, LLMStatusCode

#: Beyond the deadline and the margin of the tests.
LATE_S = 0.4


class Wrong(Worker):
    """Many things are wrong, each once, and all of them so that the run goes on."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._once = {"byte", "place", "late", "code", "key", "leak", "lease"}
        self._choosing = threading.Lock()

    def _is_now(self, what: str) -> bool:
        with self._choosing:
            chosen = what in self._once
            self._once.discard(what)
            return chosen

    def offer(self, request: int) -> dict[str, Any]:
        """Keys are gone before they are pulled, or before their lease is over."""
        answer = super().offer(request)
        drawn = self._drawn(request)
        by_key = drawn.way in (Way.PULL, Way.PULL_MANY, Way.PULL_LAYERS)
        if drawn.leased and drawn.fate is Fate.ABANDONED and self._is_now("lease"):
            self.withdraw(request)
        if by_key and drawn.fate is Fate.SERVED and self._is_now("key"):
            self.withdraw(request)
        return answer

    def _write(self, instance: Instance, request: Request, tensors: list[Bytes]) -> None:
        """A bit of a row is another than was written."""
        super()._write(instance, request, tensors)
        if request.fate is Fate.SERVED and self._is_now("byte"):
            tensors[-1][request.used[-1]][-1] ^= 1

    def _pull(self, instance: Instance, request: Request, cache: Cache, *others: Any) -> None:
        """A call is late; one has a code for which there is no reason; a byte is written where it does not belong."""
        if self._is_now("late"):
            self.recorder(instance).make("pull_cache", partial(time.sleep, LATE_S), there=1)
        elif self._is_now("code"):
            self.recorder(instance).make("pull_cache", refuse, there=1)
        super()._pull(instance, request, cache, *others)
        if self._is_now("place"):
            (beside,) = set(range(request.rows + 1)) - set(request.targets)
            cache.tensors[0].reshape(request.rows + 1, -1)[beside][-1] = 0

    def _deallocate(self, instance: Instance, cache: Cache) -> None:
        """A cache that was pulled into is not given back."""
        if not self._is_now("leak"):
            super()._deallocate(instance, cache)

    def finalize(self) -> dict[str, Any]:
        """It ends with a status that is not 0."""
        threading.Timer(0.05, os._exit, [4]).start()
        return super().finalize()


def refuse() -> None:
    raise LLMException("planted", status_code=LLMStatusCode.LLM_NOT_YET_LINK)


class Death(Worker):
    """It ends by itself."""

    def _pull(self, *arguments: Any) -> None:
        os._exit(3)


class Hang(Worker):
    """A call does not return."""

    def _pull(self, *arguments: Any) -> None:
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[2], globals()[sys.argv[1]])
