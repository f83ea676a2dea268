"""Where a relay's CPU time goes: perf samples it while the load runs.

    python -m benchmarks.relay.profile flare [--circuits 1] [--under-way 0] [--message 16384] [--symbols 12]

needs perf (Debian: linux-perf) and, where the kernel asks for it, root. Samples are of the CPU clock, which
every machine has.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.relay import load, relays
from benchmarks.relay.tables import table

ROOMS = (  # what a shared object is called, and whose it is
    ("libcrypto", r"libcrypto|_rust\."),
    ("the kernel", r"kernel|vdso"),
    ("libc", r"libc\.|libpthread|ld-linux"),
    ("flare's core", r"^(aead|core|engine|link|link_io|records|splice|yamux|wire|threads)\."),
    ("Python and the loop", r"python|uvloop|_asyncio|select|_socket"),
)
WARMUP, SECONDS = 0.5, 2.0


def room(object_: str) -> str:
    """Whose time a shared object's is."""
    return next((name for name, pattern in ROOMS if re.search(pattern, object_)), object_)


def shares(report: str) -> list[tuple[float, str]]:
    """Lines of perf report: per cent, and the rest."""
    found = re.findall(r"^ +([\d.]+)% +(.*?)(?: +- +-)? *$", report, re.MULTILINE)
    return [(float(share), what) for share, what in found]


def summed(report: str) -> list[tuple[float, str]]:
    """Shares of perf report --sort dso, by room, the largest first."""
    rooms: dict[str, float] = {}
    for share, what in shares(report):
        rooms[room(what)] = rooms.get(room(what), 0.0) + share
    return sorted(((share, what) for what, share in rooms.items()), reverse=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.relay.profile", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("relay", help=f"one of {', '.join(relays.ALL)}")
    parser.add_argument("--circuits", type=int, default=1)
    parser.add_argument("--under-way", type=int, default=0, help="messages per circuit (0: as windows allow)")
    parser.add_argument("--message", type=int, default=16384)
    parser.add_argument("--security", default="noise", choices=("noise", "tls"))
    parser.add_argument("--symbols", type=int, default=12, help="how many of the costliest functions to show")
    args = parser.parse_args()
    relays.raise_file_limit()
    with (
        tempfile.TemporaryDirectory() as directory,
        relays.running(args.relay, args.security, pairs=args.circuits) as server,
    ):
        made = server.circuits(args.circuits)
        kept = Path(directory) / "perf.data"
        record = [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            "2000",
            "-p",
            str(server.pid),
            "-o",
            str(kept),
        ]
        perf = subprocess.Popen([*record, "--", "sleep", str(WARMUP + SECONDS)], stderr=subprocess.DEVNULL)
        size = load.payload(args.message, made[0].records)
        limits = (WARMUP, SECONDS, relays.pinned(1), (args.under_way,))
        (got,) = load.drive(made, (), server.pid, size, *limits)
        perf.wait()
        report = ["perf", "report", "-i", str(kept), "--stdio", "--no-children", "--sort"]
        rooms, functions = (
            subprocess.run([*report, sort], capture_output=True, text=True, check=True).stdout
            for sort in ("dso", "dso,symbol")
        )
    cost = f"{got.cpu_seconds / (got.bytes / 1e9):.3f} CPU s/GB, "
    print(cost + f"{got.cpu_seconds / (got.bytes / size) * 1e6:.2f} us per message of {size} bytes\n")
    print(
        table(("share", "whose"), [(f"{share:.0f} %", what) for share, what in summed(rooms) if share >= 0.5])
    )
    print()
    for share, what in shares(functions)[: args.symbols]:
        print(f"{share:6.2f} %  {' '.join(what.split())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
