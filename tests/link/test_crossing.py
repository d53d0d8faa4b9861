"""Two clusters that link to each other at once end with one sound link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmdd.link import messages

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def in_background(call: Callable[[], str]) -> tuple[threading.Thread, list[str]]:
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return thread, result


def test_two_nodes_of_one_process(make_node: Callable, eventually: Callable) -> None:
    one, two = make_node(1), make_node(2)
    targets = {one: two.listen(), two: one.listen()}
    for _ in range(50):
        with ThreadPoolExecutor(2) as both:
            codes = both.map(lambda node: node.link(targets[node]), targets)
        assert sorted(codes) == ["LLM_ALREADY_LINK", "LLM_SUCCESS"]
        assert (one.linked(), two.linked()) == ([2], [1])
        one.bind(req_id=7, fill=70)
        assert two.pull(cluster_id=1, req_id=7) == 70
        assert one.unlink(targets[one]) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([], [])
    eventually(lambda: (one.bits_out(), two.bits_out()) == (0, 0), "every pin bit has come back")


def test_two_processes(make_peer: Callable) -> None:
    one, two = make_peer(1), make_peer(2)
    targets = {one: two.listen(), two: one.listen()}
    for _ in range(20):
        for peer, target in targets.items():
            peer.ask("link", target.cluster_id, target.host, target.port, 5000)
        assert sorted(peer.answer() for peer in targets) == ["LLM_ALREADY_LINK", "LLM_SUCCESS"]
        assert (one.call("linked"), two.call("linked")) == ([2], [1])
        assert two.unlink(targets[two]) == "LLM_SUCCESS"


def test_of_two_handshakes_the_first_to_commit_stands(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(2), make_raw_end(1)
    target = node.listen()
    first, second = end.prepare_link(target), end.prepare_link(target)
    second.send(messages.Commit())
    assert second.receive() == messages.Linked()
    arena = node.service.peers[1]
    first.send(messages.Commit())
    assert [first.receive() for _ in range(3)] == [messages.Crossed(), messages.Detached(), None]
    assert node.service.peers[1] is arena


def test_of_two_commits_that_cross_the_one_from_the_smaller_cluster_id_counts(
    make_node: Callable, make_raw_end: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    incoming = end.prepare_link(node.listen())
    thread, result = in_background(lambda: node.link(end.target))
    outgoing = end.accept()
    end.welcome(outgoing)
    assert outgoing.receive() == messages.Commit()
    incoming.send(messages.Commit())
    assert incoming.receive() == messages.Crossed()
    outgoing.send(messages.Linked())
    thread.join()
    assert result == ["LLM_SUCCESS"]
    assert node.linked() == [2]


def test_of_two_commits_that_cross_the_one_from_the_larger_cluster_id_does_not_count(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    node, end = make_node(3), make_raw_end(2)
    incoming = end.prepare_link(node.listen())
    thread, result = in_background(lambda: node.link(end.target))
    outgoing = end.accept()
    end.welcome(outgoing)
    assert outgoing.receive() == messages.Commit()
    incoming.send(messages.Commit())
    assert incoming.receive() == messages.Linked()
    outgoing.send(messages.Crossed(), messages.Detached())
    thread.join()
    assert result == ["LLM_ALREADY_LINK"]
    assert node.linked() == [2]
    eventually(lambda: node.bits_out() == 1, "only the link that counts is left")


def test_an_attempt_gives_way_to_a_link_from_the_other_end(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    target = node.listen()
    thread, result = in_background(lambda: node.link(end.target))
    outgoing = end.accept()
    end.link(target)
    end.welcome(outgoing)
    assert outgoing.receive() == messages.Detached()
    thread.join()
    assert result == ["LLM_ALREADY_LINK"]
    assert node.linked() == [2]


def test_what_is_said_right_behind_the_verdict_is_heard(
    make_node: Callable, make_raw_end: Callable, eventually: Callable
) -> None:
    node, end = make_node(1), make_raw_end(2)
    thread, result = in_background(lambda: node.link(end.target))
    outgoing = end.accept()
    end.welcome(outgoing)
    assert outgoing.receive() == messages.Commit()
    outgoing.send(messages.Linked(), messages.Farewell(), messages.Detached())
    thread.join()
    assert result == ["LLM_SUCCESS"]
    eventually(lambda: node.linked() == [], "the farewell is heard")
    eventually(lambda: node.bits_out() == 0, "and the promise")
    assert node.link(end.target, timeout_ms=50) == "LLM_TIMEOUT", "dropped in good order, the link may be made again"


def test_a_peer_that_always_crosses(make_node: Callable, make_raw_end: Callable) -> None:
    node, end = make_node(1), make_raw_end(2)
    thread, result = in_background(lambda: node.link(end.target, timeout_ms=2000))
    for _ in range(3):
        outgoing = end.accept()
        end.welcome(outgoing)
        assert outgoing.receive() == messages.Commit()
        outgoing.send(messages.Crossed(), messages.Detached())
    thread.join()
    assert result == ["LLM_TIMEOUT"]
