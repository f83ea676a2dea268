"""QUIC beside quic-go and quinn: megabytes a second on one and on 16 streams, and what noise costs.

    python -m benchmarks.quic [--megabytes 64] [--rounds 3] [--pairs flare-flare,go-go,rust-rust] [--json]

Each pair is two processes on loopback, a client that sends and a server that echoes, over go-libp2p's and
rust-libp2p's own QUIC where they are one end; rounds of the pairs alternate. A figure is the bytes of one
direction by the seconds that both took together, so that 10 MB/s moves 10 up and 10 down. CPU is both
processes', in seconds for each gigabyte moved (there and back count as two), less what an echo of nothing
takes them: start, handshake and end, at its least. That is half a second for two of Python, so small
sizes tell little. Then datagrams of noise are sent to a flare listener, and what each one costs it is
printed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.interop.build import program
from tests.interop.peer import Peer, PeerFailed
from tests.interop.roles import EMBEDDED

from flare._core.udp import Datagrams
from flare.transport.quic_aioquic import AioquicEngine

LISTEN = "/ip4/127.0.0.1/udp/0/quic-v1"
STREAMS = (1, 16)
MEGABYTE = 1_000_000
NOISE = 40_000  # datagrams
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=64, help="in each direction, all streams together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", default="flare-flare,flare-go,go-flare,flare-rust,go-go,rust-rust")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pairs = [(pair.split("-")[0], pair.split("-")[1]) for pair in args.pairs.split(",")]
    for kind in {kind for pair in pairs for kind in pair}:
        program(kind)
    nothing: dict[tuple[str, str], float] = {}
    runs: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for client, server in pairs:
            _, cpu = one(client, server, 1, 0)
            nothing[client, server] = min(cpu, nothing.get((client, server), cpu))
            for streams in STREAMS:
                try:
                    found = one(client, server, streams, args.megabytes * MEGABYTE)
                except PeerFailed:  # rust-libp2p's echo drops a stream that comes while it takes another
                    print(f"left out a run: {client}-{server}, {streams} streams, failed", file=sys.stderr)
                    continue
                runs.setdefault((client, server, streams), []).append(found)
    moved = 2 * args.megabytes / 1000  # GB
    rates = {
        (client, server, streams): [
            (args.megabytes / seconds, (cpu - nothing[client, server]) / moved) for seconds, cpu in found
        ]
        for (client, server, streams), found in runs.items()
    }
    results = [
        {
            "client": client,
            "server": server,
            "streams": streams,
            "mb_per_s": round(statistics.median(rate for rate, _ in found), 1),
            "mb_range": [round(pick(rate for rate, _ in found), 1) for pick in (min, max)],
            "cpu_s_per_gb": round(statistics.median(cpu for _, cpu in found), 2),
            "cpu_range": [round(pick(cpu for _, cpu in found), 2) for pick in (min, max)],
        }
        for (client, server, streams), found in rates.items()
    ]
    noise_ns = noise()
    if args.json:
        print(json.dumps({"engine": AioquicEngine.name, "results": results, "noise_ns": noise_ns}))
        return 0
    print(f"flare's engine: {AioquicEngine.name}; {args.megabytes} MB each way, median of {args.rounds}")
    print(f"{'client':8}{'server':8}{'streams':>8}{'MB/s':>9}{'':16}{'CPU s/GB':>8}")
    for row in results:
        (slow, fast), (least, most) = row["mb_range"], row["cpu_range"]
        rates = f"{row['mb_per_s']:>9} {f'({slow}-{fast})':15}"
        who = f"{row['client']:8}{row['server']:8}{row['streams']:>8}"
        print(f"{who}{rates}{row['cpu_s_per_gb']:>8} ({least}-{most})")
    print("a datagram of noise costs the listener:", ", ".join(f"{k} {v} ns" for k, v in noise_ns.items()))
    return 0


def one(client: str, server: str, streams: int, size: int) -> tuple[float, float]:
    """Seconds for `size` bytes each way, and CPU seconds of both processes."""
    with Peer(server, "listen", "--listen", LISTEN, command=_command(server)) as listener:
        addr = str(listener.expect("listening")["addrs"][0])
        before = _cpu(listener) + _children()
        arguments = (
            "echo",
            addr,
            "--bytes",
            str(size // streams),
            "--streams",
            str(streams),
            "--timeout",
            "90",
        )
        with Peer(client, *arguments, command=_command(client)) as echoing:
            echoing.finish(100)
        cpu = _cpu(listener) + _children() - before
    (echoed,) = echoing.named("echoed")
    return float(echoed["seconds"]), cpu


def _command(kind: str) -> tuple[str, ...] | None:
    return EMBEDDED if kind == "flare" else None


def _cpu(peer: Peer) -> float:
    """Seconds that a process has had."""
    fields = Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _children() -> float:
    """Seconds that the processes which have ended had."""
    times = os.times()
    return times.children_user + times.children_system


def noise() -> dict[str, Any]:
    """CPU nanoseconds for each datagram that is nobody's, in the demultiplexer, system calls included."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.setblocking(False)
        here.bind(("127.0.0.1", 0))
        there.connect(here.getsockname())
        datagrams = Datagrams(here.fileno())
        datagrams.routes[bytes(8)] = object()
        found: dict[str, Any] = {}
        for size in (64, 1200):
            spent, received = 0.0, datagrams.received
            for _ in range(NOISE // 100):
                for _ in range(100):
                    there.send(b"\x40" + os.urandom(size - 1))
                start = time.process_time()
                while datagrams.receive(0) is not None:
                    pass
                spent += time.process_time() - start
            found[f"{size} bytes"] = round(spent / max(1, datagrams.received - received) * 1e9)
        return found


if __name__ == "__main__":
    sys.exit(main())
