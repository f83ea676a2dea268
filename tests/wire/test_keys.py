"""flare.wire.keys (peer-ids.md, "Keys")."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import get_args

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import DecodeError, InvalidKey
from flare.wire.key_types import _SECP256K1_ORDER
from flare.wire.keys import MAX_KEY_FILE, Identity, KeyMessage, KeyType, Kind, PublicKey
from tests.wire.oracle import google_decode

VECTORS = Path(__file__).parents[1] / "vectors"
PAIRS = json.loads((VECTORS / "keys.json").read_text())["pairs"]
SIGNED = json.loads((VECTORS / "signatures.json").read_text())
KINDS: tuple[Kind, ...] = get_args(Kind)
IDENTITIES = {kind: Identity.from_protobuf(bytes.fromhex(PAIRS[kind]["private"])) for kind in KINDS}


def public_of(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, type: KeyType) -> bytes:
    return KeyMessage(type, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).encode()


@pytest.mark.parametrize("kind", KINDS)
class TestVectors:
    """peer-ids.md, "Test vectors", and signatures of go-libp2p's."""

    def test_private_keys_give_the_public_ones(self, kind: Kind) -> None:
        identity = IDENTITIES[kind]
        assert identity.kind == identity.public_key.kind == kind
        assert identity.public_key.to_protobuf().hex() == PAIRS[kind]["public"]
        assert identity.to_protobuf().hex() == PAIRS[kind]["private"]

    def test_public_keys_come_back(self, kind: Kind) -> None:
        data = bytes.fromhex(PAIRS[kind]["public"])
        key = PublicKey.from_protobuf(data)
        assert key.to_protobuf() == data
        assert key == IDENTITIES[kind].public_key
        assert hash(key) == hash(IDENTITIES[kind].public_key)
        assert google_decode("KeyMessage", data).SerializeToString(deterministic=True) == data

    def test_signatures_of_go(self, kind: Kind) -> None:
        if kind == "ed25519":
            return  # go's tests hold none
        vector = SIGNED["keys"][kind]
        message, signature = SIGNED["message"].encode(), bytes.fromhex(vector["signature"])
        key = PublicKey.from_protobuf(bytes.fromhex(vector["public"]))
        assert key.verify(message, signature)
        assert not key.verify(message + b"!", signature)
        assert Identity.from_protobuf(bytes.fromhex(vector["private"])).public_key == key


@pytest.mark.parametrize("kind", KINDS)
class TestSignatures:
    @settings(max_examples=10)
    @given(st.binary(max_size=100))
    def test_verify_what_was_signed_and_nothing_else(self, kind: Kind, data: bytes) -> None:
        identity = IDENTITIES[kind]
        signature = identity.sign(data)
        assert identity.public_key.verify(data, signature)
        assert not identity.public_key.verify(data + b"x", signature)
        assert not Identity.generate("ed25519").public_key.verify(data, signature)

    @settings(max_examples=30)
    @given(st.binary(max_size=80))
    def test_junk_does_not_verify(self, kind: Kind, signature: bytes) -> None:
        assert IDENTITIES[kind].public_key.verify(b"data", signature) is False

    def test_a_new_identity_signs(self, kind: Kind) -> None:
        identity = Identity.generate(kind)
        assert identity.kind == kind
        assert identity.public_key.verify(b"data", identity.sign(b"data"))
        again = Identity.from_protobuf(identity.to_protobuf())
        assert again.peer_id == identity.peer_id


def test_secp256k1_signatures_have_a_low_s() -> None:
    for n in range(16):
        _, s = decode_dss_signature(IDENTITIES["secp256k1"].sign(bytes([n])))
        assert s <= _SECP256K1_ORDER // 2, "BIP 62"


class TestLimits:
    def test_ecdsa_curves(self) -> None:
        for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
            private = ec.generate_private_key(curve)
            identity = Identity(KeyType.ECDSA, private)
            key = PublicKey.from_protobuf(public_of(private.public_key(), KeyType.ECDSA))
            assert key.verify(b"data", identity.sign(b"data"))
            assert Identity.from_protobuf(identity.to_protobuf()).public_key == key
        for other in (ec.SECP224R1(), ec.SECP256K1()):
            public = ec.generate_private_key(other).public_key()
            with pytest.raises(DecodeError, match="none of P-256"):
                PublicKey.from_protobuf(public_of(public, KeyType.ECDSA))

    @pytest.mark.parametrize(("bits", "allowed"), [(2047, False), (2048, True), (8192, True), (8193, False)])
    def test_rsa_sizes(self, bits: int, allowed: bool) -> None:
        modulus = (1 << bits) - 1  # odd, which is all that a public key needs
        data = public_of(rsa.RSAPublicNumbers(65537, modulus).public_key(), KeyType.RSA)
        if allowed:
            assert PublicKey.from_protobuf(data).key.key_size == bits
        else:
            with pytest.raises(DecodeError, match="2048 to 8192 bits"):
                PublicKey.from_protobuf(data)

    @pytest.mark.parametrize(("exponent", "allowed"), [(2**31 - 1, True), (2**31 + 1, False)])
    def test_rsa_exponents(self, exponent: int, allowed: bool) -> None:
        data = public_of(rsa.RSAPublicNumbers(exponent, (1 << 2048) - 1).public_key(), KeyType.RSA)
        if allowed:
            PublicKey.from_protobuf(data)
        else:
            with pytest.raises(DecodeError, match="exponent"):
                PublicKey.from_protobuf(data)

    def test_a_small_rsa_private_key_is_refused(self) -> None:
        weak = Identity(KeyType.RSA, rsa.generate_private_key(65537, 1024))
        with pytest.raises(InvalidKey, match="2048 to 8192"):
            Identity.from_protobuf(weak.to_protobuf())


