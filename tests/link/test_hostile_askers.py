"""Whoever asks for nonsense over a conversation ends his own visit at most, and leaves no pin behind."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from any_message import any_of, replaced
from conversing_nodes import ConversingNode, Line, RawAsker, acquaint, contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programmable_engine import Course, Network

from llmdd._core.cache_keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llmdd._core.status import LLMException
from llmdd.link import transfer_messages
from llmdd.link.messages import HEADER
from llmdd.link.transfer_messages import (
    Abandon,
    Begin,
    Begun,
    Copied,
    Finish,
    Finished,
    Request,
    Wanted,
    Way,
    Written,
)

LARGE = 5 << 20
SMALL = 1000
REQUESTS = [Begin, Written, Copied, Finish, Abandon]

several = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Scene:
    """An owner, an honest guest of it, and what requests of honest guests look like."""

    def __init__(self, make_conversing: Callable[..., ConversingNode], eventually: Callable) -> None:
        self.eventually = eventually
        self.owner = make_conversing(2, remote_accessible=True)
        self.honest = Line(make_conversing(1, remote_accessible=True), self.owner)
        self.honest_target = self.honest.asker.cache(SMALL)
        self.other = make_conversing(3, remote_accessible=True, timeout_ms=10)
        acquaint(self.other, self.owner)
        self.kept = self.owner.cache(SMALL, 100, 101, seed=1)
        self.large = self.owner.cache(LARGE, 102, seed=2)
        self.blocks = self.owner.blocks(8, 64, seed=3, key=BlocksCacheKey(2, 9))
        self.before = [contents(cache) for cache in (self.kept, self.large, self.blocks)]
        self.used = self.owner.used_bytes
        self.askers: list[RawAsker] = []

    def asker(self) -> RawAsker:
        self.askers.append(RawAsker(self.owner, self.other.engine.own_name))
        return self.askers[-1]

    def templates(self) -> dict[str, Begin]:
        """What honest guests say first: a small pull, a large one, and pushes of slots and blocks."""
        line = Line(self.other, self.owner)
        store = self.other.store
        small, large = self.other.cache(SMALL), self.other.cache(LARGE)
        block_target = self.other.blocks(8, 64)
        line.alter_request = lambda request: []
        calls = {
            "small pull": lambda: store.pull_cache(CacheKeyByIdAndIndex(2, self.kept.cache_id, 0), small),
            "large pull": lambda: store.pull_cache(CacheKeyByIdAndIndex(2, self.large.cache_id, 0), large),
            "blocks": lambda: store.pull_blocks(BlocksCacheKey(2, 9), block_target, [1, 5], [2, 3]),
            "small push": lambda: store.push_cache(CacheKeyByIdAndIndex(2, self.kept.cache_id, 1), small),
            "large push": lambda: store.push_cache(CacheKeyByIdAndIndex(2, self.large.cache_id, 0), large),
            "pushed blocks": lambda: store.push_blocks(BlocksCacheKey(2, 9), block_target, [1, 5], [2, 3]),
            "many": lambda: store.pull_many(
                [CacheKeyByIdAndIndex(2, self.kept.cache_id, row) for row in (0, 1)], self.other.cache(SMALL, rows=2)
            ),
        }
        said = {}
        for name, call in calls.items():
            line.requests.clear()
            with suppress(LLMException):  # the owner never hears of it
                call()
            self.eventually(lambda: line.requests, f"it asks for a {name}")
            (said[name],) = [request for request in line.requests if isinstance(request, Begin)]
        line.close()
        return said

    def assert_sound(self, eventually: Callable) -> None:
        """The vandals are gone with all that they held, and everybody else is served as before."""
        for asker in self.askers:
            asker.close()
            assert asker.dropped.wait(20)
        self.askers.clear()
        store = self.owner.store
        store.check()
        self.honest.asker.store.pull_cache(CacheKeyByIdAndIndex(2, self.kept.cache_id, 0), self.honest_target)
        assert not self.honest.dropped.is_set()
        scratch = self.owner.cache(SMALL, 900, seed=5)
        store.deallocate_cache(scratch)
        store.remove_cache_key(CacheKey(2, 900))
        assert self.owner.used_bytes == self.used, "nothing is pinned"

    def assert_memory_comes_back(self) -> None:
        """No cache of the owner's is pinned: each gives its memory back at once."""
        store = self.owner.store
        for key in (100, 101, 102):
            store.remove_cache_key(CacheKey(2, key))
        for cache in (self.kept, self.large):
            store.deallocate_cache(cache)
        store.deallocate_blocks_cache(self.blocks)
        assert self.owner.used_bytes == 0


