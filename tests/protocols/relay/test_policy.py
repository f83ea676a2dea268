"""What a relay refuses, with which status and why, at each limit and one past it; changes; drain."""

from __future__ import annotations

import asyncio

import pytest

from flare.config import Rate, RelayLimits
from flare.events import CircuitClosed
from flare.protocols.relay import HOP_PROTOCOL, stop
from flare.protocols.relay.access import AccessList, PeerList
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.messages import Status
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE, ALICE_ADDR, BOB, CAROL, End, now, simulated
from tests.support.relay_bench import Bench, connect_to

REFUSED = Status.RESERVATION_REFUSED
EXCEEDED = Status.RESOURCE_LIMIT_EXCEEDED
DENIED = Status.PERMISSION_DENIED


def addr(last: int) -> Multiaddr:
    return Multiaddr(f"/ip4/7.7.7.{last}/tcp/1")


async def opened(bench: Bench, client: End, target: Identity) -> Status | int | None:
    """Ask for a circuit, which stays open when it is granted."""
    answer, _ = await bench.ask(client, connect_to(target))
    await asyncio.sleep(0.01)
    return answer.status


class TestReservationRates:
    @simulated
    async def test_per_peer_at_the_rate_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(reservation_rate_per_peer=Rate(0.1, 3)))
        alice = bench.client(ALICE)
        statuses = [(await bench.reserve(alice)).status for _ in range(4)]
        assert statuses == [Status.OK, Status.OK, Status.OK, REFUSED], "refreshes count"
        assert bench.service.book.find(ALICE.peer_id) is not None, "what was held stays"
        assert (await bench.reserve(bench.client(BOB))).status == Status.OK
        await asyncio.sleep(10)
        statuses = [(await bench.reserve(alice)).status for _ in range(2)]
        assert statuses == [Status.OK, REFUSED]
        assert bench.service.counters.reserve_refused == {"reservation_rate_per_peer": 2}

    @simulated
    async def test_per_prefix_at_the_rate_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(reservation_rate_per_ip=Rate(0.1, 2), ipv4_prefix=24))
        statuses = [
            (await bench.reserve(bench.client(who, addr(n)))).status
            for n, who in enumerate((ALICE, BOB, CAROL))
        ]
        assert statuses == [Status.OK, Status.OK, REFUSED]
        assert (await bench.reserve(bench.client(CAROL, ALICE_ADDR))).status == Status.OK
        assert bench.service.counters.reserve_refused == {"reservation_rate_per_ip": 1}

    @simulated
    async def test_a_wider_prefix_shares_the_reservations_per_ip(self) -> None:
        bench = Bench(RelayLimits(max_reservations_per_ip=1, ipv4_prefix=24))
        assert (await bench.reserve(bench.client(ALICE, addr(1)))).status == Status.OK
        assert (await bench.reserve(bench.client(BOB, addr(2)))).status == REFUSED
        assert bench.service.counters.reserve_refused == {"max_reservations_per_ip": 1}


