"""Every byte that crosses a conversation: how the clusters of two hosts agree about a transfer.

A frame is a length (four bytes, network order) and so many bytes of MessagePack: one message. Two clusters that share
no memory have two such connections, one for the transfers of each end. On each, one request is open at a time::

    who wants the transfer                    who has the cache that the key names
        | -------- Begin ----------------------> |   find, pin and check what each item names
        | <------- Begun ----------------------- |   what became of each, and how the bytes travel
        |                                        |
        | <======= the bytes of a pull ========= |   by the engine, into staging memory
        | <------- Written --------------------- |   a stretch is there
        | -------- Copied ---------------------> |   and is needed there no longer
        |                                        |
        | ======== the bytes of a push ========> |   by the engine, into staging memory
        | -------- Written --------------------> |
        | <------- Copied ---------------------- |
        |                                        |
        | -------- Finish ---------------------> |   what has arrived: drop its keys, and every pin
        | <------- Finished -------------------- |
        | -------- Abandon --------------------> |   or: drop every pin, and nothing else

The *stream* of a request is what it transfers, one item after the other, tensor by tensor, in the order of the lists of
blocks. Small ones travel on the messages themselves (:class:`Way`); of others, a few stretches are under way at a time.

An engine writes into staging memory alone, never into a cache: a write cannot be called back when its transfer is given
up. Each direction of a link has staging memory of its own, and whoever writes there begins the stretches of a request
only when those of earlier ones have ended. So what a ``Written`` tells of is there, whatever was given up before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from llmdd.transport.engine import MAX_METADATA

from .connection import Connection
from .messages import HEADER, ProtocolError, UInt64, decoded

#: Bytes of a request that travel on its messages.
MAX_CARRIED = 64 * 1024

#: Transfers that share the messages of one request.
MAX_ITEMS = 1 << 16

#: Blocks that the items of one request list in all. More than that are left to further requests, or refused.
MAX_BLOCKS = 1 << 21

MAX_PAYLOAD = 40 << 20

#: How much is received at once: less than what the C library asks the kernel for, and gives back to it, each time.
RECEIVED_AT_ONCE = 64 * 1024

#: From this length on, the items of a ``Begin`` are decoded when they are needed.
LONG_PAYLOAD = 64 * 1024

Positive = Annotated[int, Meta(ge=1)]
UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Numbers = Annotated[bytes, Meta(max_length=8 * MAX_BLOCKS)]
Carried = Annotated[bytes, Meta(max_length=MAX_CARRIED)]
Metadata = Annotated[bytes, Meta(max_length=MAX_METADATA)]


class Way(IntEnum):
    """How the bytes of a request travel."""

    CARRIED = 0
    """On the messages themselves: ``Begun`` of a pull, ``Begin`` of a push."""
    WRITTEN = 1
    """By the engine of the end that has them, in stretches, into staging memory of the other."""
    NONE = 2
    """Nothing is to be transferred: no item was accepted, or they were only looked at."""


class Wanted(Struct, frozen=True, array_like=True, gc=False):
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
    our_tensors: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    our_row_bytes: Positive
    our_rows: Positive
    accessible: bool


class Found(Struct, frozen=True, array_like=True, gc=False):
    """What an item names, if ``result`` says that it can be transferred."""

    result: Annotated[int, Meta(ge=0, le=255)]
    blocks: bool
    tensors: UInt32
    row_bytes: UInt64
    rows: UInt64
    accessible: bool
    batch_index: UInt64


class Begin(Struct, frozen=True, tag="begin"):
    """Asks for transfers, which the sender will wait for ``patience_ms``.

    ``together``: all of them or none. ``data``: of a push, the stream, if it is carried. ``staging``: of a pull, where
    the sender's staging memory is. ``metadata``: what the receiver's engine must know before it writes there, if
    anything.
    """

    number: UInt64
    patience_ms: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    items: Annotated[list[Wanted], Meta(min_length=1, max_length=MAX_ITEMS)]
    together: bool
    data: Carried
    staging: UInt64
    metadata: Metadata

    def portions(self, size: int) -> Iterator[list[Wanted]]:
        """The items, so many at a time."""
        for begin in range(0, len(self.items), size):
            yield self.items[begin : begin + size]


class LongBegin(Begin, frozen=True, tag="begin"):
    """The same message, whose items have not been decoded yet."""

    items: Annotated[list[Raw], Meta(min_length=1, max_length=MAX_ITEMS)]  # type: ignore[assignment]

    def portions(self, size: int) -> Iterator[list[Wanted]]:
        """As of any ``Begin``; :class:`~.messages.ProtocolError` if an item is none."""
        for begin in range(0, len(self.items), size):
            yield [decoded(_items, item) for item in self.items[begin : begin + size]]


class Begun(Struct, frozen=True, tag="begun"):
    """What the items of ``Begin`` name, and how their bytes travel.

    ``data``: of a carried pull, the stream. A carried push has ended with this message. ``staging`` and ``metadata``:
    of a push that is written, as in ``Begin``.
    """

    number: UInt64
    items: Annotated[list[Found], Meta(max_length=MAX_ITEMS)]
    way: Way
    data: Carried
    staging: UInt64
    metadata: Metadata

    @property
    def is_carried(self) -> bool:
        """Whether the bytes travel on the messages."""
        return self.way is Way.CARRIED

    def has_ended(self, pushes: bool) -> bool:
        """Whether the request, a push or not, has ended with this answer."""
        return self.way is Way.NONE or (pushes and self.way is Way.CARRIED)


class Written(Struct, frozen=True, tag="written"):
    """The stretch with this number is in the receiver's staging memory; or it will not be, and none after it."""

    number: UInt64
    stretch: UInt64
    arrived: bool


