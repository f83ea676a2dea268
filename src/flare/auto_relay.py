"""AutoRelay: a host that finds relays for itself, and holds a place on two of them while it needs any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakSet

from .config import AutoRelayConfig
from .errors import UsageError
from .events import (
    AddressesChanged,
    Event,
    NetworkChanged,
    PeerIdentified,
    ReachabilityChanged,
    RelayChosen,
    RelayDropped,
    ReservationAccepted,
)
from .nat.reachability import Reachable
from .nat.relay_candidate import Candidate
from .nat.relay_keeping import RelayKeeping
from .nat.relay_sources import RelaySource
from .nat.relay_sources.connected import ConnectedRelays, Peer
from .nat.relay_sources.dnsaddr import DnsaddrRelays
from .nat.relay_sources.routing import RoutingRelays
from .nat.relay_sources.static import StaticRelays
from .protocols import identify, ping
from .protocols.relay import HOP_PROTOCOL
from .transport.connection import Connection
from .transport.tasks import Tasks
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

if TYPE_CHECKING:
    from .host import Host
    from .nat.relays import Dial, OnTrouble

Source = RelaySource | Multiaddr | str

NOT_NEEDED: Final = "others can dial us directly"
HOUSEKEEPING: Final = frozenset(("", identify.PROTOCOL, identify.PUSH_PROTOCOL, ping.PROTOCOL, HOP_PROTOCOL))


class AutoRelay:
    """`async with AutoRelay(host, sources)` finds relays, holds places on the best, and moves when need be.

    `sources` are relays' addresses (ADDR/p2p/PEER), /dnsaddr/NAME, URLs of delegated routing services, or
    objects that tell of relays (flare.nat.relay_sources); with `connected`, peers that we are connected to
    and that relay are used too. It works while the host's reachability is Private or Unknown, which it is
    without an AutoNat, and stops when it is Public. What happens is in `host.events()`: RelayChosen,
    RelayDropped.
    """

    def __init__(
        self,
        host: Host,
        sources: Iterable[Source] = (),
        *,
        connected: bool = True,
        config: AutoRelayConfig | None = None,
    ) -> None:
        self.host = host
        self._connected = ConnectedRelays(self._peers, host.is_public) if connected else None
        found = sources_from(sources, host.is_public)
        self.keeping = RelayKeeping(
            _Hands(host),
            [*found, *([self._connected] if self._connected is not None else [])],
            config or host.config.auto_relay,
        )
        self._addrs = 0  # changes of our addresses through relays, and
        self._circuits: tuple[Multiaddr, ...] = ()  # ... what they were last
        self._tasks = Tasks()
        self._public = False
        self._turned = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        if self._unsubscribe is not None:
            raise UsageError("this AutoRelay is running already")
        _ = self.host.engine  # UsageError before the host has started
        self._public = self.host.reachability.node is Reachable.PUBLIC
        self._unsubscribe = self.host.on_event(self._hear)
        self._tasks.start(self._follow(), "auto relay follows reachability")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        await self._tasks.cancel()
        await self.keeping.stop("AutoRelay was closed", hang_up=True)

    @property
    def running(self) -> bool:
        """Whether relays are wanted now."""
        return self.keeping.running

    @property
    def relays(self) -> tuple[PeerId, ...]:
        """The relays that hold a place for us now."""
        return tuple(candidate.peer for candidate in self.keeping.choice.held())

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All relays that it knows of, with their states."""
        return self.keeping.choice.candidates

    @property
    def address_changes(self) -> int:
        """How often our addresses through relays have changed."""
        return self._addrs

    # -- events

    def _hear(self, event: Event) -> None:
        match event:
            case ReachabilityChanged(state):
                self._public = state == Reachable.PUBLIC.value
                self._turned.set()
            case ReservationAccepted(relay, _, _, limit):
                self.keeping.accepted(relay, limit)
            case PeerIdentified(peer, _, protocols, _, pushed):
                self._met(peer, protocols, pushed)
            case NetworkChanged():
                self.keeping.hurry()
            case AddressesChanged(addrs):
                circuits = tuple(addr for addr in addrs if addr.is_circuit)
                self._addrs += circuits != self._circuits
                self._circuits = circuits
            case _:
                pass

    async def _follow(self) -> None:
        """Look for relays, or want none, as our reachability says."""
        while True:
            self._turned.clear()
            if self._public:
                # AutoNAT's servers are among the relays: their connections stay
                await self.keeping.stop(NOT_NEEDED, hang_up=False)
            else:
                self.keeping.start()
            await self._turned.wait()

    def _met(self, peer: PeerId, protocols: Sequence[str], pushed: bool) -> None:
        if pushed and protocols and HOP_PROTOCOL not in protocols:
            self.keeping.drains(peer)
        elif self._connected is not None and (connection := self.host.direct_to(peer)) is not None:
            found = self._connected.judge(peer, protocols, self._addrs_of(connection))
            if found is not None:
                self.keeping.offer(peer, found.addrs, self._connected.name, trusted=self._connected.trusted)

    def _peers(self) -> Iterable[Peer]:
        for connection in self.host.connections:
            if not connection.is_relayed:
                known = self.host.peers.get(connection.remote_peer)
                yield known.peer, known.protocols, self._addrs_of(connection)

    def _addrs_of(self, connection: Connection) -> Sequence[Multiaddr]:
        """Where a peer that we are connected to can be dialled."""
        dialled = [connection.remote_addr] if connection.initiator else []
        return [*dialled, *self.host.peers.get(connection.remote_peer).addrs]


