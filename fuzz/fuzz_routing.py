"""Answers of a delegated routing service that may send anything: peers within the limits, or DecodeError."""

from __future__ import annotations

import contextlib

from flare.errors import DecodeError
from flare.nat.relay_sources.routing import MAX_ADDRS, MAX_RECORDS, decode_records

_PEER = b'{"Schema": "peer", "ID": "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5", "Addrs": [%s]}'
_ADDR = b'"/ip4/8.8.8.8/tcp/4001", "/ip6/2001:db8::1/udp/4001/quic-v1"'

CORPUS = (
    b'{"Peers": [' + _PEER % _ADDR + b', {"ID": 7}]}',
    b'{"Providers": [' + _PEER % b"" + b"]}",
    _PEER % _ADDR + b"\n" + _PEER % b"null" + b"\n",
    b'{"Peers": null}',
)


def fuzz(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        found = decode_records(data)
        assert len(found) <= MAX_RECORDS
        assert all(len(relay.addrs) <= MAX_ADDRS for relay in found)
