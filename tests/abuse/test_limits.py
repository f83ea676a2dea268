"""What one peer may ask of a host, at the limit and one past it, with the host in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from flare import Host, RelayLimits, RelayServer
from flare._core.wire import frame
from flare.config import Config, HostLimits
from flare.protocols import identify, ping
from flare.protocols.relay import HOP_PROTOCOL, hop
from flare.transport import conduct, connection, multistream
from flare.wire.messages import HopMessage, HopType, Identify
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.frames import VIOLATIONS
from tests.support.aio import aio, eventually
from tests.support.hostile import FIN, RST, SYN, WINDOW, Client, client, data, header

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
HELLO = multistream.encode(multistream.HEADER)
RESERVE = frame(HopMessage(type=HopType.RESERVE).encode())


@contextlib.asynccontextmanager
async def host(**limits: Any) -> AsyncIterator[tuple[Host, Multiaddr]]:
    """A relay, and where it is."""
    config = replace(Config(), host=HostLimits(**limits))
    async with Host(listen=[LOOPBACK], config=config, punch=False) as made, RelayServer(made, RelayLimits()):
        yield made, made.full_addrs[0]


async def flood(hostile: Client, count: int, *frames: Any) -> None:
    """`frames`, each made for its stream id, on `count` streams."""
    for number in range(1, 2 * count, 2):
        with contextlib.suppress(OSError):
            for make in frames:
                await hostile.send(make(number))
                await asyncio.sleep(0.0005 if make is not frames[-1] else 0)


def ask(protocol: str, body: bytes = b"") -> Any:
    return lambda number: data(number, multistream.proposal(protocol) + body, SYN)


FINISH = lambda number: data(number, b"", FIN)  # noqa: E731
RESET = lambda number: header(WINDOW, RST, number, 0)  # noqa: E731
FLOODS: dict[str, tuple[Any, ...]] = {
    "reset before anything was agreed": (lambda n: data(n, HELLO, SYN), RESET),
    "names that nobody speaks": (
        lambda n: data(n, HELLO + multistream.encode("/nobody/1"), SYN),
        FINISH,
    ),
    "no multistream": (lambda n: data(n, b"\x05abcd\n", SYN),),
    "identify": (ask(identify.PROTOCOL), FINISH),
    "identify push": (ask(identify.PUSH_PROTOCOL, frame(Identify(agent_version="x").encode())), FINISH),
    "ping": (ask(ping.PROTOCOL), FINISH),
    "reservations": (ask(HOP_PROTOCOL, RESERVE), FINISH),
    "malformed requests": (ask(HOP_PROTOCOL, frame(b"\xff\xff")), FINISH),
}


@pytest.mark.parametrize("name", FLOODS)
@aio
async def test_whoever_floods_is_cut_off_and_nobody_else(name: str) -> None:
    async with (
        host() as (made, addr),
        Host(listen=[LOOPBACK], punch=False) as honest,
        client(addr) as hostile,
    ):
        good = await honest.connect(addr)
        await eventually(lambda: len(made.connections) == 2)
        for _ in range(4):
            await flood(hostile, int(conduct.BURST) + 20, *FLOODS[name])
        await eventually(lambda: len(made.connections) == 1, timeout=10)
        assert await ping.ping(good) > 0


@pytest.mark.parametrize("name", FLOODS)
@aio
async def test_a_little_of_it_costs_nobody_anything(name: str) -> None:
    async with host() as (made, addr), client(addr) as hostile:
        await flood(hostile, 10, *FLOODS[name])
        await asyncio.sleep(0.1)
        assert len(made.connections) == 1


@aio
async def test_what_an_application_resets_costs_nothing() -> None:
    async with host() as (made, addr), client(addr) as hostile:
        served = 0

        async def serve(stream: Any) -> None:
            nonlocal served
            served += 1
            await stream.read()

        made.handle("/app", serve)
        count = int(conduct.BURST) * 3
        await flood(hostile, count, ask("/app"), RESET)
        await eventually(lambda: served > conduct.BURST, timeout=10)
        await asyncio.sleep(0.1)
        assert len(made.connections) == 1


@aio
async def test_the_address_of_a_peer_that_was_cut_off_pays() -> None:
    async with host(exempt=()) as (made, addr):
        admission = made._tcp.admission
        async with client(addr) as hostile:
            await flood(hostile, int(conduct.BURST) * 2, *FLOODS["no multistream"])
            await eventually(lambda: not made.connections, timeout=10)
        (source,) = admission._sources.values()
        assert source.tokens < HostLimits().handshake_burst_per_ip - 10


@aio
async def test_pushes_at_once_at_the_limit_and_one_past_it() -> None:
    async with host() as (_, addr), client(addr) as hostile:
        await flood(hostile, 3, ask(identify.PUSH_PROTOCOL))
        frames = await hostile.frames(0.3)
        assert [f.stream for f in frames if f.flags & RST and f.stream % 2] == [5]


@aio
async def test_streams_to_the_relay_without_a_request_at_the_limit_and_one_past_it() -> None:
    async with host() as (_, addr), client(addr) as hostile:
        await flood(hostile, hop.MAX_WAITING + 1, ask(HOP_PROTOCOL))
        frames = await hostile.frames(0.3)
        assert [f.stream for f in frames if f.flags & RST and f.stream % 2] == [2 * hop.MAX_WAITING + 1]


@aio
async def test_streams_that_negotiate_in_all_at_the_limit_and_past_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "MAX_NEGOTIATING", 30)
    async with host() as (made, addr), client(addr) as greedy, client(addr) as modest:
        await flood(greedy, 40, lambda n: data(n, HELLO, SYN))
        await eventually(lambda: made.handlers.negotiating == 30)
        await flood(modest, connection.NEGOTIATING_SHARE + 5, lambda n: data(n, HELLO, SYN))
        await eventually(lambda: made.handlers.negotiating == 30 + connection.NEGOTIATING_SHARE)
        await flood(modest, 1, lambda n: data(n + 100, multistream.proposal(ping.PROTOCOL) + bytes(32), SYN))
        await asyncio.sleep(0.1)
        assert made.handlers.negotiating == 30 + connection.NEGOTIATING_SHARE
    await eventually(lambda: not made.handlers.negotiating)


@aio
async def test_a_flood_of_pings_is_answered_so_fast_and_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "BURST", 20)
    monkeypatch.setattr(ping, "RATE", 10)
    async with host() as (_, addr), client(addr) as hostile:
        stream = await hostile.open(ping.PROTOCOL, bytes(32) * 100)
        head = len(multistream.proposal(ping.PROTOCOL))
        assert len(await hostile.answers(stream, head + 64 * 32)) >= head + 64 * 32
        with pytest.raises(TimeoutError):
            await hostile.answers(stream, 32, timeout=1)


@pytest.mark.parametrize("name", VIOLATIONS)
@aio
async def test_a_violation_costs_the_connection_and_nothing_else(name: str) -> None:
    async with (
        host() as (made, addr),
        Host(listen=[LOOPBACK], punch=False) as honest,
        client(addr) as hostile,
    ):
        good = await honest.connect(addr)
        await hostile.send(VIOLATIONS[name]())
        await eventually(lambda: len(made.connections) == 1)
        assert await ping.ping(good) > 0
