"""What the two sides of the comparison are told, and what they answer, in words of neither.

The values that calls are given are those of the reference model (``llmdd.spec.values``). A cache stands in a call as
its :class:`CacheName`, which each side knows to be a cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any, Protocol

from llmdd.spec.values import Address, BlocksCacheKey, CacheKey

PLACEMENTS = ("DEVICE", "HOST")

#: Longer than anything takes that ends at all, on however busy a machine.
PATIENCE_MS = 60_000

#: What is called on an ``LLMDataDist``; everything else is called on its ``CacheManager``.
DATADIST_METHODS = frozenset(
    (
        "init",
        "finalize",
        "link_clusters",
        "unlink_clusters",
        "link",
        "unlink",
        "query_register_mem_status",
        "switch_role",
    )
)

#: What makes a cache. ``create_cpu_cache`` is called on ``Cache``.
MAKING_METHODS = frozenset(
    ("allocate_cache", "allocate_blocks_cache", "register_cache", "register_blocks_cache", "create_cpu_cache")
)


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


@dataclass(frozen=True, order=True)
class MemoryName:
    """Memory of a program's own, by the node in whose process it is and a number that is given once."""

    node: str
    number: int


@dataclass(frozen=True)
class Place:
    """An address: so many bytes after the beginning of memory of the program's own, or of a tensor of a cache.

    Whoever makes a call replaces it by what it is on each side.
    """

    of: MemoryName | CacheName
    offset: int = 0
    tensor: int = 0


@dataclass(frozen=True)
class Array:
    """Whole numbers, which the library is given as an array of NumPy's, and the reference model as a list.

    ``stride`` is how many places it is from one to the next.
    """

    numbers: tuple[int, ...]
    dtype: str = "int64"
    stride: int = 1


@dataclass(frozen=True)
class Call:
    """A call of the contract, on the node of that name."""

    node: str
    method: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Script:
    """A ``LayerSynchronizer``: for each layer it answers with a truth value, or raises (None), or makes a call."""

    answers: tuple[bool | Call | None, ...]


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


class Scripted:
    """What a :class:`Script` does on a side. ``asked`` has the layers, and what the calls were answered with."""

    def __init__(self, script: Script, make: Callable[[Call], Outcome]) -> None:
        self._script = script
        self._make = make
        self.asked: list[tuple[int, Outcome | None]] = []

    def synchronize(self, layer: int) -> bool:
        answer = self._script.answers[layer]
        self.asked.append((layer, self._make(answer) if isinstance(answer, Call) else None))
        if answer is None:
            raise ArithmeticError("as the script wants it")
        return bool(answer)


@dataclass(frozen=True)
class Memory:
    """The memory of a cache as its user sees it.

    ``addresses`` says where each tensor begins. ``contents`` is what was answered to a look at the tensors: their
    bytes, or a refusal.
    """

    placement: str
    addresses: tuple[int, ...]
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
    blocks_keys: Mapping[BlocksCacheKey, bool]
    role: str
    communicators: Mapping[int, str]
    memories: Mapping[CacheName, Memory]
    views: Mapping[ViewName, tuple[bytes, ...]]


@dataclass(frozen=True)
class Sight:
    """What of a node is looked at, besides what every node has."""

    keys: Sequence[CacheKey] = ()
    blocks_keys: Sequence[BlocksCacheKey] = ()
    communicators: Sequence[int] = ()
    caches: Sequence[CacheName] = ()
    views: Sequence[ViewName] = ()


class Side(Protocol):
    """Nodes, and what can be done with them. A side never raises what a call was answered with: it returns it."""

    def start(self, node: str, cluster_id: int, role: str) -> Outcome:
        """Make the ``LLMDataDist`` of a node."""

    def set_clock(self, ahead_ms: int) -> None:
        """Let leases see a clock that is so much ahead of the kernel's, and drop the keys whose leases are over."""

    def call(self, call: Call) -> Outcome:
        """Make a call. Its result comes in plain values, status codes as their names."""

    def call_former_manager(self, call: Call) -> Outcome:
        """Make a call on the manager that the node had until it was last finalized."""

    def make_cache(self, cache: CacheName, call: Call, seed: int) -> Outcome:
        """One of :data:`MAKING_METHODS`; the cache takes its name, and memory from a pool is filled at once.

        The result is the cache's id.
        """

    def transfer_layers(self, call: Call) -> Outcome:
        """``transfer_cache_async``, and wait until it has ended.

        The result is what ``synchronize`` and ``get_results`` say then, and the layers that were synchronized.
        """

    def map_memory(self, memory: MemoryName, size: int) -> int:
        """Get zero bytes of the program's own, whole pages of them with nothing around; tells their address."""

    def unmap_memory(self, memory: MemoryName) -> None:
        """Take such memory away, whoever still uses it."""

    def write_memory(self, memory: MemoryName, seed: int) -> None:
        """Write all of such memory."""

    def read_memory(self, node: str) -> Mapping[MemoryName, bytes]:
        """All such memory of a node's process."""

    def fill(self, cache: CacheName, seed: int) -> Outcome:
        """Write all of a cache's memory."""

    def open_view(self, view: ViewName, cache: CacheName) -> Outcome:
        """Hold the arrays of a cache's memory until the view is closed."""

    def fill_view(self, view: ViewName, seed: int) -> Outcome:
        """Write all of the memory that a view shows."""

    def close_view(self, view: ViewName) -> Outcome:
        """Drop the arrays."""

    def links(self, node: str, communicators: Sequence[int]) -> Outcome:
        """The ids of the clusters that transfers can reach, and the status of each of these communicators."""

    def picture(self, node: str, sight: Sight) -> Outcome:
        """A :class:`Picture` of the node. The library's side checks the node's own invariants too."""


def pattern(seed: int, tensor: int, size: int) -> bytes:
    """What a tensor is filled with: other bytes for every seed and tensor."""
    return shake_128(f"{seed}:{tensor}".encode()).digest(size)
