"""Stands between two hosts on the connections by which they control a link: delays, holds, cuts and counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Literal

from .network import SWITCH_ADDRESS, enter

PATIENCE_S = 30.0
CHUNK_BYTES = 1 << 16

Stop = Literal["hold", "cut"]


class ControlLink:
    """An address at which one reaches the listener of a host, by a way that the test has in its hand.

    What passes is not looked at. On each connection a *turn* is all that one end says until the other end says
    something; so a question and its answer are two turns, and one round trip. The engine's own connections go another
    way.

    Parameters
    ----------
    namespace
        Where it stands: the switch of the network.
    target
        The listener's address.
    delay_s
        By so much everything is late, in either direction.
    """

    def __init__(self, namespace: str, target: tuple[str, int], delay_s: float = 0.0) -> None:
        self.turns = 0
        #: Set when the turn that :meth:`stop_at` named has come.
        self.stopped = threading.Event()
        self._namespace, self._target, self._delay_s = namespace, target, delay_s
        self._stop: tuple[int, Stop] | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="control link", daemon=True)
        self._opened: Future[tuple[str, int]] = Future()
        self._thread.start()
        self.address = self._opened.result(PATIENCE_S)

    @property
    def connections(self) -> int:
        """How many pass through it."""
        return len(self._connections)

    def round_trips(self, call: Callable[[], object]) -> float:
        """How many a call takes."""
        before = self.turns
        call()
        return (self.turns - before) / 2

    def stop_at(self, turn: int, how: Stop) -> None:
        """Let the turn with that number, from now on, come no further: hold everything, or cut every connection."""

        def wanted() -> None:
            self._stop = (self.turns + turn, how)

        self.stopped.clear()
        self._in_loop(wanted)

    def hold(self) -> None:
        """Let nothing pass, in either direction, on any connection."""
        self._in_loop(self._open.clear)

    def release(self) -> None:
        """Let everything pass that was held, in its order, and what comes then."""
        self._in_loop(self._open.set)

    def cut(self) -> None:
        """End every connection; new ones can be made."""
        self._in_loop(self._cut)

    def close(self) -> None:
        """Cut, and be there no more. Again is nothing."""
        if self._thread.is_alive():
            self._in_loop(self._closing.set)
            self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        try:
            enter(self._namespace)
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._open, self._closing = asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._connected, SWITCH_ADDRESS, 0)
        self._opened.set_result(server.sockets[0].getsockname()[:2])
        await self._closing.wait()
        server.close()
        self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}  # each connection's, and what they have begun
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
            connection.extend(onward_writer)
            await asyncio.gather(
                self._pass_on(connection, reader, onward_writer), self._pass_on(connection, onward_reader, writer)
            )
        except OSError:
            pass  # nobody listens there: who has come here finds that his connection has ended
        finally:
            self._connections.discard(connection)
            connection.end()

    async def _pass_on(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Everything that comes from one end, to the other, to the end of both."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(under_way, writer))
        data = b"to begin with"
        while data:
            try:
                data = await reader.read(CHUNK_BYTES)
            except ConnectionError:
                data = b""
            if data:
                self._count(connection, writer)
            under_way.put_nowait((self._loop.time() + self._delay_s, data))
        await delivering

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        data = b"to begin with"
        while data:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._open.wait()
            with suppress(ConnectionError):  # whoever has left hears nothing more
                if data:
                    writer.write(data)
                    await writer.drain()
                elif writer.can_write_eof() and not writer.is_closing():
                    writer.write_eof()

    def _count(self, connection: _Connection, towards: asyncio.StreamWriter) -> None:
        if connection.last_towards is towards:
            return
        connection.last_towards = towards
        self.turns += 1
        if self._stop is None or self._stop[0] != self.turns:
            return
        if self._stop[1] == "hold":
            self._open.clear()
        else:
            self._cut()
        self._stop = None
        self.stopped.set()

    def _cut(self) -> None:
        for connection in self._connections:
            connection.end()

    def _in_loop(self, call: Callable[[], object]) -> None:
        done: Future[None] = Future()

        def called() -> None:
            call()
            done.set_result(None)

        self._loop.call_soon_threadsafe(called)
        done.result(PATIENCE_S)


class _Connection:
    """One connection: as soon as the other half has come about, both halves."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.last_towards: asyncio.StreamWriter | None = None
        self._writers = [writer]
        self._ended = False

    def extend(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._ended:
            self.end()

    def end(self) -> None:
        self._ended = True
        for writer in self._writers:
            writer.transport.abort()
