"""The connection between the two ends of a run, where they have keys: under TLS, as llmdd's links are."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from contextlib import suppress

from llmdd.link.keys import LinkKeys
from llmdd.link.secure_connection import NotAuthenticated, SecureConnection

_AT_ONCE = 64 << 10


def tunnel(sock: socket.socket, keys: LinkKeys, seconds: float, *, accepts: bool) -> socket.socket:
    """A socket on which to speak in the clear: what is said there crosses ``sock``, which it takes over, encrypted.

    Parameters
    ----------
    sock
        Connected; nothing has been said yet.
    keys
        By which the two ends are to know each other.
    seconds
        How long that may take.
    accepts
        Whether this end was called.

    Raises
    ------
    NotAuthenticated
        They do not come to know each other.
    """
    sock.setblocking(False)
    connection = SecureConnection(sock, keys.credentials(), accepts=accepts)
    try:
        asyncio.run(_authenticate(connection, seconds))
    except BaseException:
        connection.close()
        raise
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    threading.Thread(target=_relay, args=(connection, theirs), name="llmdd demo tunnel", daemon=True).start()
    return ours


async def _authenticate(connection: SecureConnection, seconds: float) -> None:
    try:
        await asyncio.wait_for(connection.authenticate(), seconds)
    except NotAuthenticated:
        raise
    except asyncio.TimeoutError:
        raise NotAuthenticated("it does not go on with the TLS handshake") from None
    except (EOFError, OSError) as error:
        raise NotAuthenticated(f"it hung up: {error}") from None


def _relay(connection: SecureConnection, clear: socket.socket) -> None:
    """Pass on what either side says until one of them has ended, and then what it has said last."""
    with suppress(OSError):
        _pass_on(connection, clear)
    connection.close()
    clear.close()


def _pass_on(connection: SecureConnection, clear: socket.socket) -> None:
    to_peer, to_us = b"", b""
    peer_has_ended = we_have_ended = False
    waiting = select.poll()
    while True:
        if not to_us and not peer_has_ended and not we_have_ended:
            to_us, peer_has_ended = _received(connection)
        if not to_peer and not peer_has_ended and not we_have_ended:
            to_peer, we_have_ended = _received(clear)
        # Who has ended hears nothing more.
        to_peer = b"" if peer_has_ended else _sent(connection, to_peer)
        to_us = b"" if we_have_ended else _sent(clear, to_us)
        if (peer_has_ended and not to_us) or (we_have_ended and not to_peer):
            return
        # What was taken in whole is read again; where something waits to be sent, its source waits.
        _await(waiting, connection, reads=not to_us, writes=bool(to_peer), has_ended=peer_has_ended)
        _await(waiting, clear, reads=not to_peer, writes=bool(to_us), has_ended=we_have_ended)
        waiting.poll()


def _await(
    waiting: select.poll, source: SecureConnection | socket.socket, *, reads: bool, writes: bool, has_ended: bool
) -> None:
    with suppress(KeyError):
        waiting.unregister(source)
    events = (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)
    if events and not has_ended:
        waiting.register(source, events)


def _received(source: SecureConnection | socket.socket) -> tuple[bytes, bool]:
    """What has come, and whether that was its end."""
    try:
        data = source.recv(_AT_ONCE)
    except BlockingIOError:
        return b"", False
    except ConnectionError:
        return b"", True
    return data, not data


def _sent(target: SecureConnection | socket.socket, data: bytes) -> bytes:
    """What of ``data`` the target does not take now."""
    with suppress(BlockingIOError):
        while data:
            data = data[target.send(data) :]
    return data