@pytest.fixture
def scene(make_conversing: Callable[..., ConversingNode], eventually: Callable) -> Iterator[Scene]:
    made = Scene(make_conversing, eventually)
    yield made
    made.assert_sound(eventually)
    made.assert_memory_comes_back()


def hung_up(asker: RawAsker) -> bool:
    """Whether the owner ends the conversation, whatever it answers before."""
    while asker.hear() is not None:
        pass
    return True


# -- what is no message ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
        HEADER.pack(0),
        HEADER.pack(transfer_messages.MAX_PAYLOAD + 1),
        b"\xff\xff\xff\xff",
        HEADER.pack(3) + b"\x81\xa1x",
        HEADER.pack(1000) + b"\x91" * 1000,
        HEADER.pack(1000) + b"\xdd\xff\xff\xff\xff" + bytes(995),
        HEADER.pack(5) + b"\xa4abcd",
        transfer_messages.frame(Begun(1, [], Way.NONE, b"", 0, b"")),
        transfer_messages.frame(Finished(1, [])),
    ],
    ids=["HTTP", "empty", "oversize", "huge", "half a map", "nested", "huge array", "text", "an answer", "another"],
)
def test_what_is_no_request_ends_the_visit(scene: Scene, said: bytes) -> None:
    asker = scene.asker()
    asker.say(said)
    assert hung_up(asker)


def test_half_a_frame_keeps_nobody_waiting(scene: Scene) -> None:
    request = transfer_messages.frame(scene.templates()["large pull"])
    for end in (1, 3, 4, 5, len(request) // 2, len(request) - 1):
        asker = scene.asker()
        asker.say(request[:end])
    scene.honest.asker.store.pull_cache(CacheKeyByIdAndIndex(2, scene.kept.cache_id, 1), scene.honest_target)


def test_a_frame_that_comes_byte_by_byte(scene: Scene) -> None:
    asker = scene.asker()
    for byte in transfer_messages.frame(scene.templates()["small pull"]):
        asker.say(bytes([byte]))
    assert isinstance(asker.hear(), Begun)


def test_garbage_of_many_guests_at_once(scene: Scene) -> None:
    chance = random.Random(4711)
    askers = [scene.asker() for _ in range(40)]
    for asker in askers:
        asker.say(b"".join(HEADER.pack(len(part)) + part for part in (chance.randbytes(50) for _ in range(3))))
    assert all(hung_up(asker) for asker in askers)


def test_messages_with_a_few_bytes_changed(scene: Scene) -> None:
    chance = random.Random(1)
    templates = scene.templates()
    for number in range(300):
        asker = scene.asker()
        begin = templates[chance.choice(sorted(templates))]
        data = bytearray(transfer_messages.frame(begin)[HEADER.size :])
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(min(len(data), 200))] = chance.randrange(256)
        asker.say(HEADER.pack(len(data)) + bytes(data), Finish(begin.number, [True]))
        if number % 20 == 19:
            asker.say(b"\xff\xff\xff\xff")
            assert hung_up(asker)
        else:
            asker.close()


# -- requests out of turn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS[1:], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("number", [0, 1, 2**64 - 1])
def test_a_word_on_a_request_that_was_never_begun(scene: Scene, kind: type, number: int) -> None:
    asker = scene.asker()
    asker.say(word_of(kind, number), b"\xff\xff\xff\xff")
    assert hung_up(asker)


def word_of(kind: type, number: int, stretch: int = 0, items: int = 1) -> Request:
    if kind is Written:
        return Written(number, stretch, True)
    if kind is Copied:
        return Copied(number, stretch)
    return Finish(number, [True] * items) if kind is Finish else Abandon(number)


@pytest.mark.parametrize("template", ["small pull", "large pull", "large push", "many", "blocks", "pushed blocks"])
def test_begin_while_a_request_is_open(scene: Scene, template: str) -> None:
    begin = scene.templates()[template]
    asker = scene.asker()
    asker.say(begin, msgspec.structs.replace(begin, number=begin.number + 1))
    if template != "pushed blocks":
        assert hung_up(asker)


@pytest.mark.parametrize("template", ["small pull", "large pull", "large push"])
def test_words_of_another_number_and_out_of_order(scene: Scene, template: str) -> None:
    begin = scene.templates()[template]
    for kind in REQUESTS[1:]:
        for number in (begin.number - 1, begin.number, begin.number + 1):
            for stretch in (0, 1, 2, 3, 2**64 - 1):
                asker = scene.asker()
                asker.say(begin, word_of(kind, number, stretch), word_of(kind, number, stretch))
                asker.close()


