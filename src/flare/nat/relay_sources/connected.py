"""Relays among the peers that we are connected to: those that tell by identify that they speak HOP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from flare.nat.relay_sources import FoundRelay, told_by_strangers
from flare.protocols.relay import HOP_PROTOCOL

if TYPE_CHECKING:
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

Peer = tuple["PeerId", Sequence[str], Sequence["Multiaddr"]]


class ConnectedRelays:
    """`peers` gives those that we are directly connected to now: id, protocols, addresses."""

    name: Final = "a connected peer"
    trusted: Final = False

    def __init__(self, peers: Callable[[], Iterable[Peer]], is_public: Callable[[Multiaddr], bool]) -> None:
        self._peers = peers
        self._is_public = is_public

    async def find(self) -> Sequence[FoundRelay]:
        """Those that speak HOP now."""
        return [found for peer in self._peers() if (found := self.judge(*peer)) is not None]

    def judge(self, peer: PeerId, protocols: Sequence[str], addrs: Sequence[Multiaddr]) -> FoundRelay | None:
        """The relay that a peer is, if it is one that others can reach."""
        if HOP_PROTOCOL not in protocols:
            return None
        public = told_by_strangers(peer, addrs, self._is_public)
        return FoundRelay(peer, public) if public else None
