"""How often a server dials back: for one peer, for all, and to foreign addresses, in any minute."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flare.wire.peer_id import PeerId

WINDOW: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class DialBackLimits:
    """Requests a minute, and at once; the defaults are go-libp2p's."""

    per_minute: int = 60
    per_peer: int = 12
    foreign: int = 12  # dials to an IP other than the client's: each costs the client data, and us a dial
    at_once_per_peer: int = 2
    at_once: int = 64


class DialBackLimiter:
    """A sliding window over the requests of the last minute; its memory is bounded by `per_minute`."""

    def __init__(self, limits: DialBackLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._requests: deque[tuple[float, PeerId]] = deque()
        self._by_peer: Counter[PeerId] = Counter()
        self._foreign: deque[float] = deque()
        self._running: Counter[PeerId] = Counter()

    def begin(self, peer: PeerId) -> bool:
        """Whether `peer` may ask now; if so `end` must follow."""
        self._forget()
        limits = self._limits
        if (
            len(self._requests) >= limits.per_minute
            or self._by_peer[peer] >= limits.per_peer
            or self._running[peer] >= limits.at_once_per_peer
            or self._running.total() >= limits.at_once
        ):
            return False
        self._requests.append((self._clock(), peer))
        self._by_peer[peer] += 1
        self._running[peer] += 1
        return True

    def foreign(self) -> bool:
        """Whether the request that runs may lead to an IP that is not its client's."""
        self._forget()
        if len(self._foreign) >= self._limits.foreign:
            return False
        self._foreign.append(self._clock())
        return True

    def end(self, peer: PeerId) -> None:
        """A request of `peer` is over."""
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]

    def _forget(self) -> None:
        old = self._clock() - WINDOW
        while self._requests and self._requests[0][0] <= old:
            _, peer = self._requests.popleft()
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]
        while self._foreign and self._foreign[0] <= old:
            self._foreign.popleft()
