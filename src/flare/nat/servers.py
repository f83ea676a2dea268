"""Who can be asked to dial us back, kept by what happens and never by looking at all connections.

A host may have thousands of connections. Each event costs a dictionary entry, and who is asked next is at the
front: trusted servers first, then a network's in turn, those asked longest ago first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from flare.wire.peer_id import PeerId

MAX_SERVERS: Final = 1024  # remembered at once, besides trusted ones


class Servers:
    """Peers that dial back. `overflowed`: there were more than it holds."""

    def __init__(self, max_servers: int = MAX_SERVERS) -> None:
        self._max = max_servers
        self._trusted: OrderedDict[PeerId, None] = OrderedDict()
        self._by_network: OrderedDict[str, OrderedDict[PeerId, None]] = OrderedDict()
        self._network: dict[PeerId, str] = {}
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._trusted) + len(self._network)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._trusted or peer in self._network

    def add(self, peer: PeerId, network: str, *, trusted: bool = False) -> bool:
        """It dials back, and is in `network`; whether that is news. Who was never asked goes first."""
        if peer in self:
            return False
        if trusted:
            self._trusted[peer] = None
            self._trusted.move_to_end(peer, last=False)
            return True
        if len(self._network) >= self._max:
            self.overflowed = True
            return False
        self._network[peer] = network
        if network not in self._by_network:
            self._by_network[network] = OrderedDict()
            self._by_network.move_to_end(network, last=False)
        self._by_network[network][peer] = None
        self._by_network[network].move_to_end(peer, last=False)
        return True

    def discard(self, peer: PeerId) -> bool:
        """It is gone, or dials back no more; whether it was there."""
        if peer in self._trusted:
            del self._trusted[peer]
            return True
        network = self._network.pop(peer, None)
        if network is None:
            return False
        del self._by_network[network][peer]
        if not self._by_network[network]:
            del self._by_network[network]
        return True

    def asked(self, peer: PeerId) -> None:
        """It is asked now: the others of its network come before it, and other networks before its own."""
        if peer in self._trusted:
            self._trusted.move_to_end(peer)
        elif (network := self._network.get(peer)) is not None:
            self._by_network[network].move_to_end(peer)
            self._by_network.move_to_end(network)

    def in_turn(self) -> Iterator[PeerId]:
        """All of them, whom to ask first coming first; nothing may be added or removed meanwhile."""
        yield from self._trusted
        rows = []
        for peers in self._by_network.values():
            row = iter(peers)
            yield next(row)
            rows.append(row)
        while rows:
            left = []
            for row in rows:
                peer = next(row, None)
                if peer is not None:
                    yield peer
                    left.append(row)
            rows = left
