"""One circuit at full speed: two hosts in this process, the bytes from one through the relay to the other.

The circuit carries bare bytes, with no connection inside it: the relay's work is the same, and the load is as light as
it can be. Prints one JSON object. Not meant to be run by hand: `python -m benchmarks.relay` does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import flare
from flare.protocols.relay import connect, reserve, stop
from flare.transport.stream import Stream

CLOCK_TICKS = 100  # per second, in /proc/PID/stat (USER_HZ, on every Linux)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


async def measure(relay: str, pid: int, message: int, warmup: float, seconds: float) -> dict[str, float]:
    """Relay messages for `seconds`; returns bytes, seconds and the relay's CPU seconds."""
    async with flare.Host(listen=[], punch=False) as source, flare.Host(listen=[], punch=False) as target:
        arrived: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

        async def on_stop(stream: Stream) -> None:
            incoming = await stop.accept(stream)
            arrived.set_result(incoming.stream)
            await incoming.stream.connection.wait_closed()

        target.handle(stop.PROTOCOL, on_stop)
        held = await target.connect(relay)
        await reserve.reserve(held)
        through = await source.connect(relay)
        sending, _ = await connect.connect(through, target.peer_id)
        receiving = await arrived
        received = 0

        async def drain() -> None:
            nonlocal received
            while data := await receiving.read(1 << 20):
                received += len(data)

        async def pump() -> None:
            payload = bytes(message)
            while True:
                await sending.write(payload)

        tasks = [asyncio.ensure_future(drain()), asyncio.ensure_future(pump())]
        try:
            await asyncio.sleep(warmup)
            bytes_before, cpu_before, before = received, cpu_seconds(pid), time.monotonic()
            await asyncio.sleep(seconds)
            moved, cpu, elapsed = received - bytes_before, cpu_seconds(pid) - cpu_before, time.monotonic() - before
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return {"bytes": moved, "seconds": elapsed, "cpu_seconds": cpu}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("relay")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--message", type=int, default=16384)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.relay, args.pid, args.message, args.warmup, args.seconds))))


if __name__ == "__main__":
    main()
