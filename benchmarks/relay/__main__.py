"""What relaying costs: flare beside go-, rust-, js- and py-libp2p and the C limit, limits off, in one run.

    python -m benchmarks.relay [--parts bytes,many,latency,connections,cores] [--relays climit,flare,go,...]
                               [--message 1024,16384,...] [--security noise,tls] [--circuits 1000]
                               [--quick] [--runs 3] [--seconds 0.8] [--warmup 0.4] [--congestion reno]
                               [--realtime] [--libcrypto FILE] [--json FILE] [--publish]

Each relay runs as a process of its own pinned to one core, the load on another; runs are interleaved, and
the tables give medians with their range. CPU time is the relay's process's, user and system, as the kernel
counts it in nanoseconds. The peers' programs are those of tests/interop, built on demand; the C limit and
the load are compiled with cc. docs/performance.md says what each part does.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.relay import relays, report
from benchmarks.relay.parts import PARTS, Plan
from benchmarks.relay.results import Observation, Results
from benchmarks.relay.tables import named
from flare._core import aead

INSIDE = "FLARE_BENCH_NETWORK"  # set in the network namespace that --congestion makes
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
QUICK = Plan(
    relays=("climit", "flare", "go", "rust"),
    messages=(1024, 16384),
    circuits=(200,),
    connections=(1000,),
    idle=0.0,
    seconds=0.5,
    warmup=0.3,
    runs=2,
)


def words(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(filter(None, text.split(",")))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="benchmarks.relay", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--parts", type=words, default=tuple(PARTS), help=f"which of {', '.join(PARTS)}")
    made.add_argument("--relays", type=words, help=f"which of {', '.join(relays.ALL)}")
    made.add_argument("--message", type=words, metavar="BYTES,...", help="sizes of the bytes part")
    made.add_argument("--security", type=words, help="noise,tls: of the bytes part")
    made.add_argument("--circuits", type=words, metavar="N,...", help="of the many part, growing")
    made.add_argument("--runs", type=int)
    made.add_argument("--seconds", type=float, help="each measurement takes")
    made.add_argument("--warmup", type=float, help="before it")
    made.add_argument(
        "--quick", action="store_true", help="a few minutes: fewer relays, sizes, circuits, runs"
    )
    made.add_argument("--congestion", metavar="NAME", help="TCP's, in a network namespace of our own")
    made.add_argument("--realtime", action="store_true", help="let nothing else run meanwhile (root)")
    made.add_argument(
        "--libcrypto", type=Path, metavar="FILE", help="flare also with this one, for AES-GCM from 3.1 on"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="keep every observation")
    made.add_argument("--publish", action="store_true", help="rewrite the documents' tables and the chart")
    return made


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan: --quick or the whole, and what is said beyond that. SystemExit for what there is not."""
    base = QUICK if args.quick else Plan()
    messages = tuple(map(int, args.message)) if args.message else base.messages
    plan = replace(
        base,
        relays=tuple(
            relay
            for relay in args.relays or base.relays
            if relay != relays.FLARE_NEWER or args.libcrypto is not None
        ),
        security=args.security or base.security,
        messages=messages,
        circuits=tuple(map(int, args.circuits)) if args.circuits else base.circuits,
        seconds=args.seconds or base.seconds,
        warmup=base.warmup if args.warmup is None else args.warmup,
        runs=args.runs or base.runs,
    )
    for given, known in (
        (args.parts, tuple(PARTS)),
        (plan.relays, relays.ALL),
        (plan.security, ("noise", "tls")),
    ):
        for word in given:
            if word not in known:
                raise SystemExit(f"benchmarks.relay: {word} is none of {', '.join(known)}")
    return plan


def measure(plan: Plan, parts: tuple[str, ...], seen: list[Observation]) -> None:
    """Everything, run after run of all relays, into `seen`."""
    for part in parts:
        for run in range(1, plan.runs + 1):
            for job in PARTS[part](plan):
                for each in job.run(run):
                    seen.append(each)
                    print(
                        f"{part} {each.case}, {named(each.relay)}, run {run}: {_line(each)}", file=sys.stderr
                    )


def _line(each: Observation) -> str:
    return each.failure or ", ".join(f"{name} {value:.4g}" for name, value in each.values.items())


def about(plan: Plan, seconds: float) -> dict[str, object]:
    """Where and how."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor,
        "cores": len(relays.cores()),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "libcrypto": ssl.OPENSSL_VERSION,
        "records": aead.backend(),
        **({"newer": newer} if (newer := newer_libcrypto()) else {}),
        "congestion": CONGESTION.read_text().strip(),
        "runs": plan.runs,
        "seconds": plan.seconds,
        "versions": {relay: relays.version(relay) for relay in plan.relays if relays.version(relay)},
        "took_s": round(seconds),
    }


def newer_libcrypto() -> str:
    """The libcrypto of --libcrypto by its version, as flare takes it, or nothing."""
    if relays.NEWER_LIBCRYPTO not in os.environ:
        return ""
    env = {**os.environ, "FLARE_LIBCRYPTO": os.environ[relays.NEWER_LIBCRYPTO]}
    script = "from flare._core import aead; print(aead.backend())"
    return subprocess.run(
        [sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def isolated(congestion: str) -> int:
    """This program once more, alone in a network where `congestion` is the rule."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None:
        sys.exit("--congestion needs unshare(1), of util-linux")
    script = 'ip link set lo up && echo "$0" > ' + f'{CONGESTION} && exec "$@"'
    again = [sys.executable, "-m", "benchmarks.relay", *sys.argv[1:]]
    env = {**os.environ, INSIDE: congestion}
    return subprocess.run([*unshare, "sh", "-c", script, congestion, *again], env=env, check=False).returncode


def main() -> int:
    """Run everything, print the tables."""
    args = parser().parse_args()
    plan = plan_of(args)
    if args.libcrypto is not None:
        os.environ[relays.NEWER_LIBCRYPTO] = str(args.libcrypto.resolve(strict=True))
    relays.prepare(plan.relays)
    if args.congestion and INSIDE not in os.environ:
        return isolated(args.congestion)
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # which the processes inherit
    relays.raise_file_limit()
    start = time.monotonic()
    seen: list[Observation] = []
    try:
        measure(plan, args.parts, seen)
    finally:
        results = Results(about(plan, time.monotonic() - start), tuple(seen))
        if args.json:
            results.save(args.json)
    print(report.shown(results))
    if args.publish:
        report.publish(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
