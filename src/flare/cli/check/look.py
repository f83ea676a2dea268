"""How `flare check` looks: a host of its own that keeps a place on each relay and has itself dialled back,
and beside that each address of each relay, dialled from a port and under an identity that nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from ...auto_nat import AutoNat
from ...config import Config
from ...errors import FlareError
from ...events import (
    DoubleNatFound,
    Event,
    PeerIdentified,
    PortMapped,
    PortMappingFailed,
    PortMappingLost,
    ReservationAccepted,
    ReservationLost,
)
from ...host import Host
from ...nat.behaviour import Behaviour, Filtering, Mapping
from ...nat.reachability import Reachable
from ...port_mapper import PortMapper
from ...protocols import ping
from ...protocols.autonat import DIAL_PROTOCOL
from ...transport.connection import Connection, StreamHandlers
from ...transport.quic import QuicTransport
from ...transport.sockets import interface_addresses
from ...transport.tcp import TcpTransport
from ...wire.keys import Identity
from ...wire.multiaddr import Multiaddr
from ...wire.peer_id import PeerId
from .findings import NAMES, Family, Findings, Path, Ports, Relay, verdict_json

STEP: Final = 0.05  # seconds between two looks at what is known
PATIENCE: Final = 4.0  # seconds for one path to a relay
IDENTIFIED: Final = 3.0  # seconds for a relay to say where it listens
QUIET: Final = 1.5  # seconds in which nothing new came and nothing was under way: then nothing will
ALONE: Final = 2.5  # seconds for our dials before the NAT is looked at: one that gets no answer takes longer
ROUTER: Final = 4.0  # seconds for the router to map ports
PINGS: Final = 3
ELSEWHERE: Final = {4: ("192.0.2.1", 9), 6: ("2001:db8::1", 9)}  # nobody's: only the route is looked up

Tell = Callable[..., None]


def family(version: int) -> Family:
    """What this machine has of IPv4 or IPv6; nothing is sent."""
    addrs = tuple(str(ip) for ip in interface_addresses(version) if not ip.is_loopback)
    kind = socket.AF_INET if version == 4 else socket.AF_INET6
    source: str | None = None
    with contextlib.suppress(OSError), socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.connect(ELSEWHERE[version])
        source = str(probe.getsockname()[0])
    return Family(version, addrs, source if source in addrs else None)


class Look:
    """One look, as `async with Look(...) as look: await look.run(timeout)`, then `look.findings()`.

    `tell(event, **fields)` hears of each fact once it is known; `maps` asks the router for ports.
    """

    def __init__(
        self,
        relays: Sequence[Multiaddr],
        *,
        identity: Identity,
        config: Config,
        tell: Tell,
        maps: bool = True,
    ) -> None:
        self._host = Host(identity=identity, relays=relays, config=config, punch=False)
        self._nat = AutoNat(self._host, serve=False)
        self._mapper = PortMapper(self._host) if maps else None
        self._mapped: dict[Multiaddr, PortMapped] = {}
        self._unmapped: dict[Multiaddr | None, str] = {}
        self._doubts: dict[str, None] = {}
        self._tell = tell
        self._config = config
        self._addrs: dict[PeerId, list[Multiaddr]] = {}
        for addr in relays:
            if addr.peer_id is not None:
                self._addrs.setdefault(addr.peer_id, []).append(addr)
        self._places: dict[PeerId, bool] = {}
        self._reasons: dict[PeerId, str] = {}
        self._identified: set[PeerId] = set()
        self._paths: dict[PeerId, tuple[Path, ...]] = {}
        self._told: dict[str, Any] = {}
        self._families = {version: family(version) for version in (4, 6)}
        self._stack = contextlib.AsyncExitStack()
        self._began = time.monotonic()
        self._seconds = 0.0
        self._cut = False
        self._asking = False

    async def __aenter__(self) -> Self:
        for version in (4, 6):
            self._tell(f"ipv{version}", **self._families[version].as_json())
        self._host.on_event(self._hear)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._host)
            if self._mapper is not None:
                await stack.enter_async_context(self._mapper)
            stranger = Identity.generate()
            self._tcp = TcpTransport(self._host.engine, stranger, self._config, on_connection=_nobody)
            stack.push_async_callback(self._tcp.close)
            self._quic = QuicTransport(stranger, self._config, on_connection=_nobody)
            stack.push_async_callback(self._quic.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, timeout: float) -> None:
        """Look until all is known, nothing more comes, or the time is over."""
        loop = asyncio.get_running_loop()
        looks = [loop.create_task(self._relay(peer)) for peer in self._addrs]
        began = quiet_since = loop.time()
        try:
            while not self._cut:
                await asyncio.sleep(STEP)
                dialled = all(look.done() for look in looks)
                if not self._asking and (dialled or loop.time() - began > ALONE):
                    # later than our own dials, which would come between the ports that it compares
                    await self._stack.enter_async_context(self._nat)
                    self._asking = True
                    quiet_since = loop.time()
                if self._tell_news() or self._nat.busy:
                    quiet_since = loop.time()
                idle = self._known() or not self._paths or loop.time() - quiet_since > QUIET
                if dialled and self._asked_router() and idle:
                    break
                self._cut = loop.time() - began >= timeout
        finally:
            for look in looks:
                look.cancel()
            for result in await asyncio.gather(*looks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
            self._seconds = time.monotonic() - self._began

    def findings(self) -> Findings:
        """What is known now."""
        paths = [path for some in self._paths.values() for path in some]
        families = {
            version: Family(
                version,
                known.addrs,
                known.source,
                any(path.rtt is not None for path in tried)
                if (tried := [path for path in paths if path.addr.ip and path.addr.ip.version == version])
                else None,
            )
            for version, known in self._families.items()
        }
        return Findings(
            peer=str(self._host.peer_id),
            ipv4=families[4],
            ipv6=families[6],
            relays=tuple(self._relay_now(peer) for peer in self._addrs),
            behaviours=dict(self._nat.behaviours),
            ports=Ports(
                self._mapper is not None,
                tuple(self._mapped.values()),
                "; ".join(self._unmapped.values()),
                tuple(self._doubts),
            ),
            addrs=self._nat.verdicts,
            seconds=self._seconds or time.monotonic() - self._began,
            cut=self._cut,
        )

    # -- what is known

    def _asked_router(self) -> bool:
        """Whether the router has said all that it will, as far as the check waits for it."""
        if self._mapper is None or None in self._unmapped:
            return True
        answered = {
            listener.transport for listener in (*self._mapped, *self._unmapped) if listener is not None
        }
        return answered == set(NAMES.values()) or time.monotonic() - self._began > ROUTER

    def _known(self) -> bool:
        """Whether nothing is left to find out."""
        found = self.findings()
        return (
            self._host.reachability.node is not Reachable.UNKNOWN
            and all(verdict.state is not Reachable.UNKNOWN for verdict in found.addrs)
            and all(self._is_known(found, name) for name in NAMES)
        )

    def _is_known(self, found: Findings, name: str) -> bool:
        """Whether all is known that concerns "udp" or "tcp"."""
        behaviour = found.behaviour(name)
        if found.works(name) is False or (behaviour.mapping.depends and not self._host.mapped_addrs):
            return True
        judged = {verdict.addr for verdict in found.addrs}
        found_at = (*self._host.observed_addrs, *self._host.mapped_addrs)
        seen = [addr for addr in found_at if addr.transport == NAMES[name]]
        return (
            behaviour.mapping is not Mapping.UNKNOWN
            and behaviour.filtering is not Filtering.UNKNOWN
            and all(addr in judged for addr in seen if self._host.is_public(addr))
        )

    def _tell_news(self) -> bool:
        """Tell what has changed of the NAT and of our addresses; whether anything has."""
        news = False
        if "ports" not in self._told and self._mapper is not None and self._asked_router():
            self._told["ports"] = True
            self._tell("port-mapping", **self.findings().ports.as_json())
            news = True
        for transport, behaviour in self._nat.behaviours.items():
            if behaviour != self._told.get(transport, Behaviour(transport)):
                self._told[transport] = behaviour
                self._tell("nat", **behaviour.as_json())
                news = True
        for verdict in self._nat.verdicts:
            if verdict.state is not self._told.get(str(verdict.addr), Reachable.UNKNOWN):
                self._told[str(verdict.addr)] = verdict.state
                self._tell("address", **verdict_json(verdict))
                news = True
        return news

    # -- relays

    def _hear(self, event: Event) -> None:
        if isinstance(event, PeerIdentified):
            self._identified.add(event.peer)
        elif isinstance(event, ReservationAccepted):
            self._places[event.relay] = True
            self._reasons.pop(event.relay, None)
        elif isinstance(event, ReservationLost) and event.relay is not None:
            self._places[event.relay] = False
            self._reasons[event.relay] = event.reason
        elif isinstance(event, PortMapped):
            self._mapped[event.listener] = event
        elif isinstance(event, PortMappingLost):
            self._mapped.pop(event.listener, None)
        elif isinstance(event, PortMappingFailed):
            self._unmapped[event.listener] = event.reason
        elif isinstance(event, DoubleNatFound):
            self._doubts[event.reason] = None

    def _direct(self, peer: PeerId) -> Connection | None:
        return next((c for c in self._host.connections_to(peer) if not c.is_relayed), None)

    async def _relay(self, peer: PeerId) -> None:
        """Wait until it was asked for a place, then dial each of its addresses."""
        await _until(lambda: peer in self._places)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IDENTIFIED):
                await _until(lambda: peer in self._identified or self._direct(peer) is None)
        connection = self._direct(peer)
        if connection is not None:
            addrs = self._where(connection)
            self._paths[peer] = tuple(await asyncio.gather(*(self._path(addr, peer) for addr in addrs)))
            await self._be_seen(peer)
        self._tell("relay", **self._relay_now(peer).as_json())

    async def _be_seen(self, peer: PeerId) -> None:
        """Let the relay see us over the transports that it was not reached by at first."""
        used = {c.remote_addr.transport for c in self._host.connections_to(peer) if not c.is_relayed}
        for path in self._paths[peer]:
            if path.rtt is None or path.addr.transport in used:
                continue
            self._identified.discard(peer)
            with contextlib.suppress(FlareError, OSError, TimeoutError):
                async with asyncio.timeout(IDENTIFIED):
                    await self._host.dial(path.addr.with_peer(peer))
                    await _until(lambda: peer in self._identified)

    def _relay_now(self, peer: PeerId) -> Relay:
        return Relay(
            addr=self._addrs[peer][0],
            agent=self._host.peers.get(peer).agent,
            place=self._places.get(peer) if peer in self._paths else None,
            reason=self._reasons.get(peer, "" if peer in self._places else "it did not answer in time"),
            dials_back=DIAL_PROTOCOL in self._host.peers.get(peer).protocols,
            paths=self._paths.get(peer, ()),
        )

    def _where(self, connection: Connection) -> list[Multiaddr]:
        """One address of a relay for each transport and family: of the IP that answered, if it has one."""
        here = connection.remote_addr.without_peer()
        given = [addr.without_peer() for addr in self._addrs[connection.remote_peer] if addr.ip is not None]
        told = [
            addr.without_peer()
            for addr in self._host.peers.get(connection.remote_peer).addrs
            if not addr.is_circuit and (addr.ip == here.ip or self._host.is_public(addr))
        ]
        found: dict[tuple[str, int], Multiaddr] = {}
        for addr in (here, *given, *sorted(told, key=lambda addr: addr.ip != here.ip)):
            if addr.ip is not None and addr.transport in ("tcp", "quic-v1"):
                found.setdefault((addr.transport, addr.ip.version), addr)
        return [addr for addr in found.values() if addr.ip is not None and self._has(addr.ip.version, addr)]

    def _has(self, version: int, addr: Multiaddr) -> bool:
        """Without a route there is nothing to try."""
        return self._families[version].source is not None or addr.is_loopback or addr.is_private

    async def _path(self, addr: Multiaddr, peer: PeerId) -> Path:
        transport = self._quic if addr.transport == "quic-v1" else self._tcp
        try:
            async with asyncio.timeout(PATIENCE):
                connection = await transport.dial(addr, expected_peer=peer, reuse=False)
                try:
                    return Path(addr, await _round_trip(connection))
                finally:
                    await connection.close()
        except TimeoutError:
            return Path(addr, None, f"no answer within {PATIENCE:g} s")
        except (FlareError, OSError) as error:
            return Path(addr, None, str(error))


async def _until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(STEP)


async def _round_trip(connection: Connection) -> float:
    """The least of PINGS pings, in seconds."""
    connection.serve(StreamHandlers())
    async with connection.open_stream(ping.PROTOCOL) as stream:
        pinger = ping.Pinger(stream)
        return min([await pinger.ping() for _ in range(PINGS)])


def _nobody(connection: Connection) -> None:
    """Nobody comes in: it does not listen."""
