"""The listeners of one node, at as many addresses as it is to be met at."""

from __future__ import annotations

from ipaddress import ip_address

from .keys import LinkKeys
from .listener import Listener, Serve, bind

#: A numeric host and a port.
Address = tuple[str, int]


class Listeners:
    """Listens at addresses. Those who want the same address share one listener. Lives on the event loop.

    Parameters
    ----------
    serve
        As of :class:`~llmdd.link.listener.Listener`: it answers what is asked for at any of the addresses.
    keys
        As of the same.
    """

    def __init__(self, serve: Serve, keys: LinkKeys | None = None) -> None:
        self._serve = serve
        self._keys = keys
        self._listeners: dict[Address, Listener] = {}
        self._wanted_by: dict[Address, int] = {}
        self._retired: list[Listener] = []

    def open(self, host: str, port: int) -> Address:
        """Listen at an address, or ``OSError``; what is returned has the port that the system chose if it is 0."""
        address = (_canonical(host), port)
        if address not in self._listeners:
            sock = bind(host, port)
            name = sock.getsockname()
            address = (name[0], name[1])
            self._listeners[address] = Listener(sock, self._serve, self._keys)
            self._wanted_by[address] = 0
        self._wanted_by[address] += 1
        return address

    def retire(self, address: Address) -> None:
        """Want an address no more. Requests that have come are answered."""
        listener = self._let_go(address)
        if listener is not None:
            listener.retire()
            self._retired = [other for other in (*self._retired, listener) if other.is_busy]

    async def close(self, address: Address) -> None:
        """Want an address no more. If nobody else does, requests that have come are dropped."""
        listener = self._let_go(address)
        if listener is not None:
            await listener.close()

    async def close_all(self) -> None:
        """Listen nowhere, and drop every connection that has not become a session."""
        listeners = [*self._listeners.values(), *self._retired]
        self._listeners.clear()
        self._wanted_by.clear()
        for listener in listeners:
            await listener.close()

    def abandon(self) -> None:
        """Close the sockets, and nothing else: they belong to the process that this one was forked from."""
        for listener in self._listeners.values():
            listener.abandon()

    def _let_go(self, address: Address) -> Listener | None:
        """The listener that nobody wants any more."""
        if address not in self._wanted_by:
            return None  # all were closed
        self._wanted_by[address] -= 1
        if self._wanted_by[address]:
            return None
        del self._wanted_by[address]
        return self._listeners.pop(address)


def _canonical(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host
