"""The reservation book against a model that keeps everything in lists and counts by looking."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flare.config import Rate, RelayLimits
from flare.errors import ResourceLimit
from flare.protocols.relay.book import Circuit, Held, ReservationBook
from flare.wire.keys import Identity
from flare.wire.peer_id import PeerId

PEERS = [Identity.generate().peer_id for _ in range(5)]
IPS = ["192.0.2.1", "192.0.2.2", "2001:db8::/64"]
LIMITS = RelayLimits(
    reservation_ttl=100.0,
    max_reservations=5,
    max_reservations_per_ip=3,
    max_reservations_per_peer=2,
    reservation_rate_per_peer=Rate(1 / 16, 4),
    reservation_rate_per_ip=Rate(1 / 16, 8),
    max_circuits=5,
    max_circuits_per_peer=3,
    max_circuits_per_ip=4,
    circuit_rate_per_peer=Rate(1 / 16, 3),
    circuit_rate_per_ip=Rate(1 / 16, 4),
)


@dataclass(eq=False)
class Conn:
    """A connection: one peer, one IP, and whether its peer counts."""

    peer: PeerId
    ip: str
    exempt: bool


@dataclass
class Tokens:
    """A bucket for each name, filled by counting."""

    rate: Rate
    left: dict[object, float] = field(default_factory=dict)

    def pass_time(self, seconds: float) -> None:
        for name in self.left:
            self.left[name] = min(self.rate.burst, self.left[name] + seconds * self.rate.per_second)

    def has(self, name: object) -> bool:
        return self.left.setdefault(name, self.rate.burst) >= 1

    def take(self, name: object) -> None:
        self.left[name] -= 1


class Paces:
    """Two Tokens that are drawn from together, or not at all."""

    def __init__(self, per_peer: Rate, per_ip: Rate) -> None:
        self.peers, self.ips = Tokens(per_peer), Tokens(per_ip)

    def draw(self, peer: object, ip: object) -> bool:
        if not (self.peers.has(peer) and self.ips.has(ip)):
            return False
        self.peers.take(peer)
        self.ips.take(ip)
        return True

    def pass_time(self, seconds: float) -> None:
        self.peers.pass_time(seconds)
        self.ips.pass_time(seconds)


class BookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.limits = LIMITS
        self.book = ReservationBook(LIMITS, lambda: self.now)
        self.model: list[tuple[Conn, float]] = []  # oldest first
        self.conns: list[Conn] = []
        self.circuits: list[Circuit] = []
        self.counted: list[tuple[tuple[PeerId, ...], tuple[str, ...]]] = []
        self.reserves = Paces(LIMITS.reservation_rate_per_peer, LIMITS.reservation_rate_per_ip)
        self.connects = Paces(LIMITS.circuit_rate_per_peer, LIMITS.circuit_rate_per_ip)

    @rule(peer=st.sampled_from(PEERS), ip=st.sampled_from(IPS), exempt=st.integers(0, 3))
    def connect(self, peer: PeerId, ip: str, exempt: int) -> None:
        self.conns.append(Conn(peer, ip, exempt == 0))

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(self.conns))
        live = [(c, e) for c, e in self.model if e > self.now]
        mine = [(c, e) for c, e in live if c.peer == conn.peer and c is not conn]
        surplus = mine[: max(0, len(mine) + 1 - self.limits.max_reservations_per_peer)]
        rest = [(c, e) for c, e in live if c is not conn and (c, e) not in surplus]
        same_ip = sum(c.ip == conn.ip and not c.exempt for c, _ in rest)
        refused = ""
        if not conn.exempt and not self.reserves.draw(conn.peer, conn.ip):
            refused = "reservation_rate_per_"
        elif len(rest) >= self.limits.max_reservations:
            refused = "max_reservations"
        elif not conn.exempt and same_ip >= self.limits.max_reservations_per_ip:
            refused = "max_reservations_per_ip"
        if refused:
            with pytest.raises(ResourceLimit, match=f"^{refused}"):
                self.book.reserve(conn.peer, conn.ip, conn, exempt=conn.exempt)
            self.model = live
            return
        held, renewed = self.book.reserve(conn.peer, conn.ip, conn, exempt=conn.exempt)
        assert isinstance(held, Held)
        assert held.expires == self.now + self.limits.reservation_ttl
        assert renewed == (len(rest) != len(live))
        self.model = [*rest, (conn, held.expires)]

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(self.conns))
        self.conns.remove(conn)
        held = self.book.release(conn)
        assert (held is not None) == any(c is conn for c, _ in self.model)
        self.model = [(c, e) for c, e in self.model if c is not conn]

    @rule(seconds=st.sampled_from([0.0, 1.0, 15.0, 16.0, 50.0, 99.0, 100.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.reserves.pass_time(seconds)
        self.connects.pass_time(seconds)

    @rule()
    def sweep(self) -> None:
        gone = {id(held.connection) for held in self.book.sweep()}
        assert gone == {id(c) for c, e in self.model if e <= self.now}
        self.model = [(c, e) for c, e in self.model if e > self.now]

    @rule(reservations=st.integers(0, 6), circuits=st.integers(0, 5), per_ip=st.integers(0, 4))
    def other_limits(self, reservations: int, circuits: int, per_ip: int) -> None:
        self.limits = replace(
            LIMITS,
            max_reservations=reservations,
            max_circuits=circuits,
            max_circuits_per_ip=per_ip,
            max_reservations_per_ip=per_ip,
        )
        self.book.limits = self.limits

    @rule(peer=st.sampled_from(PEERS), ip=st.sampled_from(IPS))
    def ask(self, peer: PeerId, ip: str) -> None:
        if self.connects.draw(peer, ip):
            self.book.ask(peer, ip)
        else:
            with pytest.raises(ResourceLimit, match=r"^circuit_rate_per_(peer|ip): "):
                self.book.ask(peer, ip)

    @rule(
        source=st.sampled_from(PEERS),
        called=st.sampled_from(PEERS),
        ips=st.tuples(st.sampled_from(IPS), st.sampled_from(IPS)),
        exempt=st.sets(st.sampled_from(PEERS), max_size=2),
    )
    def open_circuit(self, source: PeerId, called: PeerId, ips: tuple[str, str], exempt: set[PeerId]) -> None:
        if source == called:
            return
        pairs = [(p, ip) for p, ip in zip((source, called), ips, strict=True) if p not in exempt]
        limits = self.limits
        full = bool(limits.max_circuits and len(self.circuits) >= limits.max_circuits)
        for peer, ip in pairs:
            full = full or sum(peer in peers for peers, _ in self.counted) >= limits.max_circuits_per_peer
            of_ip = sum(ip in theirs for _, theirs in self.counted)
            full = full or bool(limits.max_circuits_per_ip and of_ip >= limits.max_circuits_per_ip)
        counted = tuple(ip for _, ip in pairs)
        if full:
            with pytest.raises(ResourceLimit, match=r"^max_circuits"):
                self.book.open_circuit(source, called, counted, exempt)
        else:
            self.circuits.append(self.book.open_circuit(source, called, counted, exempt))
            self.counted.append((tuple(p for p, _ in pairs), counted))

    @precondition(lambda self: self.circuits)
    @rule(data=st.data(), twice=st.booleans())
    def close_circuit(self, data: st.DataObject, twice: bool) -> None:
        which = data.draw(st.integers(0, len(self.circuits) - 1))
        circuit = self.circuits.pop(which)
        del self.counted[which]
        for _ in range(1 + twice):
            self.book.close_circuit(circuit)

    @invariant()
    def agrees(self) -> None:
        assert self.book.reservations == len(self.model)
        assert self.book.circuits == len(self.circuits)
        assert self.book.remembered <= 2 * (len(PEERS) + len(IPS))
        for peer in PEERS:
            held = self.book.find(peer)
            live = [c for c, e in self.model if c.peer == peer and e > self.now]
            assert (held.connection if held else None) is (live[-1] if live else None)
            assert self.book.circuits_of(peer) == sum(peer in peers for peers, _ in self.counted)


TestReservationBook = BookMachine.TestCase
TestReservationBook.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
