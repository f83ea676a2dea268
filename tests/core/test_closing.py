"""A link that closes while the peer is still sending."""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest

from flare._core.engine import Engine
from flare._core.link import NoiseRecords, PlainRecords
from flare.config import MuxLimits
from flare.errors import AuthenticationFailed, ConnectionClosed


def test_the_rest_of_a_record_that_comes_after_close_is_no_violation() -> None:
    engine = Engine()
    near = engine.attach_memory(record=NoiseRecords(bytes(32), bytes(range(32))), initiator=True)
    far = engine.attach_memory(record=NoiseRecords(bytes(range(32)), bytes(32)), initiator=False)
    ended: list[BaseException | None] = []
    far.on_close = ended.append
    stream = near.open_stream()
    stream.write(b"hello")
    record = near.take_output()
    far.feed(record[:10])
    far.close()
    far.feed(record[10:])
    while far.take_output():
        engine.run_pass()
    engine.run_pass()
    assert ended == [None]
    engine.close()


def test_streams_of_a_link_that_ended_in_a_violation_are_closed_and_the_cause_is_told() -> None:
    engine = Engine()
    link = engine.attach_memory(record=NoiseRecords(bytes(32), bytes(32)), initiator=True)
    stream = link.open_stream()
    link.feed(b"\x00\x10" + bytes(16))
    for call in (stream.read, lambda: stream.read_frame(10), lambda: stream.write(b"x")):
        with pytest.raises(ConnectionClosed, match="a record does not verify") as caught:
            call()
        assert isinstance(caught.value.__cause__, AuthenticationFailed)
    engine.close()


def test_a_record_that_never_ends_keeps_no_link_alive() -> None:
    engine = Engine()
    limits = replace(MuxLimits(), keepalive=0.05, keepalive_timeout=0.05)
    link = engine.attach_memory(record=NoiseRecords(bytes(32), bytes(32)), initiator=True, limits=limits)
    ended: list[BaseException | None] = []
    link.on_close = ended.append
    link.feed(b"\xff\xff")
    end = time.monotonic() + 2
    while not ended and time.monotonic() < end:
        link.feed(b"x")
        engine.run_pass(5_000_000)
    assert "no keepalive ping" in str(ended)
    engine.close()


def test_a_memory_link_says_when_it_holds_enough_and_when_there_is_room_again() -> None:
    engine = Engine()
    limits = replace(MuxLimits(), max_streams=1, send_high_water=64 * 1024)
    link = engine.attach_memory(record=PlainRecords(), initiator=False, limits=limits)
    calls: list[None] = []
    link.on_output = calls.append
    flood = b"".join(struct.pack(">BBHII", 0, 1, 1, n, 0) for n in range(1, 10001, 2))
    fed = 0
    while not link.paused:
        link.feed(flood)
        fed += len(flood)
        flood = b"".join(struct.pack(">BBHII", 0, 1, 1, fed * 2 + n, 0) for n in range(1, 10001, 2))
        engine.run_pass()
    assert link.unsent >= 64 * 1024
    assert fed < 1024 * 1024
    calls.clear()
    link.take_output()
    engine.run_pass()
    assert not link.paused
    assert calls
    engine.close()
