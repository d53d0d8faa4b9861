"""Visits every state that a small cluster can reach, and checks in each that the promises of the contract hold.

The explorer makes the calls of the reference model in every order, breadth first. It does not believe the model: from
the outcomes of the calls alone a :class:`Ledger` keeps its own account of who holds what, in sets and dictionaries and
without any state machine. After every call the model must agree with the ledger:

* the call was answered as the ledger says: a key that was consumed, removed or superseded is never found again, one
  that was not always is;
* memory is held exactly for the caches that somebody still holds, so it goes back with the last reference, once, and
  never while pinned; a placeholder never holds anything;
* a key is there until its lease is over, and no longer, whoever looks at it or renews it;
* a call that was refused, or had nothing to do, has changed nothing;
* a completed copy has moved the right bytes;
* the model's own invariants hold (:meth:`.reference.Cluster.check`);
* once everybody lets go, in whatever way, both pools are empty.

Two states are the same when nobody could tell them apart: ids that went up with time, and the order of what is
otherwise alike, do not count.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .memory import FIRST_OWN_ADDRESS
from .reference import Cluster, Node
from .statecharts import Refused, Statecharts
from .values import (
    INV,
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    ClusterInfo,
    View,
)

OWNER, PEER = "owner", "peer"
CLUSTER_IDS = {OWNER: 1, PEER: 2}
ADDRESSES = {OWNER: ("127.0.0.1", 5001), PEER: ("127.0.0.1", 5002)}
BATCH_SIZE = 2
NUM_TENSORS = 2
PAGE_SHIFT = 10
UNKNOWN_ID = 10**9

PLACEHOLDER = "placeholder"
BLOCKS_KEY = "B"
KEYS: dict[str, CacheKey | BlocksCacheKey] = {
    "K1": CacheKey(1, 1),
    "K2": CacheKey(1, 2),
    "P": CacheKey(1, INV, 0, 1),
    BLOCKS_KEY: BlocksCacheKey(1),
    PLACEHOLDER: CacheKey(1, INV),
}

#: The calls that make a cache: whether it has blocks, whether its memory is the program's own.
MAKERS = {
    "allocate": (False, False),
    "allocate_blocks": (True, False),
    "register": (False, True),
    "register_blocks": (True, True),
}

#: A call, as its name and its arguments; the first argument is the node that it is made on.
Action = tuple[Any, ...]

#: Layers of a pull; None is all of them. There is one tensor to a layer here.
Layer = range | None


@dataclass(frozen=True)
class Scenario:
    """A small cluster, and what may happen in it.

    ``bindings`` are the keys that allocated caches are given, ``others`` the keys of those that another call makes.
    ``leases`` are those with which keys are bound, and ``renewals`` those that either side renews them with, in ticks
    of the clock; it runs where there are any.
    """

    name: str
    meaning: str
    bindings: tuple[tuple[str, ...], ...]
    others: tuple[tuple[str, tuple[str, ...]], ...] = ()
    most_caches: int = 1
    most_registered: int = 1
    peer_has_blocks: bool = False
    layers: tuple[Layer, ...] = (None,)
    most_transfers: int = 1
    most_views: int = 0
    by_id: bool = True
    abandoning: bool = False
    peer_reallocates: bool = False
    deaths: tuple[str, ...] = ()
    relinking: bool = False
    remote_mode: bool = False
    leases: tuple[int, ...] = (0,)
    renewals: tuple[int, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of all keys that are ever bound."""
        return tuple(sorted({name for _, binding in self.makings for name in binding} - {PLACEHOLDER}))

    @property
    def removable_keys(self) -> tuple[str, ...]:
        """Those of them that remove_cache_key takes."""
        return tuple(name for name in self.keys if name != BLOCKS_KEY)

    @property
    def makings(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The calls by which the owner makes caches, each with the keys that it gives."""
        return (*(("allocate", binding) for binding in self.bindings), *self.others)


BOTH, FIRST, SECOND = None, range(1), range(1, 2)

SMALL = (
    Scenario(
        "keys",
        "two caches with every kind of binding, a view, a transfer that may fail",
        bindings=(("K1", "K2"), ("K1", "K1"), (PLACEHOLDER, "K2"), ("P", "P"), ()),
        most_caches=2,
        most_views=1,
        abandoning=True,
    ),
    Scenario(
        "layers",
        "two concurrent transfers of single layers",
        bindings=(("K1", "K2"), ("K1", "P")),
        layers=(BOTH, FIRST, SECOND),
        most_transfers=2,
    ),
    Scenario(
        "pushes",
        "pulls and pushes of single layers in remote mode",
        bindings=(("K1", "P"),),
        layers=(BOTH, FIRST, SECOND),
        remote_mode=True,
        most_transfers=2,
    ),
    Scenario(
        "deaths",
        "either side dies in the midst of two concurrent transfers, and comes back",
        bindings=(("K1", "P"), (PLACEHOLDER, "K1")),
        most_caches=2,
        most_transfers=2,
        peer_reallocates=True,
        deaths=(OWNER, PEER),
    ),
    Scenario(
        "links",
        "links come and go, and either side dies, under two concurrent transfers",
        bindings=(("K1", "P"), ("K1",)),
        most_transfers=2,
        peer_reallocates=True,
        deaths=(OWNER, PEER),
        relinking=True,
    ),
    Scenario(
        "blocks",
        "blocks caches, allocated and registered, beside an ordinary one; pulls and pushes of blocks, and a death",
        bindings=(("K1", "P"),),
        others=(("allocate_blocks", (BLOCKS_KEY,)), ("register_blocks", (BLOCKS_KEY,))),
        most_caches=2,
        peer_has_blocks=True,
        remote_mode=True,
        abandoning=True,
        deaths=(PEER,),
    ),
    Scenario(
        "registered",
        "a registered cache beside an ordinary one, unregistered in the midst of two concurrent transfers",
        bindings=(("K1",),),
        others=(("register", ("K1", "P")),),
        most_transfers=2,
    ),
    Scenario(
        "leases",
        "keys with and without leases, renewed from both sides, while transfers of them begin and end, and deaths",
        bindings=(("K1", "P"),),
        layers=(BOTH, FIRST),
        by_id=False,
        deaths=(PEER,),
        leases=(0, 1, 2),
        renewals=(1, 2),
    ),
)

FULL = (
    *SMALL,
    Scenario(
        "three caches",
        "three caches with every kind of binding, a view, two concurrent transfers",
        bindings=(("K1", "K2"), ("K1", "K1"), (PLACEHOLDER, "K2"), ("P", "P"), ()),
        most_caches=3,
        most_views=1,
        most_transfers=2,
    ),
    Scenario(
        "registered caches",
        "caches of both kinds and memories, layers, two concurrent transfers, deaths and links",
        bindings=(("K1", "P"),),
        others=(("register", ("K1", "K2")), ("register", ("P", "P")), ("allocate_blocks", (BLOCKS_KEY,))),
        most_registered=2,
        layers=(BOTH, FIRST, SECOND),
        most_transfers=2,
        deaths=(OWNER, PEER),
        relinking=True,
    ),
    Scenario(
        "everything",
        "two caches, layers, two concurrent transfers, deaths and links",
        bindings=(("K1", "K2"), (PLACEHOLDER, "P")),
        most_caches=2,
        layers=(BOTH, FIRST, SECOND),
        most_transfers=2,
        abandoning=True,
        peer_reallocates=True,
        deaths=(OWNER, PEER),
        relinking=True,
    ),
)

SIZES = {"small": SMALL, "full": FULL}


class Violation(Exception):
    """A promise does not hold. The text says which."""


# -- the ledger ------------------------------------------------------------------------------------------------------


@dataclass
class Holders:
    """Who holds one cache."""

    has_blocks: bool = False
    is_registered: bool = False
    id_held: bool = True
    keys: dict[int, tuple[str, frozenset[int]]] = field(default_factory=dict)
    ticks_left: dict[int, int] = field(default_factory=dict)  # of the leases of batch slots that have one
    views: set[int] = field(default_factory=set)
    transfers: set[int] = field(default_factory=set)

    @property
    def referenced(self) -> bool:
        return self.id_held or bool(self.keys)

    @property
    def held(self) -> bool:
        return self.referenced or bool(self.views) or bool(self.transfers)


@dataclass
class Errand:
    """A transfer in progress."""

    caller: str
    local: int
    other: str
    remote: int
    slot: int
    tensors: frozenset[int]
    copied: bool = False
    lost: bool = False  # the other side has dropped it
    orphaned: bool = False  # its caller has died


class Ledger:
    """Who holds what, kept from the outcomes of the calls and from nothing else.

    For every action that may be refused there is a method ``answer_<action>``, which says with what error (None: it
    must succeed); for every action a method ``record_<action>``, which enters a call that succeeded and its result.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.alive: set[str] = set()
        self.caches: dict[str, dict[int, Holders]] = {OWNER: {}, PEER: {}}
        self.errands: dict[int, Errand] = {}
        self.links = {OWNER: "UNLINKED", PEER: "UNLINKED"}
        self.deceived: set[str] = set()  # nodes that have yet to notice that the other end of their link died

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "scenario"}

    def bound(self, node: str, key: str) -> tuple[int, int] | None:
        """The cache and slot that a key is bound to."""
        for cache_id, holders in self.caches[node].items():
            for slot, (name, _) in holders.keys.items():
                if name == key:
                    return cache_id, slot
        return None

    def let_go(self) -> None:
        """Forget the caches that nobody holds any more."""
        for caches in self.caches.values():
            for cache_id in [cache_id for cache_id, holders in caches.items() if not holders.held]:
                del caches[cache_id]

    def errands_of(self, node: str) -> list[int]:
        return [number for number, errand in self.errands.items() if errand.caller == node and not errand.orphaned]

    def lose_errands(self, caller: str) -> None:
        """The other side drops the transfers of ``caller``, or has died itself."""
        for number, errand in list(self.errands.items()):
            if errand.caller != caller:
                continue
            if not errand.lost and errand.remote in self.caches[errand.other]:
                self.caches[errand.other][errand.remote].transfers.remove(number)
            errand.lost = True
            if errand.orphaned:
                del self.errands[number]

    def is_idle(self, name: str, node: str, *arguments: Any) -> bool:
        """Whether a call drops what was dropped before, or never was: it succeeds and must change nothing."""
        if name in ("deallocate", "deallocate_blocks"):
            holders = self.caches[node].get(arguments[0])
            # Of a registered cache it takes the addresses from the handle, and nothing else.
            return holders is None or not (holders.id_held or holders.is_registered)
        if name == "unregister":
            return arguments[0] not in self.caches[node]
        if name == "renew":
            ticks_left = self._ticks_left(arguments[0])
            return ticks_left is None or ticks_left >= arguments[1]
        return name == "remove_key" and self.bound(node, arguments[0]) is None

    # Each action in turn.

    def answer_allocate(self, node: str, binding: tuple[str, ...], lease: int = 0) -> str | None:
        if self._already_bound(node, binding):
            return "LLM_PARAM_INVALID"
        capacity = self.scenario.most_caches if node == OWNER else 1
        return None if len(self.allocated(node)) < capacity else "LLM_OUT_OF_MEMORY"

    def record_allocate(self, node: str, binding: tuple[str, ...], lease: int, cache_id: int) -> None:
        self._make("allocate", node, binding, cache_id)
        holders = self.caches[node][cache_id]
        if lease:
            holders.ticks_left = dict.fromkeys(holders.keys, lease)

    answer_allocate_blocks = answer_allocate

    def record_allocate_blocks(self, node: str, binding: tuple[str, ...], cache_id: int) -> None:
        self._make("allocate_blocks", node, binding, cache_id)

    def answer_register(self, node: str, binding: tuple[str, ...]) -> str | None:
        return "LLM_PARAM_INVALID" if self._already_bound(node, binding) else None

    def record_register(self, node: str, binding: tuple[str, ...], cache_id: int) -> None:
        self._make("register", node, binding, cache_id)

    answer_register_blocks = answer_register

    def record_register_blocks(self, node: str, binding: tuple[str, ...], cache_id: int) -> None:
        self._make("register_blocks", node, binding, cache_id)

    def allocated(self, node: str) -> list[Holders]:
        """The holders of the caches that take memory of the pool."""
        return [holders for holders in self.caches[node].values() if not holders.is_registered]

    def _already_bound(self, node: str, binding: tuple[str, ...]) -> bool:
        return any(self.bound(node, key) for key in binding if key != PLACEHOLDER)

    def _make(self, call: str, node: str, binding: tuple[str, ...], cache_id: int) -> None:
        last_position = {key: slot for slot, key in enumerate(binding) if key != PLACEHOLDER}
        every_tensor = frozenset(range(NUM_TENSORS))
        keys = {slot: (key, every_tensor) for key, slot in last_position.items()}
        self.caches[node][cache_id] = Holders(*MAKERS[call], keys=keys)

    def record_deallocate(self, node: str, cache_id: int, _: Any) -> None:
        holders = self.caches[node].get(cache_id)
        if holders is not None and not holders.is_registered:
            holders.id_held = False

    def record_deallocate_blocks(self, node: str, cache_id: int, _: Any) -> None:
        holders = self.caches[node].get(cache_id)
        if holders is not None and not holders.is_registered:
            holders.id_held = False
            holders.keys = {}

    def answer_unregister(self, node: str, cache_id: int) -> str | None:
        holders = self.caches[node].get(cache_id)
        if holders is None:
            return None
        if not holders.is_registered:
            return "LLM_PARAM_INVALID"
        return "LLM_TIMEOUT" if holders.transfers else None

    def record_unregister(self, node: str, cache_id: int, _: Any = None) -> None:
        """Also when the call has timed out: what it waits for is the end of the transfers."""
        self.caches[node][cache_id].id_held = False
        self.caches[node][cache_id].keys = {}

    def record_remove_key(self, node: str, key: str, _: Any) -> None:
        where = self.bound(node, key)
        if where is not None:
            del self.caches[node][where[0]].keys[where[1]]

    def answer_renew(self, node: str, key: str, ticks: int) -> str | None:
        if node != OWNER and (self.links[node] != "LINKED" or node in self.deceived):
            return "LLM_NOT_YET_LINK"
        return None if self.bound(OWNER, key) else "LLM_KV_CACHE_NOT_EXIST"

    def record_renew(self, node: str, key: str, ticks: int, _: Any) -> None:
        where = self.bound(OWNER, key)
        assert where is not None
        self.caches[OWNER][where[0]].ticks_left[where[1]] = ticks

    def _ticks_left(self, key: str) -> int | None:
        """Of the lease of a key; None if it has none."""
        where = self.bound(OWNER, key)
        return None if where is None else self.caches[OWNER][where[0]].ticks_left.get(where[1])

    def record_tick(self, node: str, _: Any) -> None:
        for holders in self.caches[node].values():
            for slot in [slot for slot in holders.ticks_left if slot in holders.keys]:
                holders.ticks_left[slot] -= 1
                if not holders.ticks_left[slot]:
                    del holders.keys[slot]

    def answer_open_view(self, node: str, cache_id: int) -> str | None:
        return self._answer_to_use(node, cache_id)

    def record_open_view(self, node: str, cache_id: int, number: int) -> None:
        self.caches[node][cache_id].views.add(number)

    def record_close_view(self, node: str, cache_id: int, number: int, _: Any) -> None:
        self.caches[node][cache_id].views.remove(number)

    def answer_pull(self, node: str, local: int, source: str | tuple[int, int], layer: Layer) -> str | None:
        refusal = self._answer_to_transfer(node, local, source)
        if refusal is None and self._names_blocks_by_id(node, source):
            return "LLM_KV_CACHE_NOT_EXIST" if source[1] else "LLM_PARAM_INVALID"  # it has slot 0 alone
        return refusal

    def record_pull(self, node: str, local: int, source: str | tuple[int, int], layer: Layer, number: int) -> None:
        self._begin(node, local, source, layer, number)

    def answer_push(self, node: str, local: int, target: str | tuple[int, int], layer: Layer) -> str | None:
        refusal = self._answer_to_transfer(node, local, target)
        if refusal is None and self._names_blocks_by_id(node, target):
            return "LLM_PARAM_INVALID"
        return refusal

    def record_push(self, node: str, local: int, target: str | tuple[int, int], layer: Layer, number: int) -> None:
        self._begin(node, local, target, layer, number)

    def _answer_to_transfer(self, node: str, local: int, there: str | tuple[int, int]) -> str | None:
        other = _other(node)
        refusal = self._answer_to_use(node, local)
        if refusal is not None:
            return refusal
        if self.links[node] != "LINKED" or node in self.deceived:
            return "LLM_NOT_YET_LINK"
        if isinstance(there, str):
            return None if self.bound(other, there) else "LLM_KV_CACHE_NOT_EXIST"
        return self._answer_to_use(other, there[0])

    def _names_blocks_by_id(self, node: str, there: str | tuple[int, int]) -> bool:
        return not isinstance(there, str) and self.caches[_other(node)][there[0]].has_blocks

    def _answer_to_use(self, node: str, cache_id: int) -> str | None:
        holders = self.caches[node].get(cache_id)
        return None if holders is not None and holders.referenced else "LLM_KV_CACHE_NOT_EXIST"

    def _begin(self, node: str, local: int, there: str | tuple[int, int], layer: Layer, number: int) -> None:
        other = _other(node)
        where = self.bound(other, there) if isinstance(there, str) else there
        assert where is not None
        tensors = frozenset(layer if layer is not None else range(NUM_TENSORS))
        self.errands[number] = Errand(node, local, other, *where, tensors)
        self.caches[node][local].transfers.add(number)
        self.caches[other][where[0]].transfers.add(number)

    def answer_copy(self, node: str, number: int) -> str | None:
        return "LLM_NOT_YET_LINK" if self.errands[number].lost else None

    def record_copy(self, node: str, number: int, _: Any) -> None:
        self.errands[number].copied = True

    def answer_finish(self, node: str, number: int) -> str | None:
        return "LLM_NOT_YET_LINK" if self.errands[number].lost else None

    def record_finish(self, node: str, number: int, _: Any) -> None:
        errand = self.errands[number]
        holders = self.caches[errand.other][errand.remote]
        keys = holders.keys
        if errand.slot in keys:
            key, remaining = keys[errand.slot]
            if key not in ("P", BLOCKS_KEY) and not holders.is_registered:
                keys[errand.slot] = (key, remaining - errand.tensors)
            if not keys[errand.slot][1]:
                del keys[errand.slot]
        self.end_errand(number)

    def record_abandon(self, node: str, number: int, _: Any) -> None:
        self.end_errand(number)

    def end_errand(self, number: int) -> None:
        """However a transfer ended, it pins nothing any more."""
        errand = self.errands.pop(number)
        self.caches[errand.caller][errand.local].transfers.remove(number)
        if not errand.lost:
            self.caches[errand.other][errand.remote].transfers.remove(number)

    def record_kill(self, node: str, _: Any) -> None:
        other = _other(node)
        self.alive.remove(node)
        self.caches[node] = {}
        self.lose_errands(other)
        for number in self.errands_of(node):
            self.errands[number].orphaned = True
            if self.errands[number].lost:
                del self.errands[number]
        self.links[node] = "UNLINKED"
        self.deceived.discard(node)
        if self.links[other] == "LINKED":
            self.deceived.add(other)

    def record_notice(self, node: str, _: Any) -> None:
        self.links[node] = "BROKEN"
        self.deceived.remove(node)
        self.lose_errands(_other(node))

    def record_start(self, node: str, _: Any) -> None:
        self.alive.add(node)

    def answer_link(self, node: str) -> str | None:
        other = _other(node)
        if self.links[node] != "UNLINKED":
            return "LLM_ALREADY_LINK"
        if other not in self.alive:
            return "LLM_LINK_FAILED"
        return "LLM_TIMEOUT" if self.errands_of(other) else None

    def record_link(self, node: str, _: Any) -> None:
        self.lose_errands(node)  # of an earlier life, if the other end did not notice its death
        self.links = {OWNER: "LINKED", PEER: "LINKED"}
        self.deceived = set()

    def answer_unlink(self, node: str) -> str | None:
        if _other(node) not in self.alive:
            return "LLM_UNLINK_FAILED"
        if self.links[node] == "UNLINKED":
            return "LLM_TIMEOUT" if self.links[_other(node)] == "BROKEN" and self.errands_of(_other(node)) else None
        return "LLM_TIMEOUT" if self.errands_of(node) or self.errands_of(_other(node)) else None

    def record_unlink(self, node: str, _: Any) -> None:
        if self.links[node] == "UNLINKED":
            if self.links[_other(node)] == "BROKEN":
                self.links[_other(node)] = "UNLINKED"  # both ends drop what they hold of it
            return
        self.lose_errands(_other(node))  # of an earlier life
        self.links = {OWNER: "UNLINKED", PEER: "UNLINKED"}
        self.deceived = set()

    def answer_force_unlink(self, node: str) -> str | None:
        return "LLM_TIMEOUT" if self.errands_of(node) else None

    def record_force_unlink(self, node: str, _: Any) -> None:
        other = _other(node)
        self.lose_errands(other)
        if self.links[node] == "LINKED" and node not in self.deceived:
            self.links[other] = "BROKEN"
        self.links[node] = "UNLINKED"
        self.deceived.discard(node)

    # What may happen next.

    def actions(self) -> Iterator[Action]:
        """Every call that the scenario makes in this state, those that must be refused among them."""
        for node in (OWNER, PEER):
            if node in self.alive:
                yield from self._local_actions(node)
                yield from self._transfer_actions(node)
                if self.scenario.relinking:
                    yield from (("link", node), ("unlink", node), ("force_unlink", node))
                if node in self.deceived:
                    yield ("notice", node)
            if node in self.scenario.deaths:
                yield ("kill" if node in self.alive else "start", node)
        if self.scenario.renewals:
            yield ("tick", OWNER)

    def _local_actions(self, node: str) -> Iterator[Action]:
        caches = self.caches[node]
        for key in self.scenario.removable_keys:
            for ticks in self.scenario.renewals:
                yield ("renew", node, key, ticks)
        if node == OWNER or self.scenario.peer_reallocates:
            yield from self._makings(node)
            yield from self._droppings(node)
        if node == PEER:
            return
        for key in (*self.scenario.removable_keys, PLACEHOLDER):
            yield ("remove_key", node, key)
        for cache_id, holders in caches.items():
            for view in holders.views:
                yield ("close_view", node, cache_id, view)
            if sum(len(others.views) for others in caches.values()) < self.scenario.most_views:
                yield ("open_view", node, cache_id)

    def _makings(self, node: str) -> Iterator[Action]:
        registered = len(self.caches[node]) - len(self.allocated(node))
        for call, binding in self.scenario.makings if node == OWNER else (("allocate", ()),):
            if call == "allocate":
                for lease in self.scenario.leases if node == OWNER else (0,):
                    yield (call, node, binding, lease)
            elif not MAKERS[call][1] or registered < self.scenario.most_registered:
                yield (call, node, binding)

    def _droppings(self, node: str) -> Iterator[Action]:
        made = {call for call, _ in self.scenario.makings}
        for cache_id, holders in self.caches[node].items():
            yield ("deallocate_blocks" if holders.has_blocks else "deallocate", node, cache_id)
        for call, (has_blocks, is_registered) in MAKERS.items():
            if call in made and not is_registered:
                yield ("deallocate_blocks" if has_blocks else "deallocate", node, UNKNOWN_ID)
        if any(MAKERS[call][1] for call in made):
            for cache_id in (*self.caches[node], UNKNOWN_ID):
                yield ("unregister", node, cache_id)

    def _transfer_actions(self, node: str) -> Iterator[Action]:
        errands = self.errands_of(node)
        for number in errands:
            yield ("finish" if self.errands[number].copied else "copy", node, number)
            if self.scenario.abandoning:
                yield ("abandon", node, number)
        if node == OWNER or len(errands) >= self.scenario.most_transfers:
            return
        local = next(iter(self.caches[node]), UNKNOWN_ID)
        slots = [(cache_id, slot) for cache_id in self.caches[OWNER] for slot in range(BATCH_SIZE)]
        for layer in self.scenario.layers:
            for key in self._pullable_keys():
                yield ("pull", node, local, key, layer)
            if self.scenario.by_id:
                for there in (*slots, (UNKNOWN_ID, 0)):
                    yield ("pull", node, local, there, layer)
            if self.scenario.remote_mode:
                for target in [BLOCKS_KEY] if self.scenario.peer_has_blocks else slots:
                    yield ("push", node, local, target, layer)

    def _pullable_keys(self) -> tuple[str, ...]:
        """The keys that the peer's kind of pull takes."""
        if self.scenario.peer_has_blocks:
            return self.scenario.keys
        return () if self.scenario.remote_mode else self.scenario.removable_keys


