"""UPnP with one router: WANIPConnection and WANPPPConnection (IGD 1 and 2)."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final

from flare.config import HttpLimits, PortMappingConfig
from flare.errors import DecodeError, FlareError, PortMappingRefused, TimedOut
from flare.nat.port_mapping.lease import PERMANENT, Lease, MappingGone, transport_of
from flare.nat.port_mapping.search import Search
from flare.nat.port_mapping.urls import checked
from flare.transport import http_client
from flare.transport.http_client import Response
from flare.transport.routes import Route
from flare.wire import upnp
from flare.wire.address_space import IpAddress
from flare.wire.multiaddr import Multiaddr
from flare.wire.upnp import Service
from flare.wire.xml_tree import MAX_BYTES

DESCRIPTION: Final = "flare"  # what the router's owner sees in its list of mappings
# An IGD 2 router that knows no AddAnyPortMapping, or allows it to nobody, may still take AddPortMapping.
TAKEN: Final = (upnp.CONFLICT, 729)
NOT_ANY: Final = (
    *TAKEN,
    upnp.SAME_PORTS_REQUIRED,
    upnp.INVALID_ACTION,
    upnp.INVALID_ARGUMENTS,
    501,
    602,
    upnp.NOT_AUTHORIZED,
)
PORTS: Final = (1024, 65535)  # tried by chance when the one that was wanted is taken


class Upnp:
    """A Mapper."""

    name: Final = "UPnP"

    def __init__(
        self,
        route: Route,
        config: PortMappingConfig,
        *,
        random_port: Callable[[int, int], int] = random.randint,
    ) -> None:
        self._route = route
        self._config = config
        self._random_port = random_port
        self._connection: Service | None = None
        self._permanent = False  # the router gives no others

    async def probe(self) -> IpAddress:
        """Find its description, and in it a connection to the internet that tells its address."""
        services = await find(self._route, self._config, upnp.CONNECTIONS)
        self._connection, external = await self._connected(services)
        return external

    async def map(self, listener: Multiaddr, port: int) -> Lease:
        """Have a port forwarded, another one than `port` when that is taken."""
        reserved = await self._any(listener, port)
        if reserved is None:
            reserved = await self._one_of(listener, self._ports(listener, port))
        granted = asyncio.get_running_loop().time()
        lifetime = PERMANENT if self._permanent else self._config.lifetime
        lease = Lease(
            f"{self.name} IGD {self._service.version}", listener, IPv4Address(0), reserved, lifetime, granted
        )
        try:
            return await self.check(lease)  # the router may say yes and do nothing
        except MappingGone:
            raise
        except (FlareError, OSError):  # nobody will hold this lease: nothing is to stay
            with contextlib.suppress(FlareError, OSError):
                await self.unmap(lease)
            raise

    async def renew(self, lease: Lease) -> Lease:
        """Ask again for what we have, and look whether it is there."""
        fault = await self._add(lease.listener, lease.port)
        if fault is not None and fault.code in TAKEN:
            return await self.check(lease)  # by ours, perhaps, which the router takes for a conflict
        if fault is not None:
            raise _refused(fault)
        lifetime = PERMANENT if self._permanent else self._config.lifetime
        granted = asyncio.get_running_loop().time()
        return await self.check(replace(lease, lifetime=lifetime, granted=granted))

    async def check(self, lease: Lease) -> Lease:
        """Look whether the mapping is there and ours, and what the router's address is."""
        listener = lease.listener
        told = await self._call("GetSpecificPortMappingEntry", _key(listener, lease.port))
        if isinstance(told, upnp.Fault):
            if told.code == upnp.NO_SUCH_ENTRY:
                raise MappingGone("UPnP: the router has no such mapping any more")
        else:  # a router that cannot tell is believed
            entry = upnp.entry(told)
            if (entry.client, entry.port) != (str(listener.ip), listener.port):
                raise MappingGone(f"UPnP: the router forwards it to {entry.client or 'nobody'} now")
            if not entry.enabled:
                raise MappingGone("UPnP: the router's owner has switched the mapping off")
            if entry.lifetime:  # the router may give less than was asked for
                left = asyncio.get_running_loop().time() + entry.lifetime - lease.granted
                lease = replace(lease, lifetime=min(lease.lifetime, left))
        external = await self._external(self._service)
        if isinstance(external, upnp.Fault):
            raise _refused(external)
        return replace(lease, external=external)

    async def unmap(self, lease: Lease) -> None:
        """Give it back; that it is gone already is fine."""
        told = await self._call("DeletePortMapping", _key(lease.listener, lease.port))
        if isinstance(told, upnp.Fault) and told.code != upnp.NO_SUCH_ENTRY:
            raise _refused(told)

    @property
    def _service(self) -> Service:
        if self._connection is None:
            raise PortMappingRefused("UPnP: the router was not asked yet", code=0)
        return self._connection

    async def _connected(self, services: tuple[Service, ...]) -> tuple[Service, IpAddress]:
        """Of several connections the one that has an address. PortMappingRefused when none tells one."""
        told: FlareError | None = None
        without: tuple[Service, IpAddress] | None = None
        for service in services:
            try:
                external = await self._external(service)
            except FlareError as error:
                told = error
                continue
            if isinstance(external, upnp.Fault):
                told = _refused(external)
            elif int(external):
                return service, external
            else:
                without = without or (service, external)
        if without is not None:
            return without
        raise told or PortMappingRefused("UPnP: the router names no connection to the internet", code=0)

    async def _external(self, service: Service) -> IPv4Address | upnp.Fault:
        told = await self._call("GetExternalIPAddress", {}, service)
        return told if isinstance(told, upnp.Fault) else upnp.external_address(told)

    # -- adding

    async def _any(self, listener: Multiaddr, port: int) -> int | None:
        """AddAnyPortMapping, which IGD 2 has: the router chooses. None when it must be done otherwise."""
        if self._service.version < 2 or self._permanent:
            return None
        told = await self._call("AddAnyPortMapping", self._arguments(listener, port))
        if not isinstance(told, upnp.Fault):
            return upnp.reserved_port(told)
        if told.code == upnp.ONLY_PERMANENT:
            self._permanent = True
            return None
        if told.code in NOT_ANY:
            return None
        raise _refused(told)

    async def _one_of(self, listener: Multiaddr, ports: Iterator[int]) -> int:
        last = upnp.Fault(0, "no port to ask for")
        for port in ports:
            fault = await self._add(listener, port)
            if fault is None or (fault.code in TAKEN and await self._is_ours(listener, port)):
                return port
            last = fault
            if fault.code not in (*TAKEN, upnp.SAME_PORTS_REQUIRED):
                break
        raise _refused(last)

    async def _is_ours(self, listener: Multiaddr, port: int) -> bool:
        """Whether it is taken by what an earlier run of ours has left there."""
        told = await self._call("GetSpecificPortMappingEntry", _key(listener, port))
        if isinstance(told, upnp.Fault):
            return False
        entry = upnp.entry(told)
        return (entry.client, entry.port) == (str(listener.ip), listener.port)

    async def _add(self, listener: Multiaddr, port: int) -> upnp.Fault | None:
        told = await self._call("AddPortMapping", self._arguments(listener, port))
        if isinstance(told, upnp.Fault) and told.code == upnp.ONLY_PERMANENT and not self._permanent:
            self._permanent = True
            told = await self._call("AddPortMapping", self._arguments(listener, port))
        return told if isinstance(told, upnp.Fault) else None

    def _ports(self, listener: Multiaddr, port: int) -> Iterator[int]:
        """Those to try, the wanted one first; our own too, since some routers map a port to itself only."""
        wanted = dict.fromkeys((port or listener.port or 0, listener.port or 0))
        yield from wanted
        for _ in range(self._config.other_ports):
            yield self._random_port(*PORTS)

    def _arguments(self, listener: Multiaddr, port: int) -> dict[str, object]:
        return {
            "NewRemoteHost": "",
            "NewExternalPort": port or listener.port,
            "NewProtocol": transport_of(listener).upper(),
            "NewInternalPort": listener.port,
            "NewInternalClient": listener.ip,
            "NewEnabled": 1,
            "NewPortMappingDescription": DESCRIPTION,
            "NewLeaseDuration": 0 if self._permanent else round(self._config.lifetime),
        }

    async def _call(
        self, action: str, arguments: Mapping[str, object], service: Service | None = None
    ) -> dict[str, str] | upnp.Fault:
        service = service or self._service
        url = checked(service.control, _gateway(self._route))
        return await call(url, service.kind, action, arguments, _source(self._route), self._config)


