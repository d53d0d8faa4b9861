"""The processes that the orchestrator talks to: its own children, and those of another host."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from .channel import Channel, OtherEndGone
from .messages import Ended, Failed, KillDecode, Message, UnexpectedMessage
from .process import run_process

END_LIMIT_SECONDS = 10.0
"""A process whose work is done has this long to end."""

ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


class Worker(ABC):
    """A process with its part in a run, and the channel to it."""

    def __init__(self, name: str, channel: Channel) -> None:
        self.name = name
        self.channel = channel

    def tell(self, message: Message) -> None:
        # If the process has gone, the channel tells when it is heard next, after all that the process had still to say.
        with suppress(OtherEndGone):
            self.channel.send(message)

    @abstractmethod
    def strike_down(self) -> None:
        """End the process at once, as ``kill -9`` does. What it has said before can still be heard."""

    @abstractmethod
    def has_ended_well(self) -> bool:
        """Wait for a process that was told to finish to end by itself, and tell whether it does."""

    @abstractmethod
    def fate(self) -> str:
        """What became of a process that did not end well."""

    @abstractmethod
    def dismiss(self) -> None:
        """End the process, whatever it is doing, and hear it no more."""


class Child(Worker):
    """A process that this one starts.

    Parameters
    ----------
    name
        What it is called in messages.
    target, *arguments
        What it calls, after its channel.
    """

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        super().__init__(name, Channel(ours))
        self.process = context.Process(
            target=run_process, args=(target, theirs, *arguments), name=f"llmdd demo: {name}", daemon=True
        )
        with spawning(theirs):
            self.process.start()

    def strike_down(self) -> None:
        self.process.kill()

    def end(self) -> int | None:
        """Wait for the process to end by itself and return its exit status; None if it does not."""
        self.process.join(END_LIMIT_SECONDS)
        return self.process.exitcode

    def has_ended_well(self) -> bool:
        return self.end() == 0

    def fate(self) -> str:
        self.end()  # its channel ends a moment before it does
        status = self.process.exitcode
        if status is None:
            return f"the {self.name} process did not end"
        if status < 0:
            return f"the {self.name} process was ended by signal {signal.Signals(-status).name}"
        return f"the {self.name} process ended early, with status {status}"

    def dismiss(self) -> None:
        self.process.kill()
        self.process.join()
        self.channel.close()


class DistantDecode(Worker):
    """The decode process at the other end of a run on two hosts.

    Its host's end of the run stands between: it passes on what the two say to each other, and outlives the process.

    Parameters
    ----------
    channel
        To the decode end.
    host
        From where that has called.
    """

    def __init__(self, channel: Channel, host: str) -> None:
        super().__init__("decode", channel)
        self._host = host

    def tell_last(self, message: Message) -> None:
        """Tell how the run has ended, and wait until that was heard."""
        self.tell(message)
        self.channel.hear_out(END_LIMIT_SECONDS)

    def strike_down(self) -> None:
        self.tell(KillDecode())

    def has_ended_well(self) -> bool:
        try:
            message = self.channel.receive_within(2 * END_LIMIT_SECONDS)  # it waits there for the process as we do here
        except OtherEndGone:
            return False
        if message is not None and not isinstance(message, Ended | Failed):
            raise UnexpectedMessage(message)
        return isinstance(message, Ended)

    def fate(self) -> str:
        return f"the decode end, at {self._host}, has gone or does not answer"

    def dismiss(self) -> None:
        self.channel.close()


@contextmanager
def spawning(theirs: Connection) -> Iterator[None]:
    """The surroundings in which a process is spawned, since it inherits some of them.

    It has one BLAS thread, ignores the terminal's Ctrl-C from its first moment (the orchestrator ends it), and is
    the only one to hold its end of the channel, so that the channel closes when it ends.
    """
    before = {name: os.environ.get(name) for name in ONE_BLAS_THREAD}
    may_set_signals = threading.current_thread() is threading.main_thread()
    os.environ.update(ONE_BLAS_THREAD)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if may_set_signals else None
    try:
        yield
    finally:
        if may_set_signals:
            signal.signal(signal.SIGINT, interrupt)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        theirs.close()
