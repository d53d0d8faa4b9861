"""However much a peer says, and whatever: it is bounded, it is told once on a line, and others have their turn."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec
import pytest
from conversing_nodes import ConversingNode, Line, RawAsker, acquaint
from programmable_engine import Network

from llmdd._core.cache_keys import CacheKeyByIdAndIndex
from llmdd._core.status import LLMException, LLMStatusCode
from llmdd.demo import messages as demo_messages
from llmdd.link import complaints, endpoint, handshake, memory_handover, messages, reception, transfer_messages
from llmdd.link.complaints import Complaints
from llmdd.link.messages import HEADER, ProtocolError
from llmdd.link.segments import Rendezvous, SegmentSocket
from llmdd.link.transfer_messages import Begin, Begun, Frames
from llmdd.transport import nixl, staging
from llmdd.transport.engine import EngineFailed

SMALL, LARGE = 1000, 5 << 20

# -- what is wrong with a message is one line, and not a long one ----------------------------------------------------

FORGED = "zz\nERROR llmdd.link the node was taken over" + "x" * 5000


def refusal(decode: Callable[[bytes], Any], payload: bytes, refuses_with: type[Exception] = ProtocolError) -> str:
    with pytest.raises(refuses_with) as refused:
        decode(payload)
    return str(refused.value)


def next_request(payload: bytes) -> Any:
    frames = Frames()
    frames.feed(HEADER.pack(len(payload)) + payload)
    return frames.next_request()


@pytest.mark.parametrize(
    ("decode", "refuses_with"),
    [
        (messages.decode, ProtocolError),
        (next_request, ProtocolError),
        (demo_messages.decode, demo_messages.UnexpectedMessage),
    ],
    ids=["link", "conversation", "demo"],
)
def test_a_peer_writes_no_lines_into_our_log(decode: Callable[[bytes], Any], refuses_with: type[Exception]) -> None:
    reason = refusal(decode, msgspec.msgpack.encode({"type": FORGED}), refuses_with)
    assert reason.isprintable()
    assert len(reason) < 300


@pytest.mark.parametrize("depth", [2000, 200_000])
@pytest.mark.parametrize("decode", [messages.decode, next_request], ids=["link", "conversation"])
def test_what_is_nested_deeper_than_anybody_digs(decode: Callable[[bytes], Any], depth: int) -> None:
    known = msgspec.msgpack.encode({"type": "abandon", "number": 1} if decode is next_request else {"type": "commit"})
    nested = bytes([known[0] + 1]) + known[1:] + b"\xa1z" + b"\x91" * depth + b"\xc0"
    assert refusal(decode, nested)


def test_an_introduction_that_is_nested_or_talks_at_length() -> None:
    whole = msgspec.msgpack.encode(nixl._Introduction("nixl", 2, "name", b"", b""))
    nested = bytes([whole[0] + 1]) + whole[1:] + b"\x91" * 200_000 + b"\xc0"
    assert refusal(nixl._decoded, nested, EngineFailed)
    long = msgspec.msgpack.encode(nixl._Introduction("n" * 100_000, 2, "name", b"", b""))
    assert len(refusal(nixl._decoded, long, EngineFailed)) < 300


# -- so many lines and no more ---------------------------------------------------------------------------------------


def test_warnings_are_bounded_and_what_is_too_many_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    logger = logging.getLogger("llmdd.link.complaints of a test")
    told = Complaints(logger, clock=lambda: now)
    caplog.set_level(logging.DEBUG, logger.name)
    for number in range(1000):
        told.warn("peer %d is mad", number)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == complaints.MAX_COMPLAINTS + 1
    assert "further warnings" in warnings[-1].getMessage()
    assert len(caplog.records) == 1001, "at debug level there are all of them"
    caplog.clear()
    now += complaints.PERIOD_S
    told.warn("peer %d is mad", 1000)
    assert [record.getMessage() for record in caplog.records] == [
        f"{1000 - complaints.MAX_COMPLAINTS} warnings like the next were told at debug level",
        "peer 1000 is mad",
    ]


def test_refusals_do_not_fill_the_log(
    make_node: Callable, make_raw_end: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "_complaints", Complaints(reception._logger, clock=lambda: 0.0))
    target, end = make_node(1).listen(), make_raw_end(3)
    wrong = messages.LinkRequest(end.identity, 77)
    for _ in range(complaints.MAX_COMPLAINTS + 20):
        channel = end.connect(target)
        channel.send(wrong)
        assert isinstance(channel.receive(), messages.Refusal)
        channel.close()
    refused = [record for record in caplog.records if "refused cluster 3" in record.getMessage()]
    assert len([record for record in refused if record.levelno == logging.WARNING]) == complaints.MAX_COMPLAINTS


@pytest.mark.parametrize(
    "said", [b"garbage!", messages.frame(messages.Linked()), messages.frame(messages.Farewell()) * 2], ids=str
)
def test_why_a_session_was_ended_is_told(
    make_node: Callable, make_raw_end: Callable, caplog: pytest.LogCaptureFixture, said: bytes, eventually: Callable
) -> None:
    channel = make_raw_end(3).link(make_node(1).listen())
    channel.send(said)
    while channel.receive() is not None:
        pass
    eventually(lambda: "is gone: it has broken the rules: " in caplog.text, "the reason is told")
    assert "cluster 3 " in caplog.text


def test_why_a_connection_was_ended_is_told(
    make_node: Callable, make_raw_end: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    channel = make_raw_end(3).connect(make_node(1).listen())
    channel.send(messages.Commit())
    assert channel.receive() is None
    assert "a connection was dropped: unexpected message Commit" in caplog.text


# -- nobody has all of the event loop, or of the turns ----------------------------------------------------------------


def test_who_comes_to_a_rendezvous_again_and_again_keeps_nobody_waiting(make_raw_end: Callable) -> None:
    class Crowded(Rendezvous):
        """Somebody who is sent away is always there already."""

        async def accept(self) -> SegmentSocket:
            nonlocal came
            came += 1
            if came == 1000:
                raise OSError("nobody else has a turn")
            stranger = SegmentSocket.__new__(SegmentSocket)
            stranger.require_same_user = wrong_user  # type: ignore[method-assign]
            stranger.close = lambda: None  # type: ignore[method-assign]
            return stranger

    def wrong_user() -> None:
        raise ProtocolError("a process of another user")

    came = 0

    async def meet_for_a_while() -> None:
        with Crowded() as rendezvous:
            meeting = asyncio.create_task(memory_handover._meet(rendezvous, make_raw_end(3).identity, bytes(16)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            meeting.cancel()
            await asyncio.gather(meeting, return_exceptions=True)

    asyncio.run(meet_for_a_while())
    assert 0 < came < 10


@pytest.mark.parametrize("request_of", ["a neighbour", "a peer on another host"])
def test_a_handshake_ends_when_the_other_end_hangs_up(
    engines: list[Any],
    make_node: Callable,
    make_raw_end: Callable,
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    request_of: str,
) -> None:
    """And not when its time is up: otherwise a few who come and go would have every turn."""
    monkeypatch.setattr(reception, "HANDSHAKE_TIMEOUT_S", 3600.0)
    node, end = make_node(1), make_raw_end(3)
    target = node.listen()
    if request_of == "a neighbour":
        channel, _ = end.request_link(target)
    else:
        channel, _ = end.request_introduction(target)
        channel.send(end.offer())
        assert isinstance(channel.receive(), messages.EngineOffer)
    (listening,) = node.service._listeners._listeners.values()
    assert listening.is_busy
    channel.close()
    eventually(lambda: not listening.is_busy, "its turn is free again")


def test_links_of_peers_that_came_and_went_leave_room(
    make_node: Callable, make_raw_end: Callable, eventually: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_LINKS", 3)
    node = make_node(1)
    target = node.listen()
    links = node.service._endpoint.links
    for cluster_id in range(10, 20):
        make_raw_end(cluster_id).link(target).close()
        eventually(lambda cluster_id=cluster_id: links[cluster_id].state == "BROKEN", "the link is broken")
    assert len(links.held()) == 3
    assert make_node(2).link(target) == "LLM_SUCCESS"
    assert 2 in node.linked()


def test_a_broken_link_that_was_made_here_is_kept(
    make_node: Callable, make_raw_end: Callable, eventually: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held until it is unlinked here (api D63)."""
    monkeypatch.setattr(endpoint, "MAX_LINKS", 1)
    node, end = make_node(1), make_raw_end(2)
    code: list[str] = []
    linking = threading.Thread(target=lambda: code.append(node.link(end.target)))
    linking.start()
    channel = end.accept()
    end.welcome(channel)
    assert channel.receive() == messages.Commit()
    channel.send(messages.Linked())
    linking.join()
    assert code == ["LLM_SUCCESS"]
    channel.close()
    links = node.service._endpoint.links
    eventually(lambda: links[2].state == "BROKEN", "the link is broken")
    other = make_raw_end(3)
    channel = other.connect(node.listen())
    channel.send(messages.LinkRequest(other.identity, 1))
    assert isinstance(channel.receive(), messages.Refusal)
    assert links[2].state == "BROKEN"


