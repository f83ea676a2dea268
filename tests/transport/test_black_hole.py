"""Networks that swallow UDP or IPv6, beside go-libp2p's detector (p2p/net/swarm/black_hole_detector.go)."""

from __future__ import annotations

import pytest

from flare.transport.black_hole import (
    ALLOWED,
    BLOCKED,
    PROBING,
    SUCCESSES,
    TRIES,
    BlackHoles,
    Counter,
)
from flare.wire.keys import Identity
from flare.wire.multiaddr import Multiaddr

QUIC = Multiaddr("/ip4/1.2.3.4/udp/1/quic-v1")
QUIC6 = Multiaddr("/ip6/2600::1/udp/1/quic-v1")
TCP = Multiaddr("/ip4/1.2.3.4/tcp/1")
TCP6 = Multiaddr("/ip6/2600::1/tcp/1")
NEAR = Multiaddr("/ip4/192.168.0.1/udp/1/quic-v1")
RELAYED = Multiaddr(f"{QUIC}/p2p/{Identity.generate().peer_id}/p2p-circuit")


class TestCounter:
    def test_it_judges_only_once_there_are_enough_outcomes(self) -> None:
        counter = Counter()
        for _ in range(TRIES - 1):
            counter.record(False)
        assert counter.state == PROBING
        counter.record(False)
        assert counter.state == BLOCKED

    @pytest.mark.parametrize(("successes", "state"), [(SUCCESSES, ALLOWED), (SUCCESSES - 1, BLOCKED)])
    def test_how_many_successes_it_takes(self, successes: int, state: str) -> None:
        counter = Counter()
        for at in range(TRIES):
            counter.record(at < successes)
        assert counter.state == state

    def test_blocked_it_probes_every_hundredth_dial(self) -> None:
        counter = Counter()
        for _ in range(TRIES):
            counter.record(False)
        asked = [counter.ask() for _ in range(2 * TRIES)]
        assert [at + 1 for at, state in enumerate(asked) if state == PROBING] == [TRIES, 2 * TRIES]
        assert set(asked) == {PROBING, BLOCKED}

    def test_one_success_opens_it_again(self) -> None:
        counter = Counter()
        for _ in range(TRIES):
            counter.record(False)
        counter.record(True)
        assert counter.state == counter.ask() == PROBING

    def test_the_oldest_outcomes_are_forgotten(self) -> None:
        counter = Counter()
        for at in range(TRIES):
            counter.record(at < SUCCESSES)
        counter.record(False)
        assert counter.state == BLOCKED


def blocked() -> Counter:
    counter = Counter()
    for _ in range(TRIES):
        counter.record(False)
    return counter


class TestFilter:
    def test_what_is_private_or_relayed_is_never_left_out(self) -> None:
        holes = BlackHoles(blocked(), blocked())
        assert holes.filter([QUIC, QUIC6, TCP, TCP6, NEAR, RELAYED])[0] == [TCP, NEAR, RELAYED]

    def test_probing_udp_tries_ipv6_too_and_the_other_way_round(self) -> None:
        assert BlackHoles(Counter(), blocked()).filter([QUIC6, TCP6]) == ([QUIC6], [TCP6])
        assert BlackHoles(blocked(), Counter()).filter([QUIC, QUIC6]) == ([QUIC6], [QUIC])

    def test_only_public_addresses_count(self) -> None:
        holes = BlackHoles()
        for _ in range(TRIES):
            for addr in (NEAR, RELAYED, TCP):
                holes.record(addr, False)
        assert (holes.udp.state, holes.ipv6.state) == (PROBING, PROBING)
        for _ in range(TRIES):
            holes.record(QUIC6, False)
        assert (holes.udp.state, holes.ipv6.state) == (BLOCKED, BLOCKED)

    def test_a_dial_without_such_addresses_asks_nothing(self) -> None:
        holes = BlackHoles(blocked())
        for _ in range(TRIES - 1):
            holes.filter([TCP, NEAR])
        for _ in range(TRIES - 1):
            assert holes.filter([QUIC]) == ([], [QUIC])
        assert holes.filter([QUIC]) == ([QUIC], [])
