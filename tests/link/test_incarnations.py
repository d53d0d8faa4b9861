"""A cluster that was started anew: what its former incarnation has left on the way changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmdd.link import LinkTarget, messages

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def restarted(make_node: Callable, make_raw_end: Callable) -> tuple[Any, LinkTarget, Any, Any]:
    """A node, its address, what is left of cluster 1's former link to it, and cluster 1 as it is linked now."""
    node, former, now = make_node(2), make_raw_end(1), make_raw_end(1)
    target = node.listen()
    old = former.link(target)
    now.link(target)
    assert old.receive() == messages.Detached(), "its link has been replaced"
    return node, target, former, old


def test_a_late_request_to_unlink(restarted: Any) -> None:
    node, target, former, _ = restarted
    channel = former.connect(target)
    channel.send(messages.UnlinkRequest(former.identity, 2))
    assert channel.receive() == messages.Unlinked(), "whatever link it had is down"
    assert node.linked() == [1]


@pytest.mark.parametrize("word", ["Farewell", "Linked", "Crossed", "no message", "the end"])
def test_late_words_on_the_former_connection(restarted: Any, eventually: Callable, word: str) -> None:
    node, _, _, old = restarted
    if word == "the end":
        old.close()
    else:
        old.send(b"\xff" * 64 if word == "no message" else getattr(messages, word)())
        if word != "Farewell":
            assert old.receive() is None, "it is heard no more"
    assert node.bits_out() == 2, "its process lives: its promise alone gives its bit back"
    assert node.linked() == [1]
    assert node.service.counts.links_lost == 0


def test_a_late_promise_gives_back_the_former_bit_alone(restarted: Any, eventually: Callable) -> None:
    node, _, _, old = restarted
    old.send(messages.Detached())
    assert old.receive() is None
    eventually(lambda: node.bits_out() == 1, "the former one's bit is free again")
    old.close()
    assert node.linked() == [1] and node.bits_out() == 1


def test_a_former_process_that_dies_late_takes_nothing_along(
    make_node: Callable, make_peer: Callable, eventually: Callable
) -> None:
    node, former = make_node(2), make_peer(1)
    target = node.listen()
    assert former.link(target) == "LLM_SUCCESS"
    former.freeze()
    now = make_peer(1)
    assert now.link(target) == "LLM_SUCCESS"
    former.kill()
    eventually(lambda: node.bits_out() == 1, "the former one's bit is free again")
    node.bind(req_id=7, fill=70)
    assert now.call("pull", 2, 7) == 70
    assert (node.linked(), node.service.counts.links_lost) == ([1], 0)
