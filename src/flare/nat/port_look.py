"""As what a peer sees fresh ports of ours, over QUIC and TCP: how a NAT allocates, and how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flare.errors import FlareError
from flare.nat.behaviour import Sight
from flare.protocols import identify
from flare.transport.quic import QuicTransport
from flare.transport.tcp import TcpTransport
from flare.wire.keys import Identity

if TYPE_CHECKING:
    from flare.config import Config
    from flare.transport.connection import Connection
    from flare.transport.loop_engine import LoopEngine
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

TIMEOUT: Final = 3.0  # seconds for all of it


class PortLook:
    """Dials from ports of its own, as somebody else: who is asked must not take it for the host."""

    def __init__(self, engine: LoopEngine, config: Config) -> None:
        self._engine = engine
        self._config = config

    async def __call__(
        self, peer: PeerId, addrs: Mapping[str, Multiaddr], samples: int
    ) -> dict[str, Sequence[Sight]]:
        """`samples` sights of each transport; fewer, or none, from a peer that does not answer."""
        nobody = Identity.generate()
        transports: dict[str, QuicTransport | TcpTransport] = {
            "quic-v1": QuicTransport(nobody, self._config, on_connection=_refuse),
            "tcp": TcpTransport(self._engine, nobody, self._config, on_connection=_refuse),
        }
        start = asyncio.get_running_loop().create_task
        tasks = {
            name: [start(_look(transports[name], addr, peer)) for _ in range(samples)]
            for name, addr in addrs.items()
        }
        every = [task for some in tasks.values() for task in some]
        try:
            await asyncio.wait(every, timeout=TIMEOUT)
            return {
                name: [sight for task in some if task.done() and (sight := task.result()) is not None]
                for name, some in tasks.items()
            }
        finally:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, *(t.close() for t in transports.values()), return_exceptions=True)


async def _look(transport: QuicTransport | TcpTransport, addr: Multiaddr, peer: PeerId) -> Sight | None:
    try:
        connection = await transport.dial(addr, expected_peer=peer, reuse=False)
    except (FlareError, OSError):
        return None
    try:
        async with connection.open_stream(identify.PROTOCOL) as stream:
            told = (await identify.request(stream)).observed_addr
    except (FlareError, OSError):
        return None
    finally:
        connection.abort("only for a look at our own port")
    local, vantage = connection.local_addr, addr.endpoint
    seen = told.endpoint if told is not None else None
    if local is None or local.port is None or seen is None or vantage is None:
        return None
    return Sight((vantage[0], vantage[2]), local.port, (seen[0], seen[2]))


def _refuse(connection: Connection) -> None:
    connection.abort("nobody listens here")
