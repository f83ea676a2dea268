"""PortMapper on real hosts on loopback, with a router there: what is told, what not, what is given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

import flare
from flare.errors import UsageError
from flare.events import (
    AddressesChanged,
    DoubleNatFound,
    NetworkChanged,
    PortMapped,
    PortMappingFailed,
    PortMappingLost,
)
from flare.nat.port_mapping.announcements import Announcements
from flare.nat.port_mapping.external import Standing
from flare.nat.reachability import Word
from flare.transport.routes import Route
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.loopback import Seen, host
from tests.support.routers import GATEWAY, ROUTE, Router

LISTEN = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]
OUTSIDE = "127.0.0.7"  # what counts as public here


def public(addr: Multiaddr) -> bool:
    return str(addr.ip) in (OUTSIDE, "127.0.0.8")


def announcements(on_news: Callable[[IpAddress], None]) -> Announcements:
    return Announcements(on_news, group=str(GATEWAY))


def mapper(of: flare.Host, route: Callable[[int], Route | None] = {4: ROUTE}.get) -> flare.PortMapper:
    return flare.PortMapper(of, route=route, announcements=announcements)


@asynccontextmanager
async def home(
    external: str = OUTSIDE, **config: Any
) -> AsyncIterator[tuple[Router, flare.Host, flare.PortMapper, Seen]]:
    """A host whose router says that its own address is `external`."""
    limits = flare.Config(port_mapping=flare.PortMappingConfig(patience=2.0, request=2.0, **config))
    async with Router() as router, host(listen=LISTEN, is_public=public, config=limits) as inside:
        router.external = external
        seen = Seen(inside)
        async with mapper(inside) as mapping:
            yield router, inside, mapping, seen


def autonat_says(inside: flare.Host, addr: Multiaddr, reachable: bool) -> None:
    """A trusted server dialled `addr`."""
    known = [verdict.addr for verdict in inside.reachability.verdicts]
    inside.reachability.candidates([*known, addr])
    word = Word(inside.peer_id, "127.0", reachable, time.monotonic(), True)
    inside.reachability.record(addr, word)


def outside(inside: flare.Host) -> set[Multiaddr]:
    """Where the router forwards to it."""
    return {Multiaddr(str(addr).replace("127.0.0.1", OUTSIDE)) for addr in inside.listen_addrs}


@aio
async def test_both_listeners_are_mapped_and_given_back() -> None:
    async with home() as (router, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        assert set(inside.mapped_addrs) == outside(inside)
        assert len(router.table) == 2
        (found,) = mapping.routers
        assert (found.gateway, found.protocols["PCP"], found.troubles) == (str(GATEWAY), "", ())
        assert {event.protocol for event in seen.of(PortMapped)} == {"PCP"}
    assert not router.table
    assert not inside.mapped_addrs
    assert not mapping.mappings
    assert {event.reason for event in seen.of(PortMappingLost)} == {"it was given back"}


@aio
async def test_nobody_is_told_before_somebody_besides_the_router_attests_it() -> None:
    async with home() as (_, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        assert not outside(inside) & set(inside.addrs)
        assert [m.judgement.standing for m in mapping.mappings] == [Standing.UNCONFIRMED] * 2
        assert not seen.of(DoubleNatFound)


@aio
async def test_autonats_word_has_it_told_and_withdrawn() -> None:
    async with home() as (_, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        addr = inside.mapped_addrs[0]
        autonat_says(inside, addr, True)
        assert addr in inside.addrs
        assert seen.of(AddressesChanged)[-1].addrs == inside.addrs
        assert sum(m.told for m in mapping.mappings) == 1
        autonat_says(inside, addr, False)
        assert addr not in inside.addrs
        autonat_says(inside, Multiaddr("/ip4/127.0.0.9/tcp/1"), True)
        assert not outside(inside) & set(inside.addrs)


def see_at(inside: flare.Host, ip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others see `inside` at `ip`."""
    addrs = (Multiaddr(f"/ip4/{ip}/tcp/4001"),) if ip else ()
    monkeypatch.setattr(type(inside), "observed_addrs", property(lambda self: addrs))


async def identified(inside: flare.Host) -> None:
    """Somebody connects, and is identified."""
    async with host() as peer:
        await peer.connect(inside.listen_addrs[0].with_peer(inside.peer_id))
        await asyncio.sleep(0.05)


