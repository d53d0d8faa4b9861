"""Every byte that crosses a socket.

A frame on TCP is a length (four bytes, network order) and so many bytes of MessagePack: one message of the union
:data:`Message`, at most :data:`MAX_PAYLOAD` bytes; a few kinds may be longer (:func:`largest_payload`), where they are
expected. On the Unix socket one packet is one message, :class:`Segments`, without a length; the memory descriptors
travel beside it.

A link is made like this (the initiator is the end where ``link_clusters`` was called; of two
members of a communicator, the one with the higher rank)::

    initiator                                acceptor
        | -------- LinkRequest ----------------> |   who I am, whom I expect
        | <------- Welcome --------------------- |   who I am, where to hand over memory     (or Refusal)
        | ======== Segments + memory (Unix) ===> |
        | <======= Segments + memory (Unix) ==== |                                           (or Refusal, on TCP)
        | -------- Commit ---------------------> |   nothing has happened to me meanwhile
        | <------- Linked ---------------------- |   the link stands                         (or Refusal, or Crossed)

That is the way of two ends on one host, which share memory. Where they are on different hosts, or one of them insists
on it (``Identity.transport``), an engine moves the bytes; what it needs to know takes the place of the memory::

    initiator                                acceptor
        | -------- LinkRequest ----------------> |   who I am, whom I expect
        | <------- Welcome --------------------- |   who I am; there is no rendezvous        (or Refusal)
        | -------- EngineOffer ----------------> |   how your engine finds mine              (or Refusal)
        | <------- EngineOffer ----------------- |   how your engine finds mine              (or Refusal)
        | ======== Converse (of its own) ======> |   on this connection the initiator asks
        | ======== Converse (of its own) ======> |   on this connection the acceptor asks
        | -------- Commit ---------------------> |   nothing has happened to me meanwhile
        | <------- Linked ---------------------- |   the link stands                         (or Refusal, or Crossed)

The two connections that begin with ``Converse`` lead to the address at which the first has reached the acceptor, and
belong to the link from then on; what is said on them stands in ``transfer_messages``.

The connection then stays open as the *session* of the link. All that is said on it:

``Farewell``
    The link is dropped in good order: drop your end too, when the transfer in progress has ended.
``Detached``
    Your memory is no longer mapped here; my pin bit is yours again. An end that has said so asks for nothing more, but
    still answers.
``Fetch``, answered by ``Fetched``; ``Store``, answered by ``Stored``
    A piece of registered memory, where the kernel lets only its owner touch it (``courier``). The answer comes before
    the next request. Not between ends that have an engine.
``Renew``, answered by ``Renewed``
    Lets the leases of keys of the receiver end later. Only between ends that have an engine: others do it themselves.

``UnlinkRequest`` travels on a connection of its own, because it must reach an end that has no session with us any more;
the answer, ``Unlinked``, comes when the other end has let go.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from llmdd._core.tables import PEER_LIMIT
from llmdd.transport.engine import MAX_METADATA

PROTOCOL_VERSION = 4

MAX_PAYLOAD = 16 * 1024
MAX_PIECE = 512 * 1024
MAX_BULK_PAYLOAD = MAX_PIECE + 1024
MAX_OFFER_PAYLOAD = MAX_METADATA + 1024
HEADER = struct.Struct("!I")

#: Keys that one message may name.
MAX_RENEWED = 256

UInt64 = Annotated[int, Meta(ge=0)]  # MessagePack has none larger
PeerBit = Annotated[int, Meta(ge=0, lt=PEER_LIMIT)]
ShortText = Annotated[str, Meta(max_length=200)]
Token = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Piece = Annotated[bytes, Meta(max_length=MAX_PIECE)]
Metadata = Annotated[bytes, Meta(min_length=1, max_length=MAX_METADATA)]
Description = Annotated[dict[Annotated[str, Meta(max_length=64)], int], Meta(max_length=64)]


class Identity(Struct, frozen=True):
    """Who speaks.

    Any two versions must understand each other up to here, so fields may be added, with a default, and never removed.
    ``incarnation`` tells a cluster from the one that had its id before a restart. ``transport`` is the engine that the
    cluster insists on; empty: memory may be shared where it can be.
    """

    protocol_version: int
    layout_version: int
    spec_checksum: ShortText
    cluster_id: UInt64
    incarnation: UInt64
    host: ShortText
    pid: int
    remote_accessible: bool
    transport: ShortText = ""


class CommunicatorTag(Struct, frozen=True):
    """The communicator that a link is to be part of.

    ``name`` and ``agreement`` are digests: of its name, and of everything that its members must have been told alike.
    ``number`` is the sender's own for it.
    """

    name: Digest
    agreement: Digest
    number: UInt64


class LinkRequest(Struct, frozen=True, tag="link"):
    """Asks ``expected_cluster_id`` for a link, one-sided or as a member of a communicator."""

    identity: Identity
    expected_cluster_id: UInt64
    communicator: CommunicatorTag | None = None


class UnlinkRequest(Struct, frozen=True, tag="unlink"):
    """Asks ``expected_cluster_id`` to drop its link to the sender."""

    identity: Identity
    expected_cluster_id: UInt64


class Welcome(Struct, frozen=True, tag="welcome"):
    """The request is in order: hand your memory over at ``rendezvous``, and show ``token`` there.

    Where an engine moves the bytes ``rendezvous`` is empty, and the token is for ``Converse``.
    """

    identity: Identity
    rendezvous: ShortText
    token: Token


class Segments(Struct, frozen=True, tag="segments"):
    """Describes the memory beside it, and grants a pin bit in it."""

    token: Token
    description: Description
    peer_bit: PeerBit


class EngineOffer(Struct, frozen=True, tag="engine_offer"):
    """What the receiver's engine needs in order to read the sender's memory."""

    metadata: Metadata


class Converse(Struct, frozen=True, tag="converse"):
    """The first word on a connection on which one end of the link of ``token`` asks the other for transfers."""

    token: Token
    asks: Literal["initiator", "acceptor"]


class Commit(Struct, frozen=True, tag="commit"):
    """The initiator has all that it needs of the other end and wants the link to stand."""


class Linked(Struct, frozen=True, tag="linked"):
    """The link stands at the acceptor."""


class Crossed(Struct, frozen=True, tag="crossed"):
    """Another link between the two has come, or is coming, to stand meanwhile; this one does not."""


class Refusal(Struct, frozen=True, tag="refusal"):
    """No; ``status_code`` is for the caller, ``reason`` for the log. ``for_now``: asked again, it may be yes."""

    status_code: int
    reason: Annotated[str, Meta(max_length=1000)]
    for_now: bool = False


class Unlinked(Struct, frozen=True, tag="unlinked"):
    """The end asked to drop its link has done so, or had none."""


class Farewell(Struct, frozen=True, tag="farewell"):
    """The sender drops its end in good order."""


class Detached(Struct, frozen=True, tag="detached"):
    """The sender transfers no more over this link, ever."""


class Fetch(Struct, frozen=True, tag="fetch"):
    """Asks for a piece of a tensor of the receiver's registered memory."""

    number: UInt64
    slot: UInt64
    generation: UInt32
    tensor: UInt64
    offset: UInt64
    size: Annotated[int, Meta(ge=1, le=MAX_PIECE)]


