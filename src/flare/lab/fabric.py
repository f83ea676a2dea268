"""The wires between public addresses: delay, jitter, loss, reordering, rate and hops, with no I/O.

Packets and the time go in; what has arrived comes out. Same seed and same packets, same outcome.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from flare.lab.packet import Packet


@dataclass(frozen=True, slots=True)
class Path:
    """One direction between two public addresses. Times are seconds, shares 0 to 1."""

    delay: float = 0.0
    jitter: float = 0.0  # up to this much more, evenly spread; packets keep their order
    loss: float = 0.0
    reorder: float = 0.0  # this share of the packets skips the queue and arrives after `delay` / 2
    rate: float = 0.0  # bytes per second; 0: no limit
    queue: float = 0.5  # seconds of `rate` that may wait, what comes then is dropped
    hops: int = 2  # routers between the two: the TTL shrinks by this


class Fabric:
    """All paths; `default` serves a pair without one of its own."""

    def __init__(self, default: Path | None = None, seed: int = 0) -> None:
        self.default = default or Path()
        self.lost: Counter[str] = Counter()  # packets by the reason they did not arrive
        self.carried: Counter[tuple[int, int]] = (
            Counter()
        )  # packets sent and not lost, by source and destination
        self._paths: dict[tuple[int, int], Path] = {}
        self._arrivals: list[tuple[float, int, Packet]] = []
        self._sequence = 0
        self._rng = random.Random(seed)
        self._last: dict[tuple[int, int], float] = {}  # latest arrival so far
        self._busy_until: dict[tuple[int, int], float] = {}

    def set_path(self, src: int, dst: int, path: Path) -> None:
        """Use `path` from `src` to `dst`; the other direction keeps its own."""
        self._paths[src, dst] = path

    def path(self, src: int, dst: int) -> Path:
        return self._paths.get((src, dst), self.default)

    def send(self, packet: Packet, now: float) -> bool:
        """Put a packet on its way at `now`; False when it is lost here."""
        pair = (packet.src, packet.dst)
        path = self.path(*pair)
        for _ in range(path.hops):
            if not packet.decrement_ttl():
                self.lost["ttl"] += 1
                return False
        if path.loss and self._rng.random() < path.loss:
            self.lost["loss"] += 1
            return False
        start = now
        if path.rate:
            start = max(now, self._busy_until.get(pair, now))
            if start - now > path.queue:
                self.lost["queue"] += 1
                return False
            start += len(packet.data) / path.rate
            self._busy_until[pair] = start
        if path.reorder and self._rng.random() < path.reorder:
            arrival = start + path.delay / 2
        else:
            arrival = start + path.delay + (self._rng.random() * path.jitter if path.jitter else 0.0)
            arrival = self._last[pair] = max(arrival, self._last.get(pair, 0.0))
        self.carried[pair] += 1
        self._sequence += 1
        heapq.heappush(self._arrivals, (arrival, self._sequence, packet))
        return True

    @property
    def next_arrival(self) -> float | None:
        """When the next packet arrives, None when nothing is under way."""
        return self._arrivals[0][0] if self._arrivals else None

    def arrived(self, now: float) -> Iterator[Packet]:
        """Packets that have arrived by `now`, in order; their `dst` says where."""
        while self._arrivals and self._arrivals[0][0] <= now:
            yield heapq.heappop(self._arrivals)[2]
