"""SSDP's searches and their answers (UPnP Device Architecture 2.0, 1.3)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.errors import DecodeError
from flare.wire import ssdp
from flare.wire.ssdp import Found

ANSWER = b"HTTP/1.1 200 OK\r\nST: urn:x\r\nLOCATION: http://10.0.0.1:5000/root.xml\r\nEXT:\r\n\r\n"


def test_1_3_2_the_search() -> None:
    assert ssdp.encode_search(ssdp.TARGETS[1]).split(b"\r\n") == [
        b"M-SEARCH * HTTP/1.1",
        b"HOST: 239.255.255.250:1900",
        b'MAN: "ssdp:discover"',
        b"MX: 1",
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1",
        b"",
        b"",
    ]


def test_1_3_3_the_answer() -> None:
    assert ssdp.decode_answer(ANSWER) == Found("urn:x", "http://10.0.0.1:5000/root.xml")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NOTIFY * HTTP/1.1\r\nLOCATION: http://10.0.0.1/\r\n\r\n",
        ssdp.encode_search(ssdp.TARGETS[0]),
        ANSWER.replace(b"200", b"404"),
        ANSWER.replace(b"LOCATION", b"PLACE"),
        ANSWER.replace(b"root.xml", b"r\xf6\xf6t.xml"),
        ANSWER.replace(b"root.xml", b"\x07"),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(DecodeError):
        ssdp.decode_answer(data)


def test_the_longest_answer_and_one_byte_more() -> None:
    fill = b"X: " + b"x" * (ssdp.MAX_ANSWER - len(ANSWER) - 5) + b"\r\n\r\n"
    longest = ANSWER[:-2] + fill
    assert len(longest) == ssdp.MAX_ANSWER
    assert ssdp.decode_answer(longest).target == "urn:x"
    with pytest.raises(DecodeError, match="at most"):
        ssdp.decode_answer(longest + b"x")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_decode_error(data: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nlocation:"):
        with contextlib.suppress(DecodeError):
            assert ssdp.decode_answer(start + data).location
