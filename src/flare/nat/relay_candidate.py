"""A relay as a candidate: what is known of it, and what a place on it would cost. No I/O, no clock."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flare.nat.observed import group

if TYPE_CHECKING:
    from flare.wire.messages import Limit
    from flare.wire.multiaddr import Multiaddr
    from flare.wire.peer_id import PeerId

# What is added to a latency, in seconds.
UNMEASURED: Final = 0.25  # instead of a latency
STRANGER: Final = 0.5  # told by somebody whose relays are not ours
LIMITED: Final = 0.05  # circuits are limited, as strangers' are
TIGHT: Final = 0.1  # ... to less than what relays usually give
FAILURE: Final = 0.25  # each failure and loss, fading
SAME_NETWORK: Final = 0.1  # as a relay that is held
SAME_IP: Final = 1.0  # it dies with that one

FAILURES_COUNTED: Final = 8.0
FADING: Final = 600.0  # seconds in which a failure counts half
USUAL_SECONDS: Final = 120  # what relays give a circuit unless told otherwise,
USUAL_BYTES: Final = 128 * 1024  # ... in each direction
INFINITE: Final = float("inf")


class State(enum.Enum):
    """The table at the top of relay_choice."""

    KNOWN = "known"
    PROBING = "probing"
    TRYING = "trying"
    HELD = "held"
    LEAVING = "leaving"
    LOST = "lost"


class Trouble(enum.Enum):
    """Why a relay has no place for us."""

    UNREACHABLE = "unreachable"  # not dialled, not answered, or the connection is gone
    REFUSED = "refused"  # full, or draining
    USELESS = "useless"  # no relay, or none for us


class Leaving(enum.Enum):
    """Why a relay is given up that still holds a place."""

    REFUSES = "it refuses to refresh the reservation"
    DRAINS = "it relays no longer"
    SLOW = "it has become slow"


@dataclass(eq=False, slots=True)
class Candidate:
    """One relay, and what is known of it."""

    peer: PeerId
    addrs: tuple[Multiaddr, ...]
    source: str
    trusted: bool
    offered_at: float
    state: State = State.KNOWN
    since: float = 0.0  # in this state
    rtt: float | None = None  # seconds, smoothed
    latest: float = 0.0  # the last measurement
    measured_at: float = 0.0
    limit: Limit | None = None
    failures: int = 0  # in a row,
    trouble: Trouble | None = None  # ... and what the last one was
    rest_until: float = 0.0
    leaving: Leaving | None = None
    slow_since: float | None = None
    moved: bool = False  # its addresses are others than those it is asked at
    hopeless: bool = False  # it is not worth asking on
    best_rtt: float = INFINITE  # while it is held
    weight: float = 0.0  # of its failures, at the time
    weighed_at: float = 0.0

    @property
    def ips(self) -> frozenset[str]:
        """Where it is, as far as its addresses say."""
        return frozenset(str(addr.ip) for addr in self.addrs if addr.ip is not None)

    def measure(self, rtt: float, now: float, *, smoothing: float, fresh: float) -> None:
        """One more round trip, in seconds; what was measured `fresh` seconds ago or earlier says nothing."""
        if self.rtt is None or now - self.measured_at > fresh:
            self.rtt = rtt
        else:
            self.rtt += smoothing * (rtt - self.rtt)
        self.latest, self.measured_at = rtt, now
        if self.state in (State.HELD, State.LEAVING):
            self.best_rtt = min(self.best_rtt, self.rtt)

    def count_failure(self, now: float) -> None:
        """One more failure or loss."""
        self.weight = min(self.faded(now) + 1, FAILURES_COUNTED)
        self.weighed_at = now
        self.failures += 1

    def faded(self, now: float) -> float:
        """Its failures, of which those of long ago count little."""
        return self.weight * float(0.5 ** ((now - self.weighed_at) / FADING)) if self.weight else 0.0


def score(candidate: Candidate, now: float, beside: Iterable[Candidate] = ()) -> float:
    """What it costs to hold a place on this one, with those `beside` it, in seconds: the least is best."""
    cost = UNMEASURED if candidate.rtt is None else candidate.rtt
    cost += STRANGER * (not candidate.trusted)
    if candidate.limit is not None:
        short = 0 < (candidate.limit.duration or 0) < USUAL_SECONDS
        little = 0 < (candidate.limit.data or 0) < USUAL_BYTES
        cost += LIMITED + TIGHT * (short or little)
    cost += FAILURE * candidate.faded(now)
    ips = candidate.ips
    networks = {group(ip) for ip in ips}
    others = frozenset(ip for other in beside if other is not candidate for ip in other.ips)
    if ips & others:
        cost += SAME_IP
    elif networks & {group(ip) for ip in others}:
        cost += SAME_NETWORK
    return cost
