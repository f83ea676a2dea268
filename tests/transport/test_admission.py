"""Who may come in: every limit at the limit and one past it, and the books under any order of events."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flare.config import HostLimits
from flare.transport.admission import KEPT_DESCRIPTORS, Admission

HERE = ipaddress.ip_address("198.51.100.7")
THERE = ipaddress.ip_address("203.0.113.9")


class Door:
    """An Admission with a clock of its own."""

    def __init__(self, descriptors: int = 1 << 20, **limits: Any) -> None:
        self.now = 0.0
        self.admission = Admission(HostLimits(**limits), clock=lambda: self.now, descriptors=descriptors)
        self.keys = 0
        self.gone: list[int] = []

    def knock(self, ip: Any = HERE, connections: int = 0) -> int | str:
        """A newcomer's key, or why it was turned away."""
        source = self.admission.source(ip)
        if why := self.admission.refuses(source, connections):
            return why
        self.keys += 1
        key = self.keys
        self.admission.begin(key, source, lambda: self.gone.append(key), connections)
        return key


def test_handshakes_of_one_source() -> None:
    door = Door(max_handshakes_per_ip=2)
    first = door.knock()
    assert door.knock() == 2
    assert door.knock() == "max_handshakes_per_ip"
    assert door.knock(THERE) == 3, "of others there may be more"
    door.admission.end(first)
    assert door.knock() == 4


def test_handshakes_in_all_make_the_oldest_give_way() -> None:
    door = Door(max_handshakes=2)
    door.knock()
    door.knock(THERE)
    assert door.gone == []
    assert door.knock() == 3
    assert door.gone == [1]
    assert door.admission.handshakes == 2


def test_connections_of_one_source() -> None:
    door = Door(max_connections_per_ip=2)
    source = door.admission.source(HERE)
    door.admission.end(door.knock())
    door.admission.opened(source)
    door.knock()
    assert door.knock() == "max_connections_per_ip", "a handshake that runs may become one"
    door.admission.closed(source)
    assert door.knock() == 3


def test_connections_in_all() -> None:
    door = Door(max_connections=2)
    assert door.knock(connections=1) == 1
    assert door.knock(connections=2) == "max_connections"


def test_descriptors() -> None:
    door = Door(descriptors=KEPT_DESCRIPTORS + 2)
    assert door.knock(connections=1) == 1
    assert door.knock(connections=2) == "the limit of descriptors"
    assert door.knock(connections=1) == 2
    assert door.gone == [1], "an unfinished handshake holds a descriptor too"


def test_a_bucket_of_newcomers() -> None:
    door = Door(handshake_burst_per_ip=3, handshakes_per_second_per_ip=2.0)
    for _ in range(3):
        door.admission.end(door.knock())
    assert door.knock() == "handshakes_per_second_per_ip"
    assert door.knock(THERE) == 4
    door.now += 0.5
    assert door.knock() == 5
    assert door.knock() == "handshakes_per_second_per_ip"
    door.now += 1000
    taken = [door.knock() for _ in range(4)]
    assert taken[:3] == [6, 7, 8], "it never holds more than the burst"
    assert taken[3] == "handshakes_per_second_per_ip"


def test_no_rate() -> None:
    door = Door(handshakes_per_second_per_ip=0.0, handshake_burst_per_ip=1)
    for _ in range(50):
        door.admission.end(door.knock())
    assert door.admission.sources <= 1


def test_a_penalty_is_paid_by_the_next_newcomers() -> None:
    door = Door(handshake_burst_per_ip=10, handshakes_per_second_per_ip=1.0)
    source = door.admission.source(HERE)
    door.admission.end(door.knock())
    door.admission.penalize(source, 100)
    assert door.knock() == "handshakes_per_second_per_ip"
    door.now += 1
    assert door.knock() == 2


def test_what_is_exempt() -> None:
    door = Door(max_handshakes_per_ip=1, exempt=("198.51.100.0/24",))
    assert [door.knock() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert door.knock(THERE) == 6
    assert door.knock(THERE) == "max_handshakes_per_ip"
    door.admission.penalize(None, 5)


def test_one_ipv6_network_counts_as_one() -> None:
    door = Door()
    first, second, other = (
        door.admission.source(ipaddress.ip_address(text))
        for text in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1")
    )
    assert first == second != other


def test_sources_are_forgotten() -> None:
    door = Door(handshake_burst_per_ip=10, handshakes_per_second_per_ip=10.0)
    held = door.knock(THERE)
    for number in range(2000):
        door.now += 0.01
        door.admission.end(door.knock(ipaddress.ip_address(number + (10 << 24))))
    assert door.admission.sources < 200, "a bucket that is full again is nothing to remember"
    assert door.admission.source(THERE) in door.admission._sources
    door.admission.end(held)


class Books(RuleBasedStateMachine):
    """Admission against a model that only counts."""

    @initialize(
        total=st.integers(1, 4),
        per_ip=st.integers(1, 3),
        open_per_ip=st.integers(1, 4),
        burst=st.integers(1, 6),
    )
    def begin(self, total: int, per_ip: int, open_per_ip: int, burst: int) -> None:
        self.door = Door(
            max_handshakes=total,
            max_handshakes_per_ip=per_ip,
            max_connections_per_ip=open_per_ip,
            handshake_burst_per_ip=burst,
            handshakes_per_second_per_ip=1.0,
        )
        self.limits = self.door.admission._limits
        self.running: dict[int, Any] = {}
        self.open: list[Any] = []

    @rule(ip=st.sampled_from([HERE, THERE, ipaddress.ip_address("2001:db8::1")]), later=st.floats(0, 3))
    def knock(self, ip: Any, later: float) -> None:
        self.door.now += later
        answer = self.door.knock(ip, len(self.open))
        for key in self.door.gone:
            self.running.pop(key, None)
        if isinstance(answer, int):
            self.running[answer] = self.door.admission.source(ip)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), well=st.booleans())
    def finish(self, data: Any, well: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        source = self.running.pop(key)
        self.door.admission.end(key)
        if well:
            self.door.admission.opened(source)
            self.open.append(source)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        source = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.door.admission.closed(source)

    @rule(again=st.integers(1, 30))
    def end_what_is_over(self, again: int) -> None:
        if again not in self.running:
            self.door.admission.end(again)

    @invariant()
    def counts_hold(self) -> None:
        if not hasattr(self, "door"):
            return
        admission, limits = self.door.admission, self.limits
        running, opened = Counter(self.running.values()), Counter(self.open)
        assert admission.handshakes == len(self.running) <= limits.max_handshakes
        for source, known in admission._sources.items():
            assert known.handshakes == running[source] <= limits.max_handshakes_per_ip
            assert known.connections == opened[source]
            assert running[source] + opened[source] <= limits.max_connections_per_ip
            assert 0 <= known.tokens <= limits.handshake_burst_per_ip


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("network", ["not a network", "10.0.0.1/8"])
def test_an_exempt_network_that_is_none(network: str) -> None:
    with pytest.raises(ValueError, match=r"network|host bits"):
        Admission(HostLimits(exempt=(network,)))
