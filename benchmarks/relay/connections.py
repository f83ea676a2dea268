"""What connections cost a relay: handshakes per CPU second, memory for each, and CPU while all are idle.

    python -m benchmarks.relay.connections [--relays flare,go,rust] [--counts 1000,10000] [--parallel 32]
                                           [--idle 35] [--runs 3] [--json]

A handshake is all that leads to a place on the relay: TCP, Noise, yamux, identify both ways, RESERVE with
its voucher. The same clients (clients.c) come to every relay, each with an identity of its own, from 128
addresses of 127.0.0.0/8, and stay. A relay runs as a process pinned to one core, limits off, the clients on
another core; runs are interleaved and the table gives medians, with their range for what ratios are made of.

CPU is the relay process's, user and system, as the kernel counts it in nanoseconds, and clients that came
before the first count (`WARM`) are not in it. Memory is what the relay's process has more than before the
first connection: Rss, and Pss, which changes with whoever else runs Python meanwhile; what the kernel keeps
in socket buffers is apart. Idle CPU is seconds per minute over `--idle` seconds, longer than keepalives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.relay.compiled import compiled

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTS: Final = (1000, 10_000)
RELAYS: Final = "flare,go,rust"
PARALLEL: Final = 32  # handshakes at once, over 128 addresses: below everybody's limits of half-open ones
WARM: Final = 200  # connections that come and go before anything is counted
SETTLE: Final = 2.0  # seconds for what a relay does after its answers
SPARE: Final = 500  # descriptors besides the connections'


@dataclass(frozen=True, slots=True)
class Step:
    """One relay with `connections` open and idle, since the step before; memory in KiB per connection."""

    connections: int
    failed: int
    seconds: float  # until the last of the new ones had its place
    cpu_us: float  # of the relay, for each new one
    rss_kib: float
    pss_kib: float
    socket_kib: float  # kernel buffers of both ends
    idle_cpu: float  # seconds per minute

    @property
    def per_cpu_second(self) -> float:
        """Handshakes per CPU second of the relay."""
        return 1e6 / self.cpu_us


class Clients:
    """The process that plays the peers."""

    def __init__(self, prefix: Sequence[str], port: int) -> None:
        words = [*prefix, str(compiled("clients")), "127.0.0.1", str(port)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def open(self, count: int, parallel: int) -> dict[str, Any]:
        """`count` more; blocks until their identities are made, then calls them in `finish`."""
        return self._ask(f"open {count} {parallel}")

    def finish(self) -> dict[str, Any]:
        """What came of `open`."""
        return self._answer()

    def count(self) -> int:
        """How many are open still."""
        return int(self._ask("count")["open"])

    def close(self) -> None:
        """All leave."""
        self._ask("close")

    def end(self) -> None:
        """The process goes, and with it whoever is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("the clients' process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(
    words: Sequence[str],
    counts: Sequence[int] = COUNTS,
    *,
    parallel: int = PARALLEL,
    idle: float = 35.0,
    relay_prefix: Sequence[str] = (),
    clients_prefix: Sequence[str] = (),
) -> list[Step]:
    """Start the relay `words`, let clients come until there are `counts`, growing; a Step for each count.

    The relay prints its addresses as the first line of JSON. The prefixes pin both to cores (taskset).
    """
    allow_descriptors(max(counts) + WARM + SPARE)
    with _started([*relay_prefix, *words]) as (pid, port):
        clients = Clients(clients_prefix, port)
        try:
            clients.open(WARM, parallel)
            clients.finish()
            clients.close()
            time.sleep(SETTLE)
            before = _memory(pid)
            return [_step(clients, pid, count, before, parallel, idle) for count in counts]
        finally:
            clients.end()


def _step(
    clients: Clients, pid: int, count: int, before: dict[str, float], parallel: int, idle: float
) -> Step:
    there = clients.count()
    clients.open(count - there, parallel)
    used = cpu_seconds(pid)
    done = clients.finish()
    time.sleep(SETTLE)
    used = cpu_seconds(pid) - used
    memory = _memory(pid)
    grown = {name: (memory[name] - before[name]) / done["open"] for name in memory}
    began, idle_cpu = time.monotonic(), cpu_seconds(pid)
    time.sleep(idle)
    idle_cpu = cpu_seconds(pid) - idle_cpu
    minutes = (time.monotonic() - began) / 60
    if clients.count() < done["open"]:
        raise ConnectionError(f"{done['open'] - clients.count()} idle connections were lost")
    return Step(
        connections=done["open"],
        failed=done["failed"],
        seconds=done["seconds"],
        cpu_us=used / max(1, done["open"] - there) * 1e6,
        rss_kib=grown["Rss"],
        pss_kib=grown["Pss"],
        socket_kib=grown["socket"],
        idle_cpu=idle_cpu / minutes if minutes else 0.0,
    )


