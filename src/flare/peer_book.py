"""What is known of peers that were met: addresses, protocols, agent. Bounded: the least used goes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

MAX_PEERS = 4096
MAX_ADDRS = 64  # a peer that tells more is cut: defends memory and dialling


@dataclass(slots=True)
class PeerInfo:
    """One peer's facts, as it told them."""

    addrs: tuple[Multiaddr, ...] = ()
    protocols: tuple[str, ...] = ()
    agent: str = ""
    seq: int = field(default=-1)  # of the signed peer record that the addresses came from; -1: unsigned


class PeerBook:
    """Peers by id."""

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._max = max_peers
        self._peers: OrderedDict[PeerId, PeerInfo] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, peer: PeerId) -> PeerInfo:
        """What is known; an empty PeerInfo when nothing is."""
        info = self._peers.get(peer)
        if info is None:
            return PeerInfo()
        self._peers.move_to_end(peer)
        return info

    def update(
        self,
        peer: PeerId,
        *,
        addrs: Iterable[Multiaddr] | None = None,
        protocols: Iterable[str] | None = None,
        agent: str | None = None,
        seq: int = -1,
    ) -> PeerInfo:
        """Take news of a peer. Addresses replace the old ones unless these were signed later (`seq`)."""
        info = self._peers.setdefault(peer, PeerInfo())
        self._peers.move_to_end(peer)
        if addrs is not None and seq >= info.seq:
            info.addrs = tuple(dict.fromkeys(addrs))[:MAX_ADDRS]
            info.seq = seq
        if protocols is not None:
            info.protocols = tuple(protocols)
        if agent is not None:
            info.agent = agent
        while len(self._peers) > self._max:
            self._peers.popitem(last=False)
        return info
