"""Processes of the soak that do something wrong, each what its class says: the soak must find it."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from typing import Any

from llmdd.bench.soak_worker import Instance, Worker, main
from llmdd.bench.stamped_rows import Bytes
from llmdd.bench.workload import Request

from llmdd import Cache, LLMException, LLMStatusCode

#: Beyond the deadline and the margin of the tests.
LATE_S = 0.4


class Wrong(Worker):
    """Much is wrong, each of it with other requests, and all of it so that the run goes on."""

    leaked = False

    @staticmethod
    def _write(instance: Instance, request: Request, tensors: list[Bytes]) -> None:
        """One bit of a row is another when it is written."""
        Worker._write(instance, request, tensors)
        if request.number % 6 == 0:
            tensors[-1][request.used[-1]][-1] ^= 1

    def _pull(self, instance: Instance, request: Request, cache: Cache, *others: Any) -> None:
        """Bytes are written beside where they belong; a call is late; a code has no reason."""
        if request.number % 6 == 1:
            recorder = self.recorder(instance)
            recorder.make("pull_cache", partial(time.sleep, LATE_S), there=1)
        if request.number % 6 == 2:
            self.recorder(instance).make("pull_cache", refuse, there=1)
        super()._pull(instance, request, cache, *others)
        if request.number % 6 == 3:
            for tensor in cache.tensors:
                tensor[0][-1] = tensor[-1][-1] = 0

    def offer(self, request: int) -> dict[str, Any]:
        """Keys are gone before they are pulled."""
        answer = super().offer(request)
        if request % 6 == 4:
            self.withdraw(request)
        return answer

    def _deallocate(self, instance: Instance, cache: Cache) -> None:
        """The first cache that was pulled into is not given back."""
        if self.leaked:
            super()._deallocate(instance, cache)
        self.leaked = True

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
