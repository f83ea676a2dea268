"""/ipfs/ping/1.0.0: 32 random bytes, echoed (ping.md)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from flare.errors import NetworkError, ProtocolViolation
from flare.protocols.exchange import TIMEOUTS, within

if TYPE_CHECKING:
    from flare.transport.connection import Connection
    from flare.transport.stream import Stream

PROTOCOL: Final = "/ipfs/ping/1.0.0"
SIZE: Final = 32  # bytes
STREAMS_PER_CONNECTION: Final = 2  # inbound, at once
BATCH: Final = 64  # pings echoed together when they come together
BURST: Final = 200  # pings of a stream that are answered at once, and
RATE: Final = 100  # ... a second after that: a flood waits in its own window


class Pinger:
    """Pings over one stream, which stays open between pings."""

    def __init__(
        self,
        stream: Stream,
        *,
        timeout: float = TIMEOUTS.ping,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stream = stream
        self._timeout = timeout
        self._clock_ns = clock_ns

    async def ping(self) -> float:
        """One round trip in seconds. TimedOut, or ProtocolViolation when the echo differs."""
        payload = os.urandom(SIZE)
        async with within(self._timeout, "ping"):
            sent = self._clock_ns()
            await self._stream.write(payload)
            echo = await self._stream.read_exactly(SIZE)
        if echo != payload:
            raise ProtocolViolation("the echo differs from what was sent", protocol=PROTOCOL)
        return (self._clock_ns() - sent) / 1e9

    async def close(self) -> None:
        """No more pings."""
        await self._stream.close()


async def ping(connection: Connection, *, timeout: float = TIMEOUTS.ping) -> float:
    """One round trip in seconds over a stream of its own."""
    async with connection.open_stream(PROTOCOL, allow_limited=True) as stream:
        return await Pinger(stream, timeout=timeout).ping()


async def serve(stream: Stream, *, idle: float = TIMEOUTS.ping_idle) -> None:
    """Echo until the peer closes its side; StreamClosed if within a ping, TimedOut after `idle` seconds."""
    spent = 0.0  # the time up to which pings are paid for
    while True:
        async with within(idle, "a ping"):
            payload = await stream.read(SIZE * BATCH)
            if not payload:
                await stream.close()
                return
            if short := -len(payload) % SIZE:
                payload += await stream.read_exactly(short)
            await stream.write(payload)
        now = time.monotonic()
        spent = max(spent, now - BURST / RATE) + len(payload) / SIZE / RATE
        if spent > now:
            await asyncio.sleep(spent - now)


class PingServer:
    """`serve`, for at most two streams of a connection at once; a third is reset (ping.md, "Protocol")."""

    def __init__(self, *, idle: float = TIMEOUTS.ping_idle) -> None:
        self._idle = idle
        self._streams: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()

    async def serve(self, stream: Stream) -> None:
        """Echo; a peer that breaks off, goes silent or opens too many loses its stream and nothing else."""
        connection = stream.connection
        count = self._streams.get(connection, 0)
        if count >= STREAMS_PER_CONNECTION:
            stream.reset()
            return
        self._streams[connection] = count + 1
        try:
            await serve(stream, idle=self._idle)
        except (NetworkError, TimeoutError):
            stream.reset()
        finally:
            self._streams[connection] -= 1
