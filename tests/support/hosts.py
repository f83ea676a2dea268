"""Small hosts for the tests of transports: an identity, an engine, TCP, and the connections that came in."""

from __future__ import annotations

import asyncio
from types import TracebackType

from flare.config import Config
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.loop_engine import LoopEngine
from flare.transport.stream import Stream
from flare.transport.tcp import TcpTransport
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

LOOPBACK = {4: "/ip4/127.0.0.1/tcp/0", 6: "/ip6/::1/tcp/0"}


class Node:
    """`async with Node() as node`: listens on loopback, serves /echo and what is added to `handlers`."""

    def __init__(self, config: Config | None = None, *, listen: str | None = LOOPBACK[4]) -> None:
        self.config = config or Config()
        self.identity = Identity.generate()
        self.handlers = StreamHandlers()
        self.handlers.add("/echo", echo)
        self.inbound: asyncio.Queue[Connection] = asyncio.Queue()
        self._listen = listen

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addr(self) -> Multiaddr:
        """Where it listens, with its peer id."""
        return self.tcp.listen_addrs[0].with_peer(self.peer_id)

    async def __aenter__(self) -> Node:
        self.engine = LoopEngine.get(self.config.data_threads)
        self.tcp = TcpTransport(self.engine, self.identity, self.config, on_connection=self._accept)
        if self._listen is not None:
            await self.tcp.listen(Multiaddr(self._listen))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.tcp.close()
        self.engine.release()

    async def dial(self, other: Node, **how: object) -> Connection:
        """A connection to `other`, with our handlers on it."""
        connection = await self.tcp.dial(other.addr, expected_peer=other.peer_id, **how)  # type: ignore[arg-type]
        connection.serve(self.handlers)
        return connection

    def _accept(self, connection: Connection) -> None:
        connection.serve(self.handlers)
        self.inbound.put_nowait(connection)


async def echo(stream: Stream) -> None:
    """Send back what comes, until the peer closes its side."""
    while data := await stream.read():
        await stream.write(data)