def _other(node: str) -> str:
    return PEER if node == OWNER else OWNER


# -- the calls -------------------------------------------------------------------------------------------------------


class Player:
    """Makes the calls on the model; each action is a method."""

    def __init__(self, scenario: Scenario, cluster: Cluster) -> None:
        self.scenario = scenario
        self.cluster = cluster

    def start(self, name: str) -> None:
        node = self.cluster.start(name, CLUSTER_IDS[name])
        if any(MAKERS[call][1] for call, _ in self.scenario.makings):
            for _ in range(NUM_TENSORS):
                node.own_memory(BATCH_SIZE)
        pages = NUM_TENSORS * (self.scenario.most_caches if name == OWNER else 1)
        node.init(
            {
                "llm.EnableCacheManager": "1",
                "llm.EnableRemoteCacheAccessible": "1" if self.scenario.remote_mode else "0",
                "llm.listenIpInfo": "{}:{}".format(*ADDRESSES[name]),
                "llm.MemPoolConfig": f'{{"memory_size": {pages << PAGE_SHIFT}, "page_shift": {PAGE_SHIFT}}}',
            }
        )

    def kill(self, name: str) -> None:
        self.cluster.kill(name, noticed=False)

    def notice(self, name: str) -> None:
        self.cluster.notice(name, CLUSTER_IDS[_other(name)])

    def link(self, name: str) -> None:
        self._expect_success(self.cluster.nodes[name].link_clusters([self._address_of(_other(name))]))

    def unlink(self, name: str) -> None:
        self._expect_success(self.cluster.nodes[name].unlink_clusters([self._address_of(_other(name))]))

    def force_unlink(self, name: str) -> None:
        self._expect_success(self.cluster.nodes[name].unlink_clusters([self._address_of(_other(name))], force=True))

    @staticmethod
    def _address_of(name: str) -> ClusterInfo:
        return ClusterInfo(CLUSTER_IDS[name], (("127.0.0.1", 0),), (ADDRESSES[name],))

    @staticmethod
    def _expect_success(results: tuple[str, list[str]]) -> None:
        """The link calls return what other calls raise."""
        if results[0] != "LLM_SUCCESS":
            raise Refused(results[0])

    def allocate(self, name: str, binding: tuple[str, ...], lease: int) -> int:
        keys = [KEYS[key] for key in binding]
        return self._fill(name, self.cluster.nodes[name].allocate_cache(DESC, keys, lease=lease))

    def allocate_blocks(self, name: str, binding: tuple[str, ...]) -> int:
        return self._fill(name, self.cluster.nodes[name].allocate_blocks_cache(DESC, *[KEYS[key] for key in binding]))

    def register(self, name: str, binding: tuple[str, ...]) -> int:
        node = self.cluster.nodes[name]
        return self._fill(name, node.register_cache(DESC, self._own(node), [KEYS[key] for key in binding]))

    def register_blocks(self, name: str, binding: tuple[str, ...]) -> int:
        node = self.cluster.nodes[name]
        return self._fill(name, node.register_blocks_cache(DESC, self._own(node), *[KEYS[key] for key in binding]))

    @staticmethod
    def _own(node: Node) -> list[int]:
        """The memory of the node's program: the same for whatever is registered."""
        return [address for address in node.memory.pieces if address >= FIRST_OWN_ADDRESS]

    def _fill(self, name: str, cache: Cache) -> int:
        for tensor in range(NUM_TENSORS):
            content = bytes(_pattern(name, slot, tensor) for slot in range(BATCH_SIZE))
            self.cluster.nodes[name].write(cache, tensor, content)
        return cache.cache_id

    def deallocate(self, name: str, cache_id: int) -> None:
        self.cluster.nodes[name].deallocate_cache(self._handle(name, cache_id))

    def deallocate_blocks(self, name: str, cache_id: int) -> None:
        self.cluster.nodes[name].deallocate_blocks_cache(self._handle(name, cache_id, True))

    def unregister(self, name: str, cache_id: int) -> None:
        self.cluster.nodes[name].unregister_cache(cache_id)

    def remove_key(self, name: str, key: str) -> None:
        self.cluster.nodes[name].remove_cache_key(KEYS[key])

    def renew(self, name: str, key: str, ticks: int) -> None:
        (answer,) = self.cluster.nodes[name].renew_leases([KEYS[key]], ticks)
        self._expect_success((answer, []))

    def tick(self, name: str) -> None:
        self.cluster.let_time_pass(1)

    def open_view(self, name: str, cache_id: int) -> int:
        return self.cluster.nodes[name].open_view(self._handle(name, cache_id)).number

    def close_view(self, name: str, cache_id: int, number: int) -> None:
        self.cluster.nodes[name].close_view(View(cache_id, number, self.cluster.nodes[name].engine))

    def pull(self, name: str, local: int, source: str | tuple[int, int], layer: Layer) -> int:
        node, other = self.cluster.nodes[name], CLUSTER_IDS[_other(name)]
        key = KEYS[source] if isinstance(source, str) else CacheKeyByIdAndIndex(other, *source)
        layers = {"src_layer_range": layer, "dst_layer_range": layer, "tensor_num_per_layer": 1}
        if not self.scenario.peer_has_blocks:
            return node.begin_pull(key, self._handle(name, local), **layers)
        src_blocks = [1] if source == BLOCKS_KEY else ()
        return node.begin_pull_blocks(key, self._handle(name, local, True), src_blocks, [0], **layers)

    def push(self, name: str, local: int, target: str | tuple[int, int], layer: Layer) -> int:
        node, other = self.cluster.nodes[name], CLUSTER_IDS[_other(name)]
        layers = {"src_layer_range": layer, "dst_layer_range": layer, "tensor_num_per_layer": 1}
        if isinstance(target, str):
            return node.begin_push_blocks(KEYS[target], self._handle(name, local, True), [0], [1], **layers)
        return node.begin_push(CacheKeyByIdAndIndex(other, *target), self._handle(name, local), **layers)

    def copy(self, name: str, number: int) -> None:
        node = self.cluster.nodes[name]
        node.copy(number)
        transfer = self.cluster.transfers[number]
        other = self.cluster.nodes[_other(name)]
        source, target = (other, node) if transfer.is_pull else (node, other)
        for move in transfer.moves:
            if source.read(move.source, move.size) != target.read(move.target, move.size):
                raise Violation("a copy has not moved the bytes")

    def finish(self, name: str, number: int) -> None:
        self.cluster.nodes[name].finish(number)

    def abandon(self, name: str, number: int) -> None:
        self.cluster.nodes[name].abandon(number)

    def _handle(self, name: str, cache_id: int, has_blocks: bool = False) -> Cache:
        return Cache(cache_id, DESC, self.cluster.nodes[name].engine, has_blocks)