class Copied(Struct, frozen=True, tag="copied"):
    """The stretch with this number is needed in the sender's staging memory no longer."""

    number: UInt64
    stretch: UInt64


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


Request: TypeAlias = Begin | Written | Copied | Finish | Abandon
Answer: TypeAlias = Begun | Written | Copied | Finished

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_long_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(
    LongBegin | Written | Copied | Finish | Abandon
)
_items = msgspec.msgpack.Decoder(Wanted)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def frame(message: Request | Answer) -> bytes:
    """``message`` as it stands on the connection; ValueError if it is larger than may be."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{type(message).__name__} takes {len(payload)} bytes, a frame holds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload)) + payload


class Unsent:
    """Messages that a connection, which does not block, has not taken yet. Of the first a part may have gone."""

    def __init__(self, sock: Connection) -> None:
        self._socket = sock
        self._waiting: deque[tuple[Request | Answer, bytes | memoryview]] = deque()
        self._is_in_part = False
        self.size = 0

    def add(self, message: Request | Answer) -> None:
        """Say this after what waits; ValueError if it is larger than may be."""
        data = frame(message)
        self._waiting.append((message, data))
        self.size += len(data)

    def send(self) -> bool:
        """Say as much as the connection takes now, and whether that was everything. OSError if it has ended."""
        while self._waiting:
            message, rest = self._waiting[0]
            try:
                sent = self._socket.send(rest)
            except BlockingIOError:
                return False
            self.size -= sent
            self._is_in_part = sent < len(rest)
            if self._is_in_part:
                self._waiting[0] = message, memoryview(rest)[sent:]
            else:
                self._waiting.popleft()
        return True

    def withdraw(self, number: int) -> bool:
        """Take back what waits of a request, but for what has gone in part; whether its ``Begin`` was taken back."""
        head = [self._waiting.popleft()] if self._is_in_part else []
        withdrawn = [message for message, _ in self._waiting if message.number == number]
        kept = [*head, *(each for each in self._waiting if each[0].number != number)]
        self._waiting = deque(kept)
        self.size = sum(len(rest) for _, rest in kept)
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
        request: Request | None = self._next(_requests, _long_requests)
        return request

    def next_answer(self) -> Answer | None:
        """The next answer, likewise."""
        answer: Answer | None = self._next(_answers, _answers)
        return answer

    def _next(self, decoder: msgspec.msgpack.Decoder[Any], of_long: msgspec.msgpack.Decoder[Any]) -> Any:
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
            # What is not decoded yet needs bytes of its own.
            message = decoded(of_long, bytes(payload)) if length > LONG_PAYLOAD else decoded(decoder, payload)
        del received[:end]
        return message
