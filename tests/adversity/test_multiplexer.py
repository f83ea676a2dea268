"""Peers past the handshake that break yamux, flood it or starve it, and bad answers to identify."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from flare.config import KIB, MIB, Config
from flare.errors import AuthenticationFailed, ConnectionClosed, ProtocolViolation
from flare.events import Event, PeerIdentified
from flare.host import Host
from flare.protocols import identify
from flare.transport import multistream
from flare.transport.connection import Connection
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from tests.adversity.scene import PATIENCE, QUICK, SLACK, Scene, once, scene
from tests.support.aio import aio, eventually, run
from tests.support.hostile import (
    ACK,
    DATA,
    FIN,
    GOAWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    WINDOW_SIZE,
    Client,
    client,
    data,
    ends,
    header,
)

LENIENT = replace(Config(), mux=QUICK.mux)  # short keepalive, long everything else

VIOLATIONS = {
    "a frame of a version other than 0": [header(PING, SYN, 0, 1, version=1)],
    "a frame of an unknown type": [header(4, 0, 0, 0)],
    "a frame with unknown flags": [header(WINDOW, 16 | SYN, 1, 0)],
    "a stream frame for stream 0": [header(DATA, SYN, 0, 0)],
    "a session frame with a stream id": [header(PING, SYN, 1, 0)],
    "a stream opened with an id of our parity": [header(WINDOW, SYN, 100, 0)],
    "a stream opened twice": [header(WINDOW, SYN, 1, 0), header(WINDOW, SYN, 1, 0)],
    "a frame for a stream that was never opened": [header(DATA, 0, 7, 1)],
    "more data than the window allows": [header(WINDOW, SYN, 1, 0), header(DATA, 0, 1, WINDOW_SIZE + 1)],
    "a window beyond 32 bits": [header(WINDOW, SYN, 1, 0), header(WINDOW, 0, 1, 0xFFFFFFFF)],
}
MORE = {
    "more data than the window allows": [header(DATA, SYN, 1, WINDOW_SIZE + 1)],
    "a frame for a stream that was never opened": [header(DATA, RST, 102, 0)],
}


@asynccontextmanager
async def stage(config: Config = LENIENT) -> AsyncIterator[tuple[Scene, Client, Connection]]:
    """A scene with a hostile client of its target, and the target's connection with that."""
    async with scene(lanes=0, config=config) as the_scene:
        identity = Identity.generate()
        async with client(the_scene.target.full_addrs[0], identity) as hostile:
            await eventually(lambda: the_scene.target.connections_to(identity.peer_id))
            yield the_scene, hostile, the_scene.target.connections_to(identity.peer_id)[0]


class TestViolations:
    @pytest.mark.parametrize(("what", "frames"), [*VIOLATIONS.items(), *MORE.items()])
    def test_each_ends_the_connection_and_is_named(self, what: str, frames: list[bytes]) -> None:
        async def main() -> None:
            async with stage() as (_, hostile, connection):
                await hostile.send(*frames)
                seen = await hostile.frames(SLACK)
                assert seen[-1].kind == GOAWAY, "the peer is told"
                assert seen[-1].length == 1, "protocol error"
                await connection.wait_closed()
                assert isinstance(connection.close_reason, ProtocolViolation)
                assert str(connection.close_reason) == f"yamux: the peer sent {what}"

        run(main())

    @pytest.mark.parametrize(
        "wire",
        [b"\0\0", b"\0\x0f" + bytes(15), b"\0\x10" + bytes(16), b"\xff\xff" + bytes(65535)],
        ids=["empty", "no tag", "no key", "64 KiB"],
    )
    def test_records_that_are_none(self, wire: bytes) -> None:
        async def main() -> None:
            async with stage() as (_, hostile, connection):
                with contextlib.suppress(ConnectionClosed):
                    await hostile.send_raw(wire)
                assert await ends(hostile.sock, SLACK)
                await connection.wait_closed()
                assert isinstance(connection.close_reason, AuthenticationFailed)

        run(main())

    @once
    async def test_a_record_that_never_ends(self) -> None:
        async with stage() as (_, hostile, connection):
            await hostile.send_raw(b"\xff\xff")
            async with asyncio.timeout(LENIENT.mux.keepalive + LENIENT.mux.keepalive_timeout + SLACK):
                while not connection.closed:
                    with contextlib.suppress(ConnectionClosed):
                        await hostile.send_raw(b"x")
                    await asyncio.sleep(0.05)
            assert "keepalive" in str(connection.close_reason)

    @once
    async def test_a_peer_that_hears_nothing(self) -> None:
        """It answers no ping, as one does whose machine lost power."""
        async with stage() as (_, _, connection):
            async with asyncio.timeout(LENIENT.mux.keepalive + LENIENT.mux.keepalive_timeout + SLACK):
                await connection.wait_closed()
            assert "keepalive" in str(connection.close_reason)


