"""The listener's handshake in C: a stranger's bytes in any pieces lead to a documented error or nothing."""

from __future__ import annotations

from flare._core.handshake import DONE, WAITS, Responder, StaticKey
from flare.errors import ProtocolViolation
from flare.transport import multistream

_PROPOSAL = multistream.proposal("/noise")
_KEY = StaticKey(bytes(range(1, 33)), b"payload")
_EPHEMERAL = bytes(range(0x41, 0x61))
_FIRST = bytes.fromhex("358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254")

CORPUS = (
    _PROPOSAL,
    multistream.proposal("/tls/1.0.0"),
    _PROPOSAL + b"\x00\x20" + _FIRST,
    _PROPOSAL + b"\x00\x20" + _FIRST + b"\x00\x40" + bytes(64),
    _PROPOSAL + b"\x00\x20" + _FIRST + b"\x10\x01",
)


def fuzz(data: bytes) -> None:
    for before in (b"", _PROPOSAL, _PROPOSAL + b"\x00\x20" + _FIRST):
        whole = _outcome(before, (data,))
        middle = len(data) // 2
        assert _outcome(before, (data[:middle], data[middle:])) == whole or not before, "pieces matter"


def _outcome(before: bytes, pieces: tuple[bytes, ...]) -> tuple[bytes, int, str]:
    responder = Responder(-1, _KEY, ephemeral=_EPHEMERAL)
    said = b""
    error = ""
    for piece in (before, *pieces):
        try:
            said += responder.feed(piece)
        except ProtocolViolation as violation:
            error = str(violation)
            break
        if responder.state != WAITS:
            break
    assert responder.state != DONE, "keys for somebody who has none"
    return said, responder.state, error
