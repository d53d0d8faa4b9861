"""Caches of the pools, their keys and their memory."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import caches, present, slots
from ..terms import CacheName, Call, ViewName


class CacheRules(Lockstep):
    """Caches are allocated, looked at, and let go."""

    @rule(call=caches.allocations(), seed=st.integers(0, 2**32))
    def allocate(self, call: Call, seed: int) -> None:
        self.make_cache(call, seed)

    @now_and_then(2)
    @rule(call=caches.blocks_allocations(), seed=st.integers(0, 2**32))
    def allocate_blocks(self, call: Call, seed: int) -> None:
        self.make_cache(call, seed)

    @now_and_then(2)
    @rule(call=caches.deallocations())
    def deallocate(self, call: Call) -> None:
        self.make(call)

    @now_and_then(4)
    @rule(call=caches.deallocations(blocks=True))
    def deallocate_blocks(self, call: Call) -> None:
        self.make(call)

    @now_and_then(2)
    @rule(call=caches.key_calls("remove_cache_key"))
    def remove_cache_key(self, call: Call) -> None:
        self.make(call)

    @now_and_then(7)
    @rule(call=caches.key_calls("check_cache_key"))
    def check_cache_key(self, call: Call) -> None:
        self.make(call)

    @now_and_then(5)
    @rule(call=caches.key_calls("lookup"))
    def lookup(self, call: Call) -> None:
        self.make(call)

    @rule(call=slots.copies())
    def copy(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.caches)
    @rule(cache=present.caches(), seed=st.integers(0, 2**32))
    def fill(self, cache: CacheName, seed: int) -> None:
        self.same(self.reference.fill(cache, seed), self.library(cache.node).fill(cache, seed), f"filling {cache}")

    @precondition(lambda self: self.caches)
    @now_and_then(2)
    @rule(cache=present.caches())
    def open_view(self, cache: CacheName) -> None:
        view = ViewName(cache.node, next(self._numbers))
        self.same(
            self.reference.open_view(view, cache),
            self.library(cache.node).open_view(view, cache),
            f"opening {view} of {cache}",
        )

    @precondition(lambda self: self.open_views)
    @rule(view=present.views())
    def close_view(self, view: ViewName) -> None:
        for side in (self.reference, self.library(view.node)):
            side.close_view(view)

    @precondition(lambda self: any(self.reference.views_of(node) for node in self.nodes))
    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def fill_view(self, data: st.DataObject, seed: int) -> None:
        view = data.draw(st.sampled_from([view for node in self.nodes for view in self.reference.views_of(node)]))
        for side in (self.reference, self.library(view.node)):
            side.fill_view(view, seed)
