"""Hosts that meet through relays: circuits, their limits, and the way from there to a direct connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

import flare
from flare.config import Config, PunchConfig, ReservationConfig
from flare.errors import (
    DialFailed,
    LimitedConnection,
    PeerHasNoReservation,
    PeerMismatch,
    PermissionDenied,
    PunchFailed,
)
from flare.events import (
    AddressesChanged,
    ConnectionOpened,
    PunchGaveUp,
    PunchSucceeded,
    ReservationAccepted,
    ReservationLost,
)
from flare.protocols import ping
from flare.protocols.relay import stop
from flare.transport import circuit
from flare.wire.keys import Identity
from tests.support.aio import aio, eventually
from tests.support.loopback import Seen, echo, host, relay

UNLIMITED = flare.RelayLimits.unlimited()
QUICK = Config(
    punch=PunchConfig(grace=0.2), reservation=ReservationConfig(backoff_first=0.05, backoff_max=0.05)
)


@contextlib.asynccontextmanager
async def through(
    limits: flare.RelayLimits | None = None,
    *,
    listener: dict[str, Any] | None = None,
    dialer: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[flare.Host, flare.Host, flare.Host]]:
    """A relay, a listener with a place on it, and a dialer that knows the relay."""
    async with relay(limits) as (relaying, _):
        addrs = list(relaying.full_addrs)
        async with (
            host(**{"relays": addrs, "config": QUICK, **(listener or {})}) as listening,
            host(**{"relays": addrs, "config": QUICK, **(dialer or {})}) as dialling,
        ):
            await eventually(lambda: any(addr.is_circuit for addr in listening.addrs))
            yield relaying, listening, dialling


class TestReserving:
    @aio
    async def test_the_circuit_address_is_told(self) -> None:
        async with relay() as (relaying, server), host(relays=relaying.full_addrs) as listening:
            seen = Seen(listening)
            accepted = await seen.first(ReservationAccepted)
            told = relaying.full_addrs[0] / f"/p2p-circuit/p2p/{listening.peer_id}"
            assert accepted.relay == relaying.peer_id
            assert accepted.addrs == (told,)
            assert accepted.limit is not None
            assert (accepted.limit.data, accepted.limit.duration) == (128 * 1024, 120)
            assert told in listening.full_addrs
            assert told in (await seen.first(AddressesChanged)).addrs
            assert server.reservations == 1

    @aio
    async def test_a_relay_that_comes_back_is_reserved_on_again(self) -> None:
        identity = Identity.generate()
        async with flare.Host(identity=identity, listen=["/ip4/127.0.0.1/tcp/0"]) as first:
            addrs = first.full_addrs
            async with flare.RelayServer(first), host(relays=addrs, config=QUICK) as listening:
                seen = Seen(listening)
                await seen.first(ReservationAccepted)
                await first.close()
                lost = await seen.first(ReservationLost)
                assert lost.relay == identity.peer_id
                assert not any(addr.is_circuit for addr in listening.addrs)
                seen.events.clear()
                async with (
                    flare.Host(identity=identity, listen=[addrs[0].without_peer()]) as second,
                    flare.RelayServer(second) as server,
                ):
                    await seen.first(ReservationAccepted)
                    assert server.reservations == 1


class TestConnecting:
    @aio
    async def test_by_a_circuit_address(self) -> None:
        async with through(dialer={"relays": []}) as (relaying, listening, dialling):
            address = next(addr for addr in listening.full_addrs if addr.is_circuit)
            connection = await dialling.connect(address)
            assert connection.remote_peer == listening.peer_id
            assert connection.path == "relayed"
            assert connection.relay == relaying.peer_id
            assert await ping.ping(connection) < 5

    @aio
    async def test_by_peer_id_through_the_relays_we_know(self) -> None:
        async with through() as (_, listening, dialling):
            connection = await dialling.connect(listening.peer_id)
            assert connection.is_relayed
            assert await dialling.connect(f"/p2p/{listening.peer_id}") is connection

    @aio
    async def test_the_relay_itself_by_its_peer_id(self) -> None:
        async with through() as (relaying, _, dialling):
            connection = await dialling.connect(relaying.peer_id)
            assert connection.path == "direct/tcp"

    @aio
    async def test_a_direct_address_is_dialled_beside_a_relayed_connection(self) -> None:
        async with through(listener={"punch": False}) as (_, listening, dialling):
            relayed = await dialling.connect(listening.peer_id)
            direct = await dialling.connect(listening.addrs[0].with_peer(listening.peer_id))
            assert direct.path == "direct/tcp"
            assert relayed.successor is direct
            assert await dialling.connect(listening.peer_id) is direct

    @aio
    async def test_without_a_reservation_the_relays_word_is_passed_on(self) -> None:
        async with through() as (_, _, dialling):
            nobody = Identity.generate().peer_id
            with pytest.raises(DialFailed, match=r"204 \(peer has no reservation\)") as failed:
                await dialling.connect(nobody)
            assert [type(error) for _, error in failed.value.attempts] == [PeerHasNoReservation]

    @aio
    async def test_a_peer_that_is_no_relay(self) -> None:
        async with host() as other, host() as dialling:
            nowhere = other.full_addrs[0] / f"/p2p-circuit/p2p/{Identity.generate().peer_id}"
            with pytest.raises(DialFailed, match=r"does not speak /libp2p/circuit/relay/0.2.0/hop"):
                await dialling.connect(nowhere)


class TestLimits:
    @aio
    async def test_a_limited_connection_carries_only_what_is_allowed(self) -> None:
        async with through(listener={"punch": False}) as (_, listening, dialling):
            listening.handle("/echo/1", echo)
            listening.handle("/small/1", echo, allow_limited=True)
            connection = await dialling.connect(listening.peer_id)
            assert connection.is_limited
            with pytest.raises(LimitedConnection, match="/echo/1 is not allowed on the limited connection"):
                await connection.open_stream("/echo/1")
            with pytest.raises(flare.ProtocolNotSupported):
                await connection.open_stream("/echo/1", allow_limited=True)  # nor by the other side
            async with connection.open_stream("/small/1", allow_limited=True) as stream:
                await stream.write(b"hello")
                assert await stream.read() == b"hello"

    @aio
    async def test_without_limits_a_relayed_connection_is_like_any_other(self) -> None:
        async with through(UNLIMITED, listener={"punch": False}) as (_, listening, dialling):
            listening.handle("/echo/1", echo)
            connection = await dialling.connect(listening.peer_id)
            assert not connection.is_limited
            data = bytes(range(256)) * 2048
            async with connection.open_stream("/echo/1") as stream:
                sending = asyncio.create_task(stream.write(data))
                assert await stream.read_exactly(len(data)) == data
                await sending


class TestStop:
    @aio
    async def test_a_relay_that_we_did_not_reserve_on_is_refused(self) -> None:
        async with through() as (_, listening, _), host() as stranger:
            connection = await stranger.connect(*listening.full_addrs[:1])
            with pytest.raises(PermissionDenied):
                await stop.open_stop(connection, Identity.generate().peer_id, None)
            assert all(not c.is_relayed for c in listening.connections)

    @aio
    async def test_a_host_without_relays_does_not_speak_it(self) -> None:
        async with host() as listening, host() as stranger:
            connection = await stranger.connect(*listening.full_addrs)
            with pytest.raises(flare.ProtocolNotSupported):
                await stop.open_stop(connection, Identity.generate().peer_id, None)

    @aio
    async def test_who_comes_through_the_relay_proves_who_it_is(self) -> None:
        async with through() as (relaying, listening, _):
            seen = Seen(listening)
            to_listener = relaying.connections_to(listening.peer_id)[0]
            stream = await stop.open_stop(to_listener, Identity.generate().peer_id, None)
            with contextlib.suppress(flare.FlareError):
                forged = await circuit.secure(
                    stream,
                    relaying.identity,
                    relaying._engine,
                    initiator=True,
                    expected_peer=listening.peer_id,
                    limit=None,
                    config=relaying.config,
                )
                await forged.wait_closed()
            assert seen.of(ConnectionOpened) == [], "the relay cannot pass for somebody else"


class TestGoingDirect:
    @aio
    async def test_new_streams_go_direct_and_the_relayed_connection_ends_after_its_grace(self) -> None:
        everywhere = {"is_public": lambda addr: True}
        async with through(listener=everywhere, dialer=everywhere) as (_, listening, dialling):
            listening.handle("/echo/1", echo)
            seen = Seen(dialling)
            relayed = await dialling.connect(listening.peer_id)
            assert relayed.is_relayed
            direct = await relayed.direct(timeout=10)
            assert direct.path == "direct/tcp"
            assert (await seen.first(PunchSucceeded)).peer == listening.peer_id
            async with relayed.open_stream("/echo/1") as stream:
                assert stream.connection is direct
                await stream.write(b"x")
                assert await stream.read() == b"x"
            assert await relayed.direct() is direct
            await relayed.wait_closed()
            assert dialling.connections_to(listening.peer_id) == (direct,)
            assert await relayed.direct() is direct
            await eventually(lambda: all(not c.is_relayed for c in listening.connections))

    @aio
    async def test_a_direct_connection_that_breaks_within_the_grace_leaves_the_relayed_one(self) -> None:
        everywhere = {"is_public": lambda addr: True}
        async with through(UNLIMITED, listener=everywhere, dialer=everywhere) as (_, listening, dialling):
            listening.handle("/echo/1", echo)
            relayed = await dialling.connect(listening.peer_id)
            direct = await relayed.direct(timeout=10)
            direct.abort("pulled out")
            await eventually(lambda: all(c.is_relayed for c in listening.connections_to(dialling.peer_id)))
            await asyncio.sleep(2 * QUICK.punch.grace)
            assert not relayed.closed
            async with relayed.open_stream("/echo/1") as stream:
                assert stream.connection is relayed
            back = listening.connections_to(dialling.peer_id)[0]
            again = await back.direct(timeout=10)
            assert again.path == "direct/tcp"
            assert not again.closed
            assert (await relayed.direct(timeout=10)).path == "direct/tcp"

    @aio
    async def test_a_host_that_does_not_punch_says_so(self) -> None:
        async with through(dialer={"punch": False}) as (_, listening, dialling):
            connection = await dialling.connect(listening.peer_id)
            with pytest.raises(PunchFailed, match="this host does not punch holes"):
                await connection.direct(timeout=5)

    @aio
    async def test_a_peer_that_does_not_punch_is_waited_for_in_vain(self) -> None:
        async with through(listener={"punch": False}) as (_, listening, dialling):
            connection = await dialling.connect(listening.peer_id)
            with pytest.raises(PunchFailed, match=r"began no hole punch within 0.2 s"):
                await connection.direct(timeout=0.2)

    @aio
    async def test_where_no_address_can_be_reached_both_say_why(self) -> None:
        async with through() as (_, listening, dialling):
            waiting, calling = Seen(listening), Seen(dialling)
            connection = await dialling.connect(listening.peer_id)
            with pytest.raises(PunchFailed, match="no address that can be reached from here"):
                await connection.direct(timeout=15)
            assert "no address that can be reached" in (await waiting.first(PunchGaveUp)).reason
            assert "no address that can be reached" in (await calling.first(PunchGaveUp)).reason
            assert not connection.closed, "it stays relayed"


class TestClosing:
    @aio
    async def test_relayed_connections_end_with_a_goodbye(self) -> None:
        async with through() as (_, listening, dialling):
            connection = await dialling.connect(listening.peer_id)
            await listening.close()
            await connection.wait_closed()
            assert str(connection.close_reason) == "the peer closed the connection", "and was not cut off"


class TestAddressesThatLead:
    """Addresses come from peers too: what they lead to is checked, and a dial never waits for itself."""

    @aio
    async def test_a_circuit_through_the_peer_itself_fails_at_once_and_blocks_nobody(self) -> None:
        async with relay() as (relaying, _), host() as client:
            own = relaying.full_addrs[0] / f"/p2p-circuit/p2p/{relaying.peer_id}"
            with pytest.raises(DialFailed, match="to itself"):
                await client.connect(own, timeout=5)
            connection = await client.connect(*relaying.full_addrs, timeout=5)
            assert connection.remote_peer == relaying.peer_id

    @aio
    async def test_two_peers_that_are_relays_of_each_other_do_not_wait_for_each_other(self) -> None:
        async with relay() as (one, _), relay() as (other, _), host() as client:
            each = [
                client.connect(one.full_addrs[0] / f"/p2p-circuit/p2p/{other.peer_id}", timeout=5),
                client.connect(other.full_addrs[0] / f"/p2p-circuit/p2p/{one.peer_id}", timeout=5),
            ]
            results = await asyncio.gather(*each, return_exceptions=True)
            assert all(isinstance(result, DialFailed | flare.Connection) for result in results), results

    @aio
    async def test_another_peers_address_in_a_peers_entry_leads_to_no_connection(self) -> None:
        async with host() as client, host() as somebody:
            told = Identity.generate().peer_id
            client.peers.update(told, addrs=somebody.full_addrs)
            with pytest.raises(PeerMismatch):
                await client.connect(told, timeout=5)
            assert client.connections_to(somebody.peer_id) == ()
