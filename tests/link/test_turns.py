"""A peer that asks for much, or for many things at once, holds up no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from conversing_nodes import ConversingNode, Line, RawAsker, contents

from llmdd._core.cache_keys import CacheKey
from llmdd.link import attendance
from llmdd.link.transfer_messages import Abandon, Begin, Begun, Finish, Wanted, frame

MANY = 20_000
PATIENCE_S = 20.0


@pytest.fixture
def owner(make_conversing: Callable[..., ConversingNode]) -> ConversingNode:
    """Has many keys, and one more."""
    return make_conversing(2)


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions so small that there are thousands of them."""
    monkeypatch.setattr(attendance, "_ITEMS_AT_ONCE", 4)


def wanted(line: Line, *req_ids: int) -> Begin:
    """The request for some keys, as an honest peer makes it."""
    target = line.asker.cache(1, rows=len(req_ids))
    line.asker.store.pull_many(np.array(req_ids), target, cluster_id=2)
    (begin,) = [request for request in line.requests if isinstance(request, Begin)]
    return msgspec.structs.replace(begin, patience_ms=1_000_000, metadata=b"")


@pytest.fixture
def begin(make_conversing: Callable[..., ConversingNode], owner: ConversingNode) -> Begin:
    """A request for many keys, of which there is none yet."""
    return wanted(Line(make_conversing(1), owner), *range(MANY))


@pytest.mark.usefixtures("small_portions")
def test_others_are_served_while_a_large_request_is_begun(
    make_conversing: Callable[..., ConversingNode], owner: ConversingNode, eventually: Callable
) -> None:
    owner.cache(1, *range(MANY), seed=1)
    source = owner.cache(1000, MANY, seed=2)
    large, small = Line(make_conversing(1), owner), Line(make_conversing(3), owner)
    much, little = large.asker.cache(1, rows=MANY), small.asker.cache(1000)
    codes: list[np.ndarray] = []
    asking = threading.Thread(
        target=lambda: codes.append(large.asker.store.pull_many(np.arange(MANY), much, cluster_id=2))
    )
    asking.start()
    eventually(lambda: large.guest.last_number == 1, "the large request has come")
    small.asker.store.pull_cache(CacheKey(2, MANY), little)
    assert large.guest.open is None, "it is being begun still"
    assert contents(little) == contents(source)
    asking.join()
    assert not codes[0].any()
    assert owner.store.live_keys == 0


def test_others_are_served_between_two_of_many_requests(
    make_conversing: Callable[..., ConversingNode], owner: ConversingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, "_TURN_S", 0)
    line = Line(make_conversing(1), owner)
    nothing, last = wanted(line, 7), 3000
    said = [frame(msgspec.structs.replace(nothing, number=number)) for number in range(1, last + 1)]
    asker = RawAsker(owner)
    asker.say(b"".join(said))
    assert isinstance(asker.hear(), Begun)
    source, target = owner.cache(1000, 8, seed=3), line.asker.cache(1000)
    line.asker.store.pull_cache(CacheKey(2, 8), target)
    assert asker.guest.last_number < last, "there is more of it"
    assert contents(target) == contents(source)
    while (answer := asker.hear()) is not None and answer.number < last:
        pass
    assert answer is not None, "every one is answered"
    asker.close()


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("end", ["dismissed", "hung up", "nonsense"])
def test_what_was_pinned_of_a_large_request_is_free_when_its_guest_goes(
    owner: ConversingNode, begin: Begin, eventually: Callable, end: str
) -> None:
    many = owner.cache(1, *range(MANY), seed=1)
    asker = RawAsker(owner)
    asker.say(begin)
    eventually(lambda: asker.guest.beginning is not None, "it is being begun")
    if end == "dismissed":
        gone = threading.Event()
        asker.guest.dismiss(lambda _: gone.set())
        assert gone.wait(PATIENCE_S)
    elif end == "hung up":
        asker.close()
    else:
        asker.say(b"\xff\xff\xff\xff")
    eventually(owner.is_served_by_nobody, "nothing of it is left")
    owner.store.remove_cache_keys(np.arange(MANY))
    owner.store.deallocate_cache(many)
    assert owner.used_bytes == 0, "nothing is pinned"
    asker.close()


@pytest.mark.usefixtures("small_portions")
def test_an_item_that_is_none_ends_the_visit_wherever_it_stands(owner: ConversingNode, begin: Begin) -> None:
    owner.cache(1, *range(MANY), seed=1)
    position = Wanted.__struct_fields__.index("kind")
    for place in (0, MANY // 2, MANY - 1):
        items: list[Any] = list(begin.items)
        fields = list(msgspec.msgpack.decode(msgspec.msgpack.encode(items[place])))
        fields[position] = 9
        items[place] = fields
        asker = RawAsker(owner)
        asker.say(msgspec.structs.replace(begin, items=items))
        assert asker.hear() is None
        assert asker.dropped.wait(PATIENCE_S)
        asker.close()
    assert owner.store.live_keys == MANY


@pytest.mark.usefixtures("small_portions")
def test_a_word_that_comes_while_a_large_request_is_begun_is_heard_after_it(
    owner: ConversingNode, begin: Begin, eventually: Callable
) -> None:
    owner.cache(1, *range(MANY), seed=1)
    asker = RawAsker(owner)
    asker.say(begin, Abandon(begin.number), msgspec.structs.replace(begin, number=begin.number + 1))
    first, second = asker.hear(), asker.hear()
    assert isinstance(first, Begun)
    assert isinstance(second, Begun)
    assert second.number == begin.number + 1
    asker.say(Finish(second.number, [True] * MANY))
    assert asker.hear() is not None
    eventually(lambda: owner.store.live_keys == 0, "every key is dropped")
    asker.close()
