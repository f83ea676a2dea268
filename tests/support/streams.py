"""Streams without a network: the real `transport.stream.Stream` over a multiplexer stream made of two byte
buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flare.config import Timeouts
from flare.errors import DecodeError, FrameTooLarge, StreamClosed, StreamReset
from flare.transport.stream import CLOSED, READABLE, WRITABLE, Stream

WINDOW = 256 * 1024


class MemoryCore:
    """One end of a pair that behaves as flare._core.engine.LinkStream does. `chunk` splits what arrives, as a
    network may.
    """

    def __init__(self, inbound: bool, *, id: int = 1, window: int = WINDOW, chunk: int = 0) -> None:
        self.id = id
        self.inbound = inbound
        self.link = None
        self.window = window
        self.chunk = chunk
        self.on_event: Callable[[int], None] | None = None
        self.read_closed = self.write_closed = self.is_reset = False
        self.control = False
        self.other: MemoryCore
        self._inbox = bytearray()
        self._fin = False
        self._in_flight = 0

    @property
    def readable(self) -> int:
        return len(self._inbox)

    def read(self, max_bytes: int) -> bytes | None:
        self._check()
        data = bytes(self._inbox[:max_bytes])
        if not data:
            self.read_closed = self._fin
            return b"" if self._fin else None
        del self._inbox[: len(data)]
        self.other._post(WRITABLE)
        return data

    def read_frame(self, limit: int) -> bytes | None:
        self._check()
        size = shift = at = 0
        while True:
            if at == len(self._inbox):
                return self._no_frame()
            if at == 9:
                raise DecodeError("uvarint longer than 9 bytes")
            byte = self._inbox[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        if size > limit:
            raise FrameTooLarge(size, limit)
        if len(self._inbox) < at + size:
            return self._no_frame()
        payload = bytes(self._inbox[at : at + size])
        del self._inbox[: at + size]
        self.other._post(WRITABLE)
        return payload

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._check()
        if self.write_closed:
            raise StreamClosed("write after close_write")
        room = self.window - len(self.other._inbox) - self._in_flight
        taken = bytes(data[: max(0, room)])
        step = self.chunk or len(taken) or 1
        for at in range(0, len(taken), step):
            piece = taken[at : at + step]
            self._in_flight += len(piece)
            asyncio.get_running_loop().call_soon(self._deliver, piece)
        return len(taken)

    def close_write(self) -> None:
        if not self.write_closed:
            self.write_closed = True
            asyncio.get_running_loop().call_soon(self._deliver_fin)

    def reset(self) -> None:
        if not self.is_reset:
            self.is_reset = self.other.is_reset = True
            self._inbox.clear()
            self.other._inbox.clear()
            self._post(CLOSED)
            self.other._post(CLOSED)

    def set_priority(self, control: bool) -> None:
        self.control = control

    def _no_frame(self) -> None:
        if self._fin:
            raise StreamClosed("the stream ended before a whole frame")

    def _check(self) -> None:
        if self.is_reset:
            raise StreamReset("stream reset")

    def _deliver(self, data: bytes) -> None:
        self._in_flight -= len(data)
        if not self.is_reset:
            self.other._inbox += data
            self.other._post(READABLE)

    def _deliver_fin(self) -> None:
        self.other._fin = True
        self.other._post(READABLE)

    def _post(self, flags: int) -> None:
        asyncio.get_running_loop().call_soon(self._event, flags)

    def _event(self, flags: int) -> None:
        if self.on_event is not None:
            self.on_event(flags)


class FakeConnection:
    """What a protocol asks of a connection. `open_stream` returns streams put into `to_open`, in order."""

    def __init__(self, local_peer: Any = "local", remote_peer: Any = "remote", **values: Any) -> None:
        self.local_peer = local_peer
        self.remote_peer = remote_peer
        self.remote_addr = None
        self.local_addr = None
        self.initiator = True
        self.limit = None
        self.relay = None
        self.is_limited = False
        self.is_relayed = False
        self.path = "direct/tcp"
        self.timeouts = Timeouts()
        self.closed = False
        self.streams: list[Stream] = []
        self.to_open: list[Stream] = []
        self.opened: list[tuple[tuple[str, ...], bool]] = []
        for name, value in values.items():
            setattr(self, name, value)

    def open_stream(
        self, *protocols: str, allow_limited: bool = False, timeout: float | None = None
    ) -> Opening:
        self.opened.append((protocols, allow_limited))
        stream = self.to_open.pop(0)
        stream.protocol = protocols[0]
        return Opening(stream)


class Opening:
    """As Connection.open_stream's answer: an awaitable and an async context manager."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __await__(self) -> Any:
        async def ready() -> Stream:
            return self._stream

        return ready().__await__()

    async def __aenter__(self) -> Stream:
        return await self._stream.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        await self._stream.__aexit__(*exc)


def core_pair(*, window: int = WINDOW, chunk: int = 0) -> tuple[MemoryCore, MemoryCore]:
    """Two ends of one multiplexer stream: the opener's, the acceptor's."""
    near, far = MemoryCore(False, window=window, chunk=chunk), MemoryCore(True, window=window, chunk=chunk)
    near.other, far.other = far, near
    return near, far


def stream_pair(
    protocol: str = "",
    *,
    near: Any = None,
    far: Any = None,
    window: int = WINDOW,
    chunk: int = 0,
) -> tuple[Stream, Stream]:
    """Two ends of a stream: the opener's, the acceptor's. `near` and `far` are the connections they show
    (FakeConnection).
    """
    a, b = core_pair(window=window, chunk=chunk)
    return Stream(a, near or FakeConnection("a", "b"), protocol), Stream(
        b, far or FakeConnection("b", "a"), protocol
    )
