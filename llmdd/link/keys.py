"""The keys by which the two ends of a link know each other (``SECURITY.md``).

An end has a *key*: a private key with its certificate, in PEM. It links to whoever holds the private key of one of its
*allowed keys*: certificates in PEM, one after the other. Each is a peer's own, or that of an authority which allows
whoever it has signed. Files are read again for the next connection when they have changed; links that stand stay.
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import NoReturn

#: No file of keys is larger.
MAX_FILE_BYTES = 1 << 20

_OTHERS = stat.S_IRWXO
_GROUP = stat.S_IRWXG


class UnusableKeys(ValueError):
    """A key or a list of allowed keys cannot be read, or is none. The message says which, and what to do."""


@dataclass(frozen=True)
class Credentials:
    """Keys as they were when they were read: what one connection is made with.

    Attributes
    ----------
    key
        The private key and its certificate.
    calling, accepting
        For the end that calls, and for the one that is called.
    """

    key: bytes
    calling: ssl.SSLContext
    accepting: ssl.SSLContext


class LinkKeys:
    """The key of an instance and the keys it allows, from their files.

    Parameters
    ----------
    key, allowed_keys
        Paths of PEM files, or the PEM text itself.

    Raises
    ------
    UnusableKeys
        As :meth:`credentials`.
    """

    def __init__(self, key: str, allowed_keys: str) -> None:
        self._key = _Source("link_key", key, is_secret=True)
        self._allowed = _Source("link_allowed_keys", allowed_keys, is_secret=False)
        self._read_at: tuple[object, object] | None = None
        self._credentials = self.credentials()

    def credentials(self) -> Credentials:
        """The keys as they are now.

        Raises
        ------
        UnusableKeys
            A file cannot be read, others could read the key or change the list, or it is not what it should be.
        """
        now = (self._key.state(), self._allowed.state())
        if now != self._read_at:
            self._credentials = _credentials(self._key.read(), self._allowed.read(), self._key, self._allowed)
            self._read_at = now
        return self._credentials

    def credentials_with_key_of(self, before: Credentials) -> Credentials:
        """The keys allowed now, with the key that this end had before."""
        now = self.credentials()
        if now.key == before.key:
            return now
        return _credentials(before.key, self._allowed.read(), self._key, self._allowed)


def fingerprint(certificate: bytes) -> str:
    """What a certificate, in DER, is called in logs: ``SHA256:`` and 64 digits, as ``openssl x509 -fingerprint``."""
    return "SHA256:" + sha256(certificate).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only processes of this host can call at the numeric address ``host``."""
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


class _Source:
    """Where PEM text comes from."""

    def __init__(self, name: str, given: str, *, is_secret: bool) -> None:
        self.name = name
        self._is_secret = is_secret
        self._text = given.encode() if "-----BEGIN" in given else None
        self._path = given

    def __str__(self) -> str:
        return self.name if self._text is not None else f"{self.name} {self._path!r}"

    def state(self) -> object:
        """Differs from what it was when the file is another."""
        if self._text is not None:
            return None
        try:
            found = os.stat(self._path)
        except (OSError, ValueError) as error:
            raise UnusableKeys(f"{self} cannot be read: {error}") from None
        return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns, found.st_mode, found.st_uid

    def read(self) -> bytes:
        if self._text is not None:
            return self._text
        try:
            with open(self._path, "rb") as file:
                self._require_privacy(os.fstat(file.fileno()))
                text = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, UnusableKeys):
                raise
            raise UnusableKeys(f"{self} cannot be read: {error}") from None
        if len(text) > MAX_FILE_BYTES:
            raise UnusableKeys(f"{self} has more than {MAX_FILE_BYTES} bytes")
        return text

    def _require_privacy(self, found: os.stat_result) -> None:
        if not self._is_secret:
            if found.st_mode & stat.S_IWOTH:
                raise UnusableKeys(f"{self} can be changed by anybody: chmod o-w {self._path}")
            return
        # A file of root's can be given to a service by its group alone: so Kubernetes hands out secrets.
        by_group = found.st_uid == 0 != os.geteuid() and not found.st_mode & stat.S_IWGRP
        if found.st_mode & (_OTHERS if by_group else _OTHERS | _GROUP):
            raise UnusableKeys(
                f"{self} can be read by others, its mode is {stat.S_IMODE(found.st_mode):04o}: chmod 600 {self._path}"
            )


def _credentials(key: bytes, allowed: bytes, key_source: _Source, allowed_source: _Source) -> Credentials:
    calling, accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.num_tickets = 0  # nobody resumes a session
    for context in (calling, accepting):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # a peer is known by its key, wherever it is met
        context.verify_mode = ssl.CERT_REQUIRED
        # A certificate that is listed is allowed, whoever has signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _load_allowed(context, allowed, allowed_source)
        _load_key(context, key, key_source)
    return Credentials(key, calling, accepting)


def _load_allowed(context: ssl.SSLContext, allowed: bytes, source: _Source) -> None:
    try:
        context.load_verify_locations(cadata=allowed.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise UnusableKeys(
            f"{source} has no certificates: {error}; it takes those of the peers, in PEM, one after the other"
        ) from None


def _load_key(context: ssl.SSLContext, key: bytes, source: _Source) -> None:
    # OpenSSL takes a path. This one is of memory, and not of any file system.
    descriptor = os.memfd_create("llmdd link key")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_passphrase)
    except _Encrypted:
        raise UnusableKeys(f"{source} is encrypted, and there is nobody to ask for the passphrase") from None
    except (ssl.SSLError, OSError) as error:
        raise UnusableKeys(
            f"{source} is no key: {error}; it takes a private key and its certificate, in PEM, in one file "
            "(llmdd keys new NAME makes them)"
        ) from None
    finally:
        os.close(descriptor)


class _Encrypted(Exception):
    """A passphrase was asked for."""


def _no_passphrase() -> NoReturn:
    raise _Encrypted
