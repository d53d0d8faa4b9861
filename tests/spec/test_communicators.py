"""Communicators and switches of role in the reference model (api §2.4, §4.2, §4.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llmdd.spec.machine import ImpossibleEvent
from llmdd.spec.reference import Cluster, Node, WouldWait
from llmdd.spec.values import CacheKey, ClusterInfo

from .nodes import DESC, fill, key, options, rank_table, refused, slot

TABLE = rank_table(3)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def start(cluster: Cluster, cluster_id: int, **others: str) -> Node:
    node = cluster.start(f"node{cluster_id}", cluster_id)
    node.init(options(**others))
    return node


def three(cluster: Cluster, **others: str) -> list[Node]:
    return [start(cluster, cluster_id, **others) for cluster_id in (1, 2, 3)]


def link(node: Node, name: str = "pool", ranks: int = 3, table: str = TABLE) -> int:
    return node.link(name, {rank + 1: rank for rank in range(ranks)}, table)


def states(nodes: list[Node], number: int = 1) -> list[str]:
    return [node.query_register_mem_status(number) for node in nodes]


def can_pull(puller: Node, owner: Node, request: int = 7) -> None:
    theirs = owner.allocate_cache(DESC, [key(request)])
    fill(owner, theirs, 5)
    ours = puller.allocate_cache(DESC)
    puller.pull_cache(CacheKey(owner.cluster_id, request), ours)
    assert slot(puller, ours, 0) == slot(owner, theirs, 0)
    for node, cache in ((owner, theirs), (puller, ours)):
        node.deallocate_cache(cache)


def cannot_pull(puller: Node, owner: Node) -> None:
    ours = puller.allocate_cache(DESC)
    wanted = CacheKey(owner.cluster_id, 7)
    refused("LLM_NOT_YET_LINK", lambda: puller.pull_cache(wanted, ours), puller.cluster)
    puller.deallocate_cache(ours)


# -- meeting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_members_are_connected_when_all_have_called_in_any_order(cluster: Cluster, order: tuple[int, ...]) -> None:
    nodes = three(cluster)
    for place in order[:2]:
        assert link(nodes[place]) == 1
        assert nodes[place].query_register_mem_status(1) == "PREPARING"
        cannot_pull(nodes[place], nodes[order[2]])
    cannot_pull(nodes[order[0]], nodes[order[1]])
    link(nodes[order[2]])
    assert states(nodes) == ["OK"] * 3
    for puller in nodes:
        for owner in nodes:
            if owner is not puller:
                can_pull(puller, owner)
    cluster.check()


def test_numbers_count_from_1_until_finalize(cluster: Cluster) -> None:
    node = start(cluster, 2)
    assert [link(node), link(node)] == [1, 2]
    node.unlink(2)
    assert link(node) == 3
    node.finalize()
    node.init(options())
    assert link(node) == 1


def test_another_name_is_another_communicator(cluster: Cluster) -> None:
    nodes = three(cluster)[:2]
    assert [link(nodes[0], "one", 2), link(nodes[1], "other", 2), link(nodes[1], "one", 2)] == [1, 1, 2]
    assert (states(nodes[:1]), states(nodes[1:], 2), states(nodes[1:])) == (["OK"], ["OK"], ["PREPARING"])


def test_the_same_table_may_be_written_differently(cluster: Cluster) -> None:
    nodes = three(cluster)[:2]
    link(nodes[0], ranks=2)
    link(nodes[1], ranks=2, table=json.dumps(json.loads(TABLE), indent=1, sort_keys=True))
    assert states(nodes) == ["OK", "OK"]


@pytest.mark.parametrize("other", [{"ranks": 3}, {"table": rank_table(2)}])
def test_members_that_were_told_different_things_fail(cluster: Cluster, other: dict[str, Any]) -> None:
    nodes = three(cluster)[:2]
    link(nodes[0], ranks=2)
    link(nodes[1], **{"ranks": 2, **other})
    assert states(nodes) == ["FAILED", "FAILED"]
    cannot_pull(nodes[0], nodes[1])
    for node in nodes:
        node.unlink(1)
        link(node, ranks=2)
    assert states(nodes, 2) == ["OK", "OK"]


def test_members_that_differ_in_remote_mode_fail(cluster: Cluster) -> None:
    nodes = [start(cluster, 1), start(cluster, 2, EnableRemoteCacheAccessible="1")]
    for node in nodes:
        link(node, ranks=2)
    assert states(nodes) == ["FAILED", "FAILED"]


def test_a_deadline_that_passes(cluster: Cluster) -> None:
    nodes = three(cluster)[:2]
    for node in nodes:
        link(node)
    nodes[0].link_total_time_passes(1)
    assert states(nodes) == ["FAILED", "PREPARING"]
    cluster.check()
    nodes[0].unlink(1)
    assert link(nodes[0]) == 2
    link(cluster.nodes["node3"])
    assert [states(nodes[:1], 2), states(nodes[1:])] == [["OK"], ["OK"]]
    with pytest.raises(ImpossibleEvent):
        nodes[0].link_total_time_passes(2)


@pytest.mark.parametrize(("retries", "while_in_use"), [("1", "FAILED"), ("2", "PREPARING")])
def test_an_address_in_use(cluster: Cluster, retries: str, while_in_use: str) -> None:
    nodes = [start(cluster, 1, LinkRetryCount=retries), start(cluster, 2)]
    in_the_way = start(cluster, 9, listenIpInfo="127.0.0.1:16666")
    link(nodes[0], ranks=2)
    assert states(nodes[:1]) == [while_in_use]
    in_the_way.finalize()
    assert states(nodes[:1]) == [while_in_use]
    link(nodes[1], ranks=2)
    assert states(nodes) == (["OK", "OK"] if retries == "2" else ["FAILED", "PREPARING"])


def test_another_cluster_at_a_member_s_address(cluster: Cluster) -> None:
    member = start(cluster, 2)
    link(member, ranks=2)
    assert states([member]) == ["PREPARING"]
    start(cluster, 9, listenIpInfo="127.0.0.1:16666")
    assert states([member]) == ["FAILED"]


def test_a_rank_whose_address_is_where_the_node_listens_anyway(cluster: Cluster) -> None:
    nodes = [start(cluster, 1, listenIpInfo="127.0.0.1:16666"), start(cluster, 2)]
    for node in nodes:
        link(node, ranks=2)
    assert states(nodes) == ["OK", "OK"]


def test_the_address_is_taken_only_while_preparing(cluster: Cluster) -> None:
    nodes = [start(cluster, 1), start(cluster, 2)]
    link(nodes[0], ranks=2)
    other = cluster.start("other", 9)
    in_use = options(listenIpInfo="127.0.0.1:16666")
    refused("LLM_FAILED", lambda: other.init(in_use), cluster, "in use")
    link(nodes[1], ranks=2)
    other.init(in_use)
    assert states(nodes) == ["OK", "OK"]


# -- one of several --------------------------------------------------------------------------------------------------


def test_api_d59_a_pair_stays_linked_while_one_communicator_remains(cluster: Cluster) -> None:
    nodes = three(cluster)[:2]
    for name in ("one", "two"):
        for node in nodes:
            link(node, name, 2)
    nodes[0].unlink(1)
    can_pull(nodes[0], nodes[1])
    can_pull(nodes[1], nodes[0])
    assert states(nodes[1:]) == ["OK"]
    nodes[1].unlink(2)
    cannot_pull(nodes[1], nodes[0])
    cannot_pull(nodes[0], nodes[1])
    cluster.check()


def test_a_communicator_beside_a_link(cluster: Cluster) -> None:
    nodes = [start(cluster, 1, listenIpInfo="127.0.0.1:5001"), start(cluster, 2)]
    info = ClusterInfo(1, (("127.0.0.1", 0),), (("127.0.0.1", 5001),))
    assert nodes[1].link_clusters([info])[0] == "LLM_SUCCESS"
    for node in nodes:
        link(node, ranks=2)
    ours = nodes[1].allocate_cache(DESC)
    nodes[0].allocate_cache(DESC, [key(7)])
    transfer = nodes[1].begin_pull(key(7), ours)
    assert cluster.transfers[transfer].over == 0, "the one-sided link first"
    nodes[1].unlink(1)
    assert nodes[1].unlink_clusters([info])[0] == "LLM_TIMEOUT"
    nodes[1].abandon(transfer)
    link(nodes[1], ranks=2)
    nodes[0].unlink(1)
    link(nodes[0], ranks=2)
    assert states(nodes, 2) == ["OK", "OK"]
    assert nodes[1].unlink_clusters([info])[0] == "LLM_SUCCESS"
    transfer = nodes[1].begin_pull(key(7), ours)
    assert cluster.transfers[transfer].over == 2
    assert nodes[1].unlink_clusters([info])[0] == "LLM_SUCCESS", "nothing runs over that link"
    for node in nodes:
        with pytest.raises(WouldWait):
            node.unlink(2)
    nodes[1].copy(transfer)
    nodes[1].finish(transfer)
    nodes[0].unlink(2)
    cluster.check()


def test_api_d65_512_communicators(cluster: Cluster) -> None:
    node = start(cluster, 1)
    for _ in range(512):
        link(node)
    refused("LLM_PARAM_INVALID", lambda: link(node), cluster)
    node.unlink(100)
    assert link(node) == 513


# -- parting ---------------------------------------------------------------------------------------------------------


def test_unlinking_in_every_state(cluster: Cluster) -> None:
    nodes = three(cluster)
    link(nodes[0])
    nodes[0].unlink(1)
    refused("LLM_NOT_YET_LINK", lambda: nodes[0].query_register_mem_status(1), cluster)
    refused("LLM_NOT_YET_LINK", lambda: nodes[0].unlink(1), cluster)
    for node in nodes:
        link(node)
    assert nodes[0].query_register_mem_status(2) == "OK"
    nodes[0].unlink(2)
    assert states(nodes[1:]) == ["OK", "OK"]
    cannot_pull(nodes[1], nodes[0])
    can_pull(nodes[1], nodes[2])
    assert link(nodes[0]) == 3
    assert states(nodes[:1], 3) == ["PREPARING"], "the others have to link again too"


def test_a_member_that_leaves_while_preparing_is_awaited_again(cluster: Cluster) -> None:
    nodes = three(cluster)
    link(nodes[0])
    link(nodes[1])
    nodes[1].unlink(1)
    link(nodes[2])
    assert states([nodes[0], nodes[2]]) == ["PREPARING", "PREPARING"]
    assert link(nodes[1]) == 2
    assert [*states([nodes[0], nodes[2]]), *states(nodes[1:2], 2)] == ["OK"] * 3


@pytest.mark.parametrize("noticed", [True, False])
def test_a_member_that_dies(cluster: Cluster, noticed: bool) -> None:
    nodes = three(cluster)
    for node in nodes:
        link(node)
    theirs = nodes[0].allocate_cache(DESC, [key(7)])
    nodes[2].begin_pull(key(7), nodes[2].allocate_cache(DESC))
    cluster.kill("node3", noticed=noticed)
    cannot_pull(nodes[0], nodes[2])
    can_pull(nodes[0], nodes[1], request=8)
    if not noticed:
        assert nodes[0].tenants[theirs.cache_id].pins
        for node in nodes[:2]:
            cluster.notice(node.name, 3)
    assert not nodes[0].tenants[theirs.cache_id].pins
    cluster.check()
    assert states(nodes[:2]) == ["OK", "OK"]
    again = start(cluster, 3)
    assert link(again) == 1
    assert states([again]) == ["PREPARING"]
    for node in nodes[:2]:
        node.unlink(1)
        link(node)
    assert [*states(nodes[:2], 2), *states([again])] == ["OK"] * 3


def test_a_member_that_dies_while_preparing_may_come_back(cluster: Cluster) -> None:
    nodes = three(cluster)
    link(nodes[0])
    link(nodes[1])
    cluster.kill("node1")
    cluster.check()
    link(nodes[2])
    again = start(cluster, 1)
    link(again)
    assert states([again, *nodes[1:]]) == ["OK"] * 3


def test_finalize_breaks_off_what_others_have_in_progress(cluster: Cluster) -> None:
    nodes = three(cluster)
    for node in nodes:
        link(node)
    nodes[0].allocate_cache(DESC, [key(7)])
    transfer = nodes[1].begin_pull(key(7), nodes[1].allocate_cache(DESC))
    nodes[0].finalize()
    cluster.check()
    with pytest.raises(Exception, match="LLM_NOT_YET_LINK"):
        nodes[1].copy(transfer)
    cannot_pull(nodes[1], nodes[0])


def test_a_snapshot_keeps_communicators(cluster: Cluster) -> None:
    nodes = three(cluster)
    for node in nodes:
        link(node)
    restored = Cluster.restore(cluster.snapshot(), cluster.charts)
    assert restored.observable() == cluster.observable()
    restored.check()
    restored.nodes["node1"].unlink(1)
    assert states(nodes) == ["OK"] * 3


# -- what link refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments", "text"),
    [
        ("TypeError", {"comm_name": None}, "comm_name"),
        ("LLM_PARAM_INVALID", {"comm_name": "", "cluster_rank_info": None}, "comm_name can not be empty"),
        ("LLM_PARAM_INVALID", {"comm_name": "x" * 128}, "less than 128"),
        ("AttributeError", {"cluster_rank_info": None}, ""),
        ("TypeError", {"cluster_rank_info": [1, 2]}, ""),
        ("TypeError", {"cluster_rank_info": {"1": 0, 2: 1}}, "dict key only support"),
        ("TypeError", {"cluster_rank_info": {1: None, 2: 1}}, "dict value only support"),
        ("LLM_PARAM_INVALID", {"cluster_rank_info": {-n: n for n in range(5)}}, "can not be greater than 4"),
        ("ValueError", {"cluster_rank_info": {-1: 0}, "rank_table": None}, "uint64"),
        ("ValueError", {"cluster_rank_info": {1: 2**32}, "rank_table": None}, "uint32"),
        ("TypeError", {"cluster_rank_info": {1: 0}, "rank_table": None}, "rank_table"),
        ("LLM_PARAM_INVALID", {"cluster_rank_info": {1: 0}}, "cluster num must be bigger than 1"),
        ("LLM_PARAM_INVALID", {"cluster_rank_info": {2: 1, 3: 0}}, "must be ordered"),
        ("LLM_PARAM_INVALID", {"cluster_rank_info": {2: 0, 3: 1}, "rank_table": ""}, "own cluster"),
        ("LLM_LINK_FAILED", {"rank_table": ""}, "not JSON"),
        ("LLM_LINK_FAILED", {"rank_table": "[" * 100_000}, "not JSON"),
        ("LLM_LINK_FAILED", {"rank_table": "{}"}, "server_list"),
        ("LLM_LINK_FAILED", {"rank_table": '{"server_list": [{}]}'}, "device"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(1)}, "only [0]"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, rank_id="0")}, "ambiguous"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, device_ip="")}, "no address"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, device_ip="0.0.0.0")}, "nobody"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, device_id="x")}, "no port"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, device_id="48870")}, "no port"),
        ("LLM_LINK_FAILED", {"rank_table": rank_table(2, device_port="1")}, "ambiguous"),
    ],
)
def test_link_refuses(cluster: Cluster, error: str, arguments: dict[str, Any], text: str) -> None:
    node = start(cluster, 1)
    given = {"comm_name": "pool", "cluster_rank_info": {1: 0, 2: 1}, "rank_table": TABLE, **arguments}
    refused(error, lambda: node.link(**given), cluster, text)


def test_a_server_may_give_the_address(cluster: Cluster) -> None:
    nodes = [start(cluster, 1), start(cluster, 2)]
    servers = [
        {"server_id": "127.0.0.7", "device": [{"device_id": 0, "rank_id": 0}]},
        {"server_id": "b", "host_ip": "::1", "device": [{"device_port": "77", "rank_id": "1"}]},
    ]
    for node in nodes:
        link(node, ranks=2, table=json.dumps({"server_list": servers}))
    assert states(nodes) == ["OK", "OK"]
    assert nodes[0].communicators[1].addresses == {1: ("127.0.0.7", 16666), 2: ("::1", 77)}


def test_ids_that_are_none(cluster: Cluster) -> None:
    node = start(cluster, 1)
    for call in (node.query_register_mem_status, node.unlink):
        refused("TypeError", lambda call=call: call(None), cluster)
        refused("ValueError", lambda call=call: call(-1), cluster)
        refused("LLM_NOT_YET_LINK", lambda call=call: call(2**64 - 1), cluster)


def test_without_an_engine(cluster: Cluster) -> None:
    node = cluster.start("node1", 1)
    calls = [lambda: link(node), lambda: node.unlink(None), lambda: node.query_register_mem_status(None)]
    for call in [*calls, lambda: node.switch_role(None)]:
        refused("RuntimeError", call, cluster)
    node.init(options())
    node.finalize()
    for call in [*calls, lambda: node.switch_role("PROMPT")]:
        refused("LLM_ENGINE_FINALIZED", call, cluster)


# -- roles -----------------------------------------------------------------------------------------------------------

HERE, THERE = {"llm.listenIpInfo": "127.0.0.1:5001"}, {"llm.listenIpInfo": "127.0.0.2:5001"}


def test_switching_the_role(cluster: Cluster) -> None:
    node = start(cluster, 1, listenIpInfo="127.0.0.1:5001")
    node.switch_role("DECODER", HERE)
    assert (node.role, node.listen_address) == ("DECODER", ("127.0.0.1", 5001))
    node.switch_role("PROMPT", THERE)
    assert (node.role, node.listen_address) == ("PROMPT", ("127.0.0.2", 5001))
    assert start(cluster, 2, listenIpInfo="127.0.0.1:5001").listen_address == ("127.0.0.1", 5001)
    refused("LLM_FAILED", lambda: node.switch_role("MIX", HERE), cluster, "in use")
    node.switch_role("PROMPT")
    assert node.listen_address is None
    node.switch_role("MIX", {"anything": None})


def test_port_0_again_means_the_port_that_was_found(cluster: Cluster) -> None:
    node = start(cluster, 1, listenIpInfo="127.0.0.1:0")
    found = node.listen_address
    node.switch_role("DECODER", {"llm.listenIpInfo": "127.0.0.1:0"})
    assert node.listen_address == found


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        ("TypeError", (None,)),
        ("TypeError", (1,)),
        ("TypeError", ("PROMPT", "llm.listenIpInfo")),
        ("TypeError", ("PROMPT", {"llm.listenIpInfo": 5})),
        ("LLM_PARAM_INVALID", ("PROMPT", {"llm.listenIpInfo": "here"})),
        ("ValueError", ("PROMPT", {"llm.listenIpInfo": "127.0.0.1:port"})),
        ("ValueError", ("PROMPT", {"llm.listenIpInfo": "127.0.0.1:65536"})),
    ],
)
def test_switch_role_refuses(cluster: Cluster, error: str, arguments: tuple[Any, ...]) -> None:
    node = start(cluster, 1)
    link(node)
    refused(error, lambda: node.switch_role(*arguments), cluster)
    refused("LLM_EXIST_LINK", lambda: node.switch_role("PROMPT"), cluster)


def test_links_are_an_obstacle_until_they_are_dropped(cluster: Cluster) -> None:
    nodes = [start(cluster, 1, listenIpInfo="127.0.0.1:5001"), start(cluster, 2)]
    info = ClusterInfo(1, (("127.0.0.1", 0),), (("127.0.0.1", 5001),))
    nodes[1].link_clusters([info])
    for node in nodes:
        refused("LLM_EXIST_LINK", lambda node=node: node.switch_role("PROMPT", THERE), cluster)
    cluster.kill("node1")
    refused("LLM_EXIST_LINK", lambda: nodes[1].switch_role("PROMPT", THERE), cluster)
    nodes[1].unlink_clusters([info], force=True)
    nodes[1].switch_role("PROMPT", THERE)


def test_the_hixl_backend(cluster: Cluster) -> None:
    nodes = [start(cluster, number, listenIpInfo=f"127.0.0.1:500{number}", TransferBackend="hixl") for number in (1, 2)]
    for call in (
        lambda: link(nodes[0]),
        lambda: nodes[0].unlink(1),
        lambda: nodes[0].query_register_mem_status(1),
        lambda: nodes[0].switch_role("PROMPT", THERE),
    ):
        refused("LLM_FEATURE_NOT_ENABLED", call, cluster)
    nodes[1].link_clusters([ClusterInfo(1, (("127.0.0.1", 0),), (("127.0.0.1", 5001),))])
    nodes[0].switch_role("PROMPT", HERE)
    assert nodes[0].role == "PROMPT"
