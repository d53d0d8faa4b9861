"""Every byte that crosses a conversation: how the clusters of two hosts agree about a transfer.

A frame is a length (four bytes, network order) and so many bytes of MessagePack: one message. Two clusters that share
no memory have two such connections, one for the transfers of each end. One request is under way on each at a time; all
but ``Abandon`` are answered before the next comes::

    who wants the transfer                    who has the cache that the key names
        | -------- Begin ----------------------> |   find, pin and check what each item names
        | <------- Begun ----------------------- |   what became of each, and how the bytes travel
        | -------- Gather ---------------------> |   a stretch of the stream that is pulled, into staging memory
        | <------- Gathered -------------------- |
        | -------- Take -----------------------> |   a stretch of the stream that is pushed waits in staging memory
        | <------- Taken ----------------------- |
        | -------- Finish ---------------------> |   what has arrived: drop its keys, and every pin
        | <------- Finished -------------------- |
        | -------- Abandon --------------------> |   drop every pin, and nothing else

Who asks counts its requests: the number of each is greater than that of the one before. It gives one up when its time
is up, and so does the owner, a little later and by itself: what is said of it afterwards is answered, in vain.

The *stream* of a request is what it transfers, one item after the other, tensor by tensor, in the order of the lists of
blocks. It travels in one of three ways (:class:`Way`), which the owner of the cache chooses.

Memory is written by its own process alone: whoever's memory the bytes go into reads them from the other end, by the
transfer engine. So no transfer that was given up can write into what has been given to another meanwhile.
"""

from __future__ import annotations

import socket
from collections import deque
from enum import IntEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from llmdd.transport.engine import MAX_METADATA
from llmdd.transport.staging import STRETCH_BYTES

from .messages import HEADER, ProtocolError, UInt64

#: Bytes of a request that travel on its messages.
MAX_CARRIED = 64 * 1024

#: Transfers that share the messages of one request.
MAX_ITEMS = 1024

#: Blocks that the items of one request list in all. More than that are left to further requests, or refused.
MAX_BLOCKS = 1 << 21

MAX_PAYLOAD = 40 << 20

