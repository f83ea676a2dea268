"""A router's protocols without a network, for tests on virtual time."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from flare.config import PortMappingConfig
from flare.errors import FlareError
from flare.nat.port_mapping.lease import Lease, MappingGone
from flare.nat.port_mapping.router import Router
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from tests.support.linked import now

GATEWAY = ip_address("10.0.0.1")
TCP = Multiaddr("/ip4/10.0.0.2/tcp/4001")
QUIC = Multiaddr("/ip4/10.0.0.2/udp/4001/quic-v1")
CONFIG = PortMappingConfig()
Failure = FlareError | OSError | ValueError


class Protocol:
    """A Mapper whose router answers after `delay`, or fails with what `failing` says for each step."""

    def __init__(self, name: str = "PCP", *, delay: float = 0.01, lifetime: float = 7200.0) -> None:
        self.name = name
        self.delay = delay
        self.lifetime = lifetime
        self.external: IpAddress = ip_address("102.1.0.1")
        self.outside: IpAddress | None = None
        self.gives_more = True
        self.failing: dict[str, Failure] = {}
        self.done: list[tuple[float, str]] = []
        self.table: dict[Multiaddr, int] = {}

    async def _step(self, step: str) -> None:
        self.done.append((now(), step))
        await asyncio.sleep(self.delay)
        if step in self.failing:
            raise self.failing[step]

    async def probe(self) -> IpAddress | None:
        await self._step("probe")
        return self.outside

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        await self._step("map")
        return self._lease(listener, port)

    async def renew(self, lease: Lease) -> Lease:
        await self._step("renew")
        if not self.gives_more:
            return lease
        return self._lease(lease.listener, lease.port)

    async def check(self, lease: Lease) -> Lease:
        await self._step("check")
        if lease.listener not in self.table:
            raise MappingGone("the router has it no more")
        return replace(lease, external=self.external, port=self.table[lease.listener])

    async def unmap(self, lease: Lease) -> None:
        await self._step("unmap")
        self.table.pop(lease.listener, None)

    def _lease(self, listener: Multiaddr, port: int) -> Lease:
        port = self.table.setdefault(listener, port)
        return Lease(self.name, listener, self.external, port, self.lifetime, now())

    def times(self, step: str) -> list[float]:
        return [at for at, done in self.done if done == step]


class Bench:
    """`async with Bench(protocol, ...) as bench`: a Router with them, whose events are kept."""

    def __init__(
        self, *protocols: Protocol, share: float = 1.0, wanted: tuple[Multiaddr, ...] = (TCP,), **config: Any
    ) -> None:
        self.protocols = protocols
        self.config = replace(CONFIG, **config)
        self.events: list[tuple[float, Any]] = []
        self.changes = 0
        self._share = share
        self._wanted = wanted

    async def __aenter__(self) -> Bench:
        self.router = Router(
            GATEWAY,
            self.protocols,
            self.config,
            on_event=lambda event: self.events.append((now(), event)),
            on_change=self._changed,
            uniform=lambda low, high: low + self._share * (high - low),
        )
        self.router.want(self._wanted)
        self.task = asyncio.get_running_loop().create_task(self.router.run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))
        await self.router.close()

    def _changed(self) -> None:
        self.changes += 1

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def when(self, kind: type[Any]) -> list[float]:
        return [round(at, 6) for at, event in self.events if isinstance(event, kind)]


FOREVER = math.inf
