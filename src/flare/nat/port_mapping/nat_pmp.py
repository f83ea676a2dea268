"""NAT-PMP with one router (RFC 6886)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Final

from flare.config import PortMappingConfig
from flare.errors import DecodeError, PortMappingRefused
from flare.nat.port_mapping.ask import ask, doubling
from flare.nat.port_mapping.lease import Lease, transport_of
from flare.nat.port_mapping.router_clock import RouterClock
from flare.transport.routes import Route
from flare.wire import nat_pmp
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr

FIRST_WAIT: Final = 0.25  # seconds; doubles (3.1)


class NatPmp:
    """A Mapper. `on_restart` is called when the router's clock says that it lost its mappings."""

    name: Final = "NAT-PMP"

    def __init__(self, route: Route, config: PortMappingConfig, *, on_restart: Callable[[], None]) -> None:
        self._route = route
        self._config = config
        self._on_restart = on_restart
        self._clock = RouterClock(lambda: asyncio.get_running_loop().time(), two_sided=False)

    async def probe(self) -> IpAddress:
        """Ask for the outside address."""
        assert self._route.source is not None
        return await self._external(self._route.source, doubling(FIRST_WAIT, self._config.patience))

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        """Have a port forwarded."""
        external = await self._external(_ip(listener), self._waits())  # first: nothing stays if it fails
        answer = await self._ask(listener, port, round(self._config.lifetime))
        if not answer.lifetime or not answer.external_port:
            raise PortMappingRefused("NAT-PMP: the router gives a port for no time", code=0)
        granted = asyncio.get_running_loop().time()
        return Lease(self.name, listener, external, answer.external_port, answer.lifetime, granted)

    async def renew(self, lease: Lease) -> Lease:
        """Ask again for what we have (3.3)."""
        return await self.map(lease.listener, lease.port)

    check = renew  # there is nothing else to ask

    async def unmap(self, lease: Lease) -> None:
        """Give it back (3.4)."""
        await self._ask(lease.listener, 0, 0)

    async def _ask(self, listener: Multiaddr, port: int, lifetime: int) -> nat_pmp.MapAnswer:
        transport, internal = transport_of(listener), listener.port or 0

        def decode(data: bytes) -> nat_pmp.MapAnswer:
            answer = nat_pmp.decode_map_answer(data, transport)
            if answer.internal_port != internal and answer.result == nat_pmp.SUCCESS:
                raise DecodeError("another port's mapping", protocol="nat-pmp")
            return answer

        request = nat_pmp.encode_map_request(transport, internal, external_port=port, lifetime=lifetime)
        answer = await ask(
            self._route, nat_pmp.PORT, request, decode, source=_ip(listener), waits=self._waits()
        )
        self._heard(answer.result, answer.epoch)
        return answer

    async def _external(self, source: IpAddress, waits: Iterator[float]) -> IPv4Address:
        answer = await ask(
            self._route,
            nat_pmp.PORT,
            nat_pmp.encode_address_request(),
            nat_pmp.decode_address_answer,
            source=source,
            waits=waits,
        )
        self._heard(answer.result, answer.epoch)
        return answer.external

    def _heard(self, result: int, epoch: int) -> None:
        if result != nat_pmp.SUCCESS:
            reason = nat_pmp.RESULTS.get(result, f"result {result}")
            raise PortMappingRefused(f"NAT-PMP: {reason}", code=result)
        if self._clock.forgot(epoch):
            self._on_restart()

    def _waits(self) -> Iterator[float]:
        return doubling(FIRST_WAIT, self._config.request)


def _ip(listener: Multiaddr) -> IpAddress:
    assert listener.ip is not None
    return listener.ip
