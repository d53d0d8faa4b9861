"""One end of the conversation between the orchestrator and a process it started."""

from __future__ import annotations

from multiprocessing.connection import Connection

from .messages import Message


class OtherEndGone(Exception):
    """Whoever was at the other end of the channel has ended."""


class Channel:
    """Typed messages, in order, over a pipe; :class:`OtherEndGone` once the other process has ended.

    A process may therefore wait without a time limit: the wait ends with the other end at the latest.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, message: Message) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise OtherEndGone from None

    def receive(self) -> Message:
        """The next message, waited for."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):  # OSError: the other end was killed in the middle of a message
            raise OtherEndGone from None
        return message

    def receive_within(self, seconds: float) -> Message | None:
        """The next message, or None when none came in time."""
        return self.receive() if self.connection.poll(seconds) else None

    def close(self) -> None:
        self.connection.close()
