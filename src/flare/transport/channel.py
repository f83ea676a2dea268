"""Bytes in order to and from a peer, before there are streams: what handshakes run on."""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from typing import Final, Protocol

from flare.errors import ConnectionClosed, DecodeError, FrameTooLarge

_RECEIVE: Final = 4 * 1024  # bytes asked of the socket at once: what a peer may have us keep unasked


class Channel(Protocol):
    """A byte stream that is awaited. A cancelled read loses no bytes; no read takes more than it gives."""

    async def read(self, max_bytes: int) -> bytes:
        """What has come, 1 to `max_bytes`; b"" at the end."""
        ...

    async def read_exactly(self, n: int) -> bytes:
        """`n` bytes. NetworkError when the end comes before."""
        ...

    async def read_frame(self, limit: int) -> bytes:
        """One frame with its length before it as a uvarint. FrameTooLarge above `limit`, DecodeError."""
        ...

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        ...


class BufferedChannel(ABC):
    """A channel over `_receive` and `write`, which keeps what came too much for the next reader."""

    def __init__(self, peer: object) -> None:
        self.peer = peer
        self._buffer = bytearray()

    @abstractmethod
    async def _receive(self) -> bytes:
        """Wait for more of the peer's bytes; b"" at the end."""

    @abstractmethod
    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""

    async def read(self, max_bytes: int) -> bytes:
        """What has come, 1 to `max_bytes`; b"" at the end."""
        if not self._buffer:
            self._buffer += await self._receive()
        return self._pop(min(max_bytes, len(self._buffer)))

    async def read_exactly(self, n: int) -> bytes:
        """`n` bytes. ConnectionClosed when the end comes before."""
        await self._fill(n)
        return self._pop(n)

    async def read_frame(self, limit: int) -> bytes:
        """One frame with its length before it as a uvarint. FrameTooLarge above `limit`, DecodeError."""
        size = at = 0
        while True:
            await self._fill(at + 1)
            byte = self._buffer[at]
            size |= (byte & 0x7F) << (7 * at)
            at += 1
            if byte < 0x80:
                break
            if at == 9:
                raise DecodeError(f"length prefix longer than 9 bytes from {self.peer}")
        if at > 1 and byte == 0:
            raise DecodeError(f"length prefix from {self.peer} is not minimal")
        if size > limit:
            raise FrameTooLarge(size, limit)
        await self._fill(at + size)
        del self._buffer[:at]
        return self._pop(size)

    def unread(self, data: bytes) -> None:
        """Let `data`, read before, be read first."""
        self._buffer[:0] = data

    def leftover(self) -> bytes:
        """What was read from the peer and not yet taken; it is the caller's from now on."""
        return self._pop(len(self._buffer))

    async def _fill(self, n: int) -> None:
        while len(self._buffer) < n:
            chunk = await self._receive()
            if not chunk:
                raise ConnectionClosed(f"{self.peer} closed the connection during the handshake")
            self._buffer += chunk

    def _pop(self, n: int) -> bytes:
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        return data


class SocketChannel(BufferedChannel):
    """A channel over a connected non-blocking socket, which it does not own; `peer` is for errors."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, peer: object = "the peer"
    ) -> None:
        super().__init__(peer)
        self._loop = loop
        self._sock = sock

    async def _receive(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._sock, _RECEIVE)
        except OSError as error:
            raise ConnectionClosed(f"reading from {self.peer}: {_reason(error)}") from error

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        try:
            await self._loop.sock_sendall(self._sock, data)
        except OSError as error:
            raise ConnectionClosed(f"writing to {self.peer}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