class TestCircuits:
    @simulated
    async def test_per_prefix_at_the_limit_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(max_circuits_per_ip=2))
        await bench.reserve(bench.target(BOB))
        clients = [bench.client(Identity.generate(), addr(1)) for _ in range(3)]
        statuses = [await opened(bench, client, BOB) for client in clients]
        assert statuses == [Status.OK, Status.OK, EXCEEDED]
        assert bench.service.counters.connect_refused == {"max_circuits_per_ip": 1}
        elsewhere = await opened(bench, bench.client(CAROL, addr(2)), BOB)
        assert elsewhere == EXCEEDED, "the target's address has two as well"
        bench.splice.end()
        await asyncio.sleep(1)
        assert await opened(bench, clients[2], BOB) == Status.OK
        bench.service.close()

    @simulated
    async def test_both_ends_at_one_address_count_once(self) -> None:
        bench = Bench(RelayLimits(max_circuits_per_ip=1))
        target = bench.target(BOB)
        bench.at_relay[-1].remote_addr = addr(1)
        await bench.reserve(target)
        assert await opened(bench, bench.client(ALICE, addr(1)), BOB) == Status.OK
        bench.service.close()

    @simulated
    async def test_requests_per_peer_at_the_rate_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(circuit_rate_per_peer=Rate(0.1, 2)))
        alice = bench.client(ALICE)
        statuses = [await bench.status(alice, connect_to(BOB)) for _ in range(3)]
        assert statuses == [Status.NO_RESERVATION, Status.NO_RESERVATION, EXCEEDED], (
            "who tries out peers pays"
        )
        assert bench.service.counters.connect_refused == {"no_reservation": 2, "circuit_rate_per_peer": 1}
        await asyncio.sleep(10)
        assert await bench.status(alice, connect_to(BOB)) == Status.NO_RESERVATION

    @simulated
    async def test_requests_per_prefix_at_the_rate_and_one_past_it(self) -> None:
        bench = Bench(RelayLimits(circuit_rate_per_ip=Rate(0.1, 2)))
        statuses = [
            await bench.status(bench.client(Identity.generate(), addr(1)), connect_to(BOB)) for _ in range(3)
        ]
        assert statuses == [Status.NO_RESERVATION, Status.NO_RESERVATION, EXCEEDED]
        assert await bench.status(bench.client(ALICE, addr(2)), connect_to(BOB)) == Status.NO_RESERVATION

    @simulated
    async def test_each_refusal_is_counted_by_its_reason(self) -> None:
        bench = Bench(RelayLimits(max_circuits=1), acl=AccessList(deny=PeerList([CAROL.peer_id])))
        await bench.reserve(bench.target(BOB))
        alice = bench.client(ALICE)
        assert await opened(bench, alice, BOB) == Status.OK
        assert await bench.status(alice, connect_to(BOB)) == EXCEEDED
        assert await bench.status(alice, connect_to(ALICE)) == DENIED
        assert await bench.status(alice, connect_to(CAROL)) == DENIED
        relayed = bench.client(ALICE)
        bench.at_relay[-1].relay = CAROL.peer_id
        assert await bench.status(relayed, connect_to(BOB)) == DENIED
        assert (await bench.reserve(relayed)).status == DENIED
        assert (await bench.reserve(bench.client(CAROL))).status == DENIED
        counters = bench.service.counters
        assert counters.connect_refused == {"max_circuits": 1, "oneself": 1, "denied": 1, "relayed": 1}
        assert counters.reserve_refused == {"relayed": 1, "denied": 1}
        bench.service.close()
        await asyncio.sleep(1)
        bench = Bench()
        await bench.reserve(bench.target(BOB, Status.PERMISSION_DENIED))
        assert await bench.status(bench.client(ALICE), connect_to(BOB)) == Status.CONNECTION_FAILED
        assert bench.service.counters.connect_refused == {"target": 1}


class TestBytes:
    LIMITS = RelayLimits(byte_rate_per_peer=Rate(1000), byte_rate_per_ip=Rate(2000), byte_rate=Rate(4000))

    @simulated
    async def test_a_circuit_draws_from_its_ends_and_the_relays_bucket(self) -> None:
        bench = Bench(self.LIMITS)
        await bench.reserve(bench.target(BOB))
        await opened(bench, bench.client(ALICE), BOB)
        await opened(bench, bench.client(CAROL, addr(1)), BOB)
        one, other = (call["buckets"] for call in bench.splice.calls)
        assert sorted(b.rate for b in one) == [1000, 1000, 2000, 2000, 4000]
        assert len(set(one) & set(other)) == 3, "the target's, its prefix's, the relay's"
        bench.service.close()

    @simulated
    async def test_unlimited_peers_draw_from_the_relays_bucket_only(self) -> None:
        bench = Bench(self.LIMITS, unlimited=[BOB.peer_id])
        await bench.reserve(bench.target(BOB))
        await opened(bench, bench.client(ALICE), BOB)
        assert [b.rate for b in bench.splice.calls[0]["buckets"]] == [4000]
        bench.service.close()


