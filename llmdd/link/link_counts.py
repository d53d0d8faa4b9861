"""What the links of a node have gone through."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LinkCounts:
    """Written on the event loop alone; any thread may read it.

    Attributes
    ----------
    links_lost
        Links, and members of communicators, whose other end died, fell silent, broke the rules, or dropped its end by
        force.
    pins_dropped
        Pins that such an end had set here, which were dropped for it.
    reads_evicted
        Pins of peers that live, which hold nothing any more because their link is down.
    """

    links_lost: int = 0
    pins_dropped: int = 0
    reads_evicted: int = 0
