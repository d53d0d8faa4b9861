"""Leases of keys, and the time in which they end."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from ..machine import Lockstep, now_and_then
from ..strategies import bulk
from ..strategies.odd import LEASE_MS
from ..terms import Call


class LeaseRules(Lockstep):
    """Keys that nobody renews are dropped, and no others."""

    @precondition(lambda self: self.has_leases)
    @now_and_then(2)
    @rule(call=bulk.renewals())
    def renew_leases(self, call: Call) -> None:
        self.make(call)

    @precondition(lambda self: self.has_leases)
    @now_and_then(3)
    @rule(leases=st.sampled_from((1, 1, 2)))
    def time_passes(self, leases: int) -> None:
        self.let_time_pass(leases * LEASE_MS)