class TestUnlimited:
    @simulated
    async def test_they_count_against_the_whole_relay_only(self) -> None:
        limits = RelayLimits(
            max_reservations=3,
            max_reservations_per_ip=1,
            reservation_rate_per_peer=Rate(0.001, 1),
            reservation_rate_per_ip=Rate(0.001, 2),
            max_circuits=4,
            max_circuits_per_peer=1,
            max_circuits_per_ip=2,
            circuit_rate_per_peer=Rate(0.001, 1),
        )
        bench = Bench(limits, unlimited=PeerList([str(ALICE.peer_id), "5.6.7.8"]))
        alice, bob = bench.client(ALICE), bench.target(BOB)  # one by its id, one by its network
        for _ in range(4):
            assert (await bench.reserve(alice)).status == Status.OK
            assert (await bench.reserve(bob)).status == Status.OK
        strangers = [bench.client(Identity.generate(), ALICE_ADDR) for _ in range(2)]
        statuses = [(await bench.reserve(stranger)).status for stranger in strangers]
        assert statuses == [Status.OK, REFUSED], "the per-IP place is still there for one"
        full = await bench.reserve(bench.client(CAROL, Multiaddr("/ip4/5.6.7.8/tcp/7")))
        assert full.status == REFUSED, "the relay is full for them too"
        for _ in range(4):
            assert await opened(bench, alice, BOB) == Status.OK
        assert bench.splice.calls[0]["limit_a_to_b"] == bench.splice.calls[0]["deadline_ns"] == 0
        assert await opened(bench, alice, BOB) == EXCEEDED
        assert bench.service.counters.connect_refused == {"max_circuits": 1}
        bench.service.close()

    @simulated
    async def test_the_other_end_still_counts(self) -> None:
        bench = Bench(RelayLimits(max_circuits_per_peer=1), unlimited=[BOB.peer_id])
        await bench.reserve(bench.target(BOB))
        alice = bench.client(ALICE)
        assert [await opened(bench, alice, BOB) for _ in range(2)] == [Status.OK, EXCEEDED]
        assert await opened(bench, bench.client(CAROL), BOB) == Status.OK
        bench.service.close()


