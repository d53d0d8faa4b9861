"""What the tests of the contract are written against: nodes whose calls take and give plain values.

There are two: the reference model and the library. The values are those of ``llmdd.spec.values``; status codes,
placements, data types and roles are the names of their members.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import shake_128
from typing import Any

from llmdd.spec.values import Address, CacheKey, CacheKeyByIdAndIndex, ClusterInfo

#: Long enough for any machine, since nothing here is meant to run out of time.
TIMEOUT_MS = 60_000

#: Called on an ``LLMDataDist``; everything else is called on its ``CacheManager``.
DATADIST_METHODS = (
    "init",
    "finalize",
    "link_clusters",
    "unlink_clusters",
    "link",
    "unlink",
    "query_register_mem_status",
    "switch_role",
)
MANAGER_METHODS = (
    "allocate_cache",
    "allocate_blocks_cache",
    "deallocate_cache",
    "deallocate_blocks_cache",
    "register_cache",
    "register_blocks_cache",
    "unregister_cache",
    "remove_cache_key",
    "pull_cache",
    "pull_blocks",
    "push_cache",
    "push_blocks",
    "copy_cache",
    "copy_blocks",
    "swap_blocks",
    "remap_registered_memory",
)


class Refusal(Exception):
    """A call was answered with an exception.

    Parameters
    ----------
    kinds
        Every exception of the contract that it is: ``LLMException``, ``TypeError``, …
    status
        The name of the status code, if it carries one.
    message
        What it says.
    """

    def __init__(self, kinds: frozenset[str], status: str | None, message: str) -> None:
        super().__init__(kinds, status, message)
        self.kinds = kinds
        self.status = status
        self.message = message

    def matches(self, error: str) -> bool:
        """Whether it is what the contract calls by this name: a status code's, or an exception's."""
        if error.startswith("LLM_"):
            return "LLMException" in self.kinds and self.status == error
        return error in self.kinds and self.status is None

    def __str__(self) -> str:
        return f"{self.status or sorted(self.kinds)}: {self.message}"


@contextmanager
def refused(error: str, fragment: str = "") -> Iterator[None]:
    """The call is refused so, and its message contains the fragment."""
    try:
        yield
    except Refusal as refusal:
        assert refusal.matches(error), f"{refusal}, but {error} was expected"
        assert fragment in refusal.message, f"{refusal}: does not contain {fragment!r}"
        return
    raise AssertionError(f"not refused, but {error} was expected")


def in_time(call: Callable[[], Any]) -> Any:
    """What a call returns once it ends within a ``sync_kv_timeout`` that is short on purpose."""
    while True:
        try:
            return call()
        except Refusal as refusal:
            if refusal.status != "LLM_TIMEOUT":
                raise


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned, or the name of what it was refused with."""
    try:
        return call()
    except Refusal as refusal:
        return refusal.status or next(iter(sorted(refusal.kinds)))


def pattern(seed: int, tensor: int, size: int) -> bytes:
    """What a tensor is filled with: other bytes for every seed and tensor."""
    return shake_128(f"{seed}/{tensor}".encode()).digest(size)


def options_of(
    *,
    remote: bool = False,
    device_bytes: int | None = 1 << 20,
    host_bytes: int | None = 1 << 20,
    page_shift: int = 12,
    listen: str | None = "127.0.0.1:0",
    **others: str,
) -> dict[str, str]:
    """Options for ``init``. In ``others``, ``LinkTotalTime="5"`` stands for ``llm.LinkTotalTime``."""
    options = {
        "llm.EnableCacheManager": "1",
        "llm.EnableRemoteCacheAccessible": "1" if remote else "0",
        "llm.SyncKvCacheWaitTime": str(TIMEOUT_MS),
    }
    pools = {"llm.MemPoolConfig": device_bytes, "llm.HostMemPoolConfig": host_bytes}
    for key, size in pools.items():
        if size is not None:
            options[key] = json.dumps({"memory_size": size, "page_shift": page_shift})
    if listen is not None:
        options["llm.listenIpInfo"] = listen
    return options | {f"llm.{name}": value for name, value in others.items()}


class Task(ABC):
    """What ``transfer_cache_async`` gives."""

    @abstractmethod
    def synchronize(self, *arguments: Any) -> str:
        """The name of the code."""

    @abstractmethod
    def get_results(self, *arguments: Any) -> list[str]:
        """The names of the codes."""