DESC = CacheDesc(NUM_TENSORS, (BATCH_SIZE, 1), "DT_INT8")


def _pattern(name: str, slot: int, tensor: int) -> int:
    return (100 if name == OWNER else 200) + slot * NUM_TENSORS + tensor


# -- the exploration -------------------------------------------------------------------------------------------------


@dataclass
class Exploration:
    """What exploring a scenario has shown."""

    scenario: Scenario
    states: int = 0
    transitions: int = 0
    seconds: float = 0.0
    violation: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = f"{self.states:,} states, {self.transitions:,} transitions, {self.seconds:.1f} s"
        if self.violation is None:
            return f"{self.scenario.name}: {count}: every promise holds"
        steps = [f"  {number}. {line}" for number, line in enumerate(self.trace, 1)]
        return "\n".join([f"{self.scenario.name}: {count}", f"VIOLATED: {self.violation}", "after the calls", *steps])


class Explorer:
    """Explores one scenario, breadth first, until every state was visited or a promise was found broken.

    Parameters
    ----------
    charts
        The machines to explore: those of the lifecycle, unless a test gives others.
    """

    def __init__(self, scenario: Scenario, charts: Statecharts | None = None) -> None:
        self.scenario = scenario
        self.charts = charts or Statecharts.of()
        self.found = Exploration(scenario)
        self._known: dict[Any, int] = {}
        self._arrivals: list[tuple[int, str]] = []  # for each state the state before it, and the call between them
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._before, self._line = 0, ""  # the state being left, and the call that leaves it
        self._stranded: tuple[Violation, tuple[str, ...]] | None = None  # the first failure to let go of everything

    def run(self) -> Exploration:
        """Visit every state that can be reached."""
        started = time.perf_counter()
        try:
            self._begin()
            while self._waiting:
                self._leave(*self._waiting.popleft())
            violated = self._stranded
        except Violation as violation:
            violated = (violation, (*self._way_to(self._before), self._line))
        if violated is not None:
            self.found.violation, self.found.trace = str(violated[0]), violated[1]
        self.found.states = len(self._known)
        self.found.seconds = time.perf_counter() - started
        return self.found

    def _begin(self) -> None:
        cluster, ledger = Cluster(self.charts), Ledger(self.scenario)
        lines = []
        making = ("allocate_blocks", PEER, ()) if self.scenario.peer_has_blocks else ("allocate", PEER, (), 0)
        for action in (("start", OWNER), ("start", PEER), making, ("link", PEER)):
            self._call(cluster, ledger, action)
            lines.append(self._line)
        self._line = "; ".join(lines)
        self._arrive(cluster, ledger)

    def _leave(self, number: int, snapshot: bytes) -> None:
        """Make every call that the scenario makes in a state."""
        self._before = number
        cluster, ledger = self._restore(snapshot)
        untouched = cluster.observable()
        for action in list(ledger.actions()):
            self.found.transitions += 1
            if self._call(cluster, ledger, action):
                self._arrive(cluster, ledger)
                cluster, ledger = self._restore(snapshot)
            elif cluster.observable() != untouched:
                raise Violation("a call that was refused, or had nothing to do, has changed something")

    def _call(self, cluster: Cluster, ledger: Ledger, action: Action) -> bool:
        """Make a call and compare the answer with the ledger's; tell whether it may have changed anything."""
        name, node, *arguments = action
        self._line = _described(action)
        may_refuse = getattr(ledger, f"answer_{name}", None)
        expected = may_refuse(node, *arguments) if may_refuse else None
        answer = result = None
        try:
            result = getattr(Player(self.scenario, cluster), name)(node, *arguments)
        except Refused as refused:
            answer = refused.error
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"the model fails: {type(error).__name__}: {error}") from error
        self._line += f": {answer}" if answer else f": {RESULTS[name]} {result}" if name in RESULTS else ""
        if answer != expected:
            raise Violation(f"the answer is {answer or 'success'}, but should be {expected or 'success'}")
        if answer is None and ledger.is_idle(name, node, *arguments):
            return False
        if answer is None:
            getattr(ledger, f"record_{name}")(node, *arguments, result)
        elif name in ("copy", "finish"):
            ledger.end_errand(*arguments)  # it was broken off, and has ended
        elif name == "unregister" and answer == "LLM_TIMEOUT":
            ledger.record_unregister(node, *arguments)
        else:
            return False
        ledger.let_go()
        return True

    def _arrive(self, cluster: Cluster, ledger: Ledger) -> None:
        """Check the state that a call has led to, and remember it if it is new."""
        _compare(cluster, ledger)
        likeness = _likeness(cluster, ledger)
        if likeness in self._known:
            return
        try:
            cluster.check()
        except AssertionError as error:
            raise Violation(f"the model's invariants: {error}") from error
        number = self._known[likeness] = len(self._known)
        self._arrivals.append((self._before, self._line))
        snapshot = pickle.dumps((cluster, ledger), pickle.HIGHEST_PROTOCOL)
        self._waiting.append((number, snapshot))
        self._drain(cluster, ledger, number)
        if PEER in self.scenario.deaths and PEER in ledger.alive:
            self._drain(*self._restore(snapshot), number, dying=PEER)

    def _drain(self, cluster: Cluster, ledger: Ledger, number: int, dying: str = "") -> None:
        """Let all who live drop whatever they hold: then nothing may be held.

        A failure is kept until every state was visited: a call that shows what is wrong makes a shorter trace.
        """
        if self._stranded is not None:
            return
        lines = []
        try:
            for action in _letting_go(ledger, dying):
                self._call(cluster, ledger, action)
                lines.append(self._line)
            for node in cluster.nodes.values():
                usage = node.pool_usage()
                if usage.free_bytes != usage.total_bytes or node.live_caches:
                    raise Violation(f"{usage.total_bytes - usage.free_bytes} bytes of {node.name} stay allocated")
        except Violation as violation:
            self._stranded = (violation, (*self._way_to(number), *lines, f"{self._line} (letting go)"))

    def _restore(self, snapshot: bytes) -> tuple[Cluster, Ledger]:
        cluster, ledger = pickle.loads(snapshot)
        cluster.charts = self.charts
        ledger.scenario = self.scenario
        return cluster, ledger

    def _way_to(self, number: int) -> tuple[str, ...]:
        """The calls that lead to a state."""
        lines: list[str] = []
        while self._arrivals:
            before, line = self._arrivals[number]
            lines.insert(0, line)
            if number == 0:
                break
            number = before
        return tuple(lines)


