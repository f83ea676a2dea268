"""Which addresses go into a CONNECT, and which of a peer's are worth a try (DCUtR.md, "The Protocol")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.protocols.exchange import MESSAGE_LIMIT, PUNCH
from flare.wire.messages import HolePunch, HolePunchType, PunchHint

if TYPE_CHECKING:
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

TCP_ONLY: Final = frozenset(("tcp",))
IsPublic = Callable[["Multiaddr"], bool]


def connect_message(addrs: Iterable[Multiaddr], hint: PunchHint | None = None) -> HolePunch:
    """A CONNECT with as many of our addresses, in their order, as fit into one message; never a circuit."""
    message = HolePunch(type=HolePunchType.CONNECT, obs_addrs=(), hint=hint)
    for addr in dict.fromkeys(addrs):
        if addr.is_circuit:
            continue
        longer = HolePunch(type=HolePunchType.CONNECT, obs_addrs=(*message.obs_addrs, addr), hint=hint)
        if len(longer.encode()) > MESSAGE_LIMIT:
            break
        message = longer
    return message


@dataclass(frozen=True, slots=True)
class Targets:
    """What of a CONNECT is tried. `other_transports` and `unusable` count what is not; `sentence` says so."""

    addrs: tuple[Multiaddr, ...]
    other_transports: int = 0
    unusable: int = 0

    @property
    def sentence(self) -> str:
        """Why there is nothing to try."""
        if self.other_transports and not self.unusable:
            return (
                f"the peer offers {self.other_transports} addresses, none of a transport that we punch over"
            )
        if self.other_transports or self.unusable:
            return (
                f"the peer offers no address that can be reached from here "
                f"({self.other_transports} of other transports, {self.unusable} private or unusable)"
            )
        return "the peer offers no address"


def choose_targets(
    theirs: Sequence[Multiaddr],
    ours: Sequence[Multiaddr],
    peer: PeerId,
    *,
    is_public: IsPublic,
    limit: int = PUNCH.max_targets,
    transports: frozenset[str] = TCP_ONLY,
) -> Targets:
    """The peer's addresses of `transports` that are tried, public ones first.

    A private address is tried only when the peer can be in our network: it shares a public IP with us, or
    either side knows of no public address. Else a peer could have us knock at our own network's doors.
    """
    public_here = {addr.ip for addr in ours if is_public(addr)}
    public_there = {addr.ip for addr in theirs if is_public(addr)}
    same_network = not public_here or not public_there or bool(public_here & public_there)
    public: list[Multiaddr] = []
    private: list[Multiaddr] = []
    other = unusable = 0
    for addr in dict.fromkeys(theirs):
        if addr.is_circuit or addr.ip is None or addr.peer_id not in (None, peer):
            unusable += 1
        elif _plain(addr) not in transports:
            other += 1
        elif not addr.port or addr.ip.is_unspecified or addr.ip.is_multicast:
            unusable += 1
        elif is_public(addr):
            public.append(addr.without_peer())
        elif same_network and not addr.ip.is_loopback and not addr.ip.is_link_local:
            private.append(addr.without_peer())
        else:
            unusable += 1
    return Targets(tuple(dict.fromkeys(public + private))[:limit], other, unusable)


def _plain(addr: Multiaddr) -> str | None:
    """The transport of an address that is only an IP, a port and that."""
    shape = tuple(part.name for part in addr.without_peer() if part.name != "ip6zone")[1:]
    return {("tcp",): "tcp", ("udp", "quic-v1"): "quic-v1"}.get(shape)


def port_doubt(theirs: Sequence[Multiaddr], *, is_public: IsPublic) -> str:
    """What a peer's addresses say against aiming at its public one; "" when they say nothing.

    A peer that is public under another port than it listens on is behind a NAT that gives out ports of its
    own. With endpoint-dependent mapping (RFC 4787, 4.1) that port is the relay's alone, and ours is another.
    """
    for transport in ("tcp", "quic-v1"):
        those = [addr for addr in theirs if _plain(addr) == transport]
        public = [addr for addr in those if is_public(addr)]
        own_ports = {addr.port for addr in those if not is_public(addr) and not addr.is_loopback}
        if public and own_ports and not any(addr.port in own_ports for addr in public):
            return (
                f"the peer listens on port {min(filter(None, own_ports))} and is known as {public[0]}: "
                "its NAT gives out ports of its own, and if it gives another for each destination "
                "(endpoint-dependent mapping), nobody can aim at it"
            )
    return ""