@pytest.mark.parametrize("items", [0, 2, 1000])
def test_finish_for_another_number_of_items(scene: Scene, items: int) -> None:
    begin = scene.templates()["small pull"]
    asker = scene.asker()
    asker.say(begin, Finish(begin.number, [True] * items))
    assert hung_up(asker)
    assert scene.owner.store.lookup(CacheKey(2, 100)) is not None


def test_finish_of_a_push_that_was_not_written(scene: Scene) -> None:
    begin = scene.templates()["large push"]
    asker = scene.asker()
    asker.say(begin, Finish(begin.number, [True]))
    assert hung_up(asker)
    assert scene.owner.store.lookup(CacheKey(2, 102)) is not None
    assert contents(scene.large) == scene.before[1]


def test_a_number_that_was_used_before(scene: Scene) -> None:
    begin = scene.templates()["small pull"]
    asker = scene.asker()
    asker.say(begin, Abandon(begin.number), begin)
    assert hung_up(asker)


def test_a_guest_that_never_listens(scene: Scene) -> None:
    begin = scene.templates()["small pull"]
    begin = msgspec.structs.replace(begin, items=begin.items * 2000)
    asker = scene.asker()
    asker.socket.settimeout(0.2)
    try:
        for number in range(1, 2000):
            asker.socket.sendall(
                transfer_messages.frame(msgspec.structs.replace(begin, number=number))
                + transfer_messages.frame(Abandon(number))
            )
            if asker.dropped.is_set():
                break
    except OSError:
        pass  # the owner does not listen either, or has hung up
    scene.honest.asker.store.pull_cache(CacheKeyByIdAndIndex(2, scene.kept.cache_id, 1), scene.honest_target)


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 1, -SMALL])
def test_a_push_with_too_few_or_too_many_bytes(scene: Scene, extra: int) -> None:
    begin = scene.templates()["small push"]
    data = begin.data[:extra] if extra < 0 else begin.data + bytes(extra)
    asker = scene.asker()
    asker.say(msgspec.structs.replace(begin, data=data, number=1))
    answer = asker.hear()
    assert not isinstance(answer, Begun) or answer.way is not Way.CARRIED
    assert contents(scene.kept) == scene.before[0]


def test_a_list_of_blocks_of_another_length(scene: Scene) -> None:
    templates = scene.templates()
    for name in ("blocks", "pushed blocks"):
        (item,) = templates[name].items
        for blocks in (b"", item.your_blocks[:-8], item.your_blocks + bytes(8), item.your_blocks[:-1]):
            asker = scene.asker()
            changed = msgspec.structs.replace(item, your_blocks=blocks)
            asker.say(msgspec.structs.replace(templates[name], items=[changed]))
            assert hung_up(asker)


@pytest.mark.parametrize("block", [8, 2**32, 2**58, 2**64 - 1])
def test_a_block_beyond_the_cache(scene: Scene, block: int) -> None:
    templates = scene.templates()
    for name in ("blocks", "pushed blocks"):
        (item,) = templates[name].items
        changed = msgspec.structs.replace(item, your_blocks=struct.pack("<2Q", 1, block))
        asker = scene.asker()
        asker.say(msgspec.structs.replace(templates[name], items=[changed]))
        answer = asker.hear()
        assert isinstance(answer, Begun)
        assert answer.way is Way.NONE
        assert answer.items[0].result != 0
    assert contents(scene.blocks) == scene.before[2]


def test_many_blocks_of_each_of_many_items(scene: Scene) -> None:
    begin = scene.templates()["small pull"]
    (item,) = begin.items
    for form in (1, 2, 3):
        changed = msgspec.structs.replace(item, form=form, block_count=transfer_messages.MAX_BLOCKS, our_row_bytes=1)
        asker = scene.asker()
        asker.say(msgspec.structs.replace(begin, items=[changed] * 200))
        asker.hear()


@pytest.mark.parametrize(
    ("form", "announced", "times"), [(0, transfer_messages.MAX_BLOCKS, 64), (1, SMALL, 20_000)], ids=["slot", "blocks"]
)
def test_blocks_that_are_announced_and_not_listed_take_no_memory(
    scene: Scene, form: int, announced: int, times: int
) -> None:
    """A batch slot that is pulled lists none at its owner's, where it goes to blocks neither."""
    begin = scene.templates()["small pull"]
    (item,) = begin.items
    changed = msgspec.structs.replace(item, form=form, block_count=announced, our_row_bytes=1)
    asker = scene.asker()
    before = address_space()
    asker.say(msgspec.structs.replace(begin, items=[changed] * times, patience_ms=1_000_000))
    begun = asker.hear()
    assert isinstance(begun, Begun)
    assert begun.items[0].result == 0
    assert address_space() - before < 64 << 20