def _letting_go(ledger: Ledger, dying: str = "") -> Iterator[Action]:
    """The calls by which the living let go of what they hold, each chosen after the one before.

    ``dying`` lets go by being killed.
    """
    if dying:
        yield ("kill", dying)
    for node in sorted(ledger.deceived):
        yield ("notice", node)
    for node in sorted(ledger.alive):
        for number in ledger.errands_of(node):
            yield ("copy", node, number) if not ledger.errands[number].copied else ("finish", node, number)
            if number in ledger.errands:
                yield ("finish", node, number)
    for node in sorted(ledger.alive):
        for cache_id, holders in list(ledger.caches[node].items()):
            for view in list(holders.views):
                yield ("close_view", node, cache_id, view)
            dropping = "deallocate_blocks" if holders.has_blocks else "deallocate"
            yield ("unregister" if holders.is_registered else dropping, node, cache_id)
        for key in ledger.scenario.removable_keys:
            yield ("remove_key", node, key)


def _compare(cluster: Cluster, ledger: Ledger) -> None:
    """The model must hold what the ledger says is held: no less, no more."""
    if cluster.nodes.keys() != ledger.alive:
        raise Violation(f"{sorted(cluster.nodes)} run, but {sorted(ledger.alive)} should")
    for name, node in cluster.nodes.items():
        link = node.link_to(CLUSTER_IDS[_other(name)]).state
        if link != ledger.links[name]:
            raise Violation(f"the link of {name} is {link}, but should be {ledger.links[name]}")
        _compare_memory(node, ledger.caches[name], NUM_TENSORS * len(ledger.allocated(name)))
        _compare_keys(node, ledger.caches[name])


