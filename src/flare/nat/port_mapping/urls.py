"""Where a router's URLs may lead: to the router, by plain HTTP, and nowhere else."""

from __future__ import annotations

import ipaddress

from flare.errors import ProtocolViolation, UsageError
from flare.transport.http_client import parse_url
from flare.wire.address_space import IpAddress


def checked(url: str, only: IpAddress) -> str:
    """`url`, if it leads to the address `only`. ProtocolViolation.

    A device says itself where its description lies, and the description where its services are: who
    followed that anywhere would carry a stranger's requests into the local network.
    """
    try:
        parts = parse_url(url)
        ip = ipaddress.ip_address(parts.hostname or "")
    except (UsageError, ValueError):
        raise ProtocolViolation(f"{url[:120]!r} is no address of the router", protocol="upnp") from None
    if parts.scheme != "http" or ip != only:
        raise ProtocolViolation(
            f"{url[:120]!r} leads elsewhere than to the router at {only}", protocol="upnp"
        )
    return url


def moved(url: str, ip: IpAddress, interface: int) -> str:
    """The same place at another of the router's addresses, which is IPv6."""
    parts = parse_url(url)
    zone = f"%{interface}" if ip.is_link_local else ""
    return parts._replace(netloc=f"[{ip}{zone}]:{parts.port or 80}").geturl()
