"""The relays that are measured: how each is started without limits on loopback, and pinned."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.interop import build

from benchmarks.relay import circuits
from benchmarks.relay.circuits import Circuit
from benchmarks.relay.compiled import compiled
from flare.config import Security
from flare.version import __version__
from flare.wire.multiaddr import Multiaddr

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT = 60.0  # seconds; a py-libp2p relay imports for several
LISTEN = ("--listen", "/ip4/127.0.0.1/tcp/0", "--no-limits")
LIMIT, FLARE, FLARE_NEWER, GO_BUFFERED = "climit", "flare", "flare-newer", "go-16k"
ALL = (LIMIT, FLARE, FLARE_NEWER, "go", GO_BUFFERED, "rust", "js", "py")
SLOW = ("js", "py")
BYTES_ONLY = (FLARE_NEWER, GO_BUFFERED)  # variants whose difference the bytes part shows
NAMES = {LIMIT: "C limit", FLARE_NEWER: "flare, newer libcrypto", GO_BUFFERED: "go, 16 KiB buffer"}
NEWER_LIBCRYPTO = "FLARE_BENCH_LIBCRYPTO"  # the file that flare-newer takes its cipher from (--libcrypto)
LIMIT_RECORDS = {
    "noise": "noise",
    "tls": "tls-aes128",
}  # AES-128-GCM is what TLS libraries prefer where AES is in hardware


def command(relay: str, security: str = "noise", threads: int = 0) -> list[str]:
    """How to start a relay. go-16k: go with a copy buffer of 16 KiB, not 2. threads: flare's data threads."""
    if relay in (FLARE, FLARE_NEWER):
        more = ["--threads", str(threads)] if threads else []
        return [sys.executable, "-m", "flare", "relay", *LISTEN, *more, "--json"]
    more = ["--relay-buffer", "16384"] if relay == GO_BUFFERED else []
    kind = relay.partition("-")[0]
    if security != "noise":
        more += ["--security", security]
    return [*build.program(kind), "relay", *LISTEN, *more]


def prepare(chosen: Sequence[str]) -> None:
    """Compile and build all that is needed, while there is a network; what fails is seen in its turn."""
    for name in ("load", "c_limit", "clients"):
        compiled(name)
    for relay in chosen:
        with contextlib.suppress(build.BuildFailed):
            if relay != LIMIT:
                command(relay)


def version(relay: str) -> str:
    """What of it is measured."""
    if relay == LIMIT:
        return ""
    return __version__ if relay in (FLARE, FLARE_NEWER) else build.version(relay.partition("-")[0])


def cores() -> list[int]:
    """The cores that this program may use."""
    return sorted(os.sched_getaffinity(0))


def pinned(number: int) -> list[str]:
    """A prefix that pins a command to one core, when there are two."""
    usable = cores()
    return ["taskset", "-c", str(usable[number % len(usable)])] if len(usable) > 1 else []


def raise_file_limit() -> int:
    """As many descriptors as the system allows; the relays inherit that. Gives the number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@dataclass(frozen=True, slots=True)
class Running:
    """A relay that listens: a process and an address, or for the C limit its port and keys."""

    pid: int
    address: Multiaddr | None
    security: Security
    port: int = 0
    keys: Sequence[bytes] = ()

    def circuits(self, count: int) -> list[Circuit]:
        """Set up `count` circuits through it; the C limit was told how many at its start."""
        if self.address is None:
            return circuits.bare(self.port, count, LIMIT_RECORDS[self.security], self.keys)
        return asyncio.run(circuits.through(self.address, count, self.security))


@contextmanager
def running(
    relay: str, security: Security = "noise", *, pairs: int = 1, threads: int = 0, core: int | None = 0
) -> Iterator[Running]:
    """Start a relay, on one core unless `core` is None. `pairs`: how many circuits the C limit will join."""
    keys: list[bytes] = []
    if relay == LIMIT:
        records = LIMIT_RECORDS[security]
        keys = circuits.keys(records)
        words = [str(compiled("c_limit")), str(pairs), records, *(key.hex() for key in keys)]
    else:
        words = command(relay, security, threads)
    prefix = [] if core is None else pinned(core)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    if relay == FLARE_NEWER:
        if NEWER_LIBCRYPTO not in env:
            raise ConnectionError("no --libcrypto was given")
        env["FLARE_LIBCRYPTO"] = env[NEWER_LIBCRYPTO]
    # To a file: a pipe that nobody empties would stop a relay that reports each reservation.
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            [*prefix, *words],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=ROOT,
        )
        try:
            line = _first_line(said, server)
            yield _running(line, server.pid, security, keys)
        finally:
            _end(server)


def _running(line: bytes, pid: int, security: Security, keys: Sequence[bytes]) -> Running:
    if keys:
        return Running(pid, None, security, int(line), keys)
    said = json.loads(line)
    if said.get("event") == "error":
        raise ConnectionError(f"the relay did not start: {said['reason']}")
    address = next(addr for addr in said["addrs"] if "/tcp/" in addr and "127.0.0.1" in addr)
    return Running(pid, Multiaddr(address), security)


def _first_line(said: BinaryIO, server: subprocess.Popen[bytes]) -> bytes:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        ended = server.poll() is not None
        line, end, _ = os.pread(said.fileno(), 1 << 16, 0).partition(
            b"\n"
        )  # which moves no offset of the relay's
        if end:
            return line
        if ended:
            raise ConnectionError(f"the relay ended with exit code {server.returncode} before it listened")
        time.sleep(0.01)
    raise ConnectionError(f"the relay did not listen within {START_TIMEOUT:g} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdin is not None:
        server.stdin.close()
