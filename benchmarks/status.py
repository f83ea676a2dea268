"""What the status server costs a busy relay: how long answers take, and the CPU time on the event loop.

    python -m benchmarks.status --reservations 10000 --circuits 1000

The relay is real, and so are the requests, over loopback; its books are filled by hand, since 10,000 peers in
one process would cost more than what is measured. Prints milliseconds, medians of `--times` requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import time
from dataclasses import dataclass

import flare
from flare.protocols.relay.book import Circuit
from flare.watch.metrics import families
from flare.watch.page import render
from flare.wire.peer_id import PeerId

PATHS = ("/", "/status.json", "/metrics", "/healthz")


@dataclass
class Carrying:
    """Stands in for a splice."""

    bytes_a_to_b: int
    bytes_b_to_a: int

    def cancel(self) -> None: ...


def peer() -> PeerId:
    """One that nobody has the key of."""
    return PeerId(b"\x00\x24\x08\x01\x12\x20" + secrets.token_bytes(32))


def fill(server: flare.RelayServer, reservations: int, circuits: int) -> None:
    """Put strangers into the relay's books."""
    service = server._serving
    peers = [peer() for _ in range(reservations)]
    for number, stranger in enumerate(peers):
        service.book.reserve(stranger, f"192.0.{number >> 8}.{number & 255}", object())
        server.host.peers.update(stranger, agent="go-libp2p/0.43.0", protocols=("/ipfs/id/1.0.0",) * 8)
    for number in range(circuits):
        circuit = service.book.open_circuit(peers[number % len(peers)], peers[-1 - number % len(peers)])
        assert isinstance(circuit, Circuit)
        service._running[circuit] = Carrying(number * 1000, number)


async def ask(address: str, path: str) -> tuple[float, int]:
    """Seconds and bytes of one answer."""
    host, _, port = address.rpartition(":")
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    body = await reader.read()
    writer.transport.abort()
    assert body.startswith(b"HTTP/1.1 200 "), body[:100]
    return time.perf_counter() - started, len(body)


async def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    """One row per path, and the parts that hold the loop."""
    rows: list[dict[str, object]] = []
    limits = flare.RelayLimits.unlimited()
    async with (
        flare.Host(listen=["/ip4/127.0.0.1/tcp/0"], punch=False) as host,
        flare.RelayServer(host, limits) as server,
        flare.StatusServer(server, "127.0.0.1:0") as status,
    ):
        fill(server, args.reservations, args.circuits)
        await ask(status.address, "/")  # takes its first count
        await asyncio.sleep(1.1)
        for path in PATHS:
            answers = [await ask(status.address, path) for _ in range(args.times)]
            milliseconds = 1000 * statistics.median(seconds for seconds, _ in answers)
            rows.append({"what": path, "ms": round(milliseconds, 2), "bytes": answers[0][1]})
        watcher = status._watcher

        async def page() -> None:
            render(await watcher.snapshot(), "nonce")  # no wait in it: there is a base

        async def scrape() -> None:
            list(families(watcher))

        async def sample() -> None:
            watcher._wire_bytes()
            time.process_time()

        for name, work in (("page", page), ("scrape", scrape), ("sample", sample)):
            used: list[float] = []
            for _ in range(args.times):
                started = time.thread_time()
                await work()
                used.append(time.thread_time() - started)
            rows.append(
                {"what": f"CPU on the loop, a {name}", "ms": round(1000 * statistics.median(used), 3)}
            )
        server._serving._running.clear()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reservations", type=int, default=10_000)
    parser.add_argument("--circuits", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = asyncio.run(measure(args))
    for row in rows:
        print(
            json.dumps(row) if args.json else f"{row['what']:24} {row['ms']:>8} ms  {row.get('bytes', ''):>8}"
        )


if __name__ == "__main__":
    main()
