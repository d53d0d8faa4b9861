"""The link service of one node: its endpoint, on an event loop of its own in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from llmdd._core.enumerations import RegisterMemStatus
from llmdd._core.lease_calls import LeaseCalls
from llmdd._core.peer import Peer
from llmdd._core.status import LLMException, LLMStatusCode

from .channel import Channel
from .communicators import Communicators
from .endpoint import Endpoint, LinkTarget
from .expected_conversations import ExpectedConversations
from .handshake import new_identity
from .listener import Request
from .listeners import Address, Listeners
from .local_end import LocalEnd
from .node_engines import NodeEngines
from .reaper import Reaper
from .reception import Reception
from .sessions import Sessions, cancel

#: How long a communicator may prepare, unless it is said otherwise (api §4.2).
DEFAULT_LINK_TOTAL_TIME_S = 120.0

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
        Its memory, which linked peers on this host attach, and an engine reads for those on others.
    remote_accessible
        Whether ``enable_remote_cache_accessible`` is on; both ends of a link must agree.
    transport
        The engine that moves the bytes of every link, also where memory could be shared; empty: where it cannot be.
    link_total_time_s, link_attempts
        How long a communicator may prepare, and the number of attempts that share this time (api §4.2).
    parting_time_s
        How long the other members' transfers may go on when a communicator is dropped.

    Attributes
    ----------
    peers
        Cluster id → the memory of that cluster, for every cluster that is linked, one-sidedly or as a member of a
        communicator that is OK. Replaced, never modified, so it is read without a lock. ``store.peers`` is kept the
        same.
    address
        Where the node listens, or None.
    """

    def __init__(
        self,
        *,
        cluster_id: int,
        store: LeaseCalls,
        remote_accessible: bool,
        transport: str = "",
        link_total_time_s: float = DEFAULT_LINK_TOTAL_TIME_S,
        link_attempts: int = 1,
        parting_time_s: float = 1.0,
    ) -> None:
        self.peers: dict[int, Peer] = {}
        self.address: Address | None = None
        self._linked: dict[int, Peer] = {}
        self._members: dict[int, Peer] = {}
        identity = new_identity(cluster_id, remote_accessible, transport)
        self.incarnation = identity.incarnation
        self._store = store
        self._reaper = Reaper(store)
        self._sessions = Sessions()
        self._listeners = Listeners(self._serve)
        self._engines = NodeEngines(identity, store)
        conversations = ExpectedConversations()
        end = LocalEnd(identity, store, self._reaper, self._engines, conversations, self._sessions, self._listeners)
        self._endpoint = Endpoint(end, self._publish_linked)
        self._communicators = Communicators(
            end,
            self._publish_members,
            total_time_s=link_total_time_s,
            attempts=link_attempts,
            parting_time_s=parting_time_s,
        )
        self._reception = Reception(self._endpoint, self._communicators, conversations)
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
            return _result_of(self._submit(self._listen, host, port))

    def stop_listening(self) -> None:
        """Accept no links any more. Links that stand are not affected."""
        with self._listening:
            _result_of(self._submit(self._stop_listening))

    def switch_listener(self, address: Address | None, permit: Callable[[bool], None]) -> None:
        """Listen at an address from now on, or nowhere, if ``permit`` does not raise.

        Parameters
        ----------
        address
            Where. If that is where the node listens, the listener stays as it is.
        permit
            Told whether a link, or a communicator, stands or is held. Nothing happens to the links between this and
            the switch.

        Raises
        ------
        OSError
            If the address cannot be listened at. The listener there was before stays (api §4.3).
        """
        with self._listening:
            _result_of(self._submit(self._switch_listener, address, permit))

    def link(self, targets: Sequence[LinkTarget], timeout_ms: int) -> list[LLMStatusCode]:
        """Link to each target, all at once, each within ``timeout_ms``; a status code for each (api §4.1)."""
        return _result_of(
            self._submit(self._each, lambda target: self._endpoint.link(target, timeout_ms / 1000), targets)
        )

    def unlink(self, targets: Sequence[LinkTarget], timeout_ms: int, force: bool) -> list[LLMStatusCode]:
        """Drop the link to each target, all at once, each within ``timeout_ms``; a status code for each (api §4.1)."""
        unlink = self._endpoint.unlink
        return _result_of(self._submit(self._each, lambda target: unlink(target, timeout_ms / 1000, force), targets))

    def make_communicator(self, name: str, ranks: dict[int, int], rank_table: str) -> int:
        """Begin to bring a communicator about (api §4.2); its id. ``ranks`` is cluster id → rank."""
        return _result_of(self._submit(self._make_communicator, name, ranks, rank_table))

    def communicator_status(self, number: int) -> RegisterMemStatus:
        """How far a communicator has come; ``LLM_NOT_YET_LINK`` if there is none."""
        return self._communicators.status(number)

    def drop_communicator(self, number: int) -> None:
        """Drop a communicator, waiting for transfers to end; ``LLM_NOT_YET_LINK`` if there is none."""
        _result_of(self._submit(self._drop_communicator, number))

    def linked_clusters(self) -> list[int]:
        """The clusters to which transfers may run."""
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

    def disown(self) -> None:
        """In a forked child: forget the links, and close the sockets without a word to anybody."""
        self._store.peers = self.peers = {}
        self.address = None
        self._listeners.abandon()
        self._sessions.abandon()
        self._engines.abandon()

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
        self._note_call()
        return await asyncio.gather(*map(work, targets))

    def _note_call(self) -> None:
        """Closing the service ends the call that waits for this task."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _publish_linked(self, linked: dict[int, Peer]) -> None:
        self._linked = linked
        self._publish()

    def _publish_members(self, members: dict[int, Peer]) -> None:
        self._members = members
        self._publish()

    def _publish(self) -> None:
        self._store.peers = self.peers = {**self._members, **self._linked}

    async def _serve(self, channel: Channel, request: Request) -> None:
        await self._reception.serve(channel, request)

    async def _make_communicator(self, name: str, ranks: dict[int, int], rank_table: str) -> int:
        return self._communicators.make(name, ranks, rank_table)

    async def _drop_communicator(self, number: int) -> None:
        self._note_call()
        await self._communicators.unlink(number)

    async def _listen(self, host: str, port: int) -> Address:
        before = self.address
        try:
            address = self._listeners.open(host, port)
        except OSError:
            if before is None or before[1] != port:
                raise
            # Our own listener may be in the way, as one at every address of a host is to any other at its port.
            await self._stop_listening()
            try:
                self.address = self._listeners.open(host, port)
            except OSError:
                self.address = self._listeners.open(*before)
                raise
            return self.address
        self.address = address
        if before is not None:
            await self._listeners.close(before)
        return address

    async def _stop_listening(self) -> None:
        before, self.address = self.address, None
        if before is not None:
            await self._listeners.close(before)

    async def _switch_listener(self, address: Address | None, permit: Callable[[bool], None]) -> None:
        permit(bool(self._endpoint.links.held() or len(self._communicators)))
        if address is None:
            await self._stop_listening()
        elif address != self.address:
            await self._listen(*address)

    async def _shut_down(self, timeout_s: float) -> None:
        await cancel(list(self._calls))
        self.address = None
        await self._listeners.close_all()
        self._endpoint.close()
        await self._communicators.close()
        await self._sessions.close(timeout_s)
        await cancel([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        await self._engines.close()
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
