"""Which clusters are linked: the link machine of the spec, once per cluster.

The rules are those of ``spec/lifecycle.py`` (machine ``link``); this file only carries their effects out. Everything
happens on the event loop, between two of its waits, so a link is never seen half changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from llmdd._core.peer import Peer
from llmdd._core.tables import LINK

from .link_counts import LinkCounts
from .session import Session

_logger = logging.getLogger("llmdd.link")

# The other end's transfers finish, and then it promises to begin no more.
_IN_GOOD_ORDER = ("unlink", "peer_unlinked")


class Link(NamedTuple):
    """This end's view of its link to one cluster. The session of a broken link tells which link it was."""

    state: str
    session: Session | None


class LinkTable:
    """Cluster id → link.

    Parameters
    ----------
    publish
        Called with the memory of all linked clusters when it changes: a new dict each time, for other threads to read.
    counts
        Where links that are lost are counted.
    """

    def __init__(self, publish: Callable[[dict[int, Peer]], None], counts: LinkCounts) -> None:
        self._publish = publish
        self._counts = counts
        self._links: dict[int, Link] = {}

    def __getitem__(self, cluster_id: int) -> Link:
        return self._links.get(cluster_id, Link(LINK.initial, None))

    def held(self) -> list[int]:
        """The clusters to which a link stands, or stood and has not been dropped here."""
        return list(self._links)

    def require(self, cluster_id: int, event: str, *, peer_reachable: bool = True) -> None:
        """Raise what the spec refuses ``event`` with, if it does. Changes nothing."""
        LINK.step(self[cluster_id].state, event, peer_reachable=peer_reachable)

    def take(self, cluster_id: int, event: str, session: Session | None = None) -> Session | None:
        """Let ``event`` happen, the peer being reachable, and return the session that the link had before.

        ``session`` is the one to attach where the event is the making of a link. Of the effects, ``tell_peer`` is for
        the caller, who knows how to reach the peer. ``drop_peer_pins`` takes place when the session's grant comes back,
        not before the peer can transfer no more; but where nobody waits for its transfers, its reads hold nothing from
        now on (protocol 12).
        """
        before = self[cluster_id]
        state, effects = LINK.step(before.state, event, peer_reachable=True)
        after = Link(state, session if "attach_peer" in effects else before.session)
        if state == LINK.initial:
            self._links.pop(cluster_id, None)
        else:
            self._links[cluster_id] = after
        self._publish(self.linked())
        if before.session is not None:
            if state == "BROKEN":
                before.session.break_off()
            elif "detach_peer" in effects:
                before.session.let_go()
            if "drop_peer_pins" in effects and event not in _IN_GOOD_ORDER:
                before.session.evict()
        if before.state != state:
            self._counts.links_lost += state == "BROKEN"
            _logger.info("link to cluster %d: %s -> %s (%s)", cluster_id, before.state, state, event)
        if session is not None and after.session is session:
            session.note_peer()
        return before.session

    def linked(self) -> dict[int, Peer]:
        """The clusters to which a link stands, and their memory."""
        return {
            cluster_id: link.session.memory
            for cluster_id, link in self._links.items()
            if link.state == "LINKED" and link.session is not None
        }