async def find(route: Route, config: PortMappingConfig, kinds: tuple[str, ...]) -> tuple[Service, ...]:
    """The router's services of these `kinds`, in that order; at least one. TimedOut, ProtocolViolation."""
    last: FlareError | OSError = TimedOut("an answer to the search for UPnP", config.patience)
    with Search(route, config.patience) as search:
        while (location := await search.next()) is not None:
            try:
                return await described(location, route, config, kinds)
            except (FlareError, OSError) as error:
                last = error
    raise last


async def described(
    location: str, route: Route, config: PortMappingConfig, kinds: tuple[str, ...]
) -> tuple[Service, ...]:
    """Those of `kinds` that the description at `location` names, in that order.

    PortMappingRefused when it names none, ProtocolViolation when it leads elsewhere than to the router.
    """
    answer = await _request(checked(location, _gateway(route)), _source(route), config)
    if answer.status != 200:
        raise DecodeError(f"status {answer.status} for its description", protocol="upnp")
    found = upnp.services(answer.body, location)
    for service in found:
        checked(service.control, _gateway(route))
    wanted = tuple(service for kind in kinds for service in found if service.kind == kind)
    if not wanted:
        raise PortMappingRefused("UPnP: the router has no service that maps ports", code=0)
    return wanted


async def call(
    url: str,
    kind: str,
    action: str,
    arguments: Mapping[str, object],
    source: IpAddress,
    config: PortMappingConfig,
) -> dict[str, str] | upnp.Fault:
    """Call an action: its out arguments, or the router's fault. TimedOut, OSError, DecodeError."""
    fields, body = upnp.encode_call(kind, action, arguments)
    answer = await _request(url, source, config, method="POST", headers=tuple(fields.items()), body=body)
    if answer.status not in (200, 500):
        raise DecodeError(f"status {answer.status} for {action}", protocol="upnp")
    return upnp.decode_answer(answer.body, action)


async def _request(url: str, source: IpAddress, config: PortMappingConfig, **how: Any) -> Response:
    limits = HttpLimits(timeout=config.request, connect=config.request, max_body=MAX_BYTES, max_redirects=0)
    return await http_client.request(url, source=str(source), limits=limits, **how)


def _refused(fault: upnp.Fault) -> PortMappingRefused:
    return PortMappingRefused(f"UPnP: {fault.sentence} (error {fault.code})", code=fault.code)


def _key(listener: Multiaddr, port: int) -> dict[str, object]:
    protocol = transport_of(listener).upper()
    return {"NewRemoteHost": "", "NewExternalPort": port, "NewProtocol": protocol}


def _gateway(route: Route) -> IpAddress:
    assert route.gateway is not None
    return route.gateway


def _source(route: Route) -> IpAddress:
    assert route.source is not None
    return route.source
