"""Links between ends that have keys: only those who are allowed come in, and nobody hangs at the door."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from link_keys import DAY, NOW, Key, join, write
from rank_tables import rank_table

from llmdd import LLMStatusCode
from llmdd.link import LinkTarget, channel, listener, messages, secure_connection, transfer_messages
from llmdd.link.channel import Channel
from llmdd.link.keys import LinkKeys, UnusableKeys
from llmdd.link.secure_connection import NotAuthenticated, SecureConnection
from llmdd.link.security import LinkSecurity
from llmdd.link.transfer_messages import Frames, Unsent

LOCALHOST = "127.0.0.1"
PATIENCE_S = 20.0

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

ONE, TWO, OTHER = Key.make("one"), Key.make("two"), Key.make("other")
STRANGER = Key.make("stranger")
AUTHORITY = Key.make("authority", is_authority=True)
ALLOWED = join([ONE, TWO, OTHER])


def security(key: Key, allowed: str = ALLOWED) -> LinkSecurity:
    return LinkSecurity(LinkKeys(key.text, allowed))


@pytest.fixture(params=["on one host", "between hosts"])
def make_end(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes nodes that share memory, or that an engine connects."""
    if request.param == "on one host":
        return request.getfixturevalue("make_node")
    request.getfixturevalue("engines")
    return request.getfixturevalue("make_distant")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[str], bool]:
    """Whether something was logged, in words like these."""
    caplog.set_level(logging.INFO, logger="llmdd.link")
    return lambda words: any(words in record.getMessage() for record in caplog.records)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners that wait for nobody long."""
    monkeypatch.setattr(listener, "REQUEST_TIMEOUT_S", 0.2)


# -- who is allowed ---------------------------------------------------------------------------------------------------


def test_two_that_allow_each_other(make_end: Callable, logged: Callable) -> None:
    one, two = make_end(1, security=security(ONE)), make_end(2, security=security(TWO))
    target = two.listen()
    for _ in range(2):
        assert one.link(target) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([2], [1])
        assert one.link(target) == "LLM_ALREADY_LINK"
        assert one.unlink(target) == "LLM_SUCCESS"
        assert (one.linked(), two.linked()) == ([], [])
    assert logged(f"cluster 2 has the key {TWO.fingerprint}") and logged(f"cluster 1 has the key {ONE.fingerprint}")


def test_nothing_crosses_in_the_clear(make_end: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []
    one, two = make_end(1, security=security(ONE)), make_end(2, security=security(TWO))
    decrypt = SecureConnection._decrypt

    def note(connection: SecureConnection, data: bytes) -> None:
        received.append(data)
        decrypt(connection, data)

    monkeypatch.setattr(SecureConnection, "_decrypt", note)
    assert one.link(two.listen()) == "LLM_SUCCESS"
    crossed = b"".join(received)
    assert len(crossed) > 500
    assert not [word for word in (b"cluster_id", b"commit", b"token", b"welcome") if word in crossed]


def refused_pairs() -> Iterator[Any]:
    ended = Key.make("ended", ends=NOW - DAY)
    to_come = Key.make("admitted by one", signed_by=ONE)
    yield pytest.param(security(STRANGER), security(TWO), "is not allowed", id="the caller is a stranger")
    yield pytest.param(security(ONE), security(STRANGER), "is not allowed", id="the acceptor is a stranger")
    yield pytest.param(security(ONE), security(TWO, join([TWO])), "is not allowed", id="the caller is not allowed")
    yield pytest.param(security(ONE, join([ONE])), security(TWO), "is not allowed", id="the acceptor is not allowed")
    for name, pair in (("caller", (ended, TWO)), ("acceptor", (ONE, ended))):
        keys = [security(key, ALLOWED + ended.public_text) for key in pair]
        yield pytest.param(*keys, "certificate has expired", id=f"the key of the {name} has ended")
    yield pytest.param(security(to_come), security(TWO), "is not allowed", id="one who is allowed admits nobody")
    yield pytest.param(security(ONE), LinkSecurity(), "speaks without TLS", id="the acceptor has no keys")
    yield pytest.param(LinkSecurity(), security(TWO), "speaks without TLS", id="the caller has no keys")


@pytest.mark.parametrize(("caller", "acceptor", "why"), list(refused_pairs()))
def test_two_that_do_not(
    make_node: Callable, logged: Callable, caller: LinkSecurity, acceptor: LinkSecurity, why: str
) -> None:
    one, two = make_node(1, security=caller), make_node(2, security=acceptor)
    target = two.listen()
    assert one.link(target) == "LLM_LINK_FAILED"
    assert one.unlink(target) == "LLM_UNLINK_FAILED"
    assert (one.linked(), two.linked(), one.bits_out(), two.bits_out()) == ([], [], 0, 0)
    assert logged(why)
    # Whichever end finds it out, both are told: the caller by its code and the log, the acceptor by the log.
    assert logged("cluster 2 does not answer") or logged("cannot link cluster 2")
    assert logged(f"a connection from {LOCALHOST} was dropped") or why == "is not allowed"


def test_whom_an_authority_has_signed(make_end: Callable) -> None:
    signed = [security(Key.make(name, signed_by=AUTHORITY), AUTHORITY.public_text) for name in ("one", "two")]
    one, two = make_end(1, security=signed[0]), make_end(2, security=signed[1])
    assert one.link(two.listen()) == "LLM_SUCCESS"


def test_one_key_of_an_authority_allows_that_alone(make_node: Callable) -> None:
    one, other = (Key.make(name, signed_by=AUTHORITY) for name in ("one", "other"))
    two = make_node(2, security=security(TWO, one.public_text))
    target = two.listen()
    assert make_node(1, security=security(one)).link(target) == "LLM_SUCCESS"
    assert make_node(3, security=security(other)).link(target) == "LLM_LINK_FAILED"


def test_members_of_a_communicator(make_instance: Callable, eventually: Callable, logged: Callable) -> None:
    keys = [{"LinkKey": key.text, "LinkAllowedKeys": ALLOWED} for key in (ONE, TWO, OTHER)]
    members = [make_instance(number, ours=own) for number, own in enumerate(keys, start=1)]
    table = rank_table(3)
    numbers = [member.link("pool", [1, 2, 3], table) for member in members]
    for member, number in zip(members, numbers, strict=True):
        eventually(lambda member=member, number=number: member.status(number) == "OK", "they are connected")
    for member in members[1:]:
        members[0].bind(7, 70)
        assert member.pull(1, 7) == 70
    assert logged(f"cluster 3 has the key {OTHER.fingerprint}")


@pytest.mark.parametrize("stranger", ["has another key", "has none"])
def test_a_stranger_is_no_member(
    make_instance: Callable, eventually: Callable, logged: Callable, stranger: str
) -> None:
    theirs = {"LinkKey": STRANGER.text, "LinkAllowedKeys": ALLOWED} if stranger == "has another key" else {}
    ours = {"LinkKey": ONE.text, "LinkAllowedKeys": ALLOWED}
    members = [make_instance(1, LinkTotalTime="1", ours=ours), make_instance(2, LinkTotalTime="1", ours=theirs)]
    table = rank_table(2)
    numbers = [member.link("pool", [1, 2], table) for member in members]
    eventually(
        lambda: [each.status(one) for each, one in zip(members, numbers, strict=True)] == ["FAILED"] * 2, "failed"
    )
    assert logged("it does not allow the key of this end" if theirs else "this end speaks only TLS")


# -- what belongs to a link -------------------------------------------------------------------------------------------


def test_a_conversation_of_another_key(
    engines: list, make_distant: Callable, monkeypatch: pytest.MonkeyPatch, logged: Callable, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG, logger="llmdd.link")
    one, two = make_distant(1, security=security(ONE)), make_distant(2, security=security(TWO))
    others = LinkKeys(OTHER.text, ALLOWED).credentials()

    async def connect_again(self: Channel) -> Channel:
        return await channel._authenticated(await channel._connect(socket.AF_INET, self._socket.getpeername()), others)

    monkeypatch.setattr(Channel, "connect_again", connect_again)
    assert one.link(two.listen()) == "LLM_FAILED"
    assert logged("it comes from another key than the link")
    assert (one.linked(), two.linked()) == ([], [])


def test_only_the_peer_of_a_link_drops_or_replaces_it(make_end: Callable, logged: Callable) -> None:
    one, two = make_end(1, security=security(ONE)), make_end(2, security=security(TWO))
    target = two.listen()
    assert one.link(target) == "LLM_SUCCESS"
    namesake = make_end(1, security=security(OTHER))
    namesake.service._endpoint._identity = one.service._endpoint._identity  # it knows everything but the key
    assert namesake.unlink(target) == "LLM_UNLINK_FAILED"
    assert namesake.link(target) == "LLM_LINK_FAILED"
    assert (one.linked(), two.linked()) == ([2], [1])
    assert logged("was made with another key") and logged("is linked here, and has another key")
    assert one.unlink(target) == "LLM_SUCCESS"
    assert namesake.link(target) == "LLM_SUCCESS"


# -- new keys ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Of a key, and of the allowed ones."""
    key, allowed = tmp_path / "one.key", tmp_path / "allowed.crt"
    write(key, ONE.text)
    write(allowed, ALLOWED, 0o644)
    return key, allowed


