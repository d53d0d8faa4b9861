"""A host that is cut off is noticed within ``peer_timeout``, at both ends, whatever waits for it."""

from __future__ import annotations

from typing import Any

from .conftest import MakePair
from .test_slow_network import LARGE, begin

PEER_TIMEOUT_MS = 2000
SUCCESS, NOT_LINKED = "LLM_SUCCESS", "LLM_NOT_YET_LINK"

# Longer than the tests wait: what ends before was told that the peer is gone.
TIMEOUT_MS = 200_000


def test_a_host_that_is_cut_off_is_noticed_by_every_call_and_at_both_ends(
    make_pair: MakePair, start_process: Any, eventually: Any
) -> None:
    pair = make_pair(timeout_ms=TIMEOUT_MS, peer_timeout_ms=PEER_TIMEOUT_MS, remote=True)
    owner, caller = pair.owner, pair.puller
    theirs = owner.bind(7, *LARGE, kept=True)
    ours = caller.bind(8, *LARGE, kept=True)
    calls = [
        ["pull_by_id", [1, theirs, 0, ours]],
        ["push", [1, theirs, 0, ours]],
        ["pull_many_by_id", [1, [theirs], ours]],
        ["send", [ours, 1, theirs, []]],
    ]
    begin(pair, lambda: caller.begin("together", calls), 0, eventually)
    pair.hosts[0].unplug()
    pulled, pushed, pulled_many, sent = caller.answer()
    assert {pulled, pushed, *sent} <= {NOT_LINKED, "LLM_FAILED"}, "the engine may have noticed it before the session"
    assert len(pulled_many) == 1 and pulled_many[0] != 0
    for node in (owner, caller):
        eventually(lambda node=node: node.counters()["links_lost"] == 1, "the death is noticed at both ends")
    assert sum(caller.counters()["failed"].values()) == len(calls)
    eventually(lambda: owner.counters()["pins_dropped"] == 1, "the one that was under way had a pin")
    assert caller.counters()["pins_dropped"] == 0
    for node, other in ((owner, 2), (caller, 1)):
        (line,) = (line for line in node.process.call("log") if "is gone" in line)
        assert f"cluster {other} (incarnation" in line
        assert f"{node.counters()['pins_dropped']} pins were dropped" in line
    pair.hosts[0].plug_in()
    pair.hosts[0].lift_limit()
    assert caller.unlink(1, *owner.address, True) == SUCCESS
    assert caller.link_to(owner) == SUCCESS
    assert caller.pull_by_id(1, theirs, 0, ours) == SUCCESS
    assert caller.holds(ours, 0, 7)
    for node in (owner, caller):
        node.drop_all()
        eventually(node.is_empty, f"cluster {node.cluster_id} holds nothing")


def test_a_process_that_stands_still_is_not_gone(make_pair: MakePair, eventually: Any) -> None:
    """Its kernel answers for it: when it goes on, its link stands, and what it was asked comes about."""
    pair = make_pair(timeout_ms=2 * PEER_TIMEOUT_MS, peer_timeout_ms=PEER_TIMEOUT_MS)
    owner, puller = pair.owner, pair.puller
    owner.bind(7, 2, 1000)
    ours = puller.allocate(2, 1000)
    owner.process.freeze()
    assert puller.pull(1, 7, ours) == "LLM_TIMEOUT", "it has been silent for twice the time, and was not taken for gone"
    owner.process.thaw()
    assert puller.pull(1, 7, ours) == SUCCESS
    assert puller.holds(ours, 0, 7)
    for node in (owner, puller):
        assert node.counters()["links_lost"] == node.counters()["pins_dropped"] == 0
