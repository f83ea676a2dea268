"""flare.wire.multiaddr: text, bytes, parts (addressing/README.md), against the `multiaddr` package."""

from __future__ import annotations

import ipaddress
from typing import Any

import multiaddr as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.errors import InvalidMultiaddr
from flare.wire.addr_protocols import BY_CODE, BY_NAME, PROTOCOLS
from flare.wire.multiaddr import Multiaddr
from flare.wire.multibase import multibase_encode
from flare.wire.peer_id import PeerId

RELAY = PeerId("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
TARGET = PeerId("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
HASH = multibase_encode("u", b"\x12\x20" + bytes(range(32)))

VALID = [
    "/ip4/1.2.3.4/tcp/4001",
    "/ip4/0.0.0.0/udp/0/quic-v1",
    "/ip6/::1/tcp/65535",
    "/ip6/2001:db8::8a2e:370:7334/udp/1/quic",
    "/ip6zone/eth0/ip6/fe80::1/tcp/1",
    "/dns/example.com/tcp/443/tls/sni/example.com/ws",
    "/dns4/example.com/tcp/443/wss",
    "/dns6/example.com/tcp/80/ws",
    "/dnsaddr/bootstrap.libp2p.io",
    f"/dnsaddr/bootstrap.libp2p.io/p2p/{TARGET}",
    f"/p2p/{RELAY}",
    f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit",
    f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}",
    f"/ip4/1.2.3.4/udp/9/quic-v1/webtransport/certhash/{HASH}/certhash/{HASH}/p2p/{RELAY}",
    f"/ip4/1.2.3.4/udp/9/webrtc-direct/certhash/{HASH}",
    f"/p2p/{RELAY}/p2p-circuit/webrtc/p2p/{TARGET}",
    "/ip4/1.2.3.4/tcp/9/http",
    "/ip4/1.2.3.4/tcp/9/https",
    "/ip4/1.2.3.4/tcp/9/noise",
    "/memory/18446744073709551615",
]
INVALID = [
    "",
    "/",
    "//",
    "ip4/1.2.3.4",
    "/ip4",
    "/ip4/",
    "/ip4/1.2.3",
    "/ip4/1.2.3.256",
    "/ip4/01.2.3.4",
    "/ip4/::1",
    "/ip4/1.2.3.4/tcp",
    "/ip4/1.2.3.4//tcp/1",
    "/ip4/1.2.3.4/tcp/65536",
    "/ip4/1.2.3.4/tcp/-1",
    "/ip4/1.2.3.4/tcp/+1",
    "/ip4/1.2.3.4/tcp/1_0",
    "/ip4/1.2.3.4/tcp/\u0661",
    "/ip4/1.2.3.4/tcp/ 1",
    "/ip6/1.2.3.4",
    "/ip6/::1%eth0",
    "/ip6/:::",
    "/ip6zone//ip6/::1",
    "/dns/",
    "/dns/a\x1b[0m",
    "/p2p/",
    "/p2p/abc",
    "/p2p/Qm",
    "/p2p/bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi",
    "/certhash/",
    "/certhash/uaaa",
    "/certhash/abc",
    "/quic-v1/1",
    "/nothing/1",
    "/memory/18446744073709551616",
    "/unix",
    "/unix/",
]


ports = st.integers(0, 65535).map(str)
hosts = st.from_regex(r"[a-z][a-z0-9]{0,10}(\.[a-z][a-z0-9]{0,8}){1,3}", fullmatch=True)
peers = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda digest: str(PeerId(b"\x12\x20" + digest))),
    st.binary(min_size=32, max_size=32).map(lambda key: str(PeerId(b"\0\x24\x08\x01\x12\x20" + key))),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "ip4": st.ip_addresses(v=4).map(str),
    "ip6": st.ip_addresses(v=6).map(str),
    "ip6zone": st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True),
    "dns": hosts,
    "dns4": hosts,
    "dns6": hosts,
    "dnsaddr": hosts,
    "sni": hosts,
    "tcp": ports,
    "udp": ports,
    "p2p": peers,
    "certhash": st.binary(min_size=32, max_size=32).map(lambda h: multibase_encode("u", b"\x12\x20" + h)),
    "memory": st.integers(0, 2**64 - 1).map(str),
    "unix": st.from_regex(r"[a-z0-9]{1,10}(/[a-z0-9]{1,10}){0,3}", fullmatch=True),
}