@aio
async def test_it_is_told_at_once_when_others_see_us_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with home() as (_, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        see_at(inside, OUTSIDE, monkeypatch)
        await identified(inside)
        await eventually(lambda: outside(inside) <= set(inside.addrs))
        assert not seen.of(DoubleNatFound)
        see_at(inside, "", monkeypatch)  # who saw it has gone
        await identified(inside)
        assert outside(inside) <= set(inside.addrs), "what is known stays known"
        autonat_says(inside, inside.mapped_addrs[0], False)
        assert inside.mapped_addrs[0] not in inside.addrs, "unless AutoNat knows better"


@aio
async def test_another_address_than_others_see_is_no_address_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    async with home() as (_, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        see_at(inside, "127.0.0.8", monkeypatch)
        await identified(inside)
        found = await seen.first(DoubleNatFound)
        assert (found.gateway, found.external) == (str(GATEWAY), OUTSIDE)
        assert "others see us at 127.0.0.8" in found.reason
        assert not outside(inside) & set(inside.addrs)
        assert set(inside.mapped_addrs) == outside(inside), "AutoNat may ask about it all the same"
        assert len(seen.of(DoubleNatFound)) == 1


@pytest.mark.parametrize("external", ["10.0.0.5", "100.64.3.4", "0.0.0.0", "192.168.1.1", "240.0.0.1"])
@aio
async def test_an_address_that_cannot_be_is_no_candidate(external: str) -> None:
    async with home(external) as (_, inside, mapping, seen):
        await eventually(lambda: len(mapping.mappings) == 2)
        found = await seen.first(DoubleNatFound)
        assert found.external == external
        assert not inside.mapped_addrs
        assert {m.judgement.standing for m in mapping.mappings} == {Standing.USELESS}
        autonat_says(inside, mapping.mappings[0].lease.addr, True)
        assert not any(m.told for m in mapping.mappings)


@aio
async def test_a_silent_router_delays_neither_start_nor_end() -> None:
    limits = flare.Config(port_mapping=flare.PortMappingConfig(patience=60.0, farewell=60.0))
    async with Router(speaks=()), host(listen=LISTEN, config=limits) as inside:
        async with asyncio.timeout(5):
            async with mapper(inside) as mapping:
                assert not mapping.mappings


@aio
async def test_who_shows_it_may_wait_until_all_is_said() -> None:
    async with home("10.0.0.5") as (_, _, mapping, _):
        assert await mapping.settled() == ""
        assert len(mapping.mappings) == 2
        (found,) = mapping.routers
        await eventually(lambda: mapping.routers[0].protocols.get("UPnP") == "")
        assert mapping.routers[0].outside == ("10.0.0.5",)
        assert mapping.doubts[0].startswith("double NAT")
    limits = flare.Config(port_mapping=flare.PortMappingConfig(patience=0.2))
    async with Router(speaks=()), host(listen=LISTEN, config=limits) as inside, mapper(inside) as mapping:
        assert await mapping.settled() == ""
        (found,) = mapping.routers
        assert found.troubles[0].startswith(f"the router at {GATEWAY} maps no ports: PCP: ")
        assert set(found.protocols) == {"PCP", "NAT-PMP", "UPnP"}


@aio
async def test_no_router_is_an_event_and_no_error() -> None:
    async with host(listen=LISTEN) as inside:
        seen = Seen(inside)
        async with mapper(inside, {}.get) as mapping:
            assert (await mapping.settled()).startswith("there is no router")
            failed = await seen.first(PortMappingFailed)
            assert failed.listener is None
            assert failed.reason.startswith("there is no router")


@aio
async def test_an_announcement_has_it_asked_again() -> None:
    async with home() as (router, _, mapping, _):
        await eventually(lambda: len(mapping.mappings) == 2)
        router.table.clear()
        router.announce()
        await eventually(lambda: len(router.table) == 2)


@aio
async def test_hurry_looks_at_once() -> None:
    routes: dict[int, Route] = {}
    async with Router() as router, host(listen=LISTEN) as inside, mapper(inside, routes.get) as mapping:
        await asyncio.sleep(0.05)
        routes[4] = ROUTE
        mapping.hurry()
        await eventually(lambda: len(router.table) == 2)


@aio
async def test_the_rules_of_use() -> None:
    async with Router(), host(listen=LISTEN) as inside:
        mapping = mapper(inside)
        mapping.hurry()
        assert mapping.routers == ()
        assert await mapping.settled() == ""
        async with mapping:
            with pytest.raises(UsageError, match="running already"):
                await mapping.__aenter__()
        async with mapping:
            pass


@aio
async def test_a_stranger_comes_in_through_what_was_mapped() -> None:
    """The router of this test forwards nothing: the listener is at the outside address itself."""
    async with Router() as router, host(listen=[f"/ip4/{OUTSIDE}/tcp/0"]) as inside:
        router.external = OUTSIDE
        route = Route(GATEWAY, ip_address(OUTSIDE), 1)
        async with mapper(inside, {4: route}.get) as mapping, host() as stranger:
            await eventually(lambda: mapping.mappings)
            addr = mapping.mappings[0].lease.addr
            connection = await stranger.connect(addr.with_peer(inside.peer_id))
            assert connection.path == "direct/tcp"


@aio
async def test_another_network_has_it_looked_at_once() -> None:
    async with home() as (router, inside, mapping, _):
        await eventually(lambda: len(mapping.mappings) == 2)
        router.table.clear()
        inside.emit(NetworkChanged("our routes have changed", ()))
        await eventually(lambda: len(router.table) == 2)
