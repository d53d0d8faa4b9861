"""Everything the processes of a run say to each other. The bytes of a KV cache are never among it: llmdd moves those.

On one host:

==============  ==========================  ===========================================================================
from            to                          messages
==============  ==========================  ===========================================================================
prefill         orchestrator                Listening, Prefilled, PrefillReleased
orchestrator    prefill                     Pulled, AllServed, DecodeDied, Finish
orchestrator    decode                      Listening, Prefilled, Finish
decode          orchestrator                Linked, Pulled, Generated, DecodeReleased
orchestrator    reference                   Verify, Finish
reference       orchestrator                Generated
any             orchestrator                Failed
==============  ==========================  ===========================================================================

On two hosts the *prefill end* has the orchestrator, and the *decode end* starts the decode process and passes on what
that and the orchestrator say to each other. Besides, over the connection that the decode end has made:

==============  ==========================  ===========================================================================
from            to                          messages
==============  ==========================  ===========================================================================
decode end      prefill end                 Hello; then DecodeDied, Ended
prefill end     decode end                  Agreed or Declined; then KillDecode, Progress, Report
either          the other                   Failed
==============  ==========================  ===========================================================================

A message is MessagePack of at most :data:`MAX_PAYLOAD` bytes, with bounds for everything in it: nothing that comes from
another host is unpickled.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from .choices import MAX_SLOTS, MAX_TOKENS, Choices
from .prompts import LONGEST_PROMPT, MAX_PROMPTS
from .released import Count, DecodeReleased, PrefillReleased
from .report import Report

MAX_PAYLOAD = 1 << 20
MAX_TEXT = 16 * 1024

# Of what is wrong with a message, so much is told.
_LONGEST_REASON = 200

ReqId = Annotated[int, Meta(ge=0, le=MAX_PROMPTS)]
Token = Annotated[int, Meta(ge=0, lt=2**32)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Host = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class Hello(Struct, frozen=True, tag="hello"):
    """The end with ``role`` is there, runs ``version`` of llmdd, and was told ``choices``."""

    role: Annotated[str, Meta(max_length=16)]
    version: Annotated[str, Meta(max_length=64)]
    choices: Choices


class Agreed(Struct, frozen=True, tag="agreed"):
    """The run has so many ``requests`` with room for ``context`` tokens each, and ``choices`` hold at both ends."""

    choices: Choices
    context: Annotated[int, Meta(ge=1, le=2 * (LONGEST_PROMPT + MAX_TOKENS))]
    requests: Annotated[int, Meta(ge=1, le=MAX_PROMPTS)]


class Declined(Struct, frozen=True, tag="declined"):
    """There will be no run, for a ``reason`` that both ends show."""

    reason: Text


class Request(Struct, frozen=True):
    """A prompt to answer. ``req_id`` is also the request's number in its cache key."""

    req_id: ReqId
    prompt: Annotated[bytes, Meta(max_length=LONGEST_PROMPT)]


class Listening(Struct, frozen=True, tag="listening"):
    """Prefill can be linked to at ``address``, from ``local_host``."""

    address: tuple[Host, Port]
    local_host: Host = "127.0.0.1"


class Linked(Struct, frozen=True, tag="linked"):
    """Decode has linked to prefill; KV caches travel by ``transport``."""

    transport: Annotated[str, Meta(max_length=64)]


class Prefilled(Struct, frozen=True, tag="prefilled"):
    """The KV cache of a request's ``length`` prompt tokens can be pulled by its key; ``token`` is to follow them."""

    req_id: ReqId
    length: Annotated[int, Meta(ge=1, le=LONGEST_PROMPT)]
    token: Token


class Pulled(Struct, frozen=True, tag="pulled"):
    """Decode has pulled a request's KV cache, in ``nanoseconds``; prefill's key for it is gone."""

    req_id: ReqId
    nanoseconds: Count


class Generated(Struct, frozen=True, tag="generated"):
    """One more token for each of some requests, by ``req_id``, and how many requests stay in the running batch."""

    tokens: Annotated[dict[ReqId, Token], Meta(max_length=MAX_SLOTS)]
    running: Annotated[int, Meta(ge=0, le=MAX_SLOTS)]


class AllServed(Struct, frozen=True, tag="all served"):
    """Decode has pulled everything, answered every request and unlinked."""


class KillDecode(Struct, frozen=True, tag="kill decode"):
    """The decode process is to be killed, whatever it is doing."""


class DecodeDied(Struct, frozen=True, tag="decode died"):
    """The decode process has died: nobody will pull what is on offer."""


class Verify(Struct, frozen=True, tag="verify"):
    """Answer ``request`` with ``count`` tokens in a process that has everything to itself."""

    request: Request
    count: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]


class Finish(Struct, frozen=True, tag="finish"):
    """Nothing more will be asked of this process: it may end."""


class Ended(Struct, frozen=True, tag="ended"):
    """The decode process has ended in good order."""


class Progress(Struct, tag="progress"):
    """How far a run has come."""

    requests: Count
    tokens: Count
    prefilled: Count = 0
    pulled: Count = 0
    generated: Count = 0
    running: Count = 0
    verified: Count = 0
    to_verify: Count = 0
    decode_killed: bool = False


class Failed(Struct, frozen=True, tag="failed"):
    """The sender ends because of an error, of which this is the traceback, or the reason where that says enough."""

    text: Text


Message: TypeAlias = (
    Hello
    | Agreed
    | Declined
    | Listening
    | Linked
    | Prefilled
    | Pulled
    | Generated
    | AllServed
    | KillDecode
    | DecodeDied
    | Verify
    | Finish
    | Ended
    | PrefillReleased
    | DecodeReleased
    | Progress
    | Report
    | Failed
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


class UnexpectedMessage(Exception):
    """A message that makes no sense where it arrived, or none at all."""


def encode(message: Message) -> bytes:
    """``message`` as it crosses a pipe or a connection."""
    return _encoder.encode(message)


def decode(payload: bytes) -> Message:
    """The message in ``payload``; :class:`UnexpectedMessage` if there is none."""
    try:
        message: Message = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # It may quote the other end, which could write lines of its own into what is shown.
        raise UnexpectedMessage(f"not a message: {ascii(str(error)[:_LONGEST_REASON])[1:-1]}") from None
    return message


def failure(text: str) -> Failed:
    """A :class:`Failed` with the end of ``text``, where a traceback says most, if all of it is too long."""
    return Failed(text[-MAX_TEXT:])
