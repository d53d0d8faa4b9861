"""Within which time the kernel notices a host that answers nothing."""

from __future__ import annotations

import socket

import pytest

from llmdd.transport.peer_timeout import (
    DEFAULT_PEER_TIMEOUT_MS,
    MIN_PEER_TIMEOUT_MS,
    probing,
    watch_for_a_dead_host,
)

TIMES_MS = [MIN_PEER_TIMEOUT_MS, 2999, 3000, 3999, 4000, 7000, 11_000, DEFAULT_PEER_TIMEOUT_MS, 100_500, 2**31 - 1]


@pytest.mark.parametrize("peer_timeout_ms", TIMES_MS)
def test_the_last_question_is_within_the_bound_and_less_than_a_second_from_it(peer_timeout_ms: int) -> None:
    wanted = probing(peer_timeout_ms)
    assert 1000 * wanted.total_s <= peer_timeout_ms
    assert 1000 * wanted.total_s > peer_timeout_ms - 1000 or wanted.total_s == 24 * 60 * 60
    assert min(wanted) >= 1


@pytest.mark.parametrize("peer_timeout_ms", TIMES_MS)
def test_the_kernel_takes_it(peer_timeout_ms: int) -> None:
    with socket.socket() as sock:
        watch_for_a_dead_host(sock, peer_timeout_ms)
        wanted = probing(peer_timeout_ms)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        found = [
            sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}")) for name in ("IDLE", "INTVL", "CNT")
        ]
        assert found == list(wanted)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * wanted.total_s
