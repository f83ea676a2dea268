"""Looks at a host, and at the relay on it: health, and the status at one moment."""

from __future__ import annotations

import asyncio
import heapq
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Final

from flare.auto_relay import AutoRelay
from flare.config import StatusLimits
from flare.errors import UsageError
from flare.events import CircuitClosed
from flare.host import Host
from flare.relay_server import RelayServer
from flare.version import __version__
from flare.watch.pulse import Pulse
from flare.watch.snapshot import (
    Health,
    OpenCircuit,
    Process,
    Refusal,
    Relay,
    Snapshot,
    Talker,
    Wire,
)
from flare.watch.talkers import Count, Talkers, rates
from flare.watch.tally import Tally
from flare.watch.words import printable

STALE: Final = 10.0  # seconds after which a count of circuits no longer says what their rates are now
WINDOW: Final = 0.25  # seconds between two counts when there was none to compare with
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Watcher:
    """Watches from `start` to `stop`."""

    def __init__(
        self, watched: RelayServer | Host, limits: StatusLimits, auto_relay: AutoRelay | None = None
    ) -> None:
        self.auto_relay = auto_relay
        self.host = watched if isinstance(watched, Host) else watched.host
        self._relay = None if isinstance(watched, Host) else watched
        self._limits = limits
        self._clock: Callable[[], float] = time.monotonic
        self._started = self._clock()
        self._relayed = 0
        self.talkers = Talkers(self._clock)
        self.tally = Tally(self.host, self._circuit_ended)
        self.pulse = Pulse(self._wire_bytes, self._clock)

    def start(self) -> None:
        """Count and sample from now on."""
        self._started = self._clock()
        self.tally.start()
        self.pulse.start()

    def stop(self) -> None:
        """Leave the host alone."""
        self.pulse.stop()
        self.tally.stop()

    def _circuit_ended(self, event: CircuitClosed) -> None:
        self.talkers.ended(event.source, event.target, event.source_bytes, event.target_bytes)

    def _wire_bytes(self) -> tuple[int, int]:
        received = sent = 0
        for engine in self.host.engines:
            counters = engine.counters
            received += counters["bytes_in"]
            sent += counters["bytes_out"]
        return received, sent

    @property
    def relay(self) -> RelayServer | None:
        """The relay that is watched, while it serves."""
        if self._relay is not None:
            try:
                _ = self._relay.circuits
            except UsageError:
                return None
        return self._relay

    def health(self) -> Health:
        """Whether new peers should come here."""
        reasons = []
        relay = self.relay
        if self._relay is not None and relay is None:
            reasons.append("the relay has stopped")
        if relay is not None and relay.draining:
            reasons.append("the relay is draining: it takes no new reservations")
        lag = self.pulse.lag
        if lag > self._limits.max_lag:
            reasons.append(
                f"the event loop was {lag:.2f} s late within the last ten seconds "
                f"(StatusLimits.max_lag is {self._limits.max_lag:g} s)"
            )
        return Health(not reasons, tuple(reasons))

    def relayed(self, relay: RelayServer) -> int:
        """Bytes that its circuits have carried, the open ones included."""
        running = sum(splice.bytes_a_to_b + splice.bytes_b_to_a for splice in relay.running.values())
        # a circuit that is cancelled ends without its count, and a counter never goes back
        self._relayed = max(self._relayed, relay.counters.bytes_relayed + running)
        return self._relayed

    async def snapshot(self) -> Snapshot:
        """The status now. When nobody looked for STALE seconds it takes WINDOW to see rates."""
        relay = self.relay
        if relay is not None and self.talkers.base(STALE) is None:
            first = self.talkers.count(relay.running)
            await asyncio.sleep(WINDOW)
            relay = self.relay
        else:
            first = None
        received, sent = self._wire_bytes()
        rate = self.pulse.rate()
        host = self.host
        return Snapshot(
            time=time.time(),
            version=__version__,
            agent=host.agent,
            peer=str(host.peer_id),
            addrs=tuple(str(addr) for addr in host.full_addrs),
            uptime=self._clock() - self._started,
            health=self.health(),
            connections=self.tally.connections,
            wire=Wire(
                received,
                sent,
                rate.received,
                rate.sent,
                tuple(float(round(second.sent)) for second in self.pulse.rates()),
            ),
            process=Process(time.process_time(), rate.cpu, memory(), descriptors(), self.pulse.lag),
            relay=None if relay is None else self._books(relay, first),
        )

    def _books(self, relay: RelayServer, first: Count | None) -> Relay:
        now = self.talkers.count(relay.running)
        before = self.talkers.base(STALE) or first or now
        self.talkers.keep(first or now)
        self.talkers.keep(now)
        by_peer, by_circuit = rates(now, before)
        rows = self._limits.rows
        unix = time.time()
        # among those who move nothing now: who has circuits, then who moved most; `at` keeps Uses uncompared
        ranked = (
            (by_peer[use], use.circuits > 0, now.peers[use], at, use) for at, use in enumerate(now.peers)
        )
        most = [use for *_, use in heapq.nlargest(rows, ranked)]
        oldest = heapq.nsmallest(rows, now.circuits, key=lambda circuit: circuit.opened_at)
        counters, limits = relay.counters, relay.limits
        relayed = counters.bytes_relayed + now.open_bytes
        self._relayed = max(self._relayed, relayed)
        return Relay(
            draining=relay.draining,
            reservations=relay.reservations,
            max_reservations=limits.max_reservations,
            reservations_opened=counters.reservations_opened,
            reservations_renewed=counters.reservations_renewed,
            circuits=relay.circuits,
            max_circuits=limits.max_circuits or None,
            circuits_opened=counters.circuits_opened,
            bytes=self._relayed,
            rate=sum(by_peer.values()) / 2,  # each byte is counted at both ends
            refusals=refusals(relay),
            talkers=tuple(
                Talker(
                    str(use.peer),
                    printable(self.host.peers.get(use.peer).agent),
                    use.circuits,
                    use.sent,
                    use.received,
                    by_peer[use],
                )
                for use in most
            ),
            longest=tuple(
                OpenCircuit(
                    str(circuit.source),
                    str(circuit.target),
                    max(0.0, unix - circuit.opened_at),
                    now.circuits[circuit],
                    by_circuit[circuit],
                )
                for circuit in oldest
            ),
        )


def refusals(relay: RelayServer) -> tuple[Refusal, ...]:
    """Why requests were refused, the most frequent first: the limit's name, or RelayCounters' word for it."""
    counters = relay.counters
    found = [
        Refusal(request, reason, count)
        for request, reasons in (
            ("reserve", counters.reserve_refused),
            ("connect", counters.connect_refused),
        )
        for reason, count in reasons.items()
    ]
    if counters.malformed:
        found.append(Refusal("any", "malformed", counters.malformed))
    return tuple(sorted(found, key=lambda refusal: -refusal.count))


def memory() -> int:
    """Bytes of this process that are in memory; where /proc is missing, the most there ever were."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def descriptors() -> int | None:
    """How many are open; None where that cannot be told cheaply."""
    try:
        return os.stat("/proc/self/fd").st_size or None  # Linux 6.2 and newer: their number
    except OSError:
        return None
