"""A process that does what it is told, line by line."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fork_server import ForkedProcess, fork_server

#: A process that has not answered after so long hangs.
ANSWER_PATIENCE_S = 120.0
END_PATIENCE_S = 20.0


class CommandedProcess:
    """Runs a script that reads calls as lines of JSON, and answers each with a line.

    Parameters
    ----------
    script
        Given the settings, as JSON, for its only argument.
    environment
        What is to be in its environment besides what is in ours.
    """

    def __init__(
        self,
        script: str | Path,
        settings: dict[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = ForkedProcess(
            fork_server(), script, [json.dumps(settings)], {**os.environ, **(environment or {})}
        )
        self._children: list[int] = []

    def ask(self, call: str, *arguments: object) -> None:
        """Have a call made; :meth:`answer` waits for its result."""
        self._process.stdin.write((json.dumps([call, *arguments]) + "\n").encode())

    def has_answered(self, patience_s: float = 0.0) -> bool:
        """Whether an answer is there, or the process has ended, or has so within the time."""
        return bool(select.select([self._process.stdout], [], [], patience_s)[0])

    def answer(self) -> Any:
        assert self.has_answered(ANSWER_PATIENCE_S), f"the process has not answered for {ANSWER_PATIENCE_S} s"
        line = self._process.stdout.readline()
        assert line, f"the process has ended with {self._process.wait()}"
        return json.loads(line)

    def call(self, call: str, *arguments: object) -> Any:
        self.ask(call, *arguments)
        return self.answer()

    def fork(self) -> int:
        child: int = self.call("fork")
        self._children.append(child)
        return child

    def freeze(self) -> None:
        self._process.freeze()

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """End in good order if the process lives; leave no child of it behind."""
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        try:
            if self._process.has_ended():
                self._process.wait()
                return
            self.thaw()
            self._process.stdin.close()
            if not self._process.has_ended(END_PATIENCE_S):
                self.kill()
                raise AssertionError(f"the process has not ended for {END_PATIENCE_S} s")
            ended = self._process.wait()
            assert ended == 0, f"the process has ended with {ended}"
        finally:
            self._process.close()