class Node(ABC):
    """A cluster. Every call of the contract is a method of its name, which raises :class:`Refusal`."""

    cluster_id: int

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in DATADIST_METHODS + MANAGER_METHODS:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return partial(self.call, name)

    @abstractmethod
    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Make a call of the contract."""

    @abstractmethod
    def transfer_cache_async(self, src_cache: Any, layer_synchronizer: Any, *arguments: Any, **keywords: Any) -> Task:
        """The call of the contract. A synchronizer is a function of a layer and a timeout."""

    @abstractmethod
    def call_former_manager(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Make a call on the manager that the node had until it was last finalized."""

    @property
    @abstractmethod
    def listen_address(self) -> Address | None:
        """Where the node accepts links."""

    @abstractmethod
    def linked(self) -> tuple[int, ...]:
        """The clusters that transfers can reach."""

    # -- what the node holds --------------------------------------------------------------------------------------

    @abstractmethod
    def lookup(self, key: Any) -> CacheKeyByIdAndIndex | None:
        """Where a key is bound here."""

    @abstractmethod
    def usage(self, placement: str = "DEVICE") -> tuple[int, int, int]:
        """Bytes in all, free bytes and bytes of a page of a pool."""

    @abstractmethod
    def live_caches(self) -> int:
        """How many caches hold memory."""

    @abstractmethod
    def live_keys(self) -> int:
        """How many keys are bound."""

    @abstractmethod
    def check(self) -> None:
        """Every invariant holds."""

    def is_entirely_free(self) -> bool:
        """Whether no cache, no key and no page is held."""
        self.check()
        pools_are_free = all(total == free for total, free, _ in map(self.usage, ("DEVICE", "HOST")))
        return pools_are_free and self.live_caches() == self.live_keys() == 0

    # -- memory ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def tensor_addrs(self, cache: Any) -> list[int]:
        """``cache.tensor_addrs``."""

    @abstractmethod
    def contents(self, cache: Any) -> list[bytes]:
        """The bytes of every tensor of a cache in a pool, as long as its memory is held."""

    @abstractmethod
    def write_tensor(self, cache: Any, tensor: int, content: bytes) -> None:
        """Write a tensor of a cache in a pool from its start."""

    def fill(self, cache: Any, seed: int) -> Any:
        """Write all of a cache's memory; gives the cache."""
        for tensor, content in enumerate(self.contents(cache)):
            self.write_tensor(cache, tensor, pattern(seed, tensor, len(content)))
        return cache

    @abstractmethod
    def own_memory(self, size: int) -> int:
        """The address of zeros that belong to the program. The bytes before and behind them are not mapped."""

    @abstractmethod
    def free_memory(self, address: int) -> None:
        """Unmap what :meth:`own_memory` gave."""

    @abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """The bytes at an address."""

    @abstractmethod
    def write(self, address: int, content: bytes) -> None:
        """Write the bytes at an address."""

    @abstractmethod
    def create_cpu_cache(self, desc: Any, addrs: Any) -> Any:
        """``Cache.create_cpu_cache``."""


class World(ABC):
    """The clusters of one test."""

    name: str

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def node(self, cluster_id: int, role: str = "MIX", **settings: Any) -> Node:
        """A cluster that was initialised with :func:`options_of` the settings."""
        node = self.start(cluster_id, role)
        node.init(options_of(**settings))
        return node

    def pair(self, **settings: Any) -> tuple[Node, Node]:
        """Clusters 1 and 2; the second has linked to the first."""
        prompt, decoder = self.node(1, "PROMPT", **settings), self.node(2, "DECODER", **settings)
        link(decoder, prompt)
        return prompt, decoder

    def start(self, cluster_id: int, role: str = "MIX") -> Node:
        """A cluster that is not initialised yet."""
        self.nodes.append(self._start(cluster_id, role))
        return self.nodes[-1]

    @abstractmethod
    def _start(self, cluster_id: int, role: str) -> Node: ...

    @abstractmethod
    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for what a call has set going. In the model it has happened already."""

    @abstractmethod
    def close(self) -> None:
        """Finalize every node and drop everything."""


def info_of(server: Node, cluster_id: int | None = None) -> ClusterInfo:
    """What ``link_clusters`` is told of a cluster that listens."""
    address = server.listen_address
    assert address is not None
    return ClusterInfo(server.cluster_id if cluster_id is None else cluster_id, (("127.0.0.1", 0),), (address,))


def link(client: Node, server: Node) -> None:
    """Link one to another that listens."""
    assert client.link_clusters([info_of(server)], TIMEOUT_MS) == ("LLM_SUCCESS", ["LLM_SUCCESS"])


def request(number: int, model_id: int = 0, cluster_id: int = 1) -> CacheKey:
    """A request key of cluster 1."""
    return CacheKey(cluster_id, number, model_id)


def prefix(number: int, model_id: int = 0, cluster_id: int = 1) -> CacheKey:
    """A prefix key of cluster 1."""
    return CacheKey(cluster_id, 2**64 - 1, model_id, number)


def placeholder(model_id: int = 0) -> CacheKey:
    """A key that binds nothing."""
    return CacheKey(1, 2**64 - 1, model_id)


def by_id(cache: Any, batch_index: int = 0, cluster_id: int = 1) -> CacheKeyByIdAndIndex:
    """A batch slot of a cache of cluster 1."""
    return CacheKeyByIdAndIndex(cluster_id, cache.cache_id, batch_index)
