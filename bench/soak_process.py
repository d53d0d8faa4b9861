"""A process of the soak, as its supervisor sees it: started, asked, stopped, killed, started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .soak_messages import LENGTH, Answer, Call, Question, Settings, framed

T = TypeVar("T")

#: A process that has not answered for so long, or not ended, hangs.
PATIENCE_S = 90.0

#: One that has not started by then does not.
STARTING_S = 90.0

#: How a process is started where nothing else is said.
COMMAND = (sys.executable, "-c", "import sys; from llmdd.bench.soak_worker import main; main(sys.argv[1])")


class Gone(Exception):
    """The process has ended, or does before it answers."""


class Violation(Exception):
    """Something that must not be, and after which nothing can be told."""


async def in_time(waiting: Awaitable[T], words: str) -> T:
    """What comes of it, or a :class:`Violation` that begins with these words if nothing does in time."""
    try:
        return await asyncio.wait_for(waiting, PATIENCE_S)
    except asyncio.TimeoutError:
        raise Violation(f"{words}, for {PATIENCE_S:.0f} s") from None


class Process:
    """One process, and those that come after it under its name and at its addresses.

    Attributes
    ----------
    generation : int
        Goes up whenever what its instances hold is lost.
    stops : list of tuple of int and int
        When it was stopped and let go on, in nanoseconds of the monotonic clock.
    faulting : asyncio.Lock
        Held while a fault of it is under way.
    transfers : int
        Those under way from it and to it.
    """

    def __init__(
        self,
        index: int,
        settings: Settings,
        command: tuple[str, ...],
        log: Path,
        report: Callable[[Process, list[Call]], None],
        died: Callable[[Process], None],
    ) -> None:
        self.index = index
        self.settings = settings
        self.name = settings.name
        self.generation = 0
        self.stops: list[tuple[int, int | None]] = []
        self.faulting = asyncio.Lock()
        self.transfers = 0
        self.transfer_begins = asyncio.Event()
        self.lost_calls = 0
        self.starts = 0
        self._command, self.log, self._report, self._died = command, log, report, died
        self._leaving = False
        self._ready = asyncio.Event()
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._count = 0
        self._ended: asyncio.Task[None] | None = None

    # -- its life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it, and wait until it can be asked."""
        self.starts += 1
        ours, theirs = socket.socketpair()
        passed = [theirs.fileno()] + ([] if self.settings.network is None else [self.settings.network])
        settings = msgspec.structs.replace(self.settings, parent=os.getpid(), socket=theirs.fileno())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "UCX_TLS": "tcp"}
        with self.log.open("ab") as log, theirs:
            self._popen = subprocess.Popen(
                [*self._command, msgspec.json.encode(settings).decode()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,  # so that who ends its shell, or interrupts it, neither wakes nor ends it
                cwd="/",  # so that llmdd is what is installed, and not what stands where this was started
                env=environment,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        first: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending = {0: first}
        self._leaving = False
        self._ended = asyncio.create_task(self._listen(reader))
        try:
            answer = await asyncio.wait_for(first, STARTING_S)
        except (Gone, asyncio.TimeoutError):
            raise Violation(f"{self.name} did not start: {self.last_words()}") from None
        if answer.failure is not None:
            raise Violation(f"{self.name} did not start: {answer.failure}")
        self._ready.set()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        pending = self._pending
        try:
            while True:
                head = await reader.readexactly(LENGTH.size)
                answer = msgspec.msgpack.decode(await reader.readexactly(*LENGTH.unpack(head)), type=Answer)
                waiting = pending.pop(answer.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._ready.clear()
            for waiting in pending.values():
                self.lost_calls += 1
                if not waiting.done():
                    waiting.set_exception(Gone(self.name))
            self._writer.close()
            if not self._leaving:
                self._died(self)

    async def ready(self) -> None:
        """Wait until it can be asked."""
        await in_time(self._ready.wait(), f"{self.name} cannot be asked")

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def ended(self) -> int:
        """Wait for its end; its exit status."""
        assert self._ended is not None
        await in_time(asyncio.shield(self._ended), f"{self.name} does not end")
        try:
            return await asyncio.to_thread(self._popen.wait, PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Violation(f"{self.name} does not end: {await self.stacks()}") from None

    async def kill(self) -> None:
        """``kill -9``, and the end of the process waited for."""
        self._ready.clear()
        self._leaving = True
        self._popen.kill()
        await self.ended()
        if self.stops and self.stops[-1][1] is None:
            self.stops[-1] = (self.stops[-1][0], time.monotonic_ns())

    async def quit(self) -> int:
        """Let it finalize its instances and end; its exit status."""
        self._ready.clear()
        self._leaving = True
        with suppress(Gone):
            await self.ask("finalize", even_if_leaving=True)
        self._writer.close()
        return await self.ended()

    def stop(self) -> None:
        self.stops.append((time.monotonic_ns(), None))
        self._popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._popen.send_signal(signal.SIGCONT)
        self.stops[-1] = (self.stops[-1][0], time.monotonic_ns())

    def stood_still(self, began_ns: int, ended_ns: int) -> bool:
        """Whether it was stopped in that time."""
        return any(begin <= ended_ns and (end is None or end >= began_ns) for begin, end in self.stops)

    def abolish(self) -> None:
        """End it, whatever it does, if it lives."""
        self._leaving = True
        if self._ended is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    # -- what it is asked ------------------------------------------------------------------------------------------

    async def ask(self, method: str, *, even_if_leaving: bool = False, **arguments: Any) -> Any:
        """What a method of it returns.

        Raises
        ------
        Gone
            It ended before it answered.
        Violation
            It raised what it should not, or does not answer at all.
        """
        if not even_if_leaving and not self._ready.is_set():
            raise Gone(self.name)
        self._count += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[self._count] = future
        self._writer.write(framed(Question(self._count, method, arguments)))
        try:
            answer = await asyncio.wait_for(future, PATIENCE_S)
        except asyncio.TimeoutError:
            raise Violation(f"{self.name} hangs in {method}: {await self.stacks()}") from None
        self._report(self, answer.calls)
        if answer.failure is not None:
            raise Violation(f"{self.name} raised in {method}: {answer.failure}")
        return answer.value

    async def stacks(self) -> str:
        """What its threads are doing, which stands in its log."""
        self._popen.send_signal(signal.SIGCONT)
        self._popen.send_signal(signal.SIGUSR1)
        await asyncio.sleep(1)
        return self.last_words()

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]
