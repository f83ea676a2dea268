"""Both sides of multistream-select against a peer that sends anything: an agreed protocol or a documented
error."""

from __future__ import annotations

import asyncio
import contextlib

from flare.errors import NetworkError, ProtocolViolation
from flare.transport import multistream
from flare.transport.channel import BufferedChannel
from flare.transport.multistream import HEADER, encode

_OURS = ("/noise", "/echo/1.0.0")
_HEADER = encode(HEADER)

CORPUS = (
    _HEADER + encode("/noise"),
    _HEADER + encode("/tls/1.0.0") + encode("/noise") + b"payload",
    _HEADER + encode("ls") + encode("na") + encode("/echo/1.0.0"),
    _HEADER + encode("na") + encode("/echo/1.0.0"),
    _HEADER + encode("/" + "x" * 300),
)


class Recording(BufferedChannel):
    """A peer that sends `data` in pieces of `step` bytes, and then its end."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__("the peer")
        self._data = data
        self._step = step

    async def _receive(self) -> bytes:
        piece, self._data = self._data[: self._step], self._data[self._step :]
        return piece

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody listens."""

    def rest(self) -> bytes:
        """What was not read."""
        return self.leftover() + self._data


def fuzz(data: bytes) -> None:
    asyncio.run(_fuzz(data))


async def _fuzz(data: bytes) -> None:
    for step in (1, 7, 4096):
        peer = Recording(data, step)
        with contextlib.suppress(ProtocolViolation, NetworkError):
            assert await multistream.handle(peer, _OURS, 5.0) in _OURS
            assert data.endswith(peer.rest()), "what follows belongs to the protocol"
        peer = Recording(data, step)
        with contextlib.suppress(ProtocolViolation, NetworkError):
            assert await multistream.select(peer, _OURS, 5.0) in _OURS
            assert data.endswith(peer.rest())
        peer = Recording(data, step)
        with contextlib.suppress(ProtocolViolation, NetworkError):
            await multistream.Optimistic(peer, "/noise").read_frame(64)
