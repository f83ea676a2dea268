"""Finds out how the NAT before us treats TCP, from ports of its own that nobody has heard of.

Filtering: from one port one vantage point is dialled, which says as what it sees it. While only that one
has been spoken to, it and another one are asked to dial back there (AutoNAT v2). A NAT that drops what it
does not let in makes them wait for their time-out, so what has not come within `PATIENCE` counts as filtered
until they answer; one that never answers proves nothing.

Mapping: from a second port all vantage points are dialled. Allocation: some more ports. Hairpin: we dial the
first port at its outside address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.errors import FlareError
from flare.nat.behaviour import (
    Behaviour,
    Endpoint,
    Mapping,
    Sight,
    judge_allocation,
    judge_filtering,
    judge_mapping,
)
from flare.protocols import identify
from flare.protocols.autonat import DIAL_BACK_PROTOCOL
from flare.transport.connection import Connection, StreamHandlers
from flare.transport.tcp import TcpTransport
from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.config import Config
    from flare.protocols.autonat.v2_client import DialBackClient
    from flare.transport.loop_engine import LoopEngine
    from flare.wire.keys import Identity
    from flare.wire.peer_id import PeerId

PATIENCE: Final = 2.5  # seconds: a SYN that was lost is sent again after one
SAMPLES: Final = 3  # further local ports that show how the NAT allocates


@dataclass(frozen=True, slots=True)
class Vantage:
    """A server that sees us. `addrs` are its TCP addresses, several ports of one IP welcome.

    `connection` is open to it and takes dial-back requests if `dials_back`.
    """

    peer: PeerId
    addrs: tuple[Multiaddr, ...]
    connection: Connection
    dials_back: bool = True

    @property
    def ip(self) -> str:
        return str(self.addrs[0].ip)


class TcpProbe:
    """One look at the NAT. `asker` is who asks for dial-backs on the host's connections."""

    def __init__(
        self,
        engine: LoopEngine,
        identity: Identity,
        config: Config,
        asker: DialBackClient,
        *,
        own_ips: Sequence[str],
        version: int = 4,
    ) -> None:
        self._asker = asker
        self._config = config
        self._own_ips = own_ips
        self._listen = Multiaddr("/ip4/0.0.0.0/tcp/0" if version == 4 else "/ip6/::/tcp/0")
        self._handlers = StreamHandlers()
        self._handlers.add(DIAL_BACK_PROTOCOL, asker.serve)
        self._used: list[TcpTransport] = []
        self._engine, self._identity = engine, identity

    async def run(self, vantages: Sequence[Vantage]) -> AsyncIterator[Behaviour]:
        """First what seems to be, then what is, once the servers have answered; nothing without servers."""
        asks: tuple[asyncio.Task[bool | None], ...] = ()
        try:
            first = await self._first_look(vantages)
            if first is None:
                return
            vantage, sight = first
            if judge_mapping([sight], self._own_ips) is Mapping.NONE:
                yield self._judge([sight], [], None, None, None)
                return
            back = Multiaddr.from_socket(sight.seen, "tcp")
            others = [other for other in vantages if other.ip != vantage.ip]
            start = asyncio.get_running_loop().create_task
            asks = (start(self._dial_back([vantage], back)), start(self._dial_back(others, back)))
            waited = start(_patience(asks))
            mapped = await self._map(vantages)
            samples = await self._sample(vantage)
            hairpin = await self._hairpin(back)
            await waited
            came = [ask.result() if ask.done() else False for ask in asks]
            if not others:
                came[1] = None
            yield self._judge(mapped, samples, came[0], came[1], hairpin, sight)
            if not all(ask.done() for ask in asks):
                port, address = await asyncio.gather(*asks)
                yield self._judge(mapped, samples, port, address, hairpin, sight)
        except OSError:
            return  # no port to be had
        finally:
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, *(tcp.close() for tcp in self._used), return_exceptions=True)

    def _judge(
        self,
        mapped: Sequence[Sight],
        samples: Sequence[Sight],
        other_port: bool | None,
        other_address: bool | None,
        hairpin: bool | None,
        first: Sight | None = None,
    ) -> Behaviour:
        """`first` comes from a port of its own: it tells the allocation, and the mapping only if alone."""
        allocation, step = judge_allocation([*mapped, *samples])
        sights = mapped or ([first] if first is not None else [])
        return Behaviour(
            "tcp",
            judge_mapping(sights, self._own_ips),
            judge_filtering(other_port, other_address),
            allocation,
            step,
            hairpin,
            sights[0].seen[0] if sights else None,
        )

    async def _port(self) -> tuple[TcpTransport, int]:
        """A transport on a port of its own; OSError."""
        tcp = TcpTransport(self._engine, self._identity, self._config, on_connection=self._serve)
        self._used.append(tcp)
        return tcp, (await tcp.listen(self._listen)).port

    async def _first_look(self, vantages: Sequence[Vantage]) -> tuple[Vantage, Sight] | None:
        for vantage in vantages:
            tcp, port = await self._port()
            sight = await self._look(tcp, port, vantage.addrs[0], vantage.peer)
            if sight is not None:
                return vantage, sight
        return None

    async def _map(self, vantages: Sequence[Vantage]) -> list[Sight]:
        tcp, port = await self._port()
        looks = await asyncio.gather(
            *(self._look(tcp, port, addr, vantage.peer) for vantage in vantages for addr in vantage.addrs)
        )
        return [sight for sight in looks if sight is not None]

    async def _look(self, tcp: TcpTransport, port: int, addr: Multiaddr, peer: PeerId) -> Sight | None:
        """Dial from `port` and hear as what it is seen; the connection stays, so that the mapping does."""
        vantage = _endpoint(addr)
        if vantage is None:
            return None
        try:
            connection = await tcp.dial(addr, expected_peer=peer)
            connection.serve(self._handlers)
            if connection.local_addr is None or connection.local_addr.port != port:
                return None  # the port could not be shared
            async with connection.open_stream(identify.PROTOCOL) as stream:
                told = await identify.request(stream, timeout=self._config.timeouts.identify)
        except (FlareError, OSError):
            return None
        seen = _endpoint(told.observed_addr) if told.observed_addr is not None else None
        return Sight(vantage, port, seen) if seen is not None else None

    async def _dial_back(self, vantages: Sequence[Vantage], addr: Multiaddr) -> bool | None:
        """Whether one of these, asked in turn until one knows, comes in at `addr`; None: nobody knows."""
        for vantage in vantages:
            if not vantage.dials_back:
                continue
            with contextlib.suppress(FlareError, OSError):
                verdict = await self._asker.check(vantage.connection, addr)
                if verdict.reachable is not None:
                    return verdict.reachable
        return None

    async def _hairpin(self, addr: Multiaddr) -> bool:
        """Whether we reach ourselves at our outside address."""
        ip, port = str(addr.ip), addr.port
        try:
            async with asyncio.timeout(self._config.timeouts.hairpin):
                _, writer = await asyncio.open_connection(ip, port)
        except OSError:
            return False
        writer.transport.abort()
        return True

    async def _sample(self, vantage: Vantage) -> list[Sight]:
        """As what some more local ports are seen, one after the other."""
        sights: list[Sight] = []
        for _ in range(SAMPLES):
            tcp, port = await self._port()
            sight = await self._look(tcp, port, vantage.addrs[0], vantage.peer)
            if sight is None:
                break
            sights.append(sight)
        return sights

    def _serve(self, connection: Connection) -> None:
        connection.serve(self._handlers)


async def _patience(asks: Sequence[asyncio.Task[bool | None]]) -> None:
    await asyncio.wait(asks, timeout=PATIENCE)


def _endpoint(addr: Multiaddr) -> Endpoint | None:
    if addr.ip is None or addr.port is None:
        return None
    return str(ipaddress.ip_address(addr.ip)), addr.port
