"""One host of tests/lab/test_reachability.py.

reach_node.py server IP [--broken]      relays, and dials others back
reach_node.py client SECONDS ADDR ...   prints {"event": "verdict", ...} once it is Public or Private
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

import flare
from flare.events import ReachabilityChanged


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


async def serve(ip: str) -> None:
    listen = [f"/ip4/{ip}/tcp/4001", f"/ip4/{ip}/tcp/4002"]
    async with flare.Host(listen=listen) as host, flare.RelayServer(host), flare.AutoNat(host):
        say(event="up", addr=str(host.full_addrs[0]))
        await asyncio.Event().wait()


async def look(seconds: float, relays: list[str]) -> None:
    start = time.monotonic()
    known = asyncio.Event()

    def hear(event: object) -> None:
        if isinstance(event, ReachabilityChanged):
            known.set()

    listen = ["/ip4/0.0.0.0/tcp/0"]
    async with flare.Host(listen=listen, relays=relays) as host, flare.AutoNat(host, serve=False) as nat:
        host.on_event(hear)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(known.wait(), seconds)
        found = nat.behaviour
        say(
            event="verdict",
            node=nat.reachability.node.value,
            seconds=round(time.monotonic() - start, 2),
            mapping=found.mapping.value,
            filtering=found.filtering.value,
            allocation=found.allocation.value,
            hairpin=found.hairpin,
        )


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    asyncio.run(serve(arguments[0]) if role == "server" else look(float(arguments[0]), arguments[1:]))