def _compare_keys(node: Node, caches: dict[int, Holders]) -> None:
    bound = {
        KEYS[key].identity: (cache_id, slot)
        for cache_id, holders in caches.items()
        for slot, (key, _) in holders.keys.items()
    }
    if node.key_index != bound:
        raise Violation(f"the keys bound at {node.name} are {node.key_index}, but should be {bound}")


def _compare_memory(node: Node, caches: dict[int, Holders], expected_pages: int) -> None:
    for cache_id in caches.keys() - node.tenants.keys():
        raise Violation(f"the memory of cache {cache_id} of {node.name} went back, but is held by {caches[cache_id]}")
    for cache_id in node.tenants.keys() - caches.keys():
        raise Violation(f"the memory of cache {cache_id} of {node.name} did not go back, but nobody holds it")
    pages = len(node.pools["DEVICE"].holder)
    if pages != expected_pages:
        raise Violation(f"{pages} pages of {node.name} are taken, but should be {expected_pages}")
    for cache_id, holders in caches.items():
        pins = {("view", number) for number in holders.views}
        pins.update(("transfer", number) for number in holders.transfers)
        if set(node.tenants[cache_id].pins) != pins:
            raise Violation(
                f"cache {cache_id} of {node.name} is pinned by {node.tenants[cache_id].pins}, not by {pins}"
            )


