"""One end of the conversation between two processes of a run."""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing.connection import Connection

from .messages import MAX_PAYLOAD, Message, UnexpectedMessage, decode, encode


class OtherEndGone(Exception):
    """Whoever was at the other end of the channel has ended, or has said what no message may be."""


class Channel:
    """Typed messages, in order, over a pipe or a connection; :class:`OtherEndGone` once the other process has ended.

    A process may therefore wait without a time limit: the wait ends with the other end at the latest.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, message: Message) -> None:
        try:
            self.connection.send_bytes(encode(message))
        except OSError:
            raise OtherEndGone from None

    def receive(self) -> Message:
        """The next message, waited for; :class:`UnexpectedMessage` if what comes is none."""
        try:
            self.connection.poll(None)  # a connection limits how long the bytes of one message may take, once begun
            payload = self.connection.recv_bytes(MAX_PAYLOAD)
        except (EOFError, OSError):  # OSError: it was killed in the middle of a message, or announces one too long
            raise OtherEndGone from None
        return decode(payload)

    def receive_within(self, seconds: float) -> Message | None:
        """The next message, or None when none came in time."""
        try:
            ready = self.connection.poll(seconds)
        except OSError:
            raise OtherEndGone from None
        return self.receive() if ready else None

    def hear_out(self, seconds: float) -> None:
        """Wait until the other end has hung up, after the last word of this one.

        A connection that is closed while something is unread may take back what was said last.
        """
        deadline = time.monotonic() + seconds
        with suppress(OtherEndGone, UnexpectedMessage):
            while (left := deadline - time.monotonic()) > 0:
                self.receive_within(left)

    def close(self) -> None:
        self.connection.close()
