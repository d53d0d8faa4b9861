"""``link_clusters`` and ``unlink_clusters``."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from llmdd.spec.values import ClusterInfo

from ..terms import PATIENCE_MS, Call
from . import odd
from .engines import ADDRESSES, LOOPBACK
from .odd import mixed_in
from .present import CLUSTER_IDS, machine_of, nodes, other_node


def cluster_info(draw: DrawFn, node: str) -> ClusterInfo:
    """What a program must know of a node in order to link to it; now and then something of it is wrong."""
    machine = machine_of(draw)
    address = machine.reference.nodes[node].listen_address or ADDRESSES[node]
    right = ClusterInfo(CLUSTER_IDS[node], (("127.0.0.1", 0),), (address,))
    return draw(
        st.sampled_from(
            (
                *[right] * 12,
                ClusterInfo(3, right.local_ip_info_list, right.remote_ip_info_list),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, (ADDRESSES["a"],)),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, ((LOOPBACK, 1),)),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, ()),
                ClusterInfo(right.remote_cluster_id, right.local_ip_info_list, (address, address)),
                ClusterInfo(right.remote_cluster_id, (), right.remote_ip_info_list),
                ClusterInfo(right.remote_cluster_id, (("127.0.0.1", 0),) * 2, right.remote_ip_info_list),
                ClusterInfo(None, right.local_ip_info_list, right.remote_ip_info_list),
            )
        )
    )


def clusters_to_name(draw: DrawFn, node: str) -> list[ClusterInfo]:
    count = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
    return [cluster_info(draw, other_node(draw, node)) for _ in range(count)]


@st.composite
def links(draw: DrawFn) -> Call:
    node = draw(nodes())
    arguments = {"clusters": clusters_to_name(draw, node), "timeout": PATIENCE_MS}
    oddities = {"clusters": odd.CLUSTERS, "timeout": odd.TIMEOUTS}
    return Call(node, "link_clusters", (), mixed_in(draw, arguments, oddities))


@st.composite
def unlinks(draw: DrawFn) -> Call:
    node = draw(nodes())
    arguments = {
        "clusters": clusters_to_name(draw, node),
        "timeout": PATIENCE_MS,
        "force": draw(st.booleans()),
    }
    oddities = {"clusters": odd.CLUSTERS, "timeout": odd.TIMEOUTS, "force": odd.FLAGS}
    return Call(node, "unlink_clusters", (), mixed_in(draw, arguments, oddities))
