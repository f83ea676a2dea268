"""A host whose ground moves: addresses that go, a suspended machine, and who is checked then."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

import pytest

import flare
from flare import host_network
from flare.config import Config, ReservationConfig
from flare.events import AddressesChanged, ConnectionLost, NetworkChanged, ReservationAccepted
from flare.host_network import HostNetwork
from flare.transport import tcp
from flare.transport.address_watch import ADDRESS, ROUTE
from tests.support.aio import aio, eventually
from tests.support.loopback import Seen, host, relay


def network(of: flare.Host) -> HostNetwork:
    """What watches for a host; the test plays the kernel."""
    return of._network


class TestAddresses:
    @aio
    async def test_what_does_not_answer_from_an_address_that_is_gone_is_ended(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(host_network, "CHECK", 0.2)
        async with host() as there, host(punch=False) as ours, Path(there) as path:
            seen = Seen(ours)
            silent = await ours.connect(path.addr)
            network(ours)._ips = lambda: frozenset({"127.0.0.1"})
            network(ours)._own = network(ours)._ips()
            path.stall()
            network(ours)._ips = frozenset
            network(ours)._changed(frozenset({ADDRESS}))
            changed = await seen.first(NetworkChanged)
            assert changed.gone == ("127.0.0.1",)
            lost = await seen.first(ConnectionLost)
            assert "no answer since our network changed" in lost.reason
            assert silent.closed

    @aio
    async def test_what_answers_stays(self) -> None:
        async with host() as there, host() as ours:
            seen = Seen(ours)
            connection = await ours.connect(*there.full_addrs)
            network(ours)._own = frozenset({"127.0.0.1"})
            network(ours)._ips = frozenset
            network(ours)._changed(frozenset({ADDRESS}))
            await seen.first(NetworkChanged)
            assert await connection.ping() > 0
            assert not connection.closed

    @aio
    async def test_a_message_that_repeats_what_is_so_is_no_news(self) -> None:
        async with host() as ours:
            seen = Seen(ours)
            network(ours)._changed(frozenset({ADDRESS}))
            assert not seen.of(NetworkChanged)
            network(ours)._changed(frozenset({ROUTE}))
            assert "routes" in seen.of(NetworkChanged)[0].reason

    @aio
    async def test_new_addresses_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with host(listen=["/ip4/0.0.0.0/tcp/0"]) as ours:
            seen = Seen(ours)
            port = ours.listen_addrs[0].port
            monkeypatch.setattr(tcp, "interface_addresses", lambda version: [IPv4Address("10.9.8.7")])
            network(ours)._own = frozenset({"10.0.0.1"})
            network(ours)._changed(frozenset({ADDRESS}))
            assert seen.of(AddressesChanged)[-1].addrs == (flare.Multiaddr(f"/ip4/10.9.8.7/tcp/{port}"),)


class TestSuspend:
    @aio
    async def test_reservations_are_made_anew(self) -> None:
        async with relay() as (there, _):
            config = Config(reservation=ReservationConfig(refresh_at_least=0, hurry=0))
            async with host(relays=there.full_addrs[:1], config=config) as ours:
                seen = Seen(ours)
                await seen.first(ReservationAccepted)
                network(ours)._resumed(3600.0)
                assert seen.of(NetworkChanged)[0].reason == "this machine was suspended for 3600 s"
                await eventually(lambda: len(seen.of(ReservationAccepted)) == 2)

    @aio
    async def test_a_relay_that_is_gone_is_found_out_and_dialled_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(host_network, "CHECK", 0.2)
        async with relay() as (there, _), Path(there) as path, host(relays=[path.addr]) as ours:
            seen = Seen(ours)
            await seen.first(ReservationAccepted)
            path.stall()
            network(ours)._resumed(60.0)
            await seen.first(ConnectionLost)
            path.resume()
            await eventually(lambda: len(seen.of(ReservationAccepted)) == 2, timeout=15)


class Path:
    """A way to a host's TCP port on which nothing passes while it is stalled."""

    def __init__(self, there: flare.Host) -> None:
        self._there = there
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.addr = flare.Multiaddr(f"/ip4/127.0.0.1/tcp/{port}/p2p/{self._there.peer_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def stall(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.ensure_future(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._there.listen_addrs[0].port
        back, onward = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(self._copy(reader, onward), self._copy(back, writer))
        finally:
            writer.transport.abort()
            onward.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            writer.transport.abort()
