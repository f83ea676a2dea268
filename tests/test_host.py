"""Host as its users see it: connecting, serving, events, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable

import pytest

import flare
from flare.errors import (
    ConnectionClosed,
    DialFailed,
    NetworkError,
    PeerMismatch,
    ProtocolNotSupported,
    StreamReset,
    TimedOut,
    UsageError,
)
from flare.events import AddressesChanged, ConnectionLost, ConnectionOpened, Event, Listening, PeerIdentified
from flare.protocols import identify, ping
from flare.transport import quic, sockets, tcp
from flare.transport.stream import Stream
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.support.aio import aio, eventually
from tests.support.loopback import LOOPBACK, Seen, descriptors, echo, host

NOBODY = Identity.generate().peer_id


def closed_port() -> str:
    """An address of loopback that refuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"


class TestConnecting:
    @aio
    async def test_by_an_address_with_the_peer(self) -> None:
        async with host() as server, host() as client:
            connection = await client.connect(server.full_addrs[0])
            assert connection.remote_peer == server.peer_id
            assert connection.path == "direct/tcp"
            assert not connection.is_relayed
            assert not connection.is_limited
            assert await connection.direct() is connection
            assert client.connections == (connection,)
            assert client.connections_to(server.peer_id) == (connection,)

    @aio
    async def test_by_an_address_without_the_peer(self) -> None:
        async with host() as server, host() as client:
            connection = await client.connect(str(server.addrs[0]))
            assert connection.remote_peer == server.peer_id

    @aio
    async def test_by_the_peer_and_addresses_apart(self) -> None:
        async with host() as server, host() as client:
            connection = await client.connect(server.peer_id, server.addrs[0])
            assert connection.remote_peer == server.peer_id

    @aio
    async def test_a_dead_address_does_not_matter_beside_a_good_one(self) -> None:
        async with host() as server, host() as client:
            connection = await client.connect(closed_port(), server.full_addrs[0])
            assert connection.remote_peer == server.peer_id

    @aio
    async def test_by_peer_id_once_it_was_met(self) -> None:
        async with host() as server, host() as client:
            first = await client.connect(*server.full_addrs)
            await eventually(lambda: client.peers.get(server.peer_id).addrs)
            await first.close()
            again = await client.connect(f"/p2p/{server.peer_id}")
            assert again is not first
            assert again.remote_peer == server.peer_id
            assert await client.connect(server.peer_id) is again

    @aio
    async def test_an_open_connection_serves_again_from_either_side(self) -> None:
        async with host() as server, host() as client:
            connection = await client.connect(*server.full_addrs)
            assert await client.connect(*server.full_addrs) is connection
            await eventually(lambda: server.connections)
            assert await server.connect(client.peer_id) is server.connections[0]

    @aio
    async def test_a_further_connection_over_another_transport(self) -> None:
        both = [LOOPBACK, "/ip4/127.0.0.1/udp/0/quic-v1"]
        async with flare.Host(listen=both) as server, flare.Host(listen=both) as client:
            quic_addr, tcp_addr = server.full_addrs
            first = await client.connect(tcp_addr)
            assert await client.connect(quic_addr) is first
            second = await client.dial(quic_addr)
            assert (first.path, second.path) == ("direct/tcp", "direct/quic-v1")
            assert set(client.connections_to(server.peer_id)) == {first, second}
            with pytest.raises(PeerMismatch):
                await client.dial(Multiaddr(str(server.addrs[0])).with_peer(NOBODY))
        with pytest.raises(UsageError, match="is not running"):
            await client.dial(tcp_addr)

    @aio
    async def test_simultaneous_connects_share_one_dial(self) -> None:
        async with host() as server, host() as client:
            found = await asyncio.gather(*(client.connect(*server.full_addrs) for _ in range(10)))
            assert set(found) == set(client.connections)
            assert len(client.connections) == 1
            await eventually(lambda: len(server.connections) == 1)

    @aio
    async def test_who_joins_a_dial_that_fails_still_gets_its_own_addresses_tried(self) -> None:
        async with host() as server, host() as client:
            hopeless = asyncio.create_task(client.connect(server.peer_id, closed_port()))
            await asyncio.sleep(0)
            connection = await client.connect(*server.full_addrs)
            assert connection.remote_peer == server.peer_id
            with pytest.raises(DialFailed):
                await hopeless

    @aio
    async def test_one_who_gives_up_does_not_end_the_dial_of_another(self) -> None:
        async with host() as server, host() as client:
            patient = asyncio.create_task(client.connect(*server.full_addrs))
            hasty = asyncio.create_task(client.connect(*server.full_addrs))
            await asyncio.sleep(0)
            hasty.cancel()
            assert (await patient).remote_peer == server.peer_id
            assert (await asyncio.gather(hasty, return_exceptions=True))[
                0
            ].__class__ is asyncio.CancelledError

    @aio
    async def test_many_hosts_live_on_one_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            hosts = [host() for _ in range(8)]
            for each in hosts:
                group.create_task(each.start())
        try:
            hub, *others = hosts
            found = await asyncio.gather(*(other.connect(*hub.full_addrs) for other in others))
            assert {c.remote_peer for c in found} == {hub.peer_id}
            await eventually(lambda: {c.remote_peer for c in hub.connections} == {o.peer_id for o in others})
        finally:
            await asyncio.gather(*(each.close() for each in hosts))


