"""Moving bytes of registered memory through its owner, where the kernel lets nobody else touch it.

Pools are mapped by every linked peer. Registered memory is the program's own and is not; peers copy from and to it
through the kernel (``process_vm_readv``), which may forbid that: in a container without the capability, or under a
stricter ``ptrace_scope``. Then a transfer asks the owner, piece by piece, over the session of the link. It stays a
transfer of the peer's: with its pin, its deadline and its turn; the owner checks each piece and copies it.

One piece is under way at a time in each direction, so that neither end ever has more to hold for the other than an
answer and a request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import cast

from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.store import CacheStore

from .messages import Fetch, Fetched, Message, ProtocolError, Store, Stored

_logger = logging.getLogger("llmdd.link")

Request = Fetch | Store
Answer = Fetched | Stored


class Courier:
    """Asks the owner of memory for pieces of it. Asked from any thread; the answers come on the event loop.

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
        self._under_way: Request | None = None
        self._wanted: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._broken = False

    def fetch(self, slot: int, generation: int, tensor: int, offset: int, size: int, timeout_s: float) -> bytes:
        """``size`` bytes of a tensor of the owner's, at most :data:`~llmdd.link.messages.MAX_PIECE`.

        Raises
        ------
        LLMException
            What the owner refuses it with; ``LLM_TIMEOUT``: no answer in time; ``LLM_NOT_YET_LINK``: the link is lost.
        """
        answer = self._ask(lambda number: Fetch(number, slot, generation, tensor, offset, size), timeout_s)
        return cast(Fetched, answer).data

    def store(self, slot: int, generation: int, tensor: int, offset: int, data: bytes, timeout_s: float) -> None:
        """Put ``data`` into a tensor of the owner's; bounds and errors as for :meth:`fetch`.

        After ``LLM_TIMEOUT`` the owner may be writing still, until it answers the next request.
        """
        self._ask(lambda number: Store(number, slot, generation, tensor, offset, bytes(data)), timeout_s)

    def deliver(self, answer: Answer) -> None:
        """An answer has come; :class:`ProtocolError` if it is not the one that is due."""
        with self._changed:
            due = self._under_way
            if due is None or answer.number != due.number or not _fits(answer, due):
                raise ProtocolError(f"{type(answer).__name__} {answer.number} answers no request")
            self._under_way = None
            if answer.number in self._wanted:
                self._answers[answer.number] = answer
            self._changed.notify_all()

    def break_off(self) -> None:
        """No answer will come any more: whoever waits for one is told so."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()

    def _ask(self, request: Callable[[int], Request], timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            # A request whose caller has lost patience is still under way, until its answer comes.
            self._wait(lambda: self._under_way is None, deadline)
            self._last_number = number = self._last_number + 1
            self._under_way = request(number)
            self._wanted.add(number)
            try:
                self._loop.call_soon_threadsafe(self._say, self._under_way)
                self._wait(lambda: number in self._answers, deadline)
                answer = self._answers.pop(number)
            except RuntimeError as error:
                if isinstance(error, LLMException):
                    raise
                raise _lost() from None  # the event loop has ended
            finally:
                self._wanted.discard(number)
        if answer.status_code != LLMStatusCode.LLM_SUCCESS:
            raise LLMException("the owner of the memory refuses", status_code=_code(answer.status_code))
        return answer

    def _wait(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            if self._broken:
                raise _lost()
            if not self._changed.wait(max(0.0, deadline - time.monotonic())) and not condition() and not self._broken:
                raise LLMException("the owner has not answered in time", status_code=LLMStatusCode.LLM_TIMEOUT)


class Attendant:
    """Answers a peer's courier. On the event loop; the copying is not, because it may have to wait for the store.

    Parameters
    ----------
    store, peer_bit
        Our memory, and the pin bit by which the peer holds what it may ask for.
    say
        Sends a message to the peer.
    give_up
        Called when a request cannot be answered at all.
    """

    def __init__(
        self, store: CacheStore, peer_bit: int, say: Callable[[Message], None], give_up: Callable[[], None]
    ) -> None:
        self._store = store
        self._peer_bit = peer_bit
        self._say = say
        self._give_up = give_up
        self._copying: asyncio.Future[Answer] | None = None

    def serve(self, request: Request) -> None:
        """Answer a request, presently; :class:`ProtocolError` if the one before has not been answered."""
        if self._copying is not None and not self._copying.done():
            raise ProtocolError(f"a {type(request).__name__} before the last request was answered")
        self._copying = asyncio.get_running_loop().run_in_executor(None, self._carry_out, request)
        self._copying.add_done_callback(self._copied)

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call ``then`` when nothing is being copied for the peer: at once, or soon."""
        if self._copying is None or self._copying.done():
            then()
        else:
            self._copying.add_done_callback(lambda _: then())

    def _carry_out(self, request: Request) -> Answer:
        code = LLMStatusCode.LLM_SUCCESS
        data = b""
        place = (self._peer_bit, request.slot, request.generation, request.tensor, request.offset)
        try:
            if isinstance(request, Fetch):
                data = self._store.read_registered(*place, request.size)
            else:
                self._store.write_registered(*place, request.data)
        except LLMException as error:
            code = error.status_code
        except ValueError as error:
            # It has no pin, or none any more: a request may outlive the patience, and the pin, of the transfer.
            _logger.debug("a peer asks for what it has no right to: %s", error)
            code = LLMStatusCode.LLM_FAILED
        if isinstance(request, Fetch):
            return Fetched(request.number, int(code), data)
        return Stored(request.number, int(code))

    def _copied(self, copying: asyncio.Future[Answer]) -> None:
        error = copying.exception()
        if error is None:
            self._say(copying.result())
            return
        _logger.error("copying for a peer failed", exc_info=error)
        self._give_up()


def _fits(answer: Answer, request: Request) -> bool:
    if isinstance(request, Store):
        return isinstance(answer, Stored)
    if not isinstance(answer, Fetched):
        return False
    return len(answer.data) == (request.size if answer.status_code == LLMStatusCode.LLM_SUCCESS else 0)


def _code(number: int) -> LLMStatusCode:
    """The code that a peer gives; a number that is none is a failure."""
    known = [code for code in LLMStatusCode if code == number]
    return known[0] if known else LLMStatusCode.LLM_FAILED


def _lost() -> LLMException:
    return LLMException("the link was lost", status_code=LLMStatusCode.LLM_NOT_YET_LINK)
