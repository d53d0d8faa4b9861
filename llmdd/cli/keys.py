"""``llmdd keys``: the keys by which the two ends of a link know each other."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmdd.link.keys import fingerprint

app = typer.Typer(help="Make the keys by which the two ends of a link know each other.", no_args_is_help=True)

# The end of time in a certificate (RFC 5280, 4.1.2.5): no end is foreseen.
_NO_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc)
_BEGINNING = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)  # wherever the peers' clocks stand
_LONGEST_NAME = 64


@app.command()
def new(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="A name for this end, and where the two files go.")],
) -> None:
    """Make a key: NAME.key, which stays secret with this end, and NAME.crt, which its peers are to allow.

    Join the .crt files of all peers of an end in one file: that is its list of allowed keys.
    """
    if not 0 < len(name.name) <= _LONGEST_NAME:
        raise typer.BadParameter(f"a name has 1 to {_LONGEST_NAME} characters", param_hint="NAME")
    try:
        made = make(name)
    except OSError as error:
        typer.echo(f"nothing is made: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{made.key}: the key of this end, for link_key or LLMDD_LINK_KEY; it stays secret")
    typer.echo(f"{made.certificate}: for the allowed keys of its peers")
    typer.echo(made.fingerprint)


class MadeKey(NamedTuple):
    """The two files of a key, and by what its certificate is known."""

    key: Path
    certificate: Path
    fingerprint: str


def make(name: Path) -> MadeKey:
    """Write NAME.key and NAME.crt; ``OSError``, and neither is there, if one of them cannot be made anew."""
    made = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.crt")
    key = Ed25519PrivateKey.generate()
    certificate = _certificate(key, name.name)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    _write_new(made[1], public, 0o644)
    try:
        _write_new(made[0], private + public, 0o600)
    except OSError:
        made[1].unlink()
        raise
    return MadeKey(*made, fingerprint(certificate.public_bytes(serialization.Encoding.DER)))


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A key, a certificate, or a list of allowed keys.")],
) -> None:
    """Show the certificates in a file as logs name them: fingerprint, subject, and when they end."""
    try:
        text = file.read_text(encoding="ascii")
        certificates = _certificates_in(text)
    except (OSError, ValueError) as error:
        typer.echo(f"cannot read {file}: {error}", err=True)
        raise typer.Exit(1) from None
    if not certificates:
        typer.echo(f"there is no certificate in {file}", err=True)
        raise typer.Exit(1)
    for certificate in certificates:
        der = certificate.public_bytes(serialization.Encoding.DER)
        ends = certificate.not_valid_after_utc
        until = "without end" if ends >= _NO_END else f"until {ends:%Y-%m-%d %H:%M} UTC"
        signs = ", allows whoever it has signed" if _is_authority(certificate) else ""
        typer.echo(f"{fingerprint(der)} {certificate.subject.rfc4514_string()}, {until}{signs}")


def _certificate(key: Ed25519PrivateKey, name: str) -> x509.Certificate:
    """Signed by itself, and able to sign no other: whoever is allowed cannot let others in."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGINNING)
        .not_valid_after(_NO_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, algorithm=None)
    )


def _write_new(file: Path, content: bytes, mode: int) -> None:
    """Write a file that must not be there yet, readable by no more than ``mode`` says at any moment."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as opened:
        opened.write(content)


def _certificates_in(text: str) -> list[x509.Certificate]:
    begin, end = ssl.PEM_HEADER, ssl.PEM_FOOTER
    blocks = [block.partition(end)[0] for block in text.split(begin)[1:]]
    return [x509.load_pem_x509_certificate(f"{begin}{block}{end}\n".encode()) for block in blocks]


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return True  # OpenSSL takes a certificate that does not say so for one, if it is old enough
