"""AutoRelay on real hosts and relays on loopback: it finds, holds, moves, stops and starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

import flare
from flare.config import AutoRelayConfig, Config, ReservationConfig
from flare.errors import UsageError
from flare.events import (
    ReachabilityChanged,
    RelayChosen,
    RelayDropped,
    ReservationAccepted,
)
from flare.nat.relay_candidate import State
from flare.nat.relay_sources import FoundRelay
from flare.protocols.relay import HOP_PROTOCOL
from flare.wire.peer_id import PeerId
from tests.support.aio import aio, eventually
from tests.support.http_server import server
from tests.support.loopback import Seen, host, relay

QUICK = AutoRelayConfig(spread=0.05, patience=0.05, rest_first=0.2, ask_every=0.2, ping_every=0.2)
AGAIN = ReservationConfig(backoff_first=0.2, backoff_restart=0.5)


def client(**how: object) -> flare.Host:
    """One that takes loopback for public and tries again soon."""
    return host(config=Config(reservation=AGAIN), is_public=lambda addr: True, **how)


class Relays:
    """Relays that come and go."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.stack = stack
        self.scopes: dict[PeerId, contextlib.AsyncExitStack] = {}

    async def add(self, limits: flare.RelayLimits | None = None) -> tuple[flare.Host, flare.RelayServer]:
        scope = await self.stack.enter_async_context(contextlib.AsyncExitStack())
        made = await scope.enter_async_context(relay(limits))
        self.scopes[made[0].peer_id] = scope
        return made

    async def end(self, of: flare.Host) -> None:
        await self.scopes[of.peer_id].aclose()


@contextlib.asynccontextmanager
async def relays(count: int) -> AsyncIterator[tuple[Relays, list[tuple[flare.Host, flare.RelayServer]]]]:
    async with contextlib.AsyncExitStack() as stack:
        some = Relays(stack)
        yield some, [await some.add() for _ in range(count)]


def at(of: flare.Host) -> flare.Multiaddr:
    return of.full_addrs[0]


class TestHolding:
    @aio
    async def test_two_of_three_are_held_and_told(self) -> None:
        async with relays(3) as (_, some), client() as ours:
            seen = Seen(ours)
            async with flare.AutoRelay(ours, [at(one) for one, _ in some], config=QUICK) as auto:
                await eventually(lambda: len(seen.of(RelayChosen)) == 2)
                assert set(auto.relays) == {event.relay for event in seen.of(RelayChosen)}
                assert all(event.latency is not None for event in seen.of(RelayChosen))
                assert {event.source for event in seen.of(RelayChosen)} == {"configuration"}
                assert sum(server.reservations for _, server in some) == 2
                circuits = [addr for addr in ours.addrs if addr.is_circuit]
                assert {addr.relay.peer_id for addr in circuits if addr.relay} == set(auto.relays)
                await eventually(lambda: sum(len(one.connections) for one, _ in some) == 2, timeout=10)
            assert {event.reason for event in seen.of(RelayDropped)} == {"AutoRelay was closed"}
            assert not any(addr.is_circuit for addr in ours.addrs)
            await eventually(lambda: sum(server.reservations for _, server in some) == 0)

    @aio
    async def test_others_come_through_it(self) -> None:
        async with (
            relays(1) as (_, ((one, _),)),
            client() as ours,
            host() as other,
            flare.AutoRelay(ours, [at(one)], config=QUICK),
        ):
            await Seen(ours).first(ReservationAccepted)
            circuit = next(addr for addr in ours.full_addrs if addr.is_circuit)
            connection = await other.connect(circuit)
            assert connection.remote_peer == ours.peer_id
            by_id = await ours.connect(other.peer_id)
            assert by_id.remote_peer == other.peer_id

    @aio
    async def test_one_that_is_no_relay_is_left_and_one_that_is_full_too(self) -> None:
        full = flare.RelayLimits(max_reservations=0)
        async with relays(1) as (some, ((one, _),)), client() as ours, host() as plain:
            refusing, _ = await some.add(full)
            sources = [at(plain), at(refusing), at(one)]
            async with flare.AutoRelay(ours, sources, config=QUICK) as auto:
                await eventually(lambda: auto.relays == (one.peer_id,))
                known = {candidate.peer: candidate for candidate in auto.candidates}
                await eventually(lambda: known[plain.peer_id].state is State.KNOWN)
                await eventually(lambda: known[refusing.peer_id].failures > 0)

    @aio
    async def test_the_hosts_own_relays_stay_as_they_are(self) -> None:
        async with relays(2) as (_, ((mine, _), (other, _))), host(relays=[at(mine)]) as ours:
            seen = Seen(ours)
            async with flare.AutoRelay(ours, [at(other)], config=QUICK) as auto:
                await seen.first(RelayChosen)
                await seen.first(ReservationAccepted, lambda event: event.relay == mine.peer_id)
                assert auto.relays == (other.peer_id,)
            assert {r.relay for r in ours.places.reservations} == {mine.peer_id}

    @aio
    async def test_a_relay_of_the_hosts_own_is_not_its_business(self) -> None:
        async with relays(1) as (_, ((mine, service),)), client(relays=[at(mine)]) as ours:
            seen = Seen(ours)
            await seen.first(ReservationAccepted)
            async with flare.AutoRelay(ours, [at(mine)], config=QUICK) as auto:
                await eventually(lambda: auto.candidates and auto.candidates[0].failures)
                assert auto.relays == ()
            assert service.reservations == 1, "and it is kept"
            assert any(addr.is_circuit for addr in ours.addrs)

    @aio
    async def test_misuse(self) -> None:
        with pytest.raises(UsageError):
            async with flare.AutoRelay(host()):
                pass
        async with host() as ours, flare.AutoRelay(ours, connected=False) as auto:
            with pytest.raises(UsageError):
                await auto.__aenter__()


