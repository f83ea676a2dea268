"""NAT-PMP's messages (RFC 6886)."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire import nat_pmp
from flare.wire.nat_pmp import AddressAnswer, MapAnswer, Transport

PORTS = st.integers(0, 0xFFFF)
WORDS = st.integers(0, 0xFFFF_FFFF)


def test_3_2_the_request_for_the_address() -> None:
    assert nat_pmp.encode_address_request() == b"\0\0"


@pytest.mark.parametrize(("transport", "opcode"), [("udp", 1), ("tcp", 2)])
def test_3_3_the_request_for_a_mapping(transport: Transport, opcode: int) -> None:
    request = nat_pmp.encode_map_request(transport, 4001, external_port=4002, lifetime=7200)
    assert request == bytes([0, opcode, 0, 0, 0x0F, 0xA1, 0x0F, 0xA2, 0, 0, 0x1C, 0x20])


def test_3_4_giving_back_names_no_outside_port() -> None:
    request = nat_pmp.encode_map_request("tcp", 4001, external_port=4002, lifetime=0)
    assert request == bytes([0, 2, 0, 0, 0x0F, 0xA1, 0, 0, 0, 0, 0, 0])


def test_3_2_the_address() -> None:
    answer = bytes([0, 128, 0, 0, 0, 0, 0x12, 0x34, 102, 1, 0, 1])
    assert nat_pmp.decode_address_answer(answer) == AddressAnswer(0, 0x1234, IPv4Address("102.1.0.1"))


def test_3_3_the_mapping() -> None:
    answer = bytes([0, 130, 0, 0, 0, 0, 0, 9, 0x0F, 0xA1, 0x0F, 0xA2, 0, 0, 0x1C, 0x20])
    assert nat_pmp.decode_map_answer(answer, "tcp") == MapAnswer(0, 9, 4001, 4002, 7200)


@pytest.mark.parametrize("size", [8, 10, 12])
def test_3_5_an_error_may_come_without_the_rest(size: int) -> None:
    answer = bytes([0, 129, 0, 2, 0, 0, 0, 9, 0x0F, 0xA1, 0, 0])[:size]
    told = nat_pmp.decode_map_answer(answer, "udp")
    assert (told.result, told.epoch, told.lifetime) == (2, 9, 0)
    assert nat_pmp.decode_address_answer(bytes([0, 128, 0, 3, 0, 0, 0, 1])).result == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\x80\0\0\0\0\0",  # one byte short of a head
        bytes([0, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3]),  # one byte short of an address
        bytes([2, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]),  # another version
        bytes([0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]),  # a request
        bytes([0, 129, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]),  # another opcode's answer
    ],
)
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(DecodeError):
        nat_pmp.decode_address_answer(answer)


def test_a_mapping_one_byte_short() -> None:
    with pytest.raises(DecodeError):
        nat_pmp.decode_map_answer(bytes([0, 130]) + bytes(13), "tcp")


@given(WORDS, PORTS, PORTS, WORDS, st.sampled_from(["tcp", "udp"]))
def test_any_mapping_comes_back(
    epoch: int, inside: int, outside: int, lifetime: int, transport: Transport
) -> None:
    opcode = {"udp": 129, "tcp": 130}[transport]
    answer = bytes([0, opcode, 0, 0]) + epoch.to_bytes(4, "big") + inside.to_bytes(2, "big")
    answer += outside.to_bytes(2, "big") + lifetime.to_bytes(4, "big")
    assert nat_pmp.decode_map_answer(answer, transport) == MapAnswer(0, epoch, inside, outside, lifetime)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_decode_error(data: bytes) -> None:
    for decode in (nat_pmp.decode_address_answer, lambda d: nat_pmp.decode_map_answer(d, "udp")):
        with contextlib.suppress(DecodeError):
            decode(data)