class TestNotConnecting:
    @aio
    async def test_somebody_else_answers(self) -> None:
        async with host() as server, host() as client:
            with pytest.raises(PeerMismatch, match=f"expected peer {NOBODY}, but {server.peer_id} answered"):
                await client.connect(server.addrs[0].with_peer(NOBODY))
            assert client.connections == ()

    @aio
    async def test_dial_failed_names_each_address_and_its_reason(self) -> None:
        dead = [closed_port(), closed_port()]
        async with host() as client:
            with pytest.raises(DialFailed) as failed:
                await client.connect(NOBODY, *dead)
        assert {str(addr) for addr, _ in failed.value.attempts} == set(dead)
        for addr in dead:
            assert f"{addr}: Connection refused" in str(failed.value)
        assert str(failed.value).startswith(f"could not dial {NOBODY}: ")

    @aio
    async def test_a_transport_that_is_not_spoken_is_named(self) -> None:
        async with host() as client:
            with pytest.raises(DialFailed, match="/tcp/1/ws is no TCP address"):
                await client.connect("/ip4/127.0.0.1/tcp/1/ws")

    @aio
    async def test_a_peer_that_nobody_knows(self) -> None:
        async with host() as client:
            with pytest.raises(DialFailed, match=f"could not dial {NOBODY}: no address to dial"):
                await client.connect(NOBODY)

    @aio
    async def test_a_silent_peer_costs_the_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            addr = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
            async with host() as client:
                with pytest.raises(TimedOut, match=f"dialling {addr} took longer than 0.1 s"):
                    await client.connect(addr, timeout=0.1)

    @aio
    async def test_the_dial_ends_when_nobody_waits_any_more(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with host() as client:
                with pytest.raises(TimedOut):
                    await client.connect(
                        NOBODY, f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}", timeout=0.05
                    )
                await eventually(
                    lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("dial ")]
                )

    @aio
    async def test_a_host_that_closes_says_so_to_who_waits(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = host()
            await client.start()
            waiting = asyncio.create_task(client.connect(f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"))
            await asyncio.sleep(0.02)
            await client.close()
            with pytest.raises(NetworkError, match="the host closed"):
                await waiting

    @aio
    async def test_itself_by_an_address_without_the_peer(self) -> None:
        async with host() as client:
            with pytest.raises(DialFailed, match=r"is this host itself|refused"):
                await client.connect(client.addrs[0])
            assert client.connections == ()


class TestMisuse:
    @pytest.mark.parametrize(
        ("targets", "why"),
        [
            ((), "needs an address or a peer id"),
            (("/tcp/1/p2p-circuit",), "no whole circuit address"),
            ((f"/p2p/{NOBODY}/p2p-circuit",), "no whole circuit address"),
            ((f"/ip4/1.2.3.4/tcp/1/p2p-circuit/p2p/{NOBODY}",), "no whole circuit address"),
            ((NOBODY, Identity.generate().peer_id), "one call connects to one peer, and these are 2"),
            (("/p2p-circuit",), "no whole circuit address"),
            (("nonsense",), "nonsense"),
        ],
    )
    @aio
    async def test_what_cannot_be_a_target(self, targets: tuple[str, ...], why: str) -> None:
        async with host() as client:
            with pytest.raises(UsageError, match=why):
                await client.connect(*targets)

    @aio
    async def test_oneself(self) -> None:
        async with host() as client:
            with pytest.raises(UsageError, match="is this host itself"):
                await client.connect(*client.full_addrs)

    @aio
    async def test_before_and_after_its_life(self) -> None:
        made = host()
        assert made.addrs == ()
        with pytest.raises(UsageError, match="not running"):
            await made.connect(NOBODY)
        async with made:
            with pytest.raises(UsageError, match="running already"):
                await made.start()
        await made.close()  # again
        with pytest.raises(UsageError, match="not running"):
            await made.connect(NOBODY)
        with pytest.raises(UsageError, match="was closed: make a new one"):
            await made.start()

    @pytest.mark.parametrize("relay", ["/ip4/1.2.3.4/tcp/1", f"/p2p/{NOBODY}/p2p-circuit/p2p/{NOBODY}"])
    def test_a_relay_that_is_none(self, relay: str) -> None:
        with pytest.raises(UsageError, match="a relay is given as ADDR/p2p/PEER"):
            flare.Host(relays=[relay])


class TestListening:
    @aio
    async def test_by_default_on_every_family_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def without_ipv6(whole: Callable[..., socket.socket]) -> Callable[..., socket.socket]:
            def made(ip: sockets.IpAddress, port: int) -> socket.socket:
                if ip.version == 6:
                    raise OSError(97, "Address family not supported by protocol")
                return whole(ip, port)

            return made

        monkeypatch.setattr(tcp, "listening_socket", without_ipv6(tcp.listening_socket))
        monkeypatch.setattr(quic, "udp_socket", without_ipv6(quic.udp_socket))
        async with flare.Host() as lonely:
            assert lonely.addrs
            assert all(addr.ip is not None and addr.ip.version == 4 for addr in lonely.addrs)
            assert "/ip4/127.0.0.1" in str(lonely.addrs)

    @aio
    async def test_no_family_at_all_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing(ip: sockets.IpAddress, port: int) -> socket.socket:
            raise OSError(97, "Address family not supported by protocol")

        monkeypatch.setattr(tcp, "listening_socket", nothing)
        monkeypatch.setattr(quic, "udp_socket", nothing)
        with pytest.raises(
            NetworkError, match=r"listening on /ip4/0.0.0.0/udp/0/quic-v1: Address family not supported"
        ):
            await flare.Host().start()

    @aio
    async def test_an_explicit_address_that_cannot_be_had_is_named(self) -> None:
        before = descriptors()
        with pytest.raises(
            NetworkError, match=r"listening on /ip4/192.0.2.1/tcp/4001: Cannot assign requested"
        ):
            await host(listen=[LOOPBACK, "/ip4/192.0.2.1/tcp/4001"]).start()
        assert descriptors() == before, "the listener that worked is closed again"

    @aio
    async def test_a_port_in_use_is_no_second_home(self) -> None:
        async with host() as first:
            addr = first.addrs[0]
            with pytest.raises(NetworkError, match=f"listening on {addr}: Address already in use"):
                await host(listen=[addr]).start()

    @aio
    async def test_listening_nowhere_dials_all_the_same(self) -> None:
        async with host() as server, host(listen=[]) as client:
            assert client.addrs == ()
            connection = await client.connect(*server.full_addrs)
            assert await ping.ping(connection) < 5

    @aio
    async def test_announced_addresses_come_first(self) -> None:
        announced = "/ip4/1.2.3.4/tcp/4001"
        async with host(announce=[announced]) as made:
            assert str(made.addrs[0]) == announced
            assert str(made.full_addrs[0]) == f"{announced}/p2p/{made.peer_id}"


class TestServing:
    @aio
    async def test_a_handler_by_decorator_and_by_call(self) -> None:
        async with host() as server, host() as client:

            @server.handle("/shout/1")
            async def shout(stream: Stream) -> None:
                await stream.write((await stream.read()).upper())

            assert server.handle("/echo/1", echo) is echo
            connection = await client.connect(*server.full_addrs)
            async with connection.open_stream("/shout/1") as stream:
                await stream.write(b"hello")
                assert await stream.read() == b"HELLO"
                assert await stream.read() == b"", "it closes when the handler returns"
            async with connection.open_stream("/none/1", "/echo/1") as stream:
                assert stream.protocol == "/echo/1"

    @aio
    async def test_two_handlers_for_one_protocol_are_a_mistake(self) -> None:
        async with host() as server:
            server.handle("/echo/1", echo)
            with pytest.raises(UsageError, match="/echo/1 has a handler"):
                server.handle("/echo/1", echo)

    @aio
    async def test_unhandled(self) -> None:
        async with host() as server, host() as client:
            server.handle("/echo/1", echo)
            connection = await client.connect(*server.full_addrs)
            async with connection.open_stream("/echo/1") as stream:
                server.unhandle("/echo/1")
                with pytest.raises(ProtocolNotSupported, match=f"{server.peer_id} does not speak /echo/1"):
                    await connection.open_stream("/echo/1")
                await stream.write(b"still here")
                assert await stream.read() == b"still here"

    @aio
    async def test_a_handler_that_raises_resets_its_stream_only(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with host() as server, host() as client:

            @server.handle("/broken/1")
            async def broken(stream: Stream) -> None:
                await stream.read()
                raise ZeroDivisionError

            connection = await client.connect(*server.full_addrs)
            stream = await connection.open_stream("/broken/1")
            with caplog.at_level(logging.ERROR):
                await stream.write(b"x")
                with pytest.raises(StreamReset):
                    await stream.read()
            assert "the handler of /broken/1 failed" in caplog.text
            assert await ping.ping(connection) < 5


class TestTelling:
    @aio
    async def test_events_from_the_call_on_until_the_end(self) -> None:
        server = host()
        events = server.events()
        async with server, host() as client:
            connection = await client.connect(*server.full_addrs)
            await eventually(lambda: server.peers.get(client.peer_id).agent)
            await connection.close()
            await eventually(lambda: not server.connections)
        told: list[Event] = [event async for event in events]
        kinds = [type(event) for event in told]
        assert kinds == [Listening, ConnectionOpened, PeerIdentified, ConnectionLost]
        listening, opened, identified, lost = told
        assert isinstance(listening, Listening)
        assert listening.peer == server.peer_id
        assert isinstance(opened, ConnectionOpened)
        assert (opened.peer, opened.path, opened.inbound) == (client.peer_id, "direct/tcp", True)
        assert isinstance(identified, PeerIdentified)
        assert identified.agent == f"flare/{flare.__version__}"
        assert ping.PROTOCOL in identified.protocols
        assert isinstance(lost, ConnectionLost)
        assert lost.peer == client.peer_id

    @aio
    async def test_callbacks_until_they_are_taken_back(self) -> None:
        async with host() as server, host() as client:
            seen: list[Event] = []
            stop = client.on_event(seen.append)
            closed: list[flare.Connection] = []
            unhook = client.on_connection_closed(closed.append)
            connection = await client.connect(*server.full_addrs)
            assert [type(event) for event in seen if not isinstance(event, PeerIdentified)] == [
                ConnectionOpened
            ]
            stop()
            stop()
            await connection.close()
            assert closed == [connection]
            assert [event for event in seen if isinstance(event, ConnectionLost)] == []
            unhook()
            unhook()

    @aio
    async def test_identify_fills_the_peer_book(self) -> None:
        async with host(agent="theirs/1") as server, host() as client:
            server.handle("/echo/1", echo)
            await client.connect(*server.full_addrs)
            await eventually(lambda: client.peers.get(server.peer_id).agent)
            known = client.peers.get(server.peer_id)
            assert known.agent == "theirs/1"
            assert known.addrs == server.addrs
            assert {"/echo/1", ping.PROTOCOL, identify.PROTOCOL} <= set(known.protocols)
            assert known.seq > 0, "the addresses came signed"

    @aio
    async def test_new_addresses_are_pushed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with host() as server, host() as client:
            seen = Seen(server)
            await client.connect(*server.full_addrs)
            await eventually(lambda: client.peers.get(server.peer_id).protocols)
            await eventually(lambda: server.peers.get(client.peer_id).protocols)
            news = Multiaddr("/ip4/1.2.3.4/tcp/4001")
            monkeypatch.setattr(server, "_announce", [news])
            server._addrs_changed()
            assert news in (await seen.first(AddressesChanged)).addrs
            await eventually(lambda: news in client.peers.get(server.peer_id).addrs, "the push arrives")

    @aio
    async def test_what_others_see_is_offered_to_a_punch_and_told_to_nobody(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with host() as server, host() as client:
            seen, lan = Multiaddr("/ip4/1.2.3.4/tcp/4001"), Multiaddr("/ip4/10.0.0.1/tcp/4001")
            monkeypatch.setattr(
                client._observed, "addrs", lambda kind="tcp": (seen,) if kind == "tcp" else ()
            )
            monkeypatch.setattr(client, "_announce", [lan])
            await client.connect(*server.full_addrs)
            await eventually(lambda: server.peers.get(client.peer_id).addrs)
            assert client.observed_addrs == (seen,)
            assert seen not in client.addrs
            assert seen not in server.peers.get(client.peer_id).addrs
            assert list(client._punch_addrs()) == [lan, seen], "loopback is for who has nothing else"

    @aio
    async def test_a_host_on_loopback_alone_punches_there(self) -> None:
        async with host() as server:
            assert list(server._punch_addrs()) == list(server.addrs)
            assert all(addr.is_loopback for addr in server.addrs)


class TestClosing:
    @aio
    async def test_nothing_is_left(self) -> None:
        async with host() as server, host() as client:
            await client.connect(*server.full_addrs)  # whatever is made once is made now
        gc.collect()
        before = descriptors()
        async with host() as server, host() as client:
            server.handle("/echo/1", echo)
            connection = await client.connect(*server.full_addrs)
            stream = await connection.open_stream("/echo/1")
            await stream.write(b"x")
            await stream.read()
        assert connection.closed
        with pytest.raises(ConnectionClosed):
            await connection.open_stream("/echo/1")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()
        assert descriptors() == before

    @aio
    async def test_an_error_in_the_block_closes_too(self) -> None:
        with pytest.raises(ZeroDivisionError):
            async with host() as made:
                raise ZeroDivisionError
        assert not made._open


@aio
async def test_an_idle_ping_stream_is_held_as_long_as_the_config_says() -> None:
    config = flare.Config(timeouts=flare.Timeouts(ping_idle=0.05))
    async with host(config=config) as pinged, host() as pinging:
        connection = await pinging.connect(*pinged.full_addrs)
        stream = await connection.open_stream(ping.PROTOCOL)
        await stream.write(bytes(ping.SIZE))
        assert await stream.read_exactly(ping.SIZE) == bytes(ping.SIZE)
        with pytest.raises(flare.StreamReset):
            await stream.read()
