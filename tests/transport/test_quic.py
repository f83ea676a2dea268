"""QUIC on loopback: listening, dialling, streams as TCP's, and how connections end."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from dataclasses import replace
from typing import Any

import pytest

from flare.config import Config, QuicLimits, Timeouts
from flare.errors import (
    ConnectionClosed,
    InvalidMultiaddr,
    NetworkError,
    PeerMismatch,
    ProtocolNotSupported,
    ResourceLimit,
    StreamClosed,
    StreamReset,
    TimedOut,
    UsageError,
)
from flare.transport import quic
from flare.transport.sockets import interface_addresses
from flare.transport.stream import Stream
from flare.transport.udp import udp_socket
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.quic_nodes import LOOPBACK, QuicNode
from tests.support.udp_proxy import UdpProxy

HASTY = Config(timeouts=replace(Timeouts(), dial=1.0))


def limited(**limits: Any) -> Config:
    return Config(quic=replace(QuicLimits(), **limits))


def test_the_times() -> None:
    """Go's idle timeout, and a ping when half of it is over: mappings of 30 s and more are kept."""
    assert (QuicLimits().keepalive, QuicLimits().idle_timeout) == (15.0, 30.0)


class TestListening:
    @aio
    @pytest.mark.parametrize("version", [4, 6])
    async def test_dial_and_echo(self, version: int) -> None:
        async with QuicNode(listen=LOOPBACK[version]) as a, QuicNode(listen=LOOPBACK[version]) as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            assert near.path == far.path == "direct/quic-v1"
            assert (near.remote_peer, far.remote_peer) == (b.peer_id, a.peer_id)
            assert near.remote_addr.ip is not None
            assert near.remote_addr.ip.version == version
            assert far.remote_addr.port == a.port, "it is dialled from the port that is listened on"
            async with near.open_stream("/echo") as stream:
                await stream.write(b"hello")
                assert await stream.read_exactly(5) == b"hello"
            async with far.open_stream("/echo") as stream:
                await stream.write_frame(b"back")
                assert await stream.read_frame(10) == b"back"

    @aio
    async def test_without_a_listener_it_dials_from_any_port_and_again_from_the_same(self) -> None:
        async with QuicNode(listen=None) as a, QuicNode() as b:
            await a.dial(b)
            await a.dial(b)
            first, second = await b.inbound.get(), await b.inbound.get()
            assert first.remote_addr == second.remote_addr

    @aio
    async def test_reuse_off_takes_a_port_of_its_own(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.quic.dial(b.addr, expected_peer=b.peer_id, reuse=False)
            far = await b.inbound.get()
            assert far.remote_addr.port != a.port
            await connection.close()
            await far.wait_closed()

    @aio
    @pytest.mark.parametrize(("version", "wildcard"), [(4, "0.0.0.0"), (6, "::")])
    async def test_a_wildcard_is_every_interface(self, version: int, wildcard: str) -> None:
        async with QuicNode(listen=f"/ip{version}/{wildcard}/udp/0/quic-v1") as node:
            (listener,) = node.quic.listeners
            assert [addr.ip for addr in listener.addrs] == interface_addresses(version)
            for addr in listener.addrs:
                async with QuicNode(listen=None) as dialer:
                    connection = await dialer.dial(node, addr)
                    assert connection.remote_peer == node.peer_id

    @aio
    async def test_an_answer_leaves_from_the_address_that_was_dialled(self) -> None:
        """A host with several addresses: the kernel would answer from the first, which the client drops."""
        async with QuicNode() as a, QuicNode(listen="/ip4/0.0.0.0/udp/0/quic-v1") as b:
            connection = await a.dial(b, Multiaddr(f"/ip4/127.0.0.2/udp/{b.port}/quic-v1"))
            assert await connection.ping() > 0
            far = await b.inbound.get()
            assert str(far.local_addr) == f"/ip4/127.0.0.2/udp/{b.port}/quic-v1"
            back = await b.dial(a)
            assert str(back.local_addr) == f"/ip4/127.0.0.1/udp/{b.port}/quic-v1"

    @aio
    async def test_addresses_that_are_not_quic(self) -> None:
        async with QuicNode() as node:
            for text in ("/ip4/127.0.0.1/tcp/1", "/dns4/a.example/udp/1/quic-v1", "/ip4/127.0.0.1/udp/1"):
                with pytest.raises(InvalidMultiaddr, match="is no QUIC address"):
                    await node.quic.listen(Multiaddr(text))
                with pytest.raises(InvalidMultiaddr):
                    await node.quic.dial(Multiaddr(text), expected_peer=None)

    @aio
    async def test_a_port_that_is_taken(self) -> None:
        async with QuicNode() as a, QuicNode(listen=None) as b:
            with pytest.raises(NetworkError, match="listening on"):
                await b.quic.listen(a.quic.listen_addrs[0])

    @aio
    async def test_a_closed_listener_takes_nobody(self) -> None:
        quick = Config(timeouts=replace(Timeouts(), dial=0.3))
        async with QuicNode(quick) as a, QuicNode() as b:
            there = b.addr
            kept = await a.dial(b)
            b.quic.listeners[0].close()
            assert b.quic.listen_addrs == ()
            assert await kept.ping() > 0, "connections stay"
            with pytest.raises(TimedOut, match="dialling"):
                await a.dial(b, there)


class TestAdopted:
    """A socket that a hole punch found: it dials, accepts, and ends with its connections."""

    @aio
    async def test_it_is_dialled_from(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            found = a.quic.adopt(udp_socket(ipaddress.ip_address("127.0.0.1"), 0))
            near = await a.quic.dial(b.addr, expected_peer=b.peer_id, via=found)
            assert (await b.inbound.get()).remote_addr.port == found.port != a.port
            assert near.local_addr == Multiaddr(f"/ip4/127.0.0.1/udp/{found.port}/quic-v1")

    @aio
    async def test_it_accepts_until_it_is_let_go(self) -> None:
        async with QuicNode(config=HASTY) as a, QuicNode() as b:
            found = b.quic.adopt(udp_socket(ipaddress.ip_address("127.0.0.1"), 0))
            addr = Multiaddr(f"/ip4/127.0.0.1/udp/{found.port}/quic-v1").with_peer(b.peer_id)
            near = await a.dial(b, addr)
            await b.inbound.get()
            b.quic.let_go(found)
            async with near.open_stream("/echo") as stream:
                await stream.write(b"still here")
                assert await stream.read_exactly(10) == b"still here"
            with pytest.raises(TimedOut):
                await a.quic.dial(addr, expected_peer=b.peer_id)
            assert b.inbound.empty()

    @aio
    async def test_without_a_connection_it_closes_at_once(self) -> None:
        async with QuicNode() as a:
            found = a.quic.adopt(udp_socket(ipaddress.ip_address("127.0.0.1"), 0))
            a.quic.let_go(found)
            assert found.closed

    @aio
    async def test_with_one_it_closes_a_little_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quic, "LAST_WORDS", 0.0)
        async with QuicNode() as a, QuicNode() as b:
            found = a.quic.adopt(udp_socket(ipaddress.ip_address("127.0.0.1"), 0))
            near = await a.quic.dial(b.addr, expected_peer=b.peer_id, via=found)
            a.quic.let_go(found)
            assert not found.closed
            await near.close()
            await eventually(lambda: found.closed)

    @aio
    async def test_a_transport_that_closes_takes_it_along(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            found = a.quic.adopt(udp_socket(ipaddress.ip_address("127.0.0.1"), 0))
            await a.quic.dial(b.addr, expected_peer=b.peer_id, via=found)
            a.quic.let_go(found)
        assert found.closed


class TestWhoItIs:
    @aio
    async def test_somebody_else_answers(self) -> None:
        stranger = Identity.generate().peer_id
        async with QuicNode() as a, QuicNode() as b:
            with pytest.raises(PeerMismatch) as refused:
                await a.quic.dial(b.addr.without_peer(), expected_peer=stranger)
            assert (refused.value.expected, refused.value.actual) == (stranger, b.peer_id)
            await eventually(lambda: not b.quic.half_open)
            assert b.inbound.empty()

    @aio
    @pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "secp256k1", "rsa"])
    async def test_every_kind_of_identity(self, kind: str) -> None:
        async with QuicNode(identity=Identity.generate(kind=kind)) as a, QuicNode() as b:
            await a.dial(b)
            far = await b.inbound.get()
            assert far.remote_peer == a.peer_id
            assert far.remote_key == a.identity.public_key

    @aio
    async def test_an_expected_peer_goes_to_who_expects_it(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            expected: list[Any] = []
            with b.quic.expect_peer(a.peer_id, expected.append):
                await a.dial(b)
                await eventually(lambda: expected)
            assert b.inbound.empty()
            await a.dial(b)
            assert (await b.inbound.get()).remote_peer == a.peer_id


class TestStreams:
    @aio
    async def test_megabytes_both_ways(self) -> None:
        sent = os.urandom(3 << 20)
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            stream = await connection.open_stream("/echo")

            async def write() -> None:
                await stream.write(sent)
                await stream.close_write()

            writing = asyncio.ensure_future(write())
            received = bytearray()
            while data := await stream.read():
                received += data
            await writing
            assert received == sent

    @aio
    async def test_a_reader_that_does_not_read_stops_the_writer(self) -> None:
        """RFC 9000, 4.1: what is not read is not allowed again."""
        window = 64 * 1024
        reading = asyncio.Event()
        got = bytearray()

        async def slow(stream: Stream) -> None:
            await reading.wait()
            while data := await stream.read():
                got.extend(data)

        config = limited(stream_window=window, max_stream_window=window, connection_window=4 * window)
        async with QuicNode() as a, QuicNode(config) as b:
            b.handlers.add("/slow", slow)
            connection = await a.dial(b)
            stream = await connection.open_stream("/slow")
            written = asyncio.ensure_future(stream.write(bytes(2 << 20)))
            await asyncio.sleep(0.3)
            assert not written.done()
            (inbound,) = (await b.inbound.get()).streams
            assert window - 100 <= inbound.core.readable <= window  # multistream took some of the window
            reading.set()
            await written
            await stream.close_write()
            assert await stream.read() == b""
            assert len(got) == 2 << 20

    @aio
    async def test_one_stream_that_is_not_read_does_not_stop_the_others(self) -> None:
        async def never(stream: Stream) -> None:
            await asyncio.Event().wait()

        async with QuicNode() as a, QuicNode() as b:
            b.handlers.add("/never", never)
            connection = await a.dial(b)
            full = await connection.open_stream("/never")
            writing = asyncio.ensure_future(full.write(bytes(4 << 20)))
            await asyncio.sleep(0.1)
            async with connection.open_stream("/echo") as stream:
                await stream.write(b"through")
                assert await stream.read_exactly(7) == b"through"
            writing.cancel()
            full.reset()
            await asyncio.gather(writing, return_exceptions=True)

    @aio
    async def test_a_half_close_leaves_the_other_direction(self) -> None:
        async def late(stream: Stream) -> None:
            assert await stream.read() == b"question"
            assert await stream.read() == b""
            await stream.write(b"answer")

        async with QuicNode() as a, QuicNode() as b:
            b.handlers.add("/late", late)
            async with (await a.dial(b)).open_stream("/late") as stream:
                await stream.write(b"question")
                await stream.close_write()
                assert await stream.read() == b"answer"
                assert await stream.read() == b""
                with pytest.raises(StreamClosed):
                    await stream.write(b"more")

    @aio
    async def test_a_reset_reaches_the_peer(self) -> None:
        async def reset(stream: Stream) -> None:
            await stream.read_exactly(1)
            stream.reset()

        async with QuicNode() as a, QuicNode() as b:
            b.handlers.add("/reset", reset)
            connection = await a.dial(b)
            stream = await connection.open_stream("/reset")
            await stream.write(b"x")
            with pytest.raises(StreamReset):
                await stream.read()
            with pytest.raises(StreamReset):
                await stream.write(b"x")
            assert await connection.ping() > 0

    @aio
    async def test_what_nobody_speaks(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            with pytest.raises(ProtocolNotSupported):
                await connection.open_stream("/nothing")

    @aio
    async def test_more_streams_than_the_peer_allows_wait_and_then_some_are_refused(self) -> None:
        """RFC 9000, 4.6: at the peer's limit, at our backlog and one past it."""
        async with QuicNode(limited(backlog=3)) as a, QuicNode(limited(max_streams=4)) as b:
            connection = await a.dial(b)
            held = [await connection.open_stream("/echo") for _ in range(4)]
            waiting = [asyncio.ensure_future(_open(connection)) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert not any(opening.done() for opening in waiting)
            with pytest.raises(ResourceLimit, match="backlog"):
                await connection.open_stream("/echo")
            for stream in held:
                await stream.close()
            for stream in await asyncio.gather(*waiting):
                await stream.close()

    @aio
    async def test_streams_end_on_both_sides(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            far = await b.inbound.get()
            for _ in range(300):  # more than may be open at once
                async with connection.open_stream("/echo") as stream:
                    await stream.write(b"x")
                    await stream.close_write()
                    assert await stream.read_exactly(1) == b"x"
                    assert await stream.read() == b""
            await eventually(lambda: not far.streams and not connection.streams)


async def _open(connection: Any) -> Stream:
    return await connection.open_stream("/echo")


class TestEnds:
    @aio
    async def test_what_was_written_arrives_before_the_connection_closes(self) -> None:
        got = bytearray()

        async def keep(stream: Stream) -> None:
            while data := await stream.read():
                got.extend(data)

        async with QuicNode() as a, QuicNode() as b:
            b.handlers.add("/keep", keep)
            connection = await a.dial(b)
            stream = await connection.open_stream("/keep")
            await stream.write(bytes(300_000))
            await stream.close()
            await connection.close()
            assert connection.close_reason is None
            far = await b.inbound.get()
            await far.wait_closed()
            assert isinstance(far.close_reason, ConnectionClosed)
            assert len(got) == 300_000

    @aio
    async def test_a_peer_that_is_gone_does_not_hold_up_a_close(self) -> None:
        async with QuicNode(limited(drain=0.1)) as a, QuicNode() as b, UdpProxy(b.port) as proxy:
            connection = await a.dial(b, Multiaddr(f"/ip4/127.0.0.1/udp/{proxy.port}/quic-v1"))
            stream = await connection.open_stream("/echo")
            proxy.drop = True
            await stream.write(b"never acknowledged")
            started = asyncio.get_running_loop().time()
            await connection.close()
            assert asyncio.get_running_loop().time() - started < Timeouts().close
            assert connection.close_reason is None

    @aio
    async def test_an_abort_ends_streams_on_both_sides(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            connection = await a.dial(b)
            stream = await connection.open_stream("/echo")
            far = await b.inbound.get()
            reading = asyncio.ensure_future(stream.read())
            await asyncio.sleep(0)
            connection.abort("enough")
            with pytest.raises(ConnectionClosed, match="enough"):
                await reading
            with pytest.raises(ConnectionClosed):
                await connection.open_stream("/echo")
            with pytest.raises(ConnectionClosed):
                await connection.ping()
            await far.wait_closed()
            assert "the peer closed the connection" in str(far.close_reason)

    @aio
    async def test_closing_the_transport_ends_connections_and_dials(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            await a.dial(b)
            far = await b.inbound.get()
            await a.quic.close()
            await far.wait_closed()
            with pytest.raises(UsageError):
                await a.quic.dial(b.addr, expected_peer=b.peer_id)

    @aio
    async def test_a_dial_from_a_port_of_its_own_ends_with_the_transport(self) -> None:
        silent = udp_socket(ipaddress.ip_address("127.0.0.1"), 0)
        try:
            addr = Multiaddr(f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1")
            async with QuicNode() as a:
                dialling = asyncio.ensure_future(a.quic.dial(addr, expected_peer=None, reuse=False))
                await asyncio.sleep(0.05)
            with pytest.raises(NetworkError):
                await dialling
        finally:
            silent.close()

    @aio
    async def test_nobody_answers(self) -> None:
        quick = Config(timeouts=replace(Timeouts(), dial=0.2))
        async with QuicNode(quick) as a, QuicNode(listen=None) as b:
            socket = b.quic.socket_for(interface_addresses(4)[0])  # bound, and nobody listens on it
            with pytest.raises(TimedOut, match="dialling"):
                await a.quic.dial(Multiaddr(f"/ip4/127.0.0.1/udp/{socket.port}/quic-v1"), expected_peer=None)
            assert not a.quic.connections

    @aio
    async def test_a_dropped_stream_is_reset(self) -> None:
        async with QuicNode() as a, QuicNode() as b:
            ended: list[str] = []

            async def wait(stream: Stream) -> None:
                try:
                    await stream.read()
                except StreamReset:
                    ended.append("reset")

            b.handlers.add("/wait", wait)
            connection = await a.dial(b)
            core = connection.link.open_stream()
            await connection.open_stream("/echo")
            core.write(b"\x13/multistream/1.0.0\n\x06/wait\n")
            await asyncio.sleep(0.05)
            del core
            await eventually(lambda: ended == ["reset"])
