"""Visits every state of a small node whose allocations wait for memory, and checks in each that the rules of
:mod:`.waiting` hold.

As :mod:`.explorer` does, it makes the calls of the reference model in every order, breadth first, and keeps its own
account of them in a :class:`Ledger`: who holds which pages, who waits in which order, and what each of them must have
been answered. The pool has two pages, caches take one or both, and some are bound to a key, which a peer pulls, and is
killed while it does.
"""

from __future__ import annotations

import argparse
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .reference import Cluster, Node
from .statecharts import Refused
from .values import Cache, CacheDesc, CacheKey, ClusterInfo
from .waiting import WaitingAllocation

PAGES = 2
SIZES = (1, 2)
MOST_WAITING = 2
KEY = CacheKey(1, 1)
TO_OWNER = ClusterInfo(1, (("127.0.0.1", 0),), (("127.0.0.1", 5001),))

#: A call, as its name and its arguments.
Action = tuple[Any, ...]


class Violation(Exception):
    """A rule does not hold. The text says which, and after which calls."""


@dataclass
class Held:
    """Who holds a cache."""

    pages: int
    id_held: bool = True
    keyed: bool = False
    pulled: bool = False

    @property
    def held(self) -> bool:
        return self.id_held or self.keyed or self.pulled


@dataclass
class Ledger:
    """Who holds what, and who waits, by the outcomes of the calls alone."""

    most_waiting: int = MOST_WAITING
    caches: dict[int, Held] = field(default_factory=dict)
    waiting: list[tuple[int, int, bool]] = field(default_factory=list)
    answers: dict[int, int | str] = field(default_factory=dict)
    next_id: int = 1
    next_number: int = 1
    peer_lives: bool = True
    transfer: int = 0

    @property
    def free(self) -> int:
        return PAGES - sum(cache.pages for cache in self.caches.values())

    @property
    def key_is_bound(self) -> bool:
        return any(cache.keyed for cache in self.caches.values())

    def make(self, pages: int, keyed: bool) -> int:
        self.caches[self.next_id] = Held(pages, keyed=keyed)
        self.next_id += 1
        return self.next_id - 1

    def let_go(self) -> None:
        """What nobody holds goes back, and who comes first is served, as far as it goes."""
        self.caches = {number: cache for number, cache in self.caches.items() if cache.held}
        while self.waiting:
            number, pages, keyed = self.waiting[0]
            if keyed and self.key_is_bound:
                self.answers[number] = "LLM_PARAM_INVALID"
            elif pages <= self.free:
                self.answers[number] = self.make(pages, keyed)
            else:
                return
            del self.waiting[0]

    def actions(self) -> Iterator[Action]:
        for pages in (*SIZES, PAGES + 1):
            for keyed in (False, True):
                if len(self.waiting) < self.most_waiting:
                    yield ("allocate", pages, keyed)
        yield from (("give_up", number) for number, _, _ in self.waiting)
        yield from (("deallocate", number) for number, cache in self.caches.items() if cache.id_held)
        if self.key_is_bound:
            yield ("remove_key",)
            if self.peer_lives and not self.transfer:
                yield ("begin_pull",)
        if self.transfer:
            yield from (("finish",), ("kill",))

    def likeness(self) -> tuple[Any, ...]:
        """What makes a state another: not the numbers that go up with time."""
        caches = sorted((cache.pages, cache.id_held, cache.keyed, cache.pulled) for cache in self.caches.values())
        return tuple(caches), tuple(each[1:] for each in self.waiting), self.peer_lives, bool(self.transfer)


