"""What attackers share: a pace, many addresses, and connections that end however they end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from flare.errors import FlareError
from flare.wire.multiaddr import Multiaddr
from tests.support import hostile

TICK = 0.01


def source(number: int) -> str:
    """One of the attackers' addresses, 10.66.128.0 to 10.66.255.255."""
    return f"10.66.{128 + (number >> 8) % 128}.{number & 255}"


async def paced(rate: float) -> AsyncIterator[int]:
    """Counts up, `rate` times a second; what could not be done in time is not made up for."""
    done = 0
    began = time.monotonic()
    while True:
        due = (time.monotonic() - began) * rate
        if due - done > rate * 0.2:
            began, done, due = time.monotonic(), 0, 0.0
        while done <= due:
            done += 1
            yield done
        await asyncio.sleep(TICK)


@contextlib.asynccontextmanager
async def crowd() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Start tasks that all end with the block; what they run into is theirs."""
    tasks: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled():
            task.exception()

    try:
        yield start
    finally:
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def again_and_again(
    addr: Multiaddr,
    did: Counter[str],
    attack: Callable[[hostile.Client], Awaitable[None]],
    connections: int,
    rest: float = 0.2,
) -> None:
    """`attack` on so many connections at once, each from its own IP, and a new one when one has ended."""

    async def one(number: int) -> None:
        while True:
            try:
                async with hostile.client(addr, source=source(number)) as client:
                    did["connections"] += 1
                    await attack(client)
                    did["done"] += 1
            except (FlareError, OSError, TimeoutError) as error:
                did[type(error).__name__] += 1
            await asyncio.sleep(rest)

    async with crowd() as start:
        for number in range(connections):
            start(one(number))
        await asyncio.Event().wait()


async def deafly(client: hostile.Client) -> None:
    """Read and forget what the relay says, until it ends the connection."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(client.sock, 1 << 16):
            pass
