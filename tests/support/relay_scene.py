"""Peers of a real relay, in this process or another, that speak HOP and STOP by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

import flare
from flare.protocols.relay import STOP_PROTOCOL, stop
from flare.protocols.relay.connect import connect
from flare.protocols.relay.reserve import reserve
from flare.transport.connection import Connection
from flare.transport.stream import Stream
from tests.support.loopback import host


class Scene:
    """Connections of new peers to the relay at `addrs`; those that reserve take any circuit, and echo."""

    def __init__(self, stack: AsyncExitStack, addrs: Sequence[flare.Multiaddr]) -> None:
        self.stack, self.addrs = stack, addrs
        self.streams: list[Stream] = []

    async def peer(self, identity: flare.Identity | None = None) -> Connection:
        """A new peer's connection to the relay."""
        peer = await self.stack.enter_async_context(host(identity=identity, listen=[], punch=False))
        connection = await peer.connect(*self.addrs)

        @peer.handle(STOP_PROTOCOL)
        async def take(stream: Stream) -> None:
            circuit = await stop.accept(stream)
            while data := await circuit.stream.read():
                await circuit.stream.write(data)

        return connection

    async def reserved(self, identity: flare.Identity | None = None) -> Connection:
        connection = await self.peer(identity)
        await reserve(connection)
        return connection

    async def circuit(self, source: Connection, target: Connection) -> Stream:
        stream, _ = await connect(source, target.local_peer)
        self.streams.append(stream)
        return stream
