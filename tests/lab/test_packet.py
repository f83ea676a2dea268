"""Packets: parsing survives anything, incremental checksums equal recomputed ones (RFC 1624)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flare.lab.fabric import Fabric, Path
from flare.lab.kinds import KINDS
from flare.lab.packet import (
    SYN,
    TIME_EXCEEDED,
    UDP,
    Packet,
    adjusted,
    checksum,
    echo_reply,
    icmp_error,
    icmp_packet,
    ones_sum,
    tcp_packet,
    tcp_reset,
    udp_packet,
)
from tests.lab.wire import GATEWAY, PUBLIC, router

hosts = st.integers(0, 2**32 - 1)
ports = st.integers(0, 65535)
endpoints = st.tuples(hosts, ports)
payloads = st.binary(max_size=80)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    source, destination, payload = draw(endpoints), draw(endpoints), draw(payloads)
    match draw(st.sampled_from(["tcp", "udp", "echo", "error"])):
        case "tcp":
            return tcp_packet(source, destination, draw(st.integers(0, 63)), seq=draw(hosts), payload=payload)
        case "udp":
            return udp_packet(source, destination, payload)
        case "echo":
            return icmp_packet(source[0], destination[0], draw(st.sampled_from([0, 8])), 0, b"abcd", payload)
        case _:
            about = Packet.parse(udp_packet(source, destination, payload))
            assert about is not None
            error = icmp_error(draw(hosts), about, TIME_EXCEEDED)
            assert error is not None
            return error


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=20), st.integers(0, 65535), st.data())
def test_adjusting_equals_recomputing(words: list[int], new: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(words) - 1))
    raw = b"".join(word.to_bytes(2, "big") for word in words)
    after = raw[: 2 * at] + new.to_bytes(2, "big") + raw[2 * at + 2 :]
    got = adjusted(checksum(raw), words[at], new)
    assert ones_sum(after + got.to_bytes(2, "big")) in (0xFFFF, 0 if not any(after) else 0xFFFF)


@given(packets(), endpoints, endpoints)
def test_rewriting_keeps_checksums_right(
    raw: bytes, source: tuple[int, int], destination: tuple[int, int]
) -> None:
    packet = Packet.parse(raw)
    assert packet is not None
    assert packet.checksums_right(), "made right"
    packet.set_source(*source)
    packet.set_destination(*destination)
    packet.decrement_ttl()
    assert packet.checksums_right(), "still right"
    again = Packet.parse(packet.data)
    assert again is not None
    assert (again.src, again.dst, again.sport, again.dport) == (
        packet.src,
        packet.dst,
        packet.sport,
        packet.dport,
    )


@given(endpoints, endpoints, payloads, endpoints, endpoints)
def test_rewriting_a_quote_keeps_checksums_right(
    source: tuple[int, int],
    destination: tuple[int, int],
    payload: bytes,
    new: tuple[int, int],
    other: tuple[int, int],
) -> None:
    for about in (
        udp_packet(source, destination, payload),
        tcp_packet(source, destination, SYN, payload=payload),
    ):
        parsed = Packet.parse(about)
        assert parsed is not None
        error = Packet.parse(icmp_error(1, parsed, TIME_EXCEEDED) or b"")
        assert error is not None
        quote = error.embedded()
        assert quote is not None
        error.rewrite_quote(quote, source=new, destination=other)
        error.set_addresses(*new)
        assert error.checksums_right()


def test_udp_without_checksum_stays_without() -> None:
    raw = bytearray(udp_packet((1, 2), (3, 4), b"x"))
    raw[26:28] = b"\0\0"
    packet = Packet.parse(raw)
    assert packet is not None
    packet.set_source(9, 9)
    assert packet.data[26:28] == b"\0\0"


def test_a_wrong_checksum_stays_wrong() -> None:
    """A NAT must not repair what was damaged before it."""
    raw = bytearray(udp_packet((1, 2), (3, 4), b"xy"))
    raw[-1] ^= 1
    packet = Packet.parse(raw)
    assert packet is not None
    packet.set_source(9, 9)
    assert not packet.checksums_right()


@given(st.binary(max_size=120))
def test_nothing_malformed_raises(raw: bytes) -> None:
    survives(raw)


@given(packets(), st.data())
def test_nothing_mangled_raises(raw: bytes, data: st.DataObject) -> None:
    mangled = bytearray(raw[: data.draw(st.integers(0, len(raw)))])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=6)):
        if at < len(mangled):
            mangled[at] = value
    survives(bytes(mangled))


@given(
    st.lists(st.tuples(packets(), st.booleans(), st.floats(0, 50)), max_size=12),
    st.sampled_from(sorted(KINDS)),
)
def test_a_router_survives_any_traffic(traffic: list[tuple[bytes, bool, float]], kind: str) -> None:
    for config in KINDS[kind].routers:
        nat, now = router(config), 0.0
        for raw, inbound, wait in traffic:
            now += wait
            packet = Packet.parse(raw)
            assert packet is not None
            if inbound:
                packet.set_destination(PUBLIC, packet.dport)
            for _, result in (nat.from_outside if inbound else nat.from_inside)(packet.data, now):
                made = Packet.parse(result)
                assert made is not None
                assert made.checksums_right()


def survives(raw: bytes) -> None:
    for kind in ("full", "port-acc", "sym"):
        nat = router(kind)
        nat.from_inside(raw, 0.0)
        nat.from_outside(raw, 0.0)
    packet = Packet.parse(raw)
    if packet is None:
        return
    packet.summary()
    packet.embedded()
    if packet.protocol == 6:
        tcp_reset(packet)
    elif packet.protocol == UDP:
        icmp_error(GATEWAY, packet, TIME_EXCEEDED)
    elif packet.icmp_type == 8:
        echo_reply(packet)
    Fabric(Path(delay=1)).send(packet, 0.0)
