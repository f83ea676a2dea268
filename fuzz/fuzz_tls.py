"""TLS records from a stranger, who has no key, and from a peer that has one and puts anything into them.

The first byte of an input says in what pieces it arrives, the second of what content type it is.
"""

from __future__ import annotations

from flare._core.aead import AES_128_GCM, Aead
from flare._core.engine import Engine
from flare._core.hkdf import hkdf_expand_label
from flare._core.link import LinkStream, TlsRecords
from flare.errors import ConnectionClosed, FlareError, ProtocolViolation

_SECRET = bytes(range(32))
_OPEN = bytes.fromhex("00 01 0001 00000001 00000000")
_DATA, _HANDSHAKE, _ALERT = 23, 22, 21


def _seal(*records: tuple[int, bytes]) -> bytes:
    key, iv = hkdf_expand_label(_SECRET, b"key", 16), hkdf_expand_label(_SECRET, b"iv", 12)
    state = Aead(key, AES_128_GCM, iv=iv)
    out = b""
    for content, data in records:
        inner = data[: 1 << 14] + bytes((content,))
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        out += header + state.seal(inner, header)
    return out


CORPUS = tuple(
    bytes((step, content)) + wire
    for step in (0, 1, 7)
    for content, wire in (
        (_DATA, _OPEN),
        (_HANDSHAKE, b"\x04\x00\x00\x05later"),
        (_HANDSHAKE, b"\x18\x00\x00\x01\x01"),
        (_ALERT, b"\x01\x00"),
        (_ALERT, b"\x02\x28"),
        (_DATA, _seal((_DATA, _OPEN))),
        (_DATA, b"\x17\x03\x03\x40\x11"),
    )
)


def _feed(step: int, wire: bytes) -> tuple[list[LinkStream], list[BaseException | None]]:
    engine = Engine()
    link = engine.attach_memory(record=TlsRecords(0x1301, bytes(32), _SECRET), initiator=False)
    streams: list[LinkStream] = []
    ended: list[BaseException | None] = []
    link.on_stream = streams.append
    link.on_close = ended.append
    for start in range(0, len(wire), step):
        link.feed(wire[start : start + step])
    engine.run_pass()
    was = list(ended)
    engine.close()
    return streams, was


def fuzz(data: bytes) -> None:
    step, content, wire = (data[0] or 1, data[1], data[2:]) if len(data) > 1 else (1, 0, data)
    streams, ended = _feed(step, wire)
    assert not streams or wire.startswith(_seal((_DATA, _OPEN))), "a stream from a record that nobody sealed"
    assert all(isinstance(error, (ProtocolViolation, ConnectionClosed)) for error in ended)

    streams, ended = _feed(step, _seal((_DATA, _OPEN), (content, wire)))
    assert streams or ended, "what was sealed arrives"
    assert all(isinstance(error, FlareError) for error in ended)

    reader = TlsRecords(0x1301, bytes(32), _SECRET)
    try:
        opened = [reader.open(record) for record in (_seal((content, wire)),)]
    except (ProtocolViolation, ConnectionClosed):
        return
    assert wire.startswith(opened[0]), "data that nobody sealed"
