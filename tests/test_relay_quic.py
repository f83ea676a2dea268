"""A relay over QUIC: circuits between any two transports, the same limits, and from there to direct."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import flare
from flare.config import SECURITY
from flare.errors import LimitedConnection, StreamClosed, StreamReset
from flare.events import CircuitClosed, PunchSucceeded, ReservationAccepted
from tests.support.aio import aio
from tests.support.hosts import echo
from tests.support.loopback import Seen, host

TCP = "/ip4/127.0.0.1/tcp/0"
QUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
BOTH = {"tcp": TCP, "quic-v1": QUIC}
WAYS = ("tcp-noise", "tcp-tls", "quic-v1")
PAIRS = [(dialler, listener) for dialler in WAYS for listener in WAYS]


def way(relay: flare.Host, transport: str) -> str:
    """The relay's address of one transport."""
    return next(str(addr) for addr in relay.full_addrs if addr.transport == transport)


def parts(by: str) -> tuple[str, str]:
    """Transport and security of one of WAYS."""
    transport, _, security = by.partition("-")
    return (by, "tls") if by == "quic-v1" else (transport, security)


def peer(relay: flare.Host, by: str, **how: Any) -> flare.Host:
    """A host that knows the relay by one of WAYS, and listens on that transport."""
    transport, security = parts(by)
    first: Any = (security, *(other for other in SECURITY if other != security))
    config = flare.Config(security=first)
    return host(listen=[BOTH[transport]], relays=[way(relay, transport)], config=config, **how)


@pytest.mark.parametrize(("dialler", "listener"), PAIRS)
@aio
async def test_circuits_between_any_two(dialler: str, listener: str) -> None:
    async with (
        host(listen=[TCP, QUIC]) as relay,
        flare.RelayServer(relay, flare.RelayLimits.unlimited()),
        peer(relay, listener, punch=False) as bob,
        peer(relay, dialler, punch=False) as alice,
    ):
        bob.handle("/echo", echo)
        await Seen(bob).first(ReservationAccepted)
        connection = await alice.connect(bob.peer_id)
        assert connection.path == "relayed"
        for who, by in ((alice, dialler), (bob, listener)):
            (theirs,) = relay.connections_to(who.peer_id)
            transport, security = parts(by)
            assert theirs.path == f"direct/{transport}"
            assert security in theirs.security.split("/")
        data = os.urandom(3_000_000)
        async with connection.open_stream("/echo") as stream:
            sending = asyncio.create_task(stream.write(data))
            assert await stream.read_exactly(len(data)) == data
            await sending


@pytest.mark.parametrize(("size", "passes"), [(20_000, True), (60_000, False)])
@aio
async def test_the_limit_holds_over_quic(size: int, passes: bool) -> None:
    limits = flare.RelayLimits(circuit_bytes=40_000)
    async with (
        host(listen=[QUIC]) as relay,
        flare.RelayServer(relay, limits),
        peer(relay, "quic-v1", punch=False) as bob,
        peer(relay, "quic-v1", punch=False) as alice,
    ):
        bob.handle("/echo", echo, allow_limited=True)
        closed = Seen(relay)
        await Seen(bob).first(ReservationAccepted)
        connection = await alice.connect(bob.peer_id)
        assert connection.is_limited
        with pytest.raises(LimitedConnection):
            await connection.open_stream("/other")
        if passes:
            async with connection.open_stream("/echo", allow_limited=True) as stream:
                await stream.write(bytes(size))
                assert await stream.read_exactly(size) == bytes(size)
            return
        stream = await connection.open_stream("/echo", allow_limited=True)
        sending = asyncio.create_task(stream.write(bytes(size)))
        with pytest.raises((StreamReset, StreamClosed, flare.ConnectionClosed)):
            await stream.read_exactly(size)
        await asyncio.wait([sending])
        sending.exception()
        assert (await closed.first(CircuitClosed)).reason == "limit"


@pytest.mark.parametrize(
    ("dialler", "listener"), [("quic-v1", "quic-v1"), ("both", "both"), ("both", "quic-v1")]
)
@aio
async def test_a_relayed_connection_goes_direct_over_quic(dialler: str, listener: str) -> None:
    def node(transport: str, relay: flare.Host) -> flare.Host:
        listen = [TCP, QUIC] if transport == "both" else [BOTH[transport]]
        return host(listen=listen, relays=[way(relay, "quic-v1")], is_public=lambda addr: True)

    async with (
        host(listen=[TCP, QUIC]) as relay,
        flare.RelayServer(relay),
        node(listener, relay) as bob,
        node(dialler, relay) as alice,
    ):
        bob.handle("/echo", echo)
        seen = Seen(bob)
        await seen.first(ReservationAccepted)
        connection = await alice.connect(f"{way(relay, 'quic-v1')}/p2p-circuit/p2p/{bob.peer_id}")
        direct = await connection.direct(10)
        assert direct.path in ("direct/quic-v1", "direct/tcp")
        if "both" not in (dialler, listener):
            assert direct.path == "direct/quic-v1"
        told = await seen.first(PunchSucceeded)
        assert told.path == direct.path, "both keep the same connection"
        async with direct.open_stream("/echo") as stream:
            await stream.write(b"hello")
            assert await stream.read_exactly(5) == b"hello"
        await asyncio.sleep(0.5)
        assert not direct.closed
        assert len([c for c in alice.connections_to(bob.peer_id) if not c.is_relayed]) == 1
        assert len([c for c in bob.connections_to(alice.peer_id) if not c.is_relayed]) == 1
