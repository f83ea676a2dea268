"""Certificates and their libp2p extension from strangers: only AuthenticationFailed, and nobody passes for
another.
"""

from __future__ import annotations

from flare.errors import AuthenticationFailed, DecodeError
from flare.transport import certificate
from flare.wire.keys import Identity, Kind

_KINDS: tuple[Kind, ...] = ("ed25519", "secp256k1", "ecdsa", "rsa")
_NOW = 1_800_000_000.0
_IDENTITIES = [Identity.generate(kind) for kind in _KINDS]
_PEERS = {who.peer_id for who in _IDENTITIES}

CORPUS = (
    *(certificate.make(who, _NOW).der for who in _IDENTITIES),
    *(certificate.encode_signed_key(who.public_key.to_protobuf(), who.sign(b"")) for who in _IDENTITIES),
)


def fuzz(data: bytes) -> None:
    try:
        peer, key = certificate.verify([data], _NOW)
    except AuthenticationFailed:
        pass
    else:
        assert peer in _PEERS, "a certificate that nobody signed"
        assert key.peer_id == peer
    try:
        decoded = certificate.decode_signed_key(data)
    except DecodeError:
        return
    assert certificate.encode_signed_key(*decoded) == data
