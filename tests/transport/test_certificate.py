"""Certificates of TLS and QUIC (tls/tls.md, "Peer Authentication"): vectors, our own, and hostile ones."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import AuthenticationFailed, DecodeError
from flare.transport import certificate
from flare.transport.certificate import EXTENSION, decode_signed_key, encode_signed_key, make, own, verify
from flare.wire.keys import Identity, Kind
from tests.support.certificates import Forged

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "certificates.json").read_text())[
    "certificates"
]
NOW = 1_800_000_000.0
ALICE = Identity.generate()
GOOD = make(ALICE, NOW).der


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['kind']}-{vector['peer']}")
def test_the_vectors_of_the_spec(vector: dict[str, Any]) -> None:
    chain = [bytes.fromhex(vector["certificate"])]
    if vector["peer"] is None:
        with pytest.raises(AuthenticationFailed, match="did not sign"):
            verify(chain, NOW)
    else:
        peer, key = verify(chain, NOW)
        assert str(peer) == vector["peer"]
        assert key.kind == vector["kind"]
        assert key.peer_id == peer


@pytest.mark.parametrize("kind", ["ed25519", "secp256k1", "ecdsa", "rsa"])
def test_what_we_make_says_who_we_are(kind: Kind) -> None:
    identity = Identity.generate(kind)
    made = make(identity, NOW)
    assert verify([made.der], NOW) == (identity.peer_id, identity.public_key)
    assert isinstance(made.key.curve, ec.SECP256R1)
    assert len(made.der) < 2048


def test_the_certificate_s_key_has_nothing_to_do_with_the_identity() -> None:
    assert make(ALICE, NOW).key.private_numbers() != make(ALICE, NOW).key.private_numbers()


def test_validity_at_its_limits() -> None:
    der = make(ALICE, NOW).der
    first, last = NOW - certificate.VALID_BEFORE, NOW + certificate.VALID_AFTER
    verify([der], first)
    verify([der], last)
    with pytest.raises(AuthenticationFailed, match="valid only from"):
        verify([der], first - 1)
    with pytest.raises(AuthenticationFailed, match="expired"):
        verify([der], last + 1)


def test_our_own_is_kept_and_renewed_before_it_ends() -> None:
    identity = Identity.generate()
    first = own(identity, NOW)
    due = first.not_after - certificate.RENEW_BEFORE
    assert own(identity, due) is first
    second = own(identity, due + 1)
    assert second is not first
    assert second.not_after > first.not_after
    assert own(identity, due + 1) is second


def test_the_clock_is_the_wall_s_unless_another_is_given() -> None:
    verify([own(Identity.generate()).der], time.time())


# Hostile ones. `Forged` makes a good certificate unless told otherwise.

HOSTILE: dict[str, tuple[Callable[[Forged], object], str]] = {
    "no extension": (lambda f: f.without_extension(), "no libp2p extension"),
    "two extensions": (lambda f: f.twice_the_extension(), "[Dd]uplicate"),
    "an empty extension": (lambda f: f.with_value(b""), "its libp2p extension"),
    "another peer's signature": (lambda f: f.signed_by(Identity.generate()), "did not sign its key"),
    "a signature of another key": (lambda f: f.over_another_key(), "did not sign its key"),
    "a signature without the prefix": (lambda f: f.with_prefix(b""), "did not sign its key"),
    "a public key of no known type": (
        lambda f: f.with_public_key(b"\x08\x09\x12\x01x"),
        "its libp2p extension",
    ),
    "a public key cut short": (lambda f: f.with_public_key(b"\x08\x01\x12\x20short"), "its libp2p extension"),
    "signed by another certificate": (lambda f: f.issued_by_another(), "its signature|cannot be read"),
    "expired": (lambda f: f.valid(NOW - 10, NOW - 1), "expired"),
    "not yet valid": (lambda f: f.valid(NOW + 1, NOW + 10), "valid only from"),
    "a critical extension nobody knows": (
        lambda f: f.with_critical("1.2.3.4"),
        r"critical extension 1\.2\.3\.4",
    ),
    "RSA of 1024 bits": (lambda f: f.with_key(rsa.generate_private_key(65537, 1024)), "its key is none of"),
    "a curve of coins": (lambda f: f.with_key(ec.generate_private_key(ec.SECP256K1())), "its key is none of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_certificate_is_refused_with_its_reason(name: str) -> None:
    bend, reason = HOSTILE[name]
    forged = Forged(ALICE, NOW)
    bend(forged)
    with pytest.raises(AuthenticationFailed, match=reason):
        verify([forged.der()], NOW)


def test_what_is_forged_is_good_when_nothing_is_bent() -> None:
    assert verify([Forged(ALICE, NOW).der()], NOW)[0] == ALICE.peer_id


def test_a_critical_libp2p_extension_is_as_good() -> None:
    forged = Forged(ALICE, NOW)
    forged.critical = True
    assert verify([forged.der()], NOW)[0] == ALICE.peer_id


def test_an_unknown_extension_that_is_not_critical_is_ignored() -> None:
    forged = Forged(ALICE, NOW)
    forged.extras.append((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"what"), False))
    assert verify([forged.der()], NOW)[0] == ALICE.peer_id


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "P-521", "Ed25519", "RSA"],
)
def test_other_kinds_of_certificate_keys(key: Any) -> None:
    forged = Forged(ALICE, NOW)
    forged.with_key(key)
    assert verify([forged.der()], NOW)[0] == ALICE.peer_id


def test_exactly_one_certificate() -> None:
    der = make(ALICE, NOW).der
    with pytest.raises(AuthenticationFailed, match="no certificate"):
        verify([], NOW)
    with pytest.raises(AuthenticationFailed, match="2 certificates instead of one"):
        verify([der, der], NOW)


def test_a_certificate_s_size_at_the_limit_and_past_it() -> None:
    forged = Forged(ALICE, NOW)
    padding = certificate.MAX_SIZE - len(forged.der())
    forged.pad_to(certificate.MAX_SIZE, padding)
    der = forged.der()
    assert len(der) <= certificate.MAX_SIZE
    assert verify([der], NOW)[0] == ALICE.peer_id
    with pytest.raises(AuthenticationFailed, match=f"{certificate.MAX_SIZE + 1} bytes"):
        verify([der + bytes(certificate.MAX_SIZE + 1 - len(der))], NOW)


def test_a_hash_that_nobody_signs_certificates_with_is_refused() -> None:
    forged = Forged(ALICE, NOW)
    forged.hash = hashes.SHA224()
    with pytest.raises(AuthenticationFailed, match="hash of sha224"):
        verify([forged.der()], NOW)


# The extension's encoding


@given(st.binary(max_size=70_000), st.binary(max_size=600))
def test_a_signed_key_survives_its_encoding(public_key: bytes, signature: bytes) -> None:
    assert decode_signed_key(encode_signed_key(public_key, signature)) == (public_key, signature)


@pytest.mark.parametrize("size", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000])
def test_lengths_around_each_form(size: int) -> None:
    value = encode_signed_key(bytes(size), b"")
    assert decode_signed_key(value) == (bytes(size), b"")
    with pytest.raises(DecodeError):
        decode_signed_key(value[:-1])
    with pytest.raises(DecodeError, match="behind the end"):
        decode_signed_key(value + b"\0")


@pytest.mark.parametrize(
    "hex_value",
    [
        "",
        "30",
        "3100",
        "3000",
        "3080040004000000",  # indefinite
        "308104 0400 0400",  # 4 fits into one byte
        "30820004 0400 0400",
        "3085000000000404000400",
        "30840000",
        "3004 0400 0300",
        "3006 0400 0400 0400",
    ],
)
def test_der_that_is_none(hex_value: str) -> None:
    with pytest.raises(DecodeError):
        decode_signed_key(bytes.fromhex(hex_value))


@given(st.binary(max_size=300))
def test_only_one_encoding_of_each_signed_key(data: bytes) -> None:
    try:
        decoded = decode_signed_key(data)
    except DecodeError:
        return
    assert encode_signed_key(*decoded) == data


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_bent_certificate_is_refused_or_still_the_peer_s(data: st.DataObject) -> None:
    der = bytearray(GOOD)
    at = data.draw(st.integers(0, len(der) - 1))
    der[at] ^= data.draw(st.integers(1, 255))
    try:
        peer, _ = verify([bytes(der)], NOW)
    except AuthenticationFailed:
        return
    assert peer == ALICE.peer_id


def test_the_extension_is_not_critical_and_has_the_oid_of_libp2p() -> None:
    made = x509.load_der_x509_certificate(GOOD)
    extension = made.extensions.get_extension_for_oid(EXTENSION)
    assert not extension.critical
    assert made.version == x509.Version.v3
    assert made.issuer == made.subject
    assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
    assert made.not_valid_before_utc == datetime.datetime.fromtimestamp(
        NOW - certificate.VALID_BEFORE, datetime.UTC
    )
