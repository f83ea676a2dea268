"""Which IP addresses and names mean something on the public internet (IANA's special-purpose registries)."""

from __future__ import annotations

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOCAL = (
    "10.0.0.0/8",  # RFC 1918
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link local
    "::1/128",
    "fc00::/7",  # unique local
    "fe80::/10",
)
_NOWHERE = (
    "0.0.0.0/8",  # this network
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays, deprecated
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved and broadcast
    "2001:db8::/32",  # documentation
    "3fff::/20",
)
_LOCAL_NAMES = ("localhost",)
_PRIVATE_NAMES = ("local", "test", "invalid", "home.arpa", "in-addr.arpa", "ip6.arpa")  # RFC 6761, 6762, 8375


def _masks(networks: tuple[str, ...], version: int) -> tuple[tuple[int, int], ...]:
    parsed = [ipaddress.ip_network(network) for network in networks]
    return tuple((int(net.netmask), int(net.network_address)) for net in parsed if net.version == version)


_LOCAL_MASKS = {version: _masks(_LOCAL, version) for version in (4, 6)}
_NOWHERE_MASKS = {version: _masks(_NOWHERE, version) for version in (4, 6)}
_GLOBAL_UNICAST = int(ipaddress.IPv6Address("2000::")) >> 125
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::")) >> 32  # RFC 6052: the rest is an IPv4 address


def _inside(ip: int, masks: tuple[tuple[int, int], ...]) -> bool:
    return any(ip & mask == network for mask, network in masks)


def unmapped(ip: IpAddress) -> IpAddress:
    """The IPv4 address in an IPv4-mapped IPv6 one; any other as it is."""
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def ip_is_public(ip: IpAddress) -> bool:
    """Whether `ip` can be reached from anywhere.

    Local, documentation, multicast, reserved and unspecified addresses cannot.
    """
    ip = unmapped(ip)
    number = int(ip)
    if ip.version == 6:
        if number >> 32 == _NAT64:
            return ip_is_public(ipaddress.IPv4Address(number & 0xFFFFFFFF))
        if number >> 125 != _GLOBAL_UNICAST:
            return False
    return not _inside(number, _LOCAL_MASKS[ip.version]) and not _inside(number, _NOWHERE_MASKS[ip.version])


def ip_is_private(ip: IpAddress) -> bool:
    """Whether `ip` is local: RFC 1918, carrier-grade NAT, link local, unique local, loopback."""
    ip = unmapped(ip)
    return _inside(int(ip), _LOCAL_MASKS[ip.version])


def name_is_public(name: str) -> bool:
    """Whether a DNS name is one that everybody resolves."""
    return not _under(name, _LOCAL_NAMES) and not _under(name, _PRIVATE_NAMES)


def name_is_loopback(name: str) -> bool:
    """Whether a DNS name always means this machine (RFC 6761)."""
    return _under(name, _LOCAL_NAMES)


def _under(name: str, zones: tuple[str, ...]) -> bool:
    name = name.lower().rstrip(".")
    return any(name == zone or name.endswith("." + zone) for zone in zones)
