"""Datagrams of a router that may say anything, by PCP, NAT-PMP and SSDP; and the kernel's word on routes."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import ip_address

from flare.errors import DecodeError
from flare.transport import routes
from flare.wire import nat_pmp, pcp, ssdp

_MAPPED = b"\0" * 10 + b"\xff\xff" + bytes([102, 1, 0, 1])
_PCP = struct.pack("!BBBBII12x", 2, 0x81, 0, 0, 7200, 9)
_PCP += struct.pack("!12sB3xHH", b"n" * 12, 6, 4001, 4001) + _MAPPED
_ROUTE = struct.pack("=8BI", 2, 32, 0, 0, 254, 0, 0, 1, 0) + struct.pack("=HH", 8, 5) + bytes([10, 0, 0, 1])

CORPUS = (
    pcp.encode_map(ip_address("10.0.0.2"), "tcp", 4001, nonce=b"n" * 12, lifetime=7200),
    pcp.encode_announce(ip_address("2a00::2")),
    _PCP,
    _PCP + struct.pack("!BBH", 3, 0, 5) + bytes(8),
    nat_pmp.encode_map_request("udp", 4001, lifetime=7200),
    bytes([0, 128, 0, 0, 0, 0, 0, 9, 102, 1, 0, 1]),
    bytes([0, 130, 0, 0, 0, 0, 0, 9, 15, 161, 15, 161, 0, 0, 28, 32]),
    bytes([0, 129, 0, 2, 0, 0, 0, 9]),
    b"HTTP/1.1 200 OK\r\nST: urn:x\r\nLOCATION: http://10.0.0.1:5000/root.xml\r\n\r\n",
    ssdp.encode_search(ssdp.TARGETS[0]),
    struct.pack("=IHHII", 16 + len(_ROUTE), 24, 0, 1, 0) + _ROUTE,
)


def fuzz(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        answer = pcp.decode_map_answer(data)
        assert isinstance(answer, pcp.Answer) or (
            len(answer.nonce) == 12 and answer.transport in ("tcp", "udp")
        )
    with contextlib.suppress(DecodeError):
        pcp.decode_announce_answer(data)
    with contextlib.suppress(DecodeError):
        assert 0 <= nat_pmp.decode_address_answer(data).epoch < 1 << 32
    for transport in ("tcp", "udp"):
        with contextlib.suppress(DecodeError):
            assert 0 <= nat_pmp.decode_map_answer(data, transport).external_port < 1 << 16  # type: ignore[arg-type]
    with contextlib.suppress(DecodeError):
        found = ssdp.decode_answer(data)
        assert found.location.isascii()
        assert len(found.location) <= ssdp.MAX_ANSWER
    with contextlib.suppress(DecodeError, OSError):
        routes.decode_answer(data)