class TestFloods:
    @aio
    async def test_streams_at_the_limit_and_past_it(self) -> None:
        limit = 8
        config = replace(LENIENT, mux=replace(LENIENT.mux, max_streams=limit))
        async with stage(config) as (_, hostile, connection):
            await hostile.send(*(header(WINDOW, SYN, 2 * n + 1, 0) for n in range(limit)))
            await eventually(lambda: connection.link.stats.inbound_streams == limit)
            assert connection.link.stats.refused_streams == 0
            await hostile.send(*(header(WINDOW, SYN, 2 * n + 1, 0) for n in range(limit, 200)))
            await eventually(lambda: connection.link.stats.refused_streams == 200 - limit)
            assert connection.link.stats.inbound_streams == limit
            refused = {frame.stream for frame in await hostile.frames(0.2) if frame.flags & RST}
            assert {2 * n + 1 for n in range(limit, 200)} <= refused, "each is told"
            await hostile.send(*(header(WINDOW, RST, 2 * n + 1, 0) for n in range(limit)))
            await eventually(lambda: connection.link.stats.inbound_streams == 0)
            hostile._next = 1001
            assert await hostile.ping(), "and there is room again"

    @once
    async def test_streams_that_propose_nothing_are_reset_in_time(self) -> None:
        async with stage(QUICK) as (_, hostile, connection):
            await hostile.send(*(header(WINDOW, SYN, 2 * n + 1, 0) for n in range(50)))
            await eventually(lambda: connection.link.stats.inbound_streams == 50)
            streams = connection.link.stats
            assert streams.buffered == 0
            keep = asyncio.ensure_future(_keepalive(hostile))
            await eventually(lambda: connection.link.stats.inbound_streams == 0, timeout=PATIENCE + SLACK)
            keep.cancel()
            await asyncio.gather(keep, return_exceptions=True)
            assert not connection.closed

    @aio
    async def test_proposals_without_end_cost_the_stream(self) -> None:
        async with stage() as (_, hostile, _):
            stream = await hostile.open("/nobody/speaks/this", multistream.encode("/nor/this") * 100)
            refusals = await hostile.answers(stream, 1 << 20)
            assert refusals.count(b"\x03na\n") <= multistream.MAX_PROPOSALS
            assert await hostile.ping()

    @aio
    async def test_pings(self) -> None:
        async with stage() as (_, hostile, connection):
            for n in range(100):
                await hostile.send(*(header(PING, SYN, 0, 100 * n + i) for i in range(100)))
            pongs = [f for f in await hostile.frames(0.2) if f.kind == PING and f.flags == ACK]
            assert 1 <= len(pongs) < 2000, "answered in part"
            assert connection.link.unsent < MIB
            assert await hostile.ping()

    @aio
    async def test_pongs_to_nothing_and_credit_for_nothing(self) -> None:
        async with stage() as (_, hostile, _):
            await hostile.send(header(WINDOW, SYN, 1, 0), header(WINDOW, RST, 1, 0))
            for _ in range(20):
                await hostile.send(*(header(PING, ACK, 0, n) for n in range(200)))
                await hostile.send(*(header(WINDOW, 0, 1, 1 << 31) for _ in range(200)))
                await hostile.send(*(data(1, b"late") for _ in range(200)))
            hostile._next = 3
            assert await hostile.ping(), "frames of a stream that is gone are dropped"

    @aio
    async def test_a_byte_a_frame_a_record(self) -> None:
        async with stage() as (_, hostile, _):
            wire = multistream.proposal("/ipfs/ping/1.0.0") + bytes(range(32))
            await hostile.send(header(WINDOW, SYN, 1, 0))
            for at in range(len(wire)):
                await hostile.send(data(1, wire[at : at + 1]))
                await hostile.send(data(1, b""))
                await hostile.send()
            assert await hostile.answers(1, len(wire)) == wire

    @aio
    async def test_a_header_in_pieces(self) -> None:
        async with stage() as (_, hostile, _):
            frame = data(1, multistream.proposal("/ipfs/ping/1.0.0"), SYN)
            for at in range(len(frame)):
                await hostile.send(frame[at : at + 1])
            assert await hostile.answers(1, len(frame) - 12) == frame[12:]

    @once
    async def test_a_flood_of_streams_from_a_peer_that_never_reads(self) -> None:
        """Each refusal is a frame to it: what waits for it is bounded, and reading from it stops."""
        config = replace(Config(), mux=replace(LENIENT.mux, max_streams=4, send_high_water=64 * KIB))
        async with stage(config) as (the_scene, hostile, connection):
            hostile.sock.setsockopt(1, 8, 4096)  # SO_RCVBUF
            most = 0

            async def flood() -> None:
                for first in range(1, 1 << 21, 10000):
                    await hostile.send(*(header(WINDOW, SYN, n, 0) for n in range(first, first + 10000, 2)))

            flooding = asyncio.ensure_future(flood())
            pings = the_scene.bystander.pings
            for _ in range(100):
                await asyncio.sleep(0.01)
                most = max(most, connection.link.unsent)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            assert most < MIB, "a mark of 64 KiB, the slack for control frames, one receive"
            assert the_scene.bystander.pings > pings + 5, "others are served meanwhile"

    @aio
    async def test_data_that_nobody_reads_is_held_up_by_its_window(self) -> None:
        async def idle(stream: Stream) -> None:
            await stream.connection.wait_closed()

        async with stage() as (the_scene, hostile, connection):
            the_scene.target.handle("/idle", idle)
            for _ in range(8):
                stream = await hostile.open("/idle")
                await hostile.answers(stream, 27)
                filled = WINDOW_SIZE - len(multistream.proposal("/idle"))
                for at in range(0, filled, 32 * KIB):
                    await hostile.send(data(stream, bytes(min(32 * KIB, filled - at))))
            await eventually(lambda: connection.link.stats.buffered == 8 * filled)
            assert await hostile.ping(), "the other streams go on"
            await hostile.send(data(stream, b"x"))
            await connection.wait_closed()
            assert "more data than the window allows" in str(connection.close_reason)


