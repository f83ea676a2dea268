"""/ipfs/ping/1.0.0 (ping.md, "Protocol")."""

from __future__ import annotations

import asyncio

import pytest

from flare.errors import ProtocolViolation, StreamClosed, StreamReset, TimedOut
from flare.lab import virtual
from flare.protocols import ping
from flare.transport.stream import Stream
from tests.support.aio import aio
from tests.support.linked import linked, simulated
from tests.support.streams import stream_pair


@aio
async def test_a_ping_is_echoed_again_and_again_until_the_dialler_closes() -> None:
    near, far = stream_pair(chunk=5)
    serving = asyncio.create_task(ping.serve(far))
    pinger = ping.Pinger(near)
    for _ in range(3):
        assert 0 <= await pinger.ping() < 5
    await pinger.close()
    await serving


@simulated
async def test_the_round_trip_is_measured_from_write_to_echo() -> None:
    near, far = linked(latency=0.15)
    far.handlers[ping.PROTOCOL] = ping.serve
    async with near.open_stream(ping.PROTOCOL) as stream:
        assert await ping.Pinger(stream, clock_ns=virtual.monotonic_ns).ping() == pytest.approx(0.3)
    await asyncio.sleep(1)


@aio
async def test_ping_of_a_connection_uses_a_stream_of_its_own_and_may_run_on_limited_ones() -> None:
    near, far = linked(limit=object())
    far.handlers[ping.PROTOCOL] = ping.serve
    assert await ping.ping(near) >= 0  # type: ignore[arg-type]
    assert near.opened == [ping.PROTOCOL]


@aio
async def test_an_echo_that_differs_is_a_violation() -> None:
    near, far = stream_pair()
    asking = asyncio.create_task(ping.Pinger(near).ping())
    await far.read_exactly(ping.SIZE)
    await far.write(bytes(ping.SIZE))
    with pytest.raises(ProtocolViolation, match="echo differs"):
        await asking


@simulated
async def test_a_silent_peer_is_timed_out() -> None:
    near, _ = stream_pair()
    with pytest.raises(TimedOut, match=r"ping took longer than 10 s"):
        await ping.Pinger(near).ping()


@aio
async def test_a_peer_that_closes_within_a_ping_is_told_apart_from_one_that_is_done() -> None:
    near, far = stream_pair()
    await near.write(bytes(ping.SIZE - 1))
    await near.close_write()
    with pytest.raises(StreamClosed):
        await ping.serve(far)


class TestPingServer:
    """The listening peer SHOULD accept at most two streams per peer."""

    @aio
    async def test_two_streams_are_served_and_a_third_is_reset(self) -> None:
        connection, _ = linked()
        server = ping.PingServer()
        pairs = [stream_pair(near=connection, far=connection) for _ in range(3)]
        tasks = [asyncio.create_task(server.serve(far)) for _, far in pairs]
        for near, _ in pairs[:2]:
            assert await ping.Pinger(near).ping() >= 0
        with pytest.raises(StreamReset):
            await ping.Pinger(pairs[2][0]).ping()
        for near, _ in pairs[:2]:
            await near.close()
        await asyncio.gather(*tasks)
        again, far = stream_pair(near=connection, far=connection)
        task = asyncio.create_task(server.serve(far))
        assert await ping.Pinger(again).ping() >= 0
        await again.close()
        await task

    @simulated
    async def test_a_stream_held_for_nothing_is_reset_after_a_minute(self) -> None:
        connection, _ = linked()
        near, far = stream_pair(near=connection, far=connection)
        await ping.PingServer().serve(far)
        assert asyncio.get_running_loop().time() == pytest.approx(60)
        with pytest.raises(StreamReset):
            await near.read()

    @simulated
    async def test_a_ping_in_drops_is_bounded_by_the_same_minute(self) -> None:
        connection, _ = linked()
        near, far = stream_pair(near=connection, far=connection)

        async def drip(stream: Stream) -> None:
            for _ in range(20):
                await stream.write(b"x")
                await asyncio.sleep(10)

        dripping = asyncio.create_task(drip(near))
        await ping.PingServer().serve(far)
        assert asyncio.get_running_loop().time() == pytest.approx(60)
        with pytest.raises(StreamReset):
            await dripping
