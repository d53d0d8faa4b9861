"""Hosts with nodes on them, and the way between them.

The nodes are driven by the public API alone, each in a process on its host (``host_process.py``).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from commanded_process import CommandedProcess

sys.path.insert(0, str(Path(__file__).parent.parent))  # for this folder's modules

from hosts.control_link import ControlLink
from hosts.network import Host, NamespacesUnavailable, Network

TESTS = Path(__file__).parent.parent

#: The packages that have NIXL in them.
NIXL = ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm")

# Between namespaces of one machine UCX would find other ways than the network.
ENVIRONMENT = {"UCX_TLS": "tcp"}


class HostProcess(CommandedProcess):
    """A process on a host, in which any number of nodes live."""

    def __init__(self, host: Host, missing: tuple[str, ...] = ()) -> None:
        self.host = host
        super().__init__(
            TESTS / "hosts" / "host_process.py",
            {"namespace": host.namespace, "missing": missing},
            environment=ENVIRONMENT,
        )

    def open(self, cluster_id: int, *, listens: bool = True, port: int = 0, **settings: Any) -> Node:
        """A node; it listens at the host's address unless told not to, or where else."""
        if listens:
            settings.setdefault("listen", f"{self.host.address}:{port}")
        opened = self.call("open", cluster_id, settings)
        assert not isinstance(opened, str), opened
        return Node(self, cluster_id, opened)


class Node:
    """A node in such a process. Its methods are those of the node there."""

    def __init__(self, process: HostProcess, cluster_id: int, address: tuple[str, int] | None) -> None:
        self.process = process
        self.cluster_id = cluster_id
        self.address = address

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments, **named: self.process.call("tell", self.cluster_id, method, arguments, named)

    def begin(self, method: str, *arguments: Any, **named: Any) -> None:
        """Have a method called; :meth:`answer` waits for what it returns."""
        self.process.ask("tell", self.cluster_id, method, arguments, named)

    def answer(self) -> Any:
        return self.process.answer()

    def link_to(self, other: Node, address: tuple[str, int] | None = None) -> str:
        """Link to another that listens, at another address if one is given."""
        address = address or other.address
        assert address is not None
        code: str = self.link(other.cluster_id, *address)
        return code

    def is_empty(self) -> bool:
        """Whether it holds nothing at all; every invariant has been checked."""
        state: dict[str, int] = self.state()
        return not any(state.values())


@dataclass(frozen=True)
class Pair:
    """Two nodes on different hosts; the second is linked to the first."""

    network: Network
    owner: Node
    puller: Node

    @property
    def hosts(self) -> list[Host]:
        return self.network.hosts


class LastingHosts:
    """Two hosts with a process on each, which serve one test after another."""

    def __init__(self) -> None:
        self._ending = ExitStack()
        self._processes: list[HostProcess] = []
        self._nodes: list[Node] = []
        self._settings: dict[str, Any] = {}

    def open(self, **settings: Any) -> list[Node]:
        """A node on each, 1 and 2: those of the test before, if theirs are the same settings."""
        if not self._processes:
            self._start()
        if not self._nodes or settings != self._settings:
            for node in self._nodes:
                node.process.call("close", node.cluster_id)
            self._nodes = [process.open(number, **settings) for number, process in enumerate(self._processes, start=1)]
            self._settings = settings
        return self._nodes

    @property
    def network(self) -> Network:
        return self._network

    def _start(self) -> None:
        self._network = opened_network(2)
        self._ending.callback(self._network.close)
        for host in self._network.hosts:
            self._processes.append(HostProcess(host))
            self._ending.callback(self._processes[-1].end)

    def close(self) -> None:
        """Take them away; those who ask next have others."""
        self._processes, self._nodes = [], []
        self._ending.close()


class MakeProcess(Protocol):
    def __call__(self, host: Host, *, missing: tuple[str, ...] = ()) -> HostProcess: ...


class MakePair(Protocol):
    def __call__(self, **settings: Any) -> Pair: ...


def opened_network(count: int) -> Network:
    """A network, or a test that is skipped."""
    try:
        return Network(count)
    except NamespacesUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def make_network() -> Iterator[Callable[[int], Network]]:
    """Makes networks of so many hosts, and removes them."""
    made: list[Network] = []

    def make(count: int) -> Network:
        made.append(opened_network(count))
        return made[-1]

    yield make
    for network in made:
        network.close()


@pytest.fixture
def network(make_network: Callable[[int], Network]) -> Network:
    """Two hosts."""
    return make_network(2)


@pytest.fixture(scope="module")
def lasting_network() -> Iterator[Network]:
    """Two hosts for tests that leave them as they were."""
    network = opened_network(2)
    yield network
    network.close()


@pytest.fixture
def start_process(make_network: Callable[[int], Network]) -> Iterator[MakeProcess]:
    """Starts processes on hosts. It needs the networks to last longer than its processes."""
    started: list[HostProcess] = []

    def start(host: Host, *, missing: tuple[str, ...] = ()) -> HostProcess:
        started.append(HostProcess(host, missing))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def make_pair(nixl: None, network: Network, start_process: MakeProcess) -> MakePair:
    """Makes a pair of linked nodes, 1 and 2, each in a process of its own."""

    def make(**settings: Any) -> Pair:
        owner, puller = (
            start_process(host).open(number, **settings) for number, host in enumerate(network.hosts, start=1)
        )
        assert puller.link_to(owner) == "LLM_SUCCESS"
        return Pair(network, owner, puller)

    return make


@pytest.fixture(scope="module")
def hosts_of_the_module() -> Iterator[LastingHosts]:
    hosts = LastingHosts()
    yield hosts
    hosts.close()


@pytest.fixture
def lasting_hosts(hosts_of_the_module: LastingHosts, request: pytest.FixtureRequest) -> Iterator[LastingHosts]:
    """Hosts that outlast the test, unless it fails."""
    failed_before = request.session.testsfailed
    yield hosts_of_the_module
    if request.session.testsfailed > failed_before:
        hosts_of_the_module.close()


@pytest.fixture
def open_control_link() -> Iterator[Callable[..., ControlLink]]:
    """Opens ways through the test to a listener."""
    opened: list[ControlLink] = []

    def open_link(network: Network, target: tuple[str, int], delay_s: float = 0.0) -> ControlLink:
        opened.append(ControlLink(network.switch, target, delay_s))
        return opened[-1]

    yield open_link
    for link in opened:
        link.close()


@pytest.fixture(scope="session")
def nixl() -> None:
    """Skips tests that move bytes between hosts where nothing can."""
    if not any(importlib.util.find_spec(package) for package in NIXL):
        pytest.skip("NIXL is not installed: pip install 'llmdd[nixl]'")
