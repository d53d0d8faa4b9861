"""The two ends of a run on two hosts know each other by keys: whoever does not is sent away, and the wait goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from link_keys import Key, join

from llmdd.demo import introduction
from llmdd.demo.channel import OtherEndGone
from llmdd.demo.choices import Choices
from llmdd.demo.introduction import Address, CannotMeet, Meeting, Reception, call_prefill
from llmdd.demo.tunnel import tunnel
from llmdd.link.keys import LinkKeys
from llmdd.link.secure_connection import NotAuthenticated

PATIENCE_SECONDS = 30
PROMPTS = [b"one", b"two"]
CHOICES = Choices(tokens=3)
PREFILL, DECODE, STRANGER = (Key.make(name) for name in ("prefill", "decode", "stranger"))
ALLOWED = join([PREFILL, DECODE])

Become = Callable[[Key | None], None]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Whoever meets next has this key, or none."""

    def become(key: Key | None) -> None:
        for name, text in (("LLMDD_LINK_KEY", key and key.text), ("LLMDD_LINK_ALLOWED_KEYS", key and ALLOWED)):
            if text:
                monkeypatch.setenv(name, text)
            else:
                monkeypatch.delenv(name, raising=False)

    monkeypatch.delenv("LLMDD_OPEN_LINKS", raising=False)
    return become


@pytest.fixture
def waiting(become: Become) -> Iterator[Callable[[], Meeting]]:
    """A prefill end that has keys and waits at the address that is the function's; called, whom it has met."""
    become(PREFILL)
    with Reception(Address("127.0.0.1", 0)) as reception, ThreadPoolExecutor() as pool:
        met = pool.submit(reception.wait_for_decode, PROMPTS, CHOICES, PATIENCE_SECONDS)

        def meeting() -> Meeting:
            return met.result(PATIENCE_SECONDS)

        meeting.address = reception.address  # type: ignore[attr-defined]
        yield meeting


def test_two_that_allow_each_other(waiting, become: Become) -> None:
    become(DECODE)
    decode, agreed = call_prefill(waiting.address, CHOICES, PATIENCE_SECONDS)
    prefill = waiting()
    assert (agreed.requests, decode.there, prefill.there) == (2, "127.0.0.1", "127.0.0.1")
    for one, other in ((decode, prefill), (prefill, decode)):
        one.channel.send(agreed)
        assert other.channel.receive() == agreed
    decode.channel.close()
    with pytest.raises(OtherEndGone):
        prefill.channel.receive()
    prefill.channel.close()


@pytest.mark.parametrize("key", [STRANGER, None], ids=["another key", "no key"])
def test_a_stranger_is_sent_away_and_the_wait_goes_on(waiting, become: Become, key: Key | None) -> None:
    become(key)
    with pytest.raises(CannotMeet, match=r"does not allow the key of this end|this end has no keys"):
        call_prefill(waiting.address, CHOICES, PATIENCE_SECONDS)
    become(DECODE)
    decode, _ = call_prefill(waiting.address, CHOICES, PATIENCE_SECONDS)
    decode.channel.close()
    waiting().channel.close()


def test_a_prefill_end_without_keys(become: Become) -> None:
    become(None)
    with Reception(Address("127.0.0.1", 0)) as reception, ThreadPoolExecutor() as pool:
        met = pool.submit(reception.wait_for_decode, PROMPTS, CHOICES, PATIENCE_SECONDS)
        become(DECODE)
        with pytest.raises(CannotMeet, match=r"hung up|without TLS"):
            call_prefill(reception.address, CHOICES, PATIENCE_SECONDS)
        become(None)
        decode, _ = call_prefill(reception.address, CHOICES, PATIENCE_SECONDS)
        decode.channel.close()
        met.result(PATIENCE_SECONDS).channel.close()


def test_beyond_loopback_it_takes_keys(become: Become) -> None:
    become(None)
    with pytest.raises(CannotMeet, match=r"--key and --allowed-keys .* or .*--open-links"):
        Reception(Address("0.0.0.0", 0))


def test_who_stalls_does_not_hold_up_the_wait(monkeypatch: pytest.MonkeyPatch, waiting, become: Become) -> None:
    monkeypatch.setattr(introduction, "HELLO_LIMIT_SECONDS", 1.0)
    with socket.create_connection((waiting.address.host, waiting.address.port)) as stalling:
        stalling.settimeout(PATIENCE_SECONDS)
        assert stalling.recv(1) == b"", "it is hung up on"
    become(DECODE)
    decode, _ = call_prefill(waiting.address, CHOICES, PATIENCE_SECONDS)
    decode.channel.close()
    waiting().channel.close()


# -- the tunnel -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[list[socket.socket]]:
    keys = [LinkKeys(key.text, ALLOWED) for key in (DECODE, PREFILL)]
    with ThreadPoolExecutor() as pool:
        opened = [
            pool.submit(tunnel, sock, own, PATIENCE_SECONDS, accepts=accepts)
            for sock, own, accepts in zip(socket.socketpair(), keys, (False, True), strict=True)
        ]
        made = [each.result(PATIENCE_SECONDS) for each in opened]
    for sock in made:
        sock.settimeout(PATIENCE_SECONDS)
    yield made
    for sock in made:
        sock.close()
    for thread in threading.enumerate():
        if thread.name == "llmdd demo tunnel":
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def test_much_in_both_directions_at_once(ends: list[socket.socket]) -> None:
    said = [bytes([number]) * 3_000_000 for number in (1, 2)]

    def read(sock: socket.socket) -> bytes:
        received = b""
        while len(received) < len(said[0]):
            received += sock.recv(1 << 20)
        return received

    with ThreadPoolExecutor() as pool:
        heard = [pool.submit(read, sock) for sock in reversed(ends)]
        for sock, words in zip(ends, said, strict=True):
            pool.submit(sock.sendall, words)
        assert [each.result(PATIENCE_SECONDS) for each in heard] == said


@pytest.mark.parametrize("closing", [0, 1])
def test_what_was_said_last_arrives(ends: list[socket.socket], closing: int) -> None:
    def say_it() -> None:
        ends[closing].sendall(bytes(1_000_000))
        ends[closing].close()

    received = 0
    with ThreadPoolExecutor() as pool:
        pool.submit(say_it)
        while part := ends[1 - closing].recv(1 << 20):
            received += len(part)
    assert received == 1_000_000


def test_an_end_that_says_nothing() -> None:
    here, there = socket.socketpair()
    with there, pytest.raises(NotAuthenticated, match="does not go on"):
        tunnel(here, LinkKeys(DECODE.text, ALLOWED), 0.1, accepts=True)
