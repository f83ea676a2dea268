"""A relay's books: who holds a reservation, and whose circuits are open (circuit-v2.md, "Reservation").

Pure bookkeeping: no I/O and no clock of its own. Times are Unix seconds on the relay's clock, because that is
what goes on the wire. A `connection` is only ever compared and hashed here.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from flare.config import RelayLimits
from flare.errors import ResourceLimit
from flare.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class Held:
    """One reservation: it ends at `expires`, or with its connection."""

    peer: PeerId
    ip: str
    connection: Hashable
    expires: float


@dataclass(eq=False, frozen=True, slots=True)
class Circuit:
    """One circuit, counted against both its ends until it is closed."""

    source: PeerId
    target: PeerId
    opened_at: float


class ReservationBook:
    """Reservations and circuits under `limits`; `clock` gives Unix seconds."""

    def __init__(self, limits: RelayLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        # In the order of their expiry, which is the order of arrival: the lifetime is the same for all.
        self._held: OrderedDict[tuple[PeerId, Hashable], Held] = OrderedDict()
        self._by_peer: dict[PeerId, list[Held]] = {}
        self._by_connection: dict[Hashable, Held] = {}
        self._per_ip: Counter[str] = Counter()
        self._circuits: set[Circuit] = set()
        self._per_peer: Counter[PeerId] = Counter()

    # -- reservations

    @property
    def reservations(self) -> int:
        """How many reservations are in the book; those that ran out count until `sweep`."""
        return len(self._held)

    def reserve(self, peer: PeerId, ip: str, connection: Hashable) -> tuple[Held, bool]:
        """Grant or refresh; returns the reservation and whether it is a refresh.

        ResourceLimit names the limit; a refused refresh leaves what was there.
        """
        self.sweep()
        limits = self._limits
        replaced = self._replaced_by(peer, connection)
        same_ip = sum(old.ip == ip for old in replaced)
        if len(self._held) - len(replaced) >= limits.max_reservations:
            raise ResourceLimit(f"max_reservations: {limits.max_reservations} reservations are held")
        if self._per_ip[ip] - same_ip >= limits.max_reservations_per_ip:
            raise ResourceLimit(
                f"max_reservations_per_ip: {limits.max_reservations_per_ip} reservations are held from {ip}"
            )
        for old in replaced:
            self._drop(old)
        held = Held(peer, ip, connection, self._clock() + limits.reservation_ttl)
        self._held[peer, connection] = held
        self._by_peer.setdefault(peer, []).append(held)
        self._by_connection[connection] = held
        self._per_ip[ip] += 1
        return held, bool(replaced)

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
        while self._held:
            held = next(iter(self._held.values()))
            if held.expires > now:
                break
            self._drop(held)
            gone.append(held)
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
        self._per_ip[held.ip] -= 1
        if not self._per_ip[held.ip]:
            del self._per_ip[held.ip]

    # -- circuits

    @property
    def circuits(self) -> int:
        """How many circuits are open."""
        return len(self._circuits)

    def circuits_of(self, peer: PeerId) -> int:
        """How many circuits have `peer` as either end."""
        return self._per_peer[peer]

    def open_circuit(self, source: PeerId, target: PeerId) -> Circuit:
        """Count a circuit against both its ends. ResourceLimit names the limit."""
        limits = self._limits
        if limits.max_circuits and len(self._circuits) >= limits.max_circuits:
            raise ResourceLimit(f"max_circuits: {limits.max_circuits} circuits are open")
        for end in (source, target):
            if self._per_peer[end] >= limits.max_circuits_per_peer:
                raise ResourceLimit(
                    f"max_circuits_per_peer: {limits.max_circuits_per_peer} circuits of {end} are open"
                )
        circuit = Circuit(source, target, self._clock())
        self._circuits.add(circuit)
        self._per_peer[source] += 1
        self._per_peer[target] += 1
        return circuit

    def close_circuit(self, circuit: Circuit) -> None:
        """The circuit is over; closing it twice changes nothing."""
        if circuit not in self._circuits:
            return
        self._circuits.remove(circuit)
        for end in (circuit.source, circuit.target):
            self._per_peer[end] -= 1
            if not self._per_peer[end]:
                del self._per_peer[end]