def test_sessions_are_bounded(make_node: Callable, make_raw_end: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_SESSIONS", 1)
    node = make_node(1)
    target = node.listen()
    make_raw_end(2).link(target)
    refused = make_raw_end(3)
    channel = refused.connect(target)
    channel.send(messages.LinkRequest(refused.identity, 1))
    answer = channel.receive()
    assert isinstance(answer, messages.Refusal)
    assert answer.for_now
    assert "has 1 sessions, that is the limit" in answer.reason
    assert node.linked() == [2]


# -- addresses -------------------------------------------------------------------------------------------------------


def begin_of(asker: ConversingNode, owner: ConversingNode, row_bytes: int) -> Begin:
    """What is said first where a cache with rows of so many bytes is pulled."""
    source, target = owner.cache(row_bytes, 1, seed=1), asker.cache(row_bytes)
    line = Line(asker, owner)
    asker.store.pull_cache(CacheKeyByIdAndIndex(owner.cluster_id, source.cache_id, 0), target)
    (begin,) = [request for request in line.requests if isinstance(request, Begin)]
    line.close()
    asker.lines.remove(line)
    return begin


def test_staging_memory_that_reaches_beyond_the_last_address(
    make_conversing: Callable[..., ConversingNode], network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the asker's engine says that there is some: the first part lies below the last address, the third not."""
    asker, owner = make_conversing(1), make_conversing(2)
    begin = begin_of(asker, owner, LARGE)
    acquaint(asker, owner)
    last_parts = 2 * staging.STRETCH_BYTES
    metadata = json.dumps([asker.engine.own_name, [[2**64 - last_parts, last_parts]]]).encode()
    with closing(RawAsker(owner, asker.engine.own_name)) as guest:
        guest.say(msgspec.structs.replace(begin, staging=2**64 - last_parts, metadata=metadata))
        while guest.hear() is not None:
            pass
        assert guest.dropped.wait(20)
    assert "staging memory at 0xffffffffffc00000" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    owner.store.check()


def test_an_owner_whose_staging_memory_reaches_beyond_the_last_address(
    make_conversing: Callable[..., ConversingNode],
) -> None:
    asker, owner = (make_conversing(number, remote_accessible=True) for number in (1, 2))
    target, source = owner.cache(LARGE, 1, seed=1), asker.cache(LARGE, seed=2)
    line = Line(asker, owner)
    line.alter_answer = lambda answer: [
        msgspec.structs.replace(answer, staging=2**64 - 1) if isinstance(answer, Begun) else answer
    ]
    with pytest.raises(LLMException) as refused:
        asker.store.push_cache(CacheKeyByIdAndIndex(2, target.cache_id, 0), source)
    assert refused.value.status_code is LLMStatusCode.LLM_FAILED


# -- one peer that asks as fast as it can ----------------------------------------------------------------------------


def test_a_guest_that_begins_and_abandons_as_fast_as_it_can(
    make_conversing: Callable[..., ConversingNode], eventually: Callable
) -> None:
    """Others are served meanwhile, and what it does not read is not kept for it."""
    asker, owner, honest = make_conversing(1), make_conversing(2), make_conversing(3)
    begin = begin_of(asker, owner, SMALL)
    source, target = owner.cache(SMALL, 7, seed=7), honest.cache(SMALL)
    Line(honest, owner)
    acquaint(asker, owner)
    pairs = b"".join(
        transfer_messages.frame(message)
        for number in range(1, 500)
        for message in (
            msgspec.structs.replace(begin, number=begin.number + number),
            transfer_messages.Abandon(begin.number + number),
        )
    )
    guest = RawAsker(owner, asker.engine.own_name)
    stop = threading.Event()

    def flood() -> None:
        guest.socket.settimeout(0.05)
        try:
            while not stop.is_set():
                guest.socket.sendall(pairs)
        except OSError:
            return  # the owner does not take it, or has hung up

    flooding = threading.Thread(target=flood)
    flooding.start()
    for _ in range(20):
        honest.store.pull_cache(CacheKeyByIdAndIndex(2, source.cache_id, 0), target)
    stop.set()
    flooding.join()
    guest.close()
    assert guest.dropped.wait(20)
    eventually(owner.is_served_by_nobody, "nothing of it is open")