def test_keys_are_read_again(make_end: Callable, files: tuple[Path, Path], logged: Callable) -> None:
    key, allowed = files
    one = make_end(1, security=LinkSecurity(LinkKeys(str(key), str(allowed))))
    two = make_end(2, security=security(TWO, ALLOWED + STRANGER.public_text))
    target, back = two.listen(), one.listen()
    assert one.link(target) == "LLM_SUCCESS"
    write(key, STRANGER.text)
    assert one.unlink(target) == "LLM_SUCCESS", "with the key that the link was made with"
    assert one.link(target) == "LLM_SUCCESS"
    assert logged(f"cluster 1 has the key {STRANGER.fingerprint}")
    assert one.unlink(target) == "LLM_SUCCESS"

    write(allowed, join([ONE]), 0o644)
    assert one.link(target) == "LLM_LINK_FAILED"
    assert two.link(back) == "LLM_LINK_FAILED"

    write(allowed, "nothing", 0o644)
    assert one.link(target) == "LLM_LINK_FAILED"
    assert two.link(back) == "LLM_LINK_FAILED"
    assert logged("has no certificates")
    allowed.unlink()
    assert two.link(back) == "LLM_LINK_FAILED"

    write(allowed, ALLOWED, 0o644)
    assert two.link(back) == "LLM_SUCCESS"


