"""Counts what a host's events and connections tell, under the labels that go-libp2p gives its metrics.

It costs something per connection, hole punch and circuit. What was there when it began is counted as opened.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from flare.events import (
    CircuitClosed,
    ConnectionOpened,
    Event,
    PeerIdentified,
    PlainDialFailed,
    PunchGaveUp,
    PunchStarted,
    PunchSucceeded,
)
from flare.protocols.identify import PUSH_PROTOCOL
from flare.wire.multiaddr import Multiaddr

if TYPE_CHECKING:
    from flare.host import Host
    from flare.transport.connection import Connection
    from flare.wire.peer_id import PeerId

CONNECTION_SECONDS: Final = tuple(2.0**n for n in range(-4, 21))  # up to 12 days
CIRCUIT_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),  # go-libp2p's end here
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0, 86400.0),
)
IDENTIFY_COUNTS: Final = (*range(1, 21), *range(25, 105, 5))
KEY_TYPES: Final = {"rsa": "RSA", "ed25519": "Ed25519", "secp256k1": "Secp256k1", "ecdsa": "ECDSA"}
SIDES: Final = {"initiator": "initiator", "responder": "receiver"}  # of DCUtR: ours to go-libp2p's words


class Histogram:
    """How many observations are at most each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Of all observations."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Bound and count up to it, as Prometheus wants them; the last is +Inf."""
        total = 0
        out: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            total += count
            out.append(("+Inf" if bound is None else repr(float(bound)), float(total)))
        return out


class Tally:
    """Counts from `start` until `stop`. `circuit_ended` is called with each circuit that is over."""

    def __init__(self, host: Host, circuit_ended: Callable[[CircuitClosed], None]) -> None:
        self._host = host
        self._circuit_ended = circuit_ended
        self._stop: list[Callable[[], None]] = []
        self._punching: dict[PeerId, str] = {}  # side, while it lasts
        self.opened: Counter[tuple[str, ...]] = Counter()  # by dir, transport, security, muxer, early, ip
        self.closed: Counter[tuple[str, ...]] = Counter()
        self.key_types: Counter[tuple[str, str]] = Counter()  # by dir and type
        self.durations: dict[tuple[str, ...], Histogram] = {}
        self.circuit_seconds = Histogram(CIRCUIT_SECONDS)
        self.identified = 0  # by our asking
        self.pushes = 0  # of peers
        self.push_support: Counter[str] = Counter()
        self.protocols_received = Histogram(IDENTIFY_COUNTS)
        self.addrs_received = Histogram(IDENTIFY_COUNTS)
        self.punches: Counter[tuple[str, str, str]] = Counter()  # by side, attempts and outcome
        self.punched_addrs: Counter[tuple[str, str, str, str, str]] = (
            Counter()
        )  # side, attempts, ip, transport
        self.direct_dials: Counter[str] = Counter()  # by outcome

    def start(self) -> None:
        """Count from now on, what is open already first."""
        for connection in self._host.connections:
            self._opened(connection)
        self._stop = [
            self._host.on_event(self._event),
            self._host.on_connection_closed(self._connection_closed),
        ]

    def stop(self) -> None:
        """Count no more."""
        for unsubscribe in self._stop:
            unsubscribe()
        self._stop = []

    @property
    def connections(self) -> int:
        """How many are open."""
        return self.opened.total() - self.closed.total()

    def _event(self, event: Event) -> None:
        match event:
            case ConnectionOpened():
                self._opened(event.connection)
            case CircuitClosed():
                self.circuit_seconds.observe(event.seconds)
                self._circuit_ended(event)
            case PeerIdentified():
                self._identified(event)
            case PunchStarted():
                self._punching[event.peer] = SIDES[event.role]
            case PlainDialFailed():
                self.direct_dials["failed"] += 1
            case PunchSucceeded():
                self._punch_succeeded(event)
            case PunchGaveUp():
                side = self._punching.pop(event.peer, None)
                if side is not None and event.attempts:
                    self._punch_ended(side, event.attempts, kinds_of(event.tried), None)

    def _opened(self, connection: Connection) -> None:
        labels = connection_labels(connection)
        self.opened[labels] += 1
        self.key_types[labels[0], KEY_TYPES[connection.remote_key.kind]] += 1

    def _connection_closed(self, connection: Connection) -> None:
        labels = connection_labels(connection)
        self.closed[labels] += 1
        lasted = self.durations.setdefault(labels, Histogram(CONNECTION_SECONDS))
        lasted.observe(max(0.0, time.time() - connection.opened_at))

    def _identified(self, event: PeerIdentified) -> None:
        if event.pushed:
            self.pushes += 1
        else:
            self.identified += 1
        if event.protocols:  # a push may say nothing of them
            self.push_support["supported" if PUSH_PROTOCOL in event.protocols else "not supported"] += 1
        self.protocols_received.observe(len(event.protocols))
        self.addrs_received.observe(self._host.peers.get(event.peer).told)

    def _punch_succeeded(self, event: PunchSucceeded) -> None:
        side = self._punching.pop(event.peer, None)
        if not event.attempts:
            self.direct_dials["success"] += 1
        elif side is not None:
            direct = [c.remote_addr for c in self._host.connections_to(event.peer) if not c.is_relayed]
            made = kind_of(direct[0]) if direct else None
            tried = kinds_of(event.tried)
            self._punch_ended(side, event.attempts, tried | ({made} if made else set()), made or ("", ""))

    def _punch_ended(
        self, side: str, attempts: int, tried: set[tuple[str, str]], made: tuple[str, str] | None
    ) -> None:
        """`made` is the kind of address that led to a connection; None: none did."""
        number = attempts_label(attempts)
        outcome = "success" if made else "failed" if tried else "no_suitable_address"
        self.punches[side, number, outcome] += 1
        for kind in tried:
            of_kind = "failed" if made is None else "success" if kind == made else "cancelled"
            self.punched_addrs[(side, number, *kind, of_kind)] += 1


def connection_labels(connection: Connection) -> tuple[str, str, str, str, str, str]:
    """dir, transport, security, muxer, early_muxer and ip_version of libp2p_swarm_*."""
    transport = "p2p-circuit" if connection.is_relayed else connection.remote_addr.transport or "unknown"
    return (
        "outbound" if connection.initiator else "inbound",
        transport,
        connection.security,
        connection.muxer,
        "false",
        ip_version(connection.local_addr),
    )


def ip_version(addr: Multiaddr | None) -> str:
    """ip4, ip6 or unknown."""
    ip = addr.ip if addr is not None else None
    return "unknown" if ip is None else f"ip{ip.version}"


def kind_of(addr: Multiaddr) -> tuple[str, str]:
    """ipv and transport of libp2p_holepunch_address_outcomes_total."""
    return ip_version(addr), addr.transport or "other"


def kinds_of(addrs: Iterable[Multiaddr]) -> set[tuple[str, str]]:
    """Each kind once."""
    return {kind_of(addr) for addr in addrs}


def attempts_label(attempts: int) -> str:
    """go-libp2p's num_attempts."""
    return str(attempts) if attempts <= 5 else "> 5"
