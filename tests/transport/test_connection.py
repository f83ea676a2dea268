"""Connections and their streams over real links: opening, serving, ending, and many at once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from flare.config import Config, Timeouts
from flare.errors import (
    ConnectionClosed,
    LimitedConnection,
    NetworkError,
    ProtocolNotSupported,
    PunchFailed,
    StreamClosed,
    StreamReset,
    TimedOut,
    UsageError,
)
from flare.transport.connection import StreamHandlers
from flare.transport.stream import Stream
from flare.wire.messages import Limit
from tests.support.aio import aio, eventually
from tests.support.hosts import Node

QUICK = Config(timeouts=replace(Timeouts(), negotiate=0.2, close=0.5, handshake=0.5))


class TestOpening:
    @aio
    async def test_both_sides_know_what_the_connection_is(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            assert (near.local_peer, near.remote_peer) == (a.peer_id, b.peer_id)
            assert (far.local_peer, far.remote_peer) == (b.peer_id, a.peer_id)
            assert far.remote_key == a.identity.public_key
            assert near.initiator
            assert not far.initiator
            assert near.local_addr == far.remote_addr
            assert far.local_addr == near.remote_addr == b.addr.without_peer()
            assert near.path == far.path == "direct/tcp"
            assert (near.security, near.muxer) == ("/tls/1.0.0", "/yamux/1.0.0")
            assert not near.is_limited
            assert not near.is_relayed
            assert near.relay is None
            assert near.opened_at > 1e9

    @aio
    async def test_streams_both_ways(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            for connection in (near, far):
                async with connection.open_stream("/echo") as stream:
                    assert stream.protocol == "/echo"
                    assert not stream.inbound
                    await stream.write(b"hello")
                    assert await stream.read_exactly(5) == b"hello"
                    assert connection.streams == [stream]

    @aio
    async def test_open_stream_can_be_awaited(self) -> None:
        async with Node() as a, Node() as b:
            stream = await (await a.dial(b)).open_stream("/none", "/echo")
            assert stream.protocol == "/echo"
            await stream.write(b"x")
            await stream.close_write()
            assert await stream.read() == b"x"
            assert await stream.read() == b""

    @aio
    async def test_a_protocol_nobody_serves(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            with pytest.raises(ProtocolNotSupported, match=f"{b.peer_id} does not speak /none"):
                await near.open_stream("/none")
            assert (await near.open_stream("/echo")).protocol == "/echo", "the connection goes on"

    @aio
    async def test_lazy_streams_send_at_once_and_hear_of_a_refusal_at_the_first_read(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            stream = await near.open_stream("/echo", lazy=True)
            await stream.write(b"hello")
            assert await stream.read_exactly(5) == b"hello"
            stream = await near.open_stream("/none", lazy=True)
            await stream.write(b"hello")
            with pytest.raises(ProtocolNotSupported, match=str(b.peer_id)):
                await stream.read()
            with pytest.raises(UsageError):
                near.open_stream("/echo", "/other", lazy=True)

    @aio
    async def test_a_lazy_stream_is_confirmed_across_cancelled_reads(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            stream = await near.open_stream("/echo", lazy=True)
            for _ in range(3):
                reader = asyncio.create_task(stream.read())
                await asyncio.sleep(0)
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            await stream.write(b"hello")
            assert await stream.read_exactly(5) == b"hello"

    @aio
    async def test_a_peer_that_does_not_negotiate(self) -> None:
        async with Node(QUICK) as a, Node() as b:
            near = await a.dial(b)
            (await b.inbound.get()).link.on_stream = lambda core: held.append(core)
            held: list[object] = []
            with pytest.raises(
                TimedOut, match=rf"agreeing with peer {b.peer_id} on /echo took longer than 0.2 s"
            ):
                await near.open_stream("/echo")
            with pytest.raises(TimedOut, match=r"0.05 s"):
                await near.open_stream("/echo", timeout=0.05)
            assert near.streams == []

    @aio
    async def test_a_stream_that_proposes_nothing_is_reset(self) -> None:
        async with Node() as a, Node(QUICK) as b:
            near = await a.dial(b)
            core = near.link.open_stream()
            core.write(b"\x13/multi")
            await eventually(lambda: core.is_reset)

    @aio
    async def test_limited_connections_carry_only_what_is_allowed(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            b.handlers.add("/allowed", a.handlers.find("/echo", limited=False), allow_limited=True)
            near.limit = far.limit = Limit(120, 1 << 17)
            assert near.is_limited
            with pytest.raises(LimitedConnection, match="/echo is not allowed"):
                await near.open_stream("/echo")
            with pytest.raises(ProtocolNotSupported):
                await near.open_stream("/echo", allow_limited=True)
            async with near.open_stream("/allowed", allow_limited=True) as stream:
                assert stream.protocol == "/allowed"

    @aio
    async def test_too_many_streams_negotiating(self) -> None:
        config = Config(mux=replace(Config().mux, backlog=4))
        async with Node() as a, Node(config) as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            far._max_negotiating = 4
            cores = [near.link.open_stream() for _ in range(4)]
            for core in cores:
                core.write(b"\x13")
            await eventually(lambda: far._negotiating == 4)
            one_more = near.link.open_stream()
            one_more.write(b"\x13")
            await eventually(lambda: one_more.is_reset)
            assert not any(core.is_reset for core in cores)

    @aio
    async def test_a_direct_connection_is_direct_and_a_relayed_one_needs_an_upgrader(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            assert await near.direct() is near
            near.relay = b.peer_id
            assert near.path == "relayed"
            with pytest.raises(PunchFailed):
                await near.direct()


class TestHandlers:
    def test_registry(self) -> None:
        async def handler(stream: Stream) -> None: ...

        handlers = StreamHandlers()
        handlers.add("/a", handler)
        handlers.add("/b", handler, allow_limited=True)
        assert handlers.protocols == ("/a", "/b")
        assert handlers.find("/a", limited=False) is handler
        assert handlers.find("/a", limited=True) is None
        assert handlers.find("/b", limited=True) is handler
        with pytest.raises(UsageError):
            handlers.add("/a", handler)
        with pytest.raises(UsageError):
            handlers.add("/new\nline", handler)
        handlers.remove("/a")
        assert handlers.find("/a", limited=False) is None

    @aio
    async def test_the_stream_ends_with_its_handler(self) -> None:
        async def one_byte(stream: Stream) -> None:
            await stream.write(await stream.read_exactly(1))

        async def broken(stream: Stream) -> None:
            await stream.read_exactly(1)
            raise NetworkError("not today")

        async with Node() as a, Node() as b:
            b.handlers.add("/one", one_byte)
            b.handlers.add("/broken", broken)
            near = await a.dial(b)
            far = await b.inbound.get()
            async with near.open_stream("/one") as stream:
                await stream.write(b"x")
                assert await stream.read() == b"x"
                assert await stream.read() == b""
            async with near.open_stream("/broken") as stream:
                await stream.write(b"x")
                with pytest.raises(StreamReset):
                    await stream.read()
            await eventually(lambda: not far.streams and not near.streams)

    @aio
    async def test_a_handler_with_a_bug_costs_its_stream_only(self, caplog: pytest.LogCaptureFixture) -> None:
        async def buggy(stream: Stream) -> None:
            raise KeyError("bug")

        async with Node() as a, Node() as b:
            b.handlers.add("/buggy", buggy)
            near = await a.dial(b)
            stream = await near.open_stream("/buggy", lazy=True)
            with pytest.raises(StreamReset):
                await stream.read()
            assert "the handler of /buggy failed" in caplog.text
            assert caplog.records[0].peer == str(a.peer_id)  # type: ignore[attr-defined]
            async with near.open_stream("/echo") as stream:
                assert stream.protocol == "/echo"

    @aio
    async def test_a_kept_stream_outlives_its_handler(self) -> None:
        kept: list[Stream] = []

        async def keeper(stream: Stream) -> None:
            stream.keep()
            kept.append(stream)

        async with Node() as a, Node() as b:
            b.handlers.add("/kept", keeper)
            stream = await (await a.dial(b)).open_stream("/kept")
            await eventually(lambda: kept)
            await asyncio.sleep(0.02)
            await kept[0].write(b"later")
            assert await stream.read() == b"later"


class TestServingLate:
    """A peer may open streams along with its last handshake message, before our handlers are in place."""

    @aio
    async def test_streams_wait_for_the_handlers(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.tcp.dial(b.addr, expected_peer=b.peer_id)
            far = await b.inbound.get()
            async with far.open_stream("/echo", lazy=True) as stream:
                await stream.write(b"early")
                await asyncio.sleep(0.05)
                near.serve(a.handlers)
                assert await stream.read_exactly(5) == b"early"

    @aio
    async def test_no_more_wait_than_may_be_negotiated_at_once(self) -> None:
        config = Config(mux=replace(Config().mux, backlog=3))
        async with Node(config) as a, Node() as b:
            near = await a.tcp.dial(b.addr, expected_peer=b.peer_id)
            far = await b.inbound.get()
            streams = [await far.open_stream("/echo", lazy=True) for _ in range(4)]
            with pytest.raises(StreamReset):
                await streams[3].read()
            near.serve(a.handlers)
            for stream in streams[:3]:
                await stream.write(b"x")
                assert await stream.read_exactly(1) == b"x"


class TestEnding:
    @aio
    async def test_a_closed_connection_has_no_streams(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            stream = await near.open_stream("/echo")
            assert near.streams == [stream]
            near.abort()
            await near.wait_closed()
            assert stream.finished
            assert near.streams == []

    @aio
    async def test_close_reaches_the_peer_and_every_stream(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            stream = await near.open_stream("/echo")
            reader = asyncio.create_task(stream.read())
            closed: list[object] = []
            near.add_close_callback(closed.append)
            await near.close()
            assert near.closed
            assert closed == [near]
            await far.wait_closed()
            with pytest.raises((ConnectionClosed, StreamReset, StreamClosed)):
                await reader
            with pytest.raises(ConnectionClosed, match=str(b.peer_id)):
                await near.open_stream("/echo")
            with pytest.raises(ConnectionClosed):
                await near.ping()
            near.add_close_callback(closed.append)
            assert closed == [near, near], "at once when it is closed already"
            await near.close()
            await eventually(lambda: not a.tcp.connections and not b.tcp.connections)

    @aio
    async def test_what_was_written_arrives_before_a_graceful_close(self) -> None:
        got = bytearray()

        async def collect(stream: Stream) -> None:
            while data := await stream.read():
                got.extend(data)

        async with Node() as a, Node() as b:
            b.handlers.add("/collect", collect)
            near = await a.dial(b)
            stream = await near.open_stream("/collect")
            data = random.randbytes(200_000)
            await stream.write(data)
            await stream.close()
            await near.close()
            await eventually(lambda: len(got) == len(data))
            assert bytes(got) == data

    @aio
    async def test_closing_while_the_peer_sends(self) -> None:
        async def sink(stream: Stream) -> None:
            while await stream.read():
                pass

        async with Node() as a, Node() as b:
            b.handlers.add("/sink", sink)
            near = await a.dial(b)
            far = await b.inbound.get()
            stream = await near.open_stream("/sink")
            writer = asyncio.create_task(stream.write(bytes(64 << 20)))
            await asyncio.sleep(0.02)
            await far.close()
            assert far.close_reason is None, "the peer did nothing wrong"
            with pytest.raises(NetworkError):
                await writer

    @aio
    async def test_abort_says_why(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            near.abort("another is better")
            await near.wait_closed()
            assert "another is better" in str(near.close_reason)
            await far.wait_closed()
            assert far.close_reason is not None

    @aio
    async def test_the_peer_vanishes(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            stream = await near.open_stream("/echo")
            far.abort("gone")
            with pytest.raises(NetworkError, match=str(b.peer_id)):
                await stream.read()
            with pytest.raises(NetworkError):
                await stream.write(b"x")
            assert near.closed
            stream.reset()
            await stream.close()

    @aio
    async def test_closing_with_work_under_way_leaves_no_task(self) -> None:
        async def forever(stream: Stream) -> None:
            await asyncio.Event().wait()

        async with Node(QUICK) as a, Node(QUICK) as b:
            b.handlers.add("/forever", forever)
            near = await a.dial(b)
            await near.open_stream("/forever")
            near.link.open_stream().write(b"\x13")
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    @aio
    async def test_ping(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            assert 0 < await near.ping() < 1
            results = await asyncio.gather(*(near.ping() for _ in range(3)))
            assert all(0 < rtt < 1 for rtt in results)
            pinging = asyncio.create_task(near.ping())
            await asyncio.sleep(0)
            near.abort("now")
            with pytest.raises(ConnectionClosed):
                await pinging


class TestManyStreams:
    @aio
    async def test_a_hundred_streams_of_a_hundred_kilobytes(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)

            async def one(seed: int) -> None:
                data = random.Random(seed).randbytes(100_000 + seed)
                async with near.open_stream("/echo") as stream:
                    sending = asyncio.create_task(self.send(stream, data))
                    got = bytearray()
                    while chunk := await stream.read(1 + seed * 997):
                        got += chunk
                    await sending
                    assert bytes(got) == data

            await asyncio.gather(*(one(seed) for seed in range(100)))
            await eventually(lambda: not near.streams)

    @staticmethod
    async def send(stream: Stream, data: bytes) -> None:
        for at in range(0, len(data), 33_333):
            await stream.write(data[at : at + 33_333])
        await stream.close_write()

    @aio
    async def test_megabytes_against_back_pressure(self) -> None:
        async def slow(stream: Stream) -> None:
            total = 0
            while data := await stream.read():
                total += len(data)
                await asyncio.sleep(0)
            await stream.write(str(total).encode())

        async with Node() as a, Node() as b:
            b.handlers.add("/slow", slow)
            near = await a.dial(b)
            async with near.open_stream("/slow") as stream:
                await stream.write(bytes(32 << 20))
                await stream.close_write()
                assert await stream.read() == str(32 << 20).encode()

    @aio
    async def test_a_reader_that_does_not_read_holds_back_its_writer_only(self) -> None:
        release = asyncio.Event()

        async def stuck(stream: Stream) -> None:
            await release.wait()
            while await stream.read():
                pass

        async with Node() as a, Node() as b:
            b.handlers.add("/stuck", stuck)
            near = await a.dial(b)
            stream = await near.open_stream("/stuck")
            writer = asyncio.create_task(stream.write(bytes(4 << 20)))
            await asyncio.sleep(0.05)
            assert not writer.done()
            async with near.open_stream("/echo") as other:
                await other.write(b"hello")
                assert await other.read_exactly(5) == b"hello"
            release.set()
            await writer
            await stream.close()

    @aio
    async def test_resets_and_cancellations_at_random(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            rng = random.Random(7)

            async def one() -> None:
                async with near.open_stream("/echo") as stream:
                    data = rng.randbytes(rng.randrange(1, 300_000))
                    writing = asyncio.create_task(self.send(stream, data))
                    try:
                        match rng.randrange(4):
                            case 0:
                                await stream.read()
                                stream.reset()
                            case 1:
                                with pytest.raises(TimeoutError):
                                    async with asyncio.timeout(0.001):
                                        await stream.read_exactly(1 << 30)
                            case 2:
                                assert await stream.read_exactly(len(data)) == data
                            case 3:
                                pass
                    finally:
                        writing.cancel()
                        await asyncio.gather(writing, return_exceptions=True)

            await asyncio.gather(*(one() for _ in range(100)))
            assert not near.closed
            async with near.open_stream("/echo") as stream:
                await stream.write(b"still here")
                assert await stream.read_exactly(10) == b"still here"

    @aio
    async def test_cancelled_reads_lose_nothing(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            data = random.Random(1).randbytes(500_000)
            async with near.open_stream("/echo") as stream:
                sending = asyncio.create_task(self.send(stream, data))
                got = bytearray()
                rng = random.Random(2)
                while len(got) < len(data):
                    reader = asyncio.create_task(stream.read_exactly(min(5000, len(data) - len(got))))
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    reader.cancel()
                    (result,) = await asyncio.gather(reader, return_exceptions=True)
                    if isinstance(result, bytes):
                        got += result
                    else:
                        got += await stream.read(100)
                await sending
                assert bytes(got) == data