class TestUpdate:
    @simulated
    async def test_other_limits_are_for_what_comes_next(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        alice = bench.client(ALICE)
        await opened(bench, alice, BOB)
        expires = bench.service.book.find(BOB.peer_id)
        bench.service.update(RelayLimits(max_circuits=2, circuit_bytes=1000, reservation_ttl=60))
        assert bench.service.limits.circuit_bytes == 1000
        assert bench.service.book.find(BOB.peer_id) == expires
        assert not bench.splice.cancelled
        assert await opened(bench, alice, BOB) == Status.OK
        assert await opened(bench, alice, BOB) == EXCEEDED
        told = [call["limit_a_to_b"] for call in bench.splice.calls]
        assert told == [128 * 1024, 1000]
        bench.service.close()

    @simulated
    async def test_a_shorter_lifetime_frees_its_places_in_time(self) -> None:
        bench = Bench(RelayLimits(max_reservations=2))
        await bench.reserve(bench.client(ALICE))
        bench.service.update(RelayLimits(max_reservations=2, reservation_ttl=60))
        await bench.reserve(bench.client(BOB))
        assert (await bench.reserve(bench.client(CAROL))).status == REFUSED
        await asyncio.sleep(61)
        assert (await bench.reserve(bench.client(CAROL))).status == Status.OK
        await asyncio.sleep(3600)
        assert len(bench.service.book.sweep()) == 2

    @simulated
    async def test_who_is_denied_loses_reservations_and_circuits_at_once(self) -> None:
        bench = Bench()
        for who in (BOB, CAROL):
            await bench.reserve(bench.target(who))
        alice = bench.client(ALICE)
        await opened(bench, alice, BOB)
        await opened(bench, alice, CAROL)
        bench.service.update(acl=AccessList(deny=PeerList([CAROL.peer_id])))
        await asyncio.sleep(1)
        closed = [event for event in bench.events if isinstance(event, CircuitClosed)]
        assert [(event.target, event.reason) for event in closed] == [(CAROL.peer_id, "cancelled")]
        assert bench.service.book.reservations == 1
        assert bench.service.counters.reservations_closed == 1
        assert await bench.status(alice, connect_to(CAROL)) == DENIED
        bench.service.update(acl=AccessList(deny=PeerList(["1.2.3.4"])))
        await asyncio.sleep(1)
        assert bench.service.book.circuits == 0, "the source's network is denied"
        bench.service.update(acl=AccessList())
        assert await opened(bench, alice, BOB) == Status.OK
        bench.service.update(acl=AccessList(deny=PeerList(["5.6.7.0/24"])))
        await asyncio.sleep(1)
        assert bench.service.book.circuits == bench.service.book.reservations == 0, "the target's is"

    @simulated
    async def test_who_is_denied_while_the_target_is_asked_gets_no_circuit(self) -> None:
        bench = Bench()

        async def late(stream: Stream) -> None:
            await asyncio.sleep(5)
            stream.keep()
            await stop.accept(stream)

        await bench.reserve(bench.target(BOB, late))
        asking = asyncio.create_task(bench.ask(bench.client(ALICE), connect_to(BOB)))
        await asyncio.sleep(1)
        bench.service.update(acl=AccessList(deny=PeerList([ALICE.peer_id])))
        assert (await asking)[0].status == DENIED
        assert bench.service.book.circuits == 0

    @simulated
    async def test_another_unlimited_list(self) -> None:
        bench = Bench()
        bench.service.update(unlimited=PeerList([ALICE.peer_id]))
        assert (await bench.reserve(bench.client(ALICE))).limit is None


class TestDrain:
    @simulated
    async def test_nothing_new_is_taken_and_circuits_end_by_themselves(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        alice = bench.client(ALICE)
        await opened(bench, alice, BOB)
        draining = asyncio.create_task(bench.service.drain())
        await asyncio.sleep(3)
        assert bench.service.draining
        assert not draining.done()
        assert (await bench.reserve(alice)).status == REFUSED
        assert await bench.status(alice, connect_to(BOB)) == EXCEEDED
        assert (
            bench.service.counters.connect_refused
            == bench.service.counters.reserve_refused
            == {"draining": 1}
        )
        bench.splice.end()
        assert await draining == 0
        assert now() == pytest.approx(3, abs=0.2)
        assert bench.splice.cancelled == 0

    @pytest.mark.parametrize(("timeout", "took"), [(None, 25), (7.0, 7), (0.0, 0)])
    @simulated
    async def test_those_that_do_not_end_are_ended(self, timeout: float | None, took: float) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        await opened(bench, bench.client(ALICE), BOB)
        assert await bench.service.drain(timeout) == 1
        assert now() == pytest.approx(took, abs=0.1)
        await asyncio.sleep(0.1)
        assert (bench.splice.cancelled, bench.service.book.circuits) == (1, 0)

    @simulated
    async def test_without_circuits_it_takes_no_time(self) -> None:
        bench = Bench()
        await bench.reserve(bench.target(BOB))
        assert await bench.service.drain() == 0
        assert now() < 1

    @simulated
    async def test_a_circuit_that_is_being_opened_is_waited_for(self) -> None:
        bench = Bench()

        async def late(stream: Stream) -> None:
            await asyncio.sleep(5)
            stream.keep()
            await stop.accept(stream)

        await bench.reserve(bench.target(BOB, late))
        asking = asyncio.create_task(bench.ask(bench.client(ALICE), connect_to(BOB)))
        await asyncio.sleep(1)
        draining = asyncio.create_task(bench.service.drain())
        assert (await asking)[0].status == Status.OK
        assert not draining.done()
        bench.splice.end()
        assert await draining == 0

    @simulated
    async def test_one_that_is_still_being_opened_at_the_end_is_refused(self) -> None:
        bench = Bench()

        async def late(stream: Stream) -> None:
            await asyncio.sleep(5)
            stream.keep()
            await stop.accept(stream)

        await bench.reserve(bench.target(BOB, late))
        stream = await bench.client(ALICE).open_stream(HOP_PROTOCOL)
        await stream.write_frame(connect_to(BOB).encode())
        await asyncio.sleep(1)
        assert await bench.service.drain(1.0) == 1
        await asyncio.sleep(10)
        assert bench.service.counters.connect_answers == {EXCEEDED: 1}
        assert not bench.splice.calls
        await stream.close()
