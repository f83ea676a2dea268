"""flare's relay beside go-libp2p's and rust-libp2p's, limits off, one circuit: MB/s and CPU seconds per GB.

    python -m benchmarks.relay [--message 16384] [--seconds 5] [--runs 3] [--relays flare,go,rust] [--json]

Each relay runs as a process of its own pinned to one core, the load on another; runs are interleaved, and the table
gives medians with their spread, and ratios to flare. The peers' programs are those of tests/interop, built on demand.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.interop import build

ROOT = Path(__file__).resolve().parent.parent.parent
LISTEN = "/ip4/127.0.0.1/tcp/0"


@dataclass
class Figures:
    """What the runs of one relay gave."""

    mb_per_s: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)


def command(relay: str) -> Sequence[str]:
    """How to start a relay without limits on loopback."""
    if relay == "flare":
        return [sys.executable, "-m", "flare", "relay", "--listen", LISTEN, "--no-limits", "--json"]
    return [*build.program(relay), "relay", "--listen", LISTEN, "--no-limits"]


def pinned(core: int) -> Sequence[str]:
    """A prefix that pins a command to one core, when there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)])] if len(cores) > 1 else []


def run(relay: str, args: argparse.Namespace) -> tuple[float, float]:
    """One run: MB/s and CPU seconds per GB of the relay process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    server = subprocess.Popen(
        [*pinned(0), *command(relay)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT
    )
    try:
        assert server.stdout is not None
        listening = json.loads(server.stdout.readline())
        address = next(addr for addr in listening["addrs"] if "/tcp/" in addr and "127.0.0.1" in addr)
        load = [sys.executable, "-m", "benchmarks.relay.load", address, "--pid", str(server.pid)]
        load += ["--message", str(args.message), "--seconds", str(args.seconds)]
        done = subprocess.run(
            [*pinned(1), *load], stdout=subprocess.PIPE, env=env, cwd=ROOT, check=True, timeout=args.seconds + 60
        )
    finally:
        server.terminate()
        server.wait(10)
    result = json.loads(done.stdout)
    return result["bytes"] / result["seconds"] / 1e6, result["cpu_seconds"] / (result["bytes"] / 1e9)


def main() -> int:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.relay", description=__doc__.split("\n")[0])
    parser.add_argument("--message", type=int, default=16384, metavar="BYTES")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--relays", default="flare,go,rust")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = {name: Figures() for name in args.relays.split(",")}
    for number in range(args.runs):
        for name, got in figures.items():
            rate, cost = run(name, args)
            got.mb_per_s.append(rate)
            got.cpu_s_per_gb.append(cost)
            print(f"run {number + 1}, {name}: {rate:.0f} MB/s, {cost:.2f} CPU s/GB", file=sys.stderr)
    report(figures, args)
    return 0


def report(figures: dict[str, Figures], args: argparse.Namespace) -> None:
    """The table, or one JSON object per relay."""
    base = statistics.median(next(iter(figures.values())).cpu_s_per_gb)
    if not args.json:
        print(f"one circuit, {args.message} byte messages, {args.runs} runs of {args.seconds:g} s, medians (min-max)")
        print(f"{'relay':8} {'MB/s':>18} {'CPU s/GB':>20} {'CPU, ratio':>10}")
    for name, got in figures.items():
        rate, cost = statistics.median(got.mb_per_s), statistics.median(got.cpu_s_per_gb)
        if args.json:
            row = {"relay": name, "message": args.message, "mb_per_s": round(rate, 1), "cpu_s_per_gb": round(cost, 3)}
            print(json.dumps({**row, "ratio": round(cost / base, 2), "runs": args.runs}))
            continue
        rates = f"{rate:.0f} ({min(got.mb_per_s):.0f}-{max(got.mb_per_s):.0f})"
        costs = f"{cost:.2f} ({min(got.cpu_s_per_gb):.2f}-{max(got.cpu_s_per_gb):.2f})"
        print(f"{name:8} {rates:>18} {costs:>20} {cost / base:>10.2f}")


if __name__ == "__main__":
    sys.exit(main())