class TestMoving:
    @aio
    async def test_a_relay_that_dies_is_replaced(self) -> None:
        async with relays(3) as (running, some), client() as ours:
            seen = Seen(ours)
            async with flare.AutoRelay(ours, [at(one) for one, _ in some], config=QUICK) as auto:
                await eventually(lambda: len(auto.relays) == 2)
                gone = next(one for one, _ in some if one.peer_id in auto.relays)
                await running.end(gone)
                await eventually(lambda: len(auto.relays) == 2 and gone.peer_id not in auto.relays)
                dropped = await seen.first(RelayDropped, lambda event: event.relay == gone.peer_id)
                assert "others are held" in dropped.reason
                assert not any(
                    addr.relay and addr.relay.peer_id == gone.peer_id
                    for addr in ours.addrs
                    if addr.is_circuit
                )

    @aio
    async def test_a_relay_that_restarts_is_back(self) -> None:
        async with client() as ours, contextlib.AsyncExitStack() as stack:
            identity = flare.Identity.generate()
            running = await stack.enter_async_context(contextlib.AsyncExitStack())
            first = await running.enter_async_context(host(identity=identity))
            await running.enter_async_context(flare.RelayServer(first))
            where = at(first)
            async with flare.AutoRelay(ours, [where], config=QUICK) as auto:
                await eventually(lambda: len(auto.relays) == 1)
                await running.aclose()
                await eventually(lambda: auto.relays == ())
                listen = [str(where.without_peer())]
                async with (
                    host(identity=identity, listen=listen) as again,
                    flare.RelayServer(again) as server,
                ):
                    await eventually(lambda: auto.relays == (again.peer_id,))
                    assert server.reservations == 1

    @aio
    async def test_a_relay_that_drains_is_left_before_it_ends(self) -> None:
        async with (
            relays(3) as (_, some),
            client() as ours,
            host() as other,
            flare.AutoRelay(ours, [at(one) for one, _ in some], config=QUICK) as auto,
        ):
            await eventually(lambda: len(auto.relays) == 2)
            draining, service = next(pair for pair in some if pair[0].peer_id in auto.relays)
            # a circuit that holds the drain up
            circuit = await other.connect(
                *(addr for addr in ours.full_addrs if addr.relay and addr.relay.peer_id == draining.peer_id)
            )
            ending = asyncio.ensure_future(service.drain(timeout=10))
            await eventually(lambda: draining.peer_id not in auto.relays and len(auto.relays) == 2)
            assert not ending.done()
            assert not circuit.closed, "what runs through it goes on"
            assert HOP_PROTOCOL not in ours.peers.get(draining.peer_id).protocols
            await circuit.close()
            assert await ending == 0

    @aio
    async def test_without_another_a_draining_relay_is_kept(self) -> None:
        async with (
            relays(1) as (_, ((one, service),)),
            client() as ours,
            host() as other,
            flare.AutoRelay(ours, [at(one)], config=QUICK) as auto,
        ):
            await eventually(lambda: len(auto.relays) == 1)
            circuit = await other.connect(next(addr for addr in ours.full_addrs if addr.is_circuit))
            ending = asyncio.ensure_future(service.drain(timeout=10))
            await eventually(lambda: auto.candidates[0].state is State.LEAVING)
            assert auto.relays == (one.peer_id,)
            await circuit.close()
            await ending


