"""What strangers cost a relay in memory, each by itself: `python -m tests.abuse.memory`, as root.

Resident memory of a fresh `flare relay --no-limits` per half-open connection, unfinished handshake,
connection, stream that negotiates and circuit, over COUNT of them. docs/abuse.md holds the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from flare.transport import multistream
from flare.wire.multiaddr import Multiaddr
from tests.abuse.attacks.circuits import _pairs
from tests.abuse.attacks.common import source
from tests.abuse.attacks.datagrams import begin, udp_from
from tests.abuse.attacks.doors import HELLO
from tests.abuse.place import LISTEN, LISTEN_QUIC, Place, place
from tests.support.hostile import SYN, client, data

COUNT: Final = 1000
SETTLE: Final = 1.5  # seconds for the relay to have done its part


def silent(place: Place, said: bytes) -> float:
    """Bytes per connection that says `said` and no more."""
    addr = Multiaddr(LISTEN)
    before = place.rss
    held = []
    for number in range(COUNT):
        sock = socket.socket()
        sock.bind((source(number // 20), 0))
        sock.connect((str(addr.ip), addr.port))
        sock.sendall(said)
        held.append(sock)
    time.sleep(SETTLE)
    grew = place.rss - before
    for sock in held:
        sock.close()
    return grew / COUNT


async def connected(place: Place, streams: int) -> float:
    """Bytes per connection with so many streams that negotiate; per stream if there are any."""
    addr = Multiaddr(place.addr)
    count = COUNT // 10 if streams else COUNT
    async with contextlib.AsyncExitStack() as stack:
        before = place.rss
        clients = [
            await stack.enter_async_context(client(addr, source=source(number))) for number in range(count)
        ]
        await asyncio.sleep(SETTLE)
        if streams:
            before = place.rss
            hello = multistream.encode(multistream.HEADER)
            for peer in clients:
                await peer.send(*(data(2 * n + 1, hello, SYN) for n in range(streams)))
            await asyncio.sleep(SETTLE)
        return (place.rss - before) / count / max(1, streams)


async def circuits(place: Place, carry: bytes) -> float:
    """Bytes per circuit, with its share of the connections at its ends."""
    before = place.rss
    did: Counter[str] = Counter()
    attack = asyncio.create_task(_pairs(Multiaddr(place.addr), did, carry, pairs=10, each=50, twice=True))
    await asyncio.sleep(3 + 2 * SETTLE)
    assert did["asked"] == 500, did
    grew = place.rss - before
    attack.cancel()
    await asyncio.wait([attack])
    return grew / 500


def quic_handshakes(place: Place, finish: bool) -> float:
    """Bytes per QUIC connection whose client proved its address, and went on if it is to `finish`."""
    addr = Multiaddr(place.addr)
    remote = (str(addr.ip), addr.port or 0)
    before = place.rss
    held = []
    for number in range(COUNT // 4):
        sock = udp_from(number)
        sock.settimeout(5)
        connection = begin(remote)
        for _ in range(12 if finish else 2):
            for said, to in connection.datagrams(time.monotonic()):
                sock.sendto(said, to)
            if connection._quic._handshake_confirmed:
                break
            with contextlib.suppress(TimeoutError):
                connection.receive((sock.recv(2048),), remote, time.monotonic())
            sock.settimeout(0.05)
        held.append((sock, connection))
    time.sleep(SETTLE)
    grew = place.rss - before
    for sock, _ in held:
        sock.close()
    return grew / len(held)


def main() -> None:
    quic: dict[str, bool] = {
        "QUIC handshake that stops before its end": False,
        "QUIC connection": True,
    }
    for name, finish in quic.items():
        with place("--no-limits", listen=LISTEN_QUIC) as made, made.namespace.entered():
            print(f"{name:44} {quic_handshakes(made, finish) / 1024:8.1f} KiB", flush=True)
    cases: dict[str, Callable[[Place], float | Coroutine[Any, Any, float]]] = {
        "half-open connection that says nothing": lambda place: silent(place, b""),
        "handshake that stops before its key": lambda place: silent(place, HELLO),
        "handshake that stops in its last message": lambda place: silent(
            place, HELLO + b"\0\x20" + bytes([9] * 32) + b"\x0f\xff" + bytes(4000)
        ),
        "connection": lambda place: connected(place, 0),
        "stream that negotiates": lambda place: connected(place, 40),
        "idle circuit": lambda place: circuits(place, b""),
        "circuit that is filled and not read": lambda place: circuits(place, bytes(255 * 1024)),
    }
    for name, case in cases.items():
        with place("--no-limits") as made, made.namespace.entered():
            result = case(made)
            cost = result if isinstance(result, float) else asyncio.run(result)
        print(f"{name:44} {cost / 1024:8.1f} KiB", flush=True)


if __name__ == "__main__":
    main()
