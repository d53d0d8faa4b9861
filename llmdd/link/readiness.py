"""Waiting on the event loop until a connection can be read from or written to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class HasDescriptor(Protocol):
    """Whatever has a file descriptor."""

    def fileno(self) -> int: ...


async def readable(connection: HasDescriptor) -> None:
    """Until there is something to be read, or the connection has ended."""
    loop = asyncio.get_running_loop()
    await _ready(connection.fileno(), loop.add_reader, loop.remove_reader)


async def writable(connection: HasDescriptor) -> None:
    """Until something more can be written, or the connection has ended."""
    loop = asyncio.get_running_loop()
    await _ready(connection.fileno(), loop.add_writer, loop.remove_writer)


async def _ready(descriptor: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        remove(descriptor)  # at once: what comes next may close it, and another may get its number
        if not ready.done():
            ready.set_result(None)

    # By callback, not by `finally`: in a forked child the collector may run a `finally`, and would then take the
    # descriptor out of the parent's epoll.
    ready.add_done_callback(lambda done: remove(descriptor) if done.cancelled() else None)
    add(descriptor, wake)
    await ready