def components(protocol: str) -> st.SearchStrategy[str]:
    return (
        VALUES[protocol].map(lambda value: f"/{protocol}/{value}")
        if protocol in VALUES
        else st.just(f"/{protocol}")
    )


shared = sorted({p.name for p in PROTOCOLS} & {p.name for p in reference.protocols.PROTOCOLS} - {"unix"})
texts = st.lists(st.sampled_from(shared).flatmap(components), min_size=1, max_size=6).map("".join)


class TestText:
    @pytest.mark.parametrize("text", VALID)
    def test_valid_ones_come_back(self, text: str) -> None:
        addr = Multiaddr(text)
        assert str(addr) == text
        assert Multiaddr(bytes(addr)) == addr
        assert str(Multiaddr(bytes(addr))) == text
        assert Multiaddr(addr) == addr

    @pytest.mark.parametrize("text", INVALID)
    def test_invalid_ones_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidMultiaddr):
            Multiaddr(text)

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("/ip4/1.2.3.4/tcp/1/", "/ip4/1.2.3.4/tcp/1"),
            ("/ip6/2001:DB8:0:0::1/tcp/1", "/ip6/2001:db8::1/tcp/1"),
            ("/ip6/::ffff:102:304/tcp/1", "/ip6/::ffff:1.2.3.4/tcp/1"),
            ("/ip4/1.2.3.4/tcp/0080", "/ip4/1.2.3.4/tcp/80"),
            (f"/ipfs/{TARGET}", f"/p2p/{TARGET}"),
            (f"/p2p/{TARGET.to_cid()}", f"/p2p/{TARGET}"),
            (f"/p2p/{TARGET.to_cid('k')}", f"/p2p/{TARGET}"),
            (f"/certhash/{multibase_encode('z', b'x' + bytes([1]) + b'y')}", "/certhash/ueAF5"),
        ],
    )
    def test_other_spellings_become_canonical(self, text: str, canonical: str) -> None:
        assert str(Multiaddr(text)) == canonical
        assert Multiaddr(text) == Multiaddr(canonical)

    def test_a_unix_path_takes_the_rest(self) -> None:
        addr = Multiaddr("/unix/run/flare/tcp/1")
        assert [*addr] == [("unix", "/run/flare/tcp/1")]
        assert str(addr) == "/unix/run/flare/tcp/1"
        with pytest.raises(InvalidMultiaddr, match="path"):
            addr / "tcp/1"
        with pytest.raises(InvalidMultiaddr, match="path"):
            Multiaddr(bytes(addr) + bytes(Multiaddr("/tcp/1")))

    def test_other_types_are_misuse(self) -> None:
        with pytest.raises(InvalidMultiaddr, match="int"):
            Multiaddr(5)  # type: ignore[arg-type]


class TestAgainstReference:
    """The `multiaddr` package, which the Python libp2p uses."""

    @settings(max_examples=300)
    @given(texts)
    def test_text_to_bytes_and_back(self, text: str) -> None:
        ours, theirs = Multiaddr(text), reference.Multiaddr(text)
        assert bytes(ours) == theirs.to_bytes()
        assert Multiaddr(theirs.to_bytes()) == ours
        assert bytes(Multiaddr(str(theirs))) == theirs.to_bytes()
        assert bytes(reference.Multiaddr(str(ours)).to_bytes()) == bytes(ours)

    @pytest.mark.parametrize("name", shared)
    def test_codes(self, name: str) -> None:
        assert BY_NAME[name].code == reference.protocols.protocol_with_name(name).code

    @pytest.mark.parametrize("text", VALID)
    def test_examples(self, text: str) -> None:
        assert bytes(Multiaddr(text)) == reference.Multiaddr(text).to_bytes()


