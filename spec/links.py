"""One end of a one-sided link: what lives by the machine LINK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .transfers import EngineId

if TYPE_CHECKING:
    from .reference import Node


class Link:
    """One node's end of its link to another cluster: lives by the LINK machine."""

    def __init__(self, node: Node, cluster_id: int) -> None:
        self.state = node.charts.link.machine.initial
        self.node = node
        self.cluster_id = cluster_id
        self.peer: EngineId | None = None
        self.joining: EngineId | None = None

    def fire(self, event: str, **stated: bool) -> None:
        self.node.charts.link.fire(self, event, **stated)

    def effects_of(self, event: str, **stated: bool) -> tuple[str, ...]:
        """What the event would have to do; refuses as the event would."""
        return self.node.charts.link.peek(self, event, **stated).effects

    def attach_peer(self) -> None:
        self.peer, self.joining = self.joining, None

    def drop_peer_pins(self) -> None:
        """Every transfer that the other end has in progress here is broken off."""
        for transfer in self.node.cluster.transfers_of(self.peer):
            if transfer.remote == self.node.engine and not transfer.over and not transfer.broken_off:
                self.node.cluster.break_off(transfer)
                self.node.tenants[transfer.remote_cache].unpin(transfer.pin)

    def tell_peer(self) -> None:
        """The cluster that was reached drops its end, also what it still holds of a link that this end had dropped."""
        end = self.node.cluster.cluster(self.cluster_id).link_to(self.node.cluster_id)
        if end.heeds(self.node.engine):
            end.fire("peer_unlinked")

    def heeds(self, engine: EngineId) -> bool:
        """Whether this end is dropped when ``engine`` unlinks: a sound link to another one is not."""
        return self.peer == engine or self.state == "BROKEN"

    def tell(self, event: str) -> None:
        """The other end learns of ``event``, if it still holds a link to this engine."""
        other = self.node.cluster.running(self.peer)
        if other is None:
            return
        end = other.link_to(self.node.cluster_id)
        if end.peer == self.node.engine:
            end.fire(event)
