"""What a relay's bytes cost: flare beside go-libp2p, rust-libp2p and the C limit, one circuit, limits off.

    python -m benchmarks.relay [--message 1024,4096,16384,65507] [--relays climit,flare,go,go-16k,rust]
                               [--seconds 3] [--runs 3] [--congestion reno] [--realtime] [--json]

Each relay runs as a process of its own pinned to one core, the load on another; runs are interleaved, and
the table gives medians with their spread. The figure is the CPU time that the relay's process spends per
GB, user and system, as the kernel counts it in nanoseconds; MB/s is what came out meanwhile. The peers'
programs are those of tests/interop, built on demand; the C limit and the load are compiled with cc. A
message is one yamux frame in one Noise record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop import build

from benchmarks.relay import load
from benchmarks.relay.compiled import compiled
from benchmarks.relay.load import Measured
from flare.wire.multiaddr import Multiaddr

ROOT = Path(__file__).resolve().parent.parent.parent
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0", "--no-limits")
RELAYS = "climit,flare,go,go-16k,rust"
INSIDE = "FLARE_BENCH_NETWORK"  # set in the network namespace that --congestion makes
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def command(relay: str) -> list[str]:
    """How to start a relay without limits on loopback. go-16k: go with a copy buffer of 16 KiB, not 2."""
    if relay == "flare":
        return [sys.executable, "-m", "flare", "relay", *LISTEN, "--json"]
    if relay == "go-16k":
        return [*build.program("go"), "relay", *LISTEN, "--relay-buffer", "16384"]
    return [*build.program(relay), "relay", *LISTEN]


def pinned(core: int) -> list[str]:
    """A prefix that pins a command to one core, when there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)])] if len(cores) > 1 else []


@contextmanager
def started(words: list[str]) -> Iterator[tuple[int, bytes]]:
    """A process: its id, and the first line that it prints."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT)
    try:
        assert server.stdout is not None
        yield server.pid, server.stdout.readline()
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def run(relay: str, message: int, args: argparse.Namespace) -> Measured:
    """One run of one relay."""
    keys = [os.urandom(32) for _ in range(4)]
    words = [str(compiled("c_limit")), *(key.hex() for key in keys)] if relay == "climit" else command(relay)
    with started([*pinned(0), *words]) as (pid, line):
        if relay == "climit":
            ends = load.bare(int(line), keys)
        else:
            addrs = json.loads(line)["addrs"]
            address = next(addr for addr in addrs if "/tcp/" in addr and "127.0.0.1" in addr)
            ends = asyncio.run(asyncio.wait_for(load.circuit(Multiaddr(address)), load.SETUP_TIMEOUT))
        size = min(message, load.MAX_MESSAGE)
        return load.run(ends, pid, size, args.warmup, args.seconds, pinned(1))


def main() -> int:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.relay", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--message", default="16384", metavar="BYTES,...", help="what one record carries")
    parser.add_argument("--relays", default=RELAYS, help=f"which, the first is the ratios' 1 ({RELAYS})")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--congestion", metavar="NAME", help="TCP's, in a network namespace of our own")
    parser.add_argument("--realtime", action="store_true", help="let nothing else run meanwhile (root)")
    parser.add_argument(
        "--under", default="", metavar="COMMAND", help="start the relay with, say, 'strace -fc'"
    )
    parser.add_argument("--json", action="store_true", help="one object per relay and size")
    args = parser.parse_args()
    if args.congestion and INSIDE not in os.environ:
        return isolated(args.congestion)
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # which the processes inherit
    for message in map(int, args.message.split(",")):
        got: dict[str, list[Measured]] = {relay: [] for relay in args.relays.split(",")}
        for number in range(1, args.runs + 1):
            for relay, runs in got.items():
                runs.append(run(relay, message, args))
                print(f"{relay}, {message} bytes, run {number}: {Row.of(runs[-1:])}", file=sys.stderr)
        report(got, message, args)
    return 0


def isolated(congestion: str) -> int:
    """This program once more, alone in a network where `congestion` is the rule."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        sys.exit("--congestion needs unshare(1), of util-linux")
    script = 'ip link set lo up && echo "$0" > ' + f'{CONGESTION} && exec "$@"'
    again = [sys.executable, "-m", "benchmarks.relay", *sys.argv[1:]]
    env = {**os.environ, INSIDE: congestion}
    return subprocess.run([*unshare, "sh", "-c", script, congestion, *again], env=env, check=False).returncode


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over runs; `busy` and `load` are how much of a core the relay and the load had."""

    rates: list[float]
    costs: list[float]
    rate: float
    cost: float
    kernel: float
    busy: float
    load: float

    @classmethod
    def of(cls, runs: list[Measured]) -> Row:
        """What these runs come to."""
        rates = [run.bytes / run.seconds / 1e6 for run in runs]
        costs = [run.cpu_seconds / (run.bytes / 1e9) for run in runs]
        return cls(
            rates,
            costs,
            statistics.median(rates),
            statistics.median(costs),
            statistics.median(run.system / max(run.user + run.system, 0.01) for run in runs),
            statistics.median(run.cpu_seconds / run.seconds for run in runs),
            statistics.median(run.load_seconds / run.seconds for run in runs),
        )

    def __str__(self) -> str:
        return (
            f"{self.rate:.0f} MB/s, {self.cost:.3f} CPU s/GB, {self.kernel:.0%} in the kernel, "
            f"busy {self.busy:.2f}, load {self.load:.2f}"
        )


def report(got: dict[str, list[Measured]], message: int, args: argparse.Namespace) -> None:
    """The table for one size of messages, or its JSON objects."""
    rows = {relay: Row.of(runs) for relay, runs in got.items()}
    base = next(iter(rows.values())).cost
    if args.json:
        for relay, row in rows.items():
            fields = {"mb_per_s": row.rate, "cpu_s_per_gb": row.cost, "ratio": row.cost / base}
            fields |= {"cpu_s_per_gb_min": min(row.costs), "cpu_s_per_gb_max": max(row.costs)}
            fields |= {"kernel": row.kernel, "busy": row.busy, "load": row.load}
            rounded = {name: round(value, 4) for name, value in fields.items()}
            print(json.dumps({"relay": relay, "message": message, "runs": args.runs, **rounded}), flush=True)
        return
    how = f"{args.runs} runs of {args.seconds:g} s, TCP {CONGESTION.read_text().strip()}"
    print(f"\none circuit, {message} byte messages, {how}; median (range)")
    print(f"{'relay':8}{'MB/s':>19}{'CPU s/GB':>24}{'ratio':>7}{'kernel':>8}{'busy':>6}{'load':>6}")
    for relay, row in rows.items():
        rates = f"{row.rate:.0f} ({min(row.rates):.0f}-{max(row.rates):.0f})"
        costs = f"{row.cost:.3f} ({min(row.costs):.3f}-{max(row.costs):.3f})"
        shares = f"{row.cost / base:>7.2f}{row.kernel:>8.0%}{row.busy:>6.2f}{row.load:>6.2f}"
        print(f"{relay:8}{rates:>19}{costs:>24}{shares}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