class TestStreams:
    @aio
    async def test_data_after_the_end_costs_the_stream_only(self) -> None:
        async with stage() as (_, hostile, _):
            stream = await hostile.open("/ipfs/ping/1.0.0", bytes(32))
            await hostile.send(header(DATA, FIN, stream, 0), data(stream, b"more"))
            assert await hostile.ping()

    @once
    async def test_an_id_that_is_used_again_after_its_stream_is_gone(self) -> None:
        async with stage() as (_, hostile, connection):
            for _ in range(20):
                hostile._next = 1
                assert await hostile.ping()
                await hostile.send(header(WINDOW, RST, 1, 0))
                await eventually(lambda: connection.link.stats.inbound_streams == 0)

    @aio
    async def test_a_goodbye_without_going(self) -> None:
        async with stage() as (_, hostile, connection):
            await hostile.send(header(GOAWAY, 0, 0, 2))
            assert await hostile.ping(), "its own streams are served on"
            with pytest.raises(ConnectionClosed, match="go-away"):
                await connection.open_stream("/x")

    @aio
    async def test_every_stream_ends_with_the_connection(self) -> None:
        async with stage() as (_, hostile, connection):
            for _ in range(20):
                await hostile.open("/ipfs/ping/1.0.0")
            await eventually(lambda: connection.link.stats.inbound_streams >= 2)
            hostile.sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: RST
            hostile.sock.close()
            await connection.wait_closed()
            assert not connection.streams


