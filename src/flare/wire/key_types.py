"""The four kinds of keys, each with its encodings and signatures (peer-ids.md, "Key Types").

Loading raises ValueError for data that is no key of the kind, verifying raises InvalidSignature.
"""

from __future__ import annotations

import hmac
from typing import Any, Protocol, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

MIN_RSA_BITS = 2048  # go-libp2p's limits: below is weak,
MAX_RSA_BITS = 8192  # above costs whoever verifies too much
MAX_RSA_EXPONENT = (1 << 31) - 1  # likewise

_SECP256K1 = ec.SECP256K1()
_SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_SHA256 = hashes.SHA256()
_ECDSA = ec.ECDSA(_SHA256)
_EcKey = TypeVar("_EcKey", ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)


class Algorithm(Protocol):
    """What a kind of key can do. `public` and `private` are the objects of `cryptography`'s."""

    def generate(self) -> Any: ...
    def load_private(self, data: bytes) -> Any: ...
    def private_data(self, private: Any) -> bytes: ...
    def load_public(self, data: bytes) -> Any: ...
    def public_data(self, public: Any) -> bytes: ...
    def sign(self, private: Any, data: bytes) -> bytes: ...
    def verify(self, public: Any, data: bytes, signature: bytes) -> None: ...


class Ed25519:
    """Public keys are 32 raw bytes; private ones the seed and the public key, in old files that twice."""

    def generate(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.generate()

    def load_private(self, data: bytes) -> ed25519.Ed25519PrivateKey:
        if len(data) not in (64, 96):
            raise ValueError(f"an Ed25519 private key has 64 or 96 bytes, not {len(data)}")
        private = ed25519.Ed25519PrivateKey.from_private_bytes(data[:32])
        public = self.public_data(private.public_key())
        if not hmac.compare_digest(data[32:], public * (len(data) // 32 - 1)):
            raise ValueError("the public half of the Ed25519 key does not belong to its private half")
        return private

    def private_data(self, private: ed25519.Ed25519PrivateKey) -> bytes:
        return private.private_bytes_raw() + self.public_data(private.public_key())

    def load_public(self, data: bytes) -> ed25519.Ed25519PublicKey:
        if len(data) != 32:
            raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(data)}")
        return ed25519.Ed25519PublicKey.from_public_bytes(data)

    def public_data(self, public: ed25519.Ed25519PublicKey) -> bytes:
        return public.public_bytes_raw()

    def sign(self, private: ed25519.Ed25519PrivateKey, data: bytes) -> bytes:
        return private.sign(data)

    def verify(self, public: ed25519.Ed25519PublicKey, data: bytes, signature: bytes) -> None:
        public.verify(signature, data)


class _EllipticCurve:
    """ECDSA over SHA-256, signatures in DER."""

    def verify(self, public: ec.EllipticCurvePublicKey, data: bytes, signature: bytes) -> None:
        public.verify(signature, data, _ECDSA)


class Secp256k1(_EllipticCurve):
    """Public keys are compressed points, private ones 32-byte scalars; signatures have a low s (BIP 62)."""

    def generate(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(_SECP256K1)

    def load_private(self, data: bytes) -> ec.EllipticCurvePrivateKey:
        if len(data) != 32:
            raise ValueError(f"a secp256k1 private key has 32 bytes, not {len(data)}")
        return ec.derive_private_key(int.from_bytes(data, "big"), _SECP256K1)

    def private_data(self, private: ec.EllipticCurvePrivateKey) -> bytes:
        return private.private_numbers().private_value.to_bytes(32, "big")

    def load_public(self, data: bytes) -> ec.EllipticCurvePublicKey:
        return ec.EllipticCurvePublicKey.from_encoded_point(_SECP256K1, data)

    def public_data(self, public: ec.EllipticCurvePublicKey) -> bytes:
        return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)

    def sign(self, private: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(data, _ECDSA))
        return encode_dss_signature(r, min(s, _SECP256K1_ORDER - s))


class Ecdsa(_EllipticCurve):
    """NIST curves: public keys in PKIX DER, private ones in SEC 1 DER. Ours are on P-256."""

    curves = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

    def generate(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    def load_private(self, data: bytes) -> ec.EllipticCurvePrivateKey:
        private = _load_der_private(data)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError("the DER holds no EC key")
        return self._on_known_curve(private)

    def private_data(self, private: ec.EllipticCurvePrivateKey) -> bytes:
        return _traditional_der(private)

    def load_public(self, data: bytes) -> ec.EllipticCurvePublicKey:
        public = _load_der_public(data)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("the DER holds no EC key")
        return self._on_known_curve(public)

    def public_data(self, public: ec.EllipticCurvePublicKey) -> bytes:
        return _pkix_der(public)

    def sign(self, private: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
        return private.sign(data, _ECDSA)

    def _on_known_curve(self, key: _EcKey) -> _EcKey:
        if not isinstance(key.curve, self.curves):
            raise ValueError(f"the curve {key.curve.name} is none of P-256, P-384 and P-521")
        return key


class Rsa:
    """Public keys in PKIX DER, private ones in PKCS #1 DER; signatures are PKCS #1 v1.5 over SHA-256."""

    def generate(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, MIN_RSA_BITS)

    def load_private(self, data: bytes) -> rsa.RSAPrivateKey:
        private = _load_der_private(data)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ValueError("the DER holds no RSA key")
        _check_rsa(private.public_key())
        return private

    def private_data(self, private: rsa.RSAPrivateKey) -> bytes:
        return _traditional_der(private)

    def load_public(self, data: bytes) -> rsa.RSAPublicKey:
        public = _load_der_public(data)
        if not isinstance(public, rsa.RSAPublicKey):
            raise ValueError("the DER holds no RSA key")
        _check_rsa(public)
        return public

    def public_data(self, public: rsa.RSAPublicKey) -> bytes:
        return _pkix_der(public)

    def sign(self, private: rsa.RSAPrivateKey, data: bytes) -> bytes:
        return private.sign(data, padding.PKCS1v15(), _SHA256)

    def verify(self, public: rsa.RSAPublicKey, data: bytes, signature: bytes) -> None:
        public.verify(signature, data, padding.PKCS1v15(), _SHA256)


def _check_rsa(public: rsa.RSAPublicKey) -> None:
    if not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
        raise ValueError(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, not {public.key_size}")
    if public.public_numbers().e > MAX_RSA_EXPONENT:
        raise ValueError("the RSA public exponent is above 2**31 - 1")


def _load_der_public(data: bytes) -> object:
    try:
        return serialization.load_der_public_key(data)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None


def _load_der_private(data: bytes) -> object:
    try:
        return serialization.load_der_private_key(data, None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(str(error)) from None


def _pkix_der(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _traditional_der(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return private.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
