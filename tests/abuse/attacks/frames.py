"""On a connection: frames that are allowed one by one, and those that are not."""

from __future__ import annotations

import asyncio
from collections import Counter

from flare.transport import multistream
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.common import again_and_again, crowd, deafly, paced
from tests.support.hostile import (
    ACK,
    DATA,
    GOAWAY,
    PING,
    RST,
    SYN,
    WINDOW,
    WINDOW_SIZE,
    Client,
    data,
    header,
)


async def pings(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections with 50,000 yamux pings a second each, whose answers nobody reads."""

    async def attack(client: Client) -> None:
        flood = header(PING, SYN, 0, 7) * 500
        async for _ in paced(100):
            await client.send(flood)
            did["pings"] += 500

    await again_and_again(addr, did, attack, 4)


async def refused_streams(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections that open 20,000 streams a second each beyond what is allowed."""

    async def attack(client: Client) -> None:
        number = 1
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(100):
                await client.send(*(header(WINDOW, SYN, number + 2 * i, 0) for i in range(200)))
                number += 400
                did["streams"] += 200

    await again_and_again(addr, did, attack, 4)


async def rapid_reset(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections that open 500 streams a second each, begin to negotiate, and reset them."""

    async def attack(client: Client) -> None:
        number = 1
        hello = multistream.encode(multistream.HEADER)
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(100):
                opened = range(number, number + 10, 2)
                await client.send(*(data(i, hello, SYN) for i in opened))
                await asyncio.sleep(0.002)
                await client.send(*(header(WINDOW, RST, i, 0) for i in opened))
                number += 10
                did["streams"] += 5

    await again_and_again(addr, did, attack, 4)


async def goaways(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections with 50,000 go-aways a second each."""

    async def attack(client: Client) -> None:
        flood = header(GOAWAY, 0, 0, 0) * 500
        async for _ in paced(100):
            await client.send(flood)
            did["frames"] += 500

    await again_and_again(addr, did, attack, 4)


async def one_byte_frames(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections with 4,000 records a second each, and in each record frames of one byte on one stream."""

    async def attack(client: Client) -> None:
        stream = await client.open("/ipfs/ping/1.0.0")
        frames = data(stream, b"x") * 8
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(4000):
                await client.send(frames)
                did["frames"] += 8

    await again_and_again(addr, did, attack, 4)


async def frames_of_nobody(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections with 50,000 frames a second each, for streams that are gone."""

    async def attack(client: Client) -> None:
        await client.send(header(WINDOW, SYN, 1, 0), header(WINDOW, RST, 1, 0))
        flood = (data(1, b"x") + header(WINDOW, 0, 1, 5) + header(WINDOW, RST, 1, 0)) * 170
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(100):
                await client.send(flood)
                did["frames"] += 510

    await again_and_again(addr, did, attack, 4)


async def one_chain_of_the_table(addr: Multiaddr, did: Counter[str]) -> None:
    """4 connections with 240 streams each whose ids are far apart, and 50,000 frames a second for one."""

    async def attack(client: Client) -> None:
        ids = [1 + 8192 * number for number in range(240)]
        await client.send(*(header(WINDOW, SYN, i, 0) for i in ids))
        flood = header(WINDOW, 0, ids[0], 0) * 500
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(100):
                await client.send(flood)
                did["frames"] += 500

    await again_and_again(addr, did, attack, 4)


VIOLATIONS = {
    "window overflow": lambda: header(WINDOW, SYN, 1, 0) + header(WINDOW, 0, 1, 0xFFFFFFFF) * 2,
    "data past the window": lambda: data(1, b"", SYN) + header(DATA, 0, 1, WINDOW_SIZE + 1),
    "wrong parity": lambda: header(WINDOW, SYN, 2, 0),
    "an id again": lambda: header(WINDOW, SYN, 1, 0) * 2,
    "data for a stream never opened": lambda: data(9, b"x"),
    "an ack for a stream never opened": lambda: header(WINDOW, ACK, 8, 0),
    "stream 0": lambda: data(0, b"x"),
    "a type unknown": lambda: header(9, 0, 1, 0),
    "a version unknown": lambda: header(DATA, 0, 1, 0, version=1),
}


async def violations(addr: Multiaddr, did: Counter[str]) -> None:
    """20 connections that break the rules in turn, each again as soon as it is cut off."""
    turn = 0

    async def attack(client: Client) -> None:
        nonlocal turn
        turn += 1
        name = list(VIOLATIONS)[turn % len(VIOLATIONS)]
        await client.send(VIOLATIONS[name]())
        async with asyncio.timeout(5):
            await deafly(client)
        did[name] += 1

    await again_and_again(addr, did, attack, 20)


ATTACKS = (
    pings,
    refused_streams,
    rapid_reset,
    goaways,
    one_byte_frames,
    frames_of_nobody,
    one_chain_of_the_table,
    violations,
)