UNUSABLE = {
    "a key that others can read": (ONE.text, 0o644, "its mode is 0644: chmod 600 "),
    "a key that the group can read": (ONE.text, 0o640, "its mode is 0640: chmod 600 "),
    "no private key": (ONE.public_text, 0o600, "is no key"),
    "no certificate": (ONE.private_text(), 0o600, "is no key"),
    "the certificate of another": (ONE.private_text() + TWO.public_text, 0o600, "is no key"),
    "encrypted": (ONE.private_text(b"secret") + ONE.public_text, 0o600, "is encrypted"),
    "empty": ("", 0o600, "is no key"),
    "much too long": ("#" * (1 << 20) + ONE.text, 0o600, "has more than 1048576 bytes"),
}


@pytest.mark.parametrize("text, mode, why", UNUSABLE.values(), ids=UNUSABLE)
def test_a_key_that_cannot_be_used(files: tuple[Path, Path], text: str, mode: int, why: str) -> None:
    key, allowed = files
    write(key, text, mode)
    with pytest.raises(UnusableKeys, match=why) as refused:
        LinkKeys(str(key), str(allowed))
    assert str(refused.value).startswith(f"link_key {str(key)!r}")


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [("", 0o644, "no certificates"), (ONE.private_text(), 0o644, "no certificates"), (ALLOWED, 0o666, "chmod o-w")],
    ids=["empty", "a private key", "writable by all"],
)
def test_allowed_keys_that_cannot_be_used(files: tuple[Path, Path], text: str, mode: int, why: str) -> None:
    key, allowed = files
    write(allowed, text, mode)
    with pytest.raises(UnusableKeys, match=why):
        LinkKeys(str(key), str(allowed))


def test_a_file_that_is_not_there(files: tuple[Path, Path]) -> None:
    key, allowed = files
    with pytest.raises(UnusableKeys, match=r"link_key '/nowhere' cannot be read: .*No such file"):
        LinkKeys("/nowhere", str(allowed))
    with pytest.raises(UnusableKeys, match="link_allowed_keys '/nowhere' cannot be read"):
        LinkKeys(str(key), "/nowhere")


# -- at the door ------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(make_node: Callable) -> tuple[Any, LinkTarget]:
    """A node that has keys, and where it listens."""
    node = make_node(2, security=security(TWO))
    return node, node.listen()


def still_links(make_node: Callable, node: Any, target: LinkTarget) -> None:
    newcomer = make_node(9, security=security(ONE))
    assert newcomer.link(target) == "LLM_SUCCESS"
    assert newcomer.unlink(target) == "LLM_SUCCESS"
    assert node.linked() == []


