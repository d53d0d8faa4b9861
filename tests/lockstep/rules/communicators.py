"""Links by rank table, and roles."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import communicators
from ..terms import Call

#: A node that has more has enough.
MOST_COMMUNICATORS = 3


class CommunicatorRules(Lockstep):
    """Nodes meet in communicators, leave them, and switch their roles."""

    @precondition(lambda self: len(self.nodes) > 1 and len(self.communicators(self.nodes[0])) < MOST_COMMUNICATORS)
    @now_and_then(3)
    @rule(calls=communicators.meetings())
    def meet(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.make(call)
            self.await_links()

    @now_and_then(12)
    @rule(call=communicators.odd_links())
    def link_oddly(self, call: Call) -> None:
        self.make(call)
        self.await_links()

    @precondition(lambda self: any(map(self.communicators, self.nodes)))
    @now_and_then(2)
    @rule(call=communicators.communicator_calls("unlink"))
    def leave_communicator(self, call: Call) -> None:
        self.make(call)
        self.await_links()

    @now_and_then(8)
    @rule(call=communicators.communicator_calls("unlink"))
    def leave_any_communicator(self, call: Call) -> None:
        self.make(call)
        self.await_links()

    @precondition(lambda self: any(map(self.communicators, self.nodes)))
    @now_and_then(2)
    @rule(call=communicators.communicator_calls("query_register_mem_status"))
    def query_communicator(self, call: Call) -> None:
        self.make(call)

    @now_and_then(3)
    @rule(calls=communicators.role_switches())
    def switch_role(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self.make(call)
            self.await_links()
