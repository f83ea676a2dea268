"""TCP on loopback: listening, dialling from the listening port, limits, punched sockets, hostile peers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from flare.config import Config, HostLimits, Timeouts
from flare.errors import (
    AuthenticationFailed,
    FlareError,
    InvalidMultiaddr,
    NetworkError,
    PeerMismatch,
    ProtocolNotSupported,
    ProtocolViolation,
    TimedOut,
)
from flare.transport import multistream, tcp
from flare.transport.sockets import endpoint, interface_addresses, listening_socket
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.hosts import LOOPBACK, Node

QUICK = Config(timeouts=replace(Timeouts(), negotiate=0.2, close=0.5, handshake=0.2, dial=0.3))


def limited(**limits: Any) -> Config:
    return Config(host=HostLimits(exempt=(), **limits))


class TestListening:
    @aio
    @pytest.mark.parametrize("version", [4, 6])
    async def test_dial_and_echo(self, version: int) -> None:
        async with Node(listen=LOOPBACK[version]) as a, Node(listen=LOOPBACK[version]) as b:
            near = await a.dial(b)
            async with near.open_stream("/echo") as stream:
                await stream.write(b"hello")
                assert await stream.read_exactly(5) == b"hello"
            assert near.remote_addr.ip is not None
            assert near.remote_addr.ip.version == version

    @aio
    @pytest.mark.parametrize(("version", "wildcard"), [(4, "0.0.0.0"), (6, "::")])
    async def test_a_wildcard_is_every_interface(self, version: int, wildcard: str) -> None:
        async with Node(listen=None) as node:
            listener = await node.tcp.listen(Multiaddr(f"/ip{version}/{wildcard}/tcp/0"))
            assert str(listener.addr.ip) == wildcard
            assert listener.addrs
            assert tuple(listener.addrs) == node.tcp.listen_addrs
            for addr in listener.addrs:
                assert addr.ip in interface_addresses(version)
                assert addr.port == listener.port != 0
                async with Node(listen=None) as dialer:
                    connection = await dialer.tcp.dial(addr, expected_peer=node.peer_id)
                    assert connection.remote_peer == node.peer_id

    @aio
    async def test_both_wildcards_on_one_port(self) -> None:
        async with Node(listen="/ip4/0.0.0.0/tcp/0") as node:
            port = node.tcp.listeners[0].port
            await node.tcp.listen(Multiaddr(f"/ip6/::/tcp/{port}"))
            assert {addr.port for addr in node.tcp.listen_addrs} == {port}

    @aio
    async def test_addresses_that_are_not_tcp(self) -> None:
        async with Node() as node:
            for text in (
                "/ip4/127.0.0.1/udp/1/quic-v1",
                "/dns4/example.com/tcp/1",
                "/ip4/127.0.0.1/tcp/1/ws",
            ):
                with pytest.raises(InvalidMultiaddr, match="is no TCP address"):
                    await node.tcp.listen(Multiaddr(text))
                with pytest.raises(InvalidMultiaddr):
                    await node.tcp.dial(Multiaddr(text), expected_peer=None)

    @aio
    async def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with Node() as node:
                with pytest.raises(NetworkError, match="Address already in use") as error:
                    await node.tcp.listen(Multiaddr(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"))
                assert error.value.errno == errno.EADDRINUSE

    @aio
    async def test_a_closed_listener_refuses_and_connections_stay(self) -> None:
        async with Node() as a, Node() as b:
            near = await a.dial(b)
            addr = b.addr
            b.tcp.listeners[0].close()
            assert b.tcp.listen_addrs == ()
            with pytest.raises(NetworkError, match="Connection refused"):
                await a.tcp.dial(addr, expected_peer=b.peer_id)
            async with near.open_stream("/echo") as stream:
                assert stream.protocol == "/echo"

    @aio
    async def test_accepting_pauses_when_descriptors_run_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tcp, "ACCEPT_PAUSE", 0.02)
        async with Node() as a, Node() as b:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((str(b.addr.ip), b.addr.port))
            used = client.fileno() + 1
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
                await asyncio.sleep(0.05)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.close()
            near = await a.dial(b)
            assert near.remote_peer == b.peer_id


class TestDialling:
    @aio
    @pytest.mark.parametrize("version", [4, 6])
    async def test_it_leaves_from_the_listening_port(self, version: int) -> None:
        async with Node(listen=LOOPBACK[version]) as a, Node(listen=LOOPBACK[version]) as b:
            near = await a.dial(b)
            far = await b.inbound.get()
            assert far.remote_addr.port == a.addr.port == near.local_addr.port  # type: ignore[union-attr]
            fresh = await a.dial(b, reuse=False)
            assert fresh.local_addr is not None
            assert fresh.local_addr.port != a.addr.port

    @aio
    async def test_a_wildcard_listener_too(self) -> None:
        async with Node(listen="/ip4/0.0.0.0/tcp/0") as a, Node() as b:
            await a.dial(b)
            assert (await b.inbound.get()).remote_addr.port == a.tcp.listeners[0].port

    @aio
    async def test_a_second_connection_falls_back_to_another_port(self) -> None:
        async with Node() as a, Node() as b:
            first, second = await a.dial(b), await a.dial(b)
            assert first.local_addr != second.local_addr
            for connection in (first, second):
                assert await connection.ping() > 0

    @aio
    async def test_without_a_listener(self) -> None:
        async with Node(listen=None) as a, Node() as b:
            assert (await a.dial(b)).remote_peer == b.peer_id

    @aio
    async def test_it_never_meets_itself(self) -> None:
        async with Node() as a:
            connection = await a.tcp.dial(a.addr, expected_peer=a.peer_id)
            assert connection.local_addr != connection.remote_addr

    @aio
    async def test_refused(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        async with Node() as a:
            with pytest.raises(NetworkError, match=f"/ip4/127.0.0.1/tcp/{port}: Connection refused"):
                await a.tcp.dial(Multiaddr(f"/ip4/127.0.0.1/tcp/{port}"), expected_peer=None)

    @aio
    async def test_somebody_else_answers(self) -> None:
        expected = Identity.generate().peer_id
        async with Node() as a, Node() as b:
            with pytest.raises(PeerMismatch, match=f"expected peer {expected}, but {b.peer_id} answered"):
                await a.tcp.dial(b.addr, expected_peer=expected)
            await eventually(lambda: not b.tcp.admission.handshakes)
            assert b.inbound.empty()

    @aio
    async def test_a_cancelled_dial_closes_its_socket(self) -> None:
        async with Node(listen=None) as a, silent_server() as (addr, accepted):
            dialling = asyncio.create_task(a.tcp.dial(addr, expected_peer=None))
            await eventually(lambda: accepted)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            loop = asyncio.get_running_loop()
            accepted[0].setblocking(False)
            async with asyncio.timeout(2):
                while await loop.sock_recv(accepted[0], 1024):
                    pass

    @aio
    async def test_dials_at_once(self) -> None:
        async with Node() as a, Node() as b:
            results = await asyncio.gather(*(a.dial(b) for _ in range(30)))
            assert len({connection.local_addr for connection in results}) == 30
            await eventually(lambda: len(b.tcp.connections) == 30)


class TestAdopting:
    @aio
    async def test_roles_come_from_the_caller(self) -> None:
        """The dialler is the listener of the handshake, as B is in DCUtR."""
        async with Node() as a, Node() as b, silent_server() as (addr, accepted):
            dialling = asyncio.create_task(a.tcp.dial(addr, expected_peer=b.peer_id, initiator=False))
            await eventually(lambda: accepted)
            far = await b.tcp.adopt(
                accepted.pop(), initiator=True, expected_peer=a.peer_id, remote_addr=a.addr.without_peer()
            )
            near = await dialling
            assert far.initiator
            assert not near.initiator

    @aio
    async def test_an_adopted_socket_is_closed_when_the_peer_is_not_the_one(self) -> None:
        async with Node() as a, Node() as b, silent_server() as (addr, accepted):
            dialling = asyncio.create_task(a.tcp.dial(addr, expected_peer=b.peer_id))
            await eventually(lambda: accepted)
            sock = accepted.pop()
            with pytest.raises(PeerMismatch):
                await b.tcp.adopt(
                    sock,
                    initiator=False,
                    expected_peer=Identity.generate().peer_id,
                    remote_addr=a.addr.without_peer(),
                )
            assert sock.fileno() == -1
            (result,) = await asyncio.gather(dialling, return_exceptions=True)
            if not isinstance(result, FlareError):
                await result.wait_closed()  # XX: the initiator is done before the responder has judged


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[Multiaddr, list[socket.socket]]]:
    """A TCP server that accepts and says nothing."""
    loop = asyncio.get_running_loop()
    server = listening_socket(ipaddress.ip_address("127.0.0.1"), 0)
    accepted: list[socket.socket] = []
    loop.add_reader(server, lambda: accepted.append(server.accept()[0]))
    try:
        yield Multiaddr.from_socket(server.getsockname()), accepted
    finally:
        loop.remove_reader(server)
        for sock in (server, *accepted):
            sock.close()


@asynccontextmanager
async def strangers(node: Node, count: int) -> AsyncIterator[list[socket.socket]]:
    """TCP connections to `node` from somebody who says nothing yet."""
    loop = asyncio.get_running_loop()
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.setblocking(False)
            with contextlib.suppress(ConnectionError):  # refused already
                await loop.sock_connect(sock, (str(node.addr.ip), node.addr.port))
        yield socks
    finally:
        for sock in socks:
            sock.close()


async def is_closed(sock: socket.socket, timeout: float) -> bool:
    """Whether the other side closes `sock` within `timeout` seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            while await loop.sock_recv(sock, 4096):
                pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


