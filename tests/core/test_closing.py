"""A link that closes while the peer is still sending."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from flare._core.engine import Engine
from flare._core.link import NoiseRecords
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
