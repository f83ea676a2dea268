"""Who may use a relay, and for whom its limits do not count: lists of peer ids and of networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol

from flare.errors import UsageError
from flare.wire.multiaddr import Multiaddr
from flare.wire.peer_id import PeerId

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Acl(Protocol):
    """Who may use the relay; asked before any limit."""

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        """`peer`, connected from `addr`, may hold a reservation."""

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        """`source`, connected from `addr`, may open a circuit to `target`."""


class AllowAll:
    """The Acl of a public relay."""

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        return True

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        return True


class PeerList:
    """Peers by id, or by the network that they connect from: "12D3Koo...", "192.0.2.0/24", "2001:db8::/32".

    UsageError names an entry that is neither, or a network with bits set behind its prefix.
    """

    def __init__(self, entries: Iterable[PeerId | IpNetwork | str] = ()) -> None:
        peers: set[PeerId] = set()
        # by IP version and prefix length, so that a long list costs a look per length and not per entry
        networks: dict[tuple[int, int], set[int]] = {}
        for entry in entries:
            found = parse_entry(entry) if isinstance(entry, str) else entry
            if isinstance(found, PeerId):
                peers.add(found)
            else:
                shift = found.max_prefixlen - found.prefixlen
                key = found.version, shift
                networks.setdefault(key, set()).add(int(found.network_address) >> shift)
        self.peers = frozenset(peers)
        self._networks = networks

    def __len__(self) -> int:
        return len(self.peers) + sum(map(len, self._networks.values()))

    def lists(self, peer: PeerId, addr: Multiaddr) -> bool:
        """`peer` is listed, or the network of `addr` is."""
        if peer in self.peers:
            return True
        ip = ip_of(addr)
        if ip is None or not self._networks:
            return False
        return any(
            version == ip.version and int(ip) >> shift in starts
            for (version, shift), starts in self._networks.items()
        )


class AccessList:
    """An Acl of two lists: who is denied is, whatever else is said; an empty `allow` allows everybody."""

    def __init__(self, allow: PeerList | None = None, deny: PeerList | None = None) -> None:
        self._allow = allow or PeerList()
        self._deny = deny or PeerList()

    def allow_reserve(self, peer: PeerId, addr: Multiaddr) -> bool:
        if self._deny.lists(peer, addr):
            return False
        return not len(self._allow) or self._allow.lists(peer, addr)

    def allow_connect(self, source: PeerId, addr: Multiaddr, target: PeerId) -> bool:
        # the target's network was asked about when it reserved
        return target not in self._deny.peers and self.allow_reserve(source, addr)


def parse_entry(text: str) -> PeerId | IpNetwork:
    """A peer id, or a network, of which a single address is one. UsageError says what is wrong."""
    try:
        if "/" in text or ":" in text or text.replace(".", "").isdigit():
            return ipaddress.ip_network(text)
        return PeerId(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is neither a peer id nor a network: {error}") from None


def ip_of(addr: Multiaddr) -> IpAddress | None:
    """The IP that a peer comes from; an IPv4 one inside IPv6 is IPv4."""
    ip = addr.ip
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def prefix_of(addr: Multiaddr, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """What counts as one for the limits "per_ip"."""
    ip = ip_of(addr)
    if ip is None:
        return "nowhere"
    bits = ipv4_prefix if ip.version == 4 else ipv6_prefix
    if bits >= ip.max_prefixlen:
        return str(ip)
    shift = ip.max_prefixlen - bits
    return str(ipaddress.ip_network((int(ip) >> shift << shift, bits)))
