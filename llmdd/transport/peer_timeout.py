"""How the kernel notices that the host at the other end of a connection is gone.

Where nothing is said, the kernel asks whether the other end is there (keepalive); where something is, it must be
acknowledged. A process that stands still is not gone by this measure: its kernel answers for it.
"""

from __future__ import annotations

import socket
from typing import NamedTuple, Protocol

#: How long a host may answer nothing before it is taken to be gone, unless it is said otherwise.
DEFAULT_PEER_TIMEOUT_MS = 30_000

#: The shortest such time. The kernel asks after whole seconds alone, and gives the answer one second.
MIN_PEER_TIMEOUT_MS = 2000

# What the kernel takes for one of its times has 15 bits, in seconds.
_LONGEST_S = 24 * 60 * 60

_MOST_PROBES = 4


class Probing(NamedTuple):
    """When the kernel asks an end that says nothing, in whole seconds.

    Attributes
    ----------
    idle_s
        For how long nothing is said before the first question.
    interval_s, probes
        How often it asks, and the number of questions without an answer after which the connection is broken.
    """

    idle_s: int
    interval_s: int
    probes: int

    @property
    def total_s(self) -> int:
        """How long an end may have answered nothing."""
        return self.idle_s + self.interval_s * self.probes


def probing(peer_timeout_ms: int) -> Probing:
    """The questions by which a silence is noticed within ``peer_timeout_ms``, of which part seconds do not count.

    The first comes after about a third of that time, because an end that is there and knows nothing of the connection
    says so to it.
    """
    whole_s = min(max(peer_timeout_ms, MIN_PEER_TIMEOUT_MS) // 1000, _LONGEST_S)
    probes = min(_MOST_PROBES, whole_s - 1)
    interval_s = max(1, (whole_s - max(1, whole_s // 3)) // probes)
    return Probing(whole_s - interval_s * probes, interval_s, probes)


class TakesOptions(Protocol):
    """A socket, or what stands before one."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def watch_for_a_dead_host(sock: TakesOptions, peer_timeout_ms: int) -> None:
    """Have the kernel break a TCP connection whose other end has answered nothing for ``peer_timeout_ms``."""
    wanted = probing(peer_timeout_ms)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, wanted.idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, wanted.interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, wanted.probes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wanted.total_s * 1000)
