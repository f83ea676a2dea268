"""PCP's messages (RFC 6887)."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire import pcp
from flare.wire.address_space import IpAddress, unmapped
from flare.wire.nat_pmp import Transport
from flare.wire.pcp import Answer, MapAnswer

NONCE = bytes(range(12))
MAPPED = b"\0" * 10 + b"\xff\xff"


def answer(
    *,
    opcode: int = 1,
    result: int = 0,
    lifetime: int = 7200,
    epoch: int = 9,
    version: int = 2,
    external: bytes = MAPPED + bytes([102, 1, 0, 1]),
    options: bytes = b"",
    protocol: int = 6,
) -> bytes:
    head = struct.pack("!BBBBII12x", version, 0x80 | opcode, 0, result, lifetime, epoch)
    if opcode == 0:
        return head
    return head + struct.pack("!12sB3xHH", NONCE, protocol, 4001, 4002) + external + options


def test_7_1_and_11_1_a_request_for_a_mapping() -> None:
    request = pcp.encode_map(
        ip_address("10.0.0.2"), "udp", 4001, nonce=NONCE, lifetime=7200, external_port=4002
    )
    assert len(request) == 60
    assert request[:8] == bytes([2, 1, 0, 0, 0, 0, 0x1C, 0x20])
    assert request[8:24] == MAPPED + bytes([10, 0, 0, 2])
    assert request[24:36] == NONCE
    assert request[36:44] == bytes([17, 0, 0, 0, 0x0F, 0xA1, 0x0F, 0xA2])
    assert request[44:60] == MAPPED + bytes(4), "no wish for an IPv4 address is ::ffff:0:0"


def test_11_1_a_pinhole_wishes_for_no_ipv6_address() -> None:
    request = pcp.encode_map(ip_address("2a00::2"), "tcp", 4001, nonce=NONCE, lifetime=0)
    assert request[8:24] == ip_address("2a00::2").packed
    assert request[44:60] == bytes(16)


def test_14_1_announce() -> None:
    request = pcp.encode_announce(ip_address("10.0.0.2"))
    assert request == bytes([2, 0]) + bytes(6) + MAPPED + bytes([10, 0, 0, 2])
    assert pcp.decode_announce_answer(answer(opcode=0, lifetime=0)) == Answer(0, 0, 9)


def test_11_1_the_mapping() -> None:
    assert pcp.decode_map_answer(answer()) == MapAnswer(
        0, 7200, 9, NONCE, "tcp", 4001, 4002, IPv4Address("102.1.0.1")
    )


def test_11_1_the_pinhole() -> None:
    told = pcp.decode_map_answer(answer(external=ip_address("2a00::2").packed, protocol=17))
    assert isinstance(told, MapAnswer)
    assert (told.external, told.transport) == (IPv6Address("2a00::2"), "udp")


@pytest.mark.parametrize("result", [2, 8, 12, 77])
def test_7_4_an_error_has_its_lifetime(result: int) -> None:
    told = pcp.decode_map_answer(answer(result=result, lifetime=1800))
    assert (told.result, told.lifetime) == (result, 1800)


def test_9_another_version_is_an_answer_and_not_junk() -> None:
    assert pcp.decode_map_answer(answer(version=3, result=1)).result == pcp.UNSUPPORTED_VERSION
    nat_pmp_only = bytes([0, 129, 0, 1, 0, 0, 0, 9])  # RFC 6886, 3.5
    assert pcp.decode_announce_answer(nat_pmp_only).result == pcp.UNSUPPORTED_VERSION
    assert isinstance(pcp.decode_map_answer(nat_pmp_only), Answer)


@pytest.mark.parametrize("size", [4, 8, 12])
def test_7_3_whole_options_are_passed_over(size: int) -> None:
    option = struct.pack("!BBH", 3, 0, size) + bytes(size)
    assert isinstance(pcp.decode_map_answer(answer(options=option + option)), MapAnswer)


@pytest.mark.parametrize(
    "options", [struct.pack("!BBH", 3, 0, 1), struct.pack("!BBH", 3, 0, 0xFFFF) + bytes(8)]
)
def test_7_3_an_option_that_is_cut_short(options: bytes) -> None:
    with pytest.raises(DecodeError, match="cut short"):
        pcp.decode_map_answer(answer(options=options))


def test_7_the_longest_message_and_one_past_it() -> None:
    room = pcp.MAX_MESSAGE - len(answer()) - 4
    assert isinstance(
        pcp.decode_map_answer(answer(options=struct.pack("!BBH", 3, 0, room) + bytes(room))), MapAnswer
    )
    room += 4
    with pytest.raises(DecodeError):
        pcp.decode_map_answer(answer(options=struct.pack("!BBH", 3, 0, room) + bytes(room)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer()[:23],
        answer()[:56],  # one word short
        answer()[:59],  # no whole words
        answer(version=1),
        answer(opcode=2),
        b"\2\1" + answer()[2:],  # a request
        answer(protocol=1),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(DecodeError):
        pcp.decode_map_answer(data)


IPS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.binary(min_size=12, max_size=12),
    st.sampled_from(["tcp", "udp"]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    IPS,
)
def test_any_request_comes_back_as_its_answer(
    lifetime: int, epoch: int, nonce: bytes, transport: Transport, inside: int, outside: int, ip: IpAddress
) -> None:
    request = pcp.encode_map(
        ip, transport, inside, nonce=nonce, lifetime=lifetime, external_port=outside, external=ip
    )
    told = pcp.decode_map_answer(struct.pack("!BBBBII12x", 2, 0x81, 0, 0, lifetime, epoch) + request[24:])
    assert told == MapAnswer(0, lifetime, epoch, nonce, transport, inside, outside, unmapped(ip))


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=64).map(lambda tail: answer() + tail)))
def test_any_bytes_are_an_answer_or_a_decode_error(data: bytes) -> None:
    for decode in (pcp.decode_map_answer, pcp.decode_announce_answer):
        with contextlib.suppress(DecodeError):
            decode(data)
