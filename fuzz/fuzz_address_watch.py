"""Datagrams on a netlink socket: what they are about, or DecodeError."""

from __future__ import annotations

import contextlib
import struct

from flare.errors import DecodeError
from flare.transport.address_watch import ADDRESS, ROUTE, decode

CORPUS = (
    struct.pack("=IHHII8s", 24, 20, 0, 0, 0, b"\x02\x18\0\0\1\0\0\0"),
    struct.pack("=IHHIIBBBBBBBBI", 28, 24, 0, 0, 0, 2, 0, 0, 0, 254, 3, 0, 1, 0),
    struct.pack("=IHHII", 17, 3, 0, 0, 0) + b"x\0\0\0" + struct.pack("=IHHII", 16, 21, 0, 0, 0),
)


def fuzz(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert decode(data) <= {ADDRESS, ROUTE}