def _likeness(cluster: Cluster, ledger: Ledger) -> Any:
    """What a state has in common with those that nobody could tell from it."""
    nodes: list[Any] = []
    rank: dict[tuple[str, int], int] = {}
    for name in (OWNER, PEER):
        node = cluster.nodes.get(name)
        if node is None:
            nodes.append(None)
            continue
        tenants = sorted(
            (_tenant_likeness(node, cache_id, holders), cache_id) for cache_id, holders in ledger.caches[name].items()
        )
        rank.update(((name, cache_id), position) for position, (_, cache_id) in enumerate(tenants))
        link = node.link_to(CLUSTER_IDS[_other(name)])
        attached = cluster.running(link.peer) is not None
        nodes.append((link.state, attached, name in ledger.deceived, tuple([likeness for likeness, _ in tenants])))
    errands = []
    for errand in ledger.errands.values():
        local = None if errand.orphaned else rank[errand.caller, errand.local]
        remote = None if errand.lost else rank[errand.other, errand.remote]
        rest = () if errand.orphaned or errand.lost else (errand.slot, tuple(errand.tensors), errand.copied)
        errands.append(repr((errand.caller, local, remote, rest)))
    errands.sort()
    return (*nodes, *errands)


def _tenant_likeness(node: Node, cache_id: int, holders: Holders) -> tuple[Any, ...]:
    """What model and ledger say of a cache, in full: where they part, the state is a new one."""
    tenant = node.tenants[cache_id]
    clock = node.cluster.clock
    slots = tuple(
        [
            (
                slot.state,
                slot.key or (),
                tuple(slot.outstanding) if slot.state == "REQUEST_KEYED" else (),
                0 if slot.lease_end is None else slot.lease_end - clock,
            )
            for slot in tenant.batch_slots
        ]
    )
    ticks_left = holders.ticks_left
    keys = tuple(
        [
            (slot, key, tuple(remaining), ticks_left.get(slot, 0))
            for slot, (key, remaining) in sorted(holders.keys.items())
        ]
    )
    kind = (tenant.is_blocks_cache, tenant.registered, holders.has_blocks, holders.is_registered)
    model = (tenant.state, tenant.is_open, tenant.id_held, slots, len(tenant.pins))
    return (kind, model, holders.id_held, keys, len(holders.views))


