"""Nodes and the links between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from llmdd.spec.values import ClusterInfo

from ..machine import Lockstep, now_and_then
from ..strategies import caches, communicators, engines, links, registered
from ..strategies.former import calls_on_a_manager
from ..strategies.present import CLUSTER_IDS, nodes
from ..strategies.registered import PAGE_BYTES
from ..terms import PATIENCE_MS, Call

Startup = tuple[str, dict[str, str], str]


class EngineRules(Lockstep):
    """Nodes begin and end, and link to each other."""

    @initialize(data=st.data(), startups=engines.clusters())
    def begin(self, data: st.DataObject, startups: Sequence[Startup]) -> None:
        self.remote_mode = startups[0][1].get("llm.EnableRemoteCacheAccessible") == "1"
        for node, options, role in startups:
            self.begin_node(node, options, role)
            self.map_memory(node, 3 * PAGE_BYTES)
        self.restore_links()
        if len(self.nodes) > 1 and data.draw(st.booleans()):
            for call in data.draw(communicators.meetings()):
                self.make(call)
                self.await_links()
        for node in self.nodes:
            for making in (
                caches.allocations(node),
                caches.blocks_allocations(node),
                registered.registrations(node),
                caches.allocations(node),
            ):
                self.make_cache(data.draw(making), seed=len(self.caches))

    @precondition(lambda self: self.nodes_not_ready)
    @rule(call=engines.inits())
    def init(self, call: Call) -> None:
        self.make(call)
        self.await_links()

    @now_and_then(7)
    @rule(call=engines.inits())
    def init_again(self, call: Call) -> None:
        self.make(call)

    @now_and_then(12)
    @rule(node=nodes())
    def finalize(self, node: str) -> None:
        self.make(Call(node, "finalize"))
        self.await_links()

    @now_and_then(3)
    @rule(call=links.links())
    def link_clusters(self, call: Call) -> None:
        self.make(call)

    @now_and_then(3)
    @rule(call=links.unlinks())
    def unlink_clusters(self, call: Call) -> None:
        self.make(call)
        self.await_links()

    @rule()
    def restore_links(self) -> None:
        """What a program does that has lost its peers."""
        for client, server in permutations(self.nodes, 2):
            address = self.reference.nodes[server].listen_address
            if address and client not in self.nodes_not_ready and not self.are_linked(client, server):
                infos = [ClusterInfo(CLUSTER_IDS[server], (("127.0.0.1", 0),), (address,))]
                self.make(Call(client, "unlink_clusters", (infos,), {"timeout": PATIENCE_MS, "force": True}))
                self.await_links()
                self.make(Call(client, "link_clusters", (infos,), {"timeout": PATIENCE_MS}))

    @now_and_then(4)
    @rule(call=calls_on_a_manager())
    def call_a_former_manager(self, call: Call) -> None:
        node = self.reference.nodes[call.node]
        if node.times_initialised > (node.state == "READY"):
            self.same(
                self.reference.call_former_manager(self.on_reference(call)),
                self.library(call.node).call_former_manager(self.on_library(call)),
                f"{call} on a former manager",
            )
