"""flare.wire.envelope: signed envelopes (RFC 0002), peer records (RFC 0003), vouchers (circuit-v2.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import AuthenticationFailed, DecodeError, PeerMismatch, UsageError
from flare.wire.envelope import (
    PEER_RECORD_DOMAIN,
    PEER_RECORD_TYPE,
    VOUCHER_DOMAIN,
    VOUCHER_TYPE,
    AddressInfo,
    Envelope,
    EnvelopeMessage,
    PeerRecord,
    PeerRecordMessage,
    Voucher,
    VoucherMessage,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "peer_record.json").read_text())
ME, OTHER = Identity.generate(), Identity.generate()
ADDRS = (Multiaddr("/ip4/1.2.3.4/tcp/1"), Multiaddr("/ip6/2001:db8::1/udp/2/quic-v1"))
RECORD = PeerRecord(ME.peer_id, 7, ADDRS)
VOUCHER = Voucher(ME.peer_id, OTHER.peer_id, 1_700_000_000)


class TestEnvelope:
    @pytest.mark.parametrize("kind", ["ed25519", "secp256k1", "ecdsa", "rsa"])
    def test_opens_for_its_domain(self, kind: str) -> None:
        identity = Identity.generate(kind)  # type: ignore[arg-type]
        sealed = Envelope.seal(identity, "libp2p-testing", b"/libp2p/testdata", b"hello")
        opened = Envelope.open(sealed.encode(), "libp2p-testing")
        assert opened == sealed
        assert opened.peer_id == identity.peer_id
        with pytest.raises(AuthenticationFailed, match="'libp2p-other'"):
            Envelope.open(sealed.encode(), "libp2p-other")

    def test_every_field_is_signed(self) -> None:
        sealed = Envelope.seal(ME, "domain", b"type", b"payload")
        for changed in (
            Envelope(OTHER.public_key, b"type", b"payload", sealed.signature),
            Envelope(ME.public_key, b"typep", b"ayload", sealed.signature),
            Envelope(ME.public_key, b"type", b"payloaD", sealed.signature),
            Envelope(ME.public_key, b"type", b"payload", sealed.signature[::-1]),
            Envelope(ME.public_key, b"type", b"payload", b""),
        ):
            with pytest.raises(AuthenticationFailed):
                Envelope.open(changed.encode(), "domain")

    def test_needs_a_domain_and_a_type(self) -> None:
        for domain, payload_type in (("", b"type"), ("domain", b"")):
            with pytest.raises(UsageError):
                Envelope.seal(ME, domain, payload_type, b"payload")
        with pytest.raises(UsageError):
            Envelope.seal(ME, "domain", b"type", b"").verify("")

    def test_signs_lengths_and_values(self) -> None:
        sealed = Envelope.seal(ME, "ab", b"c", bytes(200))
        assert ME.public_key.verify(b"\x02ab\x01c\xc8\x01" + bytes(200), sealed.signature)

    @given(st.binary(max_size=100))
    def test_junk_raises_nothing_else(self, data: bytes) -> None:
        for opener in (PeerRecord.open, Voucher.open):
            with pytest.raises((DecodeError, AuthenticationFailed)):
                opener(data)

    @settings(max_examples=150)
    @given(st.data())
    def test_a_changed_bit_never_opens(self, draw: st.DataObject) -> None:
        sealed = bytearray(RECORD.seal(ME))
        sealed[draw.draw(st.integers(0, len(sealed) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
        with pytest.raises((DecodeError, AuthenticationFailed)):
            PeerRecord.open(bytes(sealed))

    def test_no_truncation_opens(self) -> None:
        sealed = VOUCHER.seal(ME)
        for end in range(len(sealed)):
            with pytest.raises((DecodeError, AuthenticationFailed)):
                Voucher.open(sealed[:end])


class TestPeerRecord:
    def test_of_go(self) -> None:
        identity = Identity.from_protobuf(bytes.fromhex(VECTOR["private"]))
        data = bytes.fromhex(VECTOR["envelope"])
        record = PeerRecord.open(data)
        assert record.peer_id == identity.peer_id
        assert record.addrs == tuple(Multiaddr(f"/ip4/1.2.3.4/tcp/{port}") for port in range(10))
        assert record.seal(identity) == data, "Ed25519 signs the same way twice, and we encode as go does"

    def test_comes_back(self) -> None:
        assert PeerRecord.open(RECORD.seal(ME)) == RECORD
        assert PeerRecord.open(PeerRecord(ME.peer_id, 0, ()).seal(ME)) == PeerRecord(ME.peer_id, 0, ())

    def test_constants(self) -> None:
        assert (PEER_RECORD_DOMAIN, PEER_RECORD_TYPE) == ("libp2p-peer-record", b"\x03\x01")
        assert (VOUCHER_DOMAIN, VOUCHER_TYPE) == ("libp2p-relay-rsvp", b"\x03\x02")

    def test_nobody_signs_for_another(self) -> None:
        with pytest.raises(UsageError):
            RECORD.seal(OTHER)
        payload = PeerRecordMessage(ME.peer_id, 7, ()).encode()
        forged = Envelope.seal(OTHER, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload).encode()
        with pytest.raises(PeerMismatch):
            PeerRecord.open(forged)

    def test_unreadable_addresses_are_left_out(self) -> None:
        infos = (AddressInfo(b"\xff\xff\x7f"), AddressInfo(bytes(ADDRS[0])), AddressInfo(b""))
        payload = PeerRecordMessage(ME.peer_id, 7, infos).encode()
        sealed = Envelope.seal(ME, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload).encode()
        assert PeerRecord.open(sealed).addrs == ADDRS[:1]

    def test_the_names_of_the_draft_open_too(self) -> None:
        payload = PeerRecordMessage(ME.peer_id, 7, tuple(AddressInfo(bytes(addr)) for addr in ADDRS)).encode()
        draft = Envelope.seal(ME, "libp2p-routing-state", b"/libp2p/routing-state-record", payload)
        assert PeerRecord.open(draft.encode()) == RECORD
        mixed = Envelope.seal(ME, PEER_RECORD_DOMAIN, b"/libp2p/routing-state-record", payload)
        with pytest.raises(AuthenticationFailed):
            PeerRecord.open(mixed.encode())

    def test_another_payload_type_is_refused(self) -> None:
        payload = PeerRecordMessage(ME.peer_id, 7, ()).encode()
        with pytest.raises(DecodeError, match="type 0302"):
            PeerRecord.open(Envelope.seal(ME, PEER_RECORD_DOMAIN, VOUCHER_TYPE, payload).encode())


class TestVoucher:
    """circuit-v2.md, "Reservation Vouchers"."""

    def test_comes_back(self) -> None:
        assert Voucher.open(VOUCHER.seal(ME)) == VOUCHER

    def test_fields_in_order_of_their_numbers(self) -> None:
        envelope = EnvelopeMessage.decode(VOUCHER.seal(ME))
        relay, peer = bytes(ME.peer_id), bytes(OTHER.peer_id)
        assert envelope.payload == b"\x0a\x26" + relay + b"\x12\x26" + peer + b"\x18\x80\xe2\xcf\xaa\x06"

    def test_only_the_relay_signs(self) -> None:
        with pytest.raises(UsageError):
            VOUCHER.seal(OTHER)
        payload = VoucherMessage(ME.peer_id, OTHER.peer_id, 1).encode()
        with pytest.raises(PeerMismatch):
            Voucher.open(Envelope.seal(OTHER, VOUCHER_DOMAIN, VOUCHER_TYPE, payload).encode())

    def test_a_peer_record_is_no_voucher(self) -> None:
        with pytest.raises(AuthenticationFailed):
            Voucher.open(RECORD.seal(ME))
        with pytest.raises(DecodeError, match="type 0301"):
            Voucher.open(Envelope.seal(ME, VOUCHER_DOMAIN, PEER_RECORD_TYPE, b"").encode())
