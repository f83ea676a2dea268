"""Certificates of TLS and QUIC, which say by an extension whose they are (tls/tls.md, "Peer Authentication").

A peer signs the certificate's key with its identity key and puts key and signature into the extension. The
certificate is signed with its own key. There is no chain, no name and no authority.
"""

from __future__ import annotations

import datetime
import secrets
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from flare.errors import AuthenticationFailed, DecodeError
from flare.wire.keys import Identity, PublicKey
from flare.wire.peer_id import PeerId

EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
MAX_SIZE: Final = 16 * 1024  # bytes of a certificate: RSA keys of 8192 bits fill less than 5 KiB
VALID_BEFORE: Final = 30 * 86400  # seconds before a certificate is made: peers' clocks may be behind ours
VALID_AFTER: Final = 365 * 86400
RENEW_BEFORE: Final = 180 * 86400  # seconds of validity left when a new one is made

_SIGNED: Final = b"libp2p-tls-handshake:"
_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_RSA_BITS: Final = range(2048, 8192 + 1)  # less is weak, more costs whoever verifies too much
# Critical or not, they name and limit what libp2p does not go by.
_UNDERSTOOD: Final = frozenset(
    (
        EXTENSION,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    )
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of ours: its key (ECDSA on P-256), its DER, and when it ends, in Unix seconds."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    der: bytes
    not_after: float


_own: WeakKeyDictionary[Identity, Certificate] = WeakKeyDictionary()


def own(identity: Identity, now: float | None = None) -> Certificate:
    """The certificate of `identity`: made once, and anew RENEW_BEFORE seconds before it ends."""
    now = time.time() if now is None else now
    certificate = _own.get(identity)
    if certificate is None or certificate.not_after - now < RENEW_BEFORE:
        certificate = _own[identity] = make(identity, now)
    return certificate


def make(identity: Identity, now: float | None = None) -> Certificate:
    """A new certificate that says it is `identity`'s, valid around `now` (Unix seconds)."""
    now = time.time() if now is None else now
    key = ec.generate_private_key(ec.SECP256R1())
    # The issuer must not be empty (RFC 5280, 4.1.2.4): a number, as go-libp2p has it.
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, str(secrets.randbelow(1 << 62)))])
    not_after = int(now) + VALID_AFTER
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(int(now) - VALID_BEFORE))
        .not_valid_after(_moment(not_after))
        .add_extension(
            x509.UnrecognizedExtension(EXTENSION, sign(identity, key.public_key())), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Certificate(key, certificate.public_bytes(serialization.Encoding.DER), float(not_after))


def sign(identity: Identity, key: ec.EllipticCurvePublicKey) -> bytes:
    """The extension that ties a certificate's `key` to `identity` ("libp2p Public Key Extension")."""
    return encode_signed_key(identity.public_key.to_protobuf(), identity.sign(_SIGNED + _key_info(key)))


def verify(chain: Sequence[bytes], now: float) -> tuple[PeerId, PublicKey]:
    """Whose the certificate is that a peer showed: `chain` in DER, `now` in Unix seconds.

    Whether that is the peer expected is left to the caller, and that the peer holds the certificate's key to
    TLS. Raises AuthenticationFailed, with the reason, and nothing else.
    """
    if len(chain) != 1:
        raise _refused(
            f"{len(chain)} certificates instead of one" if chain else "the peer sent no certificate"
        )
    if len(chain[0]) > MAX_SIZE:
        raise _refused(f"{len(chain[0])} bytes, at most {MAX_SIZE} allowed")
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # what `cryptography` will refuse one day concerns nobody
            certificate = x509.load_der_x509_certificate(chain[0])
            extension = _signed_key_of(certificate)
            key = certificate.public_key()
            _check_strength(certificate, key)
            certificate.verify_directly_issued_by(certificate)
            before = certificate.not_valid_before_utc.timestamp()
            after = certificate.not_valid_after_utc.timestamp()
    except InvalidSignature:
        raise _refused("its signature is not its own key's") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _refused(f"cannot be read: {error}") from None
    if now < before:
        raise _refused(f"valid only from {_moment(before)}")
    if now > after:
        raise _refused(f"expired on {_moment(after)}")
    try:
        public, signature = decode_signed_key(extension)
        identity_key = PublicKey.from_protobuf(public)
    except DecodeError as error:
        raise _refused(f"its libp2p extension: {error}") from None
    peer = PeerId.from_public_key(identity_key)
    if not identity_key.verify(_SIGNED + _key_info(key), signature):
        raise _refused(f"peer {peer} did not sign its key")
    return peer, identity_key


def _signed_key_of(certificate: x509.Certificate) -> bytes:
    try:
        extensions = list(certificate.extensions)
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _refused(str(error)) from None
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise _refused(f"the critical extension {extension.oid.dotted_string} is unknown here")
    for extension in extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid == EXTENSION:
            return extension.value.value
    raise _refused("no libp2p extension")


def _check_strength(certificate: x509.Certificate, key: object) -> None:
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and not isinstance(algorithm, _HASHES):
        raise _refused(f"signed over a hash of {algorithm.name}")
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES):
            return
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS:
            return
        case ed25519.Ed25519PublicKey():
            return
    raise _refused("its key is none of ECDSA on a NIST curve, Ed25519 and RSA of 2048 to 8192 bits")


# SignedKey ::= SEQUENCE { publicKey OCTET STRING, signature OCTET STRING }


def encode_signed_key(public_key: bytes, signature: bytes) -> bytes:
    """The value of the libp2p extension, in DER."""
    return _element(_SEQUENCE, _element(_OCTETS, public_key) + _element(_OCTETS, signature))


def decode_signed_key(data: bytes) -> tuple[bytes, bytes]:
    """The public key, a PublicKey message, and the signature in a libp2p extension. Raises DecodeError."""
    body, rest = _read_element(data, _SEQUENCE)
    public_key, body = _read_element(body, _OCTETS)
    signature, body = _read_element(body, _OCTETS)
    if rest or body:
        raise DecodeError("bytes behind the end of a SignedKey")
    return public_key, signature


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def _read_element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The content of the DER element at the start of `data`, and what follows it."""
    if len(data) < 2 or data[0] != tag:
        raise DecodeError(f"no DER element with tag {tag:#04x} where one belongs")
    size, at = data[1], 2
    if size >= 0x80:
        octets = data[2 : 2 + (size & 0x7F)]
        at += size & 0x7F
        size = int.from_bytes(octets, "big")
        if not 1 <= len(octets) <= 4 or size < 0x80 or octets[0] == 0:
            raise DecodeError("a DER length that is not minimal")
    if at + size > len(data):
        raise DecodeError(f"a DER element of {size} bytes where {max(0, len(data) - at)} are left")
    return data[at : at + size], data[at + size :]


def _key_info(key: object) -> bytes:
    """The SubjectPublicKeyInfo of a certificate's key."""
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _refused(reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(reason, protocol="certificate")