def address_space() -> int:
    """Bytes of memory that this process has asked for."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("staging", [0, 1, 2**63, 2**64 - (8 << 20)])
def test_staging_memory_that_is_nowhere(scene: Scene, staging: int) -> None:
    begin = msgspec.structs.replace(scene.templates()["large pull"], staging=staging)
    asker = scene.asker()
    asker.say(begin)
    begun, written = asker.hear(), asker.hear()
    assert isinstance(begun, Begun)
    assert isinstance(written, Written)
    assert not written.arrived
    asker.say(Finish(begin.number, [False]))
    assert isinstance(asker.hear(), Finished)


def test_metadata_that_is_useless(scene: Scene) -> None:
    begin = scene.templates()["large pull"]
    for metadata in (b"x", b"\0" * 1000, scene.honest.asker.engine.metadata()):
        asker = scene.asker()
        asker.say(msgspec.structs.replace(begin, metadata=metadata))
        assert hung_up(asker)


# -- a pin is kept no longer than its request -----------------------------------------------------------------------


@pytest.mark.parametrize("template", ["small pull", "large pull", "large push", "many"])
@pytest.mark.parametrize("end", ["hang up", "nonsense", "abandon", "time"])
def test_what_was_pinned_for_a_guest_is_free_when_its_request_ends(
    scene: Scene, eventually: Callable, template: str, end: str, network: Network
) -> None:
    network.usual = Course(polls=10**9)
    begin = scene.templates()[template]
    patience_ms = 20 if end == "time" else 1_000_000
    asker = scene.asker()
    asker.say(msgspec.structs.replace(begin, patience_ms=patience_ms))
    assert isinstance(asker.hear(), Begun)
    if end == "hang up":
        asker.close()
    elif end == "nonsense":
        asker.say(b"\xff\xff\xff\xff")
    elif end == "abandon":
        asker.say(Abandon(begin.number))
    eventually(scene.owner.is_served_by_nobody, "its request has ended")
    scene.assert_memory_comes_back()
    network.usual = Course()
    scene.kept, scene.large = scene.owner.cache(SMALL, 100, 101, seed=1), scene.owner.cache(LARGE, 102, seed=2)
    scene.blocks = scene.owner.blocks(8, 64, seed=3, key=BlocksCacheKey(2, 9))


# -- anything at all ------------------------------------------------------------------------------------------------


def test_any_fields_of_an_item(scene: Scene, eventually: Callable) -> None:
    templates = scene.templates()
    items = [begin.items[0] for begin in templates.values()]

    @several
    @given(st.data())
    def nonsense(data: st.DataObject) -> None:
        begin = templates[data.draw(st.sampled_from(sorted(templates)))]
        wanted = data.draw(st.lists(st.sampled_from(items).flatmap(replaced) | any_of(Wanted), min_size=1, max_size=3))
        asker = scene.asker()
        asker.say(msgspec.structs.replace(begin, number=1, items=wanted))
        answer = asker.hear()
        if isinstance(answer, Begun):
            assert len(answer.items) == len(wanted)
            asker.say(Finish(1, [data.draw(st.booleans()) for _ in wanted]))
        scene.assert_sound(eventually)

    nonsense()
    assert contents(scene.large) == scene.before[1], "nothing was written to it"


def test_any_requests_in_any_order(scene: Scene, eventually: Callable) -> None:
    templates = scene.templates()
    honest = [msgspec.structs.replace(begin, number=number) for begin in templates.values() for number in (1, 2)]

    @several
    @given(st.lists(st.sampled_from(honest) | st.sampled_from(REQUESTS).flatmap(any_of), max_size=8))
    def nonsense(requests: list[Request]) -> None:
        asker = scene.asker()
        asker.say(*requests)
        scene.assert_sound(eventually)

    nonsense()


def test_a_cache_that_a_vandal_may_write_is_the_one_it_names(scene: Scene) -> None:
    begin = scene.templates()["small push"]
    asker = scene.asker()
    asker.say(msgspec.structs.replace(begin, data=bytes([7]) * SMALL))
    assert isinstance(asker.hear(), Begun)
    rows = np.asarray(scene.kept.tensors[0])
    assert (rows[1] == 7).all()
    assert bytes(rows[0]) == scene.before[0][0][:SMALL]
    assert contents(scene.large) == scene.before[1]
