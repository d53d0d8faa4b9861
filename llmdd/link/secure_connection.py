"""A TCP connection under TLS 1.3, whose two ends have shown each other their keys.

It is used as a socket that does not block is: what knows only ``recv``, ``send`` and the descriptor needs to know no
more. OpenSSL never touches the socket itself; so one thread may shut it down while another is in here, and a forked
child that closes it says nothing to anybody.

Nothing is made of the orderly end that TLS has (``close_notify``): every message says how long it is, and a promise is
a message. A connection that ends, ends like any other, wherever it was cut.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from .keys import Credentials, fingerprint
from .readiness import readable, writable

#: The acceptor's first byte: it knows the caller, who in TLS 1.3 cannot tell that from the handshake.
ADMITTED = b"\x01"

# A record holds 16 KiB, and what is around them.
_LARGEST_RECORD = (16 << 10) + 261

# Ciphertext that is received at once: with what is left of a record before it, no more than `recv` is asked for where
# whoever asks must not leave anything behind (`transfer_messages.RECEIVED_AT_ONCE`).
_RECEIVED_AT_ONCE = (64 << 10) - _LARGEST_RECORD

# Plaintext that is encrypted at once.
_ENCRYPTED_AT_ONCE = 64 << 10

# Answers that TLS itself may owe an end that does not listen.
_MAX_OWED = 256 << 10

# The first byte of what TLS says, in a handshake.
_HANDSHAKE, _ALERT = 0x16, 0x15


class NotAuthenticated(ConnectionError):
    """The two ends have not come to know each other."""


class WithoutTLS(NotAuthenticated):
    """The other end speaks, and not TLS."""


class SecureConnection:
    """A connection that :meth:`authenticate` makes safe. Owns its socket, which does not block.

    Used by one thread at a time, but for :meth:`shutdown`.
    """

    def __init__(self, sock: socket.socket, credentials: Credentials, *, accepts: bool) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = credentials.accepting if accepts else credentials.calling
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=accepts)
        self._accepts = accepts
        self._decrypted = bytearray()
        self._unsent = bytearray()
        self._last_byte_waits = False
        self._has_heard = False
        self._has_ended = False
        self._broken: str | None = None
        self.peer_fingerprint = ""

    # -- the handshake --------------------------------------------------------------------------------------------

    async def authenticate(self) -> None:
        """Show the other end our key, and see its. Not bounded in time.

        Raises
        ------
        NotAuthenticated
            One end does not allow the other's key, or the other end does not speak TLS (:class:`WithoutTLS`).
        EOFError
            It has gone before it has said anything.
        """
        while not self._shake_hands():
            await self._flush_all()
            await self._hear()
        await self._flush_all()
        certificate = self._tls.getpeercert(binary_form=True)
        assert certificate is not None
        self.peer_fingerprint = fingerprint(certificate)
        if self._accepts:
            self.send(ADMITTED)
            await self._flush_all()
            self._decrypt(b"")  # what an impatient caller has said behind its part of the handshake
        else:
            await self._be_admitted()

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._flush()  # the other end is told
            raise NotAuthenticated(_reason(error)) from None
        return True

    async def _hear(self) -> None:
        """Take in what the other end says next of the handshake."""
        while True:
            try:
                data = self._socket.recv(_RECEIVED_AT_ONCE)
                break
            except BlockingIOError:
                await readable(self._socket)
        if not data:
            raise NotAuthenticated("it hung up during the TLS handshake") if self._has_heard else EOFError
        if not self._has_heard and data[0] not in (_HANDSHAKE, _ALERT):
            raise WithoutTLS("it speaks without TLS: it has no keys (link_key, link_allowed_keys), and this end has")
        self._has_heard = True
        self._incoming.write(data)

    async def _be_admitted(self) -> None:
        while True:
            try:
                word = self.recv(1)
                break
            except BlockingIOError:
                await readable(self._socket)
        if word != ADMITTED:
            raise NotAuthenticated("it does not say that it admits this end")

    async def _flush_all(self) -> None:
        while not self._flush():
            await writable(self._socket)

    # -- as a socket ----------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end of the connection.

        Raises
        ------
        BlockingIOError
            There is nothing. When there is, the socket can be read from, unless less than there was had been asked for.
        OSError
            The connection has ended otherwise, or what came was not sent by the peer.
        """
        if not self._decrypted and not self._has_ended and self._broken is None:
            data = self._socket.recv(_RECEIVED_AT_ONCE)
            self._has_ended = not data
            self._decrypt(data)
        if not self._decrypted:
            if self._broken is not None:
                raise NotAuthenticated(self._broken)
            if self._has_ended:
                return b""
            raise BlockingIOError("nothing has come that is whole")
        received = bytes(self._decrypted[:size])
        del self._decrypted[:size]
        return received

    def _decrypt(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            while True:
                part = self._tls.read(_LARGEST_RECORD)
                if not part:
                    self._has_ended = True
                    return
                self._decrypted += part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken = _reason(error)
        if self._outgoing.pending and not self._flush() and len(self._unsent) > _MAX_OWED:
            self._broken = "it does not take the answers that TLS owes it"

    def send(self, data: Any, /) -> int:
        """How many bytes of ``data`` have been sent and need not be offered again; the others must be, and first.

        Raises
        ------
        BlockingIOError
            None.
        OSError
            The connection has ended.
        """
        # What is encrypted must go. Its last byte counts as sent when the socket has taken it all; so whoever waits
        # until everything is sent, waits for that.
        if self._last_byte_waits:
            if not self._flush():
                raise BlockingIOError("the connection takes nothing more now")
            self._last_byte_waits = False
            return 1
        with memoryview(data) as view, view[:_ENCRYPTED_AT_ONCE] as part:
            try:
                count = self._tls.write(part)
            except ssl.SSLError as error:
                raise NotAuthenticated(_reason(error)) from None
        if self._flush():
            return count
        self._last_byte_waits = True
        if count == 1:
            raise BlockingIOError("the connection takes nothing more now")
        return count - 1

    def _flush(self) -> bool:
        """Send what is encrypted; whether that was everything."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            del self._unsent[:sent]
        return True

    def shutdown(self, how: int, /) -> None:
        """End the connection. From any thread."""
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def setblocking(self, flag: bool, /) -> None:
        """It never blocks."""
        if flag:
            raise ValueError("a secure connection does not block")

    def setsockopt(self, level: int, name: int, value: int, /) -> None:
        self._socket.setsockopt(level, name, value)

    def getpeername(self) -> Any:
        return self._socket.getpeername()

    def getsockname(self) -> Any:
        return self._socket.getsockname()

    @property
    def plain_socket(self) -> socket.socket:
        """The socket below, for what is to be said in the clear."""
        return self._socket

    @property
    def family(self) -> int:
        return self._socket.family


def _reason(error: ssl.SSLError) -> str:
    """Why there is no connection, as the log is to have it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its key is not allowed here (link_allowed_keys): {error.verify_message}"
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "certificate required" in reason or "peer did not return a certificate" in reason:
        return "a key is required, and none was shown"
    if "alert" in reason or "certificate" in reason:
        return f"it does not allow the key of this end (its link_allowed_keys): {reason}"
    return f"what it says is not the TLS that is expected: {reason}"
