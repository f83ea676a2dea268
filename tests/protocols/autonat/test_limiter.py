"""How often a server dials back: each limit at it and one past it, and what a minute gives back."""

from __future__ import annotations

from flare.protocols.autonat.limiter import DialBackLimiter, DialBackLimits
from flare.wire.keys import Identity

PEERS = [Identity.generate().peer_id for _ in range(5)]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_per_peer() -> None:
    clock = Clock()
    limiter = DialBackLimiter(DialBackLimits(per_peer=3), clock=clock)
    for _ in range(3):
        assert limiter.begin(PEERS[0])
        limiter.end(PEERS[0])
    assert not limiter.begin(PEERS[0])
    assert limiter.begin(PEERS[1])
    clock.now += 59.9
    assert not limiter.begin(PEERS[0])
    clock.now += 0.1
    assert limiter.begin(PEERS[0])


def test_for_all() -> None:
    limiter = DialBackLimiter(DialBackLimits(per_minute=4, at_once=99), clock=Clock())
    assert [limiter.begin(peer) for peer in PEERS] == [True] * 4 + [False]


def test_at_once() -> None:
    limiter = DialBackLimiter(DialBackLimits(at_once_per_peer=2, at_once=3), clock=Clock())
    assert limiter.begin(PEERS[0])
    assert limiter.begin(PEERS[0])
    assert not limiter.begin(PEERS[0])
    assert limiter.begin(PEERS[1])
    assert not limiter.begin(PEERS[2])
    limiter.end(PEERS[0])
    assert limiter.begin(PEERS[2])


def test_foreign() -> None:
    clock = Clock()
    limiter = DialBackLimiter(DialBackLimits(foreign=2), clock=clock)
    assert [limiter.foreign() for _ in range(3)] == [True, True, False]
    clock.now += 60
    assert limiter.foreign()


def test_it_forgets_whoever_is_gone() -> None:
    clock = Clock()
    limiter = DialBackLimiter(DialBackLimits(), clock=clock)
    for peer in PEERS:
        limiter.begin(peer)
        limiter.end(peer)
    clock.now += 60
    limiter.begin(PEERS[0])
    assert len(limiter._requests) == len(limiter._by_peer) == len(limiter._running) == 1
