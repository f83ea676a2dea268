"""Packets of data, under keys that both sides have: what a peer that is no friend may put into them."""

from __future__ import annotations

from flare._core.aead import AES_128_GCM
from flare._core.quic import Keys, frames, stream_frame

CORPUS = (
    b"\x01\x00\x00",
    bytes.fromhex("0205400a00030102"),
    bytes.fromhex("020a0001020301"),
    stream_frame(4, 1000, bytearray(b"some data"), 0, 9, True) + b"\x01",
    b"\x0c\x04\x07to the end",
)

CID = bytes(8)
_ours = Keys(AES_128_GCM, bytes(16), bytes(12), bytes(16))
_theirs = Keys(AES_128_GCM, bytes(16), bytes(12), bytes(16))


def fuzz(data: bytes) -> None:
    """Nothing raises; what is taken apart is no longer than what came; sealed and opened it is the same."""
    _, left, acked, _, streams, _ = frames(data)
    if left is None:
        assert streams is not None
        assert sum(len(piece) for _, _, piece, _ in streams) <= len(data)
        assert all(0 <= start < stop for start, stop in acked or ())
    else:
        assert left == data
    _theirs.open(data, CID, 7)
    if data:
        opened = _theirs.open(_ours.seal(CID, 7, data), CID, 7)
        assert opened is not None
        assert opened[0] == 7
        assert opened[1:] == frames(data)[1:]
