"""Whoever spoils an introduction, or dies in the middle of one, leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest

from llmdd.link import messages, reception
from llmdd.transport.engine import MAX_METADATA

pytestmark = pytest.mark.usefixtures("engines", "no_descriptor_leaks")


@pytest.fixture
def served(make_distant: Callable):
    """A node on another host, and where it listens."""
    node = make_distant(1)
    return node, node.listen()


def know_nobody_else(engines: list) -> bool:
    """Whether the engines know nobody but, at most, the one whose link came to be committed."""
    return all(len(engine.peers) <= 1 for engine in engines)


def assert_sound(served: tuple, engines: list, make_distant: Callable, eventually: Callable) -> None:
    """Nothing is left of earlier attempts, and the node still takes new links."""
    node, target = served
    eventually(lambda: know_nobody_else(engines), "whoever was not linked is forgotten")
    assert node.linked() == []
    newcomer = make_distant(9)
    assert newcomer.link(target) == "LLM_SUCCESS"
    assert newcomer.unlink(target) == "LLM_SUCCESS"


# -- who calls on a node --------------------------------------------------------------------------------------------


def test_an_introduction_step_by_step(served: tuple, make_raw_end: Callable) -> None:
    node, target = served
    connections = make_raw_end(2).introduce(target)
    assert node.linked() == []
    connections.session.send(messages.Commit())
    assert connections.session.receive() == messages.Linked()
    assert node.linked() == [2]
    connections.session.send(messages.Farewell(), messages.Detached())
    assert [connections.session.receive(), connections.session.receive()] == [messages.Detached(), None]
    assert node.linked() == []
    assert [connections.asking.receive(), connections.asked.receive()] == [None, None]


def test_the_conversations_outlive_the_promise(served: tuple, make_raw_end: Callable) -> None:
    """What is said on one connection may overtake what was said on another: an early end would look like a death."""
    _, target = served
    connections = make_raw_end(2).introduce(target)
    connections.session.send(messages.Commit(), messages.Farewell())
    assert [connections.session.receive(), connections.session.receive()] == [messages.Linked(), messages.Detached()]
    for conversation in (connections.asking, connections.asked):
        conversation.socket.setblocking(False)
        with pytest.raises(BlockingIOError):  # neither a word nor the end
            conversation.socket.recv(1)
        conversation.socket.setblocking(True)
    connections.session.send(messages.Detached())
    assert [channel.receive() for channel in connections] == [None, None, None]


def test_the_conversations_may_come_in_any_order(served: tuple, make_raw_end: Callable) -> None:
    end, (_, target) = make_raw_end(2), served
    channel, welcome = end.request_introduction(target)
    channel.send(end.offer())
    assert isinstance(channel.receive(), messages.EngineOffer)
    channel.send(messages.Commit())
    for asks in ("acceptor", "initiator"):
        end.converse(target, welcome.token, asks)
    assert channel.receive() == messages.Linked()


def test_a_conversation_with_a_wrong_token_is_sent_away(
    served: tuple, engines: list, make_raw_end: Callable, make_distant: Callable, eventually: Callable
) -> None:
    end, (_, target) = make_raw_end(2), served
    channel, welcome = end.request_introduction(target)
    channel.send(end.offer())
    assert isinstance(channel.receive(), messages.EngineOffer)
    for asks in ("initiator", "acceptor"):
        assert end.converse(target, bytes(16), asks).receive() is None
    for asks in ("initiator", "acceptor"):
        end.converse(target, welcome.token, asks)
    channel.send(messages.Commit())
    assert channel.receive() == messages.Linked(), "the handshake was not spoiled"
    channel.close()
    eventually(lambda: served[0].linked() == [], "it has left")
    assert served[0].unlink(end.target, force=True) == "LLM_SUCCESS"
    assert_sound(served, engines, make_distant, eventually)


def test_a_token_is_good_for_one_conversation_of_each_kind(served: tuple, make_raw_end: Callable) -> None:
    end, (_, target) = make_raw_end(2), served
    channel, welcome = end.request_introduction(target)
    channel.send(end.offer())
    assert isinstance(channel.receive(), messages.EngineOffer)
    first = end.converse(target, welcome.token, "initiator")
    assert end.converse(target, welcome.token, "initiator").receive() is None
    second = end.converse(target, welcome.token, "acceptor")
    channel.send(messages.Commit())
    assert channel.receive() == messages.Linked()
    for asks in ("initiator", "acceptor"):
        assert end.converse(target, welcome.token, asks).receive() is None
    channel.send(messages.Farewell(), messages.Detached())
    assert [first.receive(), second.receive()] == [None, None], "these were the ones"


def test_a_conversation_out_of_nowhere(
    served: tuple, engines: list, make_raw_end: Callable, make_distant: Callable, eventually: Callable
) -> None:
    for asks in ("initiator", "acceptor"):
        assert make_raw_end(2).converse(served[1], bytes(16), asks).receive() is None
    assert engines == []
    assert_sound(served, engines, make_distant, eventually)


def test_a_conversation_before_the_offers(served: tuple, make_raw_end: Callable) -> None:
    end, (_, target) = make_raw_end(2), served
    channel, welcome = end.request_introduction(target)
    assert end.converse(target, welcome.token, "initiator").receive() is None
    channel.send(end.offer())
    assert isinstance(channel.receive(), messages.EngineOffer)


@pytest.mark.parametrize("coming", [[], ["initiator"], ["acceptor"]], ids=str)
def test_a_conversation_that_never_comes(
    served: tuple,
    engines: list,
    make_raw_end: Callable,
    make_distant: Callable,
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    coming: list[str],
) -> None:
    end, (_, target) = make_raw_end(2), served
    with monkeypatch.context() as patch:
        patch.setattr(reception, "HANDSHAKE_TIMEOUT_S", 0.5)
        channel, welcome = end.request_introduction(target)
        channel.send(end.offer())
        assert isinstance(channel.receive(), messages.EngineOffer)
        conversations = [end.converse(target, welcome.token, asks) for asks in coming]
        refusal = channel.receive()
    assert isinstance(refusal, messages.Refusal)
    assert "took longer than" in refusal.reason
    assert [conversation.receive() for conversation in conversations] == [None] * len(coming)
    assert channel.receive() is None
    assert_sound(served, engines, make_distant, eventually)


@pytest.mark.parametrize(
    "said",
    [
        messages.HEADER.pack(messages.MAX_OFFER_PAYLOAD + 1),
        b"garbage!",
        messages.Commit(),
        messages.Detached(),
        messages.Segments(bytes(16), {}, 0),
    ],
    ids=["too large", "garbage", "commit", "detached", "memory"],
)
def test_something_else_than_an_offer(
    served: tuple,
    engines: list,
    make_raw_end: Callable,
    make_distant: Callable,
    eventually: Callable,
    said: messages.Message | bytes,
) -> None:
    channel, _ = make_raw_end(2).request_introduction(served[1])
    channel.send(said)
    refusal = channel.receive()
    assert isinstance(refusal, messages.Refusal)
    assert refusal.status_code == 0xFFFFFFFF
    assert channel.receive() is None
    assert_sound(served, engines, make_distant, eventually)


def test_an_offer_that_no_engine_can_use(
    served: tuple, engines: list, make_raw_end: Callable, make_distant: Callable, eventually: Callable
) -> None:
    channel, _ = make_raw_end(2).request_introduction(served[1])
    channel.send(messages.EngineOffer(bytes(MAX_METADATA)))
    refusal = channel.receive()
    assert isinstance(refusal, messages.Refusal)
    assert "the nixl engine cannot use what cluster 2 offers: this is no metadata" in refusal.reason
    assert channel.receive() is None
    assert_sound(served, engines, make_distant, eventually)


def test_an_offer_that_is_another_ones(
    served: tuple, engines: list, make_raw_end: Callable, make_distant: Callable
) -> None:
    """Who links again as the same incarnation cannot lead the engine to somebody else."""
    node, target = served
    friend = make_distant(3)
    assert friend.link(target) == "LLM_SUCCESS"
    (of_friend,) = (engine for engine in engines if engine.own_name.startswith("llmdd-3-"))
    end = make_raw_end(2)
    end.introduce(target)
    channel, _ = end.request_introduction(target)
    channel.send(messages.EngineOffer(of_friend.metadata()))
    refusal = channel.receive()
    assert isinstance(refusal, messages.Refusal)
    assert "this is not the metadata of" in refusal.reason
    assert node.linked() == [3]


def test_an_offer_where_none_is_due(served: tuple, make_raw_end: Callable, eventually: Callable) -> None:
    node, target = served
    end = make_raw_end(2)
    stranger = end.connect(target)
    stranger.send(end.offer())
    assert stranger.receive() is None
    stranger = end.connect(target)
    stranger.send(messages.HEADER.pack(messages.MAX_PAYLOAD + 1))
    assert stranger.receive() is None
    connections = end.introduce(target)
    connections.session.send(messages.Commit())
    assert connections.session.receive() == messages.Linked()
    connections.session.send(end.offer())
    eventually(lambda: node.linked() == [], "the link with the vandal is broken")


def test_pieces_of_memory_are_not_asked_for_over_such_a_link(
    served: tuple, make_raw_end: Callable, eventually: Callable
) -> None:
    node, target = served
    for number, said in enumerate((messages.Fetch(1, 0, 1, 0, 0, 1), messages.Stored(1, 0))):
        connections = make_raw_end(number + 2).introduce(target)
        connections.session.send(messages.Commit())
        assert connections.session.receive() == messages.Linked()
        connections.session.send(said)
        eventually(lambda: node.linked() == [], "the link with the vandal is broken")


STEPS = ("request", "offer", "one conversation", "both conversations", "commit", "link")


@pytest.mark.parametrize("step", STEPS)
def test_an_initiator_that_dies_after(
    served: tuple,
    engines: list,
    make_raw_end: Callable,
    make_distant: Callable,
    eventually: Callable,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setattr(reception, "HANDSHAKE_TIMEOUT_S", 1.0)
    end, (node, target) = make_raw_end(2), served
    channel, welcome = end.request_introduction(target)
    connections = [channel]
    if step in STEPS[1:]:
        channel.send(end.offer())
        assert isinstance(channel.receive(), messages.EngineOffer)
    if step in STEPS[2:]:
        connections.append(end.converse(target, welcome.token, "initiator"))
    if step in STEPS[3:]:
        connections.append(end.converse(target, welcome.token, "acceptor"))
    if step in STEPS[4:]:
        channel.send(messages.Commit())
    if step in STEPS[5:]:
        assert channel.receive() == messages.Linked()
    for connection in connections:
        connection.close()
    if step in STEPS[4:]:
        # Dead after its commit it has a link that is broken, which is there until it is dropped.
        eventually(lambda: node.unlink(end.target, force=True) == "LLM_SUCCESS" and not node.linked(), "it is dropped")
    assert_sound(served, engines, make_distant, eventually)


@pytest.mark.parametrize("which", ["session", "asking"])
def test_a_link_of_which_the_other_end_cuts_a_connection_is_broken(
    served: tuple, engines: list, make_raw_end: Callable, make_distant: Callable, eventually: Callable, which: str
) -> None:
    end, (node, target) = make_raw_end(2), served
    connections = end.introduce(target)
    connections.session.send(messages.Commit())
    assert connections.session.receive() == messages.Linked()
    getattr(connections, which).close()
    eventually(lambda: node.linked() == [], "the loss is noticed")
    assert node.unlink(end.target, force=True) == "LLM_SUCCESS"
    assert_sound(served, engines, make_distant, eventually)


# -- whom a node calls on -------------------------------------------------------------------------------------------


def linking(node: object, end: object, play: Callable, timeout_ms: int = 5000) -> str:
    """The code of a link to ``end``, which plays its part meanwhile."""
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(node.link(end.target, timeout_ms)))  # type: ignore[attr-defined]
    thread.start()
    play()
    thread.join()
    return result[0]


def test_an_acceptor_step_by_step(make_distant: Callable, make_raw_end: Callable) -> None:
    node, end = make_distant(1), make_raw_end(2)
    assert linking(node, end, lambda: end.accept_introduction().session.send(messages.Linked())) == "LLM_SUCCESS"
    assert node.linked() == [2]


@pytest.mark.parametrize(
    "offer", [messages.EngineOffer(b"?"), messages.Linked(), messages.Refusal(0, "no"), b"\xff" * 9]
)
def test_an_acceptor_that_offers_nothing_of_use(
    make_distant: Callable,
    make_raw_end: Callable,
    engines: list,
    eventually: Callable,
    offer: messages.Message | bytes,
) -> None:
    node, end = make_distant(1), make_raw_end(2)

    def play() -> None:
        channel = end.accept()
        channel.receive()
        channel.send(messages.Welcome(msgspec.structs.replace(end.identity, host="elsewhere"), "", bytes(16)), offer)

    usable = isinstance(offer, messages.EngineOffer)
    assert linking(node, end, play) == ("LLM_LINK_FAILED" if usable else "LLM_FAILED")
    eventually(lambda: know_nobody_else(engines), "whoever was not linked is forgotten")


STEPS_OF_ACCEPTOR = ("request", "welcome", "offer", "one conversation", "both conversations", "commit")


@pytest.mark.parametrize("step", STEPS_OF_ACCEPTOR)
def test_an_acceptor_that_dies_after(
    make_distant: Callable, make_raw_end: Callable, engines: list, eventually: Callable, step: str
) -> None:
    node, end = make_distant(1), make_raw_end(2)

    def play() -> None:
        channel = end.accept()
        connections = [channel]
        channel.receive()
        if step in STEPS_OF_ACCEPTOR[1:]:
            channel.send(messages.Welcome(msgspec.structs.replace(end.identity, host="elsewhere"), "", bytes(16)))
            assert isinstance(channel.receive(), messages.EngineOffer)
        if step in STEPS_OF_ACCEPTOR[2:]:
            channel.send(end.offer())
        if step in STEPS_OF_ACCEPTOR[3:]:
            connections.append(end.accept())
        if step in STEPS_OF_ACCEPTOR[4:]:
            connections.append(end.accept())
        if step in STEPS_OF_ACCEPTOR[5:]:
            assert channel.receive() == messages.Commit()
        end.close()

    assert linking(node, end, play) == "LLM_FAILED"
    assert node.linked() == []
    eventually(lambda: know_nobody_else(engines), "whoever was not linked is forgotten")


def test_an_acceptor_that_falls_silent(
    make_distant: Callable, make_raw_end: Callable, engines: list, eventually: Callable
) -> None:
    node, end = make_distant(1), make_raw_end(2)
    made = []
    assert linking(node, end, lambda: made.append(end.accept_introduction()), timeout_ms=500) == "LLM_TIMEOUT"
    (connections,) = made
    assert connections.session.receive() == messages.Detached()
    connections.session.send(messages.Linked(), messages.Detached())
    assert connections.session.receive() is None
    eventually(lambda: know_nobody_else(engines), "a late verdict changes nothing")
    assert node.linked() == []
