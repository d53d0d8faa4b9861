"""What the soak and its processes say to each other: each message a length, and that much MessagePack."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

LENGTH = struct.Struct("<I")


class Call(msgspec.Struct, frozen=True):
    """One call of llmdd that a process has made, by the clock that all processes of a machine share."""

    name: str
    began_ns: int
    ended_ns: int
    code: str
    deadline_ms: int
    here: int
    """The cluster that called."""
    there: int
    """The one that it called for a transfer or a link; 0 if none."""


class Question(msgspec.Struct, frozen=True):
    """Something to be done, by a method of the process."""

    number: int
    method: str
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """What has come of it, with every call of llmdd that it took."""

    number: int
    value: Any
    failure: str | None
    """The traceback, where something was raised that should not be."""
    calls: list[Call]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is started with."""

    name: str
    seed: int
    prefill: int
    decode: int
    """Of the whole run, from which requests are drawn."""
    parent: int
    socket: int
    """The descriptor that questions come by."""
    network: int | None
    """A descriptor of the network that it shall be in, if that is another one."""
    address: str
    link_key: str
    link_allowed_keys: str
    """The files by which the processes know each other; empty on one host, where loopback needs none."""
    ports: tuple[int, int]
    """Where its two instances listen: the plain one, and the one in remote mode."""
    clusters: tuple[int, int]
    timeout_ms: int
    link_timeout_ms: int
    lease_ms: int
    pool_bytes: int


def framed(message: msgspec.Struct) -> bytes:
    content = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(content)) + content
