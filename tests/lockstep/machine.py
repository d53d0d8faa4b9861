"""The reference model and the library, asked the same and compared.

One :class:`Lockstep` machine drives both. Every call is made on both sides; its outcome must be the same, and after
every step so must be all that can be seen of every node. What is called, and when, the rules say that derive from it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count, permutations
from typing import Any, TypeVar

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition
from llmdd.spec.tenants import Tenant
from llmdd.spec.values import INV, BlocksCacheKey, CacheDesc, CacheKey

from .places import located
from .reference_side import ReferenceSide
from .strategies.engines import LOOPBACK
from .strategies.present import CLUSTER_IDS
from .tally import Tally
from .terms import CacheName, Call, Memory, MemoryName, Outcome, Picture, Place, Raised, Returned, Side, Sight, ViewName

Method = TypeVar("Method", bound=Callable[..., None])

#: How long a node may take to hear of what happened to another.
PATIENCE_S = 60.0


def now_and_then(one_in: int) -> Callable[[Method], Method]:
    """Makes a rule available at one step in so many."""
    decorate: Callable[[Method], Method] = precondition(lambda machine: machine.comparisons % one_in == one_in - 1)
    return decorate


@dataclass(frozen=True)
class Addresses:
    """Where something is, on either side: where memory begins, or each tensor of a cache."""

    in_reference: tuple[int, ...]
    in_library: tuple[int, ...]


@dataclass(frozen=True)
class Mapped:
    """Memory of a program's own."""

    size: int
    addresses: Addresses


