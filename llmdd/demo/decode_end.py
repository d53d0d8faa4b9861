"""The decode host's end of a run on two hosts: it starts the decode process, and stands between it and the prefill end.

The prefill end leads. This one passes on what the decode process and the orchestrator say to each other, watches over
the process, and shows in the end what the prefill end has found.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import cast

from . import decode
from .channel import OtherEndGone
from .choices import Choices
from .introduction import Address, CannotMeet, Meeting, call_prefill
from .messages import (
    Agreed,
    DecodeDied,
    Ended,
    Failed,
    Finish,
    KillDecode,
    Listening,
    Message,
    Prefilled,
    Progress,
    UnexpectedMessage,
    failure,
)
from .orchestrator import SILENCE_LIMIT_SECONDS, DemoFailed
from .report import Report
from .settings import Settings
from .worker import Child


def run(choices: Choices, connect_to: Address, wait_seconds: float, observe: Callable[[Progress], None]) -> Report:
    """Call the prefill end, generate for it, and return what it has found.

    Parameters
    ----------
    choices
        What was said here.
    connect_to
        Where the prefill end listens.
    wait_seconds
        How long to wait for it to listen there.
    observe
        Called with the progress whenever there is some.

    Raises
    ------
    DemoFailed
        No prefill end that fits has answered, or the run could not be brought to its end.
    """
    try:
        met, agreed = call_prefill(connect_to, choices, wait_seconds)
    except CannotMeet as reason:
        raise DemoFailed(str(reason)) from None
    with DecodeEnd(met, agreed, observe) as end:
        return end.serve()


class DecodeEnd:
    """The decode process and the connection to the prefill end; neither outlasts the context."""

    def __init__(self, met: Meeting, agreed: Agreed, observe: Callable[[Progress], None]) -> None:
        self._met = met
        self._observe = observe
        self._prefill_end = met.channel
        settings = Settings.chosen(agreed.choices, agreed.context)
        self._decode = Child("decode", decode.run, settings, agreed.requests)
        self._running = True
        self._killed = False

    def __enter__(self) -> DecodeEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self._decode.dismiss()
        self._prefill_end.close()

    def serve(self) -> Report:
        """Pass on what is said until the prefill end has said the last word."""
        try:
            while (report := self._hear_next()) is None:
                pass
        except OtherEndGone:
            raise DemoFailed(f"the prefill end, at {self._met.there}, has gone") from None
        except UnexpectedMessage as unexpected:
            raise DemoFailed(f"the prefill end, at {self._met.there}, says what cannot be: {unexpected}") from None
        return report

    def _hear_next(self) -> Report | None:
        """Hear whoever speaks next; the prefill end's report, once that has come."""
        prefill, process = self._prefill_end.connection, self._decode.channel.connection
        ready = wait([prefill, process] if self._running else [prefill], SILENCE_LIMIT_SECONDS)
        if not ready:
            raise DemoFailed(f"nobody has said anything for {SILENCE_LIMIT_SECONDS:.0f} seconds")
        if cast(Connection, ready[0]) is process:
            self._hear_process()
            return None
        return self._obey(self._prefill_end.receive())

    def _obey(self, message: Message) -> Report | None:
        match message:
            case Listening():
                # It knows its own address by another name, if it listens at all of them or behind a translation.
                _, port = message.address
                self._decode.tell(Listening((self._met.there, port), local_host=self._met.here))
            case Prefilled():
                self._decode.tell(message)
            case KillDecode():
                self._killed = True
                self._decode.strike_down()
            case Finish():
                self._end_process()
            case Progress():
                self._observe(message)
            case Report():
                return message
            case Failed():
                raise DemoFailed(message.text)
            case _:
                raise UnexpectedMessage(message)
        return None

    def _hear_process(self) -> None:
        try:
            message = self._decode.channel.receive()
        except OtherEndGone:
            self._running = False
            self._prefill_end.send(DecodeDied() if self._killed else failure(self._decode.fate()))
            return
        # Also of a failure the prefill end has the last word: a connection that is closed while something is unread
        # may take back what was said last.
        self._running = not isinstance(message, Failed)
        self._prefill_end.send(message)

    def _end_process(self) -> None:
        self._decode.tell(Finish())
        self._running = False
        self._prefill_end.send(Ended() if self._decode.has_ended_well() else failure(self._decode.fate()))
