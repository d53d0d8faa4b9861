"""Renewals that a peer on another host asks for, or that are answered to it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from llmdd._core.cache_desc import CacheDesc
from llmdd._core.cache_keys import CacheKey
from llmdd._core.enumerations import DataType
from llmdd.link import messages

DESC = CacheDesc(1, (2, 64), DataType.DT_UINT8)
MANY = [messages.NamedKey(1, number, 0, 0) for number in range(messages.MAX_RENEWED)]


def linked(make_node: Callable, make_raw_end: Callable) -> tuple:
    node, end = make_node(1), make_raw_end(3)
    introduced = end.introduce(node.listen())
    introduced.session.send(messages.Commit())
    assert introduced.session.receive() == messages.Linked()
    return node, introduced.session


def test_each_key_is_answered_for(engines: list, make_node: Callable, make_raw_end: Callable) -> None:
    node, session = linked(make_node, make_raw_end)
    cache = node.store.allocate_cache(DESC, [CacheKey(1, 7)], lease=100_000)
    slots = [messages.NamedKey(4, cache.cache_id, 0, index) for index in (0, 1, 2**64 - 1)]
    session.send(messages.Renew(9, 200_000, [messages.NamedKey(1, 7, 0, 0), messages.NamedKey(1, 8, 0, 0), *slots]))
    assert session.receive() == messages.Renewed(9, [True, False, True, False, False])


@pytest.mark.parametrize(
    "said",
    [
        messages.Renewed(1, [True]),
        messages.Renew(1, 1, [messages.NamedKey(1, 7, 0, 0)]),
    ],
    ids=["an answer to nothing", "a request of a peer on this host"],
)
def test_what_is_out_of_place_ends_the_session(
    engines: list, make_node: Callable, make_raw_end: Callable, said: messages.Message
) -> None:
    node, session = linked(make_node, make_raw_end)
    if isinstance(said, messages.Renew):
        session = make_raw_end(4).link(node.listen())
    session.send(said)
    while session.receive() is not None:
        pass
    node.store.check()


def test_a_peer_that_asks_without_end_keeps_nobody_out(
    engines: list, make_node: Callable, make_raw_end: Callable
) -> None:
    node, session = linked(make_node, make_raw_end)
    over = threading.Event()
    request = messages.frame(messages.Renew(1, 1000, MANY)) * 100

    def ask() -> None:
        while not over.is_set():
            session.send(request)

    def hear() -> None:
        while not over.is_set():
            session.receive()

    threads = [threading.Thread(target=work) for work in (ask, hear)]
    for thread in threads:
        thread.start()
    other = make_node(2)
    target = node.listen()
    assert [other.link(target), other.unlink(target)] == ["LLM_SUCCESS"] * 2
    over.set()
    for thread in threads:
        thread.join()
