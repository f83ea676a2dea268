"""The reservation book against a model that keeps everything in one list and counts by looking."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flare.config import RelayLimits
from flare.errors import ResourceLimit
from flare.protocols.relay.book import Circuit, Held, ReservationBook
from flare.wire.keys import Identity

PEERS = [Identity.generate().peer_id for _ in range(5)]
IPS = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
LIMITS = RelayLimits(
    reservation_ttl=100.0,
    max_reservations=5,
    max_reservations_per_ip=3,
    max_reservations_per_peer=2,
    max_circuits=5,
    max_circuits_per_peer=3,
)


@dataclass(eq=False)
class Conn:
    """A connection: one peer, one IP."""

    peer: object
    ip: str


class BookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.book = ReservationBook(LIMITS, lambda: self.now)
        self.model: list[tuple[Conn, float]] = []  # oldest first
        self.conns: list[Conn] = []
        self.circuits: list[Circuit] = []

    @rule(peer=st.sampled_from(PEERS), ip=st.sampled_from(IPS))
    def connect(self, peer: object, ip: str) -> None:
        self.conns.append(Conn(peer, ip))

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(self.conns))
        live = [(c, e) for c, e in self.model if e > self.now]
        mine = [(c, e) for c, e in live if c.peer == conn.peer and c is not conn]
        surplus = mine[: max(0, len(mine) + 1 - LIMITS.max_reservations_per_peer)]
        rest = [(c, e) for c, e in live if c is not conn and (c, e) not in surplus]
        same_ip = sum(c.ip == conn.ip for c, _ in rest)
        allowed = len(rest) < LIMITS.max_reservations and same_ip < LIMITS.max_reservations_per_ip
        if not allowed:
            with pytest.raises(ResourceLimit):
                self.book.reserve(conn.peer, conn.ip, conn)  # type: ignore[arg-type]
            self.model = live
            return
        held, renewed = self.book.reserve(conn.peer, conn.ip, conn)  # type: ignore[arg-type]
        assert isinstance(held, Held)
        assert held.expires == self.now + LIMITS.reservation_ttl
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

    @rule(seconds=st.sampled_from([0.0, 1.0, 50.0, 99.0, 100.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        gone = {id(held.connection) for held in self.book.sweep()}
        assert gone == {id(c) for c, e in self.model if e <= self.now}
        self.model = [(c, e) for c, e in self.model if e > self.now]

    @rule(source=st.sampled_from(PEERS), other=st.sampled_from(PEERS))
    def open_circuit(self, source: object, other: object) -> None:
        if source == other:
            return
        full = len(self.circuits) >= LIMITS.max_circuits or any(
            sum(end in (c.source, c.target) for c in self.circuits) >= LIMITS.max_circuits_per_peer
            for end in (source, other)
        )
        if full:
            with pytest.raises(ResourceLimit):
                self.book.open_circuit(source, other)  # type: ignore[arg-type]
        else:
            self.circuits.append(self.book.open_circuit(source, other))  # type: ignore[arg-type]

    @precondition(lambda self: self.circuits)
    @rule(data=st.data(), twice=st.booleans())
    def close_circuit(self, data: st.DataObject, twice: bool) -> None:
        circuit = data.draw(st.sampled_from(self.circuits))
        self.circuits.remove(circuit)
        for _ in range(1 + twice):
            self.book.close_circuit(circuit)

    @invariant()
    def agrees(self) -> None:
        assert self.book.reservations == len(self.model)
        assert self.book.circuits == len(self.circuits)
        for peer in PEERS:
            held = self.book.find(peer)
            live = [c for c, e in self.model if c.peer == peer and e > self.now]
            assert (held.connection if held else None) is (live[-1] if live else None)
            assert self.book.circuits_of(peer) == sum(peer in (c.source, c.target) for c in self.circuits)


TestReservationBook = BookMachine.TestCase
TestReservationBook.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
