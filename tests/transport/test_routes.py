"""The way out, asked of the kernel (rtnetlink(7))."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.transport import routes
from flare.transport.routes import Route, decode_answer, encode_question, route_to

linux = pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def message(*attributes: bytes, kind: int = 24, of: int = 1, family: int = socket.AF_INET) -> bytes:
    body = struct.pack("=8BI", family, 32, 0, 0, 254, 0, 0, of, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


GATEWAY = attribute(5, bytes([10, 0, 0, 1]))
SOURCE = attribute(7, bytes([10, 0, 0, 2]))
INTERFACE = attribute(4, struct.pack("=i", 3))


def test_a_route_through_a_router() -> None:
    assert decode_answer(message(INTERFACE, GATEWAY, SOURCE)) == Route(
        ip_address("10.0.0.1"), ip_address("10.0.0.2"), 3
    )


def test_a_route_without_a_router() -> None:
    assert decode_answer(message(INTERFACE, SOURCE)) == Route(None, ip_address("10.0.0.2"), 3)


def test_a_router_of_the_other_family() -> None:
    via = attribute(18, struct.pack("=H", socket.AF_INET6) + ip_address("fe80::1").packed)
    assert decode_answer(message(INTERFACE, via)).gateway == ip_address("fe80::1")


def test_the_kernels_no() -> None:
    body = struct.pack("=i", -errno.ENETUNREACH) + bytes(16)
    with pytest.raises(OSError, match="unreachable") as refused:
        decode_answer(struct.pack("=IHHII", 16 + len(body), 2, 0, 1, 0) + body)
    assert refused.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message()[:15],
        message(GATEWAY)[:-1],
        message(kind=16),
        message(of=7),  # unreachable
        message(attribute(5, b"\1\2\3")),
        message(struct.pack("=HH", 3, 5)),
        message(struct.pack("=HH", 9, 5) + bytes(4)),
        struct.pack("=IHHII", 15, 24, 0, 1, 0),
    ],
)
def test_what_is_no_route(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_answer(data)


def test_the_most_attributes() -> None:
    many = [attribute(100 + number, b"") for number in range(routes.MAX_ATTRIBUTES)]
    assert decode_answer(message(*many[:-1], GATEWAY)).gateway is not None
    assert decode_answer(message(*many, GATEWAY)).gateway is None


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_a_route_or_an_error(data: bytes, framed: bool) -> None:
    with contextlib.suppress(DecodeError, OSError):
        decode_answer(message(data) if framed else data)


def test_the_question() -> None:
    question = encode_question(ip_address("2a00::1"))
    assert len(question) == 48
    assert question[:6] == struct.pack("=IH", 48, 26)
    assert question[16:18] == bytes([socket.AF_INET6, 128])
    assert question[-16:] == ip_address("2a00::1").packed


@linux
def test_the_way_to_ourselves() -> None:
    route = route_to(ip_address("127.0.0.1"))
    # the kernel calls that a local route, of which no router is a part
    assert route is None or route.gateway is None
