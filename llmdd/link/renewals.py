"""Renewing the leases of keys whose owner is on another host, over the session of the link.

A peer on the owner's host renews a lease itself, in the owner's memory. Another one asks, and does not wait for its
turn of the link: a long transfer must not let the leases of other keys lapse.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llmdd._core.distant_peer import RENEWAL_RESULTS
from llmdd._core.lease_calls import LeaseCalls

from .messages import MAX_RENEWED, Message, NamedKey, ProtocolError, Renew, Renewed

Item: TypeAlias = tuple[int, int, int, int]

#: Messages that an owner may leave unanswered. Beyond that it is asked nothing more.
MAX_UNANSWERED = 1024


@dataclass
class _Part:
    """What one message asks for."""

    size: int
    was_sent: bool = False
    renewed: list[bool] | None = None

    @property
    def awaits_answer(self) -> bool:
        return self.was_sent and self.renewed is None


class Asked:
    """What an owner was asked, until the answers have come."""

    def __init__(self, renewals: Renewals, parts: Sequence[_Part]) -> None:
        self._renewals = renewals
        self._parts = parts

    def answers(self, timeout_s: float) -> list[int]:
        """What became of each item, as far as it is told in time: a ``TransferResult``."""
        return self._renewals.take(self._parts, timeout_s)


class Renewals:
    """Asks the owner to renew leases. Asked from any thread; the answers come on the event loop.

    Parameters
    ----------
    say
        Sends a message to the owner; called on ``loop``.
    loop
        The event loop on which :meth:`deliver` and :meth:`break_off` are called.
    """

    def __init__(self, say: Callable[[Message], None], loop: asyncio.AbstractEventLoop) -> None:
        self._say = say
        self._loop = loop
        self._changed = threading.Condition()
        self._last_number = 0
        self._unanswered: dict[int, _Part] = {}
        self._broken = False

    def ask(self, items: Sequence[Item], lease_ms: int) -> Asked:
        """Ask for renewals. Never waits."""
        parts = [items[begin : begin + MAX_RENEWED] for begin in range(0, len(items), MAX_RENEWED)]
        return Asked(self, [self._ask(part, lease_ms) for part in parts])

    def _ask(self, items: Sequence[Item], lease_ms: int) -> _Part:
        part = _Part(len(items))
        with self._changed:
            if self._broken or len(self._unanswered) >= MAX_UNANSWERED:
                return part
            self._last_number += 1
            request = Renew(self._last_number, lease_ms, [NamedKey(*item) for item in items])
            try:
                self._loop.call_soon_threadsafe(self._say, request)
            except RuntimeError:
                self._broken = True  # the event loop has ended
                return part
            part.was_sent = True
            self._unanswered[request.number] = part
        return part

    def take(self, parts: Sequence[_Part], timeout_s: float) -> list[int]:
        """The answers to these, as far as they come in time."""
        deadline = time.monotonic() + timeout_s
        results: list[int] = []
        with self._changed:
            for part in parts:
                while part.awaits_answer and not self._broken and (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
                results += self._results_of(part)
        return results

    def _results_of(self, part: _Part) -> list[int]:
        if part.renewed is None:
            return [RENEWAL_RESULTS["LINK_LOST" if self._broken else "OUT_OF_TIME"]] * part.size
        return [RENEWAL_RESULTS["RENEWED" if renewed else "MISSING"] for renewed in part.renewed]

    def deliver(self, answer: Renewed) -> None:
        """An answer has come; :class:`ProtocolError` if it answers nothing."""
        with self._changed:
            part = self._unanswered.pop(answer.number, None)
            if part is None or part.size != len(answer.renewed):
                raise ProtocolError(f"Renewed {answer.number} of {len(answer.renewed)} keys answers no request")
            part.renewed = answer.renewed
            self._changed.notify_all()

    def break_off(self) -> None:
        """No answer will come any more: whoever waits for one is told so."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()


def renewed(store: LeaseCalls, request: Renew) -> Renewed:
    """What a peer has asked for, done."""
    items = [(key.kind, key.id, key.model_id, key.batch_index) for key in request.keys]
    return Renewed(request.number, store.renew_for_peer(items, request.lease_ms))