def hello() -> bytes:
    """How a handshake begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = LinkKeys(ONE.text, ALLOWED).credentials().calling.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def calls(target: LinkTarget) -> socket.socket:
    sock = socket.create_connection((target.host, target.port))
    sock.settimeout(PATIENCE_S)
    return sock


def is_hung_up_on(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


SAID = {
    "nothing": b"",
    "half a handshake": hello()[:100],
    "the beginning of a handshake": hello(),
    "the head of a record": b"\x16\x03\x01\x40\x00",
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_who_stalls_is_sent_away(
    guarded: tuple[Any, LinkTarget], make_node: Callable, hasty: None, said: bytes
) -> None:
    node, target = guarded
    with calls(target) as stalling:
        stalling.sendall(said)
        still_links(make_node, node, target)
        assert is_hung_up_on(stalling)


GARBAGE = {
    "noise": bytes(range(255, 0, -1)) * 40,
    "noise that begins as TLS does": b"\x16\x03\x01" + bytes(range(255, 0, -1)) * 40,
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "noise behind a handshake's beginning": hello() + bytes(5000),
    "a frame that is no message": b"\x00\x00\x00\x05abcde",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
def test_garbage(guarded: tuple[Any, LinkTarget], make_node: Callable, logged: Callable, said: bytes) -> None:
    node, target = guarded
    with calls(target) as stranger:
        stranger.sendall(said)
        assert is_hung_up_on(stranger)
    assert logged(f"a connection from {LOCALHOST} was dropped")
    still_links(make_node, node, target)


def test_as_many_as_like_stall_and_keep_nobody_out(guarded: tuple[Any, LinkTarget], make_node: Callable) -> None:
    node, target = guarded
    stalling = [calls(target) for _ in range(listener.MAX_SILENT + 20)]
    for sock in stalling:
        sock.sendall(hello()[:50])
    still_links(make_node, node, target)
    for sock in stalling:
        sock.close()


def test_who_has_no_keys_is_told_so(guarded: tuple[Any, LinkTarget], make_raw_end: Callable) -> None:
    _, target = guarded
    end = make_raw_end(1)
    plain = end.connect(target)
    plain.send(messages.LinkRequest(end.identity, 2))
    refusal = plain.receive()
    assert isinstance(refusal, messages.Refusal)
    assert refusal.status_code == LLMStatusCode.LLM_LINK_FAILED
    assert refusal.reason == "this end speaks only TLS: it has keys"
    assert plain.receive() is None


def test_an_acceptor_that_hangs_up(make_node: Callable, logged: Callable) -> None:
    node = make_node(1, security=security(ONE))
    with socket.create_server((LOCALHOST, 0)) as server, ThreadPoolExecutor() as pool:
        hanging_up = pool.submit(lambda: server.accept()[0].close())
        assert node.link(LinkTarget(2, *server.getsockname())) == "LLM_LINK_FAILED"
        hanging_up.result(PATIENCE_S)
    assert logged("has it keys (link_key, link_allowed_keys), as this end has?")


def test_an_acceptor_that_stalls(make_node: Callable) -> None:
    node = make_node(1, security=security(ONE))
    with socket.create_server((LOCALHOST, 0)) as server:
        assert node.link(LinkTarget(2, *server.getsockname()), 200) == "LLM_TIMEOUT"


def test_old_tls_is_not_spoken(guarded: tuple[Any, LinkTarget], tmp_path: Path) -> None:
    _, target = guarded
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(write(tmp_path / "key", ONE.text))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with calls(target) as old, pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        context.wrap_socket(old)


def test_who_shows_no_key(guarded: tuple[Any, LinkTarget], make_node: Callable, logged: Callable) -> None:
    node, target = guarded
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with calls(target) as sock, context.wrap_socket(sock) as keyless:
        keyless.sendall(messages.frame(messages.Farewell()))
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            keyless.recv(1)
    assert logged("a key is required, and none was shown")
    still_links(make_node, node, target)


# -- the connection ---------------------------------------------------------------------------------------------------


class Ends:
    """Two ends of a connection that know each other."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        for sock in (here, there):
            sock.setblocking(False)
        self.below = here, there
        credentials = [LinkKeys(key.text, ALLOWED).credentials() for key in (ONE, TWO)]
        self.here = SecureConnection(here, credentials[0], accepts=False)
        self.there = SecureConnection(there, credentials[1], accepts=True)

    async def meet(self) -> None:
        await asyncio.gather(self.here.authenticate(), self.there.authenticate())

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    asyncio.run(made.meet())
    yield made
    made.close()


