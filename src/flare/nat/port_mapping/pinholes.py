"""UPnP's pinholes in the router's IPv6 firewall (WANIPv6FirewallControl:1)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from flare.config import PortMappingConfig
from flare.errors import PortMappingRefused
from flare.nat.port_mapping.lease import Lease, MappingGone, transport_of
from flare.nat.port_mapping.upnp import call, find
from flare.nat.port_mapping.urls import checked, moved
from flare.transport.routes import Route
from flare.wire import upnp
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from flare.wire.upnp import Service

MAX_LIFETIME: Final = 86400  # seconds (2.3.5)
PROTOCOLS: Final = {"tcp": 6, "udp": 17}


class Pinholes:
    """A Mapper for the router of `route`, which is IPv6's.

    Its description is looked for by IPv4, on the way of `over`: a router opens a pinhole only for who asks
    from the address that it leads to, so that the same service is then called by IPv6.
    """

    name: Final = "UPnP"

    def __init__(self, route: Route, over: Route, config: PortMappingConfig) -> None:
        self._route = route
        self._over = over
        self._config = config
        self._url = ""

    async def probe(self) -> None:
        """Find its description, and ask whether the firewall lets us."""
        services = await find(self._over, self._config, (upnp.FIREWALL,))
        self._url = self._by_ipv6(services[0])
        assert self._route.source is not None
        told = await self._call("GetFirewallStatus", {}, self._route.source)
        if told.get("InboundPinholeAllowed", "1").lower() in ("0", "false", "no"):
            raise PortMappingRefused(f"UPnP: {upnp.ERRORS[703]}", code=703)

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        """Open a pinhole; the port is the listener's."""
        assert listener.ip is not None
        assert listener.port is not None
        lifetime = self._lifetime
        arguments = {
            "RemoteHost": "",
            "RemotePort": 0,
            "InternalClient": listener.ip,
            "InternalPort": listener.port,
            "Protocol": PROTOCOLS[transport_of(listener)],
            "LeaseTime": lifetime,
        }
        told = await self._call("AddPinhole", arguments, listener.ip)
        granted = asyncio.get_running_loop().time()
        handle = str(upnp.number(told, "UniqueID", 0, 0xFFFF))
        return Lease("UPnP pinhole", listener, listener.ip, listener.port, lifetime, granted, handle)

    async def renew(self, lease: Lease) -> Lease:
        """Make it last again, which tells whether it is there too."""
        assert lease.listener.ip is not None
        lifetime = self._lifetime
        arguments = {"UniqueID": lease.handle, "NewLeaseTime": lifetime}
        try:
            await self._call("UpdatePinhole", arguments, lease.listener.ip)
        except PortMappingRefused as refused:
            if refused.code != upnp.NO_SUCH_PINHOLE:
                raise
            raise MappingGone("UPnP: the router has no such pinhole any more") from None
        return replace(lease, lifetime=lifetime, granted=asyncio.get_running_loop().time())

    check = renew

    async def unmap(self, lease: Lease) -> None:
        """Close it; that it is closed already is fine."""
        assert lease.listener.ip is not None
        try:
            await self._call("DeletePinhole", {"UniqueID": lease.handle}, lease.listener.ip)
        except PortMappingRefused as refused:
            if refused.code != upnp.NO_SUCH_PINHOLE:
                raise

    @property
    def _lifetime(self) -> int:
        return min(round(self._config.lifetime), MAX_LIFETIME)

    def _by_ipv6(self, service: Service) -> str:
        assert self._over.gateway is not None
        assert self._route.gateway is not None
        return moved(checked(service.control, self._over.gateway), self._route.gateway, self._route.interface)

    async def _call(self, action: str, arguments: Mapping[str, object], source: IpAddress) -> dict[str, str]:
        if not self._url:
            raise PortMappingRefused("UPnP: the router was not asked yet", code=0)
        told = await call(self._url, upnp.FIREWALL, action, arguments, source, self._config)
        if isinstance(told, upnp.Fault):
            raise PortMappingRefused(f"UPnP: {told.sentence} (error {told.code})", code=told.code)
        return told
