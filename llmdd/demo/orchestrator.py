"""Starts the processes of a run, passes requests from prefill to decode, and watches over everybody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, cast

from . import decode, prefill, reference
from .channel import Channel, OtherEndGone
from .messages import (
    AllServed,
    DecodeDied,
    DecodeReleased,
    Failed,
    Finish,
    Generated,
    Listening,
    Message,
    Prefilled,
    PrefillReleased,
    Pulled,
    Request,
    UnexpectedMessage,
    Verify,
)
from .process import run_process
from .report import Report
from .settings import Settings

SILENCE_LIMIT_SECONDS = 120.0
"""A run in which no process has anything to say for this long is given up."""

END_LIMIT_SECONDS = 10.0
"""A process whose work is done has this long to end."""

ONE_BLAS_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


class DemoFailed(Exception):
    """The run could not be brought to its end; the message tells why."""


@dataclass
class Progress:
    """How far a run has come."""

    requests: int
    tokens: int
    prefilled: int = 0
    pulled: int = 0
    generated: int = 0
    running: int = 0
    verified: int = 0
    to_verify: int = 0
    decode_killed: bool = False


class Child:
    """A process of the run, and the channel to it."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.name = name
        self.channel = Channel(ours)
        self.process = context.Process(
            target=run_process, args=(target, theirs, *arguments), name=f"llmdd demo: {name}", daemon=True
        )
        with spawning(theirs):
            self.process.start()

    def tell(self, message: Message) -> None:
        # If the process has gone, the channel tells when it is heard next, after all that the process had still to say.
        with suppress(OtherEndGone):
            self.channel.send(message)

    def end(self) -> int | None:
        """Wait for the process to end by itself and return its exit status; None if it does not."""
        self.process.join(END_LIMIT_SECONDS)
        return self.process.exitcode

    def fate(self) -> str:
        """What became of a process that did not end well."""
        status = self.process.exitcode
        if status is None:
            return f"the {self.name} process did not end"
        if status < 0:
            return f"the {self.name} process was ended by signal {signal.Signals(-status).name}"
        return f"the {self.name} process ended early, with status {status}"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
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


def run(prompts: Sequence[bytes], settings: Settings, kill_decode: bool, observe: Callable[[Progress], None]) -> Report:
    """Serve ``prompts`` with a prefill and a decode process, then compare with a single process.

    Parameters
    ----------
    prompts
        At least one, each short enough for ``settings.context``.
    settings
        Of the run.
    kill_decode
        Kill the decode process with SIGKILL when it has pulled half of the requests.
    observe
        Called with the progress whenever there is some.

    Raises
    ------
    DemoFailed
        A process failed, ended, or fell silent, unexpectedly. None is left behind.
    """
    with Orchestrator(prompts, settings, kill_decode, observe) as orchestrator:
        released = orchestrator.serve()
        expected = orchestrator.verify()
        orchestrator.finish()
        return orchestrator.report(*released, expected)


