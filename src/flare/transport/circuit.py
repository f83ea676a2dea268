"""A connection inside a relayed stream: TLS or Noise and yamux again, end to end, over what the relay copies.

The multiplexer runs on a memory link. Two tasks pump: what the peer sends from the stream into the link, what
the link has to send into the stream. Each waits for the stream only, so that a slow circuit holds nobody else
up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from flare._core.link import Link
from flare.config import Config
from flare.errors import FlareError, NetworkError
from flare.transport.channel import BufferedChannel
from flare.transport.connection import Connection
from flare.transport.deadline import within
from flare.transport.loop_engine import LoopEngine
from flare.transport.stream import Stream
from flare.transport.upgrade import upgrade
from flare.wire.keys import Identity
from flare.wire.messages import Limit
from flare.wire.peer_id import PeerId

_READ: Final = 64 * 1024


class StreamChannel(BufferedChannel):
    """A channel over a stream, for the handshake inside a circuit."""

    def __init__(self, stream: Stream, peer: object) -> None:
        super().__init__(peer)
        self._stream = stream

    async def _receive(self) -> bytes:
        return await self._stream.read(_READ)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`."""
        await self._stream.write(data)


async def secure(
    stream: Stream,
    identity: Identity,
    engine: LoopEngine,
    *,
    initiator: bool,
    expected_peer: PeerId | None,
    limit: Limit | None,
    config: Config,
) -> Connection:
    """Make a connection of `stream`, the raw bytes of a circuit; the stream is the connection's from now on.

    `initiator`: we asked the relay for the circuit. `limit` is what the relay allows on it, None for no
    limit. The connection ends with the stream, and the stream with it. On an error the stream is reset.
    Raises what the handshake raises, PeerMismatch among it, and TimedOut after Timeouts.dial or
    Timeouts.handshake.
    """
    stream.keep()
    relay = stream.connection.remote_peer
    tasks = stream.connection.tasks
    timeouts = config.timeouts
    name = expected_peer or "a relayed peer"
    channel = StreamChannel(stream, name)
    try:
        async with within(
            timeouts.dial if initiator else timeouts.handshake, f"the handshake with {name} through {relay}"
        ):
            upgraded = await upgrade(
                channel,
                identity,
                initiator=initiator,
                expected_peer=expected_peer,
                timeouts=timeouts,
                security=config.security,
            )
    except BaseException:
        stream.reset()
        raise
    link = engine.attach_memory(upgraded.records, initiator=initiator, limits=config.mux)
    connection = Connection(
        link,
        upgraded,
        local_peer=identity.peer_id,
        local_addr=None,
        remote_addr=stream.connection.remote_addr.with_peer(relay) / "p2p-circuit",
        initiator=initiator,
        config=config,
        tasks=tasks,
        limit=limit,
        relay=relay,
    )
    output = asyncio.Event()
    room = asyncio.Event()

    def on_output(_: None) -> None:
        output.set()
        room.set()

    link.on_output = on_output
    output.set()
    goodbyes: list[int] = []
    link.on_goaway = goodbyes.append

    def ended(_: asyncio.Task[None]) -> None:
        """The pump has said so already, unless it was cancelled before its first step."""
        connection.abort("the circuit ended")
        stream.close_now()

    tasks.start(
        _pump(connection, stream, link, upgraded.leftover, output, room, goodbyes),
        f"circuit with {upgraded.remote_peer}",
    ).add_done_callback(ended)
    return connection


async def _pump(
    connection: Connection,
    stream: Stream,
    link: Link,
    leftover: bytes,
    output: asyncio.Event,
    room: asyncio.Event,
    goodbyes: list[int],
) -> None:
    """Carry bytes both ways until the stream or the connection ends; then end the other."""
    sending = asyncio.ensure_future(_send(stream, link, output))
    receiving = asyncio.ensure_future(_receive(stream, link, leftover, room))
    closing = asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait((sending, receiving, closing), return_when=asyncio.FIRST_COMPLETED)
        if closing.done() and not sending.done():
            # A graceful close leaves a go-away to send.
            async with within(connection.timeouts.close, "sending the last bytes of a circuit"):
                await _drain(stream, link)
        stream.close_now()
    except (FlareError, OSError):
        stream.reset()
    finally:
        for part in (sending, receiving, closing):
            part.cancel()
        results: Sequence[BaseException | None] = ()
        try:
            results = await asyncio.gather(sending, receiving, closing, return_exceptions=True)
        finally:  # also when it is cancelled meanwhile
            if not connection.closed:
                reason = next((error for error in results if isinstance(error, FlareError)), None)
                if goodbyes:  # how the stream ended after that is no news
                    reason = NetworkError("the peer closed the connection")
                connection.abort(reason or NetworkError("the circuit ended"))
            stream.close_now()


async def _send(stream: Stream, link: Link, output: asyncio.Event) -> None:
    while True:
        await output.wait()
        output.clear()
        await _drain(stream, link)


async def _drain(stream: Stream, link: Link) -> None:
    while data := link.take_output():
        await stream.write(data)


async def _receive(stream: Stream, link: Link, leftover: bytes, room: asyncio.Event) -> None:
    if leftover:
        link.feed(leftover)
    while data := await stream.read(_READ):
        link.feed(data)
        while link.paused:
            room.clear()
            await room.wait()