class TestMalformed:
    @pytest.mark.parametrize(
        "message",
        [
            KeyMessage(KeyType.ED25519, bytes(31)),
            KeyMessage(KeyType.ED25519, bytes(33)),
            KeyMessage(KeyType.SECP256K1, b""),
            KeyMessage(KeyType.SECP256K1, b"\x02" + b"\xff" * 32),
            KeyMessage(KeyType.SECP256K1, bytes.fromhex(PAIRS["secp256k1"]["public"])[4:-1]),
            KeyMessage(KeyType.ECDSA, b"junk"),
            KeyMessage(KeyType.RSA, b""),
            KeyMessage(KeyType.RSA, bytes.fromhex(PAIRS["ecdsa"]["public"])[4:]),
            KeyMessage(KeyType.ECDSA, bytes.fromhex(PAIRS["rsa"]["public"])[5:]),
        ],
        ids=repr,
    )
    def test_public_keys(self, message: KeyMessage) -> None:
        with pytest.raises(DecodeError):
            PublicKey.from_protobuf(message.encode())

    @pytest.mark.parametrize(
        "data", [b"", b"\x08\x01", b"\x08\x09\x12\x00", b"\x12\x00", b"\x08\x01\x12\x20"]
    )
    def test_messages(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            PublicKey.from_protobuf(data)
        with pytest.raises(InvalidKey, match=r"no libp2p private key|private key:"):
            Identity.from_protobuf(data)

    @settings(max_examples=200)
    @given(st.sampled_from(KeyType), st.binary(max_size=100))
    def test_junk_raises_nothing_else(self, type: KeyType, data: bytes) -> None:
        encoded = KeyMessage(type, data).encode()
        with contextlib.suppress(DecodeError):
            PublicKey.from_protobuf(encoded)
        with contextlib.suppress(InvalidKey):
            Identity.from_protobuf(encoded)

    @settings(max_examples=100)
    @given(st.sampled_from(KINDS), st.data())
    def test_a_changed_byte_raises_nothing_else(self, kind: Kind, draw: st.DataObject) -> None:
        data = bytearray.fromhex(PAIRS[kind]["public"])
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
        try:
            key = PublicKey.from_protobuf(bytes(data))
        except DecodeError:
            return
        assert key.verify(b"", b"") is False

    def test_an_unknown_kind_is_misuse(self) -> None:
        with pytest.raises(InvalidKey, match="rsa, ed25519, secp256k1, ecdsa"):
            Identity.generate("dsa")  # type: ignore[arg-type]


class TestEd25519:
    """peer-ids.md, "Ed25519": the public half once, in old files twice, and it must belong to the private
    half."""

    seed, public = (
        bytes.fromhex(PAIRS["ed25519"]["private"])[4:36],
        bytes.fromhex(PAIRS["ed25519"]["public"])[4:],
    )

    def load(self, data: bytes) -> Identity:
        return Identity.from_protobuf(KeyMessage(KeyType.ED25519, data).encode())

    def test_both_formats(self) -> None:
        new = self.load(self.seed + self.public)
        assert self.load(self.seed + self.public * 2).to_protobuf() == new.to_protobuf()

    def test_another_public_half_is_refused(self) -> None:
        for data in (self.seed + bytes(32), self.seed + self.public + bytes(32), self.seed):
            with pytest.raises(InvalidKey):
                self.load(data)


class TestFiles:
    def test_come_back_and_are_private(self, tmp_path: Path) -> None:
        path = tmp_path / "identity"
        identity = Identity.generate()
        identity.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == identity.to_protobuf(), "the format that other libp2p programs write"
        assert Identity.load(path).peer_id == identity.peer_id
        assert [*tmp_path.iterdir()] == [path]

    def test_are_not_overwritten_unasked(self, tmp_path: Path) -> None:
        path = tmp_path / "identity"
        one, two = Identity.generate(), Identity.generate()
        one.save(path)
        with pytest.raises(FileExistsError):
            two.save(path)
        assert Identity.load(path).peer_id == one.peer_id
        two.save(path, replace=True)
        assert Identity.load(path).peer_id == two.peer_id
        assert [*tmp_path.iterdir()] == [path]

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "identity"
        with pytest.raises(FileNotFoundError, match="identity"):
            Identity.load(path)
        for junk in (b"", b"-----BEGIN PRIVATE KEY-----", os.urandom(200)):
            path.write_bytes(junk)
            with pytest.raises(InvalidKey, match="identity"):
                Identity.load(path)
        path.write_bytes(bytes(MAX_KEY_FILE + 1))
        with pytest.raises(InvalidKey, match="too large"):
            Identity.load(path)
        with pytest.raises(FileNotFoundError):
            Identity.generate().save(tmp_path / "missing" / "identity")


def test_secrets_are_not_shown() -> None:
    identity = IDENTITIES["ed25519"]
    secret = identity.key.private_bytes_raw()
    shown = repr(identity) + repr(identity.public_key) + repr(KeyMessage.decode(identity.to_protobuf()))
    assert secret.hex() not in shown
    assert repr(secret)[2:-1] not in shown
    assert str(identity.peer_id) in shown
