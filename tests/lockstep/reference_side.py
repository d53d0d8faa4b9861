"""The reference model's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmdd.spec.reference import Cluster, Node
from llmdd.spec.statecharts import Refused, Statecharts
from llmdd.spec.values import Cache, CacheKey, View

from .terms import (
    PATIENCE_MS,
    PLACEMENTS,
    Array,
    CacheName,
    Call,
    Memory,
    MemoryName,
    Outcome,
    Picture,
    Raised,
    Returned,
    Script,
    Scripted,
    Sight,
    ViewName,
    pattern,
)

#: The machines are the same for every cluster, and remember what they were asked.
CHARTS = Statecharts.of()


class ReferenceSide:
    """All nodes of a cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster(CHARTS)
        self.caches: dict[CacheName, Cache] = {}
        self.views: dict[ViewName, View] = {}
        self.memories: dict[MemoryName, tuple[int, int]] = {}

    @property
    def nodes(self) -> dict[str, Node]:
        return self.cluster.nodes

    def start(self, node: str, cluster_id: int, role: str) -> Outcome:
        self.cluster.start(node, cluster_id).role = role
        return Returned()

    def kill(self, node: str) -> None:
        """The node's process dies, and every other node notices."""
        self.cluster.kill(node)
        for view in [view for view in self.views if view.node == node]:
            del self.views[view]
        for memory in [memory for memory in self.memories if memory.node == node]:
            del self.memories[memory]

    def call(self, call: Call) -> Outcome:
        return _outcome(lambda: self._make(call))

    def _make(self, call: Call) -> Any:
        arguments = [self._translated(argument) for argument in call.arguments]
        keywords = {name: self._translated(argument) for name, argument in (call.keywords or {}).items()}
        return getattr(self.nodes[call.node], call.method)(*arguments, **keywords)

    def call_former_manager(self, call: Call) -> Outcome:
        return _outcome(lambda: CHARTS.engine.step("FINALIZED", "call"))  # api D70

    def make_cache(self, cache: CacheName, call: Call, seed: int) -> Outcome:
        return _outcome(lambda: self._make_cache(cache, call, seed))

    def _make_cache(self, name: CacheName, call: Call, seed: int) -> int:
        cache: Cache = self._make(call)
        self.caches[name] = cache
        if call.method.startswith("allocate"):
            self._fill(self.nodes[name.node], cache, cache, seed)
        return cache.cache_id

    def transfer_layers(self, call: Call) -> Outcome:
        return _outcome(lambda: self._transfer_layers(call))

    def _transfer_layers(self, call: Call) -> object:
        keywords = dict(call.keywords or {})
        scripted = Scripted(keywords["layer_synchronizer"], self.call)
        if isinstance(keywords["layer_synchronizer"], Script):
            keywords["layer_synchronizer"] = scripted.synchronize
        task = self._make(replace(call, keywords=keywords))
        return task.synchronize(PATIENCE_MS), task.get_results(PATIENCE_MS), scripted.asked

    def map_memory(self, memory: MemoryName, size: int) -> int:
        address = self.nodes[memory.node].own_memory(size)
        self.memories[memory] = address, size
        return address

    def unmap_memory(self, memory: MemoryName) -> None:
        self.nodes[memory.node].free_memory(self.memories.pop(memory)[0])

    def write_memory(self, memory: MemoryName, seed: int) -> None:
        address, size = self.memories[memory]
        self.nodes[memory.node].write_memory(address, pattern(seed, 0, size))

    def read_memory(self, node: str) -> Mapping[MemoryName, bytes]:
        read = self.nodes[node].read
        return {name: read(*place) for name, place in self.memories.items() if name.node == node}

    def fill(self, cache: CacheName, seed: int) -> Outcome:
        return _outcome(lambda: self._fill_cache(self.nodes[cache.node], self.caches[cache], seed))

    def _fill_cache(self, node: Node, cache: Cache, seed: int) -> None:
        view = node.open_view(cache)
        self._fill(node, view, cache, seed)
        node.close_view(view)

    def _fill(self, node: Node, memory: Cache | View, cache: Cache, seed: int) -> None:
        for tensor in range(cache.cache_desc.num_tensors):
            node.write(memory, tensor, pattern(seed, tensor, cache.cache_desc.size))

    def open_view(self, view: ViewName, cache: CacheName) -> Outcome:
        node = self.nodes[cache.node]
        return _outcome(lambda: self.views.update({view: node.open_view(self.caches[cache])}))

    def fill_view(self, view: ViewName, seed: int) -> Outcome:
        node, opened = self.nodes[view.node], self.views[view]
        for number, tensor in enumerate(node.contents(opened)):
            node.write(opened, number, pattern(seed, number, len(tensor)))
        return Returned()

    def close_view(self, view: ViewName) -> Outcome:
        self.nodes[view.node].close_view(self.views.pop(view))
        return Returned()

    def links(self, node: str, communicators: Sequence[int]) -> Outcome:
        return _outcome(lambda: (self._linked(node), self._statuses(node, communicators)))

    def _linked(self, name: str) -> tuple[int, ...]:
        node = self.nodes[name]
        node.live_caches  # noqa: B018  refuses as every call does while the node is not initialised
        linked = {link.cluster_id for link in node.links.values() if link.state == "LINKED"}
        for communicator in node.communicators.values():
            if communicator.state == "OK":
                linked.update(communicator.connected)
        return tuple(sorted(linked))

    def _statuses(self, node: str, communicators: Sequence[int]) -> dict[int, str]:
        return {number: self.nodes[node].communicators[number].state for number in communicators}

    def picture(self, node: str, sight: Sight) -> Outcome:
        return _outcome(lambda: self._picture(node, sight))

    def _picture(self, name: str, sight: Sight) -> Picture:
        node = self.nodes[name]
        return Picture(
            listen_address=node.listen_address,
            linked=self._linked(name),
            pools={placement: tuple(node.pool_usage(placement)) for placement in PLACEMENTS},
            live_caches=node.live_caches,
            live_keys=len(node.key_index),
            bindings={key: _binding(node, key) for key in sight.keys},
            blocks_keys={key: key.identity in node.key_index for key in sight.blocks_keys},
            role=node.role,
            communicators=self._statuses(name, sight.communicators),
            memories={cache: _memory(node, self.caches[cache]) for cache in sight.caches},
            views={view: tuple(node.contents(self.views[view])) for view in sight.views},
        )

    def live_caches(self, node: str) -> list[CacheName]:
        """The caches of a node whose memory has not gone back, perhaps without their id."""
        engine, tenants = self.nodes[node].engine, self.nodes[node].tenants
        return [name for name, cache in self.caches.items() if cache.engine == engine and cache.cache_id in tenants]

    def views_of(self, node: str) -> list[ViewName]:
        """The views of memory that the node still has."""
        return [
            name
            for name, view in self.views.items()
            if view.engine == self.nodes[node].engine and self.nodes[node].state == "READY"
        ]

    def _translated(self, value: Any) -> Any:
        """A cache's name is that cache here, an array a list. Anything else is itself."""
        if isinstance(value, CacheName):
            return self.caches[value]
        if isinstance(value, Array):
            return list(value.numbers)
        if type(value) in (list, tuple, set):
            return type(value)(self._translated(element) for element in value)
        if type(value) is dict:
            return {key: self._translated(element) for key, element in value.items()}
        if isinstance(value, Script):
            return Scripted(value, self.call).synchronize
        return value


def _outcome(call: Callable[[], object]) -> Outcome:
    try:
        return Returned(call())
    except Refused as refused:
        return Raised(refused.exception, refused.status)


def _binding(node: Node, key: CacheKey) -> tuple[int, int] | None:
    found = node.lookup(key)
    return None if found is None else (found.cache_id, found.batch_index)


def _memory(node: Node, cache: Cache) -> Memory:
    contents = _outcome(lambda: _contents(node, cache))
    return Memory(cache.cache_desc.placement, tuple(node.tensor_addrs(cache)), contents)


def _contents(node: Node, cache: Cache) -> tuple[bytes, ...]:
    view = node.open_view(cache)
    contents = tuple(node.contents(view))
    node.close_view(view)
    return contents
