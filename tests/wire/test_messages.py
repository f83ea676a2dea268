"""flare.wire.messages against Google's protobuf on the specs' schemas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire.autonat_messages import (
    DialBack,
    DialBackResponse,
    DialDataRequest,
    DialDataResponse,
    DialMessage,
    DialRequest,
    DialResponse,
    DialResponseV1,
    DialV1,
    MessageTypeV1,
    MessageV1,
    PeerInfoV1,
)
from flare.wire.envelope import AddressInfo, PeerRecordMessage, VoucherMessage
from flare.wire.keys import KeyMessage, KeyType
from flare.wire.messages import (
    HolePunch,
    HolePunchType,
    HopMessage,
    HopType,
    Identify,
    Limit,
    NoiseExtensions,
    NoiseHandshakePayload,
    PunchHint,
    RelayPeer,
    Reservation,
    Status,
    StopMessage,
    StopType,
)
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from flare.wire.schema import Message
from tests.wire.oracle import google, google_decode, plain, records

PEER = PeerId("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
ADDR = Multiaddr("/ip4/1.2.3.4/tcp/4001")

peer_ids = st.binary(min_size=32, max_size=32).map(lambda digest: PeerId(b"\x12\x20" + digest))
ports = st.integers(0, 65535)
addrs = st.one_of(
    st.builds(lambda ip, port: Multiaddr(f"/ip4/{ip}/tcp/{port}"), st.ip_addresses(v=4), ports),
    st.builds(lambda ip, port: Multiaddr(f"/ip6/{ip}/udp/{port}/quic-v1"), st.ip_addresses(v=6), ports),
    st.builds(lambda peer: Multiaddr(f"/dns/relay.example/tcp/443/wss/p2p/{peer}/p2p-circuit"), peer_ids),
)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
blobs = st.binary(max_size=150)


def many(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=4).map(tuple)


limits = st.builds(Limit, st.none() | u32, st.none() | u64)
relay_peers = st.builds(RelayPeer, peer_ids, many(addrs))
reservations = st.builds(Reservation, u64, many(addrs), st.none() | blobs)
statuses = st.none() | st.sampled_from(Status) | st.integers(-(2**31), 2**31 - 1)

i32 = st.integers(-(2**31), 2**31 - 1)
dials = st.builds(DialV1, st.none() | st.builds(PeerInfoV1, st.none() | blobs, many(addrs)))
dial_responses_v1 = st.builds(DialResponseV1, st.none() | i32, st.none() | texts, st.none() | addrs)
dial_requests = st.builds(DialRequest, many(blobs), u64)
dial_responses = st.builds(DialResponse, i32, u32, i32)
data_requests = st.builds(DialDataRequest, u32, u64)
data_responses = st.builds(DialDataResponse, blobs)

STRATEGIES: dict[type[Message], st.SearchStrategy[Any]] = {
    HopMessage: st.builds(
        HopMessage,
        st.sampled_from(HopType),
        st.none() | relay_peers,
        st.none() | reservations,
        st.none() | limits,
        statuses,
    ),
    StopMessage: st.builds(
        StopMessage, st.sampled_from(StopType), st.none() | relay_peers, st.none() | limits, statuses
    ),
    RelayPeer: relay_peers,
    Reservation: reservations,
    Limit: limits,
    HolePunch: st.builds(
        HolePunch,
        st.sampled_from(HolePunchType),
        many(addrs),
        st.none() | st.builds(PunchHint, *[u32] * 7),
    ),
    Identify: st.builds(
        Identify,
        st.none() | texts,
        st.none() | texts,
        st.none() | blobs,
        many(addrs),
        st.none() | addrs,
        many(texts),
        st.none() | blobs,
    ),
    NoiseHandshakePayload: st.builds(
        NoiseHandshakePayload, blobs, blobs, st.none() | st.builds(NoiseExtensions, many(texts), many(blobs))
    ),
    KeyMessage: st.builds(KeyMessage, st.sampled_from(KeyType), blobs),
    PeerRecordMessage: st.builds(PeerRecordMessage, peer_ids, u64, many(st.builds(AddressInfo, blobs))),
    VoucherMessage: st.builds(VoucherMessage, peer_ids, peer_ids, u64),
    MessageV1: st.builds(
        MessageV1,
        st.none() | st.sampled_from(MessageTypeV1),
        st.none() | dials,
        st.none() | dial_responses_v1,
    ),
    DialMessage: st.builds(
        DialMessage,
        st.none() | dial_requests,
        st.none() | dial_responses,
        st.none() | data_requests,
        st.none() | data_responses,
    ),
    DialBack: st.builds(DialBack, u64),
    DialBackResponse: st.builds(DialBackResponse, i32),
}
CLASSES = pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)


@CLASSES
class TestAgainstGoogle:
    @settings(max_examples=40)
    @given(st.data())
    def test_both_ways(self, cls: type[Message], data: st.DataObject) -> None:
        ours = data.draw(STRATEGIES[cls])
        encoded = ours.encode()
        theirs = google_decode(cls.__name__, encoded)
        assert theirs is not None, "Google reads what we write"
        assert plain(theirs) == plain(ours)
        assert theirs.SerializeToString(deterministic=True) == encoded, "and would write the same bytes"
        assert cls.decode(encoded) == ours
        assert plain(cls.decode(memoryview(encoded))) == plain(ours)

    @settings(max_examples=40)
    @given(st.data())
    def test_unknown_fields_are_skipped(self, cls: type[Message], data: st.DataObject) -> None:
        ours = data.draw(STRATEGIES[cls])
        unknown = data.draw(records(st.integers(900, 5000), st.binary(max_size=20)))
        assert cls.decode(unknown + ours.encode() + unknown) == ours
        assert google_decode(cls.__name__, unknown + ours.encode()) is not None

    @settings(max_examples=10)
    @given(st.data())
    def test_every_truncation(self, cls: type[Message], data: st.DataObject) -> None:
        encoded = data.draw(STRATEGIES[cls]).encode()
        for end in range(len(encoded)):
            theirs = google_decode(cls.__name__, encoded[:end])
            try:
                ours = cls.decode(encoded[:end])
            except DecodeError:
                assert theirs is None, f"Google reads the first {end} bytes, we do not"
            else:
                assert theirs is not None, f"we read the first {end} bytes, Google does not"
                assert plain(theirs) == plain(ours)

    @settings(max_examples=60)
    @given(st.binary(max_size=120) | records(st.integers(1, 8), st.binary(max_size=40)))
    def test_junk_raises_nothing_but_decode_errors(self, cls: type[Message], data: bytes) -> None:
        try:
            decoded = cls.decode(data)
        except DecodeError:
            return
        assert cls.decode(decoded.encode()) == decoded

    @given(st.data())
    @settings(max_examples=20)
    def test_two_encodings_joined_merge(self, cls: type[Message], data: st.DataObject) -> None:
        joined = data.draw(STRATEGIES[cls]).encode() + data.draw(STRATEGIES[cls]).encode()
        theirs = google(cls.__name__)()
        theirs.ParseFromString(joined)
        assert plain(cls.decode(joined)) == plain(theirs)


class TestRelayMessages:
    """circuit-v2.md, "Protobuf"."""

    def test_a_connect_on_the_wire(self) -> None:
        message = HopMessage(HopType.CONNECT, RelayPeer(PEER))
        assert message.encode().hex() == f"080112280a26{bytes(PEER).hex()}"
        assert message.frame() == bytes([len(message.encode())]) + message.encode()

    def test_a_type_must_be_there_and_known(self) -> None:
        for data in (b"", b"\x08\x03", b"\x28\x64"):
            with pytest.raises(DecodeError, match="HopMessage: type is missing"):
                HopMessage.decode(data)

    def test_a_status_may_be_new(self) -> None:
        assert HopMessage.decode(b"\x08\x02\x28\xe7\x07").status == 999
        assert HopMessage.decode(b"\x08\x02\x28\x64").status == Status.OK

    def test_a_peer_must_have_an_id_that_is_one(self) -> None:
        with pytest.raises(DecodeError, match=r"RelayPeer: id is missing"):
            HopMessage.decode(b"\x08\x01\x12\x00")
        with pytest.raises(DecodeError, match=r"RelayPeer\.id: .* neither"):
            HopMessage.decode(b"\x08\x01\x12\x03\x0a\x01x")

    def test_a_reservation_must_say_when_it_expires(self) -> None:
        with pytest.raises(DecodeError, match="Reservation: expire is missing"):
            HopMessage.decode(b"\x08\x02\x1a\x00")

    def test_a_duration_keeps_32_bits(self) -> None:
        assert Limit.decode(b"\x08\x85\x80\x80\x80\x10").duration == 5


class TestAddresses:
    def test_unreadable_ones_are_left_out(self) -> None:
        good = bytes(ADDR)
        data = b"\x08\x64" + b"".join(
            b"\x12" + bytes([len(a)]) + a for a in (b"", good, b"\xff\x7fxx", good[:-1])
        )
        assert HolePunch.decode(data) == HolePunch(HolePunchType.CONNECT, (ADDR,))

    def test_an_unreadable_observed_address_is_none(self) -> None:
        assert Identify.decode(b"\x22\x02zz").observed_addr is None
        assert Identify.decode(b"\x22\x08" + bytes(ADDR) + b"\x22\x02zz").observed_addr is None
        assert Identify.decode(b"\x22\x02zz\x22\x08" + bytes(ADDR)).observed_addr == ADDR


class TestIdentify:
    def test_several_messages_merge(self) -> None:
        first = Identify("ipfs/0.1.0", "go-libp2p", b"key", (ADDR,), ADDR, ("/a", "/b"))
        second = Identify(None, None, None, (ADDR / "ws",), None, ("/c",), b"record")
        merged = Identify.decode(first.encode() + second.encode())
        assert merged == Identify(
            "ipfs/0.1.0", "go-libp2p", b"key", (ADDR, ADDR / "ws"), ADDR, ("/a", "/b", "/c"), b"record"
        )


class TestNoise:
    def test_a_payload_needs_key_and_signature(self) -> None:
        with pytest.raises(DecodeError, match="identity_key is missing"):
            NoiseHandshakePayload.decode(b"\x12\x01s")
        with pytest.raises(DecodeError, match="identity_sig is missing"):
            NoiseHandshakePayload.decode(b"\x0a\x01k")


@pytest.mark.parametrize("count", [128, 129, 5000])
def test_what_a_peer_lists_is_read_so_far_and_no_further(count: int) -> None:
    addrs = tuple(Multiaddr(f"/ip4/10.0.{i >> 8}.{i & 255}/tcp/1") for i in range(count))
    told = Identify.decode(Identify(listen_addrs=addrs, agent_version="last").encode())
    assert told.listen_addrs == addrs[:128]
    assert told.agent_version == "last"
    names = tuple(f"/{number}" for number in range(count))
    assert Identify.decode(Identify(protocols=names).encode()).protocols == names[:1024]
