"""Hosts whose bytes threads move: the same circuits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import flare
from flare.config import Config
from flare.errors import UsageError
from tests.support.aio import aio, eventually
from tests.support.loopback import echo, host

QUIET = {"punch": False}
CIRCUITS = 4


@asynccontextmanager
async def relay(threads: int) -> AsyncIterator[tuple[flare.Host, flare.RelayServer]]:
    """A relay without limits, with so many data threads, on loopback."""
    async with (
        host(config=Config(data_threads=threads), **QUIET) as relaying,
        flare.RelayServer(relaying, flare.RelayLimits.unlimited()) as server,
    ):
        yield relaying, server


@pytest.mark.parametrize("threads", [1, 2])
@aio(timeout=40)
async def test_circuits_between_separate_peers(threads: int) -> None:
    data = random.Random(threads).randbytes(700_000)

    async def one(relaying: flare.Host) -> None:
        addrs = relaying.full_addrs
        async with host(relays=addrs, **QUIET) as bob, host(**QUIET) as alice:
            bob.handle("/echo/1", echo)
            await eventually(lambda: any(addr.is_circuit for addr in bob.addrs))
            connection = await alice.connect(*(addr for addr in bob.full_addrs if addr.is_circuit))
            for _ in range(2):
                async with connection.open_stream("/echo/1") as stream:
                    sending = asyncio.create_task(stream.write(data))
                    assert await stream.read_exactly(len(data)) == data
                    await sending
            await connection.close()

    async with relay(threads) as (relaying, server):
        await asyncio.gather(*(one(relaying) for _ in range(CIRCUITS)))
        await eventually(lambda: server.circuits == 0)
        assert server.counters.circuits_opened == CIRCUITS
        assert server.counters.bytes_relayed > 4 * CIRCUITS * len(data)


@aio(timeout=40)
async def test_endpoints_may_have_threads_too() -> None:
    threaded = Config(data_threads=2)
    async with (
        relay(0) as (relaying, _),
        host(relays=relaying.full_addrs, config=threaded, **QUIET) as bob,
        host(config=threaded, **QUIET) as alice,
    ):
        bob.handle("/echo/1", echo)
        await eventually(lambda: any(addr.is_circuit for addr in bob.addrs))
        for addrs in (bob.full_addrs[:1], [addr for addr in bob.full_addrs if addr.is_circuit]):
            connection = await alice.connect(*addrs)
            async with connection.open_stream("/echo/1") as stream:
                await stream.write(bytes(50_000))
                assert len(await stream.read_exactly(50_000)) == 50_000
            await connection.close()


def test_fewer_than_none() -> None:
    async def start() -> None:
        async with flare.Host(config=Config(data_threads=-1)):
            pass

    with pytest.raises(UsageError, match="0 or more"):
        asyncio.run(start())
