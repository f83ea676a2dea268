"""PCP with one router (RFC 6887): mappings for IPv4, pinholes in its firewall for IPv6."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from flare.config import PortMappingConfig
from flare.errors import DecodeError, PortMappingRefused
from flare.nat.port_mapping.ask import ask, doubling
from flare.nat.port_mapping.lease import Lease, transport_of
from flare.nat.port_mapping.router_clock import RouterClock
from flare.transport.routes import Route
from flare.wire import pcp
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr

FIRST_WAIT: Final = 3.0  # seconds, give or take a tenth; doubles (8.1.1)

A = TypeVar("A", pcp.Answer, pcp.MapAnswer, pcp.MapAnswer | pcp.Answer)


class Pcp:
    """A Mapper. `on_restart` is called when the router's clock says that it lost its mappings."""

    name: Final = "PCP"

    def __init__(
        self,
        route: Route,
        config: PortMappingConfig,
        *,
        on_restart: Callable[[], None],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._route = route
        self._config = config
        self._on_restart = on_restart
        self._uniform = uniform
        self._clock = RouterClock(lambda: asyncio.get_running_loop().time(), two_sided=True)
        self._nonces: dict[Multiaddr, bytes] = {}  # a mapping answers to its nonce for as long as it lives

    async def probe(self) -> None:
        """Ask for its clock (14.1)."""
        source = self._route.source
        assert source is not None
        await self._ask(
            pcp.encode_announce(source), pcp.decode_announce_answer, source, self._config.patience
        )

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        """Have a port forwarded, or a pinhole opened."""
        return await self._lease(listener, port, None)

    async def renew(self, lease: Lease) -> Lease:
        """Ask again for what we have (11.2.1)."""
        return await self._lease(lease.listener, lease.port, lease.external)

    check = renew  # there is nothing else to ask

    async def unmap(self, lease: Lease) -> None:
        """Give it back (15.1)."""
        await self._map(lease.listener, 0, None, 0)
        self._nonces.pop(lease.listener, None)

    async def _lease(self, listener: Multiaddr, port: int, external: IpAddress | None) -> Lease:
        answer = await self._map(listener, port, external, round(self._config.lifetime))
        if not answer.lifetime or not answer.external_port:
            raise PortMappingRefused("PCP: the router gives a port for no time", code=0)
        granted = asyncio.get_running_loop().time()
        return Lease(self.name, listener, answer.external, answer.external_port, answer.lifetime, granted)

    async def _map(
        self, listener: Multiaddr, port: int, external: IpAddress | None, lifetime: int
    ) -> pcp.MapAnswer:
        source = listener.ip
        assert source is not None
        transport, internal = transport_of(listener), listener.port or 0
        nonce = self._nonces.setdefault(listener, secrets.token_bytes(pcp.NONCE))
        request = pcp.encode_map(
            source, transport, internal, nonce=nonce, lifetime=lifetime, external_port=port, external=external
        )

        def decode(data: bytes) -> pcp.MapAnswer | pcp.Answer:
            answer = pcp.decode_map_answer(data)
            if isinstance(answer, pcp.MapAnswer) and (
                (answer.nonce, answer.transport, answer.internal_port) != (nonce, transport, internal)
            ):
                raise DecodeError("another mapping's answer", protocol="pcp")
            return answer

        answer = await self._ask(request, decode, source, self._config.request)
        assert isinstance(answer, pcp.MapAnswer), "an Answer is an error, which _ask raises"
        return answer

    async def _ask(
        self, request: bytes, decode: Callable[[bytes], A], source: IpAddress, seconds: float
    ) -> A:
        answer = await ask(self._route, pcp.PORT, request, decode, source=source, waits=self._waits(seconds))
        if answer.result != pcp.SUCCESS:
            reason = pcp.RESULTS.get(answer.result, f"result {answer.result}")
            raise PortMappingRefused(f"PCP: {reason}", code=answer.result, lasting=answer.lifetime)
        if self._clock.forgot(answer.epoch):
            self._on_restart()
        return answer

    def _waits(self, seconds: float) -> Iterator[float]:
        return doubling(FIRST_WAIT * self._uniform(0.9, 1.1), seconds)
