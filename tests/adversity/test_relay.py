"""Circuits that break: every byte of the handshake inside, limits to the byte, each of the three gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any

import pytest

from flare._core.wire import decode_uvarint
from flare.config import KIB, MIB, Config, Rate, RelayLimits
from flare.errors import (
    AuthenticationFailed,
    ConnectionClosed,
    DialFailed,
    FlareError,
    PeerHasNoReservation,
    PermissionDenied,
    ProtocolNotSupported,
    ProtocolViolation,
    RelayConnectionFailed,
    StreamClosed,
    StreamReset,
    TimedOut,
)
from flare.events import ReservationLost
from flare.host import Host
from flare.protocols.relay import HOP_PROTOCOL, STOP_PROTOCOL, connect, reserve
from flare.relay_server import RelayServer
from flare.transport.circuit import StreamChannel
from flare.transport.noise import RecordSecrets
from flare.transport.stream import Stream
from flare.transport.upgrade import RecordChannel, upgrade
from flare.wire.messages import HopMessage, Status, StopMessage
from tests.adversity.circuits import Relayed, relayed, serve_raw, touching
from tests.adversity.scene import LOOPBACK, PATIENCE, QUICK, SLACK, once, scene
from tests.support import bad_peers
from tests.support.aio import aio, eventually, run
from tests.support.hostile import SYN, WINDOW, header
from tests.support.proxy import Cut, Fault, Mangle, Plan, Stall

UP, DOWN = 248, 246  # bytes of the handshake from the dialler, and from the listener
ENDED = (ConnectionClosed, StreamClosed, StreamReset, TimedOut)


async def attempt(
    there: Relayed, dialler: Host, plans: dict[Any, Plan], plan: Plan
) -> tuple[BaseException | None, bool]:
    """Connect through the touching relay; the error, and whether it connected before that."""
    plans[dialler.peer_id] = plan
    try:
        connection = await dialler.connect(there.addr)
    except DialFailed as failed:
        return failed.attempts[0][1], False
    async with asyncio.timeout(2 * PATIENCE + SLACK + 2):
        await connection.wait_closed()
    return connection.close_reason, True


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["flip", "reset", "fin", "stall"])
def test_every_byte_of_the_handshake_inside(direction: str, kind: str) -> None:
    end = UP if direction == "up" else DOWN

    every: dict[str, list[Fault]] = {
        "flip": [Mangle(at, at * 5 % 8) for at in range(end + 30)],
        "reset": [Cut(at, reset=True) for at in range(0, end + 30, 3)],
        "fin": [Cut(at) for at in range(0, end + 30, 3)],
        "stall": [Stall(at) for at in (0, 19, 28, 30, 62, 64, end - 1, end, end + 10)],
    }
    waiting = every[kind]
    allowed = (*ENDED, ProtocolViolation, ProtocolNotSupported) if kind == "flip" else ENDED
    plans: dict[Any, Plan] = {}

    async def drive(there: Relayed, dialler: Host) -> None:
        while waiting:
            fault = waiting.pop()
            assert isinstance(fault.at, int)
            plan = Plan(**{direction: [fault]})
            began = time.monotonic()
            error, connected = await attempt(there, dialler, plans, plan)
            assert time.monotonic() - began < 2 * PATIENCE + SLACK + 2, plan
            assert isinstance(error, allowed), f"{plan}: {error!r}"
            if not connected and kind == "flip" and direction == "down" and fault.at >= 30:
                assert isinstance(error, AuthenticationFailed), f"{plan}: {error!r}"

    async def main() -> None:
        async with relayed(
            RelayLimits(max_circuits_per_peer=100, circuit_rate_per_peer=Rate(), circuit_rate_per_ip=Rate()),
            lanes=12,
        ) as there:
            async with asyncio.TaskGroup() as group:
                for lane in there.scene.lanes:
                    group.create_task(drive(there, lane.host))
            await eventually(lambda: there.server.circuits == 0)
            only = {there.relay.peer_id}
            await eventually(lambda: set(there.listener._connections) == only, timeout=5)
            plans.clear()
            connection = await there.scene.lanes[0].host.connect(there.addr)
            assert connection.is_relayed, "the next one through the same relay works"
            for lane in there.scene.lanes:
                await asyncio.gather(*(connection.close() for connection in lane.host.connections))

    with touching(plans):
        run(main(), timeout=40)


class TestRequests:
    @once
    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    async def test_bad_requests_to_the_relay(self, misbehave: bad_peers.Misbehave) -> None:
        async with relayed() as there, Host(listen=[], punch=False) as hostile:
            connection = await hostile.connect(there.relay.full_addrs[0])
            stream = await connection.open_stream(HOP_PROTOCOL)
            acting = asyncio.ensure_future(misbehave(stream))
            began = time.monotonic()
            with contextlib.suppress(StreamReset, StreamClosed, ConnectionClosed):
                answer = HopMessage.decode(await stream.read_frame(4096))
                assert answer.status in (Status.MALFORMED_MESSAGE, Status.UNEXPECTED_MESSAGE)
            assert time.monotonic() - began < PATIENCE + SLACK
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            assert await connection.ping() > 0

    @once
    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    async def test_targets_that_answer_badly(self, misbehave: bad_peers.Misbehave) -> None:
        async def hostile(stream: Stream) -> None:
            await stream.read_frame(4096)
            await misbehave(stream)
            await stream.connection.wait_closed()

        async with relayed() as there, Host(listen=[], punch=False) as dialler:
            there.listener.unhandle(STOP_PROTOCOL)
            there.listener.handle(STOP_PROTOCOL, hostile)
            through = await dialler.connect(there.relay.full_addrs[0])
            with pytest.raises(RelayConnectionFailed):
                await connect.connect(through, there.listener.peer_id, timeout=2 * PATIENCE + SLACK)

    @once
    @pytest.mark.parametrize("misbehave", bad_peers.EVERY, ids=bad_peers.name)
    async def test_relays_that_offer_badly(self, misbehave: bad_peers.Misbehave) -> None:
        async with relayed() as there:
            (connection,) = there.relay.connections_to(there.listener.peer_id)
            stream = await connection.open_stream(STOP_PROTOCOL)
            acting = asyncio.ensure_future(misbehave(stream))
            with contextlib.suppress(StreamReset, StreamClosed, ConnectionClosed):
                async with asyncio.timeout(PATIENCE + SLACK):
                    answer = StopMessage.decode(await stream.read_frame(4096))
                assert answer.status in (Status.MALFORMED_MESSAGE, Status.UNEXPECTED_MESSAGE)
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            assert await connection.ping() > 0
            assert there.server.reservations == 1

    @aio
    async def test_a_stranger_that_offers_a_circuit(self) -> None:
        async with relayed() as there, Host(listen=[], punch=False) as stranger:
            direct = next(addr for addr in there.listener.full_addrs if not addr.is_circuit)
            connection = await stranger.connect(direct)
            async with connection.open_stream(STOP_PROTOCOL) as stream:
                wire = await stream.read(4096)
            size, at = decode_uvarint(wire)
            assert StopMessage.decode(wire[at : at + size]).status == Status.PERMISSION_DENIED

    @aio
    async def test_a_reservation_over_a_circuit_is_refused(self) -> None:
        limits = RelayLimits.unlimited()
        async with (
            relayed(limits) as there,
            Host(listen=[], punch=False) as client,
            RelayServer(there.listener) as second,
        ):
            connection = await client.connect(there.addr)
            assert connection.is_relayed
            with pytest.raises(PermissionDenied):
                await reserve.reserve(connection)
            assert second.reservations == 0

    @aio
    async def test_a_reservation_ends_with_its_connection(self) -> None:
        async with relayed() as there, Host(listen=[], punch=False) as dialler:
            target = there.listener.peer_id
            await there.listener.close()
            await eventually(lambda: there.server.reservations == 0)
            through = await dialler.connect(there.relay.full_addrs[0])
            with pytest.raises(PeerHasNoReservation):
                await connect.connect(through, target)


class TestLimits:
    @once
    @pytest.mark.parametrize("extra", [0, 1])
    @pytest.mark.parametrize("direction", ["up", "down"])
    async def test_the_last_byte_and_one_more(self, extra: int, direction: str) -> None:
        limit = 128 * KIB
        got: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        config = replace(Config(), mux=QUICK.mux)

        async def count(stream: Stream) -> None:
            total = 0
            try:
                while data := await stream.read():
                    total += len(data)
                got.set_result((total, "end"))
            except FlareError as error:
                got.set_result((total, type(error).__name__))

        async def send(stream: Stream) -> None:
            with contextlib.suppress(StreamReset):
                await stream.write(bytes(limit))
                await stream.write(bytes(extra))
                await stream.close_write()
                await stream.read()

        async with relayed(RelayLimits(), config=config) as there, Host(listen=[], punch=False) as dialler:
            serve_raw(there.listener, count if direction == "up" else send)
            stream, told = await there.raw(dialler)
            assert told is not None
            assert told.data == limit
            await (send if direction == "up" else count)(stream)
            assert await got == (limit, "StreamReset" if extra else "end")
            stream.reset()

    @once
    async def test_the_deadline(self) -> None:
        async with relayed(RelayLimits(circuit_duration=1)) as there, Host(listen=[], punch=False) as dialler:
            ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

            async def wait(stream: Stream) -> None:
                with contextlib.suppress(StreamReset):
                    await stream.read()
                ended.set_result(time.monotonic())

            serve_raw(there.listener, wait)
            began = time.monotonic()
            stream, _ = await there.raw(dialler)
            with pytest.raises(StreamReset):
                await stream.read()
            assert 0.9 < time.monotonic() - began < 1 + SLACK
            assert 0.9 < await ended - began < 1 + SLACK

    @aio
    async def test_a_target_that_never_reads(self) -> None:
        """The relay holds no more than the windows, and other circuits flow."""
        config = replace(Config(), mux=QUICK.mux)
        limits = RelayLimits.unlimited()
        async with relayed(limits, config=config) as there, Host(listen=[], punch=False) as dialler:
            stalled = asyncio.Event()

            async def unread(stream: Stream) -> None:
                if not stalled.is_set():
                    stalled.set()
                    await stream.connection.wait_closed()
                while data := await stream.read():
                    await stream.write(data)

            serve_raw(there.listener, unread)
            blocked, _ = await there.raw(dialler)
            writing = asyncio.ensure_future(blocked.write(bytes(16 * MIB)))
            await stalled.wait()
            await asyncio.sleep(0.2)
            assert not writing.done()
            held = sum(c.link.stats.buffered + c.link.stats.unsent for c in there.relay.connections)
            assert held <= MIB, "a window at each end, and no more"
            flowing, _ = await there.raw(dialler)
            for _ in range(20):
                await flowing.write(bytes(64 * KIB))
                await flowing.read_exactly(64 * KIB)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            blocked.reset()
            flowing.reset()


class TestLosses:
    @aio
    async def test_the_target_resets(self) -> None:
        async with relayed() as there, Host(listen=[], punch=False) as dialler:

            async def reset(stream: Stream) -> None:
                await stream.read(1)
                stream.reset()

            serve_raw(there.listener, reset)
            stream, _ = await there.raw(dialler)
            await stream.write(b"x")
            with pytest.raises(StreamReset):
                await stream.read()

    @aio
    async def test_the_target_is_gone(self) -> None:
        async with relayed() as there, Host(listen=[], punch=False) as dialler:
            connection = await dialler.connect(there.addr)
            there.listener.direct_to(there.relay.peer_id).abort()  # type: ignore[union-attr]
            async with asyncio.timeout(SLACK):
                await connection.wait_closed()
            assert isinstance(connection.close_reason, FlareError)
            await eventually(lambda: there.server.reservations == 1, "and it comes back")

    @aio
    async def test_the_relay_dies_and_comes_back(self) -> None:
        async with (
            scene(lanes=0),
            Host(listen=[], config=QUICK, punch=False) as dialler,
            Host(listen=[LOOPBACK], punch=False) as first,
        ):
            at = first.full_addrs[0]
            async with (
                RelayServer(first),
                Host(listen=[], relays=[at], config=QUICK, punch=False) as listener,
            ):
                news: list[Any] = []
                listener.on_event(news.append)
                await eventually(lambda: any(addr.is_circuit for addr in listener.addrs))
                connection = await dialler.connect(f"{at}/p2p-circuit/p2p/{listener.peer_id}")
                await first.close()
                async with asyncio.timeout(SLACK):
                    await connection.wait_closed()
                await eventually(lambda: any(isinstance(event, ReservationLost) for event in news))
                assert not any(addr.is_circuit for addr in listener.addrs), "it is no longer told"
                where = str(at).partition("/p2p/")[0]
                async with (
                    Host(identity=first.identity, listen=[where], punch=False) as again,
                    RelayServer(again) as server,
                ):
                    await eventually(lambda: server.reservations == 1, "reserved anew", timeout=5)
                    await eventually(lambda: any(addr.is_circuit for addr in listener.addrs))
                    again_connected = await dialler.connect(f"{at}/p2p-circuit/p2p/{listener.peer_id}")
                    assert again_connected.is_relayed


class TestPeersInside:
    """What one end of a circuit may do to the other: the relay carries it all, and does not see it."""

    @once
    async def test_a_flood_of_streams_from_a_peer_that_never_reads(self) -> None:
        config = replace(Config(), mux=replace(QUICK.mux, max_streams=4, send_high_water=64 * KIB))
        limits = RelayLimits.unlimited()
        async with relayed(limits, config=config) as there, Host(listen=[], punch=False) as dialler:
            stream, _ = await there.raw(dialler)
            channel = StreamChannel(stream, "the listener")
            upgraded = await upgrade(
                channel,
                dialler.identity,
                initiator=True,
                expected_peer=None,
                timeouts=config.timeouts,
                security=("noise",),
            )
            assert isinstance(upgraded.records, RecordSecrets)
            records = RecordChannel(channel, upgraded.records)
            await eventually(lambda: there.listener.connections_to(dialler.peer_id))
            (connection,) = there.listener.connections_to(dialler.peer_id)

            async def flood() -> None:
                with contextlib.suppress(FlareError):
                    for first in range(1, 1 << 22, 10000):
                        opened = range(first, first + 10000, 2)
                        await records.write(b"".join(header(WINDOW, SYN, n, 0) for n in opened))

            flooding = asyncio.ensure_future(flood())
            most = 0
            for _ in range(150):
                await asyncio.sleep(0.01)
                most = max(most, connection.link.unsent)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            stream.reset()
            assert connection.link.stats.refused_streams > 10_000
            assert most < MIB, "a mark of 64 KiB, the slack for control frames, one receive"
