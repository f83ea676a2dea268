"""Signed envelopes (RFC 0002), peer records (RFC 0003) and reservation vouchers (circuit-v2.md)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from flare._core.wire import frame
from flare.errors import AuthenticationFailed, DecodeError, InvalidMultiaddr, PeerMismatch, UsageError
from flare.wire.keys import Identity, KeyMessage, PublicKey
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from flare.wire.schema import AtMost, Message, message

PEER_RECORD_DOMAIN = "libp2p-peer-record"
PEER_RECORD_TYPE = b"\x03\x01"
VOUCHER_DOMAIN = "libp2p-relay-rsvp"
VOUCHER_TYPE = b"\x03\x02"

# RFC 0003's names for peer records, which rust-libp2p still uses. The signature covers the domain.
_DRAFT_DOMAIN = "libp2p-routing-state"
_DRAFT_TYPE = b"/libp2p/routing-state-record"


@message
class EnvelopeMessage(Message):
    public_key: Annotated[KeyMessage, 1]
    payload_type: Annotated[bytes, 2] = b""
    payload: Annotated[bytes, 3] = b""
    signature: Annotated[bytes, 5] = b""


@message
class AddressInfo(Message):
    multiaddr: Annotated[bytes, 1] = b""


@message
class PeerRecordMessage(Message):
    peer_id: Annotated[PeerId, 1]
    seq: Annotated[int, 2] = 0
    addresses: Annotated[tuple[AddressInfo, ...], 3, AtMost(128)] = ()


@message
class VoucherMessage(Message):
    relay: Annotated[PeerId, 1]
    peer: Annotated[PeerId, 2]
    expiration: Annotated[int, 3]


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """A payload, its type and its signer's signature over both (RFC 0002)."""

    public_key: PublicKey
    payload_type: bytes
    payload: bytes
    signature: bytes

    @classmethod
    def seal(cls, identity: Identity, domain: str, payload_type: bytes, payload: bytes) -> Envelope:
        """`payload` signed by `identity` for `domain`, which keeps it from passing for anything else."""
        if not domain or not payload_type:
            raise UsageError("an envelope needs a domain and a payload type")
        signature = identity.sign(_signed_bytes(domain, payload_type, payload))
        return cls(identity.public_key, payload_type, payload, signature)

    @classmethod
    def open(cls, data: bytes, domain: str) -> Envelope:
        """The envelope in `data`, its signature checked. Raises DecodeError and AuthenticationFailed."""
        raw = EnvelopeMessage.decode(data)
        envelope = cls(PublicKey.from_message(raw.public_key), raw.payload_type, raw.payload, raw.signature)
        envelope.verify(domain)
        return envelope

    def verify(self, domain: str) -> None:
        """Raises AuthenticationFailed unless the signature is the key's, for `domain`."""
        if not domain:
            raise UsageError("an envelope needs a domain")
        if not self.public_key.verify(_signed_bytes(domain, self.payload_type, self.payload), self.signature):
            raise AuthenticationFailed(f"envelope: not signed for {domain!r} by {self.peer_id}")

    @property
    def peer_id(self) -> PeerId:
        """Who signed."""
        return self.public_key.peer_id

    def encode(self) -> bytes:
        key = self.public_key.to_message()
        return EnvelopeMessage(key, self.payload_type, self.payload, self.signature).encode()


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    return frame(domain.encode()) + frame(payload_type) + frame(payload)


def _require_type(envelope: Envelope, expected: bytes) -> None:
    if envelope.payload_type != expected:
        raise DecodeError(f"envelope: payload of type {envelope.payload_type.hex()}, not {expected.hex()}")


@dataclasses.dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer's own addresses (RFC 0003). A record replaces those of the same peer with a lower `seq`."""

    peer_id: PeerId
    seq: int
    addrs: tuple[Multiaddr, ...]

    def seal(self, identity: Identity) -> bytes:
        """The encoded envelope, signed by `identity`, who must be the peer itself."""
        if identity.peer_id != self.peer_id:
            raise UsageError(f"{identity.peer_id} cannot sign the record of {self.peer_id}")
        infos = tuple(AddressInfo(bytes(addr)) for addr in self.addrs)
        payload = PeerRecordMessage(self.peer_id, self.seq, infos).encode()
        return Envelope.seal(identity, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload).encode()

    @classmethod
    def open(cls, data: bytes) -> PeerRecord:
        """The record in an encoded envelope, signed by its own peer; unreadable addresses are left out.

        Raises DecodeError, AuthenticationFailed, and PeerMismatch when somebody else signed.
        """
        draft = EnvelopeMessage.decode(data).payload_type == _DRAFT_TYPE
        envelope = Envelope.open(data, _DRAFT_DOMAIN if draft else PEER_RECORD_DOMAIN)
        _require_type(envelope, _DRAFT_TYPE if draft else PEER_RECORD_TYPE)
        record = PeerRecordMessage.decode(envelope.payload)
        if record.peer_id != envelope.peer_id:
            raise PeerMismatch(record.peer_id, envelope.peer_id)
        addrs = []
        for info in record.addresses:
            try:
                addrs.append(Multiaddr(info.multiaddr))
            except InvalidMultiaddr:
                continue
        return cls(record.peer_id, record.seq, tuple(addrs))


@dataclasses.dataclass(frozen=True, slots=True)
class Voucher:
    """A relay's word that it serves `peer` until `expiration`, in Unix seconds.

    circuit-v2.md, "Reservation Vouchers".
    """

    relay: PeerId
    peer: PeerId
    expiration: int

    def seal(self, identity: Identity) -> bytes:
        """The encoded envelope, signed by `identity`, who must be the relay."""
        if identity.peer_id != self.relay:
            raise UsageError(f"{identity.peer_id} cannot sign a voucher of {self.relay}")
        payload = VoucherMessage(self.relay, self.peer, self.expiration).encode()
        return Envelope.seal(identity, VOUCHER_DOMAIN, VOUCHER_TYPE, payload).encode()

    @classmethod
    def open(cls, data: bytes) -> Voucher:
        """The voucher in an encoded envelope, signed by its relay.

        Raises DecodeError, AuthenticationFailed, and PeerMismatch when somebody else signed.
        """
        envelope = Envelope.open(data, VOUCHER_DOMAIN)
        _require_type(envelope, VOUCHER_TYPE)
        raw = VoucherMessage.decode(envelope.payload)
        if raw.relay != envelope.peer_id:
            raise PeerMismatch(raw.relay, envelope.peer_id)
        return cls(raw.relay, raw.peer, raw.expiration)
