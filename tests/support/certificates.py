"""Certificates with one thing wrong: for tests of who is refused, and why."""

from __future__ import annotations

import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from flare.transport.certificate import EXTENSION, encode_signed_key
from flare.wire.keys import Identity

_TWIN = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.2")  # as long as the libp2p extension's, to be renamed


class Forged:
    """A certificate of `identity`, good around `now` (Unix seconds) until something about it is changed."""

    def __init__(self, identity: Identity, now: float) -> None:
        self.identity = identity
        self.signer = identity
        self.key: Any = ec.generate_private_key(ec.SECP256R1())
        self.signed_key: Any = None  # the key that the identity signs: the certificate's own
        self.issuer_key: Any = None
        self.hash: Any = hashes.SHA256()
        self.before, self.after = now - 3600, now + 3600
        self.prefix = b"libp2p-tls-handshake:"
        self.public_key: bytes | None = None
        self.value: bytes | None = None
        self.critical = False
        self.present = True
        self.twice = False
        self.extras: list[tuple[x509.ExtensionType, bool]] = []

    def without_extension(self) -> None:
        self.present = False

    def twice_the_extension(self) -> None:
        self.twice = True

    def with_value(self, value: bytes) -> None:
        self.value = value

    def signed_by(self, identity: Identity) -> None:
        self.signer = identity

    def over_another_key(self) -> None:
        self.signed_key = ec.generate_private_key(ec.SECP256R1())

    def with_prefix(self, prefix: bytes) -> None:
        self.prefix = prefix

    def with_public_key(self, public_key: bytes) -> None:
        self.public_key = public_key

    def issued_by_another(self) -> None:
        self.issuer_key = ec.generate_private_key(ec.SECP256R1())

    def valid(self, before: float, after: float) -> None:
        self.before, self.after = before, after

    def with_critical(self, oid: str) -> None:
        self.extras.append((x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b""), True))

    def with_key(self, key: Any) -> None:
        self.key = key

    def pad_to(self, size: int, padding: int) -> None:
        """Fill up to at most `size` bytes, a few less, with an extension that nobody knows."""
        oid = x509.ObjectIdentifier("1.2.3.5")
        self.extras.append((x509.UnrecognizedExtension(oid, bytes(padding - 40)), False))
        assert size - 64 < len(self.der()) <= size

    def der(self) -> bytes:
        """The certificate, as it stands."""
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "libp2p.io")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(4711)
            .not_valid_before(datetime.datetime.fromtimestamp(self.before, datetime.UTC))
            .not_valid_after(datetime.datetime.fromtimestamp(self.after, datetime.UTC))
        )
        if self.present:
            value = self._value() if self.value is None else self.value
            builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, value), self.critical)
            if self.twice:
                builder = builder.add_extension(x509.UnrecognizedExtension(_TWIN, value), self.critical)
        for extra, critical in self.extras:
            builder = builder.add_extension(extra, critical)
        key = self.issuer_key or self.key
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else self.hash
        made = builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)
        if (
            self.twice
        ):  # `cryptography` makes no such thing; the signature does not matter, as this is seen first
            made = made.replace(_oid(_TWIN), _oid(EXTENSION))
        return made

    def key_pem(self) -> bytes:
        """The certificate's private key."""
        pem: bytes = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem

    def _value(self) -> bytes:
        key = (self.signed_key or self.key).public_key()
        info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        public_key = self.identity.public_key.to_protobuf() if self.public_key is None else self.public_key
        return encode_signed_key(public_key, self.signer.sign(self.prefix + info))


def _oid(oid: x509.ObjectIdentifier) -> bytes:
    """Its DER, whose last arc is its last byte."""
    return bytes.fromhex("2b0601040183a25a01") + bytes((int(oid.dotted_string.rsplit(".", 1)[1]),))
