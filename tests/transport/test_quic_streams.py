"""Many streams on one QUIC connection: what each packet costs, and that none of them starves."""

from __future__ import annotations

from typing import Any

import pytest

from flare._core.quic import available
from flare.config import KIB
from flare.transport.quic_aioquic import _Quic
from tests.support.quic_engines import EnginePair

STREAMS = 100


@pytest.fixture
def pair() -> EnginePair:
    made = EnginePair()
    made.handshake()
    return made


@pytest.mark.skipif(not available(), reason="libcrypto is not within reach")
def test_an_idle_stream_costs_a_packet_nothing(pair: EnginePair, monkeypatch: pytest.MonkeyPatch) -> None:
    """aioquic asks every open stream for each packet whether it has a window to tell."""
    streams = [pair.client.open_stream() for _ in range(STREAMS)]
    for stream in streams:
        pair.client.write(stream, b"hello")
    pair.turn()
    assert len(pair.there.received) == STREAMS
    asked = 0
    original = _Quic._write_stream_limits

    def count(self: _Quic, *args: Any, **how: Any) -> None:
        nonlocal asked
        asked += 1
        original(self, *args, **how)

    monkeypatch.setattr(_Quic, "_write_stream_limits", count)
    pair.client.write(streams[7], bytes(64 * KIB))
    packets = sum(pair.turn() for _ in range(10))
    assert packets > 40
    assert asked <= 2 * packets


def test_none_starves_when_all_of_them_have_much_to_send(pair: EnginePair) -> None:
    streams = [pair.client.open_stream() for _ in range(STREAMS)]
    for stream in streams:
        assert pair.client.write(stream, bytes(10_000)) == 10_000
    while sum(pair.there.received.values()) < 700_000:
        assert pair.turn() > 0
    assert set(pair.there.received) == set(streams), "each had a turn before the others were done"


def test_all_of_them_end_and_make_room_for_others(pair: EnginePair) -> None:
    for _ in range(4):  # more than a peer allows at once
        streams = [pair.client.open_stream() for _ in range(STREAMS)]
        for stream in streams:
            pair.client.write(stream, bytes(100))
            pair.client.finish(stream)
        for _ in range(10):
            pair.turn()
        assert pair.there.ended >= set(streams)
        for stream in streams:
            pair.server.finish(stream)
        for _ in range(10):
            pair.turn()
        assert pair.here.ended >= set(streams)
    pair.turn()
    assert not pair.client._quic._streams
    assert not pair.client._quic._streams_queue
