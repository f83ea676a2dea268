"""What a slow Python callback costs a relay: its throughput with and without one, by threads.

    python benchmarks/slow_callback.py [--threads 0,1] [--seconds 2] [--runs 3] [--message 16384] [--json]

A relay runs as a process of its own; in its loop a callback may take 50 ms of CPU in every 100 ms, as an
embedding program's would. The load of benchmarks/relay sends one circuit as fast as it goes. Runs with and
without the callback are interleaved; the table gives medians with their range, and the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

BUSY = 0.05  # seconds of CPU
EVERY = 0.1
WARMUP = 0.5


async def serve(threads: int, slow: bool) -> None:
    """A relay without limits, which prints its address and runs until its input ends."""
    import flare
    from flare.config import Config

    loop = asyncio.get_running_loop()

    def callback() -> None:
        began = loop.time()
        until = time.thread_time() + BUSY
        while time.thread_time() < until:
            pass
        loop.call_at(max(began + EVERY, loop.time()), callback)

    async with (
        flare.Host(listen=["/ip4/127.0.0.1/tcp/0"], config=Config(data_threads=threads)) as host,
        flare.RelayServer(host, flare.RelayLimits.unlimited()),
    ):
        print(json.dumps({"addr": str(host.full_addrs[0])}), flush=True)
        if slow:
            loop.call_soon(callback)
        ended = asyncio.Event()
        loop.add_reader(sys.stdin, ended.set)
        await ended.wait()


def one(threads: int, slow: bool, args: argparse.Namespace) -> float:
    """MB/s of one run."""
    import subprocess

    from benchmarks.relay import circuits, load
    from flare.wire.multiaddr import Multiaddr

    words = [sys.executable, __file__, "--serve", str(threads), "--slow" if slow else "--quick"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as relay:
        assert relay.stdout is not None
        address = Multiaddr(json.loads(relay.stdout.readline())["addr"])
        circuit = asyncio.run(asyncio.wait_for(circuits.circuit(address), circuits.SETUP_TIMEOUT))
        (got,) = load.drive([circuit], [], relay.pid, args.message, WARMUP, args.seconds)
        assert relay.stdin is not None
        relay.stdin.close()
        try:
            relay.wait(10)
        except subprocess.TimeoutExpired:
            relay.kill()
    return got.bytes / got.seconds / 1e6


def main() -> int:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", default="0,1", help="how many data threads, one after another (0,1)")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--message", type=int, default=16384)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve, args.slow))
        return 0
    counts = [int(count) for count in args.threads.split(",")]
    rates: dict[tuple[int, bool], list[float]] = {(n, slow): [] for n in counts for slow in (False, True)}
    for _ in range(args.runs):
        for (threads, slow), of_kind in rates.items():
            of_kind.append(one(threads, slow, args))
    if not args.json:
        print(f"one circuit, {args.message} byte messages, {args.runs} runs of {args.seconds:g} s, ", end="")
        print(f"{os.cpu_count()} cores; MB/s, median (range)")
        print(f"{'threads':>7}{'without':>22}{'50 ms in 100':>22}{'ratio':>8}")
    for threads in counts:
        without, beside = rates[threads, False], rates[threads, True]
        ratio = statistics.median(beside) / statistics.median(without)
        if args.json:
            fields = {"without": statistics.median(without), "with": statistics.median(beside)}
            print(json.dumps({"threads": threads, **fields, "ratio": round(ratio, 3)}))
            continue
        shown = (f"{statistics.median(r):.0f} ({min(r):.0f}-{max(r):.0f})" for r in (without, beside))
        print(f"{threads:>7}" + "".join(f"{text:>22}" for text in shown) + f"{ratio:>8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
