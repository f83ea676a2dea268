"""Where relays are heard of, one module per source: static, dnsaddr, connected, routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class FoundRelay:
    """What a source tells: who may relay, and where it is dialled."""

    peer: PeerId
    addrs: tuple[Multiaddr, ...]


class RelaySource(Protocol):
    """Tells of relays whenever it is asked.

    `trusted`: who runs this host has named what it tells, which is preferred, may be at private addresses,
    and is asked on after failures. What others tell is a stranger's word.
    """

    @property
    def name(self) -> str:
        """For people and logs."""
        ...

    @property
    def trusted(self) -> bool:
        """Whether its relays are our own choice."""
        ...

    async def find(self) -> Sequence[FoundRelay]:
        """The relays that it knows now. FlareError when it cannot tell."""
        ...


def dialable(addr: Multiaddr) -> bool:
    """It is TCP or QUIC to an IP address or a name, which is what flare dials."""
    names = [part.name for part in addr.without_peer()]
    return len(names) > 1 and names[1:] in (["tcp"], ["udp", "quic-v1"])


def grouped(addrs: Sequence[Multiaddr]) -> list[FoundRelay]:
    """Addresses with /p2p at their end, by peer; others are left out."""
    by_peer: dict[PeerId, list[Multiaddr]] = {}
    for addr in addrs:
        if addr.peer_id is not None and not addr.is_circuit:
            by_peer.setdefault(addr.peer_id, []).append(addr)
    return [FoundRelay(peer, tuple(some)) for peer, some in by_peer.items()]


def told_by_strangers(
    peer: PeerId, addrs: Sequence[Multiaddr], is_public: Callable[[Multiaddr], bool]
) -> tuple[Multiaddr, ...]:
    """The addresses that a stranger may send us to: public IP addresses, not names or our own network."""
    return tuple(
        addr
        for addr in dict.fromkeys(addrs)
        if addr.ip is not None and dialable(addr) and addr.peer_id in (None, peer) and is_public(addr)
    )
