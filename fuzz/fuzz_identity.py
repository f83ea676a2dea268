"""Keys, peer ids and signed envelopes from strangers: only the errors that they document, and nothing forged
opens."""

from __future__ import annotations

import contextlib

from flare.errors import AuthenticationFailed, DecodeError, InvalidKey, InvalidPeerId
from flare.wire.envelope import PeerRecord, Voucher
from flare.wire.keys import Identity, Kind, PublicKey
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

_KINDS: tuple[Kind, ...] = ("ed25519", "secp256k1", "ecdsa", "rsa")
_IDENTITIES = [Identity.generate(kind) for kind in _KINDS]
_RECORDS = [PeerRecord(who.peer_id, 1, (Multiaddr("/ip4/1.2.3.4/tcp/1"),)) for who in _IDENTITIES]
_VOUCHERS = [Voucher(who.peer_id, who.peer_id, 1 << 31) for who in _IDENTITIES]

CORPUS = (
    *(who.public_key.to_protobuf() for who in _IDENTITIES),
    *(who.to_protobuf() for who in _IDENTITIES),
    *(bytes(who.peer_id) for who in _IDENTITIES),
    *(str(who.peer_id).encode() for who in _IDENTITIES),
    *(who.peer_id.to_cid().encode() for who in _IDENTITIES),
    *(record.seal(who) for record, who in zip(_RECORDS, _IDENTITIES, strict=True)),
    *(voucher.seal(who) for voucher, who in zip(_VOUCHERS, _IDENTITIES, strict=True)),
)


def fuzz(data: bytes) -> None:
    _keys(data)
    _peer_ids(data)
    with contextlib.suppress(DecodeError, AuthenticationFailed):
        assert PeerRecord.open(data) in _RECORDS, "a record that nobody signed"
    with contextlib.suppress(DecodeError, AuthenticationFailed):
        assert Voucher.open(data) in _VOUCHERS, "a voucher that nobody signed"


def _keys(data: bytes) -> None:
    try:
        key = PublicKey.from_protobuf(data)
    except DecodeError:
        pass
    else:
        assert PublicKey.from_protobuf(key.to_protobuf()) == key
        assert key.verify(b"", data) is False
    try:
        identity = Identity.from_protobuf(data)
    except InvalidKey:
        return
    assert Identity.from_protobuf(identity.to_protobuf()).peer_id == identity.peer_id


def _peer_ids(data: bytes) -> None:
    for form in (data, data.decode("utf-8", "replace")):
        try:
            peer = PeerId(form)
        except InvalidPeerId:
            continue
        assert PeerId(str(peer)) == PeerId(bytes(peer)) == PeerId(peer.to_cid("k")) == peer
        try:
            peer.extract_public_key()
        except InvalidPeerId:
            continue
