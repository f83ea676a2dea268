"""Encoding and decoding of messages and addresses, beside Google's protobuf (upb, its C implementation).

python -m pytest benchmarks/test_bench_wire.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.wire.oracle import google

from flare.wire.messages import HopMessage, HopType, Limit, RelayPeer, Reservation, Status
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

PEER = PeerId("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA")
ADDRS = tuple(Multiaddr(f"/ip4/1.2.3.4/tcp/{port}/p2p/{PEER}") for port in (1, 2, 3))
MESSAGES = {
    "connect": HopMessage(HopType.CONNECT, RelayPeer(PEER)),
    "status": HopMessage(HopType.STATUS, limit=Limit(120, 1 << 17), status=Status.OK),
    "reserved": HopMessage(
        HopType.STATUS, None, Reservation(1_700_000_000, ADDRS, bytes(200)), Limit(120, 1 << 17), Status.OK
    ),
}
EACH = pytest.mark.parametrize("name", MESSAGES)


def read(theirs: Any) -> tuple[Any, ...]:
    """What a user of Google's classes reads, and ours hold ready made."""
    reservation, limit = theirs.reservation, theirs.limit
    return (
        theirs.type,
        theirs.status,
        theirs.peer.id,
        reservation.expire,
        [*reservation.addrs],
        reservation.voucher,
        limit.duration,
        limit.data,
    )


@EACH
def test_decode(benchmark: Any, name: str) -> None:
    benchmark.group = f"decode {name}"
    assert benchmark(HopMessage.decode, MESSAGES[name].encode()) == MESSAGES[name]


@EACH
def test_decode_google(benchmark: Any, name: str) -> None:
    benchmark.group = f"decode {name}"
    cls = google("HopMessage")
    benchmark(lambda data: read(cls.FromString(data)), MESSAGES[name].encode())


@EACH
def test_encode(benchmark: Any, name: str) -> None:
    benchmark.group = f"encode {name}"
    benchmark(MESSAGES[name].encode)


@EACH
def test_encode_google(benchmark: Any, name: str) -> None:
    benchmark.group = f"encode {name}"
    benchmark(google("HopMessage").FromString(MESSAGES[name].encode()).SerializeToString)


def test_multiaddr_from_bytes(benchmark: Any) -> None:
    benchmark.group = "multiaddr"
    benchmark(Multiaddr, bytes(ADDRS[0]))


def test_multiaddr_from_text(benchmark: Any) -> None:
    benchmark.group = "multiaddr"
    benchmark(Multiaddr, str(ADDRS[0]))


def test_multiaddr_is_public(benchmark: Any) -> None:
    benchmark.group = "multiaddr"
    benchmark(lambda: ADDRS[0].is_public)