class Player:
    """Makes a call on the model and enters it in the ledger."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self.cluster = Cluster()
        self.ledger = Ledger(most_waiting)
        self.calls: dict[int, WaitingAllocation] = {}
        owner, peer = self.cluster.start("owner", 1), self.cluster.start("peer", 2)
        owner.init({**_options(PAGES), "llm.listenIpInfo": "127.0.0.1:5001", "llmdd.WaitForMemory": "1"})
        peer.init(_options(sum(SIZES)))
        peer.link_clusters([TO_OWNER])
        for pages in SIZES:  # cache n of the peer's has n tensors
            peer.allocate_cache(_desc(pages))

    @property
    def owner(self) -> Node:
        return self.cluster.nodes["owner"]

    def call(self, action: Action) -> None:
        name, *arguments = action
        getattr(self, name)(*arguments)
        self.ledger.let_go()
        self.check()

    def allocate(self, pages: int, keyed: bool) -> None:
        ledger = self.ledger
        expected: int | str | None = None  # it waits
        if keyed and ledger.key_is_bound:
            expected = "LLM_PARAM_INVALID"
        elif pages > PAGES:
            expected = "LLM_OUT_OF_MEMORY"
        elif pages <= ledger.free and not ledger.waiting:
            expected = ledger.make(pages, keyed)
        else:
            ledger.waiting.append((ledger.next_number, pages, keyed))
        answer: int | str | None = None
        try:
            made = self.owner.begin_allocate_cache(_desc(pages), [KEY] if keyed else [])
            if isinstance(made, Cache):
                answer = made.cache_id
            else:
                self.calls[ledger.next_number] = made
                ledger.next_number += 1
        except Refused as refused:
            answer = refused.error
        _require(answer == expected, f"the answer is {answer or 'to wait'}, but should be {expected or 'to wait'}")

    def give_up(self, number: int) -> None:
        self.ledger.waiting = [each for each in self.ledger.waiting if each[0] != number]
        self.ledger.answers[number] = "LLM_TIMEOUT"
        self.owner.queues.give_up(self.calls[number])

    def deallocate(self, number: int) -> None:
        self.ledger.caches[number].id_held = False
        self.owner.deallocate_cache(Cache(number, _desc(self.ledger.caches[number].pages), self.owner.engine))

    def remove_key(self) -> None:
        self._keyed().keyed = False
        self.owner.remove_cache_key(KEY)

    def begin_pull(self) -> None:
        peer, held = self.cluster.nodes["peer"], self._keyed()
        held.pulled = True
        self.ledger.transfer = peer.begin_pull(KEY, Cache(held.pages, _desc(held.pages), peer.engine))

    def finish(self) -> None:
        peer, held = self.cluster.nodes["peer"], self._pulled()
        held.pulled = False
        if held.keyed:
            held.keyed = False
        peer.run(self.ledger.transfer)
        self.ledger.transfer = 0

    def kill(self) -> None:
        self._pulled().pulled = False
        self.ledger.peer_lives, self.ledger.transfer = False, 0
        self.cluster.kill("peer")

    def _keyed(self) -> Held:
        return next(cache for cache in self.ledger.caches.values() if cache.keyed)

    def _pulled(self) -> Held:
        return next(cache for cache in self.ledger.caches.values() if cache.pulled)

    def check(self) -> None:
        ledger, owner = self.ledger, self.owner
        caches, waiting = sorted(owner.tenants), [waiting.number for waiting in owner.queues.all()]
        _require(caches == sorted(ledger.caches), f"the caches {caches} live, but {sorted(ledger.caches)} should")
        wanted = [number for number, _, _ in ledger.waiting]
        _require(waiting == wanted, f"{waiting} wait, but {wanted} should")
        taken = len(owner.pools["DEVICE"].holder)
        _require(taken == PAGES - ledger.free, f"{taken} pages are taken, but {PAGES - ledger.free} should be")
        for number, call in self.calls.items():
            answer = call.answer.cache_id if isinstance(call.answer, Cache) else call.answer
            expected = ledger.answers.get(number)
            _require(answer == expected, f"waiting call {number} was answered {answer}, not {expected}")
        try:
            self.cluster.check()
        except AssertionError as error:
            raise Violation(f"the model's invariants: {error}") from error

    def let_everything_go(self) -> None:
        """As long as caches are dropped, everybody who waits is served in the end."""
        while self.ledger.caches or self.ledger.waiting:
            _require(bool(self.ledger.caches), "somebody waits for an empty pool")
            action = next(each for each in self.ledger.actions() if each[0] in ("deallocate", "remove_key", "finish"))
            self.call(action)
        usage = self.owner.pool_usage()
        _require(usage.free_bytes == usage.total_bytes, "memory is left behind")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


def _desc(pages: int) -> CacheDesc:
    return CacheDesc(pages, (1, 8), "DT_INT8")


def _options(pages: int) -> dict[str, str]:
    pool = f'{{"memory_size": {pages << 10}, "page_shift": 10}}'
    return {"llm.EnableCacheManager": "1", "llm.MemPoolConfig": pool}


def explore(most_waiting: int = MOST_WAITING) -> int:
    """Visit every state in which so many calls wait at most; how many there are."""
    player = Player(most_waiting)
    known = {player.ledger.likeness()}
    front: deque[tuple[bytes, tuple[Action, ...]]] = deque([(pickle.dumps(player), ())])
    while front:
        snapshot, way = front.popleft()
        for action in list(pickle.loads(snapshot).ledger.actions()):
            player = pickle.loads(snapshot)
            player.cluster.charts = CHARTS
            try:
                player.call(action)
                if player.ledger.likeness() in known:
                    continue
                known.add(player.ledger.likeness())
                front.append((pickle.dumps(player), (*way, action)))
                player.let_everything_go()
            except Violation as violation:
                raise Violation(f"{violation}, after {[*way, action]}") from violation
    return len(known)


CHARTS = Cluster().charts


def main(argv: Sequence[str] | None = None) -> None:
    """Explore, and print how much there was; raises :class:`Violation`."""
    parser = argparse.ArgumentParser(prog="spec queues", description="visit every state of allocations that wait")
    parser.add_argument(
        "most_waiting", nargs="?", type=int, default=MOST_WAITING, help="how many wait at once, at most"
    )
    print(f"{explore(parser.parse_args(argv).most_waiting):,} states: every rule holds")