#: How a trace tells of each action.
PHRASES = {
    "start": "starts",
    "kill": "is killed",
    "notice": "notices that the other end of its link has died",
    "link": "link_clusters",
    "unlink": "unlink_clusters",
    "force_unlink": "unlink_clusters(force=True)",
    "allocate": "allocate_cache with the keys [{}]{}",
    "allocate_blocks": "allocate_blocks_cache with the keys [{}]",
    "register": "register_cache with the keys [{}]",
    "register_blocks": "register_blocks_cache with the keys [{}]",
    "deallocate": "deallocate_cache of cache {}",
    "deallocate_blocks": "deallocate_blocks_cache of cache {}",
    "unregister": "unregister_cache of cache {}",
    "remove_key": "remove_cache_key({})",
    "renew": "renew_leases of {} for {} ticks",
    "tick": "and everybody let a tick pass",
    "open_view": "opens a view of cache {}",
    "close_view": "closes, of cache {}, view {}",
    "pull": "begins pull_cache into cache {} from {}, {}",
    "push": "begins push_cache of cache {} to {}, {}",
    "copy": "copies the bytes of transfer {}",
    "finish": "finishes transfer {}",
    "abandon": "gives up transfer {}",
}

#: What the number is that an action answers with.
RESULTS = {**dict.fromkeys(MAKERS, "cache"), "open_view": "view", "pull": "transfer", "push": "transfer"}


