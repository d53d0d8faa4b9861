"""Transfers of batch slots."""

from __future__ import annotations

from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import layerwise, slots
from ..terms import Call


class TransferRules(Lockstep):
    """Batch slots are pulled and pushed."""

    @rule(call=slots.pulls(by_key=True))
    def pull_by_key(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: any(map(self.bound_keys, self.nodes)))
    @rule(call=slots.pulls(by_key=True, by_layers=True))
    def pull_layers_by_key(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(call=slots.pulls())
    def pull_by_id(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @now_and_then(2)
    @rule(call=slots.pulls(by_layers=True))
    def pull_layers_by_id(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(call=layerwise.layer_transfers())
    def transfer_layers(self, call: Call) -> None:
        self.transfer_layers_of(call)
        self.await_links()

    @precondition(lambda self: self.remote_mode)
    @rule(call=slots.pushes())
    def push(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: not self.remote_mode)
    @now_and_then(5)
    @rule(call=slots.pushes())
    def push_where_nobody_may(self, call: Call) -> None:
        self.make(call)
