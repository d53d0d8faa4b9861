"""Copies and transfers of blocks."""

from __future__ import annotations

from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import blocks
from ..terms import Call


class BlocksRules(Lockstep):
    """Blocks are copied, swapped, pulled and pushed."""

    @now_and_then(3)
    @rule(call=blocks.block_copies())
    def copy_blocks(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.swappable, self.nodes)))
    @rule(call=blocks.swaps())
    def swap_blocks(self, call: Call) -> None:
        self.make(call)

    @now_and_then(10)
    @rule(call=blocks.swaps())
    def swap_blocks_of_any_caches(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.bound_blocks_keys, self.nodes)))
    @rule(call=blocks.block_pulls())
    def pull_blocks(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.bound_keys, self.nodes)))
    @rule(call=blocks.pulls_into_blocks(by_key=True))
    def pull_into_blocks_by_key(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @now_and_then(2)
    @rule(call=blocks.pulls_into_blocks(by_key=False))
    def pull_into_blocks_by_id(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.remote_mode)
    @rule(call=blocks.block_pushes())
    def push_blocks(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: not self.remote_mode)
    @now_and_then(10)
    @rule(call=blocks.block_pushes())
    def push_blocks_where_nobody_may(self, call: Call) -> None:
        self.make(call)