@contextmanager
def _started(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A relay: its process id and its port on 127.0.0.1."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    relay = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT)
    assert relay.stdout is not None
    output = relay.stdout
    try:
        text = output.readline().decode()
        found = re.search(r"/ip4/127\.0\.0\.1/tcp/(\d+)", text)
        if found is None:
            raise ConnectionError(f"{words[-1]} began with {text!r}, and no address")
        # relays that tell of each reservation would block on a full pipe
        threading.Thread(target=lambda: [None for _ in output], daemon=True).start()
        yield relay.pid, int(found[1])
    finally:
        relay.terminate()
        try:
            relay.wait(20)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def _memory(pid: int) -> dict[str, float]:
    """Rss and Pss of a process in KiB, and the machine's socket buffers."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = {name: float(kib) for name, kib in re.findall(r"^(Rss|Pss): +(\d+) kB", text, re.MULTILINE)}
    pages = re.search(r"TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text())
    found["socket"] = float(pages[1]) * resource.getpagesize() / 1024 if pages else 0.0
    return found


def allow_descriptors(wanted: int) -> None:
    """Raise RLIMIT_NOFILE, which children inherit; the hard limit too where we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))  # ValueError: only root may
    elif soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# Tables


@dataclass(frozen=True, slots=True)
class Row:
    """One relay at one count: medians over runs, and the range of what the ratios are made of."""

    relay: str
    connections: int
    runs: int
    failed: int
    per_cpu_second: float
    per_cpu_second_min: float
    per_cpu_second_max: float
    rss_kib: float
    rss_kib_min: float
    rss_kib_max: float
    pss_kib: float
    socket_kib: float
    idle_cpu: float


def rows(relay: str, runs: Sequence[Sequence[Step]]) -> list[Row]:
    """What the runs of one relay come to, a row for each count."""
    made = []
    for steps in zip(*runs, strict=True):

        def median(of: Callable[[Step], float], steps: Sequence[Step] = steps) -> float:
            return round(statistics.median(map(of, steps)), 3)

        rates = [step.per_cpu_second for step in steps]
        rss = [step.rss_kib for step in steps]
        made.append(
            Row(
                relay=relay,
                connections=steps[0].connections,
                runs=len(steps),
                failed=sum(step.failed for step in steps),
                per_cpu_second=median(lambda step: step.per_cpu_second),
                per_cpu_second_min=round(min(rates), 3),
                per_cpu_second_max=round(max(rates), 3),
                rss_kib=median(lambda step: step.rss_kib),
                rss_kib_min=round(min(rss), 3),
                rss_kib_max=round(max(rss), 3),
                pss_kib=median(lambda step: step.pss_kib),
                socket_kib=median(lambda step: step.socket_kib),
                idle_cpu=median(lambda step: step.idle_cpu),
            )
        )
    return made


def report(table: Sequence[Row], as_json: bool) -> None:
    """Print the rows; ratios are to the first relay's row of the same count."""
    if as_json:
        for row in table:
            print(json.dumps(asdict(row)), flush=True)
        return
    print(f"{'relay':8}{'open':>7}{'handshakes / CPU s':>26}{'ratio':>7}{'KiB each':>20}{'ratio':>7}", end="")
    print(f"{'Pss':>7}{'sockets':>9}{'idle CPU s/min':>16}{'failed':>8}")
    first = {row.connections: row for row in reversed(table)}
    for row in table:
        base = first.get(row.connections, row)
        rate = f"{row.per_cpu_second:.0f} ({row.per_cpu_second_min:.0f}-{row.per_cpu_second_max:.0f})"
        rss = f"{row.rss_kib:.1f} ({row.rss_kib_min:.1f}-{row.rss_kib_max:.1f})"
        print(
            f"{row.relay:8}{row.connections:>7}{rate:>26}{row.per_cpu_second / base.per_cpu_second:>7.2f}"
            f"{rss:>20}{row.rss_kib / base.rss_kib:>7.2f}{row.pss_kib:>7.1f}{row.socket_kib:>9.2f}"
            f"{row.idle_cpu:>16.2f}{row.failed:>8}",
            flush=True,
        )


def main() -> int:
    """Run everything, print the table."""
    from benchmarks.relay.relays import command, pinned

    parser = argparse.ArgumentParser(
        prog="benchmarks.relay.connections", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--relays", default=RELAYS, help=f"which, the first is the ratios' 1 ({RELAYS})")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), metavar="N,...", help="growing")
    parser.add_argument("--parallel", type=int, default=PARALLEL, help="handshakes at once")
    parser.add_argument("--idle", type=float, default=35.0, metavar="SECONDS", help="of watching idle ones")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object per relay and count")
    args = parser.parse_args()
    counts = [int(count) for count in args.counts.split(",")]
    runs: dict[str, list[list[Step]]] = {relay: [] for relay in args.relays.split(",")}
    for number in range(1, args.runs + 1):
        for relay, measured in runs.items():
            measured.append(
                measure(
                    command(relay),
                    counts,
                    parallel=args.parallel,
                    idle=args.idle,
                    relay_prefix=pinned(0),
                    clients_prefix=pinned(1),
                )
            )
            for step in measured[-1]:
                print(
                    f"{relay}, run {number}: {step.connections} open, {step.per_cpu_second:.0f} handshakes "
                    f"per CPU s, {step.rss_kib:.1f} KiB each, idle {step.idle_cpu:.2f} CPU s/min",
                    file=sys.stderr,
                )
    report([row for relay, measured in runs.items() for row in rows(relay, measured)], args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
