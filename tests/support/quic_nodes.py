"""Small QUIC hosts for tests: an identity, the transport, and the connections that came in."""

from __future__ import annotations

import asyncio
from types import TracebackType

from flare.config import Config
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.quic import QuicTransport
from flare.transport.quic_engine import Engine
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.hosts import echo

LOOPBACK = {4: "/ip4/127.0.0.1/udp/0/quic-v1", 6: "/ip6/::1/udp/0/quic-v1"}


class QuicNode:
    """`async with QuicNode() as node`: listens on loopback, serves /echo and what is added to `handlers`."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        listen: str | None = LOOPBACK[4],
        identity: Identity | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.config = config or Config()
        self.identity = identity or Identity.generate()
        self.handlers = StreamHandlers()
        self.handlers.add("/echo", echo)
        self.inbound: asyncio.Queue[Connection] = asyncio.Queue()
        self._listen = listen
        self._engine = engine

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addr(self) -> Multiaddr:
        """Where it listens, with its peer id."""
        return self.quic.listen_addrs[0].with_peer(self.peer_id)

    @property
    def port(self) -> int:
        return self.quic.listeners[0].port

    async def __aenter__(self) -> QuicNode:
        self.quic = QuicTransport(self.identity, self.config, on_connection=self._accept, engine=self._engine)
        if self._listen is not None:
            await self.quic.listen(Multiaddr(self._listen))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.quic.close()

    async def dial(self, other: QuicNode, addr: Multiaddr | None = None) -> Connection:
        """A connection to `other`, with our handlers on it."""
        connection = await self.quic.dial(addr or other.addr, expected_peer=other.peer_id)
        connection.serve(self.handlers)
        return connection

    def _accept(self, connection: Connection) -> None:
        connection.serve(self.handlers)
        self.inbound.put_nowait(connection)
