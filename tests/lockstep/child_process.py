"""The library's side in a process of its own, commanded over a pipe."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

from .library_side import LibrarySide
from .terms import Side

#: A child that has not answered after so long hangs.
PATIENCE_S = 120.0

_processes = multiprocessing.get_context("forkserver")


class ChildProcess:
    """A process in which nodes live."""

    def __init__(self) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def side(self) -> Side:
        """The nodes that live there."""
        return cast(Side, _Remote(self.ask))

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the child's :class:`LibrarySide` returns."""
        try:
            self._pipe.send((method, arguments))
            assert self._pipe.poll(PATIENCE_S), f"{method} has not been answered for {PATIENCE_S} s"
            answer, failure = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(PATIENCE_S)
            raise AssertionError(f"the process ended with {self._process.exitcode} during {method}") from None
        assert failure is None, f"in the child process:\n{failure}"
        return answer

    def kill(self) -> None:
        """End the process with SIGKILL, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


class Children:
    """Child processes that wait for nodes to live in them: a program takes longer to start than most examples take."""

    def __init__(self) -> None:
        self._idle: list[ChildProcess] = []

    def take(self) -> ChildProcess:
        return self._idle.pop() if self._idle else ChildProcess()

    def give_back(self, child: ChildProcess) -> None:
        """Let other nodes live in it."""
        child.ask("forget")
        self._idle.append(child)

    def kill_all(self) -> None:
        while self._idle:
            self._idle.pop().kill()


class _Remote:
    """Each method of a :class:`Side`, carried out elsewhere."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._ask, method)


def _serve(pipe: Connection) -> None:
    faulthandler.enable()
    logging.getLogger("llmdd").setLevel(logging.CRITICAL)
    nodes = LibrarySide()
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        answer, failure = None, None
        try:
            answer = getattr(nodes, method)(*arguments)
        except Exception:
            failure = traceback.format_exc()
        pipe.send((answer, failure))
