"""What an instance has gone through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmdd._core.status import LLMStatusCode


@dataclass(frozen=True)
class Counters:
    """Counted since ``init``; :attr:`LLMDataDist.counters` gives it, as it stands at that moment.

    What goes wrong on the way, what is refused, and what is given up for somebody else stand apart. So do the ways in
    which key references go: ``CacheManager.key_counts``.

    Attributes
    ----------
    keys_transferred, keys_removed, keys_expired, keys_withdrawn : int
        Key references of this instance that were dropped: by the pull or push of a last tensor, by
        ``remove_cache_key``, because their lease was over, and with their cache.
    failed_transfers : Mapping of LLMStatusCode to int
        Transfers that this instance asked for and that did not succeed, by the code that the caller was told: each pull
        and push, each item of ``pull_many`` (with ``all_or_nothing`` the call), each layer of ``transfer_cache_async``.
        Codes that never came about are left out; so are calls whose arguments were wrong.
    links_lost : int
        Links, and members of communicators, whose other end died, fell silent, broke the rules, or dropped its end by
        force.
    pins_dropped : int
        Pins on caches of this instance that such an end had set, which were dropped for it.
    reads_evicted : int
        Pins of peers that live which hold nothing any more, because their link is down.
    """

    keys_transferred: int
    keys_removed: int
    keys_expired: int
    keys_withdrawn: int
    failed_transfers: Mapping[LLMStatusCode, int]
    links_lost: int
    pins_dropped: int
    reads_evicted: int
