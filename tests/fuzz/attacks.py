"""What a stranger, or a peer gone mad, says to a node: drawn from bytes, one attack after another."""

from __future__ import annotations

import os
import secrets
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import numpy as np
from besieged import NEIGHBOUR, SERVER, Besieged, Log, besieged
from decoders import REQUESTS
from drawing import Draw, Forge, damaged
from programmable_engine import Network

from llmdd._core.store import CacheStore
from llmdd.link import messages, transfer_messages
from llmdd.link.messages import HEADER
from llmdd.transport import staging

PATIENCE_S = 0.25
MAX_MOVES = 12
MAX_CONNECTIONS = 12
LINK_MESSAGES = messages.Message.__args__  # type: ignore[attr-defined]

#: What may end a connection without anything being wrong.
PARTING = (messages.UnlinkRequest, messages.Detached, messages.Farewell)

#: Who attacks: never by the name of a healthy peer, since without keys a cluster is whoever says that it is.
ATTACKERS = [100, 101, 102]


class Connection:
    """One connection of an attacker's."""

    def __init__(self, address: tuple[str, int], is_conversation: bool = False) -> None:
        self.socket = socket.create_connection(address)
        self.socket.settimeout(PATIENCE_S)
        self.is_conversation = is_conversation
        self.was_hung_up = False
        self.is_shut = False

    def say(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            self.was_hung_up = self.was_hung_up or not self.is_shut

    def hear(self) -> Any:
        """The next message of a link; None if there is none."""
        header = self._exactly(HEADER.size)
        payload = self._exactly(HEADER.unpack(header)[0]) if header else b""
        return messages.decode(payload) if payload else None

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except TimeoutError:
                return b""
            except OSError:
                part = b""
            if not part:
                self.was_hung_up = True
                return b""
            data += part
        return data

    def look(self) -> None:
        """Take what has come, if anything has."""
        while select.select([self.socket], [], [], 0)[0]:
            try:
                if not self.socket.recv(1 << 16):
                    self.was_hung_up = True
                    return
            except OSError:
                self.was_hung_up = True
                return

    def shut(self) -> None:
        self.is_shut = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class Attacker:
    """Attacks a node once.

    Parameters
    ----------
    besieged
        Whose node.
    draw
        What it decides by.
    store
        Memory that it can hand over.
    memory
        Where an honest one would have its staging memory.
    """

    def __init__(self, victim: Besieged, draw: Draw, store: CacheStore, memory: Any, network: Network) -> None:
        self.victim = victim
        self.draw = draw
        self.store = store
        self.network = network
        self.memory = memory
        self.engine: Any = None
        self.address = (str(victim.server.target.host), int(victim.server.target.port or 0))
        self.cluster_id = draw.pick(ATTACKERS)
        here = victim.server.service._endpoint._identity
        self.identity = msgspec.structs.replace(
            here, cluster_id=self.cluster_id, incarnation=secrets.randbits(63), transport=""
        )
        self.may_part = False
        self.number = 0
        self.connections: list[Connection] = []
        self.said: list[bytes] = []
        self.known: dict[str, list[Any]] = {
            "cluster_id": ATTACKERS,
            "expected_cluster_id": [SERVER, SERVER, NEIGHBOUR],
            "incarnation": [self.identity.incarnation, here.incarnation, 0],
            "protocol_version": [self.identity.protocol_version],
            "layout_version": [self.identity.layout_version],
            "spec_checksum": [self.identity.spec_checksum],
            "host": [self.identity.host, "elsewhere"],
            "transport": ["", "nixl", "carrier pigeon"],
            "pid": [os.getpid()],
            "remote_accessible": [victim.remote_accessible],
            "number": [1, 1, 2, 3],
            "slot": [0, 1, 2, 3],
            "generation": [0, 1, 2],
            "token": [bytes(16)],
            "stretch": [0, 1, 2, 3],
            "staging": [int(memory.ctypes.data), 0, 2**64 - staging.STRETCH_BYTES],
            "id": [victim.small.cache_id, victim.large.cache_id, victim.untouched.cache_id, 100, 102],
            "addresses": [(victim.small.tensor_addrs[0],) * 2, (victim.untouched.tensor_addrs[0],) * 2],
        }
        self.forge = Forge(draw, self.known)

    # -- what honest peers do too -----------------------------------------------------------------------------------

    def connect(self, is_conversation: bool = False) -> Connection:
        self.connections.append(Connection(self.address, is_conversation))
        return self.connections[-1]

    def say(self, connection: Connection, message: Any) -> None:
        module = transfer_messages if isinstance(message, REQUESTS) else messages
        try:
            frame = module.frame(message)  # type: ignore[attr-defined]
        except ValueError:
            frame = HEADER.pack(1 << 31)  # larger than may be
        self.said.append(frame)
        connection.say(frame)

    def bare(self) -> None:
        """A connection, and nothing said."""
        self.connect()

    def local(self) -> None:
        """The handshake of a neighbour, up to some step."""
        steps = min(4, 1 + self.draw.below(8))
        connection = self.connect()
        self.say(connection, messages.LinkRequest(self.identity, SERVER))
        welcome = connection.hear()
        if not isinstance(welcome, messages.Welcome):
            return
        self.known["token"].append(welcome.token)
        if steps > 1 and not self.visit(welcome):
            return
        if steps > 2:
            self.say(connection, messages.Commit())
        if steps > 3:
            connection.hear()

    def visit(self, welcome: messages.Welcome) -> bool:
        """Hand something over; whether something came in return."""
        draw = self.draw
        description, fds = self.store.export()
        segments = messages.Segments(welcome.token, dict(description), 0)
        payload = messages.encode(segments)
        fds = list(fds)
        kind = draw.below(8)
        if kind == 1:
            payload = damaged(draw, payload)
        elif kind == 2:
            payload = messages.encode(self.forge.altered(segments))
        elif kind == 3:
            fds = (fds * 5)[: draw.below(10)]
        elif kind == 4:
            fds.reverse()
        elif kind == 5:
            numbers = {name: draw.integer() for name in description}
            payload = messages.encode(msgspec.structs.replace(segments, description=numbers))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix:
            unix.settimeout(PATIENCE_S)
            try:
                unix.connect(f"\0llmdd-{welcome.rendezvous}")
                socket.send_fds(unix, [payload], fds)
                received = socket.recv_fds(unix, messages.MAX_PAYLOAD, 8)[1]
            except OSError:
                return False
        for fd in received:
            os.close(fd)
        return bool(received)

    def introduced(self) -> None:
        """The handshake of a peer on another host, up to some step."""
        steps = min(5, 1 + self.draw.below(16))
        identity = msgspec.structs.replace(self.identity, host="elsewhere")
        connection = self.connect()
        self.say(connection, messages.LinkRequest(identity, SERVER))
        welcome = connection.hear()
        if not isinstance(welcome, messages.Welcome):
            return
        self.known["token"].append(welcome.token)
        if steps > 1:
            self.say(connection, messages.EngineOffer(self.metadata()))
            connection.hear()
        for asks in ("initiator", "acceptor")[: max(0, steps - 2)]:
            self.say(self.connect(asks == "initiator"), messages.Converse(welcome.token, asks))
        if steps > 4:
            self.say(connection, messages.Commit())
            connection.hear()

    def news(self) -> bytes:
        """What is said of the attacker's engine beside a request: nothing, as a rule."""
        return self.metadata() if self.draw.one_in(4) else b""

    def metadata(self) -> bytes:
        """What an engine of the attacker's says of itself: that it may be written to where nothing is, too."""
        if self.engine is None:
            self.engine = self.network.open(f"attacker {self.identity.incarnation}")
            self.engine.register(int(self.memory.ctypes.data), self.memory.nbytes, writable=True)
            self.engine.connect(self.victim.server.service._engines._opening["nixl"].result().engine.metadata())
        described = self.engine.metadata()
        kind = self.draw.below(6)
        if kind == 1:
            return damaged(self.draw, described) or b"?"
        if kind == 2:
            nowhere = [[2**64 - (64 << 20), 64 << 20], [0, 1 << 40]]
            return msgspec.json.encode([self.engine.own_name, nowhere])
        return bytes(described)

    # -- what they do not -------------------------------------------------------------------------------------------

    def move(self) -> None:
        draw = self.draw
        if not self.connections:
            self.connect()
        conversations = [each for each in self.connections if each.is_conversation]
        connection = draw.pick(conversations if conversations and draw.below(3) else self.connections)
        kind = draw.below(16)
        if kind < 6:
            self.say(connection, self.anything(connection))
        elif kind == 6:
            payload = damaged(draw, self.payload_of(self.anything(connection)))
            connection.say(HEADER.pack(len(payload)) + payload)
        elif kind == 7 and self.said:
            connection.say(draw.pick(self.said))
        elif kind == 8:
            frame = HEADER.pack(draw.integer(0, 2**32 - 1)) + draw.raw(draw.below(64))
            connection.say(frame)
        elif kind == 9 and self.said:
            frame = draw.pick(self.said)
            connection.say(frame[: draw.below(len(frame) + 1)])
        elif kind == 10:
            frames = b"".join(
                HEADER.pack(len(payload)) + payload
                for payload in (self.payload_of(self.anything(connection)) for _ in range(1 + draw.below(4)))
            )
            connection.say(frames * (1 + draw.below(20)))
        elif kind == 11:
            connection.shut()
        elif kind == 12:
            connection.close()
            self.connections.remove(connection)
        elif kind == 13 and len(self.connections) < MAX_CONNECTIONS:
            self.open()
        elif kind == 14 and len(self.connections) < MAX_CONNECTIONS:
            asks = draw.pick(["initiator", "acceptor"])
            self.say(self.connect(), messages.Converse(draw.pick(self.known["token"]), asks))
        else:
            connection.look()

    def open(self) -> None:
        """Begin something."""
        self.draw.pick([self.bare, self.local, self.introduced, self.introduced])()

    def anything(self, connection: Connection) -> Any:
        """Any message; it may be one after which a connection is closed in good order."""
        message = self.drawn(connection)
        self.may_part = self.may_part or isinstance(message, PARTING)
        return message

    def drawn(self, connection: Connection) -> Any:
        """A message that has its place on this connection, more often than not."""
        draw = self.draw
        if connection.is_conversation == (not draw.one_in(6)):
            kind = draw.below(4)
            if kind == 0:
                begin = draw.pick(self.victim.templates)
                staged = draw.pick(self.known["staging"]) if begin.staging and draw.below(4) else begin.staging
                self.number += 1
                return msgspec.structs.replace(begin, number=self.number, metadata=self.news(), staging=staged)
            if kind == 1:
                begin = draw.pick(self.victim.templates)
                items = [self.forge.altered(item) for item in begin.items] * (1 + draw.below(3))
                self.number += 1
                return self.forge.altered(msgspec.structs.replace(begin, number=self.number, items=items))
            return self.forge.message(draw.pick(REQUESTS[1:]))
        if draw.one_in(8):
            peer = draw.pick([self.victim.neighbour, self.victim.distant])
            other = msgspec.structs.replace(self.identity, cluster_id=peer.cluster_id)
            return messages.UnlinkRequest(other, SERVER)  # of a namesake
        return self.forge.message(draw.pick(LINK_MESSAGES))

    def payload_of(self, message: Any) -> bytes:
        encoder = msgspec.msgpack.Encoder()
        return encoder.encode(message)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.engine is not None:
            self.engine.close()


def attacked(victim: Besieged, data: bytes, store: CacheStore, memory: Any, network: Network, log: Log) -> None:
    """One attack, after which nothing is left of it."""
    draw = Draw(data)
    log.told = 0
    attacker = Attacker(victim, draw, store, memory, network)
    try:
        attacker.open()
        for _ in range(MAX_MOVES):
            if draw.is_spent:
                break
            attacker.move()
        was_hung_up = any(connection.was_hung_up for connection in attacker.connections)
    finally:
        attacker.close()
    victim.require_unharmed()
    assert not log.wrong, "\n".join(log.wrong)
    assert log.told or attacker.may_part or not was_hung_up, "a connection was dropped, and nothing tells why"
    if attacker.engine is not None:
        network.engines.pop(attacker.engine.own_name)


@contextmanager
def siege() -> Iterator[Callable[[bytes], None]]:
    """Attacks two live nodes, by turns of the first byte."""
    memory = np.zeros(staging.PARTS * staging.STRETCH_BYTES, np.uint8)
    with besieged() as (victims, network, log):
        store = CacheStore(cluster_id=ATTACKERS[0], device_pool=(1 << 20, 12), timeout_ms=1000)
        for victim in victims:
            victim.settle()
        try:
            yield lambda data: attacked(victims[data[0] % 2 if data else 0], data[1:], store, memory, network, log)
        finally:
            store.close()
