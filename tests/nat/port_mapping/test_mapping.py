"""The ports of a host on whatever router is on the way out now, under virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from flare.config import PortMappingConfig
from flare.events import PortMapped, PortMappingFailed
from flare.nat.port_mapping.lease import Mapper
from flare.nat.port_mapping.mapping import PortMapping, mappers_of
from flare.nat.port_mapping.pcp import Pcp
from flare.transport.routes import Route
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from tests.nat.port_mapping.bench import CONFIG, GATEWAY, QUIC, TCP, Protocol
from tests.support.linked import now, simulated

HOME = Route(GATEWAY, ip_address("10.0.0.2"), 2)
CAFE = Route(ip_address("192.168.7.1"), ip_address("192.168.7.9"), 3)
HOME6 = Route(ip_address("fe80::1"), ip_address("2a00::2"), 2)
TCP6 = Multiaddr("/ip6/2a00::2/tcp/4001")


class Silence:
    """Nobody announces anything, unless the test does."""

    def __init__(self, on_news: Callable[[IpAddress], None]) -> None:
        self.on_news = on_news

    def open(self) -> None: ...
    def close(self) -> None: ...


class World:
    """Routes, listeners and routers that a test sets; `async with World(...) as world`."""

    def __init__(self, *listeners: str | Multiaddr, routes: dict[int, Route] | None = None) -> None:
        self.listeners = [Multiaddr(addr) for addr in listeners]
        self.routes = {4: HOME} if routes is None else routes
        self.routers: dict[IpAddress, Protocol] = {}
        self.events: list[Any] = []
        self.delay = 0.01

    def _mappers(
        self, route: Route, over: Route | None, config: PortMappingConfig, restarted: Callable[[], None]
    ) -> Sequence[Mapper]:
        assert route.gateway is not None
        protocol = self.routers.setdefault(route.gateway, Protocol())
        protocol.delay = self.delay
        return [protocol]

    async def __aenter__(self) -> World:
        def announcements(on_news: Callable[[IpAddress], None]) -> Any:
            self.announced = Silence(on_news)
            return self.announced

        self.mapping = PortMapping(
            lambda: self.listeners,
            CONFIG,
            on_event=self.events.append,
            route=self.routes.get,
            mappers=self._mappers,
            announcements=announcements,
            uniform=lambda low, high: high,
        )
        self.mapping.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.mapping.close()

    def mapped(self) -> set[Multiaddr]:
        return {lease.listener for lease in self.mapping.leases}

    def failures(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, PortMappingFailed)]


@simulated
async def test_what_listens_at_our_address_on_the_way_out_is_mapped() -> None:
    elsewhere = "/ip4/10.8.0.2/tcp/4001", "/ip4/127.0.0.1/tcp/4001", "/ip6/fd00::2/tcp/4001"
    async with World(TCP, QUIC, *elsewhere) as world:
        await asyncio.sleep(1)
        assert world.mapped() == {TCP, QUIC}


@simulated
async def test_starting_waits_for_nobody() -> None:
    world = World(TCP)
    world.delay = 1000.0
    async with world:
        assert now() == 0


@simulated
async def test_pinholes_for_public_ipv6_addresses() -> None:
    async with World(TCP6, "/ip6/fd00::2/tcp/4001", TCP, routes={6: HOME6}) as world:
        await asyncio.sleep(1)
        assert world.mapped() == {TCP6}


@simulated
async def test_both_versions_each_on_its_router() -> None:
    async with World(TCP6, TCP, routes={4: HOME, 6: HOME6}) as world:
        await asyncio.sleep(1)
        assert world.mapped() == {TCP6, TCP}
        assert {router.gateway for router in world.mapping.routers} == {GATEWAY, ip_address("fe80::1")}
    assert not any(protocol.table for protocol in world.routers.values())


@simulated
async def test_a_public_address_of_our_own_needs_no_mapping() -> None:
    own = Route(ip_address("102.1.0.1"), ip_address("102.1.0.2"), 2)
    async with World("/ip4/102.1.0.2/tcp/4001", routes={4: own}) as world:
        await asyncio.sleep(1000)
        assert not world.routers
        assert world.failures() == ["we listen on a public address: there is no port to map"]


@simulated
async def test_no_router_is_said_once() -> None:
    async with World(TCP, routes={}) as world:
        await asyncio.sleep(1000)
        assert world.failures() == ["there is no router on the way to the internet that could forward a port"]


@simulated
async def test_a_way_out_without_a_router() -> None:
    tunnel = Route(None, ip_address("10.0.0.2"), 5)
    async with World(TCP, routes={4: tunnel}) as world:
        await asyncio.sleep(1)
        assert not world.routers


@simulated
async def test_listeners_on_loopback_only() -> None:
    async with World("/ip4/127.0.0.1/tcp/4001") as world:
        await asyncio.sleep(1)
        assert world.failures() == ["we listen on no address that the router could forward a port to"]


@simulated
async def test_another_network_is_noticed_and_the_old_router_let_go() -> None:
    there = Multiaddr("/ip4/192.168.7.9/tcp/4001")
    async with World(TCP, there) as world:
        await asyncio.sleep(1)
        assert world.mapped() == {TCP}
        world.routes[4] = CAFE
        await asyncio.sleep(CONFIG.look + 1)
        assert world.mapped() == {there}
        assert not world.routers[GATEWAY].table


@simulated
async def test_hurry_does_not_wait_for_that() -> None:
    async with World(TCP) as world:
        await asyncio.sleep(1)
        world.listeners.append(QUIC)
        world.mapping.hurry()
        await asyncio.sleep(0.1)
        assert world.mapped() == {TCP, QUIC}


@simulated
async def test_a_router_that_is_gone_and_comes_back() -> None:
    async with World(TCP) as world:
        await asyncio.sleep(1)
        del world.routes[4]
        world.mapping.hurry()
        await asyncio.sleep(1)
        assert not world.mapped()
        world.routes[4] = HOME
        world.mapping.hurry()
        await asyncio.sleep(1)
        assert world.mapped() == {TCP}


@simulated
async def test_an_announcement_of_the_router_has_it_looked_at_and_of_others_not() -> None:
    async with World(TCP) as world:
        await asyncio.sleep(100)
        protocol = world.routers[GATEWAY]
        world.announced.on_news(ip_address("10.0.0.66"))
        await asyncio.sleep(1)
        assert not protocol.times("check")
        protocol.table.clear()
        world.announced.on_news(GATEWAY)
        await asyncio.sleep(1)
        assert protocol.table
        assert sum(isinstance(event, PortMapped) for event in world.events) == 2


@simulated
async def test_leaving_takes_no_longer_than_the_farewell() -> None:
    world = World(TCP6, TCP, routes={4: HOME, 6: HOME6})
    async with world:
        await asyncio.sleep(1)
        for protocol in world.routers.values():
            protocol.delay = 1000.0
        began = now()
    assert now() - began <= CONFIG.farewell + 0.001
    await world.mapping.close()


@simulated
async def test_which_protocols_a_router_is_asked_in() -> None:
    def names(route: Route, over: Route | None) -> list[str]:
        return [type(mapper).__name__ for mapper in mappers_of(route, over, CONFIG, lambda: None)]

    assert names(HOME, None) == ["Pcp", "NatPmp", "Upnp"]
    assert names(HOME6, HOME) == ["Pcp", "Pinholes"]
    assert names(HOME6, None) == ["Pcp"]
    assert isinstance(mappers_of(HOME, None, CONFIG, lambda: None)[0], Pcp)