class TestHostilePeers:
    @aio
    async def test_a_server_that_says_nothing(self) -> None:
        async with Node(QUICK) as a, silent_server() as (addr, _):
            before = time.monotonic()
            with pytest.raises(TimedOut, match=r"took longer than 0.3 s"):
                await a.tcp.dial(addr, expected_peer=None)
            assert time.monotonic() - before < 2

    @aio
    async def test_a_client_that_says_nothing(self) -> None:
        async with Node(QUICK) as node, strangers(node, 1) as (sock,):
            assert await is_closed(sock, 2)
            await eventually(lambda: not node.tcp.admission.handshakes)

    @aio
    async def test_a_client_that_drips(self) -> None:
        async with Node(QUICK) as node, strangers(node, 1) as (sock,):
            wire = multistream.proposal("/noise") + b"\x00\x20" + bytes(32)

            async def drip() -> None:
                for byte in wire:
                    await asyncio.sleep(0.02)
                    await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))

            dripping = asyncio.create_task(drip())
            before = time.monotonic()
            await eventually(lambda: node.tcp.admission.handshakes)
            await eventually(lambda: not node.tcp.admission.handshakes, timeout=2)
            assert time.monotonic() - before < 1.5
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    @aio
    @pytest.mark.parametrize(
        "wire",
        [
            b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n" * 10,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(500),
            b"\xff" * 64,
            multistream.proposal("/tls/1.0.0") * 40,
            multistream.proposal("/noise") + b"\xff\xff" + bytes(1000),
            multistream.proposal("/noise") + b"\x00\x20" + bytes(32),
            multistream.proposal("/noise") + b"\x00\x05hello",
        ],
    )
    async def test_clients_that_speak_something_else(self, wire: bytes) -> None:
        async with Node(QUICK) as node, strangers(node, 1) as (sock,):
            await asyncio.get_running_loop().sock_sendall(sock, wire)
            assert await is_closed(sock, 3)
            await eventually(lambda: not node.tcp.admission.handshakes)
            async with Node() as honest:
                assert (await honest.dial(node)).remote_peer == node.peer_id

    @aio
    @pytest.mark.parametrize(
        ("wire", "error"),
        [
            (b"SSH-2.0-OpenSSH_9.9\r\n" + b"x" * 200, (ProtocolViolation,)),
            (multistream.encode("/multistream/1.0.0") + multistream.encode("na"), (ProtocolNotSupported,)),
            (
                multistream.encode("/multistream/1.0.0")
                + multistream.encode("/noise")
                + b"\x00\x60"
                + bytes(96),
                (AuthenticationFailed,),
            ),
            (multistream.encode("/multistream/1.0.0") + b"\xff" * 100, (ProtocolViolation,)),
        ],
    )
    async def test_servers_that_speak_something_else(self, wire: bytes, error: Any) -> None:
        config = replace(QUICK, security=("noise",))
        async with Node(config) as a, silent_server() as (addr, accepted):
            dialling = asyncio.create_task(a.tcp.dial(addr, expected_peer=None))
            await eventually(lambda: accepted)
            accepted[0].sendall(wire)
            with pytest.raises(error):
                await dialling

    @aio
    async def test_past_the_limit_the_oldest_handshake_gives_way(self) -> None:
        async with Node(limited(max_handshakes=3)) as node, strangers(node, 3) as held:
            await eventually(lambda: node.tcp.admission.handshakes == 3)
            assert not await is_closed(held[0], 0.05), "at the limit nobody has to go"
            async with Node() as honest:
                assert (await honest.dial(node)).remote_peer == node.peer_id
            assert await is_closed(held[0], 2)
            assert not await is_closed(held[1], 0.05)
            assert node.tcp.admission.evicted == 1

    @aio
    async def test_more_at_once_than_there_is_room_for(self) -> None:
        """They are accepted in one turn: the first are cancelled before their first step."""
        async with Node(limited(max_handshakes=2)) as node, strangers(node, 20) as socks:
            await eventually(lambda: node.tcp.admission.evicted == 18)
            for sock in socks[:18]:
                assert await is_closed(sock, 2)
            assert node.tcp.admission.handshakes == 2

    @aio
    async def test_handshakes_of_one_address_at_the_limit_and_past_it(self) -> None:
        async with Node(limited(max_handshakes_per_ip=2)) as node, strangers(node, 2) as held:
            await eventually(lambda: node.tcp.admission.handshakes == 2)
            async with strangers(node, 1) as (extra,):
                assert await is_closed(extra, 2)
            assert not await is_closed(held[0], 0.05)

    @aio
    async def test_connections_at_the_limit_and_past_it(self) -> None:
        async with Node(limited(max_connections=1)) as node, Node() as a, Node() as b:
            await a.dial(node)
            await node.inbound.get()
            with pytest.raises(NetworkError):
                await b.dial(node)

    @aio
    async def test_connections_of_one_address_at_the_limit_and_past_it(self) -> None:
        async with Node(limited(max_connections_per_ip=2)) as node, Node() as a, Node() as b:
            first = await a.dial(node)
            await a.dial(node)
            for _ in range(2):
                await node.inbound.get()
            with pytest.raises(NetworkError):
                await b.dial(node)
            await first.close()
            await eventually(lambda: len(node.tcp.connections) == 1)
            assert (await b.dial(node)).remote_peer == node.peer_id, "a place that was left is free"

    @aio
    async def test_a_burst_of_one_address_and_one_past_it(self) -> None:
        few = limited(handshake_burst_per_ip=3, handshakes_per_second_per_ip=0.001)
        async with Node(few) as node, strangers(node, 4) as socks:
            assert await is_closed(socks[3], 2)
            assert node.tcp.admission.handshakes == 3

    @aio
    async def test_loopback_is_exempt_as_it_comes(self) -> None:
        config = Config(host=HostLimits(max_handshakes_per_ip=1, max_connections_per_ip=1))
        async with Node(config) as node, strangers(node, 5):
            await eventually(lambda: node.tcp.admission.handshakes == 5)

    @aio
    async def test_closing_ends_handshakes_under_way(self) -> None:
        async with Node() as node, strangers(node, 3):
            await eventually(lambda: node.tcp.admission.handshakes == 3)
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_endpoints_of_socket_addresses() -> None:
    assert endpoint(("1.2.3.4", 5)) == (ipaddress.ip_address("1.2.3.4"), 5)
    assert endpoint(("::ffff:1.2.3.4", 5, 0, 0)) == (ipaddress.ip_address("1.2.3.4"), 5)
    assert endpoint(("fe80::1%eth0", 5, 0, 2)) == (ipaddress.ip_address("fe80::1"), 5)


def test_interface_addresses_hold_loopback_and_no_link_local() -> None:
    assert ipaddress.ip_address("127.0.0.1") in interface_addresses(4)
    assert ipaddress.ip_address("::1") in interface_addresses(6)
    assert not any(ip.is_link_local for ip in interface_addresses(6))
