"""The habits of clients: they retry on some codes; when a pull fails they unlink by force, link again and go on.

Between processes, as programs do it (``Instance.pull_persistently``).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

Make = Callable[..., object]
LISTENING = {"listenIpInfo": "127.0.0.1:0"}


def test_an_owner_that_dies_and_comes_back_at_the_same_address(make_instance_process: Make) -> None:
    client, owner = make_instance_process(1), make_instance_process(2, **LISTENING)
    address = owner.address()
    owner.bind(7, 70)
    assert client.pull_persistently(2, 7, *address)[0] == 70, "the first link is made that way too"
    for life in range(3):
        owner.kill()
        client.ask("pull_persistently", 2, 7, *address)
        owner = make_instance_process(2, listenIpInfo=f"{address[0]}:{address[1]}")
        assert owner.address() == address
        owner.bind(7, 71 + life)
        value, seen = client.answer()
        assert value == 71 + life
        assert seen, "of its first life's link nothing could be had"


def test_a_client_that_dies_and_comes_back(make_instance_process: Make) -> None:
    owner = make_instance_process(2, **LISTENING)
    for life in range(3):
        client = make_instance_process(1)
        owner.bind(7, 70 + life)
        assert client.pull_persistently(2, 7, *owner.address())[0] == 70 + life
        client.kill()


def test_both_ends_unlink_by_force_and_link_again_at_once(make_instance_process: Make) -> None:
    ends = [make_instance_process(1, **LISTENING), make_instance_process(2, **LISTENING)]
    addresses = [end.address() for end in ends]
    assert ends[0].link_cluster(2, *addresses[1]) == "LLM_SUCCESS"
    for turn in range(10):
        breaking = ends[turn % 2]
        assert breaking.unlink_cluster(3 - breaking.cluster_id, "127.0.0.1", 1, True) == "LLM_SUCCESS"
        for end in ends:
            end.bind(turn, end.cluster_id)
        for end, other, address in zip(ends, reversed(ends), reversed(addresses), strict=True):
            end.ask("pull_persistently", other.cluster_id, turn, *address)
        assert [end.answer()[0] for end in ends] == [2, 1]


def test_members_of_a_communicator_that_all_link_again(make_instance_process: Make) -> None:
    """Any member may be the one that fails; each polls, and unlinks and links again when it does."""
    members = [make_instance_process(number, LinkTotalTime="1") for number in (1, 2, 3)]
    table = members[0].rank_table(3)
    for member in members[:2]:
        member.ask("link_persistently", "pool", [1, 2, 3], table)
    # The third is late: the others may have failed, and linked again, more than once.
    members[2].ask("link_persistently", "pool", [1, 2, 3], table)
    assert all(member.answer() > 0 for member in members)
    for owner in members:
        owner.bind(7, owner.cluster_id)
        owner.bind(8, owner.cluster_id)
        others = [member for member in members if member is not owner]
        assert [other.pull(owner.cluster_id, key) for other, key in zip(others, (7, 8), strict=True)] == (
            [owner.cluster_id] * 2
        )


def test_linking_to_a_frozen_cluster_is_retried_until_it_answers(make_instance_process: Make) -> None:
    client, owner = make_instance_process(1), make_instance_process(2, **LISTENING)
    address = owner.address()
    owner.bind(7, 70)
    owner.freeze()
    for _ in range(3):
        assert client.link_cluster(2, *address, 100) == "LLM_TIMEOUT"
    client.ask("pull_persistently", 2, 7, *address)
    owner.thaw()
    assert client.answer()[0] == 70


def test_a_call_for_a_cluster_while_another_is_under_way_may_be_made_again(make_instance: Make) -> None:
    """``LLM_LINK_BUSY``: nothing was begun."""
    client, owner = make_instance(1), make_instance(2, **LISTENING)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as background:
        stuck = background.submit(client.link_cluster, 2, *silent.getsockname(), 20_000)
        waiting, _ = silent.accept()
        assert client.link_cluster(2, *owner.address(), 200) == "LLM_LINK_BUSY"
        assert not stuck.done()
        waiting.close()
        assert client.link_cluster(2, *owner.address(), 20_000) == "LLM_SUCCESS"
        assert stuck.result() == "LLM_FAILED"


def test_many_threads_pull_over_one_link_with_little_time(make_instance: Make) -> None:
    """Whoever meets its deadline while others hold the link tries again, and has everything in the end, once."""
    client, owner = make_instance(1, SyncKvCacheWaitTime="50"), make_instance(2, **LISTENING)
    assert client.link_cluster(2, *owner.address()) == "LLM_SUCCESS"
    requests = list(range(100))
    for request in requests:
        owner.bind(request, request)
    with ThreadPoolExecutor(16) as threads:
        pulled = threads.map(lambda request: client.pull_persistently(2, request, *owner.address()), requests)
        assert [value for value, _ in pulled] == requests
    assert {client.pull(2, request) for request in requests} == {"LLM_KV_CACHE_NOT_EXIST"}
    assert owner.datadist.cache_manager.live_keys == 0


def test_the_code_that_is_said_of_a_link_that_stands(make_instance_process: Make) -> None:
    client, owner = make_instance_process(1), make_instance_process(2, **LISTENING)
    assert client.link_cluster(2, *owner.address()) == "LLM_SUCCESS"
    assert client.link_cluster(2, *owner.address()) == "LLM_ALREADY_LINK"
    owner.bind(7, 70)
    assert client.pull(2, 7) == 70, "linking twice does a link no harm"


@pytest.mark.parametrize("listening", ["[::1]:0", "127.0.0.1:0", "0.0.0.0:0", "[::]:0"])
def test_addresses_of_both_kinds(make_instance_process: Make, listening: str) -> None:
    client, owner = make_instance_process(1), make_instance_process(2, listenIpInfo=listening, ours={"OpenLinks": "1"})
    host, port = owner.address()
    assert port != 0
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    owner.bind(7, 70)
    assert client.pull_persistently(2, 7, reached, port)[0] == 70
    assert client.unlink_cluster(2, reached, port, False) == "LLM_SUCCESS"
    assert client.pull(2, 7) == "LLM_NOT_YET_LINK"