class Fetched(Struct, frozen=True, tag="fetched"):
    """The piece that ``Fetch`` ``number`` asked for; empty unless ``status_code`` is success."""

    number: UInt64
    status_code: int
    data: Piece


class Store(Struct, frozen=True, tag="store"):
    """Asks the receiver to put ``data`` into a tensor of its registered memory."""

    number: UInt64
    slot: UInt64
    generation: UInt32
    tensor: UInt64
    offset: UInt64
    data: Piece


class Stored(Struct, frozen=True, tag="stored"):
    """What became of ``Store`` ``number``."""

    number: UInt64
    status_code: int


class NamedKey(Struct, frozen=True, array_like=True, gc=False):
    """A key of the receiver's, or a batch slot by the id of its cache (``kind`` 4)."""

    kind: Annotated[int, Meta(ge=1, le=4)]
    id: UInt64
    model_id: UInt64
    batch_index: UInt64


class Renew(Struct, frozen=True, tag="renew"):
    """Asks that the leases of these keys end so many milliseconds from now, or later."""

    number: UInt64
    lease_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    keys: Annotated[list[NamedKey], Meta(min_length=1, max_length=MAX_RENEWED)]


class Renewed(Struct, frozen=True, tag="renewed"):
    """Whether each key of ``Renew`` ``number`` is bound, and its lease, if it has one, was renewed."""

    number: UInt64
    renewed: Annotated[list[bool], Meta(max_length=MAX_RENEWED)]


Message: TypeAlias = (
    LinkRequest
    | UnlinkRequest
    | Welcome
    | Segments
    | EngineOffer
    | Converse
    | Commit
    | Linked
    | Crossed
    | Refusal
    | Unlinked
    | Farewell
    | Detached
    | Fetch
    | Fetched
    | Store
    | Stored
    | Renew
    | Renewed
)

_LARGE: dict[type, int] = {Fetched: MAX_BULK_PAYLOAD, Store: MAX_BULK_PAYLOAD, EngineOffer: MAX_OFFER_PAYLOAD}

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class ProtocolError(Exception):
    """What came is not what this protocol says at this point. The connection is of no further use."""


def largest_payload(kind: type) -> int:
    """How many bytes a message of this kind may take."""
    return _LARGE.get(kind, MAX_PAYLOAD)


def encode(message: Message) -> bytes:
    """The payload of a frame or packet."""
    return _encoder.encode(message)


def decode(payload: bytes) -> Message:
    """The message in ``payload``; :class:`ProtocolError` if there is none."""
    try:
        message: Message = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    largest = largest_payload(type(message))
    if len(payload) > largest:
        raise ProtocolError(f"a {type(message).__name__} of {len(payload)} bytes; at most {largest} are allowed")
    return message


def frame(message: Message) -> bytes:
    """``message`` as it stands on TCP."""
    payload = encode(message)
    largest = largest_payload(type(message))
    if len(payload) > largest:
        raise ValueError(f"{type(message).__name__} takes {len(payload)} bytes, a frame holds {largest}")
    return HEADER.pack(len(payload)) + payload


def payload_length(header: bytes, largest: int = MAX_PAYLOAD) -> int:
    """The length that ``header`` announces; :class:`ProtocolError` if no frame may be that long here."""
    (length,) = HEADER.unpack(header)
    if not 0 < length <= largest:
        raise ProtocolError(f"a frame of {length} bytes; at most {largest} are allowed")
    return int(length)
