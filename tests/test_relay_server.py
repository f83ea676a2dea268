"""RelayServer on a host: what it grants, refuses, counts and tells, and that it ends with its block."""

from __future__ import annotations

import asyncio

import pytest

import flare
from flare.errors import DialFailed, StreamReset
from flare.events import CircuitClosed, CircuitOpened, ReservationLost, ReservationMade
from flare.protocols.relay import HOP_PROTOCOL
from flare.wire.messages import Status
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support.aio import aio, eventually
from tests.support.loopback import Seen, echo, host, relay

QUIET = {"punch": False}


def reserved(made: flare.Host) -> bool:
    return any(addr.is_circuit for addr in made.addrs)


@aio
async def test_it_counts_and_tells_what_it_does() -> None:
    async with relay(flare.RelayLimits.unlimited()) as (relaying, server):
        seen = Seen(relaying)
        addrs = relaying.full_addrs
        async with host(relays=addrs, **QUIET) as bob, host(relays=addrs, **QUIET) as alice:
            bob.handle("/echo/1", echo)
            await eventually(lambda: reserved(bob) and reserved(alice))
            assert server.reservations == 2
            assert {event.peer for event in seen.of(ReservationMade)} == {alice.peer_id, bob.peer_id}
            connection = await alice.connect(bob.peer_id)
            assert await seen.first(CircuitOpened) == CircuitOpened(alice.peer_id, bob.peer_id)
            assert server.circuits == 1
            async with connection.open_stream("/echo/1") as stream:
                await stream.write(bytes(100_000))
                await stream.close_write()
                await stream.read_exactly(100_000)
            ((circuit, carrying),) = server.running.items()
            assert (circuit.source, circuit.target) == (alice.peer_id, bob.peer_id)
            assert min(carrying.bytes_a_to_b, carrying.bytes_b_to_a) > 100_000, "told while it is open"
            await connection.close()
            ended = await seen.first(CircuitClosed)
            assert (ended.source, ended.target) == (alice.peer_id, bob.peer_id)
            assert ended.source_bytes > 100_000
            assert ended.target_bytes > 100_000
            assert server.circuits == 0
            assert not server.running
            counters = server.counters
            assert counters.circuits_opened == counters.circuits_closed == 1
            assert counters.circuit_seconds == pytest.approx(ended.seconds)
            assert counters.bytes_relayed == ended.source_bytes + ended.target_bytes
            assert counters.reserve_answers[Status.OK] == 2
            assert counters.connect_answers[Status.OK] == 1
        await eventually(lambda: server.reservations == 0, "reservations end with their connections")
        assert counters.reservations_closed == 2


@aio
async def test_a_circuit_ends_at_its_limit() -> None:
    async with relay(flare.RelayLimits(circuit_bytes=20_000)) as (relaying, _):
        seen = Seen(relaying)
        async with host(relays=relaying.full_addrs, **QUIET) as bob, host(**QUIET) as alice:
            await eventually(lambda: reserved(bob))
            bob.handle("/echo/1", echo, allow_limited=True)
            connection = await alice.connect(*(addr for addr in bob.full_addrs if addr.is_circuit))
            assert connection.limit is not None
            assert connection.limit.data == 20_000
            stream = await connection.open_stream("/echo/1", allow_limited=True)
            await stream.write(bytes(40_000))
            with pytest.raises((StreamReset, flare.ConnectionClosed)):
                await stream.read_exactly(40_000)
            assert (await seen.first(CircuitClosed)).reason == "limit"
            await connection.wait_closed()


@aio
async def test_unlimited_peers_carry_no_limit() -> None:
    bob_identity = flare.Identity.generate()
    async with (
        relay(unlimited=[bob_identity.peer_id]) as (relaying, _),
        host(identity=bob_identity, relays=relaying.full_addrs, **QUIET) as bob,
        host(relays=relaying.full_addrs, **QUIET) as alice,
    ):
        await eventually(lambda: reserved(bob) and reserved(alice))
        assert not (await alice.connect(bob.peer_id)).is_limited
        assert (await host_of_its_own(alice)).is_limited


async def host_of_its_own(alice: flare.Host) -> flare.Connection:
    """A connection between two whom no exception is made for."""
    carol = host(**QUIET)
    await carol.start()
    try:
        return await carol.connect(*(addr for addr in alice.full_addrs if addr.is_circuit))
    finally:
        await carol.close()


@aio
async def test_one_reservation_more_than_there_is_room_for() -> None:
    async with (
        relay(flare.RelayLimits(max_reservations=1)) as (relaying, server),
        host(relays=relaying.full_addrs) as first,
    ):
        await eventually(lambda: reserved(first))
        second = host(relays=relaying.full_addrs)
        seen = Seen(second)
        async with second:
            lost = await seen.first(ReservationLost)
            assert "200 (reservation refused)" in lost.reason
            assert lost.retry_in > 0
        assert server.counters.reserve_answers[Status.RESERVATION_REFUSED] == 1


class OnlyFriends:
    """An Acl: these may reserve, and only these may be called."""

    def __init__(self, *friends: PeerId) -> None:
        self.friends = friends

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        return peer in self.friends

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        return source in self.friends


@aio
async def test_an_acl_refuses_before_any_limit() -> None:
    identity = flare.Identity.generate()
    async with relay(acl=OnlyFriends(identity.peer_id)) as (relaying, server):
        stranger = host(relays=relaying.full_addrs, **QUIET)
        seen = Seen(stranger)
        async with host(identity=identity, relays=relaying.full_addrs, **QUIET) as friend, stranger:
            await eventually(lambda: reserved(friend))
            assert "202 (permission denied)" in (await seen.first(ReservationLost)).reason
            with pytest.raises(DialFailed, match=r"202 \(permission denied\)"):
                await stranger.connect(friend.peer_id)
            assert server.reservations == 1
            assert server.counters.connect_answers[Status.PERMISSION_DENIED] == 1


@aio
async def test_it_ends_with_its_block() -> None:
    async with host() as relaying, host() as other:
        server = flare.RelayServer(relaying)
        with pytest.raises(flare.UsageError, match="not serving"):
            _ = server.circuits
        async with server:
            with pytest.raises(flare.UsageError, match="serving already"):
                await server.__aenter__()
            connection = await other.connect(*relaying.full_addrs)
            await (await connection.open_stream(HOP_PROTOCOL)).close()
        with pytest.raises(flare.ProtocolNotSupported):
            await connection.open_stream(HOP_PROTOCOL)
        await asyncio.sleep(0)
        async with server:
            assert server.reservations == 0
