"""On streams: protocols asked for without end, and the relay's own answered for ever."""

from __future__ import annotations

import asyncio
from collections import Counter

from flare._core.wire import frame
from flare.transport import multistream
from flare.wire.messages import HopMessage, HopType, Identify
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.common import again_and_again, crowd, deafly, paced
from tests.support.hostile import FIN, RST, SYN, WINDOW, Client, data, header

HOP = "/libp2p/circuit/relay/0.2.0/hop"
ID = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"


async def _streams(client: Client, did: Counter[str], rate: float, body: bytes, reset: bool = False) -> None:
    """Open a stream that says `body` at `rate`."""
    number = 1
    async with crowd() as start:
        start(deafly(client))
        async for _ in paced(rate):
            frames = [
                data(number, body[at : at + 60_000], 0 if at else SYN) for at in range(0, len(body), 60_000)
            ]
            if reset:
                frames.append(header(WINDOW, RST, number, 0))
            else:
                frames.append(data(number, b"", FIN))
            await client.send(*frames)
            number += 2
            did["streams"] += 1


async def unknown_protocols(addr: Multiaddr, did: Counter[str]) -> None:
    """10 connections with 100 streams a second each, on each 31 long names that nobody speaks, and `ls`."""
    names = b"".join(multistream.encode(f"/{i}/{'x' * 900}") for i in range(30)) + multistream.encode("ls")
    body = multistream.encode(multistream.HEADER) + names

    async def attack(client: Client) -> None:
        await _streams(client, did, 100, body)

    await again_and_again(addr, did, attack, 10)


async def identify_requests(addr: Multiaddr, did: Counter[str]) -> None:
    """10 connections that ask who the relay is 100 times a second each."""

    async def attack(client: Client) -> None:
        await _streams(client, did, 100, multistream.proposal(ID))

    await again_and_again(addr, did, attack, 10)


async def identify_junk(addr: Multiaddr, did: Counter[str]) -> None:
    """10 connections that push 60 KiB of addresses and names 20 times a second each."""
    addrs = tuple(Multiaddr(f"/ip4/10.{i >> 8}.{i & 255}.1/tcp/{1 + i}") for i in range(4000))
    names = tuple(f"/{i}" for i in range(1000))
    body = multistream.proposal(PUSH) + frame(Identify(listen_addrs=addrs, protocols=names).encode())

    async def attack(client: Client) -> None:
        await _streams(client, did, 20, body)

    await again_and_again(addr, did, attack, 10)


async def ping_streams(addr: Multiaddr, did: Counter[str]) -> None:
    """10 connections that each send 20,000 pings a second on a ping stream, 512 in a record."""
    many = bytes(32) * 512

    async def attack(client: Client) -> None:
        stream = await client.open("/ipfs/ping/1.0.0")
        async with crowd() as start:
            start(deafly(client))
            async for _ in paced(40):
                await client.send(data(stream, many))
                did["pings"] += 512

    await again_and_again(addr, did, attack, 10)


async def reserves(addr: Multiaddr, did: Counter[str]) -> None:
    """20 connections that each ask for a reservation 100 times a second."""
    body = multistream.proposal(HOP) + frame(HopMessage(type=HopType.RESERVE).encode())

    async def attack(client: Client) -> None:
        await _streams(client, did, 100, body)

    await again_and_again(addr, did, attack, 20)


async def held_streams(addr: Multiaddr, did: Counter[str]) -> None:
    """50 connections that open 1,000 streams each for the relay's own protocols and say no more."""
    asked = (multistream.proposal(HOP), multistream.proposal(PUSH) + b"\xff\xff\x03" + bytes(4000))

    async def attack(client: Client) -> None:
        async with crowd() as start:
            start(deafly(client))
            for number in range(1, 2001, 2):
                await client.send(data(number, asked[number // 2 % 2], SYN))
                did["streams"] += 1
                await asyncio.sleep(0.002)
            await asyncio.Event().wait()

    await again_and_again(addr, did, attack, 50)


ATTACKS = (unknown_protocols, identify_requests, identify_junk, ping_streams, reserves, held_streams)
