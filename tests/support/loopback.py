"""Whole hosts on loopback, as users make them, and relays for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import flare
from flare.events import Event
from flare.transport.stream import Stream

LOOPBACK = "/ip4/127.0.0.1/tcp/0"

E = TypeVar("E")


def host(**how: Any) -> flare.Host:
    """A host that listens on 127.0.0.1 only."""
    return flare.Host(**{"listen": [LOOPBACK], **how})


@contextlib.asynccontextmanager
async def relay(
    limits: flare.RelayLimits | None = None, **how: Any
) -> AsyncIterator[tuple[flare.Host, flare.RelayServer]]:
    """A host that relays, and its relay."""
    async with host() as serving, flare.RelayServer(serving, limits, **how) as server:
        yield serving, server


class Seen:
    """Collects a host's events from now on."""

    def __init__(self, of: flare.Host) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()
        of.on_event(self._take)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def first(self, kind: type[E], where: Callable[[E], bool] = lambda event: True) -> E:
        """The first such event, waited for."""
        while True:
            self._news.clear()
            for event in self.of(kind):
                if where(event):
                    return event
            await self._news.wait()


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