class TestReachability:
    @aio
    async def test_it_stops_when_public_and_starts_again(self) -> None:
        async with relays(1) as (_, ((one, service),)), client() as ours:
            seen = Seen(ours)
            async with flare.AutoRelay(ours, [at(one)], config=QUICK) as auto:
                await seen.first(RelayChosen)
                ours.emit(ReachabilityChanged("public"))
                dropped = await seen.first(RelayDropped)
                assert dropped.reason == "others can dial us directly"
                assert not auto.running
                assert auto.relays == ()
                assert ours.direct_to(one.peer_id) is not None, "AutoNAT's server is still there to be asked"
                assert not any(addr.is_circuit for addr in ours.addrs)
                for state in ("unknown", "private"):
                    ours.emit(ReachabilityChanged(state))
                    await eventually(lambda: auto.relays == (one.peer_id,))
                assert service.reservations == 1

    @aio
    async def test_public_and_private_in_one_breath(self) -> None:
        async with (
            relays(1) as (_, ((one, _),)),
            client() as ours,
            flare.AutoRelay(ours, [at(one)], config=QUICK) as auto,
        ):
            await eventually(lambda: len(auto.relays) == 1)
            for state in ("public", "private", "public", "unknown"):
                ours.emit(ReachabilityChanged(state))
                await asyncio.sleep(0)
            await eventually(lambda: auto.running and auto.relays == (one.peer_id,))


class TestSources:
    @aio
    async def test_connected_peers_that_relay(self) -> None:
        async with (
            relays(1) as (_, ((one, _),)),
            client() as ours,
            host() as plain,
            flare.AutoRelay(ours, config=QUICK) as auto,
        ):
            await ours.connect(*plain.full_addrs)
            await ours.connect(*one.full_addrs)
            await eventually(lambda: auto.relays == (one.peer_id,))
            assert auto.candidates[0].source == "a connected peer"
            assert not ours.trusts(one.peer_id)

    @aio
    async def test_connected_peers_are_left_alone_when_told_so(self) -> None:
        async with (
            relays(1) as (_, ((one, _),)),
            client() as ours,
            flare.AutoRelay(ours, connected=False, config=QUICK) as auto,
        ):
            await ours.connect(*one.full_addrs)
            await asyncio.sleep(0.2)
            assert auto.candidates == ()

    @aio
    async def test_delegated_routing(self) -> None:
        async with relays(1) as (_, ((one, _),)), client() as ours, host() as plain:
            peers = [
                {"Schema": "peer", "ID": str(peer.peer_id), "Addrs": [str(addr) for addr in peer.addrs]}
                for peer in (plain, one)
            ]
            body = json.dumps({"Peers": peers}).encode()
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            async with (
                server(lambda head: answer) as url,
                flare.AutoRelay(ours, [url], connected=False, config=QUICK) as auto,
            ):
                await eventually(lambda: auto.relays == (one.peer_id,))
                assert {candidate.source for candidate in auto.candidates} == {url}

    @aio
    async def test_a_source_that_fails_costs_nothing(self) -> None:
        class Broken:
            name, trusted = "broken", False

            async def find(self) -> list[FoundRelay]:
                raise flare.NetworkError("no way")

        async with (
            relays(1) as (_, ((one, _),)),
            client() as ours,
            flare.AutoRelay(ours, [Broken(), at(one)], config=QUICK) as auto,
        ):
            await eventually(lambda: auto.relays == (one.peer_id,))
