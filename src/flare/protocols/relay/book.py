"""A relay's books: who holds a reservation, whose circuits are open, and how often each may ask
(circuit-v2.md, "Reservation").

Pure bookkeeping: no I/O and no clock of its own. Times are Unix seconds on the relay's clock, because that is
what goes on the wire; rates go by a monotonic one. A `connection` is only ever compared and hashed here, and
so is an `ip`: a name for whatever counts as one address.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass
from typing import TypeVar

from flare.config import RelayLimits
from flare.errors import ResourceLimit
from flare.protocols.relay.rates import Pace
from flare.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class Held:
    """One reservation: it ends at `expires`, or with its connection."""

    peer: PeerId
    ip: str
    connection: Hashable
    expires: float
    exempt: bool = False  # counts against nothing but max_reservations


@dataclass(eq=False, frozen=True, slots=True)
class Circuit:
    """One circuit, counted until it is closed against `counted` and `counted_ips`: both ends, as a rule."""

    source: PeerId
    target: PeerId
    opened_at: float
    counted: tuple[PeerId, ...] = ()
    counted_ips: tuple[str, ...] = ()


class ReservationBook:
    """Reservations and circuits under `limits`; `clock` gives Unix seconds, `monotonic` those of the rates.

    New `limits` count from the next request on: what is held and open stays, with its expiry.
    """

    def __init__(
        self, limits: RelayLimits, clock: Callable[[], float], monotonic: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self._reserves = Pace("reservation", monotonic or clock)
        self._connects = Pace("circuit", monotonic or clock)
        self._limits = limits
        # In the order of their arrival, which is that of their expiry while the lifetime is not changed.
        self._held: OrderedDict[tuple[PeerId, Hashable], Held] = OrderedDict()
        self._by_peer: dict[PeerId, list[Held]] = {}
        self._by_connection: dict[Hashable, Held] = {}
        self._per_ip: Counter[str] = Counter()
        self._circuits: set[Circuit] = set()
        self._per_peer: Counter[PeerId] = Counter()
        self._circuits_per_ip: Counter[str] = Counter()
        self._unordered_until = self._swept_at = -math.inf
        self.limits = limits

    @property
    def limits(self) -> RelayLimits:
        """What is granted from now on."""
        return self._limits

    @limits.setter
    def limits(self, limits: RelayLimits) -> None:
        if self._held and limits.reservation_ttl != self._limits.reservation_ttl:
            self._unordered_until = max(held.expires for held in self._held.values())
        self._limits = limits
        bound = limits.max_buckets
        self._reserves.change(limits.reservation_rate_per_peer, limits.reservation_rate_per_ip, bound)
        self._connects.change(limits.circuit_rate_per_peer, limits.circuit_rate_per_ip, bound)

    @property
    def remembered(self) -> int:
        """How many token buckets are kept."""
        return self._reserves.remembered + self._connects.remembered

    # -- reservations

    @property
    def reservations(self) -> int:
        """How many reservations are in the book; those that ran out count until `sweep`."""
        return len(self._held)

    def reserve(
        self, peer: PeerId, ip: str, connection: Hashable, *, exempt: bool = False
    ) -> tuple[Held, bool]:
        """Grant or refresh; returns the reservation and whether it is a refresh.

        Who is `exempt` counts against max_reservations only. ResourceLimit names the limit; a refused refresh
        leaves what was there.
        """
        self.sweep()
        limits = self._limits
        if not exempt:
            self._reserves.draw(peer, ip)
        replaced = self._replaced_by(peer, connection)
        if len(self._held) - len(replaced) >= limits.max_reservations:
            raise ResourceLimit(f"{limits.max_reservations} reservations are held", limit="max_reservations")
        same_ip = sum(old.ip == ip and not old.exempt for old in replaced)
        if not exempt and self._per_ip[ip] - same_ip >= limits.max_reservations_per_ip:
            raise ResourceLimit(
                f"{limits.max_reservations_per_ip} reservations are held from {ip}",
                limit="max_reservations_per_ip",
            )
        for old in replaced:
            self._drop(old)
        held = Held(peer, ip, connection, self._clock() + limits.reservation_ttl, exempt)
        self._held[peer, connection] = held
        self._by_peer.setdefault(peer, []).append(held)
        self._by_connection[connection] = held
        if not exempt:
            self._per_ip[ip] += 1
        return held, bool(replaced)

    @property
    def held(self) -> tuple[Held, ...]:
        """All reservations in the book."""
        return tuple(self._held.values())

    def find(self, peer: PeerId) -> Held | None:
        """The peer's newest reservation that still holds."""
        now = self._clock()
        for held in reversed(self._by_peer.get(peer, ())):
            if held.expires > now:
                return held
        return None

    def release(self, connection: Hashable) -> Held | None:
        """The connection is gone, and its reservation with it."""
        held = self._by_connection.get(connection)
        if held is not None:
            self._drop(held)
        return held

    def sweep(self) -> list[Held]:
        """Take out the reservations that ran out."""
        now = self._clock()
        gone = []
        if now <= self._unordered_until:
            # another lifetime came while these were held: one look at all of them a second
            if abs(now - self._swept_at) >= 1:
                self._swept_at = now
                gone = [held for held in self._held.values() if held.expires <= now]
        else:
            for held in self._held.values():
                if held.expires > now:
                    break
                gone.append(held)
        for held in gone:
            self._drop(held)
        return gone

    def _replaced_by(self, peer: PeerId, connection: Hashable) -> list[Held]:
        """What a RESERVE of `peer` on `connection` takes the place of."""
        mine = self._by_peer.get(peer, [])
        replaced = [held for held in mine if held.connection == connection]
        others = [held for held in mine if held.connection != connection]
        surplus = len(others) + 1 - max(1, self._limits.max_reservations_per_peer)
        return replaced + others[: max(0, surplus)]

    def _drop(self, held: Held) -> None:
        del self._held[held.peer, held.connection]
        del self._by_connection[held.connection]
        mine = self._by_peer[held.peer]
        mine.remove(held)
        if not mine:
            del self._by_peer[held.peer]
        if not held.exempt:
            _less(self._per_ip, held.ip)

    # -- circuits

    @property
    def circuits(self) -> int:
        """How many circuits are open."""
        return len(self._circuits)

    def circuits_of(self, peer: PeerId) -> int:
        """How many circuits have `peer` as either end."""
        return self._per_peer[peer]

    def ask(self, source: PeerId, ip: str) -> None:
        """One request for a circuit, granted or not. ResourceLimit names the rate that is exceeded."""
        self._connects.draw(source, ip)

    def open_circuit(
        self, source: PeerId, target: PeerId, ips: tuple[str, ...] = (), exempt: Container[PeerId] = ()
    ) -> Circuit:
        """Count a circuit against both its ends, save who is `exempt`, and against `ips`, of the others.

        ResourceLimit names the limit.
        """
        limits = self._limits
        if limits.max_circuits and len(self._circuits) >= limits.max_circuits:
            raise ResourceLimit(f"{limits.max_circuits} circuits are open", limit="max_circuits")
        ends = tuple(end for end in (source, target) if end not in exempt)
        for end in ends:
            if self._per_peer[end] >= limits.max_circuits_per_peer:
                raise ResourceLimit(
                    f"{limits.max_circuits_per_peer} circuits of {end} are open",
                    limit="max_circuits_per_peer",
                )
        ips = tuple(dict.fromkeys(ips))
        for ip in ips:
            if limits.max_circuits_per_ip and self._circuits_per_ip[ip] >= limits.max_circuits_per_ip:
                raise ResourceLimit(
                    f"{limits.max_circuits_per_ip} circuits of {ip} are open", limit="max_circuits_per_ip"
                )
        circuit = Circuit(source, target, self._clock(), ends, ips)
        self._circuits.add(circuit)
        self._per_peer.update(ends)
        self._circuits_per_ip.update(ips)
        return circuit

    def close_circuit(self, circuit: Circuit) -> None:
        """The circuit is over; closing it twice changes nothing."""
        if circuit not in self._circuits:
            return
        self._circuits.remove(circuit)
        for end in circuit.counted:
            _less(self._per_peer, end)
        for ip in circuit.counted_ips:
            _less(self._circuits_per_ip, ip)


Key = TypeVar("Key")


def _less(counter: Counter[Key], key: Key) -> None:
    """One less; nothing is kept of what is zero."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
