"""Over UDP: noise on a QUIC listener's socket, and clients whose addresses are others' or lead nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from flare._core.udp import Datagrams
from flare.config import QuicLimits
from flare.transport.quic_aioquic import AioquicConnection, AioquicEngine
from flare.transport.quic_engine import Address
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.common import crowd, paced, source

BATCH = 200  # datagrams of one socket at a time
ENGINE = AioquicEngine(Identity.generate(), QuicLimits())


class Nobody:
    """Events that nobody wants."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def begin(remote: Address) -> AioquicConnection:
    """A client's connection."""
    return ENGINE.connect(remote, lambda chain: None, Nobody(), time.monotonic())


def udp_from(number: int) -> socket.socket:
    """A UDP socket at one of the attackers' addresses."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((source(number), 0))
    return sock


async def _flood(
    addr: Multiaddr, did: Counter[str], rate: float, sources: int, make: Callable[[], bytes]
) -> None:
    """`rate` datagrams a second from so many addresses; each batch is of new ones."""
    remote = (str(addr.ip), addr.port or 0)
    sockets = [udp_from(number) for number in range(sources)]
    outs = [Datagrams(sock.fileno(), gro=False) for sock in sockets]
    try:
        async for number in paced(rate / BATCH):
            did["sent"] += outs[number % sources].send([(make(), remote) for _ in range(BATCH)])
    finally:
        for sock in sockets:
            sock.close()


async def quic_noise(addr: Multiaddr, did: Counter[str]) -> None:
    """100,000 datagrams a second of 64 random bytes from 50 IPs."""
    pool = [os.urandom(64) for _ in range(5000)]
    turn = iter(range(1 << 62))
    await _flood(addr, did, 100_000, 50, lambda: pool[next(turn) % 5000])


async def quic_strays(addr: Multiaddr, did: Counter[str]) -> None:
    """50,000 packets a second of connections that are not there, from 50 IPs: each asks for a reset."""
    pool = [b"\x40" + os.urandom(63) for _ in range(5000)]
    turn = iter(range(1 << 62))
    await _flood(addr, did, 50_000, 50, lambda: pool[next(turn) % 5000])


async def quic_versions(addr: Multiaddr, did: Counter[str]) -> None:
    """10,000 datagrams a second in a version that nobody speaks, from 50 IPs."""
    hello = bytes((0xC0, 0x6B, 0x33, 0x43, 0xCF, 8)) + os.urandom(8) + bytes((8,)) + os.urandom(8)
    await _flood(addr, did, 10_000, 50, lambda: hello.ljust(1200, b"\0"))


async def quic_spoofed(addr: Multiaddr, did: Counter[str]) -> None:
    """5,000 Initials a second that are good, from 5,000 addresses and ports that hear no answer."""
    remote = (str(addr.ip), addr.port or 0)
    ((flight, _), *_) = begin(remote).datagrams(time.monotonic())
    sockets = [udp_from(number) for number in range(5000)]
    try:
        async for number in paced(5000):
            with contextlib.suppress(OSError):
                sockets[number % len(sockets)].sendto(flight, remote)
                did["sent"] += 1
    finally:
        for sock in sockets:
            sock.close()


async def quic_half_open(addr: Multiaddr, did: Counter[str]) -> None:
    """100 handshakes a second from 100 IPs that prove their address when asked, and stop there."""
    loop = asyncio.get_running_loop()
    remote = (str(addr.ip), addr.port or 0)

    async def one(number: int) -> None:
        with contextlib.suppress(OSError, TimeoutError), udp_from(number % 100) as sock:
            connection = begin(remote)
            async with asyncio.timeout(5):
                for data, to in connection.datagrams(time.monotonic()):
                    await loop.sock_sendto(sock, data, to)
                answer = await loop.sock_recv(sock, 2048)
                did["answered"] += 1
                if answer[0] & 0xF0 == 0xF0:
                    connection.receive((answer,), remote, time.monotonic())
                    for data, to in connection.datagrams(time.monotonic()):
                        await loop.sock_sendto(sock, data, to)
                    await loop.sock_recv(sock, 2048)
                    did["proved and answered"] += 1

    async with crowd() as start:
        async for number in paced(100):
            start(one(number))


ATTACKS = (
    quic_noise,
    quic_strays,
    quic_versions,
    quic_spoofed,
    quic_half_open,
)
