"""What is on the wire is bounded, typed, and the same for ever."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdd.link import messages
from llmdd.transport.engine import MAX_METADATA

IDENTITY = messages.Identity(1, 1, "abc", 2**64 - 1, 2**64 - 1, "host", 1, True, "engine")
EVERY_MESSAGE = [
    messages.LinkRequest(IDENTITY, 2, messages.CommunicatorTag(bytes(32), bytes(32), 1)),
    messages.UnlinkRequest(IDENTITY, 2),
    messages.Welcome(IDENTITY, "name", bytes(16)),
    messages.Segments(bytes(16), {"control_bytes": 2**63}, 63),
    messages.EngineOffer(b"metadata"),
    messages.Converse(bytes(16), "acceptor"),
    messages.Commit(),
    messages.Linked(),
    messages.Crossed(),
    messages.Refusal(2**32 - 1, "no", True),
    messages.Unlinked(),
    messages.Farewell(),
    messages.Detached(),
    messages.Fetch(1, 2**63, 2**32 - 1, 0, 2**63, messages.MAX_PIECE),
    messages.Fetched(1, 0, b"bytes"),
    messages.Store(1, 0, 1, 0, 0, b"bytes"),
    messages.Stored(1, 2**32 - 1),
    messages.Renew(1, 2**31 - 1, [messages.NamedKey(1, 2**64 - 1, 0, 2**64 - 1)] * messages.MAX_RENEWED),
    messages.Renewed(1, [True, False] * (messages.MAX_RENEWED // 2)),
]


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: messages.Message) -> None:
    frame = messages.frame(message)
    header, payload = frame[: messages.HEADER.size], frame[messages.HEADER.size :]
    assert messages.payload_length(header) == len(payload)
    assert messages.decode(payload) == message


def test_every_message_is_covered() -> None:
    assert {type(message) for message in EVERY_MESSAGE} == set(messages.Message.__args__)


@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_a_protocol_error(payload: bytes) -> None:
    try:
        message = messages.decode(payload)
    except messages.ProtocolError:
        return
    assert messages.decode(messages.encode(message)) == message


@given(st.sampled_from(EVERY_MESSAGE), st.data())
def test_a_damaged_message_is_a_message_or_a_protocol_error(message: messages.Message, data: st.DataObject) -> None:
    payload = bytearray(messages.encode(message))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    try:
        assert isinstance(messages.decode(bytes(payload)), messages.Message.__args__)
    except messages.ProtocolError as error:
        assert str(error)


@pytest.mark.parametrize(
    "message",
    [
        messages.Welcome(IDENTITY, "x" * 201, bytes(16)),
        messages.Welcome(IDENTITY, "x", bytes(15)),
        messages.Segments(bytes(16), {str(n): n for n in range(65)}, 0),
        messages.Segments(bytes(16), {}, 1024),
        messages.EngineOffer(b""),
        messages.EngineOffer(bytes(MAX_METADATA + 1)),
        messages.Converse(bytes(17), "initiator"),
        messages.Converse(bytes(16), "bystander"),
        messages.Refusal(0, "x" * 1001),
        messages.LinkRequest(IDENTITY, 2, messages.CommunicatorTag(bytes(31), bytes(32), 1)),
        messages.Fetch(1, 0, 2**32, 0, 0, 1),
        messages.Fetch(1, 0, 0, 0, 0, 0),
        messages.Fetch(1, 0, 0, 0, 0, messages.MAX_PIECE + 1),
        messages.Store(1, 0, 0, 0, 0, bytes(messages.MAX_PIECE + 1)),
        messages.LinkRequest(msgspec.structs.replace(IDENTITY, cluster_id=-1), 2),
        messages.Renew(1, 0, [messages.NamedKey(1, 1, 0, 0)]),
        messages.Renew(1, 2**31, [messages.NamedKey(1, 1, 0, 0)]),
        messages.Renew(1, 1, []),
        messages.Renew(1, 1, [messages.NamedKey(1, 1, 0, 0)] * (messages.MAX_RENEWED + 1)),
        messages.Renew(1, 1, [messages.NamedKey(0, 1, 0, 0)]),
        messages.Renew(1, 1, [messages.NamedKey(5, 1, 0, 0)]),
        messages.Renewed(1, [True] * (messages.MAX_RENEWED + 1)),
    ],
)
def test_what_is_out_of_bounds_is_no_message(message: messages.Message) -> None:
    with pytest.raises(messages.ProtocolError):
        messages.decode(messages.encode(message))


def test_a_later_version_may_say_more() -> None:
    """An identity with a field that this version does not know is understood, so that it can be refused by name."""
    fields = msgspec.msgpack.decode(messages.encode(messages.LinkRequest(IDENTITY, 2)))
    fields["identity"]["nickname"] = "a field of a later version"
    assert messages.decode(msgspec.msgpack.encode(fields)) == messages.LinkRequest(IDENTITY, 2)


def test_frames_are_bounded() -> None:
    with pytest.raises(ValueError, match="a frame holds"):
        messages.frame(messages.Refusal(0, "x" * messages.MAX_PAYLOAD))
    with pytest.raises(ValueError, match="a frame holds"):
        messages.frame(messages.Store(1, 0, 0, 0, 0, bytes(messages.MAX_BULK_PAYLOAD)))
    for length in (0, messages.MAX_PAYLOAD + 1, 2**32 - 1):
        with pytest.raises(messages.ProtocolError):
            messages.payload_length(messages.HEADER.pack(length))
    with pytest.raises(messages.ProtocolError):
        messages.payload_length(messages.HEADER.pack(messages.MAX_BULK_PAYLOAD + 1), messages.MAX_BULK_PAYLOAD)


@pytest.mark.parametrize(
    "message", [messages.Fetched(2**64 - 1, -(2**63), b""), messages.Store(2**64 - 1, 1, 1, 1, 1, b"")]
)
def test_a_whole_piece_of_memory_fits_into_a_frame(message: messages.Message) -> None:
    whole = msgspec.structs.replace(message, data=bytes(messages.MAX_PIECE))
    frame = messages.frame(whole)
    assert messages.payload_length(frame[: messages.HEADER.size], messages.MAX_BULK_PAYLOAD)
    assert messages.decode(frame[messages.HEADER.size :]) == whole


def test_the_longest_offer_fits_into_a_frame() -> None:
    offer = messages.EngineOffer(bytes(MAX_METADATA))
    frame = messages.frame(offer)
    assert messages.payload_length(frame[: messages.HEADER.size], messages.largest_payload(messages.EngineOffer))
    assert messages.decode(frame[messages.HEADER.size :]) == offer


def test_an_identity_without_a_transport_insists_on_none() -> None:
    """As versions before had it: it is understood, so that it can be refused by name."""
    fields = msgspec.msgpack.decode(messages.encode(messages.LinkRequest(IDENTITY, 2)))
    del fields["identity"]["transport"]
    request = messages.decode(msgspec.msgpack.encode(fields))
    assert request == messages.LinkRequest(msgspec.structs.replace(IDENTITY, transport=""), 2)


def test_only_what_carries_memory_or_an_offer_may_be_large() -> None:
    fields = msgspec.msgpack.decode(messages.encode(messages.Farewell()))
    payload = msgspec.msgpack.encode({**fields, "of a later version": bytes(messages.MAX_PAYLOAD)})
    with pytest.raises(messages.ProtocolError, match="a Farewell of"):
        messages.decode(payload)
