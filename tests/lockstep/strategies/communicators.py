"""``link``, ``unlink``, ``query_register_mem_status`` and ``switch_role``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import ClusterInfo

from ..terms import PATIENCE_MS, Call
from . import odd
from .engines import ADDRESSES, LOOPBACK, ROLES
from .odd import chance, mixed_in
from .present import CLUSTER_IDS, machine_of, node_with, nodes

RANKS = {"a": 0, "b": 3, "c": 7}
MEETING_PORT = 27001

NAMES: tuple[Any, ...] = (None, 1, "", "x" * 127, "x" * 128)
RANK_MAPS: tuple[Any, ...] = (
    None,
    1,
    [(1, 0), (2, 1)],
    {},
    {1: 0},
    {"1": 0, 2: 1},
    {1: "0", 2: 1},
    {1: None, 2: 1},
    {1: 0, 2: 0},
    {1: 3, 2: 0},
    {1: -1, 2: 0},
    {1: 0, 2: 2**32},
    {-1: 0, 2: 1},
    {number: number for number in range(1, 6)},
    {3: 0, 4: 1},
)
TABLES: tuple[Any, ...] = (
    *(None, 1, "", "{", "[]", "{}", '{"server_list": 1}', '{"server_list": []}', '{"server_list": [1]}'),
    '{"server_list": [{"server_id": "node", "device": [{"device_id": "0", "rank_id": "0"}]}]}',
)


def rank_table(ports: Mapping[int, int]) -> str:
    """A table in which every rank is met at a port of its own."""
    devices = [
        {"device_id": str(rank), "device_ip": LOOPBACK, "device_port": str(port), "rank_id": str(rank)}
        for rank, port in ports.items()
    ]
    servers = [{"server_id": "0", "device": devices}]
    return json.dumps({"version": "1.0", "status": "completed", "server_count": "1", "server_list": servers})


@st.composite
def meetings(draw: DrawFn) -> list[Call]:
    """``link`` of each of some nodes, in any order; now and then one does not come, or comes with another table."""
    machine = machine_of(draw)
    members = sorted(draw(st.permutations(machine.nodes))[: draw(st.sampled_from((2, 2, 3)))])
    modes = {machine.in_remote_mode(node) for node in members}
    if len(modes) > 1:
        members = members[:2]  # of three it would depend on who is met first
    ranks = {CLUSTER_IDS[node]: RANKS[node] for node in members}
    ports = {rank: MEETING_PORT + rank for rank in RANKS.values()}
    name = machine.new_name() if not chance(draw, 8) else "again"
    arguments: dict[str, Any] = {"comm_name": name, "cluster_rank_info": ranks, "rank_table": rank_table(ports)}
    calls = [Call(node, "link", (), dict(arguments)) for node in draw(st.permutations(members))]
    if chance(draw, 8):
        calls.pop()
    elif len(calls) == 2 and chance(draw, 10):
        arguments["rank_table"] = rank_table({**ports, 99: MEETING_PORT + 99})
        calls[1] = Call(calls[1].node, "link", (), arguments)
    return calls


@st.composite
def odd_links(draw: DrawFn) -> Call:
    """A ``link`` that is refused, or that nobody answers."""
    node = draw(nodes())
    others = [CLUSTER_IDS[other] for other in CLUSTER_IDS]
    arguments = {
        "comm_name": machine_of(draw).new_name(),
        "cluster_rank_info": dict(zip(others, RANKS.values(), strict=True)),
        "rank_table": rank_table({rank: MEETING_PORT + 100 + rank for rank in RANKS.values()}),
    }
    oddities = {"comm_name": NAMES, "cluster_rank_info": RANK_MAPS, "rank_table": TABLES}
    return Call(node, "link", (), mixed_in(draw, arguments, oddities, one_in=1))


@st.composite
def communicator_calls(draw: DrawFn, method: str) -> Call:
    """``unlink`` or ``query_register_mem_status``."""
    machine = machine_of(draw)
    node = node_with(draw, machine.communicators)
    known = machine.communicators(node) or [1]
    arguments = mixed_in(draw, {"comm_id": draw(st.sampled_from(known))}, {"comm_id": (*odd.UINT64, 0, 99)}, one_in=10)
    return Call(node, method, (), arguments)


@st.composite
def role_switches(draw: DrawFn) -> list[Call]:
    """``switch_role``, often of a node that drops its links first: no other may."""
    machine = machine_of(draw)
    node = draw(nodes())
    calls = []
    if draw(st.booleans()):
        others = [ClusterInfo(CLUSTER_IDS[other]) for other in CLUSTER_IDS if other != node]
        arguments = {"clusters": others, "timeout": PATIENCE_MS, "force": True}
        calls = [Call(node, "unlink_clusters", (), arguments)]
        calls += [Call(node, "unlink", (), {"comm_id": number}) for number in machine.communicators(node)]
    ip, port = machine.reference.nodes[node].listen_address or ADDRESSES[node]
    new_port = 26101 + sorted(CLUSTER_IDS).index(node)
    wanted: dict[Any, Any] = {
        "llm.listenIpInfo": draw(st.sampled_from((f"{ip}:{port}", f"{ip}:{new_port}", f"{ip}:{port}", f"{LOOPBACK}:0")))
    }
    if chance(draw, 4):
        other_ip, other_port = ADDRESSES[draw(st.sampled_from(sorted(ADDRESSES)))]
        others_options = ({"llm.listenIpInfo": f"{other_ip}:{other_port}"}, {}, {"llm.other": 1}, None)
        wanted = draw(st.sampled_from(others_options))
    oddities = {
        "role": (None, 1, "PROMPT_"),
        "switch_options": (1, "options", [], {"llm.listenIpInfo": None}, {"llm.listenIpInfo": LOOPBACK}),
    }
    arguments = mixed_in(draw, {"role": draw(st.sampled_from(ROLES)), "switch_options": wanted}, oddities, one_in=8)
    return [*calls, Call(node, "switch_role", (), arguments)]
