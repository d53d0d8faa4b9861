"""The way through the test passes everything on, and counts, delays, holds and cuts it as told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .control_link import ControlLink
from .network import SWITCH_ADDRESS, Network
from .test_network import Place, receive

PATIENCE_S = 20.0


class Talk:
    """A connection from one host to another, through the test."""

    def __init__(self, network: Network, open_control_link: Callable[..., ControlLink], delay_s: float) -> None:
        self._here, self._there = (Place(host.namespace) for host in network.hosts)
        self.server = self._there.make(socket.create_server, (network.hosts[1].address, 0))
        self.link = open_control_link(network, self.server.getsockname(), delay_s)
        self.ends: list[socket.socket] = []
        self.asker, self.answerer = self.connect()

    def connect(self) -> list[socket.socket]:
        ends = [self._here.make(socket.create_connection, self.link.address), self.server.accept()[0]]
        for end in ends:
            end.settimeout(PATIENCE_S)
        self.ends += ends
        return ends

    def ask(self, question: bytes = b"?") -> None:
        self.asker.sendall(question)

    def answer(self, answer: bytes = b"!") -> None:
        """When the question has come."""
        receive(self.answerer, 1)
        self.answerer.sendall(answer)

    def exchange(self) -> None:
        self.ask()
        self.answer()
        receive(self.asker, 1)

    def close(self) -> None:
        for end in (*self.ends, self.server):
            end.close()
        self._here.close()
        self._there.close()


@pytest.fixture
def make_talk(lasting_network: Network, open_control_link: Any) -> Iterator[Callable[..., Talk]]:
    made: list[Talk] = []

    def make(delay_s: float = 0.0) -> Talk:
        made.append(Talk(lasting_network, open_control_link, delay_s))
        return made[-1]

    yield make
    for talk in made:
        talk.close()


def test_everything_passes_in_its_order(make_talk: Any) -> None:
    talk = make_talk()
    data = bytes(range(256)) * 5000
    talk.asker.sendall(data)
    assert receive(talk.answerer, len(data)) == data
    talk.answerer.sendall(data)
    assert receive(talk.asker, len(data)) == data
    assert talk.answerer.getpeername()[0] == SWITCH_ADDRESS


def test_the_end_of_each_direction_passes(make_talk: Any, eventually: Any) -> None:
    talk = make_talk()
    talk.asker.shutdown(socket.SHUT_WR)
    assert talk.answerer.recv(1) == b""
    talk.answerer.sendall(b"last word")
    talk.answerer.close()
    assert receive(talk.asker, 9) == b"last word"
    assert talk.asker.recv(1) == b""
    eventually(lambda: talk.link.connections == 0, "the connection has ended")


def test_round_trips_are_counted(make_talk: Any) -> None:
    talk = make_talk()
    assert talk.link.round_trips(talk.exchange) == 1
    assert talk.link.round_trips(lambda: [talk.exchange() for _ in range(5)]) == 5
    assert talk.link.round_trips(lambda: None) == 0


def test_what_is_said_at_once_is_one_turn(make_talk: Any) -> None:
    talk = make_talk(delay_s=0.05)

    def three_questions_at_once() -> None:
        for _ in range(3):
            talk.ask()
        receive(talk.answerer, 2)
        talk.answer()
        receive(talk.asker, 1)

    assert talk.link.round_trips(three_questions_at_once) == 1


def test_each_connection_has_turns_of_its_own(make_talk: Any) -> None:
    talk = make_talk()
    asker, answerer = talk.connect()
    talk.ask()
    receive(talk.answerer, 1)
    answerer.sendall(b"!")
    receive(asker, 1)
    assert talk.link.turns == 2
    assert talk.link.connections == 2


def test_a_delay_is_in_each_direction(make_talk: Any) -> None:
    talk = make_talk(delay_s=0.1)
    begun = time.monotonic()
    talk.exchange()
    assert time.monotonic() - begun >= 0.2


def test_what_is_held_comes_later(make_talk: Any) -> None:
    talk = make_talk()
    talk.link.hold()
    talk.ask()
    talk.asker.settimeout(0.2)
    with pytest.raises(TimeoutError):
        talk.asker.recv(1)
    talk.asker.settimeout(PATIENCE_S)
    talk.link.release()
    talk.answer()
    assert receive(talk.asker, 1) == b"!"


@pytest.mark.parametrize(("turn", "answered"), [(1, False), (2, True)])
def test_a_turn_that_is_held(make_talk: Any, turn: int, answered: bool) -> None:
    talk = make_talk()
    talk.exchange()
    talk.link.stop_at(turn, "hold")
    talk.ask()
    if answered:
        talk.answer()
    assert talk.link.stopped.wait(PATIENCE_S)
    for end in (talk.asker, talk.answerer):
        end.settimeout(0.1)
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(PATIENCE_S)
    talk.link.release()
    if not answered:
        talk.answer()
    assert receive(talk.asker, 1) == b"!"
    talk.exchange()


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("turn", [1, 2])
def test_a_turn_that_is_cut(make_talk: Any, turn: int, eventually: Any) -> None:
    talk = make_talk()
    other_asker, other_answerer = talk.connect()
    talk.link.stop_at(turn, "cut")
    talk.ask()
    if turn == 2:
        talk.answer()
    assert talk.link.stopped.wait(PATIENCE_S)
    assert all(ended(end) for end in (talk.asker, talk.answerer, other_asker, other_answerer))
    eventually(lambda: talk.link.connections == 0, "every connection has ended")
    talk.asker, talk.answerer = talk.connect()
    talk.exchange()


def test_nobody_who_listens_is_told_as_it_is(make_talk: Any) -> None:
    talk = make_talk()
    talk.server.close()
    with talk._here.make(socket.create_connection, talk.link.address) as asker:
        asker.settimeout(PATIENCE_S)
        assert ended(asker)


def test_a_closed_one_ends_everything(make_talk: Any) -> None:
    talk = make_talk()
    talk.link.close()
    talk.link.close()
    assert ended(talk.asker) and ended(talk.answerer)
    with pytest.raises(ConnectionRefusedError):
        talk._here.make(socket.create_connection, talk.link.address)
