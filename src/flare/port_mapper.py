"""PortMapper: a host whose router forwards its ports to it, because it was asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import UsageError
from .events import (
    AddressReachability,
    DoubleNatFound,
    Event,
    NetworkChanged,
    PeerIdentified,
    PortMapped,
    PortMappingFailed,
)
from .nat.port_mapping.external import Judgement, Standing, judge
from .nat.port_mapping.lease import Lease
from .nat.port_mapping.mapping import PortMapping
from .nat.reachability import Reachable
from .wire.address_space import IpAddress
from .wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from .host import Host


@dataclass(frozen=True, slots=True)
class Mapped:
    """One mapping: what the router gave, what is known of its address, and whether others are told it."""

    lease: Lease
    judgement: Judgement
    told: bool


@dataclass(frozen=True, slots=True)
class RouterFound:
    """A router: what it said of each protocol ("" where it speaks it), what it calls its own address, and why
    ports are not mapped there.
    """

    gateway: str
    protocols: Mapping[str, str]
    outside: tuple[str, ...]
    troubles: tuple[str, ...]


class PortMapper:
    """Has the router forward a host's ports: `async with PortMapper(host) as mapper`, `mapper.mappings`.

    PCP, NAT-PMP and UPnP, all tried at once and beside everything else: entering waits for no router, leaving
    gives the mappings back and takes PortMappingConfig.farewell at most. An address that the router gave is
    told to others (`host.addrs`) once somebody besides the router attests it: others see us at its IP, or
    AutoNat had it dialled; and no longer when AutoNat finds that nobody gets through. Until then it is a
    candidate, which AutoNat asks about (`host.mapped_addrs`). What happens is in `host.events()`.
    """

    def __init__(
        self, host: Host, *, is_public: Callable[[Multiaddr], bool] | None = None, **how: Any
    ) -> None:
        self.host = host
        self._is_public = is_public or host.is_public
        self._how = how  # of PortMapping's arguments, for tests
        self._confirmed: set[IpAddress] = set()  # others see us there, or did when somebody was there to
        self._doubts: dict[IpAddress, str] = {}  # what was reported of the routers' addresses
        self._seen: frozenset[IpAddress] = frozenset()
        self._mapped: tuple[Mapped, ...] = ()
        self._news = asyncio.Event()
        self._mapping: PortMapping | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        if self._mapping is not None:
            raise UsageError("this PortMapper is running already")
        self._mapping = PortMapping(
            lambda: self.host.listen_addrs,
            self.host.config.port_mapping,
            on_event=self.host.emit,
            on_change=self._judge,
            is_public=self._is_public,
            **self._how,
        )
        self._unsubscribe = self.host.on_event(self._hear)
        self._mapping.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._mapping is not None:
            await self._mapping.close()
            self._judge()
        self._mapping = None
        self._news.set()

    @property
    def mappings(self) -> tuple[Mapped, ...]:
        """What is mapped now."""
        return self._mapped

    @property
    def routers(self) -> tuple[RouterFound, ...]:
        """The routers on our ways out, and what they said."""
        routers = self._mapping.routers if self._mapping is not None else ()
        return tuple(
            RouterFound(
                str(router.gateway),
                MappingProxyType(dict(router.said)),
                tuple(dict.fromkeys(map(str, router.outside.values()))),
                tuple(dict.fromkeys(router.troubles.values())),
            )
            for router in routers
        )

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why what a router forwards does not reach the internet, or not for sure: double NAT."""
        return tuple(self._doubts.values())

    async def settled(self) -> str:
        """Wait until each port is mapped or has failed to be; nobody needs to, unless to show it.

        Takes PortMappingConfig.patience when no router answers, and a few questions to one that does. Returns
        why there was nobody to ask, "" otherwise.
        """
        while (mapping := self._mapping) is not None and not mapping.settled:
            self._news.clear()
            await self._news.wait()
        return mapping.nothing if mapping is not None else ""

    def hurry(self) -> None:
        """Look now whether the way out, or what is mapped there, has changed, rather than soon."""
        if self._mapping is not None:
            self._mapping.hurry()

    def _hear(self, event: Event) -> None:
        match event:
            case AddressReachability(addr) if addr in self.host.mapped_addrs:
                self._judge()
            case PeerIdentified() if self._see() != self._seen:
                self._judge()
            case NetworkChanged():
                self.hurry()
            case PortMapped() | PortMappingFailed():
                self._news.set()
            case _:
                pass

    def _see(self) -> frozenset[IpAddress]:
        """The IPs at which others see us, as far as they are believed."""
        return frozenset(addr.ip for addr in self.host.observed_addrs if addr.ip is not None)

    def _judge(self) -> None:
        """Sort out which of the mapped addresses others are told."""
        mapping = self._mapping
        if mapping is None:
            return
        self._seen = seen = self._see()
        doubts: dict[IpAddress, str] = {}
        for router in mapping.routers:
            for ip in {*router.outside.values(), *(lease.external for lease in router.leases.values())}:
                if sentence := self._standing(ip, seen).sentence:
                    doubts[ip] = sentence
                    if self._doubts.get(ip) != sentence:
                        self.host.emit(DoubleNatFound(str(router.gateway), str(ip), sentence))
        leases = mapping.leases
        self._doubts = doubts
        self._confirmed &= {lease.external for lease in leases}
        self._mapped = tuple(self._judge_lease(lease, seen) for lease in leases)
        self.host.map_addrs(
            [m.lease.addr for m in self._mapped if m.judgement.standing is not Standing.USELESS],
            [m.lease.addr for m in self._mapped if m.told],
        )

    def _standing(self, ip: IpAddress, seen: frozenset[IpAddress]) -> Judgement:
        """What is known of a router's address; who saw us there need not be connected any more."""
        own = {addr.ip for addr in self.host.listen_addrs}
        if ip.version == 6 and ip in own:
            return Judgement(Standing.CONFIRMED)  # a pinhole's
        judgement = judge(ip, seen, self._is_public)
        if judgement.standing is Standing.CONFIRMED:
            self._confirmed.add(ip)
        elif judgement.standing is not Standing.UNCONFIRMED:
            self._confirmed.discard(ip)
        elif ip in self._confirmed:
            return Judgement(Standing.CONFIRMED)
        return judgement

    def _judge_lease(self, lease: Lease, seen: frozenset[IpAddress]) -> Mapped:
        judgement = self._standing(lease.external, seen)
        state = self.host.reachability.state(lease.addr)
        attested = judgement.standing is Standing.CONFIRMED or state is Reachable.PUBLIC
        told = attested and state is not Reachable.PRIVATE and judgement.standing is not Standing.USELESS
        return Mapped(lease, judgement, told)
