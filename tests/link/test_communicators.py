"""Links by rank table: ``link``, ``query_register_mem_status``, ``unlink`` (api §4.2)."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from instance_process import code_of
from rank_tables import loopback_hosts, rank_table

from llmdd import Cache, CacheDesc, CacheKeyByIdAndIndex, DataType, LLMException, LLMStatusCode

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

Make = Callable[..., object]


def connect(members: list, table: str, name: str = "pool") -> list[int]:
    """Have all members call ``link``; their ids of the communicator."""
    ranks = [member.cluster_id for member in members]
    return [member.link(name, ranks, table) for member in members]


def all_ok(members: list, numbers: list[int]) -> bool:
    return all(member.status(number) == "OK" for member, number in zip(members, numbers, strict=True))


def assert_linked(members: list) -> None:
    """Bytes can be pulled by each member from each."""
    for owner in members:
        for puller in members:
            if puller is not owner:
                owner.bind(5, owner.cluster_id)
                assert puller.pull(owner.cluster_id, 5) == owner.cluster_id


@pytest.fixture
def two(make_instance: Make, eventually: Callable) -> tuple[list, list[int]]:
    """Two members in this process, connected, and their ids of the communicator."""
    members = [make_instance(1), make_instance(2)]
    numbers = connect(members, rank_table(2))
    eventually(lambda: all_ok(members, numbers), "the members are connected")
    return members, numbers


# -- meeting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_that_all_call_at_once(make_instance_process: Make, eventually: Callable, ranks: int) -> None:
    members = [make_instance_process(10 + rank) for rank in range(ranks)]
    clusters, table = [member.cluster_id for member in members], rank_table(ranks)
    for member in members:
        member.ask("link", "pool", clusters, table)
    numbers = [member.answer() for member in members]
    assert numbers == [1] * ranks
    eventually(lambda: all_ok(members, numbers), "all are connected")
    assert_linked(members)
    for member in members:
        member.ask("unlink", 1)
    assert [member.answer() for member in members] == ["LLM_SUCCESS"] * ranks
    assert members[0].pull(members[1].cluster_id, 7) == "LLM_NOT_YET_LINK"


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]], ids=str)
def test_nobody_has_to_come_first(make_instance: Make, eventually: Callable, order: list[int]) -> None:
    members, table = [make_instance(1), make_instance(2), make_instance(3)], rank_table(3)
    ranks = [member.cluster_id for member in members]
    members[0].bind(7, 70)
    for place in order[:2]:
        assert members[place].link("pool", ranks, table) == 1
        assert members[place].status(1) == "PREPARING"
    assert [members[place].pull(cluster, 7) for place, cluster in ((1, 1), (2, 1))] == ["LLM_NOT_YET_LINK"] * 2
    assert [members[place].status(1) for place in order[:2]] == ["PREPARING"] * 2
    assert members[order[2]].link("pool", ranks, table) == 1
    eventually(lambda: all_ok(members, [1, 1, 1]), "all are connected")
    assert_linked(members)


def test_a_client_that_polls_right_after_link_sees_it_preparing(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(2)
    seen: list[str] = []
    for member in members:
        member.link("pool", [1, 2], table)
        seen.append(member.status(1))

    def poll() -> bool:
        seen.append(members[1].status(1))
        return seen[-1] == "OK"

    eventually(poll, "the second is connected")
    assert seen[0] == "PREPARING"
    assert set(seen) == {"PREPARING", "OK"} and "PREPARING" not in seen[seen.index("OK") :]


def test_ids_count_from_1_and_are_not_used_again(make_instance: Make) -> None:
    member, table = make_instance(2), rank_table(2)
    assert [member.link("pool", [1, 2], table) for _ in range(3)] == [1, 2, 3]
    assert member.unlink(3) == "LLM_SUCCESS"
    assert member.link("pool", [1, 2], table) == 4
    member.datadist.finalize()
    member.datadist.init(member.options)
    assert member.link("pool", [1, 2], table) == 1


def test_ranks_need_not_be_0_and_1(make_instance: Make, eventually: Callable) -> None:
    members = [make_instance(9), make_instance(4)]
    table = json.loads(rank_table(2))
    for server, rank in zip(table["server_list"], (3, 70), strict=True):
        server["device"][0]["rank_id"] = str(rank)
    ids = [member.datadist.link("pool", {9: 3, 4: 70}, json.dumps(table)) for member in members]
    eventually(lambda: all_ok(members, ids), "both are connected")


def test_a_table_written_another_way_is_the_same_table(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(2)
    members[0].link("pool", [1, 2], table)
    members[1].link("pool", [1, 2], json.dumps(json.loads(table), indent=2, sort_keys=True))
    eventually(lambda: all_ok(members, [1, 1]), "both are connected")


def test_ipv6_addresses(make_instance_process: Make, eventually: Callable) -> None:
    members = [make_instance_process(1), make_instance_process(2)]
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
        port = free.getsockname()[1]
    table = json.loads(rank_table(2, ["::1", "::1"]))
    table["server_list"][0]["device"][0]["device_port"] = str(port)
    table["server_list"][1]["device"][0]["device_port"] = str(port + 1 if port < 65535 else port - 1)
    numbers = connect(members, json.dumps(table))
    eventually(lambda: all_ok(members, numbers), "both are connected")
    assert_linked(members)


def test_nothing_is_worth_a_warning(two: tuple, caplog: pytest.LogCaptureFixture) -> None:
    members, numbers = two
    assert_linked(members)
    assert [member.unlink(number) for member, number in zip(members, numbers, strict=True)] == ["LLM_SUCCESS"] * 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- meeting in vain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster_id", [1, 2])
def test_a_member_that_never_comes(make_instance: Make, eventually: Callable, cluster_id: int) -> None:
    member = make_instance(cluster_id, LinkTotalTime="1")
    number = member.link("pool", [1, 2], rank_table(2))
    assert member.status(number) == "PREPARING"
    eventually(lambda: member.status(number) == "FAILED", "the deadline has passed")
    assert member.pull(3 - cluster_id, 7) == "LLM_NOT_YET_LINK"
    assert member.unlink(number) == "LLM_SUCCESS"
    with pytest.raises(LLMException) as refused:
        member.status(number)
    assert refused.value.status_code is LLMStatusCode.LLM_NOT_YET_LINK


def test_members_that_were_connected_are_let_go_when_another_never_comes(
    make_instance: Make, eventually: Callable
) -> None:
    members, table = [make_instance(1, LinkTotalTime="1"), make_instance(2)], rank_table(3)
    for member in members:
        member.link("pool", [1, 2, 3], table)
    eventually(lambda: members[0].status(1) == "FAILED", "the first member's deadline has passed")
    assert members[1].status(1) == "PREPARING", "its own has not"
    # Whoever has failed may try again; the one that waits need not.
    assert members[0].unlink(1) == "LLM_SUCCESS"
    again = [members[0].link("pool", [1, 2, 3], table), 1]
    last = make_instance(3)
    members.append(last)
    again.append(last.link("pool", [1, 2, 3], table))
    eventually(lambda: all_ok(members, again), "all are connected")


def test_the_longest_deadline_there_is(make_instance: Make) -> None:
    member = make_instance(1, LinkTotalTime=str(2**32 - 1), LinkRetryCount="100")
    number = member.link("pool", [1, 2], rank_table(2))
    assert member.status(number) == "PREPARING"
    assert member.unlink(number) == "LLM_SUCCESS"


def other_map(members: list, table: str) -> list[int]:
    return [members[0].link("pool", [1, 2], table), members[1].link("pool", [1, 2, 3], table)]


def other_table(members: list, table: str) -> list[int]:
    other = json.loads(table)
    other["server_list"][2]["device"][0]["device_ip"] = loopback_hosts(1)[0]
    return [members[0].link("pool", [1, 2], table), members[1].link("pool", [1, 2], json.dumps(other))]


@pytest.mark.parametrize("disagree", [other_map, other_table])
def test_members_that_were_told_different_things_fail_at_once(
    make_instance: Make, eventually: Callable, caplog: pytest.LogCaptureFixture, disagree: Callable
) -> None:
    members = [make_instance(1), make_instance(2)]
    numbers = disagree(members, rank_table(3))
    for member, number in zip(members, numbers, strict=True):
        eventually(lambda member=member, number=number: member.status(number) == "FAILED", "they cannot agree")
    assert "different members or rank tables" in caplog.text
    for member, number in zip(members, numbers, strict=True):
        assert member.unlink(number) == "LLM_SUCCESS"
    numbers = connect(members, rank_table(2))
    eventually(lambda: all_ok(members, numbers), "now they agree")


def test_members_that_differ_in_remote_mode_fail_at_once(make_instance: Make, eventually: Callable) -> None:
    members = [make_instance(1), make_instance(2, EnableRemoteCacheAccessible="1")]
    numbers = connect(members, rank_table(2))
    for member, number in zip(members, numbers, strict=True):
        eventually(lambda member=member, number=number: member.status(number) == "FAILED", "they cannot agree")


def test_another_cluster_at_a_members_address(make_instance: Make, eventually: Callable) -> None:
    hosts = loopback_hosts(2)
    stranger = make_instance(9, listenIpInfo=f"{hosts[0]}:16666")
    member = make_instance(2)
    number = member.link("pool", [1, 2], rank_table(2, hosts))
    eventually(lambda: member.status(number) == "FAILED", "the stranger does not know itself by that id")
    assert stranger.address() == (hosts[0], 16666)


def test_a_communicator_of_another_name_waits(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(2)
    assert members[0].link("one", [1, 2], table) == 1
    assert members[1].link("other", [1, 2], table) == 1
    assert members[1].link("one", [1, 2], table) == 2
    eventually(lambda: all_ok(members, [1, 2]), "the two of one name are connected")
    assert members[1].status(1) == "PREPARING"
    assert members[0].link("other", [1, 2], table) == 2
    eventually(lambda: all_ok(members, [2, 1]), "so are the others")


def test_an_address_in_use(make_instance: Make, eventually: Callable) -> None:
    hosts = loopback_hosts(2)
    member = make_instance(1)
    with socket.create_server((hosts[0], 16666)):
        number = member.link("pool", [1, 2], rank_table(2, hosts))
        eventually(lambda: member.status(number) == "FAILED", "nobody can reach this member")
    members = [member, make_instance(2)]
    numbers = connect(members, rank_table(2, hosts), "again")
    eventually(lambda: all_ok(members, numbers), "the address is free now")


def test_an_address_in_use_for_a_while(make_instance: Make, eventually: Callable) -> None:
    hosts = loopback_hosts(2)
    members = [make_instance(1, LinkTotalTime="10", LinkRetryCount="100"), make_instance(2)]
    with socket.create_server((hosts[0], 16666)) as in_the_way:
        numbers = connect(members, rank_table(2, hosts))
        assert members[0].status(numbers[0]) == "PREPARING", "99 more attempts share the time"
        in_the_way.close()
        eventually(lambda: all_ok(members, numbers), "one of them found the address free")


def test_an_address_that_is_not_of_this_host(make_instance: Make, eventually: Callable) -> None:
    member = make_instance(1, ours={"OpenLinks": "1"})
    number = member.link("pool", [1, 2], rank_table(2, ["192.0.2.1", "192.0.2.2"]))
    eventually(lambda: member.status(number) == "FAILED", "nobody can listen there")


# -- one of several ---------------------------------------------------------------------------------------------------


def test_a_pair_stays_linked_while_one_communicator_remains(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(2)
    for name in ("one", "two", "three"):
        connect(members, table, name)
    for number in (1, 2, 3):
        eventually(lambda number=number: all_ok(members, [number, number]), "connected")
    for number in (1, 3):
        for member in members:
            assert member.unlink(number) == "LLM_SUCCESS"
            assert_linked(members)
    assert members[0].unlink(2) == "LLM_SUCCESS"
    members[0].bind(7, 70)
    members[1].bind(7, 70)
    assert members[0].pull(2, 7) == "LLM_NOT_YET_LINK"
    eventually(lambda: members[1].pull(1, 7) == "LLM_NOT_YET_LINK", "the other member has been told")
    assert members[1].status(2) == "OK", "it dropped nothing itself"


def test_transfers_do_not_notice_that_communicators_come_and_go(make_instance: Make, eventually: Callable) -> None:
    """A transfer whose turn comes when its communicator has been dropped takes another one."""
    members, table = [make_instance(1), make_instance(2)], rank_table(2)
    managers = [member.datadist.cache_manager for member in members]
    large = CacheDesc(2, (1, 128 << 10), DataType.DT_UINT8)
    theirs, ours = managers[0].allocate_cache(large), [managers[1].allocate_cache(large) for _ in range(3)]
    connect(members, table, "0")
    eventually(lambda: all_ok(members, [1, 1]), "connected")
    stop = threading.Event()

    def pull(cache: Cache) -> int:
        count = 0
        while not stop.is_set():
            managers[1].pull_cache(CacheKeyByIdAndIndex(1, theirs.cache_id), cache)
            count += 1
        return count

    with ThreadPoolExecutor(3) as threads:
        pulls = [threads.submit(pull, cache) for cache in ours]
        try:
            for number in range(2, 32):
                connect(members, table, str(number))
                eventually(lambda number=number: all_ok(members, [number, number]), "connected")
                for member in members:
                    assert member.unlink(number - 1) == "LLM_SUCCESS"
        finally:
            stop.set()
        assert all(pulled.result() > 0 for pulled in pulls)


@pytest.mark.parametrize("first_to_go", ["communicator", "link"])
def test_a_communicator_beside_a_link(make_instance: Make, eventually: Callable, first_to_go: str) -> None:
    members = [make_instance(1, listenIpInfo="127.0.0.1:0"), make_instance(2)]
    numbers = connect(members, rank_table(2))
    assert members[1].link_cluster(1, *members[0].address()) == "LLM_SUCCESS"
    eventually(lambda: all_ok(members, numbers), "connected")
    assert_linked(members)
    if first_to_go == "communicator":
        assert [member.unlink(number) for member, number in zip(members, numbers, strict=True)] == ["LLM_SUCCESS"] * 2
        assert_linked(members)
        assert members[1].unlink_cluster(1, *members[0].address(), False) == "LLM_SUCCESS"
    else:
        assert members[1].unlink_cluster(1, *members[0].address(), False) == "LLM_SUCCESS"
        assert_linked(members)
        assert [member.unlink(number) for member, number in zip(members, numbers, strict=True)] == ["LLM_SUCCESS"] * 2
    assert members[1].pull(1, 7) == "LLM_NOT_YET_LINK"


def test_a_rank_whose_address_is_where_the_instance_listens_anyway(make_instance: Make, eventually: Callable) -> None:
    hosts = loopback_hosts(2)
    members = [make_instance(1, listenIpInfo=f"{hosts[0]}:16666"), make_instance(2)]
    numbers = connect(members, rank_table(2, hosts))
    eventually(lambda: all_ok(members, numbers), "connected")
    assert members[1].link_cluster(1, hosts[0], 16666) == "LLM_SUCCESS", "it still listens"


def test_the_address_is_listened_at_only_while_preparing(make_instance: Make, eventually: Callable) -> None:
    hosts = loopback_hosts(2)
    members = [make_instance(1), make_instance(2)]
    numbers = connect(members, rank_table(2, hosts))
    eventually(lambda: all_ok(members, numbers), "connected")

    def can_be_listened_at() -> bool:
        try:
            socket.create_server((hosts[0], 16666)).close()
        except OSError:
            return False
        return True

    eventually(can_be_listened_at, "the address is free")


def test_512_communicators(make_instance: Make) -> None:
    member, table = make_instance(1), rank_table(2)
    assert [member.link("pool", [1, 2], table) for _ in range(512)] == list(range(1, 513))
    assert member.datadist.cache_manager.communicators == 512
    assert code_of(lambda: member.link("pool", [1, 2], table)) == "LLM_PARAM_INVALID"
    assert member.unlink(77) == "LLM_SUCCESS"
    assert member.datadist.cache_manager.communicators == 511
    assert member.link("pool", [1, 2], table) == 513


# -- parting ----------------------------------------------------------------------------------------------------------


def test_unlinking_while_preparing(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(3)
    for member in members:
        assert member.link("pool", [1, 2, 3], table) == 1
        assert member.unlink(1) == "LLM_SUCCESS"
        assert code_of(lambda member=member: member.status(1)) == "LLM_NOT_YET_LINK"
        assert member.link("pool", [1, 2, 3], table) == 2
    assert members[1].unlink(2) == "LLM_SUCCESS", "also where some member may be connected already"
    members.append(make_instance(3))
    numbers = [2, members[1].link("pool", [1, 2, 3], table), members[2].link("pool", [1, 2, 3], table)]
    eventually(lambda: all_ok(members, numbers), "all are connected")
    assert_linked(members)


def test_unknown_ids(two: tuple) -> None:
    member = two[0][0]
    for number in (0, 2, 2**64 - 1):
        assert member.unlink(number) == "LLM_NOT_YET_LINK"
        assert code_of(lambda number=number: member.status(number)) == "LLM_NOT_YET_LINK"
    assert member.unlink(1) == "LLM_SUCCESS"
    assert member.unlink(1) == "LLM_NOT_YET_LINK"


def test_linking_again_after_unlinking(two: tuple, eventually: Callable) -> None:
    members, numbers = two
    table = rank_table(2)
    for _ in range(5):
        for member, number in zip(members, numbers, strict=True):
            assert member.unlink(number) == "LLM_SUCCESS"
        numbers = connect(members, table)
        eventually(lambda: all_ok(members, numbers), "connected again")  # noqa: B023 (called here)
        assert_linked(members)


def test_a_member_that_unlinks_and_links_again_waits_for_the_others_to_do_so(two: tuple, eventually: Callable) -> None:
    members, _ = two
    table = rank_table(2)
    assert members[0].unlink(1) == "LLM_SUCCESS"
    assert members[0].link("pool", [1, 2], table) == 2
    assert members[0].status(2) == "PREPARING"
    assert members[1].unlink(1) == "LLM_SUCCESS"
    assert members[1].link("pool", [1, 2], table) == 2
    eventually(lambda: all_ok(members, [2, 2]), "connected again")


def test_finalize_parts_from_the_members(two: tuple, eventually: Callable) -> None:
    members, _ = two
    members[0].finalize()
    members[1].bind(7, 70)
    eventually(lambda: members[1].pull(1, 7) == "LLM_NOT_YET_LINK", "the other has been told")
    assert members[1].unlink(1) == "LLM_SUCCESS"


def test_finalize_while_preparing(make_instance: Make, eventually: Callable) -> None:
    members, table = [make_instance(1), make_instance(2)], rank_table(3)
    connect_two = [member.link("pool", [1, 2, 3], table) for member in members]
    assert connect_two == [1, 1]
    for member in members:
        member.finalize()
        assert code_of(lambda member=member: member.status(1)) == "LLM_ENGINE_FINALIZED"


# -- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_member_killed_while_preparing_may_come_back(
    make_instance_process: Make, eventually: Callable, victim: int
) -> None:
    clusters, table = [1, 2, 3], rank_table(3)
    early = [place for place in range(3) if place != (victim + 1) % 3]
    members = {place: make_instance_process(clusters[place]) for place in early}
    for member in members.values():
        assert member.link("pool", clusters, table) == 1
    members[victim].kill()
    others = [place for place in early if place != victim]
    assert [members[place].status(1) for place in others] == ["PREPARING"]
    for place in range(3):
        if place not in others:
            members[place] = make_instance_process(clusters[place])
            assert members[place].link("pool", clusters, table) == 1
    everyone = [members[place] for place in range(3)]
    eventually(lambda: all_ok(everyone, [1, 1, 1]), "all are connected")
    assert_linked(everyone)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_member_killed_afterwards(make_instance_process: Make, eventually: Callable, victim: int) -> None:
    clusters, table = [1, 2, 3], rank_table(3)
    members = [make_instance_process(cluster) for cluster in clusters]
    numbers = connect(members, table)
    eventually(lambda: all_ok(members, numbers), "all are connected")
    members[victim].kill()
    rest = [member for member in members if member is not members[victim]]
    for member in rest:
        eventually(lambda member=member: member.pull(clusters[victim], 7) == "LLM_NOT_YET_LINK", "the death is noticed")
    assert_linked(rest)
    assert [member.status(1) for member in rest] == ["OK", "OK"]
    # A new member of the same name comes about when all call link again.
    members[victim] = make_instance_process(clusters[victim])
    assert members[victim].link("pool", clusters, table) == 1
    assert members[victim].status(1) == "PREPARING"
    for member in rest:
        assert member.unlink(1) == "LLM_SUCCESS"
        assert member.link("pool", clusters, table) == 2
    eventually(lambda: all_ok(members, [1 if place == victim else 2 for place in range(3)]), "all are connected again")
    assert_linked(members)


def test_unlinking_a_dead_member(make_instance: Make, make_instance_process: Make, eventually: Callable) -> None:
    member, other = make_instance(1), make_instance_process(2)
    numbers = connect([member, other], rank_table(2))
    eventually(lambda: all_ok([member, other], numbers), "connected")
    other.kill()
    assert member.unlink(1) == "LLM_SUCCESS"


def test_unlinking_a_frozen_member(make_instance: Make, make_instance_process: Make, eventually: Callable) -> None:
    member, other = make_instance(1, SyncKvCacheWaitTime="200"), make_instance_process(2)
    numbers = connect([member, other], rank_table(2))
    eventually(lambda: all_ok([member, other], numbers), "connected")
    other.freeze()
    assert member.unlink(1) == "LLM_SUCCESS"
    other.thaw()
    other.bind(7, 70)
    eventually(lambda: other.pull(1, 7) == "LLM_NOT_YET_LINK", "it has been told")


# -- what link refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"comm_name": ""}, "comm_name can not be empty"),
        ({"comm_name": "x" * 128}, "less than 128"),
        ({"cluster_rank_info": {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}}, "can not be greater than 4"),
        ({"cluster_rank_info": {1: 0}}, "cluster num must be bigger than 1"),
        ({"cluster_rank_info": {}}, "cluster num must be bigger than 1"),
        ({"cluster_rank_info": {1: 1, 2: 0}}, "must be ordered"),
        ({"cluster_rank_info": {1: 0, 2: 0}}, "must be ordered"),
        ({"cluster_rank_info": {2: 0, 3: 1}}, "this one, is not among"),
    ],
    ids=str,
)
def test_arguments_that_contradict_the_contract(make_instance: Make, changes: dict, fragment: str) -> None:
    datadist = make_instance(1).datadist
    arguments = {"comm_name": "x" * 127, "cluster_rank_info": {1: 0, 2: 1}, "rank_table": rank_table(2), **changes}
    with pytest.raises(LLMException, match=fragment) as refused:
        datadist.link(**arguments)
    assert refused.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert datadist.cache_manager.communicators == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"comm_name": None}, TypeError),
        ({"comm_name": 1}, TypeError),
        ({"cluster_rank_info": None}, AttributeError),
        ({"cluster_rank_info": [1, 2]}, TypeError),
        ({"cluster_rank_info": {"1": 0, 2: 1}}, TypeError),
        ({"cluster_rank_info": {1: 0, 2: "1"}}, TypeError),
        ({"cluster_rank_info": {-1: 0, 2: 1}}, ValueError),
        ({"cluster_rank_info": {2**64: 0, 2: 1}}, ValueError),
        ({"cluster_rank_info": {1: -1, 2: 1}}, ValueError),
        ({"cluster_rank_info": {1: 0, 2: 2**32}}, ValueError),
        ({"rank_table": None}, TypeError),
        ({"rank_table": b"{}"}, TypeError),
        ({"cluster_rank_info": {1: 0}, "rank_table": None}, TypeError),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type(make_instance: Make, changes: dict, error: type) -> None:
    datadist = make_instance(1).datadist
    arguments = {"comm_name": "pool", "cluster_rank_info": {1: 0, 2: 1}, "rank_table": rank_table(2), **changes}
    with pytest.raises(error):
        datadist.link(**arguments)


@pytest.mark.parametrize("call", ["query_register_mem_status", "unlink"])
def test_an_id_that_is_none(make_instance: Make, call: str) -> None:
    datadist = make_instance(1).datadist
    for number, error in ((None, TypeError), ("1", TypeError), (-1, ValueError), (2**64, ValueError)):
        with pytest.raises(error):
            getattr(datadist, call)(number)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        '{"server_list": {}}',
        '{"server_list": [7]}',
        '{"server_list": [{}]}',
        rank_table(1),
        rank_table(2, ["", ""]),
        rank_table(2, ["127.0.0.1", "somewhere"]),
        rank_table(2, ["127.0.0.1", "0.0.0.0"]),
        rank_table(2, rank_id="0"),
        rank_table(2, rank_id="-1"),
        rank_table(2, device_id="x"),
        rank_table(2, device_id="48870"),
        rank_table(2, device_port="0"),
        rank_table(2, ["127.0.0.1", "127.0.0.1"], device_port="16666"),
    ],
)
def test_a_table_from_which_no_address_can_be_derived(make_instance: Make, table: str) -> None:
    assert code_of(lambda: make_instance(1).link("pool", [1, 2], table)) == "LLM_LINK_FAILED"


def test_the_hixl_backend_has_no_communicators(make_instance: Make) -> None:
    datadist = make_instance(1, TransferBackend="hixl", listenIpInfo="127.0.0.1:0").datadist
    for call in (
        lambda: datadist.link("pool", {1: 0, 2: 1}, rank_table(2)),
        lambda: datadist.unlink(1),
        lambda: datadist.query_register_mem_status(1),
    ):
        assert code_of(call) == "LLM_FEATURE_NOT_ENABLED"
    with pytest.raises(TypeError):
        datadist.unlink(None)
