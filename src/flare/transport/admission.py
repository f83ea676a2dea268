"""Who may come in: what strangers may cost a host before and after they have said who they are.

Pure bookkeeping, with the clock handed in. What counts as one source is an IPv4 address or an IPv6 /64, which
one host may own. A source has a limit on unfinished handshakes, on connections, and a token bucket of new
ones, so that a flood from one place is turned away at the cost of an accept() and a close(). A flood from
many places fills `max_handshakes`; then the handshake that has waited longest gives way to the newcomer: an
honest peer needs two round trips, and whoever holds a handshake open needs seconds.
"""

from __future__ import annotations

import ipaddress
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from flare.config import HostLimits
from flare.transport.sockets import IpAddress

KEPT_DESCRIPTORS: Final = 64  # that inbound connections leave for all else this process does
SWEEP: Final = 4  # sources that an arrival forgets at most, once their buckets are full again

Evict = Callable[[], object]


@dataclass(slots=True)
class _Source:
    """What one source holds, and its bucket: `tokens` at the time `at`."""

    tokens: float
    at: float
    handshakes: int = 0
    connections: int = 0


class Admission:
    """The inbound side of HostLimits. `descriptors`: how many this process may open (default: its limit)."""

    def __init__(
        self,
        limits: HostLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        descriptors: int | None = None,
    ) -> None:
        if descriptors is None:
            descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limits = limits
        self._clock = clock
        self._exempt = tuple(ipaddress.ip_network(network) for network in limits.exempt)
        self._room = limits.max_connections
        if descriptors != resource.RLIM_INFINITY:
            self._room = max(1, min(self._room, descriptors - KEPT_DESCRIPTORS))
        self._sources: OrderedDict[Hashable, _Source] = OrderedDict()  # the longest untouched first
        self._handshakes: OrderedDict[Hashable, tuple[Hashable, Evict]] = OrderedDict()  # the oldest first
        self.evicted = 0
        self.refused = 0

    @property
    def handshakes(self) -> int:
        """Inbound handshakes that run."""
        return len(self._handshakes)

    @property
    def sources(self) -> int:
        """Sources that something is remembered of."""
        return len(self._sources)

    def source(self, ip: IpAddress) -> Hashable | None:
        """What counts as one with `ip`; None when its network is exempt from the limits of a source."""
        if any(ip in network for network in self._exempt):
            return None
        return ip if ip.version == 4 else int(ip) >> 64

    def refuses(self, source: Hashable | None, connections: int) -> str:
        """Why a newcomer is turned away: the limit's name. "" lets it in, and `begin` must follow.

        `connections` are all that the host has.
        """
        why = self._judge(source, connections)
        self.refused += bool(why)
        return why

    def _judge(self, source: Hashable | None, connections: int) -> str:
        limits = self._limits
        if connections >= self._room:
            return "max_connections" if self._room == limits.max_connections else "the limit of descriptors"
        if source is None:
            return ""
        now = self._clock()
        known = self._touch(source, now)
        if known.handshakes >= limits.max_handshakes_per_ip:
            return "max_handshakes_per_ip"
        if known.connections + known.handshakes >= limits.max_connections_per_ip:
            return "max_connections_per_ip"
        if limits.handshakes_per_second_per_ip:
            if known.tokens < 1:
                return "handshakes_per_second_per_ip"
            known.tokens -= 1
        return ""

    def begin(self, key: Hashable, source: Hashable | None, evict: Evict, connections: int) -> None:
        """A handshake begins; `evict` ends it, should it be the oldest when all places are taken."""
        limits = self._limits
        while self._handshakes and (
            len(self._handshakes) >= limits.max_handshakes
            or len(self._handshakes) + connections >= self._room
        ):
            oldest = next(iter(self._handshakes))
            _, end = self._handshakes[oldest]
            self.end(oldest)
            self.evicted += 1
            end()
        self._handshakes[key] = source, evict
        if source is not None:
            self._sources[source].handshakes += 1

    def end(self, key: Hashable) -> None:
        """A handshake is over, well or not; twice changes nothing."""
        source, _ = self._handshakes.pop(key, (None, None))
        if source is not None:
            self._sources[source].handshakes -= 1

    def opened(self, source: Hashable | None) -> None:
        """A handshake has led to a connection."""
        if source is not None:
            self._touch(source, self._clock()).connections += 1

    def closed(self, source: Hashable | None) -> None:
        """That connection is gone."""
        if source is not None:
            self._sources[source].connections -= 1

    def penalize(self, source: Hashable | None, tokens: float) -> None:
        """A peer there was cut off for what it did: fewer newcomers from there for a while."""
        if source is not None:
            known = self._touch(source, self._clock())
            known.tokens = max(0.0, known.tokens - tokens)

    def _touch(self, source: Hashable, now: float) -> _Source:
        """The source with its bucket filled up to now; forgets some that have nothing to remember."""
        burst = float(self._limits.handshake_burst_per_ip)
        known = self._sources.get(source)
        if known is None:
            for _ in range(SWEEP):
                if not self._forgets(now, burst):
                    break
            known = self._sources[source] = _Source(burst, now)
            return known
        known.tokens = min(burst, known.tokens + (now - known.at) * self._limits.handshakes_per_second_per_ip)
        known.at = now
        self._sources.move_to_end(source)
        return known

    def _forgets(self, now: float, burst: float) -> bool:
        oldest = next(iter(self._sources), None)
        if oldest is None:
            return False
        known = self._sources[oldest]
        if known.handshakes or known.connections:
            self._sources.move_to_end(oldest)
            return True
        filled = known.tokens + (now - known.at) * self._limits.handshakes_per_second_per_ip
        if filled < burst and self._limits.handshakes_per_second_per_ip:
            return False
        del self._sources[oldest]
        return True