class _Hands:
    """What a host does for RelayKeeping. Connections that are made here are closed here."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._made: WeakSet[Connection] = WeakSet()

    async def connect(self, peer: PeerId, addrs: Sequence[Multiaddr]) -> Connection:
        existing = self._host.direct_to(peer)
        if existing is not None:
            return existing
        connection = await self._host.connect(*(addr.without_peer().with_peer(peer) for addr in addrs))
        self._made.add(connection)
        return connection

    def connection(self, peer: PeerId) -> Connection | None:
        return self._host.direct_to(peer)

    async def release(self, connection: Connection) -> bool:
        if connection not in self._made or connection.closed:
            return True
        if self._used(connection):
            return False
        await connection.close()
        return True

    def _used(self, connection: Connection) -> bool:
        """Circuits run through it, or somebody has a stream open on it."""
        peer = connection.remote_peer
        others = any(stream.protocol not in HOUSEKEEPING for stream in connection.streams)
        return others or any(other.relay == peer for other in self._host.connections)

    def keep(self, relay: Multiaddr, dial: Dial, on_trouble: OnTrouble, *, trusted: bool) -> bool:
        return self._host.places.keep(relay, dial=dial, on_trouble=on_trouble, trusted=trusted)

    async def leave(self, relay: Multiaddr, *, hang_up: bool) -> None:
        await self._host.places.leave(relay)
        connection = self._host.direct_to(relay.peer_id) if relay.peer_id is not None else None
        if hang_up and connection is not None:
            await self.release(connection)

    def emit(self, event: RelayChosen | RelayDropped) -> None:
        self._host.emit(event)


def sources_from(sources: Iterable[Source], is_public: Callable[[Multiaddr], bool]) -> list[RelaySource]:
    """Sources as users write them; the addresses among them are one. UsageError."""
    static: list[Multiaddr] = []
    found: list[RelaySource] = []
    for source in sources:
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            found.append(RoutingRelays(source, is_public=is_public))
        elif isinstance(source, str | Multiaddr):
            addr = Multiaddr(source)
            if next((part.name for part in addr), "") == "dnsaddr":
                found.append(DnsaddrRelays(addr))
            else:
                static.append(addr)
        else:
            found.append(source)
    return [StaticRelays(static), *found] if static else found
