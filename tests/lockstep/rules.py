"""The rules by which calls are made, and the comparison after each.

One :class:`Lockstep` machine drives the reference model and the library. Every call is made on both; its outcome must
be the same, and after every step so must be all that can be seen of every node.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import count, permutations
from typing import Any, TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from llmdd.spec.values import INV, CacheDesc, CacheKey, CacheKeyByIdAndIndex, ClusterInfo

from . import strategies
from .child_process import ChildProcess, Children
from .library_side import LibrarySide
from .reference_side import ReferenceSide
from .strategies import CLUSTER_IDS, KEYS, PATIENCE_MS
from .terms import CacheName, Call, Memory, Outcome, Picture, Raised, Returned, Side, ViewName

Method = TypeVar("Method", bound=Callable[..., None])

Startup = tuple[str, dict[str, str], str]

#: How long a node may take to hear of what happened to another.
PATIENCE_S = 60.0


def now_and_then(one_in: int) -> Callable[[Method], Method]:
    """Makes a rule available at one step in so many."""
    decorate: Callable[[Method], Method] = precondition(lambda machine: machine.comparisons % one_in == one_in - 1)
    return decorate


class StepCount:
    """Counts the steps of all examples of a test."""

    def __init__(self) -> None:
        self.steps = 0


class Lockstep(RuleBasedStateMachine):
    """A cluster of one to three nodes, twice.

    Parameters
    ----------
    counter
        Where the steps are counted.
    """

    def __init__(self, counter: StepCount) -> None:
        super().__init__()
        self.counter = counter
        self.reference = ReferenceSide()
        self.nodes: list[str] = []
        self.caches: list[CacheName] = []
        self.remote_mode = False
        self._numbers = count(1)
        self._pool_bases: dict[tuple[object, str], int] = {}
        self.comparisons = 0

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

    def cache_of_key(self, node: str, key: CacheKey) -> CacheName | None:
        """The cache that a key is bound to on the node."""
        slot = self.reference.nodes[node].slot_of(key.identity)
        if slot is None:
            return None
        found = {self.reference.caches[name].cache_id: name for name in self.reference.live_caches(node)}
        return found[slot.tenant.cache_id]

    def are_linked(self, node: str, other: str) -> bool:
        linked = self.reference.linked(node)
        return isinstance(linked, Returned) and CLUSTER_IDS[other] in linked.value

    def caches_known_beside(self, node: str) -> list[CacheName]:
        """All caches, living or not, that a program could give to a call on the node."""
        return [cache for cache in self.caches if self.live_together(cache.node, node)]

    def bound_keys(self, node: str) -> list[CacheKey]:
        return [
            CacheKey(1, number, model) if kind == "request" else CacheKey(1, INV, model, number)
            for kind, number, model in self.reference.nodes[node].key_index
        ]

    def batch_size(self, cache: CacheName | None) -> int:
        return self._desc(cache).batch_size

    def slot_bytes(self, cache: CacheName | None) -> int:
        return self._desc(cache).size // self.batch_size(cache)

    def num_tensors(self, cache: CacheName | None) -> int:
        return self._desc(cache).num_tensors

    def _desc(self, cache: CacheName | None) -> CacheDesc:
        return self.reference.caches[cache].cache_desc if cache else CacheDesc(2, (1, 8), "DT_INT8")

    # -- both sides -----------------------------------------------------------------------------------------------

    def make(self, call: Call) -> Outcome:
        """Make a call on both sides; the outcome is the same."""
        outcome = self.library(call.node).call(call)
        if call.method == "init":
            call = self._with_port(call)
        return self._same(self.reference.call(call), outcome, call)

    def _with_port(self, call: Call) -> Call:
        """An ``init`` that asks for any free port, told which one the library got."""
        options = call.arguments[0]
        if not isinstance(options, dict) or options.get("llm.listenIpInfo") != f"{strategies.LOOPBACK}:0":
            return call
        picture = self.library(call.node).picture(call.node, (), (), ())
        if isinstance(picture, Raised) or picture.value.listen_address is None:
            return call
        ip, port = picture.value.listen_address
        return replace(call, arguments=({**options, "llm.listenIpInfo": f"{ip}:{port}"},))

    def _same(self, expected: Outcome, found: Outcome, what: object) -> Outcome:
        if expected != found:
            raise AssertionError(f"{what}: the reference says {expected}, the library {found}")
        note(f"    -> {found}")
        return found

    def await_links(self) -> None:
        """Wait until every node has heard what became of its links: of that the library gives no other notice."""
        deadline = time.monotonic() + PATIENCE_S
        for node in self.nodes:
            expected = self.reference.linked(node)
            while (found := self.library(node).linked(node)) != expected and time.monotonic() < deadline:
                time.sleep(0.001)
            self._same(expected, found, f"the links of node {node}")

    # -- rules ----------------------------------------------------------------------------------------------------

    @initialize(data=st.data(), startups=strategies.clusters())
    def begin(self, data: st.DataObject, startups: Sequence[Startup]) -> None:
        self.remote_mode = startups[0][1].get("llm.EnableRemoteCacheAccessible") == "1"
        for node, options, role in startups:
            self.begin_node(node, options, role)
        self.restore_links()
        for node in self.nodes * 2:
            self.allocate_one(data.draw(strategies.allocations(node)), seed=len(self.caches))

    def begin_node(self, node: str, options: dict[str, str], role: str) -> None:
        self.nodes.append(node)
        for side in (self.reference, self.library(node)):
            assert side.start(node, CLUSTER_IDS[node], role) == Returned()
        self.make(Call(node, "init", (options,)))

    @precondition(lambda self: self.nodes_not_ready)
    @rule(call=strategies.inits())
    def init(self, call: Call) -> None:
        self.make(call)

    @now_and_then(7)
    @rule(call=strategies.inits())
    def init_again(self, call: Call) -> None:
        self.make(call)

    @now_and_then(12)
    @rule(node=strategies.nodes())
    def finalize(self, node: str) -> None:
        self.make(Call(node, "finalize"))
        self.await_links()

    @now_and_then(3)
    @rule(call=strategies.links())
    def link(self, call: Call) -> None:
        self.make(call)

    @now_and_then(3)
    @rule(call=strategies.unlinks())
    def unlink(self, call: Call) -> None:
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

    @rule(allocation=strategies.allocations(), seed=st.integers(0, 2**32))
    def allocate(self, allocation: tuple[str, Any, Any], seed: int) -> None:
        self.allocate_one(allocation, seed)

    def allocate_one(self, allocation: tuple[str, Any, Any], seed: int) -> None:
        node, desc, keys = allocation
        cache = CacheName(node, next(self._numbers))
        outcome = self._same(
            self.reference.allocate(cache, desc, keys, seed),
            self.library(node).allocate(cache, desc, keys, seed),
            f"allocation of {cache}",
        )
        if isinstance(outcome, Returned):
            self.caches.append(cache)

    @now_and_then(2)
    @rule(call=strategies.deallocations())
    def deallocate(self, call: Call) -> None:
        self.make(call)

    @now_and_then(2)
    @rule(call=strategies.key_calls("remove_cache_key"))
    def remove_cache_key(self, call: Call) -> None:
        self.make(call)

    @now_and_then(5)
    @rule(call=strategies.key_calls("lookup"))
    def lookup(self, call: Call) -> None:
        self.make(call)

    @rule(call=strategies.pulls(by_key=True))
    def pull_by_key(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.bound_keys, self.nodes)))
    @rule(call=strategies.pulls(by_key=True, by_layers=True))
    def pull_layers_by_key(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(call=strategies.pulls())
    def pull_by_id(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(call=strategies.pulls(by_layers=True))
    def pull_layers_by_id(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.remote_mode)
    @rule(call=strategies.pushes())
    def push(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: not self.remote_mode)
    @now_and_then(5)
    @rule(call=strategies.pushes())
    def push_where_nobody_may(self, call: Call) -> None:
        self.make(call)

    @rule(call=strategies.copies())
    def copy(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.caches)
    @rule(cache=strategies.caches(), seed=st.integers(0, 2**32))
    def fill(self, cache: CacheName, seed: int) -> None:
        self._same(self.reference.fill(cache, seed), self.library(cache.node).fill(cache, seed), f"filling {cache}")

    @precondition(lambda self: self.caches)
    @rule(cache=strategies.caches())
    def open_view(self, cache: CacheName) -> None:
        view = ViewName(cache.node, next(self._numbers))
        self._same(
            self.reference.open_view(view, cache),
            self.library(cache.node).open_view(view, cache),
            f"opening {view} of {cache}",
        )

    @precondition(lambda self: self.open_views)
    @rule(view=strategies.views())
    def close_view(self, view: ViewName) -> None:
        for side in (self.reference, self.library(view.node)):
            side.close_view(view)

    @precondition(lambda self: any(self.reference.views_of(node) for node in self.nodes))
    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def fill_view(self, data: st.DataObject, seed: int) -> None:
        view = data.draw(st.sampled_from([view for node in self.nodes for view in self.reference.views_of(node)]))
        for side in (self.reference, self.library(view.node)):
            side.fill_view(view, seed)

    @now_and_then(5)
    @rule(call=strategies.calls_on_a_manager())
    def call_a_former_manager(self, call: Call) -> None:
        node = self.reference.nodes[call.node]
        if node.times_initialised > (node.state == "READY"):
            self._same(
                self.reference.call_former_manager(call),
                self.library(call.node).call_former_manager(call),
                f"{call} on a former manager",
            )

    # -- after every step -----------------------------------------------------------------------------------------

    @invariant()
    def everything_seen_is_the_same(self) -> None:
        self.comparisons += 1
        self.reference.cluster.check()
        for node in self.nodes:
            self._compare_pictures(node)

    def _compare_pictures(self, node: str) -> None:
        keys = list(dict.fromkeys([*KEYS, *self.bound_keys(node)]))
        caches = [cache for cache in self.caches if cache.node == node]
        views = self.reference.views_of(node)
        expected = self.reference.picture(node, keys, caches, views)
        found = self.library(node).picture(node, keys, caches, views)
        if isinstance(expected, Returned) and isinstance(found, Returned):
            located = self._located(node, expected.value, found.value)
            for field in fields(Picture):
                name = field.name
                self._same_parts(getattr(expected.value, name), getattr(located, name), f"{name} of node {node}")
        else:
            self._same(expected, found, f"node {node}")

    def _same_parts(self, expected: Any, found: Any, what: str) -> None:
        if expected == found:
            return
        if isinstance(expected, dict) and expected.keys() == found.keys():
            different = next(part for part in expected if expected[part] != found[part])
            expected, found, what = expected[different], found[different], f"{different} in {what}"
        raise AssertionError(f"{what}: the reference has {expected}, the library {found}")

    def _located(self, node: str, expected: Picture, found: Picture) -> Picture:
        """The library's picture with places in the pools for addresses.

        Where a pool begins is learnt from the first cache in it, and never changes.
        """
        memories = {}
        for cache, memory in found.memories.items():
            places = expected.memories[cache].places
            if memory.places and places:
                pool = (self.reference.nodes[node].engine, memory.placement)
                base = self._pool_bases.setdefault(pool, memory.places[0] - places[0])
                memory = Memory(memory.placement, tuple(place - base for place in memory.places), memory.contents)
            memories[cache] = memory
        return replace(found, memories=memories)

    def teardown(self) -> None:
        self.counter.steps += max(0, self.comparisons - 1)  # the first was made before any rule
        failing = isinstance(sys.exc_info()[1], Exception)  # Hypothesis' own way out of an example is no Exception
        try:
            if not failing:
                self._let_everything_go()
        finally:
            self.leave(failing)

    def _let_everything_go(self) -> None:
        """When nobody holds anything any more, nothing is held."""
        for view in self.open_views:
            self.close_view(view)
        for node in self.nodes:
            if self.reference.nodes[node].state != "READY":
                continue
            for cache in self.reference.live_caches(node):
                self.make(Call(node, "deallocate_cache", (cache,)))
            for key in self.bound_keys(node):
                self.make(Call(node, "remove_cache_key", (key,)))
            self._compare_pictures(node)
            emptied = self.library(node).picture(node, (), (), ())
            assert isinstance(emptied, Returned)
            for total, free, _ in emptied.value.pools.values():
                assert free == total, f"node {node} leaks {total - free} bytes"


class LockstepInOneProcess(Lockstep):
    """All nodes are instances in this process."""

    def __init__(self, counter: StepCount) -> None:
        super().__init__(counter)
        self._side = LibrarySide()

    def library(self, node: str) -> Side:
        return self._side

    def live_together(self, node: str, other: str) -> bool:
        return True

    def leave(self, failing: bool) -> None:
        self._side.forget()


class LockstepAcrossProcesses(Lockstep):
    """Each node is a process, which may be killed."""

    def __init__(self, counter: StepCount, children: Children) -> None:
        super().__init__(counter)
        self._children = children
        self._processes: dict[str, ChildProcess] = {}

    def library(self, node: str) -> Side:
        if node not in self._processes:
            self._processes[node] = self._children.take()
        return self._processes[node].side

    def live_together(self, node: str, other: str) -> bool:
        return node == other

    def leave(self, failing: bool) -> None:
        for process in self._processes.values():
            if failing:
                process.kill()
            else:
                self._children.give_back(process)

    @now_and_then(4)
    @rule(data=st.data(), node=strategies.nodes(), role=st.sampled_from(strategies.ROLES))
    def kill_and_start_again(self, data: st.DataObject, node: str, role: str) -> None:
        """A process dies; when the others have noticed, another takes its place, with the same cluster id."""
        options = data.draw(strategies.good_options(node, self.remote_mode))
        self._processes.pop(node).kill()
        self.reference.kill(node)
        self.nodes.remove(node)
        self.caches = [cache for cache in self.caches if cache.node != node]
        self.await_links()
        for survivor in self.nodes:
            for cache in self.reference.live_caches(survivor)[:1]:
                self.make(Call(survivor, "pull_cache", (CacheKeyByIdAndIndex(CLUSTER_IDS[node], 1), cache)))
        self.begin_node(node, options, role)
