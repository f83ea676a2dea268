"""What is known of peers that were met: addresses, protocols, agent. Bounded: the least used goes.

A signed record is kept as it came and verified when somebody asks for the addresses in it: a relay hears of
thousands of peers whose addresses nobody ever asks for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from .protocols.identify import opened
from .wire.multiaddr import Multiaddr
from .wire.peer_id import PeerId

MAX_PEERS = 4096
MAX_ADDRS = 64  # a peer that tells more is cut: defends memory and dialling
MAX_BYTES = 4096  # of a peer's addresses, and as many of its protocols' names: defends memory
MAX_RECORD = 2048  # bytes of a signed record that is kept unopened; a longer one is opened when it comes
MAX_AGENT = 256  # characters
MAX_SHARED = 256  # sets of protocols that peers share one copy of; most run one of few programs


class PeerInfo:
    """One peer's facts, as it told them."""

    __slots__ = ("_addrs", "_record", "_seq", "_unsigned", "agent", "peer", "protocols")

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.protocols: tuple[str, ...] = ()
        self.agent = ""
        self._addrs: tuple[bytes, ...] = ()
        self._seq = -1  # of the signed record that the addresses came from; -1: unsigned
        self._record: bytes | None = None  # not opened yet, and
        self._unsigned: tuple[bytes, ...] = ()  # ... what stands in for it should it be none

    @property
    def addrs(self) -> tuple[Multiaddr, ...]:
        """Where it can be reached: from its last signed record when it sent any."""
        self._open()
        return tuple(map(Multiaddr, self._addrs))

    @property
    def told(self) -> int:
        """How many addresses it told; nothing is verified for that."""
        return len(self._addrs if self._record is None else self._unsigned)

    @property
    def seq(self) -> int:
        """Of the signed record that `addrs` came from; -1: nobody signed them."""
        self._open()
        return self._seq

    def tell(self, addrs: Iterable[Multiaddr] | None, seq: int, record: bytes | None) -> None:
        """Take addresses: those of `record`, if that is the peer's and later, else `addrs` with `seq`."""
        self._open()
        if record is None:
            if addrs is not None and seq >= self._seq:
                self._addrs, self._seq = _cut(addrs), seq
            return
        self._record = record
        self._unsigned = _cut(addrs or ())
        if len(record) > MAX_RECORD:
            self._open()

    def _open(self) -> None:
        if self._record is None:
            return
        signed = opened(self._record, self.peer)
        self._record = None
        if signed is not None:
            if signed.addrs and signed.seq >= self._seq:
                self._addrs, self._seq = _cut(signed.addrs), signed.seq
        elif self._unsigned and self._seq < 0:
            self._addrs = self._unsigned
        self._unsigned = ()


class PeerBook:
    """Peers by id."""

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._max = max_peers
        self._peers: OrderedDict[PeerId, PeerInfo] = OrderedDict()
        self._shared: OrderedDict[tuple[str, ...], tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, peer: PeerId) -> PeerInfo:
        """What is known; an empty PeerInfo when nothing is."""
        info = self._peers.get(peer)
        if info is None:
            return PeerInfo(peer)
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
        record: bytes | None = None,
    ) -> PeerInfo:
        """Take news of a peer. Addresses replace the old ones unless these were signed later (`seq`).

        `record`, a signed one that nobody has verified, goes before `addrs`.
        """
        info = self._peers.get(peer)
        if info is None:
            info = self._peers[peer] = PeerInfo(peer)
        self._peers.move_to_end(peer)
        info.tell(addrs, seq, record)
        if protocols is not None:
            info.protocols = self.shared(protocols)
        if agent is not None:
            info.agent = agent[:MAX_AGENT]
        while len(self._peers) > self._max:
            self._peers.popitem(last=False)
        return info

    def shared(self, protocols: Iterable[str]) -> tuple[str, ...]:
        """`protocols`, cut at MAX_BYTES, as the one tuple that all peers have who speak these."""
        told = tuple(protocols)
        known = self._shared.get(told)
        if known is not None:
            self._shared.move_to_end(told)
            return known
        room = MAX_BYTES
        kept = []
        for protocol in told:
            room -= len(protocol)
            if room < 0:
                break
            kept.append(protocol)
        made = tuple(kept)
        if len(made) == len(told):
            self._shared[made] = made
            if len(self._shared) > MAX_SHARED:
                self._shared.popitem(last=False)
        return made


def _cut(addrs: Iterable[Multiaddr]) -> tuple[bytes, ...]:
    kept: dict[bytes, None] = {}
    room = MAX_BYTES
    for addr in addrs:
        encoded = bytes(addr)
        if encoded in kept:
            continue
        room -= len(encoded)
        if room < 0 or len(kept) == MAX_ADDRS:
            break
        kept[encoded] = None
    return tuple(kept)
