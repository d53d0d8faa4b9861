"""Many keys and caches at once."""

from __future__ import annotations

from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import bulk
from ..terms import Call


class BulkRules(Lockstep):
    """The bulk calls do item by item what the single calls do."""

    @now_and_then(4)
    @rule(call=bulk.lookups())
    def lookup_many(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.bound_keys, self.nodes)))
    @now_and_then(5)
    @rule(call=bulk.removals())
    def remove_cache_keys(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.caches)
    @now_and_then(3)
    @rule(call=bulk.deallocations())
    def deallocate_many(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(call=bulk.pulls(into_blocks=False))
    def pull_many(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1 and any(map(self.live_blocks_caches, self.nodes)))
    @rule(call=bulk.pulls(into_blocks=True))
    def pull_many_into_blocks(self, call: Call) -> None:
        self.make(call)
