"""A user's program, for mypy --strict and not to be run: what the public API promises about types.

Each `type: ignore` names a mistake that mypy must find: `--strict` complains when it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

import flare
from flare.events import Event, PunchGaveUp, PunchSucceeded, ReservationAccepted
from flare.nat.relay_sources import FoundRelay


class Greeter:
    """Something of the user's that serves a protocol."""

    async def serve(self, stream: flare.Stream) -> None:
        name = await stream.read_exactly(5)
        assert_type(name, bytes)
        await stream.write_frame(b"hello " + name)


async def main(relays: Sequence[str], peer: flare.PeerId) -> None:
    config = flare.Config(
        timeouts=flare.Timeouts(dial=5),
        mux=flare.MuxLimits(max_streams=16),
        punch=flare.PunchConfig(attempts=2),
        host=flare.HostLimits(max_connections=10),
    )
    identity = flare.Identity.generate()
    async with flare.Host(identity=identity, relays=relays, config=config, punch=True) as host:

        @host.handle("/shout/1.0.0", allow_limited=True)
        async def shout(stream: flare.Stream) -> None:
            await stream.write((await stream.read()).upper())

        await shout(await (await host.connect(peer)).open_stream("/shout/1.0.0"))  # it is still what it was
        served = host.handle("/greet/1.0.0", Greeter().serve)
        host.unhandle("/greet/1.0.0")
        del served

        assert_type(host.addrs, tuple[flare.Multiaddr, ...])
        assert_type(host.peer_id, flare.PeerId)
        connection = await host.connect("/ip4/192.0.2.1/tcp/4001", peer, timeout=3)
        assert_type(connection, flare.Connection)
        assert_type(connection.remote_addr, flare.Multiaddr)
        if connection.limit is not None:
            assert_type(connection.limit.data, int | None)
        try:
            connection = await connection.direct(timeout=10)
        except flare.PunchFailed as failure:
            assert_type(failure.reason, str)
        async with connection.open_stream("/shout/1.0.0", "/greet/1.0.0") as stream:
            assert_type(stream.protocol, str)
            assert_type(await stream.read(), bytes)
            await stream.write("text")  # type: ignore[arg-type]
        connection.open_stream(b"/shout/1.0.0")  # type: ignore[arg-type]
        host.connect(4001)  # type: ignore[arg-type, unused-coroutine]

        def on_event(event: Event) -> None:
            match event:
                case PunchSucceeded(path=path, seconds=seconds):
                    assert_type(path, str)
                    assert_type(seconds, float)
                case PunchGaveUp(reason=reason):
                    assert_type(reason, str)
                case ReservationAccepted(addrs=addrs):
                    assert_type(addrs, tuple[flare.Multiaddr, ...])
                case _:
                    pass

        stop = host.on_event(on_event)
        stop()
        async for event in host.events():
            on_event(event)


def not_async(stream: flare.Stream) -> None:
    """No handler: it must be a coroutine function."""


async def relay(friends: Sequence[flare.PeerId]) -> int:
    class Friends:
        def allow_reserve(self, peer: flare.PeerId, addr: flare.Multiaddr) -> bool:
            return peer in friends

        def allow_connect(self, source: flare.PeerId, addr: flare.Multiaddr, target: flare.PeerId) -> bool:
            return addr.is_public

    limits = flare.RelayLimits(circuit_bytes=1 << 20)
    async with (
        flare.Host() as host,
        flare.RelayServer(host, limits, acl=Friends(), unlimited=friends) as server,
    ):
        host.handle("/no/1", not_async)  # type: ignore[type-var]
        flare.RelayServer(host, acl=object())  # type: ignore[arg-type]
        assert_type(server.counters.bytes_relayed, int)
        return server.circuits


async def found(service: str) -> tuple[flare.PeerId, ...]:
    class Ours:
        name = "our directory"
        trusted = True

        async def find(self) -> Sequence[FoundRelay]:
            peer = flare.PeerId("12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5")
            return [FoundRelay(peer, (flare.Multiaddr("/ip4/198.51.100.7/tcp/4001"),))]

    dns = flare.Multiaddr("/dnsaddr/relays.example")
    config = flare.AutoRelayConfig(wanted=1)
    async with flare.Host() as host, flare.AutoRelay(host, [service, dns, Ours()], config=config) as auto:
        flare.AutoRelay(host, [7])  # type: ignore[list-item]
        assert_type(auto.candidates[0].rtt, float | None)
        return auto.relays
