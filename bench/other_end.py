"""The other end of a transfer, in a process of its own: forked, told what to do over a pipe, gone with its maker."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any

from .lifeline import end_with_parent
from .resident import resident

PATIENCE_S = 120.0

#: The memory that each process made here shares with its maker since the fork, which it did not take itself: bytes.
INHERITED: dict[int, int] = {}


class OtherEndFailed(Exception):
    """The other process raised, or ended; the message has its traceback."""


class OtherEndGone(OtherEndFailed):
    """The other process ended, or hangs."""


class OtherEnd:
    """An object that lives in a process forked for it.

    Parameters
    ----------
    factory : callable
        Makes the object, there. Its ``close``, if it has one, is called in the end.
    *arguments, **keywords
        What it is called with. Nothing is pickled: memory that is mapped shared, and descriptors, are shared.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        ours, theirs = Pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            with suppress(BaseException):  # the traceback went through the pipe
                ours.close()
                end_with_parent(parent)
                _serve(theirs, lambda: factory(*arguments, **keywords))
                status = 0
            os._exit(status)
        theirs.close()
        self._pipe = ours
        self._open = True
        INHERITED[self.pid] = self.answer()
        self.answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method returns there."""
        self.tell(method, *arguments)
        return self.answer()

    def tell(self, method: str, *arguments: Any) -> None:
        """Have a method called there, and go on; :meth:`answer` waits for what it returns."""
        self._pipe.send((method, arguments))

    def answer(self) -> Any:
        try:
            if not self._pipe.poll(PATIENCE_S):
                raise OtherEndGone(f"the other process has not answered for {PATIENCE_S:.0f} s")
            value, failure = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise OtherEndGone("the other process ended without an answer") from None
        if failure is not None:
            raise OtherEndFailed(f"in the other process:\n{failure}")
        return value

    def close(self) -> None:
        """Let it close what it has, and wait for its end.

        Raises
        ------
        OtherEndFailed
            If closing failed there. That it is gone already is no failure: whoever needed it has been told.
        """
        if not self._open:
            return
        self._open = False
        try:
            self.call("close")
        except (OtherEndGone, OSError):
            os.kill(self.pid, signal.SIGKILL)
        finally:
            self._pipe.close()
            os.waitpid(self.pid, 0)

    def __enter__(self) -> OtherEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    pipe.send((resident([os.getpid()]).now, None))

    def answer(action: Callable[[], Any]) -> Any:
        try:
            value = action()
        except BaseException:
            pipe.send((None, traceback.format_exc()))
            raise
        return value

    served = answer(make)
    pipe.send((None, None))
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            method, arguments = "close", ()
        if method == "close":
            answer(getattr(served, "close", lambda: None))
            with suppress(OSError):
                pipe.send((None, None))
            return
        try:
            pipe.send((getattr(served, method)(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
