"""A process that does what it is told, line by line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: A process that has not answered after so long hangs.
ANSWER_PATIENCE_S = 120.0
END_PATIENCE_S = 20.0


class CommandedProcess:
    """Runs a script that reads calls as lines of JSON, and answers each with a line.

    Parameters
    ----------
    script
        Given the settings, as JSON, for its only argument.
    within
        What stands before the command, and runs it somewhere else.
    environment
        What is to be in its environment besides what is in ours.
    """

    def __init__(
        self,
        script: str | Path,
        settings: dict[str, Any],
        *,
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, str(script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # whatever has come can be seen to have come
            env={**os.environ, **(environment or {})},
        )
        self._children: list[int] = []

    def ask(self, call: str, *arguments: object) -> None:
        """Have a call made; :meth:`answer` waits for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps([call, *arguments]) + "\n").encode())

    def has_answered(self, patience_s: float = 0.0) -> bool:
        """Whether an answer is there, or the process has ended, or has so within the time."""
        return bool(select.select([self._process.stdout], [], [], patience_s)[0])

    def answer(self) -> Any:
        assert self._process.stdout is not None
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
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End in good order if the process lives; leave no child of it behind."""
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        try:
            if self._process.poll() is None:
                self.thaw()
                self._process.communicate(timeout=END_PATIENCE_S)
                assert self._process.returncode == 0, f"the process has ended with {self._process.returncode}"
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the process has not ended for {END_PATIENCE_S} s") from None
        finally:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
