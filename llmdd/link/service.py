"""The link service of one node: its endpoint, on an event loop of its own in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from llmdd._core.peer import PeerArena
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd._core.store import CacheStore

from .endpoint import Endpoint, LinkTarget, cancel
from .handshake import new_identity
from .listener import Listener, bind
from .reaper import Reaper

_T = TypeVar("_T")
_P = ParamSpec("_P")


class LinkService:
    """Links one node to others, until it is closed.

    Every method may be called from any thread. In a child forked from the process that made the service nothing is left
    of it: no link, no listener, and no way back (api §4.4).

    Parameters
    ----------
    cluster_id
        Of this node.
    store
        Its memory, which linked peers on this host attach.
    remote_accessible
        Whether ``enable_remote_cache_accessible`` is on; both ends of a link must agree.

    Attributes
    ----------
    peers
        Cluster id → the memory of that cluster, for every link that stands. Replaced, never modified, so it is read
        without a lock. ``store.peers`` is kept the same.
    address
        Where the node listens, or None.
    """

    def __init__(self, *, cluster_id: int, store: CacheStore, remote_accessible: bool) -> None:
        self.peers: dict[int, PeerArena] = {}
        self.address: tuple[str, int] | None = None
        identity = new_identity(cluster_id, remote_accessible)
        self.incarnation = identity.incarnation
        self._store = store
        self._reaper = Reaper(store)
        self._endpoint = Endpoint(identity, store, self._reaper, self._publish)
        self._listener: Listener | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._pid = os.getpid()
        self._closed = False
        self._submitting = threading.Lock()
        self._closing = threading.Lock()
        self._listening = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"llmdd link {cluster_id}", daemon=True)
        self._thread.start()
        _services.add(self)

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Accept links at an address from now on, instead of the one before, if any.

        Returns
        -------
        tuple of str and int
            The address, with the port that the system chose if ``port`` is 0.

        Raises
        ------
        OSError
            If the address cannot be listened at. The listener there was before stays (api §4.3).
        """
        with self._listening:
            sock = bind(host, port)
            name = sock.getsockname()
            try:
                replaced = self._submit(self._replace_listener, sock)
            except LLMException:
                sock.close()
                raise
            _result_of(replaced)
            self.address = (name[0], name[1])
            return self.address

    def stop_listening(self) -> None:
        """Accept no links any more. Links that stand are not affected."""
        with self._listening:
            _result_of(self._submit(self._replace_listener, None))
            self.address = None

    def link(self, targets: Sequence[LinkTarget], timeout_ms: int) -> list[LLMStatusCode]:
        """Link to each target, all at once, each within ``timeout_ms``; a status code for each (api §4.1)."""
        return _result_of(
            self._submit(self._each, lambda target: self._endpoint.link(target, timeout_ms / 1000), targets)
        )

    def unlink(self, targets: Sequence[LinkTarget], timeout_ms: int, force: bool) -> list[LLMStatusCode]:
        """Drop the link to each target, all at once, each within ``timeout_ms``; a status code for each (api §4.1)."""
        unlink = self._endpoint.unlink
        return _result_of(self._submit(self._each, lambda target: unlink(target, timeout_ms / 1000, force), targets))

    def linked_clusters(self) -> list[int]:
        """The clusters to which a link stands."""
        return list(self.peers)

    def close(self, timeout_ms: int) -> None:
        """Part from every peer, waiting for transfers in progress for up to ``timeout_ms``, and end the service.

        Calls in progress in other threads raise ``LLM_ENGINE_FINALIZED``. Closing again does nothing.
        """
        if os.getpid() != self._pid:
            return
        with self._closing:
            with self._submitting:
                if self._closed:
                    return
                self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut_down(timeout_ms / 1000), self._loop).result()
            self._reaper.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self.address = None

    def disown(self) -> None:
        """In a forked child: forget the links, and close the sockets without a word to anybody."""
        self._publish({})
        self.address = None
        if self._listener is not None:
            self._listener.abandon()
        self._endpoint.abandon()

    # -- between the threads --------------------------------------------------------------------------------------

    def _submit(
        self, work: Callable[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> concurrent.futures.Future[_T]:
        if os.getpid() != self._pid:
            raise _finalized("the link service belongs to the process that this one was forked from")
        with self._submitting:
            if self._closed:
                raise _finalized("the link service has ended")
            return asyncio.run_coroutine_threadsafe(work(*args, **kwargs), self._loop)

    def _publish(self, peers: dict[int, PeerArena]) -> None:
        self._store.peers = self.peers = peers

    # -- on the loop ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _each(
        self, work: Callable[[LinkTarget], Coroutine[Any, Any, LLMStatusCode]], targets: Sequence[LinkTarget]
    ) -> list[LLMStatusCode]:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.gather(*map(work, targets))

    async def _replace_listener(self, sock: socket.socket | None) -> None:
        before = self._listener
        self._listener = None if sock is None else Listener(sock, self._endpoint.serve)
        if before is not None:
            await before.close()

    async def _shut_down(self, timeout_s: float) -> None:
        await cancel(list(self._calls))
        await self._replace_listener(None)
        await self._endpoint.close(timeout_s)
        await cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        await self._loop.shutdown_default_executor()


def _result_of(future: concurrent.futures.Future[_T]) -> _T:
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise _finalized("the link service ended meanwhile") from None


def _finalized(reason: str) -> LLMException:
    return LLMException(reason, status_code=LLMStatusCode.LLM_ENGINE_FINALIZED)


_services: WeakSet[LinkService] = WeakSet()


def _disown() -> None:
    """In a forked child: keep neither a port nor a connection of the parent's open, and see none of its links.

    The loop is left as it is: to close it would take the parent's sockets out of the epoll that both hold.
    """
    for service in list(_services):
        service.disown()


os.register_at_fork(after_in_child=_disown)