class TestBytes:
    @given(
        st.lists(
            st.sampled_from([p.name for p in PROTOCOLS]).flatmap(components), min_size=1, max_size=5
        ).map("".join)
    )
    def test_every_truncation_is_refused_or_shorter(self, text: str) -> None:
        data = bytes(Multiaddr(text))
        for end in range(len(data)):
            try:
                shorter = Multiaddr(data[:end])
            except InvalidMultiaddr:
                continue
            assert bytes(shorter) == data[:end]
            assert len(shorter) < len(Multiaddr(text))

    @settings(max_examples=300)
    @given(st.binary(max_size=60))
    def test_junk_raises_nothing_else(self, data: bytes) -> None:
        try:
            addr = Multiaddr(data)
        except InvalidMultiaddr:
            return
        assert bytes(addr) == data
        assert Multiaddr(str(addr)) == addr

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "empty"),
            (b"\x04\x01\x02\x03", "truncated"),
            (b"\x06\x01", "truncated"),
            (b"\x35\x05abc", "truncated"),
            (b"\x35\x00", "name"),
            (b"\x35\x03a/b", "name"),
            (b"\x35\x02\xff\xfe", "decode"),
            (b"\x84\x00\x01\x02\x03\x04", "minimal"),
            (b"\x35\x83\x00abc", "minimal"),
            (b"\xff\xff\x7f", "unknown protocol"),
            (b"\x35\xff\xff\xff\xff\xff\xff\xff\xff\x7fa", "truncated"),
            (b"\x35\xff\xff\xff\xff\xff\xff\xff\xff\xffa", "too long"),
            (b"\xa5\x03\x02\x12\x20", "multihash"),
            (b"\x90\x03\x01/", "path"),
            (b"\x90\x03\x03/a/", "path"),
            (b"\x90\x03\x02ab", "path"),
        ],
    )
    def test_malformed(self, data: bytes, why: str) -> None:
        with pytest.raises(InvalidMultiaddr, match=why):
            Multiaddr(data)


