"""Where NIXL is missing: a link to another host is refused at once, with a word on what to do; one host needs none."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import NIXL, HostProcess
from .network import Network

# The other end is not waited for: this much time is never spent.
LINK_TIMEOUT_MS = 600_000


@pytest.fixture
def network(lasting_network: Network) -> Network:
    return lasting_network


def refused(here: HostProcess, there: HostProcess, **settings: Any) -> list[str]:
    """What is logged here about a link that is refused."""
    client, server = here.open(1, **settings), there.open(2)
    assert client.address is not None and server.address is not None
    here.call("log")
    assert client.link(2, *server.address, LINK_TIMEOUT_MS) == "LLM_LINK_FAILED"
    assert client.pull(2, 7, client.allocate(1, 100)) == "LLM_NOT_YET_LINK"
    lines: list[str] = here.call("log")
    return lines


@pytest.mark.parametrize("without", ["here", "there", "both"])
def test_two_hosts_are_not_linked(nixl: None, network: Network, start_process: Any, without: str) -> None:
    here, there = (
        start_process(host, missing=NIXL if without in (place, "both") else ())
        for host, place in zip(network.hosts, ("here", "there"), strict=True)
    )
    told = "\n".join(refused(here, there))
    assert "pip install" in told
    assert f"cluster {1 if without != 'there' else 2}" in told, "whose host lacks it"


def test_nothing_of_a_refused_link_is_left(network: Network, start_process: Any, eventually: Any) -> None:
    here, there = (start_process(host, missing=NIXL) for host in network.hosts)
    refused(here, there)
    resources = [process.call("resources") for process in (here, there)]
    for attempt in range(10):
        client = here.open(3 + attempt, listens=False)
        server = there.open(103 + attempt)
        assert client.link_to(server) == "LLM_LINK_FAILED"
        for node in (client, server):
            node.process.call("close", node.cluster_id)
    for process, before in zip((here, there), resources, strict=True):
        eventually(lambda process=process, before=before: process.call("resources") == before, "everything is back")


def test_one_host_needs_none(network: Network, start_process: Any) -> None:
    owner, puller = (
        start_process(network.hosts[0], missing=NIXL).open(cluster_id, listens=cluster_id == 1) for cluster_id in (1, 2)
    )
    owner.bind(7, 2, 100_000)
    assert puller.link_to(owner) == "LLM_SUCCESS"
    assert puller.fetch(1, 7, 2, 100_000) == "right"


@pytest.mark.parametrize("insists", ["initiator", "acceptor", "both"])
class TestInsistingOnOneHost:
    """``transfer_backend`` wants NIXL where shared memory would do."""

    def nodes(self, network: Network, start_process: Any, insists: str, missing: tuple[str, ...]) -> list[Any]:
        return [
            start_process(network.hosts[0], missing=missing).open(
                cluster_id, backend="nixl" if insists in (role, "both") else None, timeout_ms=1000
            )
            for cluster_id, role in ((1, "initiator"), (2, "acceptor"))
        ]

    def test_without_it(self, network: Network, start_process: Any, insists: str) -> None:
        initiator, acceptor = self.nodes(network, start_process, insists, NIXL)
        assert initiator.link_to(acceptor) == "LLM_LINK_FAILED"

    def test_with_it(self, nixl: None, network: Network, start_process: Any, insists: str) -> None:
        initiator, acceptor = self.nodes(network, start_process, insists, ())
        assert initiator.link_to(acceptor) == "LLM_SUCCESS"
        for number in (7, 8):
            acceptor.bind(number, 4, 1 << 20)
        assert initiator.fetch(2, 7, 4, 1 << 20) == "right"
        acceptor.process.freeze()
        assert initiator.fetch(2, 8, 4, 1 << 20) == "LLM_TIMEOUT", "out of shared memory it would have been had"
        acceptor.process.thaw()
        assert initiator.fetch(2, 8, 4, 1 << 20) == "right"
