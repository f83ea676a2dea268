"""Channels without a network, and peers that misbehave on them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from flare.transport.channel import BufferedChannel, SocketChannel


class MemoryChannel(BufferedChannel):
    """One end of a pair. `mangle` may change, split, drop or hold what is written: it is given each write and
    its index.
    """

    def __init__(self, peer: object = "the peer") -> None:
        super().__init__(peer)
        self.other: MemoryChannel
        self.mangle: Callable[[bytes, int], bytes] = lambda data, _: data
        self.written: list[bytes] = []
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._ended = False

    async def _receive(self) -> bytes:
        if self._ended:
            return b""
        data = await self._inbox.get()
        self._ended = not data
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))
        sent = self.mangle(bytes(data), len(self.written) - 1)
        if sent:
            self.other._inbox.put_nowait(sent)

    def feed(self, data: bytes) -> None:
        """As if the peer had written `data`."""
        if data:
            self._inbox.put_nowait(data)

    def end(self) -> None:
        """The other end reads no more."""
        self.other._inbox.put_nowait(b"")


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends of a channel."""
    a, b = MemoryChannel("b"), MemoryChannel("a")
    a.other, b.other = b, a
    return a, b


@contextlib.asynccontextmanager
async def socket_channels() -> AsyncIterator[
    tuple[SocketChannel, SocketChannel, socket.socket, socket.socket]
]:
    """Two channels over a pair of sockets, and the sockets."""
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    loop = asyncio.get_running_loop()
    with a, b:
        yield SocketChannel(loop, a, "b"), SocketChannel(loop, b, "a"), a, b
