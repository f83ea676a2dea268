"""Before the door: connections that never become any."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from functools import partial

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flare.transport import multistream
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.common import crowd, paced, source

HELLO = multistream.proposal("/noise")
HELD = 10_000


async def _hold(addr: Multiaddr, did: Counter[str], rate: float, sources: int, said: bytes = b"") -> None:
    """Connections at `rate` from so many IPs, which say `said` and then nothing; at most HELD at once."""
    loop = asyncio.get_running_loop()
    held: list[socket.socket] = []
    try:
        async for number in paced(rate):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((source(number % sources), 0))
            with contextlib.suppress(OSError):
                sock.connect((str(addr.ip), addr.port))
            held.append(sock)
            did["opened"] += 1
            if said:
                loop.call_later(0.05, partial(_say, sock, said))
            if len(held) > HELD:
                held.pop(0).close()
    finally:
        for sock in held:
            sock.close()


def _say(sock: socket.socket, said: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.send(said)


async def half_open_one_ip(addr: Multiaddr, did: Counter[str]) -> None:
    """2,000 connections a second from one IP that say nothing."""
    await _hold(addr, did, 2000, 1)


async def half_open_many_ips(addr: Multiaddr, did: Counter[str]) -> None:
    """2,000 connections a second from 2,000 IPs that say nothing."""
    await _hold(addr, did, 2000, 2000)


async def half_said(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 connections a second from 2,000 IPs that stop within a long handshake message."""
    await _hold(addr, did, 1000, 2000, HELLO + b"\x10\x00" + bytes(4000))


async def garbage(addr: Multiaddr, did: Counter[str]) -> None:
    """1,000 connections a second from 500 IPs that say what is no handshake."""
    await _hold(addr, did, 1000, 500, b"GET / HTTP/1.1\r\n\r\n")


async def one_byte_a_second(addr: Multiaddr, did: Counter[str]) -> None:
    """500 connections from 50 IPs, each with a handshake that comes a byte a second."""
    loop = asyncio.get_running_loop()

    async def drip(number: int) -> None:
        while True:
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.setblocking(False)
                sock.bind((source(number % 50), 0))
                await loop.sock_connect(sock, (str(addr.ip), addr.port))
                did["opened"] += 1
                for byte in HELLO:
                    await loop.sock_sendall(sock, bytes((byte,)))
                    await asyncio.sleep(1)
            await asyncio.sleep(1)

    async with crowd() as start:
        for number in range(500):
            start(drip(number))
        await asyncio.Event().wait()


async def unfinished_handshakes(addr: Multiaddr, did: Counter[str]) -> None:
    """400 handshakes a second from 100 IPs, given up when the relay has done its part of the arithmetic."""
    loop = asyncio.get_running_loop()
    key = X25519PrivateKey.from_private_bytes(os.urandom(32)).public_key().public_bytes_raw()

    async def one(number: int) -> None:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setblocking(False)
            sock.bind((source(number % 100), 0))
            await loop.sock_connect(sock, (str(addr.ip), addr.port))
            await loop.sock_sendall(sock, HELLO + b"\0\x20" + key)
            got = 0
            while got < 200 and (data := await loop.sock_recv(sock, 4096)):
                got += len(data)
            did["answered" if got >= 200 else "cut off"] += 1

    async with crowd() as start:
        async for number in paced(400):
            start(one(number))


ATTACKS = (
    half_open_one_ip,
    half_open_many_ips,
    half_said,
    garbage,
    one_byte_a_second,
    unfinished_handshakes,
)