Positive = Annotated[int, Meta(ge=1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Numbers = Annotated[bytes, Meta(max_length=8 * MAX_BLOCKS)]
Carried = Annotated[bytes, Meta(max_length=MAX_CARRIED)]
Metadata = Annotated[bytes, Meta(max_length=MAX_METADATA)]


class Way(IntEnum):
    """How the bytes of a request travel."""

    CARRIED = 0
    """On the messages themselves: ``Begun`` of a pull, ``Begin`` of a push."""
    STAGED = 1
    """By the engine, in stretches through staging memory: many small pieces, or memory that the program registered."""
    DIRECT = 2
    """By the engine, from pool to pool."""
    NONE = 3
    """Nothing is to be transferred: no item was accepted, or they were only looked at."""


class Wanted(Struct, frozen=True, array_like=True):
    """One transfer, as the end that wants it sees it.

    Numbers that stand side by side (blocks, addresses) are packed, eight bytes each, little-endian. ``yours`` is the
    cache of the receiver of this message, ``ours`` the sender's.
    """

    push: bool
    keeps_keys: bool
    only_look: bool  # refused by the sender itself, unless there is no such cache: that is answered first
    form: Annotated[int, Meta(ge=0, le=3)]
    kind: Annotated[int, Meta(ge=0, le=4)]  # 0: by address
    id: UInt64
    model_id: UInt64
    batch_index: UInt64
    addresses: tuple[UInt64, UInt64]  # where two tensors of the sender's go
    whole_yours: bool
    your_first: UInt64
    your_end: UInt64
    whole_ours: bool
    our_first: UInt64
    our_end: UInt64
    bytes_of_tensor: UInt64
    block_count: Annotated[int, Meta(ge=0, le=MAX_BLOCKS)]
    block_bytes: UInt64
    your_blocks: Numbers
    our_blocks: Numbers  # of a push
    our_batch_index: UInt64
    our_tensors: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    our_row_bytes: Positive
    our_rows: Positive
    accessible: bool
    our_pieces: Positive  # how many runs of bytes a tensor of ours consists of
    our_places: Numbers  # of a push: where the tensors in question begin; empty: in memory that must be staged


class Found(Struct, frozen=True, array_like=True):
    """What an item names, if ``result`` says that it can be transferred."""

    result: Annotated[int, Meta(ge=0, le=255)]
    blocks: bool
    tensors: UInt32
    row_bytes: UInt64
    rows: UInt64
    accessible: bool
    batch_index: UInt64
    places: Numbers  # of a direct pull: where the tensors in question begin


class Begin(Struct, frozen=True, tag="begin"):
    """Asks for transfers, which the sender will wait for ``patience_ms``.

    ``together``: all of them or none. ``staged``: the bytes of a push are in memory that must be. ``metadata``: what
    the receiver's engine must know besides, or nothing.
    """

    number: UInt64
    patience_ms: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    items: Annotated[list[Wanted], Meta(min_length=1, max_length=MAX_ITEMS)]
    together: bool
    staged: bool
    data: Carried
    metadata: Metadata


class Begun(Struct, frozen=True, tag="begun"):
    """What the items of ``Begin`` name, and how their bytes travel.

    Of a carried pull, ``data`` is the stream. Of a staged one, the first stretch waits in the first of the two halves
    of staging memory at ``staging``. A carried push has ended with this message, a direct one has arrived.
    """

    number: UInt64
    items: Annotated[list[Found], Meta(max_length=MAX_ITEMS)]
    way: Way
    data: Carried
    staging: UInt64
    metadata: Metadata

    def has_ended(self, pushes: bool) -> bool:
        """Whether the request, a push or not, has ended with this answer."""
        return self.way is Way.NONE or (pushes and self.way is Way.CARRIED)


class Gather(Struct, frozen=True, tag="gather"):
    """Asks for a stretch of the stream in a half of the receiver's staging memory."""

    number: UInt64
    begin: UInt64
    size: Annotated[int, Meta(ge=1, le=STRETCH_BYTES)]
    half: Annotated[int, Meta(ge=0, le=1)]


class Gathered(Struct, frozen=True, tag="gathered"):
    """The stretch that was asked for is there; or it is not, since the time of the request is up."""

    number: UInt64
    begin: UInt64
    is_there: bool


class Take(Struct, frozen=True, tag="take"):
    """A stretch of the stream waits at ``address`` in the sender's staging memory."""

    number: UInt64
    begin: UInt64
    size: Annotated[int, Meta(ge=1, le=STRETCH_BYTES)]
    address: UInt64
    metadata: Metadata


class Taken(Struct, frozen=True, tag="taken"):
    """The stretch that was to be taken has arrived; or it has not, since the engine failed or the time is up."""

    number: UInt64
    begin: UInt64
    arrived: bool


class Finish(Struct, frozen=True, tag="finish"):
    """The bytes of these items have arrived."""

    number: UInt64
    succeeded: Annotated[list[bool], Meta(max_length=MAX_ITEMS)]


class Finished(Struct, frozen=True, tag="finished"):
    """What became of each item in the end."""

    number: UInt64
    results: Annotated[list[Annotated[int, Meta(ge=0, le=255)]], Meta(max_length=MAX_ITEMS)]


class Abandon(Struct, frozen=True, tag="abandon"):
    """The sender waits no longer."""

    number: UInt64


Request: TypeAlias = Begin | Gather | Take | Finish | Abandon
Answer: TypeAlias = Begun | Gathered | Taken | Finished

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(message: Request | Answer) -> bytes:
    """``message`` as it stands on the connection; ValueError if it is larger than may be."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{type(message).__name__} takes {len(payload)} bytes, a frame holds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload)) + payload


class Outbox:
    """Messages that a connection, which does not block, has not taken yet. Of the first a part may have gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._waiting: deque[tuple[Request | Answer, memoryview]] = deque()
        self._is_in_part = False

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def add(self, message: Request | Answer) -> None:
        """Say this after what waits; ValueError if it is larger than may be."""
        self._waiting.append((message, memoryview(frame(message))))

    def send(self) -> bool:
        """Say as much as the connection takes now, and whether that was everything. OSError if it has ended."""
        while self._waiting:
            message, rest = self._waiting[0]
            try:
                sent = self._socket.send(rest)
            except BlockingIOError:
                return False
            self._is_in_part = sent < len(rest)
            if self._is_in_part:
                self._waiting[0] = message, rest[sent:]
            else:
                self._waiting.popleft()
        return True

    def withdraw(self, number: int) -> bool:
        """Take back what waits of a request, but for what has gone in part; whether its ``Begin`` was taken back."""
        head = [self._waiting.popleft()] if self._is_in_part else []
        withdrawn = [message for message, _ in self._waiting if message.number == number]
        self._waiting = deque([*head, *(each for each in self._waiting if each[0].number != number)])
        return any(isinstance(message, Begin) for message in withdrawn)


class Frames:
    """Cuts what arrives on a connection into messages."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        self._received += data

    def next_request(self) -> Request | None:
        """The next request that has arrived whole; :class:`~.messages.ProtocolError` if what has arrived is none."""
        request: Request | None = self._next(_requests)
        return request

    def next_answer(self) -> Answer | None:
        """The next answer, likewise."""
        answer: Answer | None = self._next(_answers)
        return answer

    def _next(self, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
        received = self._received
        if len(received) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(received)
        if not 0 < length <= MAX_PAYLOAD:
            raise ProtocolError(f"a frame of {length} bytes; at most {MAX_PAYLOAD} are allowed")
        end = HEADER.size + length
        if len(received) < end:
            return None
        with memoryview(received) as view, view[HEADER.size : end] as payload:
            try:
                message = decoder.decode(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"not a message: {error}") from None
        del received[:end]
        return message
