"""Who uses a relay and how much: each peer's bytes over its circuits, those that are over included.

A circuit counts for both its ends. Of peers without an open circuit only those that moved most are kept.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from flare.protocols.relay.book import Circuit
    from flare.protocols.relay.hop import Splice
    from flare.wire.peer_id import PeerId

KEPT: Final = 1024  # peers whose closed circuits are remembered: defends memory; twice that between cuts
MIN_SPAN: Final = 1.0  # seconds that a rate is taken over at least


@dataclass(slots=True)
class Use:
    """One peer: bytes it sent and received, and its open circuits."""

    sent: int = 0
    received: int = 0
    circuits: int = 0

    @property
    def bytes(self) -> int:
        """Both directions."""
        return self.sent + self.received


@dataclass(slots=True)
class Count:
    """Everybody's use at one moment, `at` monotonic seconds."""

    at: float
    peers: dict[PeerId, Use] = field(default_factory=dict)
    circuits: dict[Circuit, int] = field(default_factory=dict)
    open_bytes: int = 0  # of all open circuits together

    def age(self, now: float) -> float:
        return now - self.at


class Talkers:
    """Counts circuits that ended, and everybody's use whenever asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed: dict[PeerId, tuple[int, int]] = {}  # sent, received
        self._earlier: Count | None = None
        self._base: Count | None = None  # what rates are taken against

    def ended(self, source: PeerId, target: PeerId, source_bytes: int, target_bytes: int) -> None:
        """A circuit is over, and carried so much."""
        for peer, sent, received in (
            (source, source_bytes, target_bytes),
            (target, target_bytes, source_bytes),
        ):
            before = self._closed.get(peer, (0, 0))
            self._closed[peer] = (before[0] + sent, before[1] + received)
        if len(self._closed) > 2 * KEPT:
            most = heapq.nlargest(KEPT, self._closed.items(), key=lambda item: sum(item[1]))
            self._closed = dict(most)

    def count(self, running: Mapping[Circuit, Splice]) -> Count:
        """One pass over the open circuits."""
        count = Count(self._clock())
        peers = count.peers
        for peer, (sent, received) in self._closed.items():
            peers[peer] = Use(sent, received)
        for circuit, splice in running.items():
            forth, back = splice.bytes_a_to_b, splice.bytes_b_to_a
            for peer, sent, received in ((circuit.source, forth, back), (circuit.target, back, forth)):
                use = peers.get(peer)
                if use is None:
                    use = peers[peer] = Use()
                use.sent += sent
                use.received += received
                use.circuits += 1
            count.circuits[circuit] = forth + back
            count.open_bytes += forth + back
        return count

    def base(self, stale: float) -> Count | None:
        """What to take rates against: at least MIN_SPAN and at most `stale` seconds old. None: none is."""
        now = self._clock()
        for count in (self._base, self._earlier):
            if count is not None and MIN_SPAN <= count.age(now) <= stale:
                return count
        return None

    def keep(self, count: Count) -> None:
        """`count` may serve as a base later."""
        if self._base is None or self._base.age(count.at) >= MIN_SPAN:
            self._earlier, self._base = self._base, count


def rates(now: Count, before: Count) -> tuple[dict[PeerId, float], dict[Circuit, float]]:
    """Bytes per second of each peer and of each open circuit between the two."""
    seconds = max(now.at - before.at, 1e-9)
    peers = {}
    for peer, use in now.peers.items():
        earlier = before.peers.get(peer)
        peers[peer] = max(0, use.bytes - (earlier.bytes if earlier is not None else 0)) / seconds
    earlier_circuits = before.circuits
    circuits = {
        circuit: (carried - earlier_circuits.get(circuit, 0)) / seconds
        for circuit, carried in now.circuits.items()
    }
    return peers, circuits
