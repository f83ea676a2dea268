"""The honest peers, a process: one circuit through the relay that carries RATE all the time, and newcomers.

They speak what the relay's address says, TCP or QUIC; over QUIC the circuit carries QUIC_RATE.

Reads commands from stdin, one a line, and answers each with one line of JSON:

    bytes       what the circuit has delivered so far, and whether all of it was what had been sent
    newcomer    a new peer connects from an address of its own and reserves: in how many seconds, or why not
    probe       a round trip over the circuit: in how many seconds
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from flare import Host
from flare.config import Config, PunchConfig
from flare.errors import FlareError
from flare.events import Event, ReservationAccepted
from flare.protocols import ping
from flare.transport.connection import Connection
from flare.transport.stream import Stream

RATE = 20_000_000  # bytes a second, offered
QUIC_RATE = 4_000_000
TICK = 0.02  # seconds between two writes
SINK = "/abuse/sink"
PATTERN = bytes(number * 7 & 0xFF for number in range(251)) * 1024
PATIENCE = 20.0  # seconds for a newcomer
CONFIG = Config(punch=PunchConfig(attempts=0))


class Sink:
    """What came over the circuit, checked against what goes in."""

    def __init__(self) -> None:
        self.received = 0
        self.right = True

    async def serve(self, stream: Stream) -> None:
        while data := await stream.read():
            at = self.received % 251
            self.right = self.right and data == PATTERN[at : at + len(data)]
            self.received += len(data)


def host(ip: str, relay: str, *, reserves: bool = True) -> Host:
    """A peer at `ip`, with a place on `relay` if it `reserves` one."""
    relays = [relay] if reserves else []
    where = f"/ip4/{ip}/udp/0/quic-v1" if over_quic(relay) else f"/ip4/{ip}/tcp/0"
    return Host(listen=[where], relays=relays, config=CONFIG, punch=False)


def over_quic(relay: str) -> bool:
    return "/quic-v1/" in relay


async def reserved(peer: Host, within: float) -> float:
    """Start `peer`; seconds until it has its reservation."""
    done = asyncio.Event()

    def heard(event: Event) -> None:
        if isinstance(event, ReservationAccepted):
            done.set()

    peer.on_event(heard)
    began = time.monotonic()
    await peer.start()
    async with asyncio.timeout(within):
        await done.wait()
    return time.monotonic() - began


async def feed(connection: Connection, rate: int) -> None:
    """`rate` bytes a second, and no attempt to catch up on what could not be sent in time."""
    async with connection.open_stream(SINK, allow_limited=True) as stream:
        sent = 0
        each = int(rate * TICK)
        due = time.monotonic()
        while True:
            at = sent % 251
            await stream.write(PATTERN[at : at + each] if each <= len(PATTERN) - 251 else _long(at, each))
            sent += each
            due = max(due + TICK, time.monotonic() - TICK)
            await asyncio.sleep(max(0.0, due - time.monotonic()))


def _long(at: int, size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 2))[at : at + size]


async def main(relay: str) -> None:
    sink = Sink()
    target, source = host("10.66.1.1", relay), host("10.66.1.2", relay, reserves=False)
    target.handle(SINK, sink.serve, allow_limited=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    newcomers = 0
    try:
        await reserved(target, PATIENCE)
        await source.start()
        connection = await source.connect(f"{relay}/p2p-circuit/p2p/{target.peer_id}")
        feeding = loop.create_task(feed(connection, QUIC_RATE if over_quic(relay) else RATE))
        print(json.dumps({"ready": True}), flush=True)
        while command := (await reader.readline()).decode().strip():
            answer: dict[str, Any] = {}
            if command == "bytes":
                answer = {"received": sink.received, "right": sink.right, "feeding": not feeding.done()}
                answer["at"] = time.monotonic()
            elif command == "newcomer":
                newcomers += 1
                async with _leaving(host(f"10.66.2.{newcomers}", relay)) as peer:
                    try:
                        answer["seconds"] = await reserved(peer, PATIENCE)
                    except (FlareError, TimeoutError, OSError) as error:
                        answer["error"] = repr(error)
            elif command == "probe":
                try:
                    answer["seconds"] = await ping.ping(connection)
                except (FlareError, TimeoutError) as error:
                    answer["error"] = repr(error)
            print(json.dumps(answer), flush=True)
        feeding.cancel()
    finally:
        await source.close()
        await target.close()


class _leaving:
    def __init__(self, peer: Host) -> None:
        self._peer = peer

    async def __aenter__(self) -> Host:
        return self._peer

    async def __aexit__(self, *_: object) -> None:
        await self._peer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