def _described(action: Action) -> str:
    name, node, *arguments = action
    if name in MAKERS:
        lease = f", leased for {arguments[1]} ticks" if arguments[1:] and arguments[1] else ""
        arguments = [", ".join(arguments[0]), lease]
    elif name in ("pull", "push"):
        local, there, layer = arguments
        slot = there if isinstance(there, str) else f"slot {there[1]} of cache {there[0]}"
        arguments = [local, slot, "all tensors" if layer is None else f"tensor {layer.start}"]
    return f"{node} {PHRASES[name].format(*arguments)}"


def explore(scenarios: Sequence[Scenario], charts: Statecharts | None = None) -> list[Exploration]:
    """Explore scenarios in turn, up to the first that shows a violation."""
    found = []
    for scenario in scenarios:
        found.append(Explorer(scenario, charts).run())
        if found[-1].violation is not None:
            break
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, print what was found, and exit with status 1 if a promise is broken."""
    parser = argparse.ArgumentParser(prog="spec explore", description="visit every state of a small cluster")
    parser.add_argument("size", nargs="?", choices=SIZES, default="small", help="small: seconds; full: minutes")
    parser.add_argument("--scenario", metavar="NAME", help="only this one of them")
    options = parser.parse_args(argv)
    scenarios = [each for each in SIZES[options.size] if options.scenario in (None, each.name)]
    if not scenarios:
        names = ", ".join(each.name for each in SIZES[options.size])
        parser.error(f"{options.size} has no scenario {options.scenario!r}, only {names}")
    explorations = []
    for scenario in scenarios:
        explorations.append(Explorer(scenario).run())
        print(explorations[-1], flush=True)
        if explorations[-1].violation is not None:
            sys.exit(1)
    states, transitions = (sum(getattr(each, count) for each in explorations) for count in ("states", "transitions"))
    print(f"in all: {states:,} states, {transitions:,} transitions: every promise holds")
