"""A relay's limits, lists and rates over real hosts: at each and one past it, with the status peers see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

import flare
from flare.errors import PermissionDenied, RelayRefused, ReservationRefused, ResourceLimitExceeded
from flare.events import CircuitClosed
from flare.protocols.relay.reserve import reserve
from tests.support.aio import aio, eventually
from tests.support.loopback import Seen, host, relay
from tests.support.relay_scene import Scene

NET = "127.0.0.0/8"
QUICK = flare.Rate(1 / 3600, 2)  # two at once, and then none while a test lives


class Relayed(Scene):
    """With the relay, which is in this process."""

    def __init__(self, stack: AsyncExitStack, relaying: flare.Host, server: flare.RelayServer) -> None:
        super().__init__(stack, relaying.full_addrs)
        self.server = server
        self.seen = Seen(relaying)


@asynccontextmanager
async def scene(limits: flare.RelayLimits | None = None, **how: object) -> AsyncIterator[Relayed]:
    async with AsyncExitStack() as stack:
        relaying, server = await stack.enter_async_context(relay(limits, **how))
        made = Relayed(stack, relaying, server)
        yield made
        for stream in made.streams:
            stream.reset()


async def refused(request: object, kind: type[RelayRefused]) -> None:
    with pytest.raises(kind):
        await request  # type: ignore[misc]


class TestReservations:
    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (flare.RelayLimits(max_reservations=2), "max_reservations"),
            (flare.RelayLimits(max_reservations_per_ip=2), "max_reservations_per_ip"),
            (flare.RelayLimits(reservation_rate_per_ip=QUICK), "reservation_rate_per_ip"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @aio
    async def test_two_and_one_past_it(self, limits: flare.RelayLimits, reason: str) -> None:
        async with scene(limits) as there:
            for _ in range(2):
                await there.reserved()
            await refused(there.reserved(), ReservationRefused)
            assert there.server.counters.reserve_refused == {reason: 1}
            assert there.server.reservations == 2

    @aio
    async def test_refreshes_two_and_one_past_it(self) -> None:
        async with scene(flare.RelayLimits(reservation_rate_per_peer=QUICK)) as there:
            connection = await there.reserved()
            await reserve(connection)
            await refused(reserve(connection), ReservationRefused)
            await there.reserved()
            assert there.server.counters.reserve_refused == {"reservation_rate_per_peer": 1}

    @aio
    async def test_a_second_connection_of_one_peer_takes_its_place(self) -> None:
        async with scene(flare.RelayLimits(max_reservations_per_peer=1, max_reservations=1)) as there:
            identity = flare.Identity.generate()
            await there.reserved(identity)
            await there.reserved(identity)
            assert there.server.reservations == 1


class TestCircuits:
    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (flare.RelayLimits(max_circuits=2), "max_circuits"),
            (flare.RelayLimits(max_circuits_per_peer=2), "max_circuits_per_peer"),
            (flare.RelayLimits(max_circuits_per_ip=2), "max_circuits_per_ip"),
            (flare.RelayLimits(circuit_rate_per_peer=QUICK), "circuit_rate_per_peer"),
            (flare.RelayLimits(circuit_rate_per_ip=QUICK), "circuit_rate_per_ip"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @aio
    async def test_two_and_one_past_it(self, limits: flare.RelayLimits, reason: str) -> None:
        async with scene(limits) as there:
            target, source = await there.reserved(), await there.peer()
            for _ in range(2):
                await there.circuit(source, target)
            await refused(there.circuit(source, target), ResourceLimitExceeded)
            assert there.server.counters.connect_refused == {reason: 1}
            assert there.server.circuits == 2


class TestLists:
    @aio
    async def test_who_is_not_allowed(self) -> None:
        friend = flare.Identity.generate()
        async with scene(acl=flare.AccessList(allow=flare.PeerList([friend.peer_id]))) as there:
            target, stranger = await there.reserved(friend), await there.peer()
            await refused(reserve(stranger), PermissionDenied)
            await refused(there.circuit(stranger, target), PermissionDenied)
            assert there.server.counters.connect_refused == {"denied": 1}

    @aio
    async def test_a_denied_network(self) -> None:
        async with scene(acl=flare.AccessList(deny=flare.PeerList([NET]))) as there:
            await refused(there.reserved(), PermissionDenied)

    @aio
    async def test_who_is_denied_later_loses_what_it_has(self) -> None:
        bad = flare.Identity.generate()
        async with scene() as there:
            good, target, source = await there.reserved(), await there.reserved(bad), await there.peer()
            lost, kept = await there.circuit(source, target), await there.circuit(source, good)
            there.server.update(acl=flare.AccessList(deny=flare.PeerList([bad.peer_id])))
            with pytest.raises(flare.StreamReset):
                await lost.read()
            await kept.write(b"still here")
            assert await kept.read_exactly(10) == b"still here"
            assert (there.server.reservations, there.server.circuits) == (1, 1)
            await refused(reserve(target), PermissionDenied)
            await refused(there.circuit(source, target), PermissionDenied)

    @aio
    async def test_unlimited_networks_carry_what_they_like(self) -> None:
        limits = flare.RelayLimits(
            max_circuits_per_peer=0, circuit_bytes=1000, byte_rate_per_peer=flare.Rate(1.0, 1)
        )
        async with scene(limits, unlimited=flare.PeerList([NET])) as there:
            target, source = await there.reserved(), await there.peer()
            stream = await there.circuit(source, target)
            await stream.write(bytes(50_000))
            assert len(await stream.read_exactly(50_000)) == 50_000


class TestBytes:
    @pytest.mark.parametrize("kind", ["byte_rate", "byte_rate_per_peer", "byte_rate_per_ip"])
    @aio
    async def test_a_circuit_goes_as_fast_as_its_bucket(self, kind: str) -> None:
        rate = flare.Rate(200_000, 1)
        async with scene(flare.RelayLimits(circuit_bytes=0, **{kind: rate})) as there:  # type: ignore[arg-type]
            target, source = await there.reserved(), await there.peer()
            stream = await there.circuit(source, target)
            began = time.monotonic()
            for _ in range(5):
                await stream.write(bytes(4000))
                await stream.read_exactly(4000)
            took = time.monotonic() - began
            assert took > 0.9 * 5 * 8000 / 200_000, "both directions count"

    @aio
    async def test_a_raised_cap_is_the_running_circuits_too(self) -> None:
        async with scene(flare.RelayLimits(byte_rate=flare.Rate(1.0, 1))) as there:
            target, source = await there.reserved(), await there.peer()
            stream = await there.circuit(source, target)
            await stream.write(bytes(50_000))
            there.server.update(flare.RelayLimits(byte_rate=flare.Rate(1e9)))
            assert len(await stream.read_exactly(50_000)) == 50_000


class TestEnd:
    @aio
    async def test_drain_waits_for_the_last_circuit(self) -> None:
        async with scene() as there:
            target, source = await there.reserved(), await there.peer()
            stream = await there.circuit(source, target)
            draining = asyncio.create_task(there.server.drain())
            await eventually(lambda: there.server.draining)
            await refused(there.circuit(source, target), ResourceLimitExceeded)
            await refused(reserve(source), ReservationRefused)
            await stream.write(b"the last words")
            assert await stream.read_exactly(14) == b"the last words"
            assert not draining.done()
            await stream.close()
            assert await draining == 0
            assert (await there.seen.first(CircuitClosed)).reason == "closed"

    @aio
    async def test_drain_ends_those_that_do_not(self) -> None:
        async with scene() as there:
            target, source = await there.reserved(), await there.peer()
            stream = await there.circuit(source, target)
            assert await there.server.drain(0.05) == 1
            with pytest.raises(flare.StreamReset):
                await stream.read()

    @aio
    async def test_the_end_of_the_block_ends_its_circuits(self) -> None:
        async with AsyncExitStack() as stack:
            relaying = await stack.enter_async_context(host())
            async with flare.RelayServer(relaying) as server:
                there = Relayed(stack, relaying, server)
                target, source = await there.reserved(), await there.peer()
                stream = await there.circuit(source, target)
                await stream.write(b"x")
                assert await stream.read() == b"x"
            with pytest.raises(flare.StreamReset):
                await stream.read()
            assert (await there.seen.first(CircuitClosed)).reason == "cancelled"
            assert not source.closed


@aio
async def test_data_threads_share_the_buckets() -> None:
    cap = 2_000_000
    config = flare.Config(data_threads=2)
    limits = flare.RelayLimits(
        circuit_bytes=0, max_circuits_per_peer=100, byte_rate=flare.Rate(cap, 1), max_reservations_per_ip=100
    )
    async with AsyncExitStack() as stack:
        relaying = await stack.enter_async_context(host(config=config))
        server = await stack.enter_async_context(flare.RelayServer(relaying, limits))
        there = Relayed(stack, relaying, server)
        circuits = [await there.circuit(await there.peer(), await there.reserved()) for _ in range(4)]
        got = [0] * len(circuits)
        began = time.monotonic()

        async def sink(i: int) -> None:
            while data := await circuits[i].read():
                got[i] += len(data)

        async def source(i: int) -> None:
            while True:
                await circuits[i].write(bytes(16_384))

        tasks = [asyncio.create_task(work(i)) for i in range(len(circuits)) for work in (sink, source)]
        await eventually(lambda: sum(got) > 500_000, timeout=15)
        took = time.monotonic() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 2 * sum(got) <= took * cap + 8 * 65_536, "there and back, of all threads together"
        assert min(got) > 0.4 * max(got), got
        for stream in circuits:
            stream.reset()
