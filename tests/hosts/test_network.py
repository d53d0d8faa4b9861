"""The network of the tests is one: who is on it, who is not, and what its faults do."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .network import NAMESPACES, Host, Network, enter

PATIENCE_S = 20.0


class Place:
    """A thread on a host: the sockets that are made there are that host's."""

    def __init__(self, namespace: str) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))

    def make(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self._thread.submit(call, *arguments, **named).result(PATIENCE_S)

    def close(self) -> None:
        self._thread.shutdown()


@pytest.fixture
def place() -> Iterator[Callable[[Host], Place]]:
    places: list[Place] = []

    def make(host: Host) -> Place:
        places.append(Place(host.namespace))
        return places[-1]

    yield make
    for each in places:
        each.close()


@pytest.fixture
def connect(place: Callable[[Host], Place]) -> Iterator[Callable[[Host, Host], list[socket.socket]]]:
    """Makes connections from one host to another: both ends of each."""
    made: list[socket.socket] = []

    def connect(here: Host, there: Host) -> list[socket.socket]:
        server = place(there).make(socket.create_server, (there.address, 0))
        made.append(server)
        client = place(here).make(socket.create_connection, server.getsockname())
        made.append(client)
        made.append(server.accept()[0])
        for sock in made:
            sock.settimeout(PATIENCE_S)
        return [client, made[-1]]

    yield connect
    for sock in made:
        sock.close()


def namespaces_of(network: Network) -> list[str]:
    return [network.switch, *(host.namespace for host in network.hosts)]


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    sending = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    sending.start()
    return sending


def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, "the connection has ended"
        data += part
    return bytes(data)


def test_every_host_reaches_every_other(make_network: Any, connect: Any) -> None:
    hosts = make_network(3).hosts
    for here in hosts:
        for there in hosts:
            if here is not there:
                client, server = connect(here, there)
                client.sendall(here.namespace.encode())
                assert receive(server, len(here.namespace)) == here.namespace.encode()
                assert server.getpeername()[0] == here.address


def test_a_host_is_reached_by_version_six_too(network: Network, place: Any) -> None:
    here, there = network.hosts
    with place(there).make(socket.create_server, (there.six, 0), family=socket.AF_INET6) as server:
        place(here).make(socket.create_connection, server.getsockname()[:2], timeout=PATIENCE_S).close()


def test_networks_know_nothing_of_each_other(make_network: Any, place: Any) -> None:
    """They may even have the same addresses."""
    network, other = make_network(2), make_network(1)
    with place(network.hosts[1]).make(socket.create_server, (network.hosts[1].address, 0)) as server:
        with pytest.raises(OSError):
            place(other.hosts[0]).make(socket.create_connection, server.getsockname(), timeout=0.2)
        with pytest.raises(OSError):
            socket.create_connection(server.getsockname(), timeout=0.2)


def test_what_is_sent_is_counted(network: Network, connect: Any) -> None:
    here, there = network.hosts
    client, server = connect(here, there)
    before = here.bytes_sent()
    sending = send_in_background(client, bytes(1 << 20))
    receive(server, 1 << 20)
    sending.join()
    assert here.bytes_sent() - before >= 1 << 20
    assert there.bytes_sent() < 1 << 20


def test_a_limited_rate_holds_back_what_leaves_that_host(network: Network, connect: Any) -> None:
    here, there = network.hosts
    client, server = connect(here, there)
    here.limit_rate(100)
    sending = send_in_background(client, bytes(4 << 20))
    receive(server, 4 << 20)
    sending.join()
    assert here.held_back() > 0
    here.lift_limit()
    assert here.held_back() == 0
    there.limit_rate(100)
    assert there.held_back() == 0, "it has sent nothing but acknowledgements"


def test_an_unplugged_cable_keeps_the_connection_and_loses_what_is_sent(network: Network, connect: Any) -> None:
    here, there = network.hosts
    client, server = connect(here, there)
    there.unplug()
    client.sendall(b"lost, and sent again")
    server.settimeout(0.3)
    with pytest.raises(TimeoutError):
        server.recv(1)
    server.settimeout(PATIENCE_S)
    there.plug_in()
    assert receive(server, 20) == b"lost, and sent again"


def test_nothing_is_left(make_network: Any) -> None:
    network = make_network(3)
    assert all((NAMESPACES / name).exists() for name in namespaces_of(network))
    network.close()
    assert not any((NAMESPACES / name).exists() for name in namespaces_of(network))
    network.close()


def test_nothing_is_left_of_who_was_killed(network: Network, eventually: Any) -> None:
    """``network`` is here for its skip alone."""
    script = "import sys; from hosts.network import Network; network = Network(2); print(network.switch, flush=True)"
    maker = subprocess.Popen(
        [sys.executable, "-c", f"{script}; sys.stdin.read()"],
        cwd=__file__.rpartition("/hosts/")[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with maker:
        assert maker.stdout is not None
        switch = maker.stdout.readline().strip()
        assert (NAMESPACES / switch).exists()
        maker.kill()
    common = switch.removesuffix("switch")
    eventually(lambda: not list(NAMESPACES.glob(f"{common}*")), "the namespaces are gone")