class TestParts:
    ADDR = Multiaddr(f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}")

    def test_iterates_as_names_and_values(self) -> None:
        assert [*self.ADDR] == [
            ("ip4", "1.2.3.4"),
            ("tcp", "4001"),
            ("p2p", str(RELAY)),
            ("p2p-circuit", None),
            ("p2p", str(TARGET)),
        ]
        assert [part.code for part in self.ADDR] == [4, 6, 421, 290, 421]
        assert all(BY_CODE[part.code].name == part.name for part in self.ADDR)

    def test_value_and_has(self) -> None:
        assert self.ADDR.value("tcp") == "4001"
        assert self.ADDR.value("p2p") == str(RELAY)
        assert self.ADDR.value("p2p-circuit") == ""
        assert self.ADDR.value("udp") is None
        assert self.ADDR.has("ip4")
        assert not self.ADDR.has("ip6")
        with pytest.raises(InvalidMultiaddr, match="unknown protocol 'tpc'"):
            self.ADDR.has("tpc")

    def test_peers_and_circuits(self) -> None:
        assert self.ADDR.is_circuit
        assert self.ADDR.peer_id == TARGET
        assert self.ADDR.relay == Multiaddr(f"/ip4/1.2.3.4/tcp/4001/p2p/{RELAY}")
        assert self.ADDR.relay.peer_id == RELAY
        assert self.ADDR.target_after_circuit == Multiaddr(f"/p2p/{TARGET}")
        own = self.ADDR.without_peer()
        assert own.is_circuit
        assert own.peer_id is None, "it leads to nobody in particular, least of all to the relay"
        assert own.target_after_circuit is None
        assert Multiaddr("/p2p-circuit").relay is None
        direct = self.ADDR.relay
        assert (direct.is_circuit, direct.relay, direct.target_after_circuit) == (False, None, None)

    def test_with_and_without_peer(self) -> None:
        bare = Multiaddr("/ip4/1.2.3.4/tcp/4001")
        assert str(bare.with_peer(RELAY)) == f"{bare}/p2p/{RELAY}"
        assert bare.with_peer(RELAY).with_peer(TARGET) == bare.with_peer(TARGET)
        assert bare.with_peer(RELAY).without_peer() == bare
        assert bare.without_peer() == bare
        nothing = Multiaddr(f"/p2p/{RELAY}").without_peer()
        assert not nothing
        assert (str(nothing), bytes(nothing), nothing.ip, nothing.transport) == ("", b"", None, None)
        assert nothing.with_peer(RELAY) == Multiaddr(f"/p2p/{RELAY}")

    def test_encapsulate_and_decapsulate(self) -> None:
        addr = Multiaddr("/ip4/1.2.3.4").encapsulate("/tcp/80") / "ws" / Multiaddr(f"/p2p/{RELAY}")
        assert str(addr) == f"/ip4/1.2.3.4/tcp/80/ws/p2p/{RELAY}"
        assert str(addr.decapsulate("ws")) == "/ip4/1.2.3.4/tcp/80"
        assert addr.decapsulate("udp") == addr
        assert self.ADDR.decapsulate("p2p") == self.ADDR.without_peer(), "the last one counts"

    @pytest.mark.parametrize(
        ("text", "transport", "host", "port"),
        [
            ("/ip4/1.2.3.4/tcp/1", "tcp", "1.2.3.4", 1),
            ("/ip6/::1/udp/2/quic-v1", "quic-v1", "::1", 2),
            ("/ip6/::1/udp/2/quic-v1/webtransport", "webtransport", "::1", 2),
            ("/ip4/1.2.3.4/udp/2", "udp", "1.2.3.4", 2),
            ("/dns4/a.example/tcp/443/wss", "wss", "a.example", 443),
            ("/dns4/a.example/tcp/443/tls/ws", "wss", "a.example", 443),
            ("/dns/a.example/tcp/80/ws", "ws", "a.example", 80),
            ("/dnsaddr/a.example", None, "a.example", None),
            ("/ip6zone/eth0/ip6/fe80::1/tcp/1", "tcp", "fe80::1%eth0", 1),
            (f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit", "p2p-circuit", "1.2.3.4", 1),
            ("/unix/run/x", "unix", None, None),
        ],
    )
    def test_transport_host_and_port(
        self, text: str, transport: str | None, host: str | None, port: int | None
    ) -> None:
        addr = Multiaddr(text)
        assert (addr.transport, addr.host, addr.port) == (transport, host, port)

    def test_ip(self) -> None:
        assert Multiaddr("/ip4/1.2.3.4/tcp/1").ip == ipaddress.IPv4Address("1.2.3.4")
        assert Multiaddr("/dns/a.example/tcp/1").ip is None
        zoned = Multiaddr("/ip6zone/eth0/ip6/fe80::1/tcp/1").ip
        assert isinstance(zoned, ipaddress.IPv6Address)
        assert zoned.scope_id == "eth0"

    @pytest.mark.parametrize(
        ("socket", "transport", "text"),
        [
            (("1.2.3.4", 4001), "tcp", "/ip4/1.2.3.4/tcp/4001"),
            (("1.2.3.4", 4001), "udp", "/ip4/1.2.3.4/udp/4001"),
            (("1.2.3.4", 4001), "quic-v1", "/ip4/1.2.3.4/udp/4001/quic-v1"),
            (("1.2.3.4", 80), "ws", "/ip4/1.2.3.4/tcp/80/ws"),
            (("::1", 1, 0, 0), "tcp", "/ip6/::1/tcp/1"),
            (("::ffff:1.2.3.4", 1, 0, 0), "tcp", "/ip4/1.2.3.4/tcp/1"),
            (("fe80::1%eth0", 1, 0, 2), "tcp", "/ip6zone/eth0/ip6/fe80::1/tcp/1"),
            (("::1", 1, 0, 0), "webtransport", "/ip6/::1/udp/1/quic-v1/webtransport"),
        ],
    )
    def test_from_socket(self, socket: tuple[Any, ...], transport: str, text: str) -> None:
        assert str(Multiaddr.from_socket(socket, transport)) == text

    def test_from_socket_takes_no_names(self) -> None:
        with pytest.raises(InvalidMultiaddr):
            Multiaddr.from_socket(("localhost", 1))

    def test_hash_order_and_repr(self) -> None:
        one, two = Multiaddr("/ip4/1.2.3.4/tcp/1"), Multiaddr("/ip4/1.2.3.4/tcp/2")
        assert len({one, two, Multiaddr(bytes(one))}) == 2
        assert sorted([two, one]) == [one, two]
        assert repr(one) == "Multiaddr('/ip4/1.2.3.4/tcp/1')"
        assert one != "/ip4/1.2.3.4/tcp/1"
