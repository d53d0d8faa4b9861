"""Every decoder of what comes from a peer: bytes are a message of its type, or the one error that they may be."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from drawing import Draw, Forge, damaged

from llmdd.demo import messages as demo_messages
from llmdd.link import messages, transfer_messages
from llmdd.link.messages import HEADER, ProtocolError
from llmdd.transport import nixl
from llmdd.transport.engine import EngineFailed

#: What goes wrong is told in so many characters, and on one line.
LONGEST_REASON = 400


KNOWN = {"engine": [nixl.NixlEngine.name], "version": [nixl._VERSION]}


@dataclass(frozen=True)
class Decoder:
    """One decoder, what it may find, and the one error that it may raise."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    kinds: tuple[type, ...]
    refuses_with: type[Exception]
    completed: Callable[[Any], Any] = lambda message: message
    """What whoever sends a message does to it in the end."""

    def draw(self, draw: Draw) -> bytes:
        """A message of a kind that is understood."""
        return self.encode(self.completed(Forge(draw, KNOWN).message(draw.pick(self.kinds))))

    def check(self, payload: bytes) -> None:
        """Raises unless ``payload`` is understood, always alike, or refused."""
        try:
            found = self.decode(payload)
        except self.refuses_with as refused:
            reason = str(refused)
            assert reason and len(reason) <= LONGEST_REASON, f"a reason of {len(reason)} characters"
            assert reason.isprintable(), reason
            return
        if found is None:
            return
        assert isinstance(found, self.kinds), type(found)
        said = self.encode(found)
        assert len(said) <= 9 * len(payload) + 64, "it takes more room than it came in"
        assert self.encode(self.decode(said)) == said


def framed(payload: bytes) -> bytes:
    return HEADER.pack(len(payload)) + payload


def _next_of_frames(take: Callable[[transfer_messages.Frames], Any], payload: bytes) -> Any:
    """What frames give that arrives in two parts; the items of a long request are decoded too."""
    frames = transfer_messages.Frames()
    data = framed(payload)
    frames.feed(data[: len(data) // 2])
    if len(payload) > 4:
        assert take(frames) is None
    frames.feed(data[len(data) // 2 :])
    found = take(frames)
    if isinstance(found, transfer_messages.Begin):
        for portion in found.portions(256):
            assert all(isinstance(item, transfer_messages.Wanted) for item in portion)
    return found


def _with_digest(introduction: nixl._Introduction) -> nixl._Introduction:
    return msgspec.structs.replace(introduction, digest=nixl._digest(introduction.blob))


def _payload(frame: bytes) -> bytes:
    return frame[HEADER.size :]


REQUESTS: tuple[type, ...] = typing.get_args(transfer_messages.Request)
ANSWERS: tuple[type, ...] = typing.get_args(transfer_messages.Answer)

DECODERS = (
    Decoder(messages.decode, messages.encode, typing.get_args(messages.Message), ProtocolError),
    Decoder(
        functools.partial(_next_of_frames, transfer_messages.Frames.next_request),
        lambda message: _payload(transfer_messages.frame(message)),
        REQUESTS,
        ProtocolError,
    ),
    Decoder(
        functools.partial(_next_of_frames, transfer_messages.Frames.next_answer),
        lambda message: _payload(transfer_messages.frame(message)),
        ANSWERS,
        ProtocolError,
    ),
    Decoder(
        demo_messages.decode,
        demo_messages.encode,
        typing.get_args(demo_messages.Message),
        demo_messages.UnexpectedMessage,
    ),
    Decoder(nixl._decoded, msgspec.msgpack.encode, (nixl._Introduction,), EngineFailed, _with_digest),
)


def decode_anything(data: bytes) -> None:
    """One input: a decoder, and bytes for it: any at all, or of a message that was damaged, or was not."""
    draw = Draw(data)
    decoder = draw.pick(DECODERS)
    kind = draw.below(4)
    if kind == 0:
        decoder.check(draw.rest())
        return
    payload = decoder.draw(draw)
    if kind > 1:
        payload = damaged(draw, payload)
    if kind == 3 and payload:
        # Long ones are decoded otherwise.
        payload += draw.raw(8) * (transfer_messages.LONG_PAYLOAD // 8)
    decoder.check(payload)