async def _keepalive(hostile: Client) -> None:
    """Answer its pings, as a live peer does."""
    while True:
        frame = await hostile.frame()
        if frame.kind == PING and frame.flags == SYN:
            await hostile.send(header(PING, ACK, 0, frame.length))


# Identify


async def endless(stream: Stream) -> None:
    while True:
        await stream.write(bytes(64 * KIB))


async def a_byte_too_much(stream: Stream) -> None:
    await stream.write(b"\x80\x80\x04" + bytes(64 * KIB - 2))
    await stream.close_write()


async def garbage(stream: Stream) -> None:
    await stream.write(b"\x05\xff\xff\xff\xff\xff")
    await stream.close_write()


async def eleven(stream: Stream) -> None:
    await stream.write(b"\x00" * 11)
    await stream.close_write()


async def nothing(stream: Stream) -> None:
    await stream.close_write()


async def half(stream: Stream) -> None:
    await stream.write(b"\x20\x2a")
    await stream.close_write()


async def silent(stream: Stream) -> None:
    with contextlib.suppress(OSError):
        await stream.read()


async def slow(stream: Stream) -> None:
    for _ in range(50):
        await stream.write(b"\x01")
        await asyncio.sleep(0.1)


async def reset(stream: Stream) -> None:
    stream.reset()


BAD_IDENTIFY = [endless, a_byte_too_much, garbage, eleven, nothing, half, silent, slow, reset]


class TestIdentify:
    @once
    @pytest.mark.parametrize("answer", BAD_IDENTIFY, ids=lambda answer: answer.__name__)
    async def test_a_bad_answer_costs_the_stream_and_is_over_in_time(self, answer: object) -> None:
        async with scene(lanes=0) as the_scene, Host(listen=[], punch=False) as hostile:
            events: list[Event] = []
            the_scene.target.on_event(events.append)
            hostile.unhandle(identify.PROTOCOL)
            hostile.handle(identify.PROTOCOL, answer)  # type: ignore[arg-type]
            await hostile.connect(the_scene.target.full_addrs[0])
            await eventually(lambda: the_scene.target.connections_to(hostile.peer_id))
            (connection,) = the_scene.target.connections_to(hostile.peer_id)
            await eventually(lambda: not len(the_scene.target._tasks), timeout=2 * PATIENCE + SLACK)
            assert not any(isinstance(e, PeerIdentified) and e.peer == hostile.peer_id for e in events)
            assert not connection.closed, "it may still be good for something else"
            assert await connection.ping() > 0
            await eventually(lambda: connection.link.stats.buffered == 0)

    @aio
    async def test_a_flood_of_pushes(self) -> None:
        async with scene(lanes=0) as the_scene, Host(listen=[], punch=False) as hostile:
            connection = await hostile.connect(the_scene.target.full_addrs[0])

            async def push(payload: bytes) -> None:
                with contextlib.suppress(OSError):
                    async with connection.open_stream(identify.PUSH_PROTOCOL) as stream:
                        await stream.write(payload)

            payloads = [b"", b"\0", b"\x05\xff\xff\xff\xff\xff", b"\xff" * 20, bytes(70 * KIB), b"\x02\x1a\0"]
            await asyncio.gather(*(push(payload) for payload in payloads))
            assert await connection.ping() > 0
            await asyncio.gather(*(push(payloads[n % len(payloads)]) for n in range(120)))
            await eventually(lambda: connection.closed, "it is cut off")
