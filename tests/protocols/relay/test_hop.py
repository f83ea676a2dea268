"""The relay's side of HOP (circuit-v2.md, "Hop Protocol")."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from flare.config import RelayLimits
from flare.errors import RelayRefused, StreamReset
from flare.events import CircuitClosed, CircuitOpened, ReservationMade
from flare.lab import virtual
from flare.protocols.exchange import MESSAGE_LIMIT
from flare.protocols.relay import HOP_PROTOCOL, stop
from flare.transport.stream import Stream
from flare.wire.envelope import Voucher
from flare.wire.keys import Identity
from flare.wire.messages import HopMessage, HopType, Limit, RelayPeer, Reservation, Status
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId
from tests.support import bad_peers
from tests.support.linked import (
    ALICE,
    ALICE_ADDR,
    BOB,
    BOB_ADDR,
    CAROL,
    RELAY,
    RELAY_ADDR,
    End,
    now,
    simulated,
)
from tests.support.relay_bench import RESERVE, Bench, Result, connect_to


class TestReservation:
    @simulated
    async def test_it_is_granted_with_expiry_addresses_voucher_and_limit(self) -> None:
        bench = Bench()
        answer = await bench.reserve(bench.client(ALICE))
        expire = int(virtual.unix() + 3600)
        assert answer.type is HopType.STATUS
        assert answer.status == Status.OK
        assert answer.limit == Limit(duration=120, data=128 * 1024)
        granted = answer.reservation
        assert granted is not None
        assert granted.expire == expire, "Unix seconds on the relay's clock"
        assert granted.addrs == (RELAY_ADDR.with_peer(RELAY.peer_id),)
        assert granted.voucher is not None
        assert Voucher.open(granted.voucher) == Voucher(RELAY.peer_id, ALICE.peer_id, expire)

    @simulated
    async def test_it_is_bound_to_the_authenticated_peer_whatever_the_message_names(self) -> None:
        bench = Bench()
        request = dataclasses.replace(RESERVE, peer=RelayPeer(id=CAROL.peer_id))
        assert await bench.status(bench.client(ALICE), request) == Status.OK
        assert bench.service.book.find(ALICE.peer_id) is not None
        assert bench.service.book.find(CAROL.peer_id) is None

    @simulated
    async def test_without_limits_the_limit_field_is_left_out(self) -> None:
        bench = Bench(RelayLimits.unlimited())
        assert (await bench.reserve(bench.client(ALICE))).limit is None

    @simulated
    async def test_a_fraction_of_a_second_is_no_unlimited_circuit(self) -> None:
        bench = Bench(RelayLimits(circuit_duration=0.5, circuit_bytes=0))
        assert (await bench.reserve(bench.client(ALICE))).limit == Limit(duration=1, data=0)

    @simulated
    async def test_listed_peers_are_unlimited(self) -> None:
        bench = Bench(unlimited=[ALICE.peer_id])
        assert (await bench.reserve(bench.client(ALICE))).limit is None
        assert (await bench.reserve(bench.client(BOB))).limit is not None

    @simulated
    async def test_addresses_end_in_the_relays_id_and_never_in_a_circuit(self) -> None:
        bench = Bench()
        bench.addrs = [
            RELAY_ADDR,
            RELAY_ADDR.with_peer(RELAY.peer_id),
            Multiaddr(f"{RELAY_ADDR}/p2p/{CAROL.peer_id}/p2p-circuit"),
            RELAY_ADDR.with_peer(CAROL.peer_id),
        ]
        granted = (await bench.reserve(bench.client(ALICE))).reservation
        assert granted is not None
        assert set(granted.addrs) == {RELAY_ADDR.with_peer(RELAY.peer_id)}

    @simulated
    async def test_loopback_is_told_only_to_who_came_that_way_and_where_there_is_nothing_else(self) -> None:
        bench = Bench()
        loopback = Multiaddr("/ip4/127.0.0.1/tcp/4001")
        bench.addrs = [loopback, RELAY_ADDR]

        async def told(client: End) -> set[Multiaddr]:
            granted = (await bench.reserve(client)).reservation
            assert granted is not None
            return {addr.without_peer() for addr in granted.addrs}

        assert await told(bench.client(ALICE)) == {RELAY_ADDR}
        assert await told(bench.client(BOB, loopback)) == {loopback, RELAY_ADDR}
        bench.addrs = [loopback]
        assert await told(bench.client(CAROL)) == {loopback}

    @simulated
    async def test_the_list_is_never_empty(self) -> None:
        bench = Bench()
        bench.addrs = []
        granted = (await bench.reserve(bench.client(ALICE))).reservation
        assert granted is not None
        assert granted.addrs == (RELAY_ADDR.with_peer(RELAY.peer_id),), "the address that this client reached"

    @simulated
    async def test_the_list_is_cut_to_what_fits_into_a_message(self) -> None:
        bench = Bench()
        bench.addrs = [Multiaddr(f"/ip4/9.9.{i // 200}.{i % 200}/tcp/4001") for i in range(300)]
        answer = await bench.reserve(bench.client(ALICE))
        assert len(answer.encode()) <= MESSAGE_LIMIT
        assert answer.reservation is not None
        assert len(answer.reservation.addrs) > 50

    @simulated
    async def test_a_refresh_replaces(self) -> None:
        bench = Bench(RelayLimits(max_reservations=1))
        client = bench.client(ALICE)
        first = await bench.reserve(client)
        await asyncio.sleep(1000)
        second = await bench.reserve(client)
        assert first.reservation is not None
        assert second.reservation is not None
        assert second.reservation.expire == first.reservation.expire + 1000
        counters = bench.service.counters
        assert (counters.reservations_opened, counters.reservations_renewed) == (1, 1)
        expires = [first.reservation.expire, second.reservation.expire]
        assert bench.events == [ReservationMade(ALICE.peer_id, expire) for expire in expires], (
            "each refresh is told"
        )

    @simulated
    async def test_a_refusal_makes_no_event(self) -> None:
        bench = Bench(RelayLimits(max_reservations=0))
        answer = await bench.reserve(bench.client(ALICE))
        assert answer.status == Status.RESERVATION_REFUSED
        assert bench.events == []

    @simulated
    async def test_it_runs_out(self) -> None:
        bench = Bench(RelayLimits(reservation_ttl=60))
        bench_target = bench.target(BOB)
        await bench.reserve(bench_target)
        await asyncio.sleep(60)
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.NO_RESERVATION

    @simulated
    async def test_it_is_gone_with_its_connection(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        bench.service.connection_closed(bench.at_relay[0])  # type: ignore[arg-type]
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.NO_RESERVATION
        assert bench.service.counters.reservations_closed == 1

    @simulated
    async def test_at_the_limit_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(max_reservations=2))
        clients = [
            bench.client(i, Multiaddr(f"/ip4/1.1.1.{n}/tcp/1")) for n, i in enumerate((ALICE, BOB, CAROL))
        ]
        statuses = [(await bench.reserve(client)).status for client in clients]
        assert statuses == [Status.OK, Status.OK, Status.RESERVATION_REFUSED]

    @simulated
    async def test_in_ipv6_a_64_counts_as_one(self) -> None:
        bench = Bench(RelayLimits(max_reservations_per_ip=1))
        same = [Multiaddr(f"/ip6/2001:db8:1:2::{host}/tcp/1") for host in (1, 2)]
        other = Multiaddr("/ip6/2001:db8:1:3::1/tcp/1")
        statuses = [
            (await bench.reserve(bench.client(Identity.generate(), addr))).status for addr in (*same, other)
        ]
        assert statuses == [Status.OK, Status.RESERVATION_REFUSED, Status.OK]

    @simulated
    async def test_a_request_that_outlived_its_connection_reserves_nothing(self) -> None:
        bench = Bench()
        client = bench.client(ALICE)
        stream = await client.open_stream(HOP_PROTOCOL)
        bench.at_relay[0].closed = True
        await stream.write_frame(RESERVE.encode())
        await asyncio.sleep(0.1)
        assert bench.service.book.reservations == 0

    @simulated
    async def test_at_the_limit_per_ip_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(max_reservations_per_ip=2))
        statuses = [(await bench.reserve(bench.client(i))).status for i in (ALICE, BOB, CAROL)]
        assert statuses == [Status.OK, Status.OK, Status.RESERVATION_REFUSED]
        elsewhere = bench.client(CAROL, BOB_ADDR)
        assert (await bench.reserve(elsewhere)).status == Status.OK

    @simulated
    async def test_over_a_relayed_connection_it_is_denied(self) -> None:
        bench = Bench()
        client = bench.client(ALICE)
        bench.at_relay[0].relay = CAROL.peer_id
        assert (await bench.reserve(client)).status == Status.PERMISSION_DENIED
        assert await bench.status(client, connect_to(BOB)) == Status.PERMISSION_DENIED

    @simulated
    async def test_a_draining_relay_grants_none(self) -> None:
        bench = Bench()
        assert await bench.service.drain() == 0
        assert (await bench.reserve(bench.client(ALICE))).status == Status.RESERVATION_REFUSED


class Only:
    """An Acl: who may reserve, who may be connected to."""

    def __init__(self, reserve: Identity, target: Identity) -> None:
        self.reserve, self.target = reserve.peer_id, target.peer_id
        self.asked: list[Multiaddr] = []

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        self.asked.append(addr)
        return peer == self.reserve

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        return target == self.target


class TestAcl:
    @simulated
    async def test_reservations_and_circuits_are_denied_by_it(self) -> None:
        acl = Only(reserve=BOB, target=CAROL)
        bench = Bench(acl=acl)
        assert (await bench.reserve(bench.client(ALICE))).status == Status.PERMISSION_DENIED
        assert (await bench.reserve(bench.target(BOB))).status == Status.OK
        assert acl.asked == [ALICE_ADDR, BOB_ADDR]
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.PERMISSION_DENIED


class TestConnectionInitiation:
    @simulated
    async def test_both_ends_are_told_the_limit_and_their_streams_are_joined(self) -> None:
        bench = Bench()
        offers: list[stop.IncomingCircuit] = []

        async def accept(stream: Stream) -> None:
            stream.keep()
            offers.append(await stop.accept(stream))

        await bench.reserve(bench.target(BOB, accept))
        answer, stream = await bench.ask(bench.client(ALICE), connect_to(BOB))
        limit = Limit(duration=120, data=128 * 1024)
        assert (answer.type, answer.status, answer.limit) == (HopType.STATUS, Status.OK, limit)
        assert (offers[0].peer, offers[0].limit) == (ALICE.peer_id, limit)
        told = bench.splice.calls[0]
        assert told["limit_a_to_b"] == told["limit_b_to_a"] == 128 * 1024, "in each direction"
        assert told["deadline_ns"] == pytest.approx(virtual.monotonic_ns() + 120e9, abs=1e9)
        assert told["a"].connection.remote_peer == ALICE.peer_id
        assert told["b"].connection.remote_peer == BOB.peer_id
        assert bench.events[1:] == [CircuitOpened(ALICE.peer_id, BOB.peer_id)]
        assert bench.service.book.circuits == 1
        bench.splice.end("limit", 131072, 7)
        await asyncio.sleep(1)
        (closed,) = bench.events[2:]
        assert isinstance(closed, CircuitClosed)
        assert closed == CircuitClosed(ALICE.peer_id, BOB.peer_id, "limit", 131072, 7, closed.seconds)
        assert bench.service.book.circuits == 0
        counters = bench.service.counters
        assert (counters.circuits_opened, counters.circuits_closed, counters.bytes_relayed) == (1, 1, 131079)
        stream.reset()

    @simulated
    async def test_bytes_right_behind_the_request_belong_to_the_circuit(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        stream = await bench.client(ALICE).open_stream(HOP_PROTOCOL)
        request = connect_to(BOB).frame()
        await stream.write(request + b"early bytes")
        await stream.read_frame(MESSAGE_LIMIT)
        assert await bench.splice.calls[0]["a"].read() == b"early bytes"
        bench.splice.end()
        await asyncio.sleep(1)

    @simulated
    async def test_without_limits_neither_end_is_told_one(self) -> None:
        bench = Bench(RelayLimits.unlimited())
        offers: list[stop.IncomingCircuit] = []

        async def accept(stream: Stream) -> None:
            stream.keep()
            offers.append(await stop.accept(stream))

        await bench.reserve(bench.target(BOB, accept))
        answer, _ = await bench.ask(bench.client(ALICE), connect_to(BOB))
        assert answer.limit is None
        assert offers[0].limit is None
        told = bench.splice.calls[0]
        assert (told["limit_a_to_b"], told["limit_b_to_a"], told["deadline_ns"]) == (0, 0, 0)
        bench.splice.end()
        await asyncio.sleep(1)

    @simulated
    async def test_no_reservation(self) -> None:
        bench = Bench()
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.NO_RESERVATION

    @simulated
    async def test_to_oneself_is_denied(self) -> None:
        bench = Bench()
        client = bench.target(ALICE)
        await bench.reserve(client)
        assert await bench.status(client, connect_to(ALICE)) == Status.PERMISSION_DENIED

    @simulated
    async def test_circuits_per_peer_at_the_limit_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(max_circuits_per_peer=2))
        await bench.reserve(bench.target(BOB))
        client = bench.client(ALICE)
        statuses = [(await bench.ask(client, connect_to(BOB)))[0].status for _ in range(3)]
        assert statuses == [Status.OK, Status.OK, Status.RESOURCE_LIMIT_EXCEEDED]
        assert await bench.status(bench.client(CAROL), connect_to(BOB)) == Status.RESOURCE_LIMIT_EXCEEDED
        bench.splice.end()
        await asyncio.sleep(1)
        assert (await bench.ask(client, connect_to(BOB)))[0].status == Status.OK
        for call in bench.splice.calls:
            call["on_done"](Result("closed"))
        await asyncio.sleep(1)

    @simulated
    async def test_circuits_in_all_at_the_limit_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(max_circuits=1))
        await bench.reserve(bench.target(BOB))
        assert (await bench.ask(bench.client(ALICE), connect_to(BOB)))[0].status == Status.OK
        assert await bench.status(bench.client(CAROL), connect_to(BOB)) == Status.RESOURCE_LIMIT_EXCEEDED
        bench.splice.end()
        await asyncio.sleep(1)

    @pytest.mark.parametrize("answer", [Status.CONNECTION_FAILED, Status.PERMISSION_DENIED, Status.UNUSED])
    @simulated
    async def test_a_target_that_refuses_is_connection_failed(self, answer: Status) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB, answer))
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.CONNECTION_FAILED
        assert bench.service.book.circuits == 0

    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    @simulated
    async def test_a_target_that_answers_no_message_is_connection_failed_in_time(
        self, misbehave: bad_peers.Misbehave
    ) -> None:
        bench = Bench()

        async def handle(stream: Stream) -> None:
            stream.keep()
            await misbehave(stream)

        await bench.reserve(bench.target(BOB, handle))
        started = now()
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.CONNECTION_FAILED
        assert now() - started <= 10.1
        assert bench.service.book.circuits == 0
        await asyncio.sleep(150)

    @simulated
    async def test_a_target_that_is_gone_is_connection_failed(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        bench.at_relay[0].closed = True
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.CONNECTION_FAILED

    @simulated
    async def test_a_source_that_is_gone_meanwhile_frees_the_circuit(self) -> None:
        bench = Bench()

        async def late(stream: Stream) -> None:
            await asyncio.sleep(5)
            stream.keep()
            await stop.accept(stream)

        await bench.reserve(bench.target(BOB, late))
        stream = await bench.client(ALICE).open_stream(HOP_PROTOCOL)
        await stream.write_frame(connect_to(BOB).encode())
        await asyncio.sleep(1)
        stream.reset()
        await asyncio.sleep(10)
        assert bench.service.book.circuits == 0
        assert not bench.splice.calls

    @simulated
    async def test_a_relay_that_stops_cancels_the_splice(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        await bench.ask(bench.client(ALICE), connect_to(BOB))
        for end in bench.at_relay:
            for task in end.tasks:
                task.cancel()
        await asyncio.sleep(1)
        assert bench.splice.cancelled == 1
        assert bench.service.book.circuits == 0


class TestBadInput:
    @pytest.mark.parametrize("misbehave", bad_peers.MALFORMED, ids=bad_peers.name)
    @simulated
    async def test_what_is_no_message_is_answered_and_costs_the_stream_only(
        self, misbehave: bad_peers.Misbehave
    ) -> None:
        bench = Bench()
        client = bench.client(ALICE)
        stream = await client.open_stream(HOP_PROTOCOL)
        await misbehave(stream)
        answer = HopMessage.decode(await stream.read_frame(MESSAGE_LIMIT))
        assert (answer.type, answer.status) == (HopType.STATUS, Status.MALFORMED_MESSAGE)
        assert await stream.read() == b"", "the stream ends with that"
        await stream.close()
        assert bench.service.counters.malformed == 1
        assert (await bench.reserve(client)).status == Status.OK, "and the connection goes on"

    @pytest.mark.parametrize("misbehave", bad_peers.STUCK, ids=bad_peers.name)
    @simulated
    async def test_the_silent_and_the_slow_are_reset_in_time(self, misbehave: bad_peers.Misbehave) -> None:
        bench = Bench()
        stream = await bench.client(ALICE).open_stream(HOP_PROTOCOL)
        misbehaving = asyncio.create_task(misbehave(stream))  # type: ignore[arg-type]
        with pytest.raises(StreamReset):
            await stream.read()
        assert now() == pytest.approx(10, abs=0.1)
        await misbehaving

    @simulated
    async def test_connect_without_a_peer_is_malformed(self) -> None:
        bench = Bench()
        assert (
            await bench.status(bench.client(ALICE), HopMessage(type=HopType.CONNECT))
            == Status.MALFORMED_MESSAGE
        )

    @simulated
    async def test_status_is_unexpected(self) -> None:
        bench = Bench()
        status = HopMessage(type=HopType.STATUS, status=Status.OK, reservation=Reservation(expire=1))
        assert await bench.status(bench.client(ALICE), status) == Status.UNEXPECTED_MESSAGE


def test_every_refusal_has_a_class() -> None:
    assert {cls.status for cls in RelayRefused.__subclasses__()} == set(Status) - {Status.UNUSED, Status.OK}
