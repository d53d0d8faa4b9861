"""What the two sides of the comparison are told, and what they answer, in words of neither.

The values that calls are given are those of the reference model (``llmdd.spec.values``). A cache stands in a call as
its :class:`CacheName`, which each side knows to be a cache of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any, Protocol

from llmdd.spec.values import Address, CacheKey

PLACEMENTS = ("DEVICE", "HOST")

#: What is called on an ``LLMDataDist``; everything else is called on its ``CacheManager``.
DATADIST_METHODS = frozenset(("init", "finalize", "link_clusters", "unlink_clusters"))


@dataclass(frozen=True, order=True)
class CacheName:
    """A cache, by the node that allocated it and a number that is given once."""

    node: str
    number: int


@dataclass(frozen=True, order=True)
class ViewName:
    """The arrays that a program holds of a cache's memory."""

    node: str
    number: int


@dataclass(frozen=True)
class Call:
    """A call of the contract, on the node of that name."""

    node: str
    method: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Returned:
    """The call was answered with a result."""

    value: Any = None


@dataclass(frozen=True)
class Raised:
    """The call was answered with an exception."""

    exception: str
    status: str | None = None


Outcome = Returned | Raised


@dataclass(frozen=True)
class Memory:
    """The memory of a cache as its user sees it.

    ``places`` says where each tensor begins: on the reference side counted from the beginning of the pool, on the
    library's an address. ``contents`` is what was answered to a look at the tensors: their bytes, or a refusal.
    """

    placement: str
    places: tuple[int, ...]
    contents: Outcome


@dataclass(frozen=True)
class Picture:
    """Everything that can be seen of an initialised node."""

    listen_address: Address | None
    linked: tuple[int, ...]
    pools: Mapping[str, tuple[int, ...]]
    live_caches: int
    live_keys: int
    bindings: Mapping[CacheKey, tuple[int, int] | None]
    memories: Mapping[CacheName, Memory]
    views: Mapping[ViewName, tuple[bytes, ...]]


class Side(Protocol):
    """Nodes, and what can be done with them. A side never raises what a call was answered with: it returns it."""

    def start(self, node: str, cluster_id: int, role: str) -> Outcome:
        """Make the ``LLMDataDist`` of a node."""

    def call(self, call: Call) -> Outcome:
        """Make a call. Its result comes in plain values, status codes as their names."""

    def call_former_manager(self, call: Call) -> Outcome:
        """Make a call on the manager that the node had until it was last finalized."""

    def allocate(self, cache: CacheName, desc: Any, keys: Any, seed: int) -> Outcome:
        """``allocate_cache``; the cache takes its name and is filled at once. The result is its id."""

    def fill(self, cache: CacheName, seed: int) -> Outcome:
        """Write all of a cache's memory."""

    def open_view(self, view: ViewName, cache: CacheName) -> Outcome:
        """Hold the arrays of a cache's memory until the view is closed."""

    def fill_view(self, view: ViewName, seed: int) -> Outcome:
        """Write all of the memory that a view shows."""

    def close_view(self, view: ViewName) -> Outcome:
        """Drop the arrays."""

    def linked(self, node: str) -> Outcome:
        """The ids of the clusters that transfers can reach."""

    def picture(
        self, node: str, keys: Sequence[CacheKey], caches: Sequence[CacheName], views: Sequence[ViewName]
    ) -> Outcome:
        """A :class:`Picture` of the node, with these keys, caches and views. Checks the node's own invariants too."""


def pattern(seed: int, tensor: int, size: int) -> bytes:
    """What a tensor is filled with: other bytes for every seed and tensor."""
    return shake_128(f"{seed}:{tensor}".encode()).digest(size)