def test_each_end_knows_the_other(ends: Ends) -> None:
    assert (ends.here.peer_fingerprint, ends.there.peer_fingerprint) == (TWO.fingerprint, ONE.fingerprint)


def test_nothing_stays_behind_that_was_received(ends: Ends) -> None:
    """Who has received all that he asked for may wait for the socket."""
    said = os.urandom(300_000)
    heard, offered = b"", memoryview(said)
    while len(heard) < len(said):
        with suppress(BlockingIOError):
            offered = offered[ends.here.send(offered) :] if offered else offered
        try:
            heard += ends.there.recv(transfer_messages.RECEIVED_AT_ONCE)
        except BlockingIOError:
            continue
        assert not ends.there._decrypted
    assert heard == said
    with pytest.raises(BlockingIOError):
        ends.there.recv(1)


def test_what_is_not_asked_for_is_kept(ends: Ends) -> None:
    assert ends.here.send(b"some words") == 10
    assert [ends.there.recv(4), ends.there.recv(100)] == [b"some", b" words"]


def test_what_is_sent_counts_when_it_has_gone(ends: Ends) -> None:
    """Also where the socket takes nothing more in the middle of a record: then there is something left to be sent."""
    unsent, heard = Unsent(ends.here), Frames()
    for number in range(200):
        unsent.add(transfer_messages.Finished(number, [7] * 10_000))
    assert not unsent.send()
    assert not unsent.withdraw(0)
    numbers: list[int] = []
    sent = False
    while not sent:
        sent = unsent.send()
        try:
            heard.feed(ends.there.recv(transfer_messages.RECEIVED_AT_ONCE))
        except BlockingIOError:
            continue
        while (answer := heard.next_answer()) is not None:
            numbers.append(answer.number)
    while len(numbers) < 200:
        try:
            heard.feed(ends.there.recv(transfer_messages.RECEIVED_AT_ONCE))
        except BlockingIOError:
            break
        while (answer := heard.next_answer()) is not None:
            numbers.append(answer.number)
    assert numbers == list(range(200))


@pytest.mark.parametrize("cut", ["in a record", "between records"])
def test_a_connection_that_is_cut(cut: str) -> None:
    async def talk() -> None:
        ends = Ends()
        here, there = (Channel(sock) for sock in ends.below)
        keys = [LinkKeys(key.text, ALLOWED).credentials() for key in (ONE, TWO)]
        await asyncio.gather(here.authenticate(keys[0], accepts=False), there.authenticate(keys[1], accepts=True))
        if cut == "in a record":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(there.receive(), 0.05)
            ends.below[0].send(b"\x17\x03\x03\x01\x00abc")
        here.close()
        with pytest.raises(channel.ConnectionEnded):
            await there.receive()
        there.close()

    asyncio.run(talk())


def test_a_record_that_was_changed_on_its_way(ends: Ends) -> None:
    below = ends.below[1]
    ends.here.send(b"first")
    ends.here.send(b"second")
    record = bytearray(below.recv(4096))
    record[-1] ^= 1
    ends.below[0].send(record)
    assert ends.there.recv(100) == b"first"
    with pytest.raises(NotAuthenticated):
        ends.there.recv(100)


def test_who_is_asked_again_and_again_for_new_keys_is_not_filled_up(ends: Ends) -> None:
    """TLS owes an answer to each request for a key update, and Python's cannot make one: so it is played."""
    ends.there._unsent += bytes(secure_connection._MAX_OWED + (1 << 20))
    ends.there._outgoing.write(b"an answer")
    ends.here.send(b"something")
    assert ends.there.recv(100) == b"something"
    with pytest.raises(NotAuthenticated, match="does not take the answers"):
        ends.there.recv(100)


def test_nothing_is_left_in_the_file_system(
    make_node: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(os.listdir("/dev/shm"))
    one, two = make_node(1, security=security(ONE)), make_node(2, security=security(TWO))
    assert one.link(two.listen()) == "LLM_SUCCESS"
    with open("/proc/net/unix") as sockets:
        names = [line.split()[-1] for line in sockets if "llmdd" in line]
    assert all(name.startswith("@") for name in names), "names in no file system"
    assert not list(tmp_path.iterdir())
    assert {name for name in set(os.listdir("/dev/shm")) - before if "llmdd" in name} == set()
