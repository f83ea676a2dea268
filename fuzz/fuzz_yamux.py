"""yamux from a stranger, in plain bytes: at most the connection, and what Python holds keeps working.

The first byte of an input says in what pieces it arrives, and which side we are.
"""

from __future__ import annotations

import struct

from flare._core.engine import Engine
from flare._core.link import LinkStream, PlainRecords
from flare._core.splice import SpliceResult, splice
from flare.errors import ConnectionClosed, ProtocolViolation, StreamClosed, StreamReset, UsageError


def _frame(type: int, flags: int, stream: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, type, flags, stream, length) + payload


_OPEN = _frame(1, 1, 1, 0)
CORPUS = tuple(
    bytes([how]) + wire
    for how in (0, 1, 0x81, 0x85, 64)
    for wire in (
        _OPEN + _frame(0, 0, 1, 5, b"hello") + _frame(0, 4, 1, 0),
        _frame(0, 1, 1, 6, b"\x05hello") + _frame(1, 2, 2, 1 << 20) + _frame(1, 8, 1, 0),
        _frame(0, 2, 2, 3, b"abc") + _frame(2, 1, 0, 77) + _frame(2, 2, 0, 1) + _frame(3, 0, 0, 0),
        _OPEN
        + _frame(1, 1, 3, 0)
        + _frame(0, 0, 3, 600, bytes(600))
        + _frame(0, 12, 3, 0)
        + _frame(0, 4, 1, 2, b"xy"),
    )
)


class Small:
    """Limits that a short input can reach."""

    max_streams = 3
    backlog = 2
    send_high_water = 4096
    keepalive = 0.0
    max_receive = 1 << 19


def fuzz(data: bytes) -> None:
    how, wire = (data[0], data[1:]) if data else (0, b"")
    engine = Engine()
    try:
        _run(engine, wire, step=how & 63 or len(wire) or 1, initiator=how >= 128, joins=bool(how & 64))
    finally:
        engine.close()


def _run(engine: Engine, wire: bytes, *, step: int, initiator: bool, joins: bool) -> None:
    link = engine.attach_memory(record=PlainRecords(), initiator=initiator, limits=Small())
    streams: list[LinkStream] = []
    ended: list[BaseException | None] = []
    spliced: list[SpliceResult] = []
    link.on_stream = streams.append
    link.on_close = ended.append
    streams.append(link.open_stream())
    for start in range(0, len(wire), step):
        link.feed(wire[start : start + step])
        engine.run_pass()
        _use(streams)
        if joins and len(streams) == 2:
            joins = False
            try:
                splice(streams[0], streams[1], limit_a_to_b=1000, on_done=spliced.append)
            except (StreamReset, ConnectionClosed, UsageError):
                continue
        assert len(link.take_output()) < 1 << 20
        assert link.stats.buffered <= Small.max_receive + (1 << 18)
    engine.run_pass()
    assert len(ended) == link.closed
    assert not ended or isinstance(ended[0], ProtocolViolation), ended


def _use(streams: list[LinkStream]) -> None:
    for i, stream in enumerate(streams):
        try:
            if i % 2:
                stream.read_frame(100)
            else:
                stream.read(64)
            stream.write(b"answer")
        except (StreamReset, StreamClosed, ConnectionClosed, ProtocolViolation, UsageError):
            continue
