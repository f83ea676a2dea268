"""The client of relays under virtual time: refresh, loss, back-off (circuit-v2.md, "Reservation")."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flare.config import ReservationConfig
from flare.errors import ConnectionClosed, DialFailed, FlareError, ReservationRefused
from flare.events import ReservationAccepted, ReservationLost
from flare.lab import virtual
from flare.nat.relays import MAX_TOLD, RelayClient
from flare.protocols.relay.reserve import RelayReservation
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import ALICE, RELAY, RELAY_ADDR, End, linked, now, simulated

AT = RELAY_ADDR.with_peer(RELAY.peer_id)
OTHER = Multiaddr(f"/ip4/9.8.7.7/tcp/4003/p2p/{RELAY.peer_id}")
CONFIG = ReservationConfig()


class Bench:
    """A client with one relay, whose answers the test sets."""

    def __init__(self, *, ttl: float = 3600, skew: float = 0, share: float = 1.0) -> None:
        self.ttl, self.skew = ttl, skew
        self.told: tuple[Multiaddr, ...] = (OTHER,)
        self.dialled: list[float] = []
        self.reserved: list[float] = []
        self.events: list[tuple[float, Any]] = []
        self.changes: list[tuple[Multiaddr, ...]] = []
        self.dial_error: FlareError | None = None
        self.reserve_error: FlareError | None = None
        self.connection: End
        self.client = RelayClient(
            local_peer=ALICE.peer_id,
            dial=self._dial,  # type: ignore[arg-type]
            reserve=self._reserve,
            on_event=lambda event: self.events.append((now(), event)),
            on_change=lambda: self.changes.append(self.client.addrs),
            unix=virtual.unix,
            uniform=lambda low, high: low + share * (high - low),
        )

    async def _dial(self, relay: Multiaddr) -> End:
        self.dialled.append(now())
        if self.dial_error is not None:
            raise self.dial_error
        self.connection = linked(ALICE, RELAY)[0]
        return self.connection

    async def _reserve(self, connection: End, *, timeout: float) -> RelayReservation:
        self.reserved.append(now())
        if connection.closed:
            raise ConnectionClosed("gone")
        if self.reserve_error is not None:
            raise self.reserve_error
        expires = int(virtual.unix() + self.ttl + self.skew)
        return RelayReservation(RELAY.peer_id, expires, self.told, None, None)

    async def __aenter__(self) -> Bench:
        self.client.add(AT)
        await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()

    def last(self) -> Any:
        return self.events[-1][1]


@simulated
async def test_it_advertises_the_circuit_through_the_address_given_and_those_told() -> None:
    async with Bench() as bench:
        expected = tuple(Multiaddr(f"{addr}/p2p-circuit/p2p/{ALICE.peer_id}") for addr in (AT, OTHER))
        assert bench.client.addrs == expected
        accepted = bench.last()
        assert isinstance(accepted, ReservationAccepted)
        assert (accepted.relay, accepted.addrs) == (RELAY.peer_id, expected)
        assert accepted.expires == int(virtual.unix() + 3600)
        assert bench.changes == [expected]
        assert bench.client.knows(RELAY.peer_id)
        assert not bench.client.knows(ALICE.peer_id)
    assert bench.client.addrs == ()


@simulated
async def test_adding_a_relay_twice_keeps_one_reservation() -> None:
    async with Bench() as bench:
        bench.client.add(AT)
        await asyncio.sleep(10)
        assert len(bench.reserved) == 1


class TestRefresh:
    @pytest.mark.parametrize(
        ("left", "wait"),
        [
            (3600, 1800),  # at the latest after half an hour: the relay's clock may be ahead
            (1200, 900),  # at 3/4
            (300, 180),  # two minutes before the end
            (240, 120),
            (239, 119.5),  # short ones at the half
            (60, 30),
            (20, 15),  # but not faster than this
            (0, 1800),  # over by our clock: the relay's is behind
            (-7200, 1800),
        ],
    )
    def test_when(self, left: float, wait: float) -> None:
        assert Bench().client.refresh_after(left) == wait

    def test_jitter_only_makes_it_sooner(self) -> None:
        assert Bench(share=0).client.refresh_after(1200) == pytest.approx(810)

    @simulated
    async def test_it_is_refreshed_on_the_same_connection_well_before_its_end(self) -> None:
        async with Bench(ttl=1200) as bench:
            await asyncio.sleep(5000)
            assert [round(at) for at in bench.reserved] == [0, 900, 1800, 2700, 3600, 4500]
            assert len(bench.dialled) == 1
            assert all(isinstance(event, ReservationAccepted) for _, event in bench.events)
            assert len(bench.changes) == 1, "the addresses stay the same"

    @pytest.mark.parametrize("skew", [-7200, -1000, 600, 7200])
    @simulated
    async def test_a_relay_whose_clock_is_off_is_still_refreshed_in_time(self, skew: float) -> None:
        async with Bench(ttl=3600, skew=skew) as bench:
            await asyncio.sleep(20_000)
            gaps = [b - a for a, b in zip(bench.reserved, bench.reserved[1:], strict=False)]
            assert gaps
            assert max(gaps) < 3600, "by the relay's clock it never ran out"
            assert min(gaps) >= CONFIG.refresh_at_least

    @simulated
    async def test_a_refresh_that_fails_is_tried_again_while_it_lasts(self) -> None:
        async with Bench(ttl=1200) as bench:
            await asyncio.sleep(890)
            bench.reserve_error = ConnectionClosed("stream broke")
            await asyncio.sleep(50)
            assert len(bench.reserved) > 3
            bench.reserve_error = None
            await asyncio.sleep(60)
            assert isinstance(bench.last(), ReservationAccepted)
            assert len(bench.dialled) == 1
            assert len(bench.changes) == 1, "never withdrawn"

    @simulated
    async def test_one_that_fails_to_the_end_is_lost(self) -> None:
        async with Bench(ttl=1200) as bench:
            bench.reserve_error = ReservationRefused("full")
            await asyncio.sleep(1300)
            lost = next(event for _, event in bench.events if isinstance(event, ReservationLost))
            assert "could not be refreshed: full" in lost.reason
            assert bench.client.addrs == ()


class TestLoss:
    @simulated
    async def test_a_lost_connection_withdraws_and_comes_back(self) -> None:
        async with Bench() as bench:
            await asyncio.sleep(100)
            bench.connection.abort()
            await asyncio.sleep(0.001)
            lost = bench.last()
            assert isinstance(lost, ReservationLost)
            assert lost.relay == RELAY.peer_id
            assert "connection to the relay was lost" in lost.reason
            assert lost.retry_in == CONFIG.backoff_first
            assert bench.client.addrs == ()
            await asyncio.sleep(CONFIG.backoff_first + 0.1)
            assert isinstance(bench.last(), ReservationAccepted)
            assert bench.client.addrs

    @simulated
    async def test_back_off_doubles_to_a_minute(self) -> None:
        bench = Bench()
        bench.dial_error = DialFailed("relay")
        async with bench:
            await asyncio.sleep(1000)
            gaps = [round(b - a, 3) for a, b in zip(bench.dialled, bench.dialled[1:], strict=False)]
            assert gaps[:4] == [5, 10, 12, 12], "a restart is waited for closely"
            assert gaps[-2:] == [60, 60], "and then it is none"
            assert all(isinstance(event, ReservationLost) for _, event in bench.events)

    @simulated
    async def test_back_off_is_drawn_from_all_of_it(self) -> None:
        for share, expected in ((0.0, [0.1, 0.1, 0.1]), (0.5, [2.55, 5.05, 6.05])):
            bench = Bench(share=share)
            bench.dial_error = DialFailed("relay")
            async with bench:
                await asyncio.sleep(20)
                gaps = [round(b - a, 3) for a, b in zip(bench.dialled, bench.dialled[1:], strict=False)]
                assert gaps[:3] == expected

    @simulated
    async def test_a_relay_that_refuses_is_left_alone_for_longer(self) -> None:
        bench = Bench()
        bench.reserve_error = ReservationRefused("full")
        async with bench:
            await asyncio.sleep(3000)
            gaps = [round(b - a) for a, b in zip(bench.dialled, bench.dialled[1:], strict=False)]
            assert max(gaps) == 300
            assert bench.client.addrs == ()

    @simulated
    async def test_a_relay_that_takes_us_and_drops_us_is_not_hammered(self) -> None:
        async with Bench() as bench:
            for _ in range(200):
                await asyncio.sleep(1)
                bench.connection.abort()
            assert len(bench.dialled) < 20

    @simulated
    async def test_failures_are_forgotten_once_it_held_for_a_while(self) -> None:
        bench = Bench()
        bench.dial_error = DialFailed("relay")
        async with bench:
            await asyncio.sleep(40)
            bench.dial_error = None
            await asyncio.sleep(100)
            assert isinstance(bench.last(), ReservationAccepted)
            bench.connection.abort()
            await asyncio.sleep(0.001)
            assert bench.last().retry_in == CONFIG.backoff_first

    @simulated
    async def test_a_relay_that_is_removed_is_left(self) -> None:
        async with Bench() as bench:
            await bench.client.remove(AT)
            await asyncio.sleep(10_000)
            assert len(bench.reserved) == 1
            assert bench.client.relays == ()

    @simulated
    async def test_each_failure_is_told_and_whether_the_place_is_held_in_spite_of_it(self) -> None:
        bench = Bench(ttl=1200)
        told: list[tuple[float, str, bool]] = []
        bench.client.add(AT, on_trouble=lambda error, held: told.append((now(), str(error), held)))
        async with bench:
            bench.reserve_error = ReservationRefused("draining")
            await asyncio.sleep(903)
            assert told == [(900.0, "draining", True)]
            bench.connection.abort()
            await asyncio.sleep(0.1)
            assert told[1:] == [(903.001, "the connection to the relay was lost: closed", False)]

    @simulated
    async def test_a_relay_may_have_a_dial_of_its_own(self) -> None:
        bench = Bench()
        dialled: list[Multiaddr] = []

        async def dial(relay: Multiaddr) -> End:
            dialled.append(relay)
            return await bench._dial(relay)

        bench.client.add(AT, dial=dial)  # type: ignore[arg-type]
        async with bench:
            assert dialled == [AT]
            assert bench.client.addrs


class TestTold:
    """Of what a relay calls its own addresses."""

    @simulated
    async def test_those_that_may_be(self) -> None:
        bench = Bench()
        bench.client.add(AT, may_tell=lambda addr: False)
        async with bench:
            assert bench.client.addrs == (Multiaddr(f"{AT}/p2p-circuit/p2p/{ALICE.peer_id}"),)

    @simulated
    async def test_so_many_at_the_limit_and_one_past(self) -> None:
        for count, expected in ((MAX_TOLD, MAX_TOLD), (MAX_TOLD + 1, MAX_TOLD)):
            bench = Bench()
            bench.told = tuple(
                Multiaddr(f"/ip4/9.8.7.7/tcp/{port}/p2p/{RELAY.peer_id}") for port in range(1, count + 1)
            )
            async with bench:
                assert len(bench.client.addrs) == 1 + expected


class TestHurry:
    """Our own network has changed."""

    @simulated
    async def test_who_waits_to_try_again_does_so_in_a_moment(self) -> None:
        bench = Bench()
        bench.dial_error = DialFailed("relay")
        async with bench:
            await asyncio.sleep(900)
            before = len(bench.dialled)
            bench.dial_error = None
            bench.client.hurry()
            await asyncio.sleep(CONFIG.hurry + 0.1)
            assert len(bench.dialled) == before + 1
            assert isinstance(bench.last(), ReservationAccepted)

    @simulated
    async def test_what_is_held_is_refreshed_at_once_but_not_again_and_again(self) -> None:
        async with Bench() as bench:
            await asyncio.sleep(100)
            bench.client.hurry()
            await asyncio.sleep(1)
            assert [round(at) for at in bench.reserved] == [0, 100]
            for _ in range(20):
                bench.client.hurry()
                await asyncio.sleep(0.5)
            assert len(bench.reserved) == 2
            await asyncio.sleep(10)
            bench.client.hurry()
            await asyncio.sleep(1)
            assert len(bench.reserved) == 3
