"""api §4.2: ``link``, ``query_register_mem_status``, ``unlink``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llmdd.spec.values import CacheDesc
from rank_tables import rank_table

from conformance.world import Node, World, by_id, info_of, link, options_of, outcome, refused, request

NOT_LINKED, LX = "LLM_NOT_YET_LINK", "LLM_PARAM_INVALID"
C = CacheDesc(2, (1, 64), "DT_UINT8")


def members_of(world: World, count: int, **settings: Any) -> list[Node]:
    return [world.node(number, **settings) for number in range(1, count + 1)]


def ranks_of(members: list[Node]) -> dict[int, int]:
    return {member.cluster_id: rank for rank, member in enumerate(members)}


def link_all(world: World, members: list[Node], name: str = "pool") -> list[int]:
    """All members call ``link`` and wait for OK."""
    table = rank_table(len(members))
    numbers = [member.link(name, ranks_of(members), table) for member in members]
    for member, number in zip(members, numbers, strict=True):
        wait_for(world, member, number, "OK")
    return numbers


def wait_for(world: World, member: Node, number: int, status: str) -> None:
    world.until(lambda: member.query_register_mem_status(number) == status, f"the status of {number} is {status}")


def can_pull(puller: Node, owner: Node) -> Any:
    theirs, ours = owner.allocate_cache(C), puller.allocate_cache(C)
    answer = outcome(lambda: puller.pull_cache(by_id(theirs, cluster_id=owner.cluster_id), ours))
    owner.deallocate_cache(theirs)
    puller.deallocate_cache(ours)
    return answer


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_members_are_connected(world: World, count: int) -> None:
    """api §4.2: every member calls ``link`` with the same arguments (2 to 4 members); then all reach all."""
    members = members_of(world, count)
    link_all(world, members)
    assert [can_pull(a, b) for a in members for b in members if a is not b] == [None] * (count * (count - 1))


def test_ids(world: World) -> None:
    """api §4.2: the id is a uint64, the first is 1, never reused until finalize."""
    members = members_of(world, 2)
    for expected in (1, 2, 3):
        numbers = link_all(world, members, f"pool {expected}")
        assert numbers == [expected, expected]
        if expected == 1:
            for member in members:
                member.unlink(1)
    for member in members:
        member.finalize()
        member.init(options_of())
    assert link_all(world, members) == [1, 1]


def test_preparing(world: World) -> None:
    """api §4.2: ``link`` returns before the members are connected; PREPARING until all are, then OK."""
    members, table = members_of(world, 3), rank_table(3)
    for member in members[:2]:
        assert member.link("pool", ranks_of(members), table) == 1
        assert member.query_register_mem_status(1) == "PREPARING"
    assert can_pull(members[0], members[1]) == NOT_LINKED
    members[2].link("pool", ranks_of(members), table)
    for member in members:
        wait_for(world, member, 1, "OK")
    assert can_pull(members[0], members[1]) is None


def test_failed(library: Any) -> None:
    """api §4.2: FAILED when the deadline ``llm.LinkTotalTime`` passes; transfers are LX(NOT_YET_LINK)."""
    members = members_of(library, 2, LinkTotalTime="1")
    number = members[0].link("pool", ranks_of(members), rank_table(2))
    wait_for(library, members[0], number, "FAILED")
    assert can_pull(members[0], members[1]) == NOT_LINKED
    members[0].unlink(number)
    with refused(NOT_LINKED):
        members[0].query_register_mem_status(number)


def test_attempts_share_the_time(library: Any) -> None:
    """api §4.2: ``llm.LinkRetryCount`` attempts share that time: it is no multiple of it."""
    members = members_of(library, 2, LinkTotalTime="1", LinkRetryCount="100")
    number = members[0].link("pool", ranks_of(members), rank_table(2))
    wait_for(library, members[0], number, "FAILED")  # not after 100 s


def test_unknown_ids(world: World) -> None:
    """api §4.2: unknown id: LX(NOT_YET_LINK), for the query and for unlink."""
    members = members_of(world, 2)
    link_all(world, members)
    for name in ("query_register_mem_status", "unlink"):
        for unknown in (0, 2, 2**64 - 1):
            with refused(NOT_LINKED):
                members[0].call(name, unknown)
    assert members[0].query_register_mem_status(1) == "OK"


def test_unlink(world: World) -> None:
    """api §4.2: ``unlink`` drops the communicator and its links on this side; each member calls it."""
    members = members_of(world, 2)
    link_all(world, members)
    members[0].unlink(1)
    for name in ("query_register_mem_status", "unlink"):
        with refused(NOT_LINKED):
            members[0].call(name, 1)
    assert can_pull(members[0], members[1]) == NOT_LINKED
    members[1].unlink(1)
    assert can_pull(members[1], members[0]) == NOT_LINKED
    assert members[0].is_entirely_free() and members[1].is_entirely_free()


def test_unlink_while_preparing(world: World) -> None:
    """api §4.2: ``unlink`` waits for preparation to stop."""
    members = members_of(world, 2)
    members[0].link("pool", ranks_of(members), rank_table(2))
    members[0].unlink(1)
    with refused(NOT_LINKED):
        members[0].query_register_mem_status(1)
    assert link_all(world, members) == [2, 1]


def test_a_pair_stays_linked_while_one_communicator_remains(world: World) -> None:
    """api §4.2: several communicators may connect the same pair; it stays linked while one remains (D59)."""
    members = members_of(world, 2)
    for name in ("one", "two", "three"):
        link_all(world, members, name)
    for number in (2, 1):
        for member in members:
            member.unlink(number)
        assert can_pull(members[0], members[1]) is None
        assert can_pull(members[1], members[0]) is None
    members[0].unlink(3)
    assert can_pull(members[0], members[1]) == NOT_LINKED


def test_a_one_sided_link_beside_a_communicator(world: World) -> None:
    """api §4.2, D59: links are removed by identity: unlinking one leaves the other."""
    members = members_of(world, 2)
    link_all(world, members)
    link(members[1], members[0])
    for member in members:
        member.unlink(1)
    assert can_pull(members[1], members[0]) is None
    assert can_pull(members[0], members[1]) is None
    members[1].unlink_clusters([info_of(members[0])])
    assert can_pull(members[1], members[0]) == NOT_LINKED


def test_a_table_without_addresses(world: World) -> None:
    """api §4.2: a table from which no address can be derived: LX(LINK_FAILED)."""
    node = world.node(1)
    nowhere = {"server_list": [{"device": [{"device_id": "0", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}]}]}
    for table in ("", "{}", "not JSON", "[]", json.dumps(nowhere)):
        with refused("LLM_LINK_FAILED"):
            node.link("pool", {1: 0, 2: 1}, table)


def test_a_documented_table(world: World) -> None:
    """api §4.2: ``server_list[].device[]`` with ``device_id``, ``device_ip``, ``rank_id`` and ``server_id``."""
    table = json.loads(rank_table(2))
    assert set(table) == {"server_count", "status", "version", "server_list"}
    assert {"device_id", "device_ip", "rank_id"} <= set(table["server_list"][0]["device"][0])
    link_all(world, members_of(world, 2))


def test_release_over_a_communicator(world: World) -> None:
    """api §4.2: transfers between members follow the same rules as over any link."""
    members = members_of(world, 2)
    link_all(world, members)
    owner, puller = members
    theirs = owner.fill(owner.allocate_cache(C, [request(1)]), 1)
    content = owner.contents(theirs)
    owner.deallocate_cache(theirs)
    ours = puller.allocate_cache(C)
    puller.pull_cache(request(1), ours)
    assert puller.contents(ours) == content
    assert owner.is_entirely_free()


@pytest.mark.parametrize("remote", [False, True])
def test_registering_while_a_communicator_lives(world: World, remote: bool) -> None:
    """api §4.2, §3.9, D51: ``remote_accessible`` True is LX while a communicator lives, and the default is False."""
    members = members_of(world, 2, remote=remote)
    link_all(world, members)
    owner, puller = members
    address = owner.own_memory(1 << 13)
    addrs = [address, address + 4096]
    with refused(LX, "register remote accessible cache after link"):
        owner.register_cache(C, [], [], True)
    with refused(LX, "register remote accessible cache after link"):
        owner.register_blocks_cache(C, [], None, True)
    cache = owner.register_cache(C, addrs)
    ours = puller.allocate_cache(C)
    if remote:
        with refused(LX, "not remote accessible"):
            puller.pull_cache(by_id(cache), ours)
    for member in members:
        member.unlink(1)
    owner.register_cache(C, addrs, [], True)
