"""Keys for links: good ones, and such as must not be."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmdd.link.keys import fingerprint

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Key:
    """A private key and its certificate."""

    private: Ed25519PrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(
        cls, name: str, *, signed_by: Key | None = None, is_authority: bool = False, ends: datetime.datetime = NOW + DAY
    ) -> Key:
        private = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if signed_by is None else signed_by.certificate.subject)
            .public_key(private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 2 * DAY)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(private if signed_by is None else signed_by.private, None)
        )
        return cls(private, certificate)

    @property
    def public_text(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def text(self) -> str:
        """The private key and the certificate."""
        return self.private_text() + self.public_text

    def private_text(self, passphrase: bytes | None = None) -> str:
        encryption = (
            serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
        )
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        ).decode()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate.public_bytes(serialization.Encoding.DER))


def write(file: Path, text: str, mode: int = 0o600) -> str:
    """Put a text in the place of a file's, if there is one, all at once; its path."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(mode)
    os.replace(beside, file)
    return str(file)


def join(keys: Iterable[Key]) -> str:
    """A list of allowed keys."""
    return "".join(key.public_text for key in keys)
