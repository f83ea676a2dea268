"""Noise records from a stranger, who has no key, and from a peer that has one and cuts them anywhere.

The first byte of an input says in what pieces it arrives.
"""

from __future__ import annotations

from flare._core.aead import Aead
from flare._core.engine import Engine
from flare._core.link import LinkStream, NoiseRecords
from flare.errors import AuthenticationFailed, ProtocolViolation

_KEY = bytes(range(32))
_OPEN = bytes.fromhex("00 01 0001 00000001 00000000")
_HELLO = bytes.fromhex("00 00 0000 00000001 00000005") + b"hello"


def _seal(*plaintexts: bytes) -> bytes:
    state = Aead(_KEY)
    sealed = [state.seal(plaintext) for plaintext in plaintexts]
    return b"".join(len(record).to_bytes(2, "big") + record for record in sealed)


CORPUS = tuple(
    bytes([step]) + wire
    for step in (0, 1, 2, 7)
    for wire in (
        _seal(_OPEN, _HELLO),
        _seal(b"", _OPEN + _HELLO[:3], _HELLO[3:]),
        b"\x00\x10" + bytes(16),
        b"\xff\xff",
    )
)


def fuzz(data: bytes) -> None:
    step, wire = (data[0], data[1:]) if data else (0, b"")
    _stranger(step or 1, wire)
    _peer(step or 1, wire)


def _feed(step: int, wire: bytes) -> tuple[list[LinkStream], list[BaseException | None], bytes]:
    engine = Engine()
    link = engine.attach_memory(record=NoiseRecords(bytes(32), _KEY), initiator=False)
    streams: list[LinkStream] = []
    ended: list[BaseException | None] = []
    link.on_stream = streams.append
    link.on_close = ended.append
    for start in range(0, len(wire), step):
        link.feed(wire[start : start + step])
    engine.run_pass()
    got = b""
    if streams and streams[0].readable:
        got = streams[0].read(1 << 20) or b""
    was = list(ended)
    engine.close()
    return streams, was, got


def _stranger(step: int, wire: bytes) -> None:
    """Only what was sealed with the key is believed."""
    streams, ended, _ = _feed(step, wire)
    honest = wire.startswith((_seal(_OPEN), _seal(b""), _seal(_OPEN + _HELLO)))
    assert not streams or honest, "a stream from a record that nobody sealed"
    assert all(isinstance(error, (AuthenticationFailed, ProtocolViolation)) for error in ended)


def _peer(step: int, payload: bytes) -> None:
    """Whatever is sealed arrives, however it is cut."""
    header = bytes.fromhex("00 00 0000 00000001") + len(payload).to_bytes(4, "big")
    frames = _OPEN + header + payload
    cut = len(frames) * 2 // 3
    streams, ended, got = _feed(step, _seal(frames[:cut], b"", frames[cut:]))
    assert not ended
    assert len(streams) == 1
    assert got == payload
