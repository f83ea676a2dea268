"""The ports of a host, mapped on whatever router is on the way out now."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flare.config import PortMappingConfig
from flare.events import PortMappingFailed
from flare.nat.port_mapping.announcements import Announcements
from flare.nat.port_mapping.lease import Lease, Mapper
from flare.nat.port_mapping.nat_pmp import NatPmp
from flare.nat.port_mapping.pcp import Pcp
from flare.nat.port_mapping.pinholes import Pinholes
from flare.nat.port_mapping.router import PortMappingEvent, Router
from flare.nat.port_mapping.upnp import Upnp
from flare.transport.routes import Route, default_route
from flare.transport.tasks import Tasks
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from flare.wire.multiaddr import is_public as addr_is_public

MakeMappers = Callable[[Route, Route | None, PortMappingConfig, Callable[[], None]], Sequence[Mapper]]


def mappers_of(
    route: Route, over: Route | None, config: PortMappingConfig, on_restart: Callable[[], None]
) -> Sequence[Mapper]:
    """The protocols for the router on `route`, the best first; `over` is the way out by IPv4."""
    assert route.gateway is not None
    pcp = Pcp(route, config, on_restart=on_restart)
    if route.gateway.version == 6:
        pinholes = Pinholes(route, over, config) if over is not None and over.gateway is not None else None
        return [pcp, pinholes] if pinholes is not None else [pcp]
    return [pcp, NatPmp(route, config, on_restart=on_restart), Upnp(route, config)]


@dataclass(slots=True)
class _Tended:
    router: Router
    task: asyncio.Task[None]


class PortMapping:
    """Keeps `listeners()` mapped from `start` to `close`; neither waits for a router.

    IPv4 listeners are mapped at our address on the way out, when that is not public itself; for public IPv6
    addresses pinholes are opened. `on_change` is called when `leases` changed, or what the `routers` call
    their own address.
    """

    def __init__(
        self,
        listeners: Callable[[], Iterable[Multiaddr]],
        config: PortMappingConfig,
        *,
        on_event: Callable[[PortMappingEvent], None] = lambda event: None,
        on_change: Callable[[], None] = lambda: None,
        is_public: Callable[[Multiaddr], bool] = addr_is_public,
        route: Callable[[int], Route | None] = default_route,
        mappers: MakeMappers = mappers_of,
        announcements: Callable[[Callable[[IpAddress], None]], Announcements] = Announcements,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._listeners = listeners
        self._config = config
        self._on_event = on_event
        self._on_change = on_change
        self._is_public = is_public
        self._route = route
        self._make_mappers = mappers
        self._uniform = uniform
        self._announcements = announcements(self._announced)
        self.nothing = ""  # why there is nothing to map and nobody to ask; empty where there is
        self._routes: dict[int, Route | None] = {}
        self._tended: dict[int, _Tended] = {}
        self._hurry = asyncio.Event()
        self._looked = False
        self._tasks = Tasks()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, and return at once."""
        self._announcements.open()
        self._task = self._tasks.start(self._run(), "port mapping")

    async def close(self) -> None:
        """Give back what the routers gave, within PortMappingConfig.farewell. Idempotent."""
        self._announcements.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        await asyncio.gather(*(self._leave(version) for version in list(self._tended)))

    def hurry(self) -> None:
        """Our addresses or routes may have changed, or time has passed us by: look now, at mappings too."""
        self._hurry.set()
        for router in self.routers:
            router.wake()

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What is mapped now."""
        return tuple(lease for tended in self._tended.values() for lease in tended.router.leases.values())

    @property
    def routers(self) -> tuple[Router, ...]:
        """The routers on our ways out."""
        return tuple(tended.router for tended in self._tended.values())

    @property
    def settled(self) -> bool:
        """Whether each listener is mapped now or has failed to be."""
        return self._looked and all(router.settled for router in self.routers)

    async def _run(self) -> None:
        while True:
            for version in (4, 6):
                await self._look(version)
            nothing = "" if self._tended else self._why_nothing()
            self._looked, news = True, nothing != self.nothing
            self.nothing = nothing
            if nothing and news:
                self._on_event(PortMappingFailed(None, nothing, self._config.look))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.look):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _look(self, version: int) -> None:
        """See which router is on the way, leave another one that was, and tell it what is wanted."""
        route = self._route(version)
        if route is not None and (route.gateway is None or route.source is None):
            route = None
        wanted = self._wanted(version, route) if route is not None else []
        if not wanted:
            route = None
        if route != self._routes.get(version):
            await self._leave(version)
            if route is not None:
                self._meet(version, route)
        self._routes[version] = route
        if version in self._tended:
            self._tended[version].router.want(wanted)

    def _wanted(self, version: int, route: Route) -> list[Multiaddr]:
        found = [addr for addr in self._listeners() if addr.ip is not None and addr.ip.version == version]
        if version == 6:
            return [addr for addr in found if self._is_public(addr)]
        return [addr for addr in found if addr.ip == route.source and not self._is_public(addr)]

    def _meet(self, version: int, route: Route) -> None:
        assert route.gateway is not None
        over = self._route(4) if version == 6 else None
        mappers = self._make_mappers(route, over, self._config, lambda: router.wake())
        router = Router(
            route.gateway,
            mappers,
            self._config,
            on_event=self._on_event,
            on_change=self._on_change,
            uniform=self._uniform,
        )
        task = self._tasks.start(router.run(), f"router {route.gateway}")
        self._tended[version] = _Tended(router, task)

    async def _leave(self, version: int) -> None:
        tended = self._tended.get(version)
        if tended is not None:
            tended.task.cancel()
            await asyncio.wait((tended.task,))
            await tended.router.close()
            del self._tended[version]

    def _why_nothing(self) -> str:
        routes = [route for version in (4, 6) if (route := self._route(version)) is not None]
        if not any(route.gateway for route in routes):
            return "there is no router on the way to the internet that could forward a port"
        if any(self._is_public(addr) for addr in self._listeners()):
            return "we listen on a public address: there is no port to map"
        return "we listen on no address that the router could forward a port to"

    def _announced(self, sender: IpAddress) -> None:
        for router in self.routers:
            if router.gateway == sender:
                router.wake()
