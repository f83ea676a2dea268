"""How late the first SYN of a punch is, idle and beside a busy relay in its process; and a loop timer.

    python benchmarks/punch_lateness.py [--samples 200] [--loads idle,relay] [--loops asyncio,uvloop] [--json]

Each sample takes a deadline 5 to 25 ms ahead and notes, on the monotonic clock, when connect is called: by
flare's punch in a thread, or by a callback of the loop's call_at, which goes by `loop.time()`. Samples of the
two alternate. Under load a flare relay in this process carries one circuit at full speed, on the same loop,
between two hosts in another process. Microseconds after the deadline; negative is early.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import flare
import flare.events
from flare._core.punch import monotonic_ns, punch
from flare.protocols.relay import connect, reserve, stop
from flare.transport.loop_engine import LoopEngine

ROOT = Path(__file__).resolve().parent.parent
MS = 1_000_000
TIMEOUT_NS = 5_000 * MS
WARMUP = 1.0  # seconds of load before the first sample
MESSAGE = 16384
Load = Callable[[], AbstractAsyncContextManager[Callable[[], float]]]


@contextlib.asynccontextmanager
async def idle() -> AsyncIterator[Callable[[], float]]:
    """No load: 0 MB/s."""
    yield lambda: 0.0


@contextlib.asynccontextmanager
async def relay() -> AsyncIterator[Callable[[], float]]:
    """A relay on this loop with one circuit at full speed; gives its MB/s since the warm-up."""
    async with (
        flare.Host(listen=["/ip4/127.0.0.1/tcp/0"], punch=False) as host,
        flare.RelayServer(host, flare.RelayLimits.unlimited()),
    ):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--drive", str(host.full_addrs[0]), env=env
        )
        try:
            async with asyncio.timeout(20):
                async for event in host.events():
                    if isinstance(event, flare.events.CircuitOpened):
                        break
            await asyncio.sleep(WARMUP)
            with LoopEngine.get() as on_loop:

                def carried() -> int:
                    return sum(each.bytes_a_to_b + each.bytes_b_to_a for each in on_loop.engine.splices)

                before, start = carried(), time.monotonic()
                yield lambda: (carried() - before) / (time.monotonic() - start) / 1e6
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def drive(address: str) -> None:
    """The other process: two hosts, and messages from one to the other through the relay till it is ended."""
    async with flare.Host(listen=[], punch=False) as source, flare.Host(listen=[], punch=False) as target:
        arrived: asyncio.Future[flare.Stream] = asyncio.get_running_loop().create_future()

        async def on_stop(stream: flare.Stream) -> None:
            arrived.set_result((await stop.accept(stream)).stream)
            await stream.connection.wait_closed()

        target.handle(stop.PROTOCOL, on_stop)
        await reserve.reserve(await target.connect(address))
        sending, _ = await connect.connect(await source.connect(address), target.peer_id)
        receiving = await arrived

        async def drain() -> None:
            while await receiving.read(1 << 20):
                pass

        async def pump() -> None:
            while True:
                await sending.write(bytes(MESSAGE))

        await asyncio.gather(drain(), pump())


LOADS: dict[str, Load] = {"idle": idle, "relay": relay}


def bound() -> socket.socket:
    """A socket on loopback whose port a punch may share."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


async def by_punch(target: tuple[str, int], ahead_ns: int) -> int:
    """Lateness of flare's punch, in a thread as a host runs it."""
    with bound() as ours:
        deadline = monotonic_ns() + ahead_ns
        work = partial(punch, ours.getsockname(), [target], deadline, timeout_ns=TIMEOUT_NS, listen=False)
        result = await asyncio.get_running_loop().run_in_executor(None, work)
        os.close(result.fd)
        return result.first_syn_lateness_ns


async def by_timer(target: tuple[str, int], ahead_ns: int) -> int:
    """Lateness of a connect from a callback of the loop's own timer."""
    loop = asyncio.get_running_loop()
    late: asyncio.Future[int] = loop.create_future()
    with bound() as ours:
        ours.setblocking(False)

        def fire() -> None:
            late.set_result(time.monotonic_ns() - deadline)
            ours.connect_ex(target)

        deadline = time.monotonic_ns() + ahead_ns
        loop.call_at(loop.time() + ahead_ns / 1e9, fire)
        return await late


async def measure(load: Load, samples: int, seed: int) -> tuple[dict[str, list[int]], float]:
    """Lateness in ns of each way, and the relay's MB/s meanwhile."""
    ways = {"flare punch": by_punch, "loop timer": by_timer}
    late: dict[str, list[int]] = {way: [] for way in ways}
    deadlines = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as peer:
        async with load() as megabytes:
            for _ in range(samples):
                for way, work in ways.items():
                    late[way].append(await work(peer.getsockname(), deadlines.randint(5 * MS, 25 * MS)))
                    peer.accept()[0].close()
            return late, megabytes()


def row(loop: str, load: str, way: str, late: list[int], megabytes: float) -> dict[str, Any]:
    """The figures of one way, in microseconds."""
    micros = [nanoseconds / 1000 for nanoseconds in late]
    cuts = statistics.quantiles(micros, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p99": cuts[98], "min": min(micros), "max": max(micros)}
    return {
        "loop": loop,
        "load": load,
        "way": way,
        **{f"{name}_us": round(value, 1) for name, value in figures.items()},
        "samples": len(late),
        "relay_mb_per_s": round(megabytes),
    }


def runner(loop: str) -> asyncio.Runner:
    """A runner of asyncio's loop or of uvloop."""
    if loop == "asyncio":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=200, help="of each way, loop and load")
    parser.add_argument("--loads", default="idle,relay")
    parser.add_argument("--loops", default="asyncio,uvloop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object per line")
    parser.add_argument("--drive", metavar="ADDR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        asyncio.run(drive(args.drive))
        return
    if args.samples < 2:
        parser.error("at least 2 samples")
    if not args.json:
        print("lateness of the first SYN, microseconds")
        print(f"{'loop':8} {'load':6} {'way':12} {'p50':>9} {'p99':>9} {'min':>9} {'max':>9}  relay MB/s")
    for load in args.loads.split(","):
        for loop in args.loops.split(","):
            with runner(loop) as running:
                late, megabytes = running.run(measure(LOADS[load], args.samples, args.seed))
            for way, found in late.items():
                figures = row(loop, load, way, found, megabytes)
                if args.json:
                    print(json.dumps(figures), flush=True)
                    continue
                cells = " ".join(f"{figures[name]:9.1f}" for name in ("p50_us", "p99_us", "min_us", "max_us"))
                print(f"{loop:8} {load:6} {way:12} {cells}  {figures['relay_mb_per_s']}", flush=True)


if __name__ == "__main__":
    main()
