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
    from flare.protocols.relay.splicing import Splice
    from flare.wire.peer_id import PeerId

KEPT: Final = 1024  # peers whose closed circuits are remembered: defends memory; twice that between cuts
MIN_SPAN: Final = 1.0  # seconds that a rate is taken over at least


@dataclass(eq=False, slots=True)
class Use:
    """One peer: bytes it sent and received over its circuits, and its open ones, as of the last count."""

    peer: PeerId
    closed_sent: int = 0
    closed_received: int = 0
    sent: int = 0
    received: int = 0
    circuits: int = 0

    @property
    def closed(self) -> int:
        """Bytes of circuits that are over, both directions."""
        return self.closed_sent + self.closed_received


@dataclass(slots=True)
class Count:
    """Everybody's bytes, both directions, at one moment, `at` monotonic seconds."""

    at: float
    peers: dict[Use, int] = field(default_factory=dict)
    circuits: dict[Circuit, int] = field(default_factory=dict)
    open_bytes: int = 0  # of all open circuits together

    def age(self, now: float) -> float:
        return now - self.at


class Talkers:
    """Counts circuits that ended, and everybody's use whenever asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[PeerId, Use] = {}
        self._ends: dict[Circuit, tuple[Use, Use]] = {}  # as of the last count: spares hashing peer ids
        self._earlier: Count | None = None
        self._base: Count | None = None  # what rates are taken against

    def __len__(self) -> int:
        return len(self._uses)

    def ended(self, source: PeerId, target: PeerId, source_bytes: int, target_bytes: int) -> None:
        """A circuit is over, and carried so much."""
        for peer, sent, received in (
            (source, source_bytes, target_bytes),
            (target, target_bytes, source_bytes),
        ):
            use = self._use(peer)
            use.closed_sent += sent
            use.closed_received += received
        if len(self._uses) > 2 * (KEPT + len(self._ends)):
            self._forget()

    def _use(self, peer: PeerId) -> Use:
        use = self._uses.get(peer)
        if use is None:
            use = self._uses[peer] = Use(peer)
        return use

    def _forget(self) -> None:
        open_ones = {use for ends in self._ends.values() for use in ends}
        others = (use for use in self._uses.values() if use not in open_ones)
        most = heapq.nlargest(KEPT, others, key=lambda use: use.closed)
        self._uses = {use.peer: use for use in (*open_ones, *most)}

    def count(self, running: Mapping[Circuit, Splice]) -> Count:
        """One pass over the open circuits; what `Use` says is of now."""
        for use in self._uses.values():
            use.sent, use.received, use.circuits = use.closed_sent, use.closed_received, 0
        count = Count(self._clock())
        known, self._ends = self._ends, {}
        for circuit, splice in running.items():
            ends = known.get(circuit)
            if ends is None:
                ends = self._use(circuit.source), self._use(circuit.target)
            self._ends[circuit] = ends
            source, target = ends
            forth, back = splice.bytes_a_to_b, splice.bytes_b_to_a
            source.sent += forth
            source.received += back
            source.circuits += 1
            target.sent += back
            target.received += forth
            target.circuits += 1
            count.circuits[circuit] = forth + back
            count.open_bytes += forth + back
        count.peers = {use: use.sent + use.received for use in self._uses.values()}
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


def rates(now: Count, before: Count) -> tuple[dict[Use, float], dict[Circuit, float]]:
    """Bytes per second of each peer and of each open circuit between the two."""
    seconds = max(now.at - before.at, 1e-9)
    peers, circuits = before.peers, before.circuits
    return (
        {use: max(0, total - peers.get(use, 0)) / seconds for use, total in now.peers.items()},
        {circuit: (total - circuits.get(circuit, 0)) / seconds for circuit, total in now.circuits.items()},
    )
