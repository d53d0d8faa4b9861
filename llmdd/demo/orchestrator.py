"""Starts the processes of a run, passes requests from prefill to decode, and watches over everybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, cast

from . import decode, prefill, reference
from .channel import OtherEndGone
from .messages import (
    AllServed,
    DecodeDied,
    Failed,
    Finish,
    Generated,
    Linked,
    Listening,
    Message,
    Prefilled,
    Progress,
    Pulled,
    Request,
    UnexpectedMessage,
    Verify,
)
from .released import DecodeReleased, PrefillReleased
from .report import Report
from .settings import ANY_FREE_PORT, Settings
from .worker import Child, Worker

SILENCE_LIMIT_SECONDS = 120.0
"""A run in which no process has anything to say for this long is given up."""


FROM_DISTANT_DECODE = (Linked, Pulled, Generated, DecodeReleased, DecodeDied)


class DemoFailed(Exception):
    """The run could not be brought to its end; the message tells why."""


def run(
    prompts: Sequence[bytes],
    settings: Settings,
    kill_decode: bool,
    observe: Callable[[Progress], None],
    *,
    listen_at: str = ANY_FREE_PORT,
    distant_decode: Worker | None = None,
) -> Report:
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
    listen_at
        Where prefill is to be linked to, ``host:port``.
    distant_decode
        The decode process, if it runs on another host. It is for the caller to dismiss.

    Raises
    ------
    DemoFailed
        A process failed, ended, or fell silent, unexpectedly. None is left behind.
    """
    with Orchestrator(prompts, settings, kill_decode, observe, listen_at, distant_decode) as orchestrator:
        released = orchestrator.serve()
        expected = orchestrator.verify()
        orchestrator.finish()
        return orchestrator.report(*released, expected)


class Orchestrator:
    """The processes of one run; those of this host have ended when the context is left, in whatever way."""

    def __init__(
        self,
        prompts: Sequence[bytes],
        settings: Settings,
        kill_decode: bool,
        observe: Callable[[Progress], None],
        listen_at: str,
        distant_decode: Worker | None,
    ) -> None:
        self._requests = [Request(number, prompt) for number, prompt in enumerate(prompts, start=1)]
        self._settings = settings
        self._kill_after = -(-len(prompts) // 2) if kill_decode else None
        self._observe = observe
        self._progress = Progress(len(prompts), len(prompts) * settings.tokens)
        self._listen_at = listen_at
        self._distant_decode = distant_decode
        self._children: list[Child] = []
        self._tokens: dict[int, list[int]] = {}
        self._pull_nanoseconds: list[int] = []
        self._heard_out: set[Worker] = set()
        self._transport = ""
        self._began = self._seconds = 0.0

    def __enter__(self) -> Orchestrator:
        try:
            self._prefill = self._start("prefill", prefill.run, self._settings, self._requests, self._listen_at)
            self._decode = self._distant_decode or self._start(
                "decode", decode.run, self._settings, len(self._requests)
            )
            self._reference = self._start("reference", reference.run, self._settings)
        except BaseException:
            self._dismiss_all()
            raise
        return self

    def _start(self, name: str, target: Callable[..., None], *arguments: Any) -> Child:
        child = Child(name, target, *arguments)
        self._children.append(child)
        return child

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss_all()

    def _dismiss_all(self) -> None:
        for child in self._children:
            child.dismiss()

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
                    self._began = time.monotonic()
                    self._decode.tell(message)
                case Linked():
                    self._transport = message.transport
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
                    self._seconds = time.monotonic() - self._began
                    return message, decode_released
                case _:
                    raise UnexpectedMessage(message)
            self._observe(self._progress)

    def _note_pull(self, message: Pulled) -> None:
        self._pull_nanoseconds.append(message.nanoseconds)
        self._progress.pulled += 1
        self._prefill.tell(message)
        if self._progress.pulled == self._kill_after:
            self._decode.strike_down()
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
                worker, message = self._next()
                if worker is not self._reference or not isinstance(message, Generated):
                    raise UnexpectedMessage(message)
                tokens.append(message.tokens[request.req_id])
                self._progress.verified += 1
                self._observe(self._progress)
        return expected

    def finish(self) -> None:
        """Let the processes end, and see that they do."""
        remaining = self._unheard()
        for worker in remaining:
            worker.tell(Finish())
        for worker in remaining:
            if not worker.has_ended_well():
                raise DemoFailed(worker.fate())

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
            transport=self._transport,
            seconds=self._seconds,
        )

    def _unheard(self) -> list[Worker]:
        """The processes that may still have something to say."""
        workers = dict.fromkeys([*self._children, self._decode])
        return [worker for worker in workers if worker not in self._heard_out]

    def _next(self) -> tuple[Worker, Message | None]:
        """The next message and who says it; None for the end of a decode process that was killed on purpose.

        What a process said before it ended is heard first, since its channel ends after the last message.
        """
        workers = {worker.channel.connection: worker for worker in self._unheard()}
        ready = wait(list(workers), SILENCE_LIMIT_SECONDS)
        if not ready:
            raise DemoFailed(f"no process has said anything for {SILENCE_LIMIT_SECONDS:.0f} seconds")
        worker = workers[cast(Connection, ready[0])]
        try:
            message = worker.channel.receive()
        except OtherEndGone:
            if worker is not self._decode or not self._progress.decode_killed:
                raise DemoFailed(worker.fate()) from None
            self._heard_out.add(worker)
            return worker, None
        if isinstance(message, Failed):
            raise DemoFailed(f"the {worker.name} process failed:\n{message.text}")
        if worker is not self._distant_decode:
            return worker, message
        if not isinstance(message, FROM_DISTANT_DECODE):
            raise UnexpectedMessage(message)
        if not isinstance(message, DecodeDied):
            return worker, message
        self._heard_out.add(worker)
        return worker, None