class Orchestrator:
    """The processes of one run; all of them have ended when the context is left, in whatever way."""

    def __init__(
        self, prompts: Sequence[bytes], settings: Settings, kill_decode: bool, observe: Callable[[Progress], None]
    ) -> None:
        self._requests = [Request(number, prompt) for number, prompt in enumerate(prompts, start=1)]
        self._settings = settings
        self._kill_after = -(-len(prompts) // 2) if kill_decode else None
        self._observe = observe
        self._progress = Progress(len(prompts), len(prompts) * settings.tokens)
        self._children: list[Child] = []
        self._tokens: dict[int, list[int]] = {}
        self._pull_nanoseconds: list[int] = []
        self._heard_out: set[Child] = set()

    def __enter__(self) -> Orchestrator:
        try:
            self._prefill = self._start("prefill", prefill.run, self._settings, self._requests)
            self._decode = self._start("decode", decode.run, self._settings, len(self._requests))
            self._reference = self._start("reference", reference.run, self._settings)
        except BaseException:
            self._kill_all()
            raise
        return self

    def _start(self, name: str, target: Callable[..., None], *arguments: Any) -> Child:
        child = Child(name, target, *arguments)
        self._children.append(child)
        return child

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill_all()

    def _kill_all(self) -> None:
        for child in self._children:
            child.kill()

    def serve(self) -> tuple[PrefillReleased, DecodeReleased | None]:
        """Let prefill and decode serve every request and let go of everything; return what they have said last."""
        decode_released = None
        while True:
            _, message = self._next()
            match message:
                case None:
                    self._progress.running = 0
                    self._prefill.tell(DecodeDied())
                case Listening():
                    self._decode.tell(message)
                case Prefilled():
                    self._progress.prefilled += 1
                    if not self._progress.decode_killed:
                        self._decode.tell(message)
                case Pulled():
                    self._note_pull(message)
                case Generated():
                    self._note_tokens(message)
                case DecodeReleased():
                    decode_released = message
                    self._prefill.tell(AllServed())
                case PrefillReleased():
                    return message, decode_released
                case _:
                    raise UnexpectedMessage(message)
            self._observe(self._progress)

    def _note_pull(self, message: Pulled) -> None:
        self._pull_nanoseconds.append(message.nanoseconds)
        self._progress.pulled += 1
        self._prefill.tell(message)
        if self._progress.pulled == self._kill_after:
            self._decode.process.kill()
            self._progress.decode_killed = True

    def _note_tokens(self, message: Generated) -> None:
        for req_id, token in message.tokens.items():
            self._tokens.setdefault(req_id, []).append(token)
        self._progress.generated += len(message.tokens)
        self._progress.running = message.running

    def verify(self) -> dict[int, list[int]]:
        """The tokens of a single process for everything that decode has answered."""
        self._progress.to_verify = self._progress.generated
        expected: dict[int, list[int]] = {}
        for request in self._requests:
            if request.req_id not in self._tokens:
                continue
            tokens = expected[request.req_id] = []
            count = len(self._tokens[request.req_id])
            self._reference.tell(Verify(request, count))
            while len(tokens) < count:
                child, message = self._next()
                if child is not self._reference or not isinstance(message, Generated):
                    raise UnexpectedMessage(message)
                tokens.append(message.tokens[request.req_id])
                self._progress.verified += 1
                self._observe(self._progress)
        return expected

    def finish(self) -> None:
        """Let the processes end, and see that they do."""
        remaining = [child for child in self._children if child not in self._heard_out]
        for child in remaining:
            child.tell(Finish())
        for child in remaining:
            if child.end() != 0:
                raise DemoFailed(child.fate())

    def report(self, prefill: PrefillReleased, decode: DecodeReleased | None, expected: dict[int, list[int]]) -> Report:
        """What the run has shown, given what prefill and decode said last and the tokens of the single process."""
        different = {req_id for req_id, tokens in expected.items() if self._tokens[req_id] != tokens}
        if not self._progress.decode_killed:
            answered = {req_id for req_id, tokens in self._tokens.items() if len(tokens) == self._settings.tokens}
            different |= {request.req_id for request in self._requests} - answered
        return Report(
            requests=self._progress.pulled,
            tokens=self._progress.generated,
            different=tuple(sorted(different)),
            slot_bytes=self._settings.slot_bytes,
            pull_nanoseconds=tuple(self._pull_nanoseconds),
            prefill=prefill,
            decode=None if self._progress.decode_killed else decode,
        )

    def _next(self) -> tuple[Child, Message | None]:
        """The next message and who says it; None for the end of a decode process that was killed on purpose.

        What a process said before it ended is heard first, since its channel ends after the last message.
        """
        children = {child.channel.connection: child for child in self._children if child not in self._heard_out}
        ready = wait(list(children), SILENCE_LIMIT_SECONDS)
        if not ready:
            raise DemoFailed(f"no process has said anything for {SILENCE_LIMIT_SECONDS:.0f} seconds")
        child = children[cast(Connection, ready[0])]
        try:
            message = child.channel.receive()
        except OtherEndGone:
            child.end()
            if child is not self._decode or not self._progress.decode_killed:
                raise DemoFailed(child.fate()) from None
            self._heard_out.add(child)
            return child, None
        if isinstance(message, Failed):
            raise DemoFailed(f"the {child.name} process failed:\n{message.traceback}")
        return child, message