class Lockstep(RuleBasedStateMachine):
    """A cluster of one to three nodes, twice.

    Parameters
    ----------
    tally
        Where the steps and the calls are counted.
    """

    # One for all machines: the clock of a process that is used again does not go back.
    _ahead_ms = 0

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.reference = ReferenceSide()
        self.nodes: list[str] = []
        self.caches: list[CacheName] = []
        self.memories: dict[MemoryName, Mapped] = {}
        self.registrations: dict[CacheName, list[Place | int]] = {}
        self.remote_mode = False
        self.comparisons = 0
        self._numbers = count(1)
        self._cache_addresses: dict[CacheName, Addresses] = {}
        self._pool_bases: dict[tuple[object, str], int] = {}

    # -- where the library's nodes live ---------------------------------------------------------------------------

    def library(self, node: str) -> Side:
        """The library's side of a node."""
        raise NotImplementedError

    def live_together(self, node: str, other: str) -> bool:
        """Whether two nodes are in one process, so that a program could mix up their caches."""
        raise NotImplementedError

    def leave(self, failing: bool) -> None:
        """End the library's nodes. Nothing that has failed is used again."""
        raise NotImplementedError

    # -- what the strategies want to know -------------------------------------------------------------------------

    @property
    def open_views(self) -> list[ViewName]:
        return list(self.reference.views)

    @property
    def nodes_not_ready(self) -> list[str]:
        return [node for node in self.nodes if self.reference.nodes[node].state != "READY"]

    def are_linked(self, node: str, other: str) -> bool:
        links = self.reference.links(node, ())
        return isinstance(links, Returned) and CLUSTER_IDS[other] in links.value[0]

    def communicators(self, node: str) -> list[int]:
        """The numbers of the communicators that a node has."""
        return list(self.reference.nodes[node].communicators)

    @property
    def has_leases(self) -> bool:
        """Whether some key is bound with a lease."""
        tenants = [tenant for node in self.nodes for tenant in self.reference.nodes[node].tenants.values()]
        return any(slot.lease_end is not None for tenant in tenants for slot in tenant.batch_slots)

    def in_remote_mode(self, node: str) -> bool:
        settings = self.reference.nodes[node].settings
        return settings is not None and settings.remote_mode

    def new_name(self) -> str:
        """For a communicator: nobody else has it."""
        return f"communicator {next(self._numbers)}"

    def live_caches(self, node: str) -> list[CacheName]:
        """The caches of a node whose memory has not gone back, perhaps without their id."""
        return self.reference.live_caches(node)

    def live_slots_caches(self, node: str) -> list[CacheName]:
        return [cache for cache in self.live_caches(node) if not self.is_blocks_cache(cache)]

    def live_blocks_caches(self, node: str) -> list[CacheName]:
        return [cache for cache in self.live_caches(node) if self.is_blocks_cache(cache)]

    def cpu_caches(self, node: str) -> list[CacheName]:
        """The program's own memory as caches, where it was not given up."""
        handles = {name: self.reference.caches[name] for name in self.caches if name.node == node}
        return [name for name, handle in handles.items() if handle.engine is None and handle.addrs]

    def swappable(self, node: str) -> list[tuple[CacheName, CacheName]]:
        """The pairs of caches between which blocks can be swapped."""
        known = self.live_blocks_caches(node) + self.cpu_caches(node)
        return [
            (source, target)
            for source, target in permutations(known, 2)
            if self.desc(source).placement != self.desc(target).placement and self.same_blocks(source, target)
        ]

    def was_made_by(self, node: str, cache: CacheName) -> bool:
        """Whether the node's present engine has made a cache."""
        return bool(self.reference.caches[cache].engine == self.reference.nodes[node].engine)

    def caches_known_beside(self, node: str) -> list[CacheName]:
        """All caches, living or not, that a program could give to a call on the node."""
        return [cache for cache in self.caches if self.live_together(cache.node, node)]

    def cache_of_key(self, node: str, key: CacheKey | BlocksCacheKey) -> CacheName | None:
        """The cache that a key is bound to on the node."""
        slot = self.reference.nodes[node].slot_of(key.identity)
        return None if slot is None else self._name_of(node, slot.tenant)

    def _name_of(self, node: str, tenant: Tenant) -> CacheName:
        found = {self.reference.caches[name].cache_id: name for name in self.live_caches(node)}
        return found[tenant.cache_id]

    def bound_keys(self, node: str) -> list[CacheKey]:
        return [
            CacheKey(1, number, model) if kind == "request" else CacheKey(1, INV, model, number)
            for kind, number, model in self.reference.nodes[node].key_index
            if kind != "blocks"
        ]

    def bound_blocks_keys(self, node: str) -> list[BlocksCacheKey]:
        keys = self.reference.nodes[node].key_index
        return [BlocksCacheKey(1, model) for kind, _, model in keys if kind == "blocks"]

    def keyed_slots(self, node: str) -> list[tuple[CacheKey, CacheName]]:
        """The keys of batch slots on a node, each with its cache."""
        return [(key, cache) for key in self.bound_keys(node) if (cache := self.cache_of_key(node, key))]

    def keyed_blocks(self, node: str) -> list[tuple[BlocksCacheKey, CacheName]]:
        """The keys of blocks caches on a node, each with its cache."""
        return [(key, cache) for key in self.bound_blocks_keys(node) if (cache := self.cache_of_key(node, key))]

    def desc(self, cache: CacheName | None) -> CacheDesc:
        return self.reference.caches[cache].cache_desc if cache else CacheDesc(2, (1, 8), "DT_INT8")

    def is_blocks_cache(self, cache: CacheName | None) -> bool:
        return cache is not None and self.reference.caches[cache].is_blocks_cache

    def row_count(self, cache: CacheName | None) -> int:
        """How many batch slots a cache has, or blocks."""
        desc = self.desc(cache)
        return desc.shape[0] if self.is_blocks_cache(cache) else desc.batch_size

    def row_bytes(self, cache: CacheName | None) -> int:
        return self.desc(cache).size // self.row_count(cache)

    def num_tensors(self, cache: CacheName | None) -> int:
        return self.desc(cache).num_tensors

    def alike(self, cache: CacheName, other: CacheName | None) -> bool:
        """Whether two caches have as many tensors."""
        return self.num_tensors(cache) == self.num_tensors(other)

    def same_blocks(self, cache: CacheName, other: CacheName) -> bool:
        """Whether two caches have as many tensors, of blocks of one size."""
        return self.alike(cache, other) and self.alike_rows(cache, other)

    def alike_rows(self, cache: CacheName, other: CacheName | None) -> bool:
        """Whether two caches are of a kind, with slots or blocks of one size."""
        kinds = self.is_blocks_cache(cache) == self.is_blocks_cache(other)
        return kinds and self.row_bytes(cache) == self.row_bytes(other)

    def can_be_sent(self, source: CacheName, target: CacheName) -> bool:
        """Whether the target has blocks of the source's size, or slots that are large enough, or blocks for a slot."""
        if self.is_blocks_cache(source):
            return self.alike_rows(source, target)
        return self.is_blocks_cache(target) or self.row_bytes(source) <= self.row_bytes(target)

    def mapped_memories(self) -> list[MemoryName]:
        return list(self.reference.memories)

    def free_offset(self, memory: MemoryName, size: int) -> int | None:
        """Where in memory of the program's own so many bytes are used by no cache."""
        start = 0
        for begin, end in sorted(self._used(memory)):
            if begin - start >= size:
                break
            start = max(start, end)
        return start if start + size <= self.memories[memory].size else None

    def _used(self, memory: MemoryName) -> Iterable[tuple[int, int]]:
        for cache in [*self.live_caches(memory.node), *self.cpu_caches(memory.node)]:
            for place in self.registrations.get(cache, ()):
                if isinstance(place, Place) and place.of == memory:
                    yield place.offset, place.offset + self.desc(cache).size

    # -- both sides -----------------------------------------------------------------------------------------------

    def make(self, call: Call) -> Outcome:
        """Make a call on both sides; the outcome is the same."""
        outcome = self.library(call.node).call(self.on_library(call))
        reference_call = self.on_reference(call)
        if isinstance(outcome, Returned):  # who is refused listens where it did
            reference_call = self._with_port(reference_call)
        return self.same_outcome(self.reference.call(reference_call), outcome, call)

    def transfer_layers_of(self, call: Call) -> Outcome:
        """Transfer layer by layer on both sides, each to the end."""
        outcome = self.library(call.node).transfer_layers(self.on_library(call))
        return self.same_outcome(self.reference.transfer_layers(self.on_reference(call)), outcome, call)

    def make_cache(self, call: Call, seed: int) -> CacheName | None:
        """Make a cache on both sides; its name, if it was made."""
        cache = CacheName(call.node, next(self._numbers))
        on_library, on_reference = self.on_library(call), self.on_reference(call)
        outcome = self.library(call.node).make_cache(cache, on_library, seed)
        if isinstance(self.same_outcome(self.reference.make_cache(cache, on_reference, seed), outcome, call), Raised):
            return None
        self.caches.append(cache)
        keywords = call.keywords or {}
        if "addrs" in keywords:
            self.registrations[cache] = keywords["addrs"]
            given = [(made.keywords or {})["addrs"] for made in (on_reference, on_library)]
            self._cache_addresses[cache] = Addresses(*map(tuple, given))
        return cache

    def on_reference(self, call: Call) -> Call:
        return located(call, lambda place: self._addresses(place).in_reference[place.tensor] + place.offset)

    def on_library(self, call: Call) -> Call:
        return located(call, lambda place: self._addresses(place).in_library[place.tensor] + place.offset)

    def _addresses(self, place: Place) -> Addresses:
        if isinstance(place.of, MemoryName):
            return self.memories[place.of].addresses
        return self._cache_addresses[place.of]

    def _with_port(self, call: Call) -> Call:
        """An ``init`` or ``switch_role`` that asks for any free port, told which one the library got."""
        options = call.arguments[0] if call.method == "init" else (call.keywords or {}).get("switch_options")
        if not isinstance(options, dict) or options.get("llm.listenIpInfo") != f"{LOOPBACK}:0":
            return call
        picture = self.library(call.node).picture(call.node, Sight())
        if isinstance(picture, Raised) or picture.value.listen_address is None:
            return call
        ip, port = picture.value.listen_address
        options = {**options, "llm.listenIpInfo": f"{ip}:{port}"}
        if call.method == "init":
            return replace(call, arguments=(options,))
        return replace(call, keywords={**(call.keywords or {}), "switch_options": options})

    def same_outcome(self, expected: Outcome, found: Outcome, call: Call) -> Outcome:
        self.tally.count(call, found)
        return self.same(expected, found, call)

    def same(self, expected: Outcome, found: Outcome, what: object) -> Outcome:
        if expected != found:
            raise AssertionError(f"{what}: the reference says {expected}, the library {found}")
        note(f"    -> {found}")
        return found

    def map_memory(self, node: str, size: int) -> None:
        memory = MemoryName(node, next(self._numbers))
        addresses = [(side.map_memory(memory, size),) for side in (self.reference, self.library(node))]
        self.memories[memory] = Mapped(size, Addresses(*addresses))

    def let_time_pass(self, milliseconds: int) -> None:
        """So much that what the machine itself takes does not count."""
        Lockstep._ahead_ms += milliseconds
        self.reference.cluster.let_time_pass(milliseconds)
        for node in self.nodes:
            self.library(node).set_clock(self._ahead_ms)

    def await_links(self) -> None:
        """Wait until every node has heard what became of its links: of that the library gives no other notice."""
        deadline = time.monotonic() + PATIENCE_S
        for node in self.nodes:
            numbers = self.communicators(node)
            expected = self.reference.links(node, numbers)
            while (found := self.library(node).links(node, numbers)) != expected and time.monotonic() < deadline:
                time.sleep(0.001)
            self.same(expected, found, f"the links of node {node}")

    def begin_node(self, node: str, options: dict[str, str], role: str) -> None:
        self.nodes.append(node)
        self.library(node).set_clock(self._ahead_ms)
        for side in (self.reference, self.library(node)):
            assert side.start(node, CLUSTER_IDS[node], role) == Returned()
        self.make(Call(node, "init", (options,)))

    def forget_node(self, node: str) -> None:
        """What its process knew is gone."""
        self.nodes.remove(node)
        self.caches = [cache for cache in self.caches if cache.node != node]
        self.memories = {memory: mapped for memory, mapped in self.memories.items() if memory.node != node}

    # -- after every step -----------------------------------------------------------------------------------------

    @invariant()
    def everything_seen_is_the_same(self) -> None:
        self.comparisons += 1
        self.reference.cluster.check()
        for node in self.nodes:
            self._compare_pictures(node)
            self._same_parts(self.reference.read_memory(node), self.library(node).read_memory(node), "memory")

    def _compare_pictures(self, node: str) -> None:
        sight = Sight(
            keys=self.bound_keys(node),  # as many as there are: no other is bound then
            blocks_keys=self.bound_blocks_keys(node) if self.reference.nodes[node].pools else (),
            communicators=self.communicators(node),
            caches=[cache for cache in self.caches if cache.node == node],
            views=self.reference.views_of(node),
        )
        expected = self.reference.picture(node, sight)
        found = self.library(node).picture(node, sight)
        if isinstance(expected, Returned) and isinstance(found, Returned):
            translated = self._as_in_reference(node, expected.value, found.value)
            for field in fields(Picture):
                name = field.name
                self._same_parts(getattr(expected.value, name), getattr(translated, name), f"{name} of node {node}")
        else:
            self.same(expected, found, f"node {node}")

    def _same_parts(self, expected: Any, found: Any, what: str) -> None:
        """Compare, and say where the difference is."""
        if expected == found:
            return
        if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
            for part in expected:
                self._same_parts(expected[part], found[part], f"{part} in {what}")
        if isinstance(expected, Memory) and isinstance(found, Memory):
            self._same_parts(expected.addresses, found.addresses, f"addresses of {what}")
            if isinstance(expected.contents, Returned) and isinstance(found.contents, Returned):
                self._same_parts(expected.contents.value, found.contents.value, what)
        if isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found):
            for number, part in enumerate(expected):
                self._same_parts(part, found[number], f"part {number} of {what}")
        if isinstance(expected, bytes) and isinstance(found, bytes) and len(expected) == len(found):
            at = next(at for at in range(len(expected)) if expected[at] != found[at])
            expected, found, what = expected[at : at + 16], found[at : at + 16], f"byte {at} of {what}"
        raise AssertionError(f"{what}: the reference has {expected}, the library {found}")

    def _as_in_reference(self, node: str, expected: Picture, found: Picture) -> Picture:
        """The library's picture with the reference's addresses for its own."""
        memories = {
            cache: self._with_reference_addresses(cache, memory, expected.memories[cache].addresses)
            for cache, memory in found.memories.items()
        }
        return replace(found, memories=memories)

    def _with_reference_addresses(self, cache: CacheName, memory: Memory, expected: Sequence[int]) -> Memory:
        if not memory.addresses or not expected:
            return memory
        if cache in self.registrations:
            known = self._cache_addresses[cache]
            return replace(memory, addresses=known.in_reference) if memory.addresses == known.in_library else memory
        # Where a pool begins is learnt from the first cache in it, and never changes.
        pool = (self.reference.caches[cache].engine, memory.placement)
        base = self._pool_bases.setdefault(pool, memory.addresses[0] - expected[0])
        self._cache_addresses.setdefault(cache, Addresses(tuple(expected), memory.addresses))
        return replace(memory, addresses=tuple(address - base for address in memory.addresses))

    # -- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.tally.steps += max(0, self.comparisons - 1)  # the first was made before any rule
        failing = isinstance(sys.exc_info()[1], Exception)  # Hypothesis' own way out of an example is no Exception
        try:
            if not failing:
                self._let_everything_go()
        finally:
            self.leave(failing)

    def _let_everything_go(self) -> None:
        """When nobody holds anything any more, nothing is held."""
        for view in self.open_views:
            for side in (self.reference, self.library(view.node)):
                side.close_view(view)
        for node in self.nodes:
            if self.reference.nodes[node].state != "READY":
                continue
            for cache in self.live_caches(node):
                self._let_go(cache)
            for key in self.bound_keys(node):
                self.make(Call(node, "remove_cache_key", (), {"cache_key": key}))
            self._compare_pictures(node)
            emptied = self.library(node).picture(node, Sight())
            assert isinstance(emptied, Returned)
            assert emptied.value.live_caches == 0, f"node {node} keeps {emptied.value.live_caches} caches"
            for total, free, _ in emptied.value.pools.values():
                assert free == total, f"node {node} leaks {total - free} bytes"

    def _let_go(self, cache: CacheName) -> None:
        if cache in self.registrations:
            cache_id = self.reference.caches[cache].cache_id
            self.make(Call(cache.node, "unregister_cache", (), {"cache_id": cache_id}))
        else:
            method = "deallocate_blocks_cache" if self.is_blocks_cache(cache) else "deallocate_cache"
            self.make(Call(cache.node, method, (), {"cache": cache}))
